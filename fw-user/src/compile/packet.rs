//! Lowering the matches of [`crate::policy::packet_match`].

use fw_common::abi::blob::{Condition, HeaderFields, PredicateFields, fact, time};

use super::lower::Lowered;
use crate::addr;
use crate::policy::change::Change;
use crate::policy::lists::ListMatch;
use crate::policy::model::{Family, Match, Negatable, Policy, Rule, Target};
use crate::policy::packet_match::{
    AddressType, Ecn, Hops, Owner, PacketMatch, Routing, Statistic, Time,
};

/// ECE and CWR of TCP's flags (RFC 3168, 6.1).
const ECHO: u8 = 0x40;
const REDUCED: u8 = 0x80;

impl Lowered {
    /// Takes what the record's fields and ordinary predicates can say, and returns the predicates
    /// that are put off until all else holds.
    pub(super) fn packet(&mut self, packet: &PacketMatch, family: Family) -> Vec<PredicateFields> {
        let put_off = |not, condition| vec![PredicateFields { not, condition }];
        let fact = |not, number, mask, range| put_off(not, asks(number, mask, range, false));
        match packet {
            // Datagrams are put together before rules see them.
            PacketMatch::Fragment { not } => {
                if !not {
                    self.never();
                }
            }
            PacketMatch::Range {
                source,
                destination,
            } => {
                if let Some(Negatable { not, value }) = source {
                    let (first, last) = (addr::to_abi(value.0), addr::to_abi(value.1));
                    self.predicate(*not, Condition::SourceRange(first, last));
                }
                if let Some(Negatable { not, value }) = destination {
                    let (first, last) = (addr::to_abi(value.0), addr::to_abi(value.1));
                    self.predicate(*not, Condition::DestinationRange(first, last));
                }
            }
            PacketMatch::LinkSource(Negatable { not, value }) => {
                return put_off(*not, Condition::LinkSource(*value));
            }
            PacketMatch::Length(Negatable { not, value }) => {
                let range = (value.0.into(), value.1.into());
                return fact(*not, fact::LENGTH, u32::MAX, range);
            }
            PacketMatch::Hops(hops) => {
                let (not, range) = match *hops {
                    Hops::Equal(Negatable { not, value }) => (not, (value.into(), value.into())),
                    Hops::Less(0) => (false, (1, 0)),
                    Hops::Less(value) => (false, (0, u32::from(value) - 1)),
                    Hops::Greater(value) => (false, (u32::from(value) + 1, 255)),
                };
                return fact(not, fact::HOPS, 0xff, range);
            }
            PacketMatch::Dscp(Negatable { not, value }) => {
                let bits = u32::from(*value) << 2;
                return fact(*not, fact::TOS, 0xfc, (bits, bits));
            }
            PacketMatch::Tos(Negatable {
                not,
                value: (value, mask),
            }) => {
                let value = u32::from(*value);
                return fact(*not, fact::TOS, (*mask).into(), (value, value));
            }
            PacketMatch::Ecn(Ecn {
                echo,
                reduced,
                transport,
            }) => {
                for (flag, asked) in [(ECHO, echo), (REDUCED, reduced)] {
                    if let Some(not) = asked {
                        let set = if *not { 0 } else { flag };
                        self.predicate(false, Condition::TcpFlags { mask: flag, set });
                    }
                }
                if let Some(Negatable { not, value }) = transport {
                    let value = u32::from(*value);
                    return fact(*not, fact::TOS, 3, (value, value));
                }
            }
            PacketMatch::PacketType(Negatable { not, value }) => {
                let value = u32::from(*value);
                return fact(*not, fact::PACKET_TYPE, u32::MAX, (value, value));
            }
            PacketMatch::Mark(Negatable {
                not,
                value: (value, mask),
            }) => return fact(*not, fact::MARK, *mask, (*value, *value)),
            PacketMatch::FlowMark(Negatable {
                not,
                value: (value, mask),
            }) => return fact(*not, fact::FLOW_MARK, *mask, (*value, *value)),
            PacketMatch::Routing(routing) => return routed(routing),
            PacketMatch::Cpu(Negatable { not, value }) => {
                return fact(*not, fact::CPU, u32::MAX, (*value, *value));
            }
            PacketMatch::Owner(owner) => return owned(owner),
            PacketMatch::AddressType(kinds) => {
                let asked = [
                    (fact::SOURCE_KIND, kinds.source),
                    (fact::DESTINATION_KIND, kinds.destination),
                ];
                let asked = asked.into_iter().filter_map(|(number, types)| {
                    let Negatable { not, value } = types?;
                    let mask = u32::from(value);
                    let range = if AddressType::asks_for_all(value, family) {
                        (mask, mask)
                    } else {
                        (1, u32::MAX)
                    };
                    Some(PredicateFields {
                        not,
                        condition: asks(number, mask, range, false),
                    })
                });
                return asked.collect();
            }
            PacketMatch::Frag(_) => self.never(),
            // It needs the policy's patterns, which the caller has.
            PacketMatch::Physdev(_) => {}
            PacketMatch::ReversePath { loose, invert } => {
                let way = if *loose {
                    fact::PATH_LOOSE
                } else {
                    fact::PATH_STRICT
                };
                return fact(*invert, fact::REVERSE_PATH, way, (way, way));
            }
            // `load` sees to it.
            PacketMatch::WithoutIpsec { .. } => {}
            PacketMatch::Text(text) => {
                let fields = text.fields();
                let condition = Condition::Text {
                    first: 0,
                    flags: fields.flags(),
                    range: (text.from.into(), text.to.into()),
                };
                return put_off(text.not, condition);
            }
            PacketMatch::Statistic(Negatable { not, value }) => {
                let condition = match *value {
                    Statistic::Random(probability) => Condition::Chance(probability),
                    Statistic::Nth { every, packet } => Condition::Nth {
                        last: every.wrapping_sub(1),
                        counted: every.wrapping_sub(1).wrapping_sub(packet),
                    },
                };
                return put_off(*not, condition);
            }
            PacketMatch::Time(time) => return put_off(false, when(time)),
            PacketMatch::Segment(Negatable { not, value }) => {
                self.require_protocol(6);
                let range = (value.0.into(), value.1.into());
                // Without the option, only the negation holds.
                return put_off(*not, asks(fact::SEGMENT, u32::MAX, range, *not));
            }
            PacketMatch::Esp(spi) | PacketMatch::Ah(spi) => {
                let protocol = match packet {
                    PacketMatch::Esp(_) => 50,
                    _ => 51,
                };
                self.require_protocol(protocol);
                if let Some(Negatable { not, value }) = spi {
                    return fact(*not, fact::SPI, u32::MAX, *value);
                }
            }
            PacketMatch::Sctp(ports) => {
                self.require_protocol(132);
                self.ports(ports);
            }
            PacketMatch::Dccp(ports, types) => {
                self.require_protocol(33);
                self.ports(ports);
                if let Some(Negatable { not, value }) = types {
                    return fact(*not, fact::DCCP, (*value).into(), (1, u32::MAX));
                }
            }
        }
        Vec::new()
    }
}

