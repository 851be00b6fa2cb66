//! Rules that no packet can reach or match, and chains that nothing calls.

use std::collections::HashSet;

use super::Findings;
use super::covers::covers;
use crate::policy::model::{Chain, CtStates, Family, Match, Rule, Table, Target};
use crate::policy::print::print_rule;
use crate::policy::save::called;

/// Beyond this many rules in a chain only the rules that match everything are compared with
/// those after them: comparing each with each would take minutes.
const COMPARED: usize = 2_000;

pub(super) fn lint(findings: &mut Findings<'_>) {
    let policy = findings.policy;
    for (family, ruleset) in policy.rulesets() {
        for (_, table) in ruleset.tables() {
            uncalled_chains(findings, table);
            for chain in &table.chains {
                shadowed_rules(findings, family, chain);
                impossible_rules(findings, family, chain);
            }
        }
    }
}

fn uncalled_chains(findings: &mut Findings<'_>, table: &Table) {
    let mut reached: HashSet<&str> = HashSet::new();
    let builtin = table.chains.iter().filter(|chain| chain.policy.is_some());
    let mut open: Vec<&Chain> = builtin.collect();
    while let Some(chain) = open.pop() {
        for name in chain.rules.iter().filter_map(called) {
            if reached.insert(name) {
                open.extend(table.chain(name));
            }
        }
    }
    for chain in &table.chains {
        if chain.policy.is_none()
            && !chain.rules.is_empty()
            && !reached.contains(chain.name.as_str())
        {
            let origin = chain.rules.first().map(|rule| rule.origin);
            let text = format!(
                "no packet reaches the chain {}: no rule jumps to it",
                chain.name
            );
            findings.warn(
                "uncalled-chain",
                origin,
                text,
                "jump to it with -j, or remove it",
            );
        }
    }
}

fn shadowed_rules(findings: &mut Findings<'_>, family: Family, chain: &Chain) {
    let mut deciding: Vec<&Rule> = Vec::new();
    for rule in &chain.rules {
        if let Some(earlier) = deciding.iter().find(|earlier| covers(earlier, rule)) {
            // The rules that one line was expanded to may overlap among themselves, and to
            // write down what policy.toml allows by itself does no harm.
            let by_default = findings.policy.toml.is_some() && earlier.origin.line == 1;
            let harmless = by_default && earlier.target == rule.target;
            if earlier.origin != rule.origin && !harmless {
                let by = match by_default {
                    true => "[defaults]".to_owned(),
                    false => format!("line {}", earlier.origin.line),
                };
                let text = format!(
                    "`{}` in {} never matches: {by} (`{}`) decides all its packets before",
                    print_rule(rule, family),
                    chain.name,
                    print_rule(earlier, family),
                );
                let help = match by_default {
                    true => "switch that default off in [defaults]",
                    false => "remove it, or move it before that line",
                };
                findings.warn("never-matches", Some(rule.origin), text, help);
            }
            continue;
        }
        let few = chain.rules.len() <= COMPARED;
        if leaves_chain(&rule.target) && (few || crate::policy::save::is_unconditional(rule)) {
            deciding.push(rule);
        }
    }
}

/// Whether a packet that matches never comes to the chain's next rule.
fn leaves_chain(target: &Target) -> bool {
    match target {
        Target::Accept
        | Target::Drop
        | Target::Reject(_)
        | Target::Return
        | Target::Goto(_)
        | Target::Masquerade(_)
        | Target::Dnat(_)
        | Target::Snat(_)
        | Target::Redirect(_)
        | Target::Netmap(_) => true,
        Target::Continue
        | Target::Jump(_)
        | Target::Log(_)
        | Target::Nflog(_)
        | Target::Set(_)
        | Target::Change(_) => false,
    }
}

/// Rules whose own matches contradict one another.
fn impossible_rules(findings: &mut Findings<'_>, family: Family, chain: &Chain) {
    for rule in &chain.rules {
        let nothing =
            |prefix: Option<crate::policy::model::Negatable<crate::policy::model::Prefix>>| {
                prefix.is_some_and(|prefix| prefix.not && prefix.value.mask.is_unspecified())
            };
        let states: Vec<_> = rule
            .matches
            .iter()
            .filter_map(super::covers::states_of)
            .collect();
        let in_common = states.iter().fold(u8::MAX, |common, states| {
            common
                & if states.not {
                    !states.value.0
                } else {
                    states.value.0
                }
        });
        // The states of a packet; being translated comes on top of one of these.
        const REAL: u8 = !(CtStates::SNAT.0 | CtStates::DNAT.0);
        let virtual_only = states
            .iter()
            .any(|states| !states.not && states.value.0 & REAL != states.value.0);
        let no_state = states.len() > 1 && !virtual_only && in_common & REAL & ALL_STATES == 0;
        let no_flags = rule.matches.iter().any(|each| match each {
            Match::Tcp(tcp) => tcp
                .flags
                .is_some_and(|flags| !flags.not && flags.value.set & !flags.value.mask != 0),
            _ => false,
        });
        if nothing(rule.source) || nothing(rule.destination) || no_state || no_flags {
            let text = format!(
                "`{}` in {} never matches: it contradicts itself",
                print_rule(rule, family),
                chain.name
            );
            findings.warn(
                "never-matches",
                Some(rule.origin),
                text,
                "correct it, or remove it",
            );
        }
    }
}

const ALL_STATES: u8 = CtStates::NEW.0
    | CtStates::ESTABLISHED.0
    | CtStates::RELATED.0
    | CtStates::INVALID.0
    | CtStates::UNTRACKED.0;
