//! Which line of the policy decided, told by the counters that the kernel kept.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result};
use fw_user::policy::model::Family;

/// A rule's place: table, chain, and position in the chain.
type Place = (String, String, usize);

/// A policy file's rules, to name the line of a rule that counted.
pub struct Policy {
    /// The family that the file is for.
    pub family: Family,
    lines: HashMap<Place, (usize, String)>,
}

impl Policy {
    /// Reads a file in iptables-save's format.
    pub fn read(family: Family, path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            family,
            lines: rules(&text)
                .map(|rule| (rule.place, (rule.line, rule.text.to_owned())))
                .collect(),
        })
    }

    fn cite(&self, place: &Place) -> Option<String> {
        let (line, text) = self.lines.get(place)?;
        Some(format!("{line:>3}: {text}"))
    }
}

/// The counters of one family at one moment, as `fwbpf show --save` printed them.
#[derive(Debug, PartialEq, Eq)]
pub struct Ledger {
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    place: Place,
    text: String,
    packets: u64,
}

impl Ledger {
    /// Reads `iptables-save -c`'s format.
    pub fn parse(text: &str) -> Self {
        let entries = rules(text)
            .map(|rule| Entry {
                place: rule.place,
                text: rule.text.to_owned(),
                packets: rule.packets,
            })
            .collect();
        Self { entries }
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
        let earlier: HashMap<&Place, u64> = before
            .entries
            .iter()
            .map(|entry| (&entry.place, entry.packets))
            .collect();
        let counted: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.place.0 == "filter" && entry.place.1 == chain)
            .filter(|entry| entry.packets > earlier.get(&entry.place).copied().unwrap_or(0))
            .filter(|entry| enters.is_none_or(|interface| may_enter(&entry.text, interface)))
            .collect();
        let opening = counted
            .iter()
            .find(|entry| !entry.text.contains("ESTABLISHED"));
        let entry = opening.or(counted.first())?;
        Some(
            policy
                .cite(&entry.place)
                .unwrap_or_else(|| entry.text.clone()),
        )
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

struct Rule<'a> {
    place: Place,
    line: usize,
    text: &'a str,
    packets: u64,
}

/// The rules of a file in iptables-save's format, with or without counters.
fn rules(text: &str) -> impl Iterator<Item = Rule<'_>> {
    let mut table = String::new();
    let mut lengths: HashMap<(String, String), usize> = HashMap::new();
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
            return None;
        }
        let (packets, rule) = match line.strip_prefix('[') {
            Some(counted) => {
                let (counters, rule) = counted.split_once(']')?;
                let (packets, _) = counters.split_once(':')?;
                (packets.parse().ok()?, rule.trim_start())
            }
            None => (0, line),
        };
        let chain = rule.strip_prefix("-A ")?.split_whitespace().next()?;
        let length = lengths
            .entry((table.clone(), chain.to_owned()))
            .or_default();
        *length += 1;
        Some(Rule {
            place: (table.clone(), chain.to_owned(), *length),
            line: index + 1,
            text: rule,
            packets,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# the policy\n*filter\n:INPUT ACCEPT [0:0]\n\n\
        -A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
        -A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";

    fn policy() -> Policy {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules.v4");
        fs::write(&path, FILE).unwrap();
        Policy::read(Family::Ipv4, &path).unwrap()
    }

    fn ledger(lo: u64, established: u64, ssh: u64) -> Ledger {
        Ledger::parse(&format!(
            "*filter\n:INPUT ACCEPT [9:900]\n[{lo}:0] -A INPUT -i lo -j ACCEPT\n\
             [{established}:0] -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
             [{ssh}:0] -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
        ))
    }

    #[test]
    fn the_opening_line_is_cited_from_the_file() {
        let cited = ledger(1, 5, 2).decided(&ledger(0, 1, 1), "INPUT", Some("eth0"), &policy());
        let expected = "  7: -A INPUT -p tcp --dport 22 -j ACCEPT";
        assert_eq!(cited.as_deref(), Some(expected));
    }

    #[test]
    fn a_reply_is_decided_by_the_established_line() {
        let cited = ledger(0, 5, 1).decided(&ledger(0, 1, 1), "INPUT", Some("eth0"), &policy());
        assert!(cited.unwrap().starts_with("  6: "));
    }

    #[test]
    fn nothing_counted_nothing_cited() {
        assert_eq!(
            ledger(1, 1, 1).decided(&ledger(1, 1, 1), "INPUT", None, &policy()),
            None
        );
    }
}
