//! The ingress hook: tracking, translation of destinations, and INPUT for what is for this host.

use super::Verdict;
use super::classify::{Decision, Query, traverse};
use super::conntrack::{NOTE_SEEN, Tracked, follow, quoted, track};
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Part, Parsed, parse};
use super::nat::{Scratch, Wish, open};
use super::packet::{Destination, Packet};
use super::rewrite::{End, rewrite, rewrite_error};
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::Family;
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// Judges a packet that came in by an interface.
///
/// Packets for this host end here, in INPUT. Others get their label and, if they are replies to a
/// translated flow, their destination back; FORWARD is egress's, which knows the way out.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    let Some(generation) = tables.generation() else {
        return Verdict::Pass;
    };
    let note = packet.note();
    packet.set_note(0);
    if packet.is_for_other_host() {
        return Verdict::Pass;
    }
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
    let patterns = patterns(device, policy.generation());
    let nat = policy.has_nat(headers.family);

    // On loopback every packet has been through egress just now: its label came along, it is in
    // its flow, and both sides of the translation are settled (netfilter keeps the skb's nfct).
    let looped = device.flags & Device::LOOPBACK != 0 && note & NOTE_SEEN != 0;
    let note = if looped { note } else { 0 };
    if !place(packet, tables, generation, scratch, note) {
        // The stack cannot complete a datagram of this host's without its first fragment, which
        // will be judged. A forwarded one is dropped at egress.
        return Verdict::Pass;
    }
    let headers = &mut scratch.headers;
    let tracked = scratch.tracked;

    let opens = tracked.opens || tracked.replayed;
    if opens && nat {
        // Only its counters matter: nothing in this chain translates.
        let query = query(headers, patterns, 1, &tracked);
        let chain = BaseChain::NatPrerouting.id(headers.family);
        if let Decision::Drop(stat) = traverse(tables, generation, chain, &query) {
            return Verdict::Drop(stat);
        }
    }
    if tracked.translated
        && tracked.direction == 1
        && translate(packet, headers, &tracked, End::Destination).is_none()
    {
        return Verdict::Drop(Stat::Rewrite);
    }

    if !looped && !is_for_this_host(packet, tables, headers) {
        packet.set_note(tracked.note());
        return Verdict::Pass;
    }
    let input = query(headers, patterns, 1, &tracked);
    let chain = BaseChain::FilterInput.id(headers.family);
    if let Decision::Drop(stat) = traverse(tables, generation, chain, &input) {
        return Verdict::Drop(stat);
    }
    if !opens {
        return Verdict::Pass;
    }
    if nat {
        let chain = BaseChain::NatInput.id(headers.family);
        if let Decision::Drop(stat) = traverse(tables, generation, chain, &input) {
            return Verdict::Drop(stat);
        }
    }
    if !tracked.opens {
        return Verdict::Pass;
    }
    scratch.draft.wish = Wish {
        address: headers.key.source,
        embryo: true,
        ..Wish::default()
    };
    match open(packet, tables, generation, headers, &mut scratch.draft) {
        Ok(()) => Verdict::Pass,
        Err(stat) => Verdict::Drop(stat),
    }
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
    let aliases = has_nat(tables, generation, headers.family);
    if headers.part as u8 == Part::Later as u8 {
        let Some(first) = borrow(tables, headers, Side::Ingress) else {
            return false;
        };
        scratch.tracked = follow(tables, headers, aliases, &first);
        return true;
    }
    scratch.tracked = if note != 0 {
        let mut tracked = Tracked::without_flow(note as u8);
        tracked.direction = (note >> 8) as u8 & 3;
        tracked
    } else {
        track(packet, tables, generation, headers, aliases)
    };
    lend(tables, headers, Side::Ingress, &scratch.tracked);
    true
}

/// Whether the family has a nat table.
#[inline(always)]
pub(super) fn has_nat<T: Tables>(tables: &T, generation: T::Generation, family: Family) -> bool {
    tables
        .cell(generation, HEADER)
        .is_some_and(|cell| Header(cell).has_nat(family))
}

/// Whether a packet is INPUT's business. The table of local addresses decides; an address that is
/// not in it, though the kernel would not forward it either, may have been added a moment ago, and
/// so meets INPUT too: a stale table never lets a packet past every chain.
#[inline(always)]
pub(super) fn is_for_this_host<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
) -> bool {
    tables.is_local(headers.family, &headers.key.destination)
        || !packet.is_forwardable(&Destination {
            family: headers.family,
            source: headers.key.source,
            destination: headers.key.destination,
        })
}

/// The patterns that an interface fits, in the generation that judges the packet.
#[inline(always)]
pub(super) fn patterns(device: &Device, generation: u32) -> u64 {
    if generation & 1 == 0 {
        device.patterns[0]
    } else {
        device.patterns[1]
    }
}

#[inline(always)]
pub(super) fn query<'a>(
    headers: &'a Headers,
    in_patterns: u64,
    out_patterns: u64,
    tracked: &Tracked,
) -> Query<'a> {
    Query {
        headers,
        in_patterns,
        out_patterns,
        ct: tracked.ct,
        direction: tracked.direction,
        packets: tracked.packets,
    }
}

/// Gives a packet, or an ICMP error about one, the endpoint that tracking found for it.
#[inline(always)]
pub(super) fn translate<P: Packet>(
    packet: &mut P,
    headers: &mut Headers,
    tracked: &Tracked,
    end: End,
) -> Option<()> {
    if tracked.error {
        let quoted = quoted(packet, headers)?;
        return rewrite_error(packet, headers, &quoted, end, &tracked.endpoint);
    }
    rewrite(packet, headers, end, &tracked.endpoint)
}
