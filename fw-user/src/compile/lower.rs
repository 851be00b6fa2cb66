//! One rule of the model becomes one record: what the record's fields can say goes there, the rest
//! becomes predicates.

use fw_common::abi::blob::{
    Condition, EffectFields, PredicateFields, RESET, RuleFields, TextFields, TranslationFields,
    pack_range, target,
};
use fw_common::abi::ct;
use fw_common::datapath::change::{HOPS_LESS, HOPS_MORE, HOPS_SET};
use fw_common::datapath::{flow_mark, segment_size};

use super::scope::Scope;
use super::zones::Zones;
use super::{Limits, Place, connection, lists, nat, ports, sets};
use crate::addr;
use crate::policy::change::{Change, FlowMark, HopChange, SegmentSize};
use crate::policy::model::{
    Conntrack, CtDirection, Family, IcmpType, InterfacePattern, Match, Multiport, Negatable,
    PortRange, Ports, Prefix, Reject, Rule, Target, Tcp, TcpFlags, WhichPort,
};
use crate::policy::packet_match::{PacketMatch, Physdev, PortSide};

/// A rule as the datapath reads it, without its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lowered {
    pub fields: RuleFields,
    pub predicates: Vec<PredicateFields>,
    /// What the target does besides, see [`target::EFFECT`].
    pub effects: Vec<EffectFields>,
    /// What the target's argument is to be the place of.
    pub translation: Option<TranslationFields>,
    /// The texts that [`Condition::Text`] looks for, in the order of the predicates.
    pub texts: Vec<TextFields>,
}

