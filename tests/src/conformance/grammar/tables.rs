//! The tables raw and mangle.

use fw_user::policy::model::{Family, InterfacePattern};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Spot, TableText, Writer, marks};

/// The rule of mangle that has the reference track connections, as fwbpf always does (difference 9).
pub(super) const TRACKS: &str = "-A PREROUTING -m conntrack --ctstate NEW";

/// Difference 24: where destinations become other hosts', no packet on loopback is put in a zone.
pub(super) fn spare_loopback(tables: &mut [TableText]) {
    let mut rules = tables.iter().flat_map(|table| &table.rules);
    let moves = |rule: &String| rule.contains("-j DNAT") || rule.contains("-j NETMAP");
    if !rules.any(moves) {
        return;
    }
    for table in tables.iter_mut().filter(|table| table.name == "raw") {
        for (chain, option) in [("-A PREROUTING", "-i"), ("-A OUTPUT", "-o")] {
            let zone = |rule: &str| rule.starts_with(chain) && rule.contains("-j CT --zone");
            table
                .rules
                .retain(|rule| !zone(rule) || meets_loopback(rule, option) != Some(true));
            for rule in &mut table.rules {
                if zone(rule) && meets_loopback(rule, option).is_none() {
                    *rule = rule.replacen(chain, &format!("{chain} ! {option} lo"), 1);
                }
            }
        }
    }
}

/// Whether a rule fits loopback by this option; nothing if it has none.
fn meets_loopback(rule: &str, option: &str) -> Option<bool> {
    let words: Vec<&str> = rule.split(' ').collect();
    let at = words.iter().position(|word| *word == option)?;
    let fits = InterfacePattern(words.get(at + 1)?.to_string()).matches("lo");
    Some(fits != (words[at - 1] == "!"))
}

impl<R: Rng> Writer<'_, R> {
    pub(super) fn raw(&mut self) -> TableText {
        let mut rules = Vec::new();
        let zones = self.chance(0.5).then(|| self.upto(5));
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
            if let Some(how) = zones {
                rules.extend(self.zones(how, name));
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

    /// Rules that put packets in zones: all in one, or by interface, by protocol, by port or by address. They come
    /// last, as what rules behind them would see is a template's, of which fwbpf knows the state alone.
    fn zones(&mut self, how: usize, chain: &str) -> Vec<String> {
        let own = chain == "OUTPUT";
        let zone = |number: usize| match number {
            0 => "-j CT".to_owned(),
            3 => "-j CT --zone 65535".to_owned(),
            _ => format!("-j CT --zone {number}"),
        };
        let mut matches: Vec<(String, usize)> = match how {
            0 => vec![(String::new(), 1)],
            1 => {
                let option = if own { "-o" } else { "-i" };
                let (near, far) = (self.upto(4), self.upto(4));
                let device = |name: &str, zone| (format!(" {option} {name}"), zone);
                vec![
                    device("eth0", far),
                    device("docker0", far),
                    device("lo", near),
                    device("eth1", near),
                ]
            }
            2 => vec![(" -p tcp".into(), 1), (" -p udp".into(), 2)],
            3 => {
                let end = ["sport", "dport"].choose(self.random).expect("not empty");
                let range = [":9999", "10000:", ":52"]
                    .choose(self.random)
                    .expect("not empty");
                vec![
                    (format!(" -p udp -m udp --{end} {range}"), 1),
                    (String::new(), self.upto(3)),
                ]
            }
            _ => {
                let (address, zone) = (self.upto(2), self.upto(4));
                let network = match self.family {
                    Family::Ipv4 => ["203.0.113.0/24", "172.17.0.2/32"],
                    Family::Ipv6 => ["2001:db8:7::/64", "fd17::2/128"],
                }[address];
                vec![
                    (format!(" -s {network}"), zone),
                    (format!(" -d {network}"), zone),
                    (String::new(), 3),
                ]
            }
        };
        if self.chance(0.2) {
            // The first word counts.
            matches.extend([(String::new(), 2)]);
        }
        // Difference 13.
        let protocols: &[&str] = if own { &[" -p tcp", " -p udp"] } else { &[""] };
        let mut rules = Vec::new();
        for (asked, number) in matches {
            let named = asked.contains(" -p ");
            let protocols = if named { &[""] } else { protocols };
            rules.extend(
                protocols
                    .iter()
                    .map(|protocol| format!("-A {chain}{asked}{protocol} {}", zone(number))),
            );
        }
        let protocol = if own { " -p tcp" } else { "" };
        match self.upto(10) {
            0 => rules.push(format!("-A {chain}{protocol} -j NOTRACK")),
            1 | 2 => rules.push(format!("-A {chain}{protocol} -m conntrack --ctstate NEW")),
            3 => rules.push(format!("-A {chain}{protocol} -m state --state INVALID")),
            _ => {}
        }
        rules
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
