//! REJECT: what comes back is at the wires, byte by byte, and OUTPUT's counters count it.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{TableText, Writer};

/// What a rule may answer; any beginning of a name is one, too.
const ANSWERS: [&[&str]; 2] = [
    &[
        "icmp-net-unreachable",
        "icmp-host-unreachable",
        "icmp-proto-unreachable",
        "icmp-port-unreachable",
        "icmp-net-prohibited",
        "icmp-host-prohibited",
        "icmp-admin-prohibited",
        "host-unr",
        "ADMIN-PROHIB",
    ],
    &[
        "icmp6-no-route",
        "icmp6-adm-prohibited",
        "icmp6-addr-unreachable",
        "icmp6-port-unreachable",
        "icmp6-policy-fail",
        "icmp6-reject-route",
        "addr-un",
        "No-Route",
    ],
];

const RESET: &str = "-j REJECT --reject-with tcp-reset";

impl<R: Rng> Writer<'_, R> {
    pub(super) fn refusal(&mut self) -> String {
        if self.chance(0.4) {
            return RESET.into();
        }
        if self.chance(0.3) {
            return "-j REJECT".into();
        }
        let answers = ANSWERS[usize::from(self.family == Family::Ipv6)];
        let answer = answers.choose(self.random).expect("not empty");
        format!("-j REJECT --reject-with {answer}")
    }
}

/// The target, or one that goes with the rule: only rules for TCP reset.
pub(super) fn fitting(target: &str, words: &[String]) -> String {
    let tcp = words.iter().any(|word| word == "-p tcp" || word == "-p 6");
    if target == RESET && !tcp {
        return "-j REJECT".into();
    }
    target.into()
}

/// Takes out what fwbpf does not do as netfilter does it: differences 11, 12 and 18.
pub(super) fn tame(tables: &mut [TableText]) {
    let rules = || tables.iter().flat_map(|table| &table.rules);
    let refuses = rules().any(|rule| rule.contains("-j REJECT"));
    let redirects = rules().any(|rule| rule.contains("-j REDIRECT"));
    let resets = rules().any(|rule| rule.contains("tcp-reset"));
    let translates = rules().any(|rule| {
        rule.contains("PREROUTING") && (rule.contains("-j DNAT") || rule.contains("-j NETMAP"))
    });
    for rule in tables.iter_mut().flat_map(|table| &mut table.rules) {
        let input = rule.starts_with("-A INPUT ");
        let passed = input || rule.starts_with("-A FORWARD ");
        if redirects && !input && !rule.starts_with("-A OUTPUT ") && rule.contains("-j REJECT") {
            *rule = without(rule, "--reject-with", 1).replace("-j REJECT", "-j DROP");
        }
        if resets && !passed && rule.contains("-j REJECT") {
            *rule = without(rule, "--reject-with", 1).replace("-j REJECT", "-j DROP");
        }
        if translates && !input && rule.contains("tcp-reset") {
            *rule = without(rule, "--reject-with", 1).replace("-j REJECT", "-j DROP");
        }
        if refuses && rule.contains("-j MASQUERADE") {
            *rule = without(&without(rule, "--to-ports", 1), "--random", 0);
        }
    }
}

/// The rule without an option and so many arguments.
fn without(rule: &str, option: &str, arguments: usize) -> String {
    let mut kept = Vec::new();
    let mut words = rule.split(' ');
    while let Some(word) = words.next() {
        if word == option {
            words.by_ref().take(arguments).for_each(drop);
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}
