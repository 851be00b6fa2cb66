//! What a policy costs, where that is more than its writer will expect: rules that no table tells
//! apart, chains that take many tables, long ways through chains.

use super::chains::{self, Walk};
use super::{Draft, Place};
use crate::policy::Warning;
use crate::policy::model::Policy;

/// Rules in one list: beyond these a packet is compared with more of them than any ordinary policy
/// asks for.
const LIST: u32 = 32;
/// Tables of one chain.
const TABLES: usize = 40;
/// Rules on a packet's way that do not decide.
const STEPS: u64 = 4_096;

impl Draft {
    /// What is costly about the policy, of which this is the draft.
    pub fn costs(&self, policy: &Policy) -> Vec<Warning> {
        let chains = chains::tables(policy).flat_map(|(family, name, table)| {
            let of = move |chain| (family, name, chain);
            table.chains.iter().map(of)
        });
        let mut warnings = Vec::new();
        for ((family, table, chain), draft) in chains.zip(&self.chains) {
            let Some(groups) = &draft.groups else {
                continue;
            };
            let (title, name) = (family.title(), &chain.name);
            let length = groups.longest();
            if length > LIST
                && let Some(rule) = chain.rules.get(groups.first_of_longest() as usize)
            {
                let place = Place::of(policy, rule.origin);
                warnings.push(Warning {
                    code: "rules-alike",
                    origin: Some(rule.origin),
                    file: place.file,
                    text: format!(
                        "this rule and {} others of {title}'s {table} {name} are alike in \
                         addresses, ports and protocol: a packet that agrees with these is compared \
                         with one after the other, as in iptables",
                        length - 1
                    ),
                    help: Some(
                        "join rules by `-m multiport` or wider prefixes, or put a rule that sends \
                         what they have in common to a chain of its own before them"
                            .into(),
                    ),
                });
            }
            if groups.tables() > TABLES {
                warnings.push(Warning {
                    code: "many-tables",
                    origin: None,
                    file: None,
                    text: format!(
                        "the rules of {title}'s {table} {name} name their addresses and ports in so \
                         many ways that packets are looked for in {} tables",
                        groups.tables()
                    ),
                    help: Some("use fewer different lengths of prefixes and ranges of ports".into()),
                });
            }
        }
        warnings.extend(self.walks.iter().filter_map(long));
        warnings
    }
}

fn long(walk: &Walk) -> Option<Warning> {
    let Walk {
        family,
        table,
        chain,
        steps,
    } = walk;
    (*steps > STEPS).then(|| Warning {
        code: "long-way",
        origin: None,
        file: None,
        text: format!(
            "a packet in {}'s {table} {chain} may match {steps} rules that jump or only count \
             before one decides; after about a million it is dropped",
            family.title()
        ),
        help: Some("let chains be called from fewer places, and decide earlier".into()),
    })
}