fn asks(fact: u32, mask: u32, range: (u32, u32), absent: bool) -> Condition {
    Condition::Fact {
        fact,
        mask,
        range,
        absent,
    }
}

/// A packet without a socket, or with one of the kernel's own, has neither user nor group: then only negations
/// hold (`owner_mt`, net/netfilter/xt_owner.c).
fn owned(owner: &Owner) -> Vec<PredicateFields> {
    let socket = owner.socket.map(|not| PredicateFields {
        not,
        condition: asks(fact::SOCKET, u32::MAX, (1, 1), not),
    });
    let user = owner.user.map(|Negatable { not, value }| PredicateFields {
        not,
        condition: asks(fact::USER, u32::MAX, value, not),
    });
    let group = owner.group.map(|Negatable { not, value }| PredicateFields {
        not,
        condition: asks(fact::GROUP, u32::MAX, value, not),
    });
    socket.into_iter().chain(user).chain(group).collect()
}

/// Without a routing header, nothing holds (`rt_mt6`, net/ipv6/netfilter/ip6t_rt.c).
fn routed(routing: &Routing) -> Vec<PredicateFields> {
    let ask = |not, mask, range| PredicateFields {
        not,
        condition: asks(fact::ROUTING, mask, range, false),
    };
    let mut predicates = vec![ask(false, 0, (0, 0))];
    if let Some(Negatable { not, value }) = routing.kind {
        predicates.push(ask(not, 0xff, (value.into(), value.into())));
    }
    if let Some(Negatable {
        not,
        value: (first, last),
    }) = routing.left
    {
        let range = if first > 0xff {
            NEVER
        } else {
            (first << 8, last.min(0xff) << 8)
        };
        predicates.push(ask(not, 0xff00, range));
    }
    if let Some(Negatable { not, value }) = routing.length {
        // The header says how many times eight bytes follow the first eight.
        let range = if value % 8 == 0 && (8..=2048).contains(&value) {
            let written = (value / 8 - 1) << 16;
            (written, written)
        } else {
            NEVER
        };
        predicates.push(ask(not, 0xff_0000, range));
    }
    predicates
}

