//! Rule sets over the whole supported grammar, biased so that the traffic matches.

mod connection;
mod lists;
mod log;
mod marks;
mod matches;
mod nat;
mod reject;
mod sets;
mod tables;

use std::net::IpAddr;

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::traffic::{Carried, Endpoint, Flow};
pub use nat::neighbours;
pub use sets::Sets;

/// A rule set as text, in parts that the minimiser can leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `filter`, then `nat` if it has one.
    pub tables: Vec<TableText>,
    /// The sets that they may ask.
    pub sets: Sets,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableText {
    /// Its name.
    pub name: &'static str,
    /// The chains and their policies, `-` for user chains.
    pub chains: Vec<(String, &'static str)>,
    /// Lines `-A ...`.
    pub rules: Vec<String>,
}

impl Rules {
    /// Rules that make something of these flows.
    pub fn generate(random: &mut impl Rng, family: Family, flows: &[Flow]) -> Self {
        let sets = match random.random_bool(0.4) {
            true => Sets::generate(random, family, flows),
            false => Sets::default(),
        };
        Self::asking(random, family, flows, sets)
    }

    /// The same, with these sets.
    pub fn asking(random: &mut impl Rng, family: Family, flows: &[Flow], sets: Sets) -> Self {
        let mut writer = Writer {
            random,
            family,
            flows,
            sets: &sets,
        };
        let mut tables = vec![writer.filter()];
        if writer.chance(0.6) {
            tables.push(writer.nat());
        }
        reject::tame(&mut tables);
        if writer.chance(0.35) {
            tables.push(writer.mangle());
        }
        if writer.chance(0.25) {
            tables.push(writer.raw());
        }
        Self { tables, sets }
    }

    /// As iptables-restore reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            text += &format!("*{}\n", table.name);
            for (chain, policy) in &table.chains {
                text += &format!(":{chain} {policy} [0:0]\n");
            }
            for rule in &table.rules {
                text += rule;
                text.push('\n');
            }
            text += "COMMIT\n";
        }
        text
    }

    /// Whether rules translate destinations.
    pub fn translate_destinations(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| {
            let words = ["-j DNAT", "-j REDIRECT", "-j NETMAP"];
            words.iter().any(|word| rule.contains(word))
        })
    }

    /// Whether rules keep packets from being tracked.
    pub fn leave_untracked(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| rule.contains("-j NOTRACK") || rule.contains("-j CT --notrack"))
    }

    /// Whether what the rules do depends on how long datagrams are or what is in them, which their
    /// first fragments do not tell; or on a set that the first fragment changes.
    pub fn ask_for_lengths(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| {
            let words = [
                "-m length",
                "-m string",
                "-j REJECT",
                "-j SET",
                "-j TTL",
                "-j HL",
            ];
            words.iter().any(|word| rule.contains(word))
        })
    }

    /// Whether rules count connections.
    pub fn count_connections(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| rule.contains("-m connlimit"))
    }

    /// How many rules there are in all.
    pub fn count(&self) -> usize {
        self.tables.iter().map(|table| table.rules.len()).sum()
    }

    /// Only the rules whose running number is listed, and the one that has connections tracked.
    pub fn only(&self, keep: &[usize]) -> Self {
        let mut number = 0;
        let mut rules = self.clone();
        for table in &mut rules.tables {
            table.rules.retain(|rule| {
                number += 1;
                keep.contains(&(number - 1)) || rule == tables::TRACKS
            });
        }
        rules
    }
}

/// Which hook a chain is reached from, for what iptables allows there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    Input,
    Forward,
    Output,
    Prerouting,
    Postrouting,
    /// A user chain of filter, or one of nat that only counts.
    User,
    /// A user chain of nat that only POSTROUTING reaches.
    UserPostrouting,
}

struct Writer<'a, R> {
    random: &'a mut R,
    family: Family,
    flows: &'a [Flow],
    sets: &'a Sets,
}

