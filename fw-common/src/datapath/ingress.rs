//! The ingress hook: tracking, translation of destinations, and INPUT for what is for this host.

use super::Verdict;
use super::classify::{Decision, Query, traverse};
use super::conntrack::{NOTE_SEEN, Tracked, look_up, opener, quoted, track};
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Part, Unparsed, parse};
use super::nat::{Draft, Wish, open};
use super::packet::{Destination, Packet};
use super::rewrite::{End, Endpoint, rewrite, rewrite_error};
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// Judges a packet that came in by an interface.
///
/// Packets for this host end here, in INPUT. Others get their label and, if they are replies to a
/// translated flow, their destination back; FORWARD is egress's, which knows the way out.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T, draft: &mut Draft) -> Verdict {
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
    let mut headers = match parse(packet, device.l2_len, true) {
        Ok(headers) => headers,
        Err(Unparsed::NotOurs) => return Verdict::Pass,
        Err(Unparsed::Malformed) => return Verdict::Drop(Stat::Malformed),
    };
    let Some(policy) = tables.cell(generation, HEADER) else {
        return Verdict::Pass;
    };
    let policy = Header(policy);
    let patterns = patterns(device, policy.generation());
    let nat = policy.has_nat(headers.family);

    // On loopback every packet has been through egress just now: its label came along, it is in
    // its flow, and both sides of the translation are settled (netfilter keeps the skb's nfct).
    let looped = device.flags & Device::LOOPBACK != 0 && note & NOTE_SEEN != 0;
    let mut packets = 1;
    let mut replayed = false;
    let tracked = if headers.part as u8 == Part::Later as u8 {
        let Some(first) = borrow(tables, &mut headers, Side::Ingress) else {
            // The stack cannot complete a datagram of this host's without its first fragment,
            // which will be judged. A forwarded one is dropped at egress.
            return Verdict::Pass;
        };
        packets = 0;
        replayed = first.opened;
        let mut tracked = look_up(tables, &headers, nat, first.ct, first.direction);
        tracked.opens = false;
        tracked
    } else if looped {
        let mut tracked = Tracked::without_flow(note as u8);
        tracked.direction = (note >> 8) as u8 & 3;
        lend(tables, &headers, Side::Ingress, &tracked);
        tracked
    } else {
        let tracked = track(packet, tables, generation, &headers, nat);
        lend(tables, &headers, Side::Ingress, &tracked);
        tracked
    };

    let opens = tracked.opens || replayed;
    if opens && nat {
        // Only its counters matter: nothing in this chain translates.
        let query = query(&headers, patterns, 1, &tracked, packets);
        let chain = BaseChain::NatPrerouting.id(headers.family);
        if let Decision::Drop(stat) = traverse(tables, generation, chain, &query) {
            return Verdict::Drop(stat);
        }
    }
    if let (Some(flow), Some(key)) = (tracked.flow, tracked.alias_of) {
        let opener = opener(key, flow);
        if restore_destination(packet, &mut headers, &opener, tracked.error).is_none() {
            return Verdict::Drop(Stat::Rewrite);
        }
    }

    if !looped && !is_for_this_host(packet, tables, &headers) {
        packet.set_note(tracked.note());
        return Verdict::Pass;
    }
    let input = query(&headers, patterns, 1, &tracked, packets);
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
    draft.wish = Wish {
        address: headers.key.source,
        embryo: true,
        ..Wish::default()
    };
    match open(packet, tables, generation, &headers, draft) {
        Ok(()) => Verdict::Pass,
        Err(stat) => Verdict::Drop(stat),
    }
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
    tracked: &Tracked<'_>,
    packets: u8,
) -> Query<'a> {
    Query {
        headers,
        in_patterns,
        out_patterns,
        ct: tracked.ct,
        direction: tracked.direction,
        packets,
    }
}

/// Gives a reply, or an error about a request, the opener's own address back.
#[inline(always)]
fn restore_destination<P: Packet>(
    packet: &mut P,
    headers: &mut Headers,
    opener: &Endpoint,
    error: bool,
) -> Option<()> {
    if error {
        let quoted = quoted(packet, headers)?;
        return rewrite_error(packet, headers, &quoted, End::Destination, opener);
    }
    rewrite(packet, headers, End::Destination, opener)
}