/// No value is within it.
const NEVER: (u32, u32) = (1, 0);

fn when(time: &Time) -> Condition {
    let mut flags = 0;
    if time.kernel_zone {
        flags |= time::LOCAL;
    }
    if time.contiguous {
        flags |= time::CONTIGUOUS;
    }
    Condition::Time {
        flags,
        dates: time.dates,
        daytime: time.daytime,
        weekdays: time.weekdays.into(),
        monthdays: time.monthdays,
    }
}

/// What has to be gathered about packets for the rules of a policy: [`HeaderFields::FACTS`] and its
/// siblings.
pub(super) fn features(policy: &Policy) -> u32 {
    let mut features = 0;
    for (_, _, content) in super::chains::tables(policy) {
        for chain in &content.chains {
            let early = matches!(chain.name.as_str(), "INPUT" | "PREROUTING");
            let of_rules = chain.rules.iter().map(|rule| of_rule(rule, early));
            features |= of_rules.fold(0, |all, one| all | one);
        }
    }
    features
}

fn of_rule(rule: &Rule, early: bool) -> u32 {
    let of_match = |each: &Match| match each {
        Match::Tcp(tcp) if tcp.option.is_some() => HeaderFields::TRANSPORT,
        Match::Packet(packet) => match packet {
            PacketMatch::Fragment { .. }
            | PacketMatch::Range { .. }
            | PacketMatch::Sctp(_)
            | PacketMatch::Dccp(_, None)
            | PacketMatch::Esp(None)
            | PacketMatch::Ah(None)
            | PacketMatch::Text(_)
            | PacketMatch::Frag(_)
            | PacketMatch::WithoutIpsec { .. }
            | PacketMatch::Statistic(_) => 0,
            PacketMatch::AddressType(_) => HeaderFields::ADDRESS_KINDS,
            PacketMatch::Physdev(_) => HeaderFields::PORTS,
            PacketMatch::FlowMark(_) => HeaderFields::FLOW_MARKS,
            PacketMatch::Routing(_) => HeaderFields::ROUTING,
            PacketMatch::ReversePath { .. } => HeaderFields::REVERSE_PATHS,
            PacketMatch::LinkSource(_) if !early => HeaderFields::FACTS | HeaderFields::LINKS,
            PacketMatch::Owner(_) => HeaderFields::OWNER,
            PacketMatch::Time(_) => HeaderFields::CLOCK,
            PacketMatch::Segment(_)
            | PacketMatch::Esp(_)
            | PacketMatch::Ah(_)
            | PacketMatch::Dccp(..) => HeaderFields::TRANSPORT,
            _ => HeaderFields::FACTS,
        },
        Match::Conntrack(conntrack) if conntrack.connection.is_some() => HeaderFields::CONNECTIONS,
        Match::List(ListMatch::Connlimit(_)) => HeaderFields::CONNECTIONS,
        // An entry has its last packet's hop limit, which a later policy may compare.
        Match::List(ListMatch::Recent(_)) => HeaderFields::FACTS,
        _ => 0,
    };
    let features = rule
        .matches
        .iter()
        .fold(0, |all, each| all | of_match(each));
    let target = match &rule.target {
        Target::Change(Change::FlowMark { .. }) => HeaderFields::FLOW_MARKS,
        Target::Change(Change::Zone(_)) => HeaderFields::ZONES,
        Target::Log(log) if log.owner => HeaderFields::OWNER | HeaderFields::FACTS,
        _ => 0,
    };
    if features & !(HeaderFields::CONNECTIONS | HeaderFields::PORTS) == 0 {
        return features | target;
    }
    features | target | HeaderFields::FACTS
}
