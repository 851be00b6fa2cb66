//! Which connections a policy would not let begin: the first packet of each, judged anew.
//!
//! What that packet bore besides its addresses, ports and type is not known any more, nor is whether a
//! limit had credit then. So it is judged more than once: with all that is not known in the packet's
//! favour, and with all of it against. A connection is revoked only if it is refused either way.

use fw_common::abi::stat::Stat;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::{Verdict as PacketVerdict, egress, ingress};

use super::Question;
use super::walk::Way;
use crate::compile::{Limits, Slots, compile};
use crate::policy::model::{Chain, Match, Policy, Rule, Target};
use crate::policy::packet_match::PacketMatch;
use crate::sim::{Host, HostSet, HostTables};

/// What a policy would do with the packet that opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It would let it begin.
    Accepted,
    /// It would not.
    Refused,
    /// That depends on what is not known.
    Open,
}

/// A policy that judges first packets.
pub struct Judge {
    /// In the packet's favour; one for each rule that may translate it or not, and one for none of them.
    favour: Vec<HostTables>,
    /// Against it, in the same order.
    against: Vec<HostTables>,
    judged: usize,
}

/// After so many packets, the memory of what they left is given back.
const ROUND: usize = 4096;

/// So many rules that may translate a packet or not are tried one by one.
const MOST_CHOICES: usize = 8;

impl Judge {
    /// This policy on a host, with its sets by place.
    pub fn new(policy: &Policy, host: &Host, sets: &[(u32, HostSet)]) -> Result<Self, Limits> {
        let choices = count_choices(policy);
        let machines = |wish| -> Result<Vec<HostTables>, Limits> {
            let none_or_one = std::iter::once(None).chain((0..choices).map(Some));
            let none_or_one = none_or_one.take(MOST_CHOICES + 1);
            let machine = |choice| {
                let policy = settled(policy, wish, choice);
                let compiled = compile(&policy, &Slots::fresh(&policy), 1, &[])?;
                let mut tables = HostTables::running(host.clone(), compiled);
                for (place, set) in sets {
                    tables.put_set(*place, set.clone());
                }
                Ok(tables)
            };
            none_or_one.map(machine).collect()
        };
        Ok(Self {
            favour: machines(Wish::Accept)?,
            against: machines(Wish::Refuse)?,
            judged: 0,
        })
    }

    /// What the policy would do with the packet.
    pub fn opinion(&mut self, question: &Question) -> Opinion {
        self.judged += 1;
        let over = self.judged.is_multiple_of(ROUND);
        let refused = |machines: &mut Vec<HostTables>| -> Vec<Option<bool>> {
            let verdicts = machines.iter_mut().map(|tables| {
                tables.forget_packets();
                if over {
                    *tables = tables.fork();
                }
                is_refused(tables, question)
            });
            verdicts.collect()
        };
        let (favour, against) = (refused(&mut self.favour), refused(&mut self.against));
        let all = |verdicts: &[Option<bool>], wanted| {
            verdicts.iter().all(|verdict| *verdict == Some(wanted))
        };
        if all(&favour, true) && favour.len() <= MOST_CHOICES {
            Opinion::Refused
        } else if all(&against, false) {
            Opinion::Accepted
        } else {
            Opinion::Open
        }
    }
}

/// Whether the packet is refused; nothing if that cannot be found out.
fn is_refused(tables: &HostTables, question: &Question) -> Option<bool> {
    let way = Way::of(tables, question).ok()?;
    let mut packet = question.packet(way.first()).ok()?;
    let mut scratch = Scratch::default();
    let refused = |verdict| {
        matches!(
            verdict,
            PacketVerdict::Answer | PacketVerdict::Drop(Stat::Policy | Stat::Rejected)
        )
    };
    let (verdict, next, comes_in) = match &way {
        Way::Out { by } => {
            packet = packet.at_egress_of(by.index).made_here();
            let verdict = egress(&mut packet, tables, &mut scratch);
            // What is sent on loopback comes in again.
            (verdict, by.loopback.then_some(by), true)
        }
        Way::In { by, then } => {
            packet.arrival_device = by.index;
            let verdict = ingress(&mut packet, tables, &mut scratch);
            if verdict == PacketVerdict::Pass && packet.note != 0 && then.is_none() {
                // It goes on, nobody knows whereto.
                return None;
            }
            (verdict, then.as_ref().filter(|_| packet.note != 0), false)
        }
    };
    let verdict = match (verdict, next) {
        (PacketVerdict::Pass, Some(device)) if comes_in => {
            packet.device = device.index;
            packet.arrival_device = device.index;
            ingress(&mut packet, tables, &mut scratch)
        }
        (PacketVerdict::Pass, Some(device)) => {
            packet = packet.at_egress_of(device.index);
            egress(&mut packet, tables, &mut scratch)
        }
        (verdict, _) => verdict,
    };
    match verdict {
        PacketVerdict::Pass | PacketVerdict::Redirect => Some(false),
        verdict if refused(verdict) => Some(true),
        // For want of an address, say.
        _ => None,
    }
}

