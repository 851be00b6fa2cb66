//! Which line of the policy decided, told by the counters that the kernel kept.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result};
use fw_user::policy::model::Family;
use serde::Deserialize;

/// A policy file's lines, to cite the one that counted.
pub struct Policy {
    /// The family that the file is for.
    pub family: Family,
    lines: Vec<String>,
}

impl Policy {
    /// Reads a file.
    pub fn read(family: Family, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().map(str::to_owned).collect();
        Ok(Self { family, lines })
    }

    fn cite(&self, rule: &Rule) -> String {
        let text = rule
            .line
            .checked_sub(1)
            .and_then(|index| self.lines.get(index))
            .unwrap_or(&rule.rule);
        format!("{:>3}: {text}", rule.line)
    }
}

/// The counters of one family at one moment, as `fwbpf show --json` prints them.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Ledger {
    chains: Vec<Chain>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Chain {
    table: String,
    chain: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Rule {
    packets: u64,
    rule: String,
    line: usize,
}

impl Ledger {
    /// Reads JSON.
    pub fn parse(json: &str) -> Result<Self> {
        serde_json::from_str(json).context("`fwbpf show --json` printed something unexpected")
    }

    /// The line of `chain` that decided over what was sent since `before`: the first that counted
    /// and is not about later packets of the flow (`ESTABLISHED`), nor about packets that come in
    /// elsewhere than by `enters`. A reply is decided by the `ESTABLISHED` line if there is none.
    pub fn decided(
        &self,
        before: &Self,
        chain: &str,
        enters: Option<&str>,
        policy: &Policy,
    ) -> Option<String> {
        let earlier: HashMap<usize, u64> = before
            .rules(chain)
            .enumerate()
            .map(|(index, rule)| (index, rule.packets))
            .collect();
        let counted: Vec<&Rule> = self
            .rules(chain)
            .enumerate()
            .filter(|(index, rule)| rule.packets > earlier.get(index).copied().unwrap_or(0))
            .map(|(_, rule)| rule)
            .filter(|rule| enters.is_none_or(|interface| may_enter(&rule.rule, interface)))
            .collect();
        let opening = counted
            .iter()
            .find(|rule| !rule.rule.contains("ESTABLISHED"));
        opening.or(counted.first()).map(|rule| policy.cite(rule))
    }

    fn rules(&self, chain: &str) -> impl Iterator<Item = &Rule> {
        self.chains
            .iter()
            .filter(move |one| one.table == "filter" && one.chain == chain)
            .flat_map(|one| &one.rules)
    }
}

/// Whether the rule is open to packets that came in by `interface`.
fn may_enter(rule: &str, interface: &str) -> bool {
    let mut words = rule.split_whitespace();
    match words.find(|word| *word == "-i").and(words.next()) {
        Some(named) => named == interface,
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            family: Family::Ipv4,
            lines: vec![
                "*filter".into(),
                "-A INPUT -i lo -j ACCEPT".into(),
                "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT".into(),
                "-A INPUT -p tcp --dport 22 -j ACCEPT".into(),
            ],
        }
    }

    fn ledger(lo: u64, established: u64, ssh: u64) -> Ledger {
        let rule = |packets: u64, rule: &str, line: usize| serde_json::json!({ "packets": packets, "bytes": 0, "rule": rule, "line": line });
        Ledger::parse(
            &serde_json::json!([{ "family": "Ipv4", "table": "filter", "chain": "INPUT", "rules": [
                rule(lo, "-A INPUT -i lo -j ACCEPT", 2),
                rule(established, "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", 3),
                rule(ssh, "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", 4),
            ]}])
            .to_string(),
        )
        .unwrap()
    }

    #[test]
    fn the_opening_line_is_cited_from_the_file() {
        let cited = ledger(1, 5, 2).decided(&ledger(0, 1, 1), "INPUT", Some("eth0"), &policy());
        let expected = "  4: -A INPUT -p tcp --dport 22 -j ACCEPT";
        assert_eq!(cited.as_deref(), Some(expected));
    }

    #[test]
    fn a_reply_is_decided_by_the_established_line() {
        let cited = ledger(0, 5, 1).decided(&ledger(0, 1, 1), "INPUT", Some("eth0"), &policy());
        assert!(cited.unwrap().starts_with("  3: "));
    }

    #[test]
    fn nothing_counted_nothing_cited() {
        assert_eq!(
            ledger(1, 1, 1).decided(&ledger(1, 1, 1), "INPUT", None, &policy()),
            None
        );
    }
}