/// Lowers a rule. Its index, its slot and the places of its predicates are filled in by the caller.
pub(super) fn lower(rule: &Rule, scope: &Scope<'_>) -> Result<Lowered, Limits> {
    let mut out = Lowered::default();
    if let Some(prefix) = rule.source {
        out.source(prefix);
    }
    if let Some(prefix) = rule.destination {
        out.destination(prefix);
    }
    if let Some(interface) = &rule.in_interface {
        out.interface(interface, scope, Side::In);
    }
    if let Some(interface) = &rule.out_interface {
        out.interface(interface, scope, Side::Out);
    }
    match rule.protocol {
        Some(Negatable { not: false, value }) => out.require_protocol(value),
        Some(Negatable { not: true, value }) => out.predicate(true, Condition::Protocol(value)),
        None => {}
    }
    // A limit is asked only if all before it holds, and what stands behind it only if it holds.
    let mut deferred: Vec<Lowered> = Vec::new();
    let mut sets = Vec::new();
    for condition in &rule.matches {
        let sets_here = match deferred.is_empty() {
            true => Some(&mut sets),
            false => None,
        };
        let part = deferred.last_mut().unwrap_or(&mut out);
        match condition {
            Match::Tcp(tcp) => {
                part.tcp(tcp);
                if let Some(Negatable { not, value }) = tcp.option {
                    let mut next = Lowered::default();
                    next.predicate(not, Condition::TcpOption(value));
                    deferred.push(next);
                }
            }
            Match::Udp(ports) => {
                part.require_protocol(UDP);
                part.ports(ports);
            }
            Match::Icmp(kind) => part.icmp(*kind, scope.family),
            Match::Multiport(multiport) => {
                part.multiport(multiport)
                    .map_err(|ranges| Limits::PortList {
                        place: Place::of(scope.policy, rule.origin),
                        ranges,
                    })?;
            }
            Match::State(states) => part.states(states.not, states.value.0),
            Match::Conntrack(conntrack) => {
                let put_off = part.conntrack(conntrack);
                if !put_off.is_empty() {
                    deferred.push(Lowered {
                        predicates: put_off,
                        ..Lowered::default()
                    });
                }
            }
            Match::Limit(limit) => {
                let Some((cost, cap)) = limit.credits() else {
                    return Err(Limits::Rate {
                        place: Place::of(scope.policy, rule.origin),
                        burst: limit.burst,
                    });
                };
                let mut next = Lowered::default();
                next.predicate(false, Condition::Limit { cost, cap });
                deferred.push(next);
            }
            Match::Set(set) => {
                let predicate = PredicateFields {
                    not: set.not,
                    condition: sets::in_set(set, rule, scope)?,
                };
                // Sets are asked once all else holds, and so before the first limit.
                match sets_here {
                    Some(sets) => sets.push(predicate),
                    None => part.predicates.push(predicate),
                }
            }
            Match::Packet(PacketMatch::Physdev(physdev)) => part.ports_of_bridge(physdev, scope),
            Match::Packet(packet) => {
                let put_off = part.packet(packet, scope.family);
                if let PacketMatch::Text(text) = packet {
                    out.texts.push(text.fields());
                }
                if !put_off.is_empty() {
                    deferred.push(Lowered {
                        predicates: put_off,
                        ..Lowered::default()
                    });
                }
            }
            Match::List(list) => {
                let (not, condition) = lists::asked(list, scope);
                let mut next = Lowered::default();
                next.predicate(not, condition);
                deferred.push(next);
            }
            Match::Comment(_) => {}
        }
    }
    out.fields.deferred_count = sets.len() as u32;
    out.predicates.extend(sets);
    for part in deferred {
        let before = out.predicates.len();
        part.into_predicates(&mut out.predicates);
        out.fields.deferred_count += (out.predicates.len() - before) as u32;
    }
    out.target(rule, scope)?;
    Ok(out)
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The states of which a packet has exactly one; SNAT and DNAT may come on top.
const REAL_STATES: u8 = ct::NEW | ct::ESTABLISHED | ct::RELATED | ct::INVALID | ct::UNTRACKED;

#[derive(Clone, Copy)]
enum Side {
    In,
    Out,
}

impl Lowered {
    pub(super) fn predicate(&mut self, not: bool, condition: Condition) {
        self.predicates.push(PredicateFields { not, condition });
    }

    /// Has predicates for what the fields say.
    fn into_predicates(self, predicates: &mut Vec<PredicateFields>) {
        predicates.extend(self.predicates);
        let mut add = |condition| {
            predicates.push(PredicateFields {
                not: false,
                condition,
            });
        };
        let fields = self.fields;
        if let Some(number) = fields.protocol {
            add(Condition::Protocol(number));
        }
        let sides = [(1, fields.source_ports), (2, fields.destination_ports)];
        for (which, range) in sides {
            if range != (0, u16::MAX) {
                let mut ranges = [(1, 0); PORT_RANGES];
                ranges[0] = range;
                add(Condition::Ports { which, ranges });
            }
        }
        if fields.tcp_mask != 0 {
            let (mask, set) = (fields.tcp_mask, fields.tcp_set);
            add(Condition::TcpFlags { mask, set });
        }
        if fields.ct_mask != ANY_STATE {
            add(Condition::CtState(fields.ct_mask));
        }
    }

    /// The rule can match nothing: every packet has a connection state.
    pub(super) fn never(&mut self) {
        self.fields.ct_mask = 0;
    }

    fn source(&mut self, prefix: Negatable<Prefix>) {
        let (address, mask) = addr::masked(prefix.value.address, prefix.value.mask);
        if prefix.not {
            self.predicate(true, Condition::Source(address, mask));
        } else {
            self.fields.source = address;
            self.fields.source_mask = mask;
        }
    }

    fn destination(&mut self, prefix: Negatable<Prefix>) {
        let (address, mask) = addr::masked(prefix.value.address, prefix.value.mask);
        if prefix.not {
            self.predicate(true, Condition::Destination(address, mask));
        } else {
            self.fields.destination = address;
            self.fields.destination_mask = mask;
        }
    }

    fn interface(&mut self, pattern: &Negatable<InterfacePattern>, scope: &Scope<'_>, side: Side) {
        match (scope.patterns.bit(&pattern.value, false), pattern.not, side) {
            (None, false, _) => {}
            (None, true, _) => self.never(),
            (Some(bit), false, Side::In) => self.fields.in_pattern = bit,
            (Some(bit), false, Side::Out) => self.fields.out_pattern = bit,
            (Some(bit), true, Side::In) => self.predicate(true, Condition::InInterface(bit)),
            (Some(bit), true, Side::Out) => self.predicate(true, Condition::OutInterface(bit)),
        }
    }

    /// Every condition has a bit, as no pattern of ports fits what has no port.
    fn ports_of_bridge(&mut self, physdev: &Physdev, scope: &Scope<'_>) {
        for (side, port) in physdev.conditions() {
            let Some(bit) = scope.patterns.bit(&port.value, true) else {
                continue;
            };
            let condition = match side {
                PortSide::In => Condition::InInterface(bit),
                PortSide::Out => Condition::OutInterface(bit),
            };
            self.predicate(port.not, condition);
        }
    }

    pub(super) fn require_protocol(&mut self, number: u8) {
        match self.fields.protocol {
            None => self.fields.protocol = Some(number),
            Some(required) if required == number => {}
            Some(_) => self.never(),
        }
    }

    fn tcp(&mut self, tcp: &Tcp) {
        self.require_protocol(TCP);
        self.ports(&tcp.ports);
        let Some(Negatable {
            not,
            value: TcpFlags { mask, set },
        }) = tcp.flags
        else {
            return;
        };
        // A comparison that has the same result for every packet must not look like none at all.
        if set & !mask != 0 || mask == 0 {
            let holds = set == 0;
            if holds == not {
                self.never();
            }
        } else if not || self.fields.tcp_mask != 0 {
            self.predicate(not, Condition::TcpFlags { mask, set });
        } else {
            self.fields.tcp_mask = mask;
            self.fields.tcp_set = set;
        }
    }

    pub(super) fn ports(&mut self, ports: &Ports) {
        let both = [
            (ports.source, WhichPort::Source),
            (ports.destination, WhichPort::Destination),
        ];
        for (range, which) in both {
            match range {
                Some(Negatable { not: false, value }) => {
                    self.narrow(which, (value.first, value.last))
                }
                Some(Negatable { not: true, value }) => {
                    self.port_list(true, which, &[(value.first, value.last)]);
                }
                None => {}
            }
        }
    }

    /// Ports of one side must be in this range too.
    fn narrow(&mut self, which: WhichPort, range: (u16, u16)) {
        let field = match which {
            WhichPort::Source => &mut self.fields.source_ports,
            WhichPort::Destination => &mut self.fields.destination_ports,
            WhichPort::Either => return self.port_list(false, which, &[range]),
        };
        match ports::intersect(*field, range) {
            Some(common) => *field = common,
            None => self.never(),
        }
    }

    fn port_list(&mut self, not: bool, which: WhichPort, list: &[(u16, u16)]) {
        let mut ranges = [(1, 0); PORT_RANGES];
        for (place, range) in ranges.iter_mut().zip(list) {
            *place = *range;
        }
        let which = match which {
            WhichPort::Source => 1,
            WhichPort::Destination => 2,
            WhichPort::Either => 3,
        };
        self.predicate(not, Condition::Ports { which, ranges });
    }

    /// Fails with the number of ranges if there are too many.
    fn multiport(&mut self, multiport: &Multiport) -> Result<(), usize> {
        let Negatable { not, value } = &multiport.ports;
        let joined = ports::join(value);
        match joined.as_slice() {
            [range] if !not => self.narrow(multiport.which, *range),
            list if list.len() <= PORT_RANGES => self.port_list(*not, multiport.which, list),
            list => return Err(list.len()),
        }
        Ok(())
    }

    fn icmp(&mut self, icmp: Option<Negatable<IcmpType>>, family: Family) {
        self.require_protocol(match family {
            Family::Ipv4 => ICMP,
            Family::Ipv6 => ICMPV6,
        });
        let Some(Negatable { not, value }) = icmp else {
            return;
        };
        // IPv4's type 255 stands for "any" in the kernel too (`icmp_type_code_match`,
        // net/ipv4/netfilter/ip_tables.c); IPv6's is a type like others.
        let kind = match (value.kind, family) {
            (Some(255), Family::Ipv4) => None,
            (kind, _) => kind,
        };
        match (kind, not) {
            (None, false) => {}
            (None, true) => self.never(),
            (Some(kind), false) => {
                // ICMP's type and code are where ports would be.
                self.narrow(WhichPort::Source, (kind.into(), kind.into()));
                let (first, last) = value.codes;
                self.narrow(WhichPort::Destination, (first.into(), last.into()));
            }
            (Some(kind), true) => self.predicate(
                true,
                Condition::Icmp {
                    kind,
                    codes: value.codes,
                },
            ),
        }
    }

    fn states(&mut self, not: bool, states: u8) {
        let only_real = states & !REAL_STATES == 0;
        let mask = match not {
            false => states,
            // Exactly one real state holds: not to be in a set is to be in its complement.
            true if only_real => REAL_STATES & !states,
            true => return self.predicate(true, Condition::CtState(states)),
        };
        let field = &mut self.fields.ct_mask;
        if *field == ANY_STATE {
            *field = mask;
        } else if (*field | mask) & !REAL_STATES == 0 {
            *field &= mask;
        } else {
            self.predicate(false, Condition::CtState(mask));
        }
    }

    /// Returns the predicates that are put off until all else holds.
    fn conntrack(&mut self, conntrack: &Conntrack) -> Vec<PredicateFields> {
        if let Some(states) = conntrack.states {
            self.states(states.not, states.value.0);
        }
        if let Some(direction) = conntrack.direction {
            let direction = match direction {
                CtDirection::Original => 0,
                CtDirection::Reply => 1,
            };
            self.predicate(
                false,
                Condition::CtDirection {
                    direction,
                    without_flow: conntrack.states.is_some(),
                },
            );
        }
        let connection = conntrack.connection.as_deref();
        connection.map_or_else(Vec::new, |connection| {
            connection::asked(connection, conntrack.states.is_some())
        })
    }

    fn effect(&mut self, effect: EffectFields) -> (u32, u32) {
        self.effects.push(effect);
        (target::EFFECT, 0)
    }

    fn target(&mut self, rule: &Rule, scope: &Scope<'_>) -> Result<(), Limits> {
        let chain = |name: &String| {
            scope
                .chains
                .get(name.as_str())
                .copied()
                .ok_or_else(|| Limits::UnknownChain {
                    place: Place::of(scope.policy, rule.origin),
                    chain: name.clone(),
                })
        };
        self.translation = nat::fields(&rule.target);
        (self.fields.target, self.fields.argument) = match &rule.target {
            // The argument is filled in by the caller.
            Target::Log(_) => self.effect(EffectFields::Log),
            Target::Change(change) => self.effect(effect_of(*change, scope.zones)),
            Target::Nflog(nflog) => self.effect(EffectFields::Nflog { size: nflog.size }),
            Target::Set(change) => self.effect(sets::change(change, rule, scope)?),
            // The place of the translation is the caller's business.
            Target::Dnat(_) => (target::DNAT, 0),
            Target::Snat(_) => (target::SNAT, 0),
            Target::Redirect(_) => (target::REDIRECT, 0),
            Target::Netmap(_) => (target::NETMAP, 0),
            Target::Continue => (target::CONTINUE, 0),
            Target::Accept => (target::ACCEPT, 0),
            Target::Drop => (target::DROP, 0),
            Target::Reject(Reject::TcpReset) => (target::REJECT, RESET),
            Target::Reject(Reject::Unreachable(code)) => (target::REJECT, u32::from(*code)),
            Target::Return => (target::RETURN, 0),
            Target::Jump(name) => (target::JUMP, chain(name)?),
            Target::Goto(name) => (target::GOTO, chain(name)?),
            Target::Masquerade(masquerade) => {
                let range = masquerade
                    .ports
                    .map_or(0, |PortRange { first, last }| pack_range((first, last)));
                if masquerade.random || masquerade.random_fully {
                    (target::MASQUERADE_RANDOM, range)
                } else {
                    (target::MASQUERADE, range)
                }
            }
        };
        Ok(())
    }
}

fn effect_of(change: Change, zones: &Zones) -> EffectFields {
    match change {
        Change::Mark { value, mask } => EffectFields::Mark { value, mask },
        Change::Dscp(value) => EffectFields::Service {
            value: value << 2,
            mask: 0xfc,
        },
        Change::Tos { value, mask } => EffectFields::Service { value, mask },
        Change::Hops(HopChange::Set(value)) => EffectFields::Hops {
            mode: HOPS_SET,
            value,
        },
        Change::Hops(HopChange::Less(value)) => EffectFields::Hops {
            mode: HOPS_LESS,
            value,
        },
        Change::Hops(HopChange::More(value)) => EffectFields::Hops {
            mode: HOPS_MORE,
            value,
        },
        Change::SegmentSize(SegmentSize::Most(size)) => EffectFields::SegmentSize(size.into()),
        Change::SegmentSize(SegmentSize::Path) => EffectFields::SegmentSize(segment_size::PATH),
        Change::FillSum => EffectFields::FillSum,
        Change::NoTrack { .. } => EffectFields::Untracked,
        Change::Zone(zone) => EffectFields::Zone {
            zone,
            place: zones.place_of(zone),
        },
        Change::FlowMark { mark, shift } => {
            let (mode, packet, flow) = match mark {
                FlowMark::Set { value, mask } => (flow_mark::SET, value, mask),
                FlowMark::Save { packet, flow } => (flow_mark::SAVE, packet, flow),
                FlowMark::Restore { packet, flow } => (flow_mark::RESTORE, packet, flow),
            };
            EffectFields::FlowMark {
                mode,
                packet,
                flow,
                shift: shift.map_or((false, 0), |shift| (shift.right, shift.bits)),
            }
        }
    }
}

/// Ranges that one predicate holds.
const PORT_RANGES: usize = 15;
/// [`RuleFields::ct_mask`] of a rule that does not ask for a state.
const ANY_STATE: u8 = 0xff;

#[cfg(test)]
#[path = "lower_tests.rs"]
mod tests;
