//! What is true of one IP version and not of the other, and IPv6 without neighbour discovery.

use std::collections::BTreeMap;

use super::{Findings, filter_tables, flattened};
use crate::policy::model::{
    CtStates, Family, Match, Origin, PortRange, Rule, Table, Target, WhichPort,
};
use crate::policy::names::{ICMPV6, TCP, UDP, protocol_name};

/// Neighbour solicitation and advertisement (RFC 4861): without them no address is resolved.
const DISCOVERY: [u8; 2] = [135, 136];

pub(super) fn lint(findings: &mut Findings<'_>) {
    one_family_only(findings);
    for (family, table) in filter_tables(findings.policy) {
        if family == Family::Ipv6 {
            neighbour_discovery(findings, table);
        }
    }
}

fn one_family_only(findings: &mut Findings<'_>) {
    let policy = findings.policy;
    let tables: Vec<_> = filter_tables(policy).collect();
    let [(_, ipv4), (_, ipv6)] = tables.as_slice() else {
        if let [(only, table)] = tables.as_slice() {
            let closed = chain_drops(table, "INPUT");
            if closed {
                let (only, other) = (only.title(), only.other().title());
                let text = format!("the policy is for {only} only: {other} is not filtered at all");
                let help = format!("load rules for {other} as well; one policy.toml covers both");
                findings.warn("one-family", None, text, &help);
            }
        }
        return;
    };
    let sides = [
        (
            Family::Ipv4,
            services(ipv4),
            open_input(ipv6),
            services(ipv6),
        ),
        (
            Family::Ipv6,
            services(ipv6),
            open_input(ipv4),
            services(ipv4),
        ),
    ];
    for (family, own, other_open, others) in sides {
        if other_open {
            continue;
        }
        for ((protocol, port), origin) in own {
            let covered = others
                .keys()
                .any(|(other, range)| *other == protocol && range.0 <= port.0 && port.1 <= range.1);
            if !covered {
                let name = protocol_name(protocol).unwrap_or_default();
                let range = PortRange {
                    first: port.0,
                    last: port.1,
                };
                let (only, other) = (family.title(), family.other().title());
                let text =
                    format!("{name} port {range} is open to everyone in {only} but not in {other}");
                findings.warn(
                    "one-family-service",
                    Some(origin),
                    text,
                    &format!("add the rule for {other}, unless this is meant"),
                );
            }
        }
    }
}

/// Ports that INPUT accepts from everywhere on any interface, with the line that does.
fn services(table: &Table) -> BTreeMap<(u8, (u16, u16)), Origin> {
    let mut found = BTreeMap::new();
    let Some(input) = table.chain("INPUT") else {
        return found;
    };
    for rule in flattened(table, input) {
        let open = matches!(rule.target, Target::Accept)
            && rule.source.is_none()
            && rule.destination.is_none()
            && rule.in_interface.is_none();
        let Some(protocol) = rule
            .protocol
            .filter(|protocol| !protocol.not && [TCP, UDP].contains(&protocol.value))
        else {
            continue;
        };
        if !open || !matches_new(rule) {
            continue;
        }
        for range in destination_ports(rule) {
            found
                .entry((protocol.value, (range.first, range.last)))
                .or_insert(rule.origin);
        }
    }
    found
}

fn destination_ports(rule: &Rule) -> Vec<PortRange> {
    let mut ports = Vec::new();
    for each in &rule.matches {
        match each {
            Match::Tcp(tcp) => ports.extend(
                tcp.ports
                    .destination
                    .filter(|range| !range.not)
                    .map(|range| range.value),
            ),
            Match::Udp(udp) => ports.extend(
                udp.destination
                    .filter(|range| !range.not)
                    .map(|range| range.value),
            ),
            Match::Multiport(multiport)
                if multiport.which == WhichPort::Destination && !multiport.ports.not =>
            {
                ports.extend(&multiport.ports.value);
            }
            _ => {}
        }
    }
    ports
}

/// Whether the first packet of a flow can match.
pub(super) fn matches_new(rule: &Rule) -> bool {
    let states = rule.matches.iter().filter_map(super::covers::states_of);
    states
        .into_iter()
        .all(|states| (states.value.0 & CtStates::NEW.0 != 0) != states.not)
}

