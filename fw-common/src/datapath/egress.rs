//! The egress hook: OUTPUT for what this host sends, FORWARD for what it passes on, and the
//! translation of sources.

use super::Verdict;
use super::classify::{Decision, traverse, traverse_nat};
use super::conntrack::{
    NOTE_OPENS, NOTE_SEEN, NOTE_SENT_ON, Tracked, about, attach, end_flow, follow, look_up, track,
};
use super::facts::{LEAVING, gather};
use super::forward::remember;
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Icmp, Part};
use super::ingress::{LOST, PLACED, is_refused_redirect, translate};
use super::nat::{Wish, open};
use super::packet::Packet;
use super::rewrite::End;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::start::{Start, patterns_of_arrival, start};
use super::tables::Tables;
use super::transit::{find_error_on_way, find_on_way};
use super::translation::{Choose, OUTPUT, SOURCE};
use crate::abi::blob::BaseChain;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;
use crate::abi::{Addr, ct};

/// Judges a packet that is about to leave by an interface.
#[inline(always)]
pub fn egress<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    if packet.is_of_vlan() {
        return Verdict::Pass;
    }
    let arrival = packet.arrival_device();
    let forwarded = arrival != 0;
    let mut note = if forwarded { packet.note() } else { 0 };
    if note == NOTE_SENT_ON {
        // Ingress and this are one call on one CPU: nobody else can have left such a note.
        if scratch.sent_on == packet.device() {
            scratch.sent_on = 0;
            return Verdict::Pass;
        }
        note = 0;
    }
    match start(packet, tables, scratch) {
        Start::Judge => {}
        Start::NotOurs => return Verdict::Pass,
        Start::Over(verdict) => return verdict,
    }
    let family = scratch.headers.family;

    scratch.made_here = !forwarded;
    gather(packet, tables, scratch, LEAVING);
    scratch.fast = false;
    let looping = scratch.device.flags & Device::LOOPBACK != 0;
    scratch.aliases = scratch.has_nat() && scratch.made_here;
    match packet.call::<PlaceOut, T>(tables, scratch, note as u32) {
        LOST => return Verdict::Drop(Stat::FragmentWithoutFirst),
        FORGOTTEN => return Verdict::Drop(Stat::NoFlowEntry),
        _ => {}
    }
    if looping {
        packet.set_note(scratch.tracked.note());
    }
    let in_patterns = patterns_of_arrival(tables, arrival, scratch);
    scratch.ask(in_patterns, scratch.patterns(&scratch.device));

    if scratch.meets_nat() && scratch.made_here {
        match traverse_nat(packet, tables, BaseChain::NatOutput, scratch) {
            Decision::Drop(stat) => return Verdict::Drop(stat),
            Decision::Translate => {
                if packet.call::<Choose, T>(tables, scratch, OUTPUT) == 0 {
                    return Verdict::Drop(scratch.reason);
                }
                scratch.query.ct = scratch.tracked.ct;
                if looping {
                    packet.set_note(scratch.tracked.note());
                }
            }
            Decision::Accept | Decision::Masquerade { .. } => {}
        }
    }
    if scratch.made_here && is_refused_redirect(scratch) {
        return Verdict::Drop(Stat::Rewrite);
    }
    // Also of a reply to a flow whose source was translated on loopback or at LOCAL_IN: its
    // destination is restored at LOCAL_OUT.
    if scratch.tracked.translates_destination()
        && translate(packet, tables, scratch, End::Destination).is_none()
    {
        return Verdict::Drop(Stat::Rewrite);
    }
    let chain = if scratch.made_here {
        BaseChain::FilterOutput.id(family)
    } else {
        BaseChain::FilterForward.id(family)
    };
    if let Decision::Drop(stat) = traverse(packet, tables, chain, scratch) {
        return Verdict::Drop(stat);
    }
    if forwarded {
        remember(tables, scratch, arrival, packet.device());
    }
    if scratch.tracked.opens || scratch.tracked.replayed {
        scratch.draft.wish = Wish {
            address: scratch.headers.key.source,
            first: scratch.headers.key.source,
            last: scratch.headers.key.source,
            nat: scratch.has_nat(),
            embryo: !scratch.made_here,
            ..Wish::default()
        };
        if scratch.meets_nat() {
            match traverse_nat(packet, tables, BaseChain::NatPostrouting, scratch) {
                Decision::Accept => {}
                Decision::Drop(stat) => return Verdict::Drop(stat),
                Decision::Masquerade { ports, random } => {
                    let wish = &mut scratch.draft.wish;
                    wish.ports = ports;
                    wish.random = random;
                    wish.embryo = false;
                    wish.device = packet.device();
                    wish.set_address(masquerade_address(&scratch.device, &scratch.headers));
                    if wish.address == [0; 4] {
                        return Verdict::Drop(Stat::NoMasqueradeAddress);
                    }
                }
                Decision::Translate => {
                    if packet.call::<Choose, T>(tables, scratch, SOURCE) == 0 {
                        return Verdict::Drop(scratch.reason);
                    }
                }
            }
            // The flow of a later fragment's first one is not stored, or was not: the fragment
            // must not leave with its inner address.
            let wish = &scratch.draft.wish;
            if scratch.tracked.replayed
                && !scratch.tracked.translates_source()
                && !wish.takes_address(&scratch.headers.key.source)
            {
                return Verdict::Drop(Stat::NoFlowEntry);
            }
        }
        if scratch.tracked.opens {
            if let Err(stat) = open(packet, tables, scratch, forwarded) {
                return Verdict::Drop(stat);
            }
            scratch.take_translation();
            if scratch.device.flags & Device::LOOPBACK != 0 {
                // INPUT sees the label with what POSTROUTING did to the flow.
                packet.set_note(scratch.tracked.note());
            }
        }
    }
    if !scratch.has_nat() {
        return Verdict::Pass;
    }
    if !scratch.tracked.translates_source() && scratch.tracked.has_source_ahead() {
        // Its flow ended while the packet was on the way, or just ended with it: it must not leave
        // with its inner address.
        if scratch.tracked.ct & ct::DNAT != 0 || !last_words(tables, scratch) {
            return Verdict::Drop(Stat::NoFlowEntry);
        }
    }
    if scratch.tracked.translates_source()
        && translate(packet, tables, scratch, End::Source).is_none()
    {
        return Verdict::Drop(Stat::Rewrite);
    }
    Verdict::Pass
}

