//! Rule sets over the whole supported grammar, biased so that the traffic matches.

mod connection;
mod filter;
mod lists;
mod log;
mod marks;
mod matches;
mod nat;
mod reject;
mod rule;
mod sets;
mod tables;
mod transport;

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::traffic::Flow;
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
        if family == Family::Ipv6 {
            tables::spare_loopback(&mut tables);
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

    /// Whether rules translate sources.
    pub fn translate_sources(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| {
            let words = ["-j SNAT", "-j MASQUERADE", "-j NETMAP"];
            words.iter().any(|word| rule.contains(word))
        })
    }

    /// Whether rules keep packets from being tracked, or answers from being in their flow's zone.
    pub fn leave_untracked(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| rule.contains("-j NOTRACK") || rule.contains("-j CT"))
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

    /// Whether rules change the two bits by which the stack tells congestion: it drops a datagram whose fragments
    /// disagree about them (`ip_frag_ecn_table`, net/ipv4/inet_fragment.c).
    pub fn change_congestion(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| rule.contains("--or-tos") || rule.contains("--xor-tos"))
    }

    /// Whether rules count connections.
    pub fn count_connections(&self) -> bool {
        let mut rules = self.tables.iter().flat_map(|table| &table.rules);
        rules.any(|rule| rule.contains("-m connlimit"))
    }

    /// Whether rules of mangle's OUTPUT change what netfilter routes a packet anew for (difference 22).
    pub fn change_what_is_sent(&self) -> bool {
        let targets = ["-j MARK", "restore-mark", "-j DSCP", "-j TOS", "-j HL"];
        let mangle = self.tables.iter().filter(|table| table.name == "mangle");
        mangle.flat_map(|table| &table.rules).any(|rule| {
            rule.starts_with("-A OUTPUT ") && targets.iter().any(|target| rule.contains(target))
        })
    }

    /// How many rules there are in all.
    pub fn count(&self) -> usize {
        self.tables.iter().map(|table| table.rules.len()).sum()
    }

    /// Only the rules whose running number is listed, and the one without which there are differences.
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