impl<R: Rng> Writer<'_, R> {
    fn filter(&mut self) -> TableText {
        let users: Vec<String> = (0..self.upto(5)).map(|n| format!("user{n}")).collect();
        let mut chains = Vec::new();
        for name in ["INPUT", "FORWARD", "OUTPUT"] {
            let policy = if self.chance(0.65) { "ACCEPT" } else { "DROP" };
            chains.push((name.to_string(), policy));
        }
        chains.extend(users.iter().map(|user| (user.clone(), "-")));
        let mut rules = Vec::new();
        for (name, spot) in [
            ("INPUT", Spot::Input),
            ("FORWARD", Spot::Forward),
            ("OUTPUT", Spot::Output),
        ] {
            if self.chance(0.3) {
                // Most real rule sets begin so; without it few flows get past their first packet.
                rules.push(format!(
                    "-A {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                ));
            }
            if self.chance(0.1) {
                let asked = lists::connlimit(self.random, self.family);
                rules.push(format!("-A {name} {asked}"));
            }
            for _ in 0..self.upto(8) {
                let target = self.filter_target(&users, false);
                rules.push(self.rule(name, spot, &target));
            }
        }
        for (index, user) in users.iter().enumerate() {
            for _ in 0..1 + self.upto(4) {
                // Only to later chains, so that there is no loop.
                let target = self.filter_target(&users[index + 1..], true);
                rules.push(self.rule(user, Spot::User, &target));
            }
        }
        TableText {
            name: "filter",
            chains,
            rules,
        }
    }

    fn nat(&mut self) -> TableText {
        let mut chains: Vec<(String, &'static str)> = Vec::new();
        for name in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
            let policy = if self.chance(0.03) { "DROP" } else { "ACCEPT" };
            chains.push((name.to_string(), policy));
        }
        let users: Vec<String> = (0..self.upto(2)).map(|n| format!("natuser{n}")).collect();
        let masquerading: Vec<String> = (0..self.upto(2)).map(|n| format!("post{n}")).collect();
        for user in users.iter().chain(&masquerading) {
            chains.push((user.clone(), "-"));
        }
        let mut rules = Vec::new();
        for (name, spot) in [
            ("PREROUTING", Spot::Prerouting),
            ("INPUT", Spot::Input),
            ("OUTPUT", Spot::Output),
        ] {
            for _ in 0..self.upto(3) {
                if self.chance(0.5) {
                    rules.push(match spot {
                        Spot::Prerouting => self.destination_rule(name),
                        Spot::Input => self.source_rule(name, spot),
                        _ => self.output_rule(),
                    });
                    continue;
                }
                let target = self.plain_target(&users);
                rules.push(self.rule(name, spot, &target));
            }
        }
        for _ in 0..self.upto(4) {
            if self.chance(0.3) {
                rules.push(self.source_rule("POSTROUTING", Spot::Postrouting));
                continue;
            }
            let rule = self.postrouting_rule("POSTROUTING", Spot::Postrouting, &masquerading);
            rules.push(rule);
        }
        if self.chance(0.7) {
            rules.push("-A POSTROUTING -o eth0 -j MASQUERADE".into());
        }
        for user in &users {
            let target = self.plain_target(&[]);
            rules.push(self.rule(user, Spot::User, &target));
        }
        for (index, user) in masquerading.iter().enumerate() {
            for _ in 0..1 + self.upto(2) {
                let rule =
                    self.postrouting_rule(user, Spot::UserPostrouting, &masquerading[index + 1..]);
                rules.push(rule);
            }
        }
        TableText {
            name: "nat",
            chains,
            rules,
        }
    }

    fn filter_target(&mut self, users: &[String], in_user_chain: bool) -> String {
        let roll = self.upto(20);
        match roll {
            0..6 => "-j ACCEPT".into(),
            6..8 => "-j DROP".into(),
            8 => self.refusal(),
            9 if self.chance(0.7) => self.refusal(),
            9 if self.chance(0.5) => marks::change(self.random),
            9 => String::new(),
            10 => match self.sets.change(self.random) {
                Some(change) if self.chance(0.7) => change,
                _ => self.log_target(),
            },
            11 if in_user_chain || self.chance(0.3) => "-j RETURN".into(),
            12..18 if !users.is_empty() => format!("-j {}", self.one_of(users)),
            18..20 if !users.is_empty() => format!("-g {}", self.one_of(users)),
            _ if in_user_chain => "-j RETURN".into(),
            _ => String::new(),
        }
    }

    /// A target for nat chains where fwbpf only counts and accepts.
    fn plain_target(&mut self, users: &[String]) -> String {
        match self.upto(6) {
            0 => "-j ACCEPT".into(),
            1 => "-j RETURN".into(),
            2 | 3 if !users.is_empty() => format!("-j {}", self.one_of(users)),
            _ => String::new(),
        }
    }

    fn postrouting_rule(&mut self, chain: &str, spot: Spot, users: &[String]) -> String {
        let roll = self.upto(10);
        if roll < 4 {
            let mut target = "-j MASQUERADE".to_string();
            let mut protocol = None;
            if self.chance(0.4) {
                // The ports of the translated packet, well away from those that the flows use.
                let first = 20_000 + self.upto(1000) as u16;
                target += &if self.chance(0.3) {
                    format!(" --to-ports {first}")
                } else {
                    format!(
                        " --to-ports {first}-{}",
                        first + 3000 + self.upto(2000) as u16
                    )
                };
                protocol = Some(if self.chance(0.5) { "tcp" } else { "udp" });
            }
            if self.chance(0.2) {
                target += " --random";
            }
            return self.rule_of(chain, spot, &target, protocol);
        }
        let target = self.plain_target(users);
        self.rule(chain, spot, &target)
    }

    fn rule(&mut self, chain: &str, spot: Spot, target: &str) -> String {
        self.rule_of(chain, spot, target, None)
    }

    /// One rule. Its matches are taken from one flow, so that they hold together.
    fn rule_of(
        &mut self,
        chain: &str,
        spot: Spot,
        target: &str,
        protocol: Option<&'static str>,
    ) -> String {
        let flow = *self.flows.choose(self.random).expect("there are flows");
        let (from, to) = if self.chance(0.7) {
            (flow.a, flow.b)
        } else {
            (flow.b, flow.a)
        };
        let mut words: Vec<String> = vec!["-A".into(), chain.into()];
        // A list, which iptables makes into one rule each, goes with no `!` at the other address.
        let lists = self.chance(0.1);
        if self.chance(0.35) {
            words.push(self.address("-s", from.address, lists));
        }
        if self.chance(0.35) {
            words.push(self.address("-d", to.address, lists));
        }
        if !matches!(spot, Spot::Output | Spot::Postrouting) && self.chance(0.3) {
            words.push(self.interface("-i"));
        }
        if !matches!(spot, Spot::Input | Spot::Prerouting) && self.chance(0.3) {
            words.push(self.interface("-o"));
        }
        match protocol {
            Some(protocol) => words.push(format!("-p {protocol}")),
            None if self.chance(0.6) => self.protocol(&mut words, flow.carried, from, to),
            None => {}
        }
        if self.chance(0.35) {
            words.push(self.state());
        }
        if self.chance(0.12) {
            words.push(self.connection(flow));
        }
        if self.chance(0.1) {
            // Before or behind the other matches, which decides when it takes from its bucket.
            let first = words
                .iter()
                .position(|word| word.starts_with("-m ") || word.starts_with("-p "));
            let after = first.map_or(words.len(), |first| first + 1);
            let at = self.random.random_range(after..=words.len());
            words.insert(at, super::extensions::limit(self.random));
        }
        if self.chance(0.12) {
            // Several, and anywhere: each is asked, and changes its list, if all before it hold.
            for _ in 0..1 + self.upto(2) {
                let first = words
                    .iter()
                    .position(|word| word.starts_with("-m ") || word.starts_with("-p "));
                let after = first.map_or(words.len(), |first| first + 1);
                let at = self.random.random_range(after..=words.len());
                let ports = ["-p tcp", "-p udp"]
                    .iter()
                    .any(|protocol| words.iter().any(|word| word.starts_with(protocol)));
                let ports = ports && self.chance(0.5);
                let word = if self.chance(0.4) {
                    lists::hashlimit(self.random, self.family, ports)
                } else {
                    lists::recent(self.random, self.family)
                };
                words.insert(at, word);
            }
        }
        if self.chance(0.3)
            && let Some(asked) = self.sets.asked(self.random)
        {
            words.push(asked);
        }
        if self.chance(0.3) {
            let after = words
                .iter()
                .position(|word| word.starts_with("-m ") || word.starts_with("-p "));
            let after = after.map_or(words.len(), |first| first + 1);
            let at = self.random.random_range(after..=words.len());
            let is_tcp = words.iter().any(|word| word == "-p tcp" || word == "-p 6");
            let word = if is_tcp && self.chance(0.4) {
                matches::segment(self.random)
            } else {
                matches::packet(self.random, self.family, spot, (from, to))
            };
            words.insert(at, word);
        }
        if self.family == Family::Ipv4 && self.chance(0.05) {
            words.push(matches::fragment(self.random).into());
        }
        if self.chance(0.15) {
            words.push(self.comment());
        }
        if !target.is_empty() {
            words.push(reject::fitting(target, &words));
        }
        words.join(" ")
    }

    fn protocol(
        &mut self,
        words: &mut Vec<String>,
        carried: Carried,
        from: Endpoint,
        to: Endpoint,
    ) {
        if self.chance(0.1) {
            let name = *["tcp", "udp", "17", "gre"]
                .choose(self.random)
                .expect("not empty");
            words.push(format!("! -p {name}"));
            return;
        }
        match carried {
            Carried::Tcp | Carried::Udp => {
                let tcp = carried == Carried::Tcp;
                let (name, number) = if tcp { ("tcp", "6") } else { ("udp", "17") };
                words.push(format!(
                    "-p {}",
                    if self.chance(0.8) { name } else { number }
                ));
                if self.chance(0.75) {
                    self.transport(words, name, from, to);
                }
            }
            Carried::Echo => self.icmp(words),
            Carried::Other(number) => {
                let text = match number {
                    47 if self.chance(0.5) => "gre".into(),
                    50 if self.chance(0.5) => "esp".into(),
                    89 if self.chance(0.5) => "ospf".into(),
                    number => number.to_string(),
                };
                words.push(format!("-p {text}"));
            }
        }
    }

    fn transport(&mut self, words: &mut Vec<String>, name: &str, from: Endpoint, to: Endpoint) {
        if self.chance(0.25) {
            words.push(self.multiport(from, to));
            return;
        }
        if self.chance(0.1) {
            words.push(format!("-m {name}"));
        }
        if self.chance(0.3) {
            words.push(self.port_match("--sport", from.port));
        }
        if self.chance(0.7) {
            words.push(self.port_match("--dport", to.port));
        }
        if name == "tcp" && self.chance(0.3) {
            let not = self.not(0.25);
            let flags = *[
                "--syn",
                "--tcp-flags SYN,ACK SYN",
                "--tcp-flags ALL NONE",
                "--tcp-flags RST RST",
                "--tcp-flags FIN,SYN FIN,SYN",
                "--tcp-flags ACK,PSH ACK",
                "--tcp-flags ALL FIN,PSH,URG",
                "--tcp-flags SYN,RST,ACK,FIN SYN,ACK",
            ]
            .choose(self.random)
            .expect("not empty");
            words.push(format!("{not}{flags}"));
        }
    }

    fn port_match(&mut self, flag: &str, port: u16) -> String {
        let ports = self.ports(port, ':');
        // iptables-save prints nothing for `! --sport 0:65535`, though the rule never matches:
        // difference 8.
        let not = if ports == "0:65535" {
            String::new()
        } else {
            self.not(0.15)
        };
        format!("{not}{flag} {ports}")
    }

    fn multiport(&mut self, from: Endpoint, to: Endpoint) -> String {
        let (flag, hit) = match self.upto(5) {
            0 => ("--sports", from.port),
            1 => ("--ports", from.port),
            2 => ("--ports", to.port),
            _ => ("--dports", to.port),
        };
        let not = self.not(0.15);
        let mut list = Vec::new();
        for _ in 0..self.upto(4) {
            let port = self.random.random_range(1..65_000);
            list.push(if self.chance(0.3) {
                format!("{port}:{}", port + 1 + self.upto(500) as u16)
            } else {
                port.to_string()
            });
        }
        let at = self.upto(list.len() + 1);
        let port = self.ports(hit.max(1), ':');
        list.insert(at, port);
        format!("-m multiport {not}{flag} {}", list.join(","))
    }

    /// The port, or a range around it, or one beside it.
    fn ports(&mut self, port: u16, separator: char) -> String {
        let wide = 1 + self.upto(2000) as u16;
        match self.upto(10) {
            0..6 => port.to_string(),
            6 => format!(
                "{}{separator}{}",
                port.saturating_sub(wide),
                port.saturating_add(wide)
            ),
            7 => format!("{}{separator}65535", port.saturating_sub(wide)),
            8 => format!("0{separator}{port}"),
            _ => port.saturating_add(1).to_string(),
        }
    }

    fn icmp(&mut self, words: &mut Vec<String>) {
        let not = self.not(0.15);
        let (protocol, module, flag, types): (&[&str], _, _, &[&str]) = match self.family {
            Family::Ipv4 => (
                &["icmp", "1"],
                "icmp",
                "--icmp-type",
                &[
                    "echo-request",
                    "8",
                    "echo-reply",
                    "0",
                    "3",
                    "3/3",
                    "destination-unreachable",
                    "time-exceeded",
                    "fragmentation-needed",
                    "any",
                    "11/0",
                ],
            ),
            Family::Ipv6 => (
                &["icmpv6", "ipv6-icmp", "58"],
                "icmp6",
                "--icmpv6-type",
                &[
                    "echo-request",
                    "128",
                    "echo-reply",
                    "129",
                    "1",
                    "1/4",
                    "destination-unreachable",
                    "packet-too-big",
                    "time-exceeded",
                    "3/0",
                ],
            ),
        };
        words.push(format!(
            "-p {}",
            protocol.choose(self.random).expect("not empty")
        ));
        if self.chance(0.7) {
            let kind = types.choose(self.random).expect("not empty");
            words.push(format!("-m {module} {not}{flag} {kind}"));
        }
    }

    fn state(&mut self) -> String {
        let mut names = vec!["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"];
        let conntrack = self.chance(0.7);
        if conntrack && self.chance(0.15) {
            names.extend(["SNAT", "DNAT"]);
        }
        let count = 1 + self.upto(2);
        let chosen: Vec<&str> = names.choose_multiple(self.random, count).copied().collect();
        let not = self.not(0.2);
        let list = chosen.join(",");
        if !conntrack {
            return format!("-m state {not}--state {list}");
        }
        let direction = *["ORIGINAL", "REPLY"]
            .choose(self.random)
            .expect("not empty");
        match self.upto(10) {
            0 => format!("-m conntrack --ctdir {direction}"),
            1 | 2 => format!("-m conntrack {not}--ctstate {list} --ctdir {direction}"),
            _ => format!("-m conntrack {not}--ctstate {list}"),
        }
    }

    fn comment(&mut self) -> String {
        let text = *[
            "plain",
            "\"two words\"",
            "\"with \\\"quotes\\\" inside\"",
            "\"it's #1\"",
            "\"-j DROP\"",
        ]
        .choose(self.random)
        .expect("not empty");
        format!("-m comment --comment {text}")
    }

    fn interface(&mut self, flag: &str) -> String {
        let not = self.not(0.2);
        let name = *[
            "eth0", "eth0", "docker0", "docker0", "eth1", "lo", "eth+", "docker+", "e+", "+",
            "eth9",
        ]
        .choose(self.random)
        .expect("not empty");
        // `! -i +` can never match, and iptables says so instead of taking it in some versions.
        let not = if name == "+" { String::new() } else { not };
        format!("{not}{flag} {name}")
    }

    fn address(&mut self, flag: &str, address: IpAddr, list: bool) -> String {
        if list {
            let other = self.flows.choose(self.random).expect("there are flows");
            return format!("{flag} {address},{}", other.b.address);
        }
        let not = self.not(0.15);
        let masked = match address {
            IpAddr::V4(v4) => match self.upto(10) {
                0..4 => address.to_string(),
                4..6 => format!("{v4}/24"),
                6 => format!("{v4}/16"),
                7 => format!("{v4}/255.255.0.0"),
                // Not a prefix at all: every host of the same last byte in the same first.
                8 => format!("{v4}/255.0.0.255"),
                _ => format!("{v4}/{}", self.upto(33)),
            },
            IpAddr::V6(v6) => match self.upto(10) {
                0..4 => address.to_string(),
                4..6 => format!("{v6}/64"),
                6 => format!("{v6}/48"),
                7 => format!("{v6}/ffff:ffff::"),
                8 => format!("{v6}/ffff::ffff"),
                _ => format!("{v6}/{}", self.upto(129)),
            },
        };
        format!("{not}{flag} {masked}")
    }

    fn not(&mut self, probability: f64) -> String {
        if self.chance(probability) {
            "! ".into()
        } else {
            String::new()
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    /// A number below `limit`.
    fn upto(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    fn one_of(&mut self, names: &[String]) -> String {
        names.choose(self.random).expect("not empty").clone()
    }
}