#[inline(always)]
fn masquerade_address(device: &Device, headers: &Headers) -> Addr {
    if !headers.is_v6() {
        return [device.masquerade4, 0, 0, 0];
    }
    // On loopback the destination is one of this host's addresses, and the best source for it is
    // itself (RFC 6724 5, rule 1; `ipv6_get_saddr_eval` in net/ipv6/addrconf.c).
    if device.flags & Device::LOOPBACK != 0 {
        return headers.key.destination;
    }
    device.masquerade6
}

/// Finds the packet's place in its flow, with the help of the note that its argument is; its result
/// is 0 for a fragment whose first one was not seen.
pub struct PlaceOut;

/// Result of [`PlaceOut`]: the packet opens a flow and was translated on its way in, but nothing is
/// left that says from what.
const FORGOTTEN: u32 = 3;

impl Stage for PlaceOut {
    const NAME: Name = Name::PlaceOut;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        note: u32,
    ) -> u32 {
        let note = note as u16;
        if scratch.headers.part as u8 == Part::Later as u8 {
            return place_later(tables, scratch, note) as u32;
        }
        if note & NOTE_SEEN == 0 {
            // What this host makes may answer a flow whose source was translated on its way in.
            track(packet, tables, scratch, scratch.aliases);
            if scratch.made_here && scratch.headers.icmp as u8 == Icmp::Error as u8 {
                attach(packet, tables, scratch);
            }
        } else if scratch.headers.icmp as u8 == Icmp::Error as u8 {
            place_error(packet, tables, scratch, note);
        } else if !place_noted(tables, scratch, note) {
            return FORGOTTEN;
        }
        lend(tables, scratch, Side::Egress);
        PLACED
    }
}

/// A later fragment's place; false if its first one was not seen.
#[inline(never)]
fn place_later<T: Tables>(tables: &T, scratch: &mut Scratch, note: u16) -> bool {
    let first = borrow(
        tables,
        &mut scratch.headers,
        &mut scratch.outcomes,
        Side::Egress,
    );
    if !first.found {
        return false;
    }
    let aliases = scratch.aliases;
    follow(tables, scratch, aliases, first);
    if !scratch.made_here {
        scratch.tracked.translates &= Tracked::SOURCE;
    }
    if note as u8 & ct::DNAT != 0 {
        scratch.lookup.tuple.set(&scratch.headers);
        find_on_way(tables, scratch, note);
        scratch.tracked.opens = false;
    }
    true
}

/// The place of an ICMP error that ingress has found already: its source may have to be translated.
#[inline(never)]
fn place_error<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch, note: u16) {
    scratch.tracked.set_note(note);
    if !scratch.tracked.has_source_ahead() {
        return;
    }
    if note as u8 & ct::DNAT != 0 {
        return find_error_on_way(packet, tables, scratch, note);
    }
    about(packet, tables, scratch, true);
    scratch.tracked.translates &= Tracked::SOURCE;
    scratch.tracked.take_label(note);
}

/// The place of a packet that ingress has found already; false if it opens a flow and was
/// translated, but nothing says any more from what.
#[inline(never)]
fn place_noted<T: Tables>(tables: &T, scratch: &mut Scratch, note: u16) -> bool {
    scratch.tracked.set_note(note);
    let opens = note & NOTE_OPENS != 0;
    if note as u8 & ct::DNAT != 0 {
        scratch.lookup.tuple.set(&scratch.headers);
        if !find_on_way(tables, scratch, note) && opens {
            return false;
        }
    } else {
        look_up(tables, scratch, false);
        scratch.tracked.translates &= Tracked::SOURCE;
    }
    // Only what ingress took for a flow's first packet opens one: a packet that ended its flow is
    // without a flow here, and opens none.
    scratch.tracked.opens &= opens;
    true
}

/// Finds the translation of a flow that waits for its last packet, which this is; false if there
/// is none.
#[inline(never)]
fn last_words<T: Tables>(tables: &T, scratch: &mut Scratch) -> bool {
    scratch.lookup.tuple.set(&scratch.headers);
    let lookup = &mut scratch.lookup;
    let from_low = lookup.tuple.write_key(FlowKey::FIRST, &mut lookup.key);
    let opened = if from_low { Flow::LOW_OPENED } else { 0 };
    let Some(mut flow) = tables.flow(&lookup.key) else {
        return false;
    };
    if flow.is_alias() || flow.status.get() & Flow::LOW_OPENED != opened {
        lookup.key.kind = FlowKey::SECOND;
        flow = match tables.flow(&lookup.key) {
            Some(flow) => flow,
            None => return false,
        };
    }
    let status = flow.status.get();
    if status & Flow::SNAT == 0 {
        return false;
    }
    scratch.tracked.set_source(&flow.nat_source, flow.nat_port);
    if status & Flow::DYING != 0 {
        end_flow(tables, &lookup.key, flow);
    }
    true
}
