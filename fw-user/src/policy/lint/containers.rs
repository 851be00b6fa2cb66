//! Containers that the whole network can open connections to.

use super::families::matches_new;
use super::{Findings, filter_tables};
use crate::policy::ids::TableName;
use crate::policy::model::{InterfacePattern, Match, Negatable, Policy, Rule, Target};

/// How Docker names its bridges.
const BRIDGES: [&str; 2] = ["docker0", "br-"];

pub(super) fn lint(findings: &mut Findings<'_>) {
    let policy = findings.policy;
    for (family, table) in filter_tables(policy) {
        let Some(forward) = table.chain("FORWARD") else {
            continue;
        };
        for rule in &forward.rules {
            if opens_containers(rule) {
                let out = rule
                    .out_interface
                    .as_ref()
                    .map_or("", |out| out.value.0.as_str());
                let text = format!(
                    "every machine that reaches this one can open connections to every port of the containers on {out} in {}",
                    family.title()
                );
                findings.warn(
                    "open-containers",
                    Some(rule.origin),
                    text,
                    "let only replies through: add `-m conntrack --ctstate RELATED,ESTABLISHED`",
                );
            }
        }
        let accepts = forward.policy.as_ref().is_some_and(|policy| policy.accept);
        let ended = forward
            .rules
            .iter()
            .any(|rule| matches!(rule.target, Target::Drop) && all_new(rule));
        if accepts && !ended && masquerades(policy, family) {
            let origin = forward.policy.as_ref().and_then(|policy| policy.origin);
            let text = format!(
                "FORWARD lets everything through in {}: the network behind the masquerade is open to every machine that reaches this one",
                family.title()
            );
            findings.warn(
                "open-containers",
                origin,
                text,
                "set FORWARD's policy to DROP and allow what is needed",
            );
        }
    }
}

/// A rule that accepts new connections from outside to a bridge of containers.
fn opens_containers(rule: &Rule) -> bool {
    let bridge = |pattern: &Negatable<InterfacePattern>| {
        !pattern.not && BRIDGES.iter().any(|name| pattern.value.0.starts_with(name))
    };
    let towards = rule.out_interface.as_ref().is_some_and(bridge);
    let from_inside = rule.in_interface.as_ref().is_some_and(bridge);
    let narrow = rule.matches.iter().any(|each| {
        matches!(
            each,
            Match::Tcp(_) | Match::Udp(_) | Match::Multiport(_) | Match::Icmp(_)
        )
    });
    let limited =
        rule.source.is_some() || rule.destination.is_some() || rule.protocol.is_some() || narrow;
    towards
        && !from_inside
        && !limited
        && matches!(rule.target, Target::Accept)
        && matches_new(rule)
}

/// Whether a rule matches whatever nobody else matched.
fn all_new(rule: &Rule) -> bool {
    rule.source.is_none()
        && rule.destination.is_none()
        && rule.protocol.is_none()
        && matches_new(rule)
}

fn masquerades(policy: &Policy, family: crate::policy::model::Family) -> bool {
    let nat = policy
        .ruleset(family)
        .and_then(|ruleset| ruleset.table(TableName::Nat));
    let chains = nat.iter().flat_map(|table| &table.chains);
    chains
        .flat_map(|chain| &chain.rules)
        .any(|rule| matches!(rule.target, Target::Masquerade(_)))
}
