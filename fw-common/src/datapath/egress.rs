//! The egress hook: OUTPUT for what this host sends, FORWARD for what it passes on, and the
//! translation of sources.

use super::Verdict;
use super::classify::{Decision, traverse};
use super::conntrack::{NOTE_SEEN, Tracked, Tuple, about, end_flow, look_up, quoted, track};
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Icmp, Part, Unparsed, parse};
use super::ingress::{patterns, query};
use super::nat::{Draft, Wish, open};
use super::packet::Packet;
use super::rewrite::{End, Endpoint, rewrite, rewrite_error};
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::ct;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;

/// Judges a packet that is about to leave by an interface.
#[inline(always)]
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T, draft: &mut Draft) -> Verdict {
    let Some(generation) = tables.generation() else {
        return Verdict::Pass;
    };
    let Some(device) = tables.device(packet.device()) else {
        return Verdict::Drop(Stat::UnknownDevice);
    };
    let mut headers = match parse(packet, device.l2_len, false) {
        Ok(headers) => headers,
        Err(Unparsed::NotOurs) => return Verdict::Pass,
        Err(Unparsed::Malformed) => return Verdict::Drop(Stat::Malformed),
    };
    let Some(policy) = tables.cell(generation, HEADER) else {
        return Verdict::Pass;
    };
    let policy = Header(policy);
    let out_patterns = patterns(device, policy.generation());
    let nat = policy.has_nat(headers.family);

    let arrival = packet.arrival_device();
    let forwarded = arrival != 0;
    let in_patterns = match tables.device(arrival) {
        Some(device) => patterns(device, policy.generation()),
        None => 1,
    };

    let note = packet.note();
    let mut packets = 1;
    let mut replayed = false;
    let tracked = if headers.part as u8 == Part::Later as u8 {
        let Some(first) = borrow(tables, &mut headers, Side::Egress) else {
            return Verdict::Drop(Stat::FragmentWithoutFirst);
        };
        packets = 0;
        replayed = first.opened;
        let mut tracked = look_up(tables, &headers, false, first.ct, first.direction);
        tracked.opens = false;
        tracked
    } else {
        let tracked = if !forwarded || note & NOTE_SEEN == 0 {
            track(packet, tables, generation, &headers, false)
        } else {
            labelled(packet, tables, &headers, note)
        };
        lend(tables, &headers, Side::Egress, &tracked);
        tracked
    };
    if device.flags & Device::LOOPBACK != 0 {
        packet.set_note(tracked.note());
    }
    let opens = tracked.opens || replayed;

    let (nat_chain, filter_chain) = if forwarded {
        (None, BaseChain::FilterForward)
    } else {
        (Some(BaseChain::NatOutput), BaseChain::FilterOutput)
    };
    let query = query(&headers, in_patterns, out_patterns, &tracked, packets);
    if let (Some(chain), true) = (nat_chain, opens && nat) {
        let chain = chain.id(headers.family);
        if let Decision::Drop(stat) = traverse(tables, generation, chain, &query) {
            return Verdict::Drop(stat);
        }
    }
    let chain = filter_chain.id(headers.family);
    if let Decision::Drop(stat) = traverse(tables, generation, chain, &query) {
        return Verdict::Drop(stat);
    }

    if opens {
        let mut wish = Wish {
            address: headers.key.source,
            device: packet.device(),
            nat,
            embryo: forwarded,
            ..Wish::default()
        };
        if nat {
            let chain = BaseChain::NatPostrouting.id(headers.family);
            match traverse(tables, generation, chain, &query) {
                Decision::Accept => {}
                Decision::Drop(stat) => return Verdict::Drop(stat),
                Decision::Masquerade { ports, random } => {
                    wish.ports = ports;
                    wish.random = random;
                    wish.embryo = false;
                    wish.address = if headers.is_v6() {
                        device.masquerade6
                    } else {
                        [device.masquerade4, 0, 0, 0]
                    };
                    if wish.address == [0; 4] {
                        return Verdict::Drop(Stat::NoMasqueradeAddress);
                    }
                }
            }
        }
        if tracked.opens {
            draft.wish = wish;
            if let Err(stat) = open(packet, tables, generation, &headers, draft) {
                return Verdict::Drop(stat);
            }
        }
    }
    if !nat || tracked.direction != 0 {
        return Verdict::Pass;
    }
    translate(packet, tables, &mut headers, &tracked)
}

/// What ingress said of a forwarded packet, and the packet's flow.
#[inline(always)]
fn labelled<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    headers: &Headers,
    note: u16,
) -> Tracked<'t> {
    let (label, direction) = (note as u8, (note >> 8) as u8 & 3);
    if headers.icmp as u8 != Icmp::Error as u8 {
        return look_up(tables, headers, false, label, direction);
    }
    let mut tracked = about(packet, tables, headers, false);
    tracked.ct = label;
    tracked.direction = direction;
    tracked
}

/// Gives a packet in the original direction the flow's translated source.
#[inline(always)]
fn translate<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    headers: &mut Headers,
    tracked: &Tracked<'_>,
) -> Verdict {
    let key = Tuple::of(headers).key(FlowKey::PRIMARY).0;
    let flow = match tracked.flow {
        Some(flow) => flow,
        None if tracked.error => return Verdict::Pass,
        None => match tables.flow(&key) {
            Some(flow) => flow,
            // The flow ended while its packet was on the way: the packet must not leave with its
            // inner address unless it never had another.
            None if tracked.ct & ct::SNAT != 0 => return Verdict::Drop(Stat::NoFlowEntry),
            None => return Verdict::Pass,
        },
    };
    let status = flow.status.get();
    if status & Flow::SNAT == 0 {
        return Verdict::Pass;
    }
    let outside = Endpoint {
        address: flow.nat_source,
        port: flow.nat_port,
    };
    if status & Flow::DYING != 0 {
        // This is the packet that it waited for.
        end_flow(tables, &key, flow);
    }
    let done = if tracked.error {
        match quoted(packet, headers) {
            Some(quoted) => rewrite_error(packet, headers, &quoted, End::Source, &outside),
            None => None,
        }
    } else {
        rewrite(packet, headers, End::Source, &outside)
    };
    match done {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Stat::Rewrite),
    }
}
