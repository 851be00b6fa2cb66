//! One rule: matches that are taken from one flow, in the order in which people write them.

use std::net::IpAddr;

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Spot, Writer, lists, matches, reject};
use crate::conformance::extensions;

impl<R: Rng> Writer<'_, R> {
    pub(super) fn rule(&mut self, chain: &str, spot: Spot, target: &str) -> String {
        self.rule_of(chain, spot, target, None)
    }

    /// One rule. Its matches are taken from one flow, so that they hold together.
    pub(super) fn rule_of(
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
            words.insert(at, extensions::limit(self.random));
        }
        if self.chance(0.12) {
            // Several, and anywhere: each is asked, and changes its list, if all before it hold.
            for _ in 0..1 + self.upto(2) {
                let first = words
                    .iter()
                    .position(|word| word.starts_with("-m ") || word.starts_with("-p "));
                let after = first.map_or(words.len(), |first| first + 1);
                let at = self.random.random_range(after..=words.len());
                let ports = ["-p tcp", "-p udp", "-p sctp"]
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

    pub(super) fn state(&mut self) -> String {
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

    pub(super) fn comment(&mut self) -> String {
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

    pub(super) fn interface(&mut self, flag: &str) -> String {
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

    pub(super) fn address(&mut self, flag: &str, address: IpAddr, list: bool) -> String {
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
}