fn chain_drops(table: &Table, name: &str) -> bool {
    let Some(chain) = table.chain(name) else {
        return false;
    };
    let policy_drops = chain.policy.as_ref().is_some_and(|policy| !policy.accept);
    policy_drops
        || chain
            .rules
            .iter()
            .any(|rule| matches!(rule.target, Target::Drop))
}

/// Whether INPUT lets in everything that no rule names.
fn open_input(table: &Table) -> bool {
    let Some(chain) = table.chain("INPUT") else {
        return true;
    };
    for rule in &chain.rules {
        if crate::policy::save::is_unconditional(rule) {
            match rule.target {
                Target::Accept => return true,
                Target::Drop => return false,
                _ => {}
            }
        }
    }
    chain.policy.as_ref().is_none_or(|policy| policy.accept)
}

fn neighbour_discovery(findings: &mut Findings<'_>, table: &Table) {
    if super::replies::is_shut(table, "INPUT") {
        return;
    }
    for (name, hears) in [("INPUT", "cannot hear"), ("OUTPUT", "cannot send")] {
        let Some(chain) = table.chain(name) else {
            continue;
        };
        for kind in DISCOVERY {
            let mut verdict = None;
            for rule in flattened(table, chain) {
                match (decides(rule, kind), &rule.target) {
                    (true, Target::Accept) => verdict = Some((true, rule.origin)),
                    (true, Target::Drop) => verdict = Some((false, rule.origin)),
                    _ => continue,
                }
                break;
            }
            let policy = chain.policy.as_ref().filter(|policy| !policy.accept);
            let dropped = match verdict {
                Some((accepted, origin)) => (!accepted).then_some(Some(origin)),
                None => policy.map(|policy| policy.origin),
            };
            if let Some(origin) = dropped {
                let text = format!(
                    "IPv6 {hears} its neighbours: {name} drops neighbour discovery (ICMPv6 types 133 to 136), so no address is resolved and nothing works"
                );
                findings.warn(
                    "no-neighbour-discovery",
                    origin,
                    text,
                    &format!("before it: `-A {name} -p ipv6-icmp -j ACCEPT`"),
                );
                break;
            }
        }
    }
}

/// Whether a rule surely matches neighbour discovery of this type on an ordinary interface.
/// A rule with a restriction that discovery may or may not meet is taken to let it through if it
/// accepts: a warning that cries wolf is worse than none.
fn decides(rule: &Rule, kind: u8) -> bool {
    let accepts = matches!(rule.target, Target::Accept);
    let protocol = rule
        .protocol
        .is_none_or(|protocol| (protocol.value == ICMPV6) != protocol.not);
    let interface = |pattern: &Option<
        crate::policy::model::Negatable<crate::policy::model::InterfacePattern>,
    >| match pattern {
        None => true,
        Some(pattern) => accepts && (pattern.value.0 != "lo" || pattern.not),
    };
    let addresses = accepts && link_local_may_match(rule)
        || (rule.source.is_none() && rule.destination.is_none());
    let matches = rule.matches.iter().all(|each| match each {
        Match::Icmp(None) | Match::Comment(_) => true,
        Match::Icmp(Some(found)) => {
            (found.value.kind.is_none_or(|found| found == kind)) != found.not
        }
        Match::State(_) | Match::Conntrack(_) => super::covers::states_of(each)
            .is_some_and(|states| (states.value.0 & CtStates::UNTRACKED.0 != 0) != states.not),
        // Discovery needs little, and a limit lets little pass.
        Match::Limit(_) | Match::Packet(_) | Match::List(_) => accepts,
        // Sets of neighbours are rare.
        Match::Set(_) => false,
        Match::Tcp(_) | Match::Udp(_) | Match::Multiport(_) => false,
    });
    protocol
        && interface(&rule.in_interface)
        && interface(&rule.out_interface)
        && addresses
        && matches
}

/// Whether the addresses of a rule leave room for neighbours.
fn link_local_may_match(rule: &Rule) -> bool {
    let wide = |prefix: Option<crate::policy::model::Negatable<crate::policy::model::Prefix>>| {
        prefix.is_none_or(|prefix| {
            let std::net::IpAddr::V6(mask) = prefix.value.mask else {
                return false;
            };
            prefix.not || mask.to_bits().leading_ones() <= 16
        })
    };
    wide(rule.source) && wide(rule.destination)
}