/// What is made of rules that ask what is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Accept,
    Refuse,
}

/// How many rules may translate a packet or not, as they ask what is not known.
fn count_choices(policy: &Policy) -> usize {
    let rulesets = [&policy.ipv4, &policy.ipv6];
    let tables = rulesets
        .into_iter()
        .flatten()
        .filter_map(|ruleset| ruleset.nat.as_ref());
    let rules = tables
        .flat_map(|table| &table.chains)
        .flat_map(|chain| &chain.rules);
    rules.filter(|rule| !is_certain(rule)).count()
}

/// The policy with its rules about what is not known settled: those of nat match if they are chosen, and
/// the others do what is wished.
fn settled(policy: &Policy, wish: Wish, choice: Option<usize>) -> Policy {
    let mut policy = policy.clone();
    let mut number = 0;
    let rulesets = [&mut policy.ipv4, &mut policy.ipv6];
    for ruleset in rulesets.into_iter().flatten() {
        for table in [
            &mut ruleset.filter,
            &mut ruleset.mangle,
            &mut ruleset.raw,
            &mut ruleset.security,
        ] {
            for chain in table.iter_mut().flat_map(|table| &mut table.chains) {
                settle(chain, wish);
            }
        }
        for chain in ruleset.nat.iter_mut().flat_map(|table| &mut table.chains) {
            chain.rules.retain_mut(|rule| {
                if is_certain(rule) {
                    return true;
                }
                number += 1;
                keep_certain(rule);
                choice == Some(number - 1)
            });
        }
    }
    policy
}

fn settle(chain: &mut Chain, wish: Wish) {
    for rule in &mut chain.rules {
        if let Target::Set(_) = rule.target {
            // It is no packet that could be added.
            rule.target = Target::Continue;
        }
    }
    chain.rules.retain_mut(|rule| {
        if is_certain(rule) {
            return true;
        }
        let favourable = match rule.target {
            Target::Drop | Target::Reject(_) => Some(Wish::Refuse),
            Target::Accept => Some(Wish::Accept),
            // Where they lead, the packet may fare either way.
            Target::Return | Target::Jump(_) | Target::Goto(_) => None,
            // It goes on.
            _ => return false,
        };
        match favourable {
            Some(outcome) if outcome != wish => return false,
            Some(_) => {}
            None => {
                rule.target = match wish {
                    Wish::Accept => Target::Accept,
                    Wish::Refuse => Target::Drop,
                };
            }
        }
        keep_certain(rule);
        true
    });
}

/// Takes out of a rule what is not known.
fn keep_certain(rule: &mut Rule) {
    for each in &mut rule.matches {
        if let Match::Tcp(tcp) = each {
            tcp.option = None;
        }
    }
    rule.matches.retain(is_known);
}

