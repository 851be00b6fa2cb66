//! The counters of a policy: their order, and the name under which one survives a reload.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use super::model::{Chain, Family, Policy, Rule, Ruleset, Table};
use super::print::print_rule;

/// A table that fwbpf enforces.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum TableName {
    /// `*filter`.
    Filter,
    /// `*nat`.
    Nat,
    /// `*mangle`.
    Mangle,
    /// `*raw`.
    Raw,
    /// `*security`.
    Security,
}

impl TableName {
    /// Every table, in the order in which counters are numbered.
    pub const ALL: [Self; 5] = [
        Self::Filter,
        Self::Nat,
        Self::Mangle,
        Self::Raw,
        Self::Security,
    ];

    /// The name, as in `*filter`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
            Self::Raw => "raw",
            Self::Security => "security",
        }
    }

    /// The built-in chains, in the kernel's order.
    pub fn builtin_chains(self) -> &'static [&'static str] {
        match self {
            Self::Filter | Self::Security => &["INPUT", "FORWARD", "OUTPUT"],
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            Self::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Self::Raw => &["PREROUTING", "OUTPUT"],
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names one counter: that of a rule, or that of a base chain's policy.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct CounterId {
    /// The IP version.
    pub family: Family,
    /// The table.
    pub table: TableName,
    /// Index into [`Table::chains`].
    pub chain: usize,
    /// Index into [`Chain::rules`]; `None` for the chain's policy.
    pub rule: Option<usize>,
}

impl Ruleset {
    /// The table of that name, if the policy has it.
    pub fn table(&self, name: TableName) -> Option<&Table> {
        match name {
            TableName::Filter => self.filter.as_ref(),
            TableName::Nat => self.nat.as_ref(),
            TableName::Mangle => self.mangle.as_ref(),
            TableName::Raw => self.raw.as_ref(),
            TableName::Security => self.security.as_ref(),
        }
    }

    /// The table of that name, to be filled in.
    pub fn table_mut(&mut self, name: TableName) -> &mut Option<Table> {
        match name {
            TableName::Filter => &mut self.filter,
            TableName::Nat => &mut self.nat,
            TableName::Mangle => &mut self.mangle,
            TableName::Raw => &mut self.raw,
            TableName::Security => &mut self.security,
        }
    }

    /// The tables present, in the order in which counters are numbered.
    pub fn tables(&self) -> impl Iterator<Item = (TableName, &Table)> {
        TableName::ALL
            .into_iter()
            .filter_map(|name| self.table(name).map(|table| (name, table)))
    }
}

impl Table {
    /// The chain of that name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}

impl Policy {
    /// The tables of an IP version, if the policy speaks of it.
    pub fn ruleset(&self, family: Family) -> Option<&Ruleset> {
        match family {
            Family::Ipv4 => self.ipv4.as_ref(),
            Family::Ipv6 => self.ipv6.as_ref(),
        }
    }

    /// The tables of an IP version, to be filled in.
    pub fn ruleset_mut(&mut self, family: Family) -> &mut Option<Ruleset> {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }

    /// The IP versions that the policy speaks of, IPv4 first.
    pub fn rulesets(&self) -> impl Iterator<Item = (Family, &Ruleset)> {
        [Family::Ipv4, Family::Ipv6]
            .into_iter()
            .filter_map(|family| self.ruleset(family).map(|ruleset| (family, ruleset)))
    }

    /// Every counter, in the order in which they are numbered: IPv4 before IPv6, filter before
    /// nat, chain by chain, a base chain's policy before its rules.
    pub fn counter_ids(&self) -> impl Iterator<Item = CounterId> + '_ {
        self.rulesets().flat_map(|(family, ruleset)| {
            ruleset.tables().flat_map(move |(table, content)| {
                content
                    .chains
                    .iter()
                    .enumerate()
                    .flat_map(move |(chain, content)| {
                        let policy = content.policy.iter().map(|_| None);
                        let rules = (0..content.rules.len()).map(Some);
                        policy.chain(rules).map(move |rule| CounterId {
                            family,
                            table,
                            chain,
                            rule,
                        })
                    })
            })
        })
    }

    /// The chain that a counter belongs to. `None` if the id is of another policy.
    pub fn chain(&self, id: CounterId) -> Option<&Chain> {
        self.ruleset(id.family)?
            .table(id.table)?
            .chains
            .get(id.chain)
    }

    /// The rule that a counter belongs to. `None` for a chain's policy.
    pub fn rule(&self, id: CounterId) -> Option<&Rule> {
        self.chain(id)?.rules.get(id.rule?)
    }

    /// Every counter with its identity, in the order of [`Policy::counter_ids`].
    ///
    /// The identity is the rule's canonical text with its IP version, table and chain, and the
    /// occurrence (`#2`) where a chain holds the same rule twice. It does not depend on lines or
    /// on neighbouring rules, so a rule that stays keeps its counters when others come and go.
    pub fn identities(&self) -> Vec<(CounterId, String)> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        self.counter_ids()
            .map(|id| {
                let mut text = self.identity_text(id);
                let occurrence = seen.entry(text.clone()).or_default();
                *occurrence += 1;
                if *occurrence > 1 {
                    text.push_str(&format!(" #{occurrence}"));
                }
                (id, text)
            })
            .collect()
    }

    /// A hash of each counter's identity, in the order of [`Policy::counter_ids`]: equal exactly
    /// where [`Policy::identities`] are equal, save for the occurrence.
    ///
    /// It is taken over what the identity's text is made from, in the bytes in which a policy is
    /// stored, so that it is the same in every build that can read that policy.
    pub fn identity_hashes(&self) -> Vec<u128> {
        let mut hashes = Vec::new();
        let mut bytes = Vec::new();
        for (family, ruleset) in self.rulesets() {
            for (table, content) in ruleset.tables() {
                for chain in &content.chains {
                    bytes.clear();
                    append(&mut bytes, &(family, table, &chain.name));
                    let place = bytes.len();
                    if let Some(policy) = &chain.policy {
                        append(&mut bytes, &policy.accept);
                        hashes.push(xxh3_128(&bytes));
                    }
                    for rule in &chain.rules {
                        bytes.truncate(place);
                        append_identity(&mut bytes, rule);
                        hashes.push(xxh3_128(&bytes));
                    }
                }
            }
        }
        hashes
    }

    /// The identity of one counter; see [`Policy::identities`], which is the faster way to all.
    pub fn identity(&self, id: CounterId) -> String {
        let text = self.identity_text(id);
        let twins = match (self.chain(id), id.rule) {
            (Some(chain), Some(rule)) => chain
                .rules
                .iter()
                .take(rule)
                .filter(|earlier| Some(print_rule(earlier, id.family)) == self.rule_text(id))
                .count(),
            _ => 0,
        };
        if twins == 0 {
            text
        } else {
            format!("{text} #{}", twins + 1)
        }
    }

    fn identity_text(&self, id: CounterId) -> String {
        let (family, table) = (id.family.name(), id.table);
        let Some(chain) = self.chain(id) else {
            return format!("{family} {table} -");
        };
        let name = &chain.name;
        match (&chain.policy, self.rule_text(id)) {
            (_, Some(rule)) => format!("{family} {table} {name} rule {rule}"),
            (Some(policy), None) if policy.accept => {
                format!("{family} {table} {name} policy ACCEPT")
            }
            _ => format!("{family} {table} {name} policy DROP"),
        }
    }

    fn rule_text(&self, id: CounterId) -> Option<String> {
        self.rule(id).map(|rule| print_rule(rule, id.family))
    }
}

/// All of a rule but its counters and its line.
fn append_identity(bytes: &mut Vec<u8>, rule: &Rule) {
    let Rule {
        source,
        destination,
        in_interface,
        out_interface,
        protocol,
        matches,
        target,
        counters: _,
        origin: _,
    } = rule;
    let addresses = (source, destination);
    let interfaces = (in_interface, out_interface);
    append(bytes, &(addresses, interfaces, protocol, matches, target));
}

/// Appends a value in postcard's format.
fn append(bytes: &mut Vec<u8>, value: &impl Serialize) {
    // postcard fails on values whose length is unknown, which the model has none of, and on full
    // buffers, which a Vec is never.
    let appended = postcard::to_extend(value, std::mem::take(bytes));
    *bytes = appended.unwrap_or_default();
}
