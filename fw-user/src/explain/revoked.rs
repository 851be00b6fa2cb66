//! Which connections a policy would not let begin: the first packet of each, judged anew.
//!
//! A connection ends only if it is certain that it would not begin. What its first packet bore besides
//! its addresses, ports and type is not known any more, nor is whether a limit had credit then: of the
//! rules that ask such things, those that drop are taken as not matching, all others as matching.

use fw_common::abi::stat::Stat;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::{Verdict as PacketVerdict, egress, ingress};

use super::walk::Way;
use super::{ExplainError, Question};
use crate::compile::{Limits, Slots, compile};
use crate::policy::model::{Chain, Match, Policy, Rule, Ruleset, Target};
use crate::policy::packet_match::PacketMatch;
use crate::sim::{Host, HostSet, HostTables};

/// A policy that judges first packets.
pub struct Judge {
    tables: HostTables,
    judged: usize,
}

/// After so many packets, the memory of what they left is given back.
const ROUND: usize = 4096;

impl Judge {
    /// This policy on a host, with its sets by place.
    pub fn new(policy: &Policy, host: Host, sets: Vec<(u32, HostSet)>) -> Result<Self, Limits> {
        let policy = without_the_unknown(policy);
        let compiled = compile(&policy, &Slots::fresh(&policy), 1, &[])?;
        let mut tables = HostTables::running(host, compiled);
        for (place, set) in sets {
            tables.put_set(place, set);
        }
        Ok(Self { tables, judged: 0 })
    }

    /// The host.
    pub fn host(&self) -> &Host {
        self.tables.host()
    }

    /// Whether the policy drops the packet that opens this connection.
    pub fn refuses(&mut self, question: &Question) -> Result<bool, ExplainError> {
        self.judged += 1;
        self.tables.forget_packets();
        if self.judged.is_multiple_of(ROUND) {
            self.tables = self.tables.fork();
        }
        let verdict = first_packet(&self.tables, question)?;
        Ok(verdict == PacketVerdict::Drop(Stat::Policy))
    }
}

fn first_packet(tables: &HostTables, question: &Question) -> Result<PacketVerdict, ExplainError> {
    let way = Way::of(tables, question)?;
    let mut packet = question.packet(way.first())?;
    let mut scratch = Scratch::default();
    let (verdict, next) = match &way {
        Way::Out { by } => {
            packet = packet.at_egress_of(by.index).made_here();
            let verdict = egress(&mut packet, tables, &mut scratch);
            // What is sent on loopback comes in again.
            packet.arrival_device = by.index;
            (verdict, by.loopback.then_some((by, true)))
        }
        Way::In { by, then } => {
            packet.arrival_device = by.index;
            let verdict = ingress(&mut packet, tables, &mut scratch);
            let goes_on = packet.note != 0;
            let next = then.as_ref().filter(|_| goes_on);
            (verdict, next.map(|then| (then, false)))
        }
    };
    let (PacketVerdict::Pass, Some((device, comes_in))) = (verdict, next) else {
        return Ok(verdict);
    };
    packet = packet.at_egress_of(device.index);
    Ok(if comes_in {
        ingress(&mut packet, tables, &mut scratch)
    } else {
        egress(&mut packet, tables, &mut scratch)
    })
}

/// The policy with its rules about what is not known settled in favour of the packet.
fn without_the_unknown(policy: &Policy) -> Policy {
    let mut policy = policy.clone();
    let rulesets = [&mut policy.ipv4, &mut policy.ipv6];
    for ruleset in rulesets.into_iter().flatten() {
        for chain in chains(ruleset) {
            chain.rules.retain_mut(settle);
        }
    }
    policy
}

fn chains(ruleset: &mut Ruleset) -> impl Iterator<Item = &mut Chain> {
    let tables = [&mut ruleset.filter, &mut ruleset.nat];
    let tables = tables.into_iter().flatten();
    tables.flat_map(|table| &mut table.chains)
}

/// Takes out of a rule what is not known; false if the rule is taken as not matching.
fn settle(rule: &mut Rule) -> bool {
    let before = rule.matches.clone();
    for each in &mut rule.matches {
        if let Match::Tcp(tcp) = each {
            tcp.option = None;
        }
    }
    rule.matches.retain(is_known);
    let asked = rule.matches != before;
    if matches!(rule.target, Target::Set(_)) {
        // It is no packet that could be added.
        rule.target = Target::Continue;
    }
    !(asked && rule.target == Target::Drop)
}

