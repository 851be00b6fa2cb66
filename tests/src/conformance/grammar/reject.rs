//! REJECT: what comes back is at the wires, byte by byte, and OUTPUT's counters count it.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::Writer;

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