fn is_certain(rule: &Rule) -> bool {
    rule.matches.iter().all(|each| match each {
        Match::Tcp(tcp) => tcp.option.is_none(),
        each => is_known(each),
    })
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
                | PacketMatch::Frag(_)
                | PacketMatch::Range { .. }
                | PacketMatch::Time(_)
                | PacketMatch::AddressType(_)
                | PacketMatch::Esp(None)
                | PacketMatch::Ah(None)
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

    fn judge(rules: &str, nat: &str) -> Judge {
        let text = format!(
            "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n{rules}\nCOMMIT\n\
             *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
             {nat}\nCOMMIT\n"
        );
        let file = SourceFile::new("rules.v4", text, Some(Family::Ipv4));
        let loaded = load(&[file], LoadOptions { strict: true });
        let device = |index, name, address: [u8; 4]| HostDevice {
            masquerade4: Some(address.into()),
            ..HostDevice::ethernet(index, name)
        };
        let host = Host {
            devices: vec![
                HostDevice::loopback(),
                device(2, "eth0", [198, 51, 100, 10]),
                device(3, "docker0", [172, 17, 0, 1]),
            ],
            local: vec!["198.51.100.10/32".parse().expect("a prefix")],
            ..Host::default()
        };
        Judge::new(&loaded.expect("right rules").policy, &host, &[]).expect("it fits")
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

    /// Of a connection to the host itself.
    fn opinion(rules: &str, port: u16) -> Opinion {
        let ends = ["203.0.113.7", "198.51.100.10"];
        judge(rules, "").opinion(&question([Some("eth0"), None], ends, port))
    }

    #[test]
    fn first_packets_are_judged_as_new() {
        let rules = "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                     -A INPUT -p tcp --dport 22 -j ACCEPT\n\
                     -A INPUT -p tcp --dport 24 -j REJECT\n";
        assert_eq!(opinion(rules, 22), Opinion::Accepted);
        assert_eq!(opinion(rules, 23), Opinion::Refused);
        assert_eq!(opinion(rules, 24), Opinion::Refused);
    }

    #[test]
    fn forwarded_and_own_connections_meet_their_chains() {
        let rules = "-A FORWARD -i docker0 -o eth0 -j ACCEPT\n-A OUTPUT -o lo -j DROP";
        let mut judge = judge(rules, "-A POSTROUTING -o eth0 -j MASQUERADE");
        let mut opinion = |way, ends| judge.opinion(&question(way, ends, 80));
        let out = ["172.17.0.2", "203.0.113.7"];
        let refused = Opinion::Refused;
        assert_eq!(
            opinion([Some("docker0"), Some("eth0")], out),
            Opinion::Accepted
        );
        assert_eq!(opinion([Some("eth0"), Some("docker0")], out), refused);
        let own = ["198.51.100.10", "203.0.113.7"];
        assert_eq!(opinion([None, Some("eth0")], own), Opinion::Accepted);
        assert_eq!(opinion([None, Some("lo")], ["198.51.100.10"; 2]), refused);
    }

    /// A port that is not published any more is the host's own.
    #[test]
    fn destinations_are_translated_as_the_policy_says_now() {
        let rules = "-A FORWARD -i eth0 -d 172.17.0.2 -j ACCEPT";
        let nat = "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2";
        let mut judge = judge(rules, nat);
        let ends = ["203.0.113.7", "198.51.100.10"];
        let mut opinion =
            |port| judge.opinion(&question([Some("eth0"), Some("docker0")], ends, port));
        assert_eq!(opinion(80), Opinion::Accepted);
        assert_eq!(opinion(81), Opinion::Refused);
    }

    #[test]
    fn what_is_not_known_leaves_it_open() {
        let open = Opinion::Open;
        assert_eq!(opinion("-A INPUT -m mark --mark 7 -j ACCEPT", 22), open);
        assert_eq!(
            opinion("-A INPUT -m limit --limit 1/hour -j ACCEPT", 22),
            open
        );
        let drops = "-A INPUT -m length --length 1000: -j DROP\n-A INPUT -j ACCEPT";
        assert_eq!(opinion(drops, 22), open);
        // Whether it returns or not, nothing accepts it behind; but that is not looked for.
        let returns = "-A INPUT -m limit --limit 1/hour -j RETURN\n-A INPUT -j ACCEPT";
        assert_eq!(opinion(returns, 22), open);
        let certain = "-A INPUT -p tcp --dport 22 -j DROP\n-A INPUT -m mark --mark 7 -j ACCEPT";
        assert_eq!(opinion(certain, 22), Opinion::Refused);
        let counts =
            "-A INPUT -m limit --limit 1/hour -j LOG\n-A INPUT -p tcp --dport 22 -j ACCEPT";
        assert_eq!(opinion(counts, 22), Opinion::Accepted);
        assert_eq!(opinion(counts, 23), Opinion::Refused);
    }

    #[test]
    fn a_choice_of_destinations_is_tried_one_by_one() {
        let nat = "-A PREROUTING -p tcp --dport 80 -m statistic --mode random --probability 0.5 \
                   -j DNAT --to-destination 172.17.0.2\n\
                   -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 172.17.0.3";
        let way = [Some("eth0"), Some("docker0")];
        let ends = ["203.0.113.7", "198.51.100.10"];
        let opinion = |rules| judge(rules, nat).opinion(&question(way, ends, 80));
        let both = "-A FORWARD -d 172.17.0.2/31 -j ACCEPT";
        assert_eq!(opinion(both), Opinion::Accepted);
        assert_eq!(opinion("-A FORWARD -d 172.17.0.2 -j ACCEPT"), Opinion::Open);
        assert_eq!(
            opinion("-A FORWARD -d 172.17.0.9 -j ACCEPT"),
            Opinion::Refused
        );
    }

    /// Each is judged as if it was the first one.
    #[test]
    fn one_packet_does_not_see_what_another_left() {
        let mut judge = judge(
            "-A INPUT -p tcp --syn -m conntrack --ctstate NEW -j ACCEPT",
            "",
        );
        let ends = ["203.0.113.7", "198.51.100.10"];
        let question = question([Some("eth0"), None], ends, 22);
        for _ in 0..3 {
            assert_eq!(judge.opinion(&question), Opinion::Accepted);
        }
    }
}
