//! The egress hook: OUTPUT for what this host sends, FORWARD for what it passes on, and the
//! translation of sources.

use super::Verdict;
use super::classify::{Decision, traverse};
use super::conntrack::{NOTE_SEEN, Tracked, Tuple, about, end_flow, follow, look_up, outside, track};
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Icmp, Part, Parsed, parse};
use super::ingress::{patterns, query, translate};
use super::nat::{Scratch, Wish, open};
use super::packet::Packet;
use super::rewrite::{End, Endpoint};
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::ct;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;

/// Judges a packet that is about to leave by an interface.
#[inline(always)]
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    let Some(generation) = tables.generation() else {
        return Verdict::Pass;
    };
    let Some(device) = tables.device(packet.device()) else {
        return Verdict::Drop(Stat::UnknownDevice);
    };
    let headers = &mut scratch.headers;
    match parse(packet, tables, device.l2_len, headers) {
        Parsed::Headers => {}
        Parsed::NotOurs => return Verdict::Pass,
        Parsed::Malformed => return Verdict::Drop(Stat::Malformed),
    }
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

    let note = if forwarded { packet.note() } else { 0 };
    if !place(packet, tables, generation, scratch, note) {
        return Verdict::Drop(Stat::FragmentWithoutFirst);
    }
    let headers = &mut scratch.headers;
    let mut tracked = scratch.tracked;
    if device.flags & Device::LOOPBACK != 0 {
        packet.set_note(tracked.note());
    }
    let opens = tracked.opens || tracked.replayed;

    let (nat_chain, filter_chain) = if forwarded {
        (None, BaseChain::FilterForward)
    } else {
        (Some(BaseChain::NatOutput), BaseChain::FilterOutput)
    };
    let query = query(headers, in_patterns, out_patterns, &tracked);
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
            let draft = &mut scratch.draft;
            draft.wish = wish;
            if let Err(stat) = open(packet, tables, generation, headers, draft) {
                return Verdict::Drop(stat);
            }
            if draft.flow.status.get() & Flow::SNAT != 0 {
                tracked.endpoint = outside(&draft.flow);
                tracked.translated = true;
            }
        }
    }
    if !nat || tracked.direction != 0 {
        return Verdict::Pass;
    }
    if !tracked.translated && tracked.ct & ct::SNAT != 0 {
        // Its flow ended while the packet was on the way, or just ended with it: it must not leave
        // with its inner address.
        match last_words(tables, headers) {
            Some(endpoint) => {
                tracked.endpoint = endpoint;
                tracked.translated = true;
            }
            None => return Verdict::Drop(Stat::NoFlowEntry),
        }
    }
    if tracked.translated && translate(packet, headers, &tracked, End::Source).is_none() {
        return Verdict::Drop(Stat::Rewrite);
    }
    Verdict::Pass
}

/// Finds the packet's place in its flow; false for a fragment whose first one was not seen.
#[inline(never)]
fn place<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    scratch: &mut Scratch,
    note: u16,
) -> bool {
    let headers = &mut scratch.headers;
    if headers.part as u8 == Part::Later as u8 {
        let Some(first) = borrow(tables, headers, Side::Egress) else {
            return false;
        };
        scratch.tracked = follow(tables, headers, false, &first);
        return true;
    }
    scratch.tracked = if note & NOTE_SEEN != 0 {
        labelled(packet, tables, headers, note)
    } else {
        track(packet, tables, generation, headers, false)
    };
    lend(tables, headers, Side::Egress, &scratch.tracked);
    true
}

/// The translation of a flow that waits for its last packet, which this is.
#[inline(always)]
fn last_words<T: Tables>(tables: &T, headers: &Headers) -> Option<Endpoint> {
    let key = Tuple::of(headers).key(FlowKey::PRIMARY).0;
    let flow = tables.flow(&key)?;
    let status = flow.status.get();
    if status & Flow::SNAT == 0 {
        return None;
    }
    let endpoint = outside(flow);
    if status & Flow::DYING != 0 {
        end_flow(tables, &key, flow);
    }
    Some(endpoint)
}

/// What ingress said of a forwarded packet, and the packet's flow.
#[inline(always)]
fn labelled<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    note: u16,
) -> Tracked {
    let (label, direction) = (note as u8, (note >> 8) as u8 & 3);
    if headers.icmp as u8 != Icmp::Error as u8 {
        return look_up(tables, headers, false, label, direction);
    }
    let mut tracked = about(packet, tables, headers, false);
    tracked.ct = label;
    tracked.direction = direction;
    tracked
}