fn is_known(each: &Match) -> bool {
    match each {
        Match::Tcp(_)
        | Match::Udp(_)
        | Match::Icmp(_)
        | Match::Multiport(_)
        | Match::State(_)
        | Match::Conntrack(_)
        | Match::Set(_)
        | Match::Comment(_) => true,
        Match::Packet(packet) => matches!(
            packet,
            PacketMatch::Fragment { .. }
                | PacketMatch::Range { .. }
                | PacketMatch::Time(_)
                | PacketMatch::AddressType(_)
                | PacketMatch::Sctp(_)
                | PacketMatch::Dccp(_, None)
        ),
        Match::Limit(_) | Match::List(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Family;
    use crate::policy::{LoadOptions, SourceFile, load};
    use crate::sim::HostDevice;

    fn judge(rules: &str) -> Judge {
        let text =
            format!("*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n{rules}\nCOMMIT\n");
        let file = SourceFile::new("rules.v4", text, Some(Family::Ipv4));
        let loaded = load(&[file], LoadOptions { strict: true });
        let host = Host {
            devices: vec![
                HostDevice::loopback(),
                HostDevice::ethernet(2, "eth0"),
                HostDevice::ethernet(3, "docker0"),
            ],
            local: vec!["198.51.100.10/32".parse().expect("a prefix")],
            ..Host::default()
        };
        Judge::new(&loaded.expect("right rules").policy, host, Vec::new()).expect("it fits")
    }

    fn question(way: [Option<&str>; 2], ends: [&str; 2], port: u16) -> Question {
        Question {
            in_interface: way[0].map(str::to_owned),
            out_interface: way[1].map(str::to_owned),
            source: ends[0].parse().expect("an address"),
            destination: ends[1].parse().expect("an address"),
            protocol: 6,
            source_port: Some(40_000),
            destination_port: Some(port),
            icmp: None,
            tcp_flags: None,
            state: None,
        }
    }

    fn refuses(rules: &str, port: u16) -> bool {
        let ends = ["203.0.113.7", "198.51.100.10"];
        let question = question([Some("eth0"), None], ends, port);
        judge(rules).refuses(&question).expect("there is a way")
    }

    #[test]
    fn first_packets_are_judged_as_new() {
        let rules = "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                     -A INPUT -p tcp --dport 22 -j ACCEPT";
        assert!(!refuses(rules, 22));
        assert!(refuses(rules, 23));
    }

    #[test]
    fn forwarded_and_own_connections_meet_their_chains() {
        let mut judge = judge("-A FORWARD -i docker0 -o eth0 -j ACCEPT\n-A OUTPUT -o lo -j DROP");
        let mut refuses = |way, ends| judge.refuses(&question(way, ends, 80)).expect("a way");
        let out = ["172.17.0.2", "203.0.113.7"];
        assert!(!refuses([Some("docker0"), Some("eth0")], out));
        assert!(refuses([Some("eth0"), Some("docker0")], out));
        assert!(!refuses(
            [None, Some("eth0")],
            ["198.51.100.10", "203.0.113.7"]
        ));
        assert!(refuses([None, Some("lo")], ["198.51.100.10"; 2]));
    }

    #[test]
    fn what_is_not_known_is_taken_in_the_packets_favour() {
        assert!(!refuses("-A INPUT -m mark --mark 7 -j ACCEPT", 22));
        assert!(!refuses("-A INPUT -m limit --limit 1/hour -j ACCEPT", 22));
        let drops = "-A INPUT -m length --length 1000: -j DROP\n-A INPUT -j ACCEPT";
        assert!(!refuses(drops, 22));
        let certain = "-A INPUT -p tcp --dport 22 -j DROP\n-A INPUT -m mark --mark 7 -j ACCEPT";
        assert!(refuses(certain, 22));
        // Each is judged as if it was the first one.
        let mut judge = judge("-A INPUT -m limit --limit 1/hour --limit-burst 1 -j ACCEPT");
        let ends = ["203.0.113.7", "198.51.100.10"];
        for port in 1..4 {
            let question = question([Some("eth0"), None], ends, port);
            assert_eq!(judge.refuses(&question), Ok(false));
        }
    }
}
