//! The filter table, and what its rules do.

use rand::Rng;

use super::{Spot, TableText, Writer, lists, marks};

impl<R: Rng> Writer<'_, R> {
    pub(super) fn filter(&mut self) -> TableText {
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

    pub(super) fn filter_target(&mut self, users: &[String], in_user_chain: bool) -> String {
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
}
