//! The tables raw and mangle.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Spot, TableText, Writer, marks};

/// The rule of mangle that has the reference track connections, as fwbpf always does (difference 9).
pub(super) const TRACKS: &str = "-A PREROUTING -m conntrack --ctstate NEW";

impl<R: Rng> Writer<'_, R> {
    pub(super) fn raw(&mut self) -> TableText {
        let mut rules = Vec::new();
        for (name, spot) in [("PREROUTING", Spot::Prerouting), ("OUTPUT", Spot::Output)] {
            if spot == Spot::Prerouting {
                rules.extend(self.reverse_path());
            }
            for _ in 0..self.upto(4) {
                let target = self.raw_target();
                // Difference 13.
                let protocol = match spot {
                    Spot::Output if self.chance(0.5) => Some("tcp"),
                    Spot::Output => Some("udp"),
                    _ => None,
                };
                rules.push(self.rule_of(name, spot, target, protocol));
            }
        }
        TableText {
            name: "raw",
            chains: self.policies(&["PREROUTING", "OUTPUT"]),
            rules,
        }
    }

    pub(super) fn mangle(&mut self) -> TableText {
        // Difference 9.
        let mut rules = vec![TRACKS.to_owned()];
        let chains = [
            ("PREROUTING", Spot::Prerouting),
            ("INPUT", Spot::Input),
            ("FORWARD", Spot::Forward),
            ("OUTPUT", Spot::Output),
            ("POSTROUTING", Spot::Postrouting),
        ];
        for (name, spot) in chains {
            if spot == Spot::Prerouting {
                rules.extend(self.reverse_path());
            }
            for _ in 0..self.upto(4) {
                if self.chance(0.12) {
                    let target = marks::segment_size(self.random, spot);
                    rules.push(self.rule_of(name, spot, &target, Some("tcp")));
                    continue;
                }
                let target = self.mangle_target();
                let header = ["DSCP", "TOS", "HL"].map(|word| format!("-j {word} "));
                let changes = header.iter().any(|word| target.starts_with(word));
                // Difference 14.
                let before = matches!(spot, Spot::Prerouting | Spot::Input);
                let protocol = match self.family {
                    Family::Ipv6 if changes && before => Some("tcp"),
                    _ => None,
                };
                rules.push(self.rule_of(name, spot, &target, protocol));
            }
        }
        TableText {
            name: "mangle",
            chains: self.policies(&chains.map(|(name, _)| name)),
            rules,
        }
    }

    /// Rules that ask which way answers would go.
    fn reverse_path(&mut self) -> Option<String> {
        if !self.chance(0.3) {
            return None;
        }
        let asked = ["", "", " --loose", " --invert", " --loose --invert"];
        let asked = asked.choose(self.random)?;
        let target = ["", "", "", " -j DROP"].choose(self.random)?;
        // Most packets come from where they should.
        let target = if asked.contains("invert") { target } else { "" };
        Some(format!("-A PREROUTING -m rpfilter{asked}{target}"))
    }

    /// Few tables of this kind drop all that they do not name.
    fn policies(&mut self, names: &[&str]) -> Vec<(String, &'static str)> {
        let mut chains = Vec::new();
        for name in names {
            let policy = if self.chance(0.03) { "DROP" } else { "ACCEPT" };
            chains.push(((*name).to_owned(), policy));
        }
        chains
    }

    fn raw_target(&mut self) -> &'static str {
        let targets = [
            "-j CONNMARK --or-mark 0x20",
            "-j NOTRACK",
            "-j CT --notrack",
            "-j MARK --set-mark 0x1",
            "-j ACCEPT",
            "-j RETURN",
            "",
        ];
        if self.chance(0.03) {
            return "-j DROP";
        }
        targets.choose(self.random).expect("not empty")
    }

    fn mangle_target(&mut self) -> String {
        let hops = match self.family {
            Family::Ipv4 => ("TTL", "ttl"),
            Family::Ipv6 => ("HL", "hl"),
        };
        match self.upto(12) {
            0 | 1 => {
                let marks = [
                    "--set-mark 0x1",
                    "--set-mark 0x10/0xf0",
                    "--set-xmark 0x3/0x1",
                    "--and-mark 0xf0",
                    "--or-mark 0x2",
                    "--xor-mark 0x11",
                ];
                format!("-j MARK {}", marks.choose(self.random).expect("not empty"))
            }
            10 | 11 => marks::change(self.random),
            2 => {
                let values = ["--set-dscp 0x2e", "--set-dscp 0", "--set-dscp-class AF21"];
                format!("-j DSCP {}", values.choose(self.random).expect("not empty"))
            }
            3 => {
                let values = [
                    "--set-tos 0x10",
                    "--set-tos 0x08/0x3f",
                    "--and-tos 0xfc",
                    "--or-tos 0x01",
                    "--xor-tos 0xff",
                ];
                format!("-j TOS {}", values.choose(self.random).expect("not empty"))
            }
            4 | 5 => {
                let (target, option) = hops;
                let how = ["set", "dec", "inc"]
                    .choose(self.random)
                    .expect("not empty");
                let value = ["1", "10", "64", "200"]
                    .choose(self.random)
                    .expect("not empty");
                format!("-j {target} --{option}-{how} {value}")
            }
            6 if self.chance(0.2) => "-j CHECKSUM --checksum-fill".into(),
            6 => "-j ACCEPT".into(),
            7 => "-j RETURN".into(),
            8 if self.chance(0.2) => "-j DROP".into(),
            _ => String::new(),
        }
    }
}
