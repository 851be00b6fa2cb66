//! The ingress hook: tracking, translation of destinations, and INPUT for what is for this host.

use super::Verdict;
use super::classify::{Decision, traverse};
use super::conntrack::{NOTE_SEEN, follow, track};
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Parsed, Part, parse};
use super::nat::{Wish, open};
use super::packet::{Destination, Packet};
use super::quoted::read_quoted;
use super::rewrite::{End, rewrite, rewrite_error};
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::Family;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// Judges a packet that came in by an interface.
///
/// Packets for this host end here, in INPUT. Others get their label and, if they are replies to a
/// translated flow, their destination back; FORWARD is egress's, which knows the way out.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    if packet.is_of_vlan() {
        return Verdict::Pass;
    }
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
    match parse(packet, tables, device.l2_len, &mut scratch.headers) {
        Parsed::Headers => {}
        Parsed::NotOurs if has_priority_tags(packet, device.l2_len) => {
            return Verdict::Drop(Stat::Malformed);
        }
        Parsed::NotOurs => return Verdict::Pass,
        Parsed::Malformed => return Verdict::Drop(Stat::Malformed),
    }
    scratch.made_here = false;
    let family = scratch.headers.family;
    let nat = has_nat(tables, generation, family);

    // On loopback every packet has been through egress just now: its label came along, it is in
    // its flow, and both sides of the translation are settled (netfilter keeps the skb's nfct).
    let looped = device.flags & Device::LOOPBACK != 0 && note & NOTE_SEEN != 0;
    let note = if looped { note } else { 0 };
    if !place(packet, tables, generation, scratch, note) {
        // The stack cannot complete a datagram of this host's without its first fragment, which
        // will be judged. A forwarded one is dropped at egress.
        return Verdict::Pass;
    }
    let patterns = patterns(tables, generation, device);
    scratch.ask(patterns, 1);

    let opens = scratch.tracked.opens || scratch.tracked.replayed;
    if opens && nat {
        // Only its counters matter: nothing in this chain translates.
        let chain = BaseChain::NatPrerouting.id(family);
        if let Decision::Drop(stat) = traverse(tables, generation, chain, scratch) {
            return Verdict::Drop(stat);
        }
    }
    if scratch.tracked.translated
        && scratch.tracked.direction == 1
        && translate(packet, tables, scratch, End::Destination).is_none()
    {
        return Verdict::Drop(Stat::Rewrite);
    }
    if !looped && !is_for_this_host(packet, tables, &scratch.headers) {
        packet.set_note(scratch.tracked.note());
        scratch.note_transit();
        return Verdict::Pass;
    }

    let chain = BaseChain::FilterInput.id(family);
    if let Decision::Drop(stat) = traverse(tables, generation, chain, scratch) {
        return Verdict::Drop(stat);
    }
    if !opens {
        return translate_source(packet, tables, scratch);
    }
    if nat {
        let chain = BaseChain::NatInput.id(family);
        if let Decision::Drop(stat) = traverse(tables, generation, chain, scratch) {
            return Verdict::Drop(stat);
        }
    }
    if !scratch.tracked.opens {
        return translate_source(packet, tables, scratch);
    }
    scratch.draft.wish = Wish {
        address: scratch.headers.key.source,
        device: packet.device(),
        nat,
        embryo: true,
        ..Wish::default()
    };
    if let Err(stat) = open(packet, tables, generation, scratch) {
        return Verdict::Drop(stat);
    }
    scratch.take_translation();
    translate_source(packet, tables, scratch)
}

/// Whether a tag of VLAN 0 is left in the frame. The kernel took one off before this hook, and
/// takes off all others behind it (`__netif_receive_skb_core`, net/core/dev.c), so that the packet
/// within would get to layer 3 unseen. No honest sender says a priority twice.
#[inline(never)]
fn has_priority_tags<P: Packet>(packet: &P, l2_len: u32) -> bool {
    const VLAN: u16 = 0x0fff;
    matches!(packet.ethertype(), 0x8100 | 0x88a8)
        && packet
            .load::<2>(l2_len)
            .is_none_or(|control| u16::from_be_bytes(control) & VLAN == 0)
}

/// LOCAL_IN is the place where a source is translated that reaches this host under a name which a
/// translated flow has taken.
#[inline(always)]
fn translate_source<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    if scratch.tracked.translated
        && scratch.tracked.direction == 0
        && translate(packet, tables, scratch, End::Source).is_none()
    {
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
    let aliases = has_nat(tables, generation, scratch.headers.family);
    if scratch.headers.part as u8 == Part::Later as u8 {
        let first = borrow(tables, &mut scratch.headers, Side::Ingress);
        if first.found {
            follow(tables, scratch, aliases, first);
        }
        return first.found;
    }
    if note != 0 {
        scratch.tracked.set_note(note);
    } else {
        track(packet, tables, generation, scratch, aliases);
    }
    lend(tables, scratch, Side::Ingress);
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
pub(super) fn patterns<T: Tables>(tables: &T, generation: T::Generation, device: &Device) -> u64 {
    let even = tables
        .cell(generation, HEADER)
        .is_none_or(|cell| Header(cell).generation() & 1 == 0);
    if even {
        device.patterns[0]
    } else {
        device.patterns[1]
    }
}

/// Gives a packet, or an ICMP error about one, the endpoint that tracking found for it.
#[inline(always)]
pub(super) fn translate<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    end: End,
) -> Option<()> {
    let endpoint = &scratch.tracked.endpoint;
    if !scratch.tracked.error {
        return rewrite(packet, &mut scratch.headers, end, endpoint);
    }
    if !read_quoted(packet, tables, &scratch.headers, &mut scratch.quoted) {
        return None;
    }
    rewrite_error(packet, &mut scratch.headers, &scratch.quoted, end, endpoint)
}
