//! The egress hook: OUTPUT for what this host sends, FORWARD for what it passes on, and the
//! translation of sources.

use super::Verdict;
use super::classify::{Decision, traverse, traverse_nat};
use super::conntrack::{
    NOTE_OPENS, NOTE_SEEN, NOTE_SENT_ON, about, attach, end_flow, follow, look_up, outside, track,
};
use super::facts::{LEAVING, gather};
use super::forward::remember;
use super::fragment::{Side, borrow, lend};
use super::header::{Headers, Icmp, Part};
use super::ingress::{LOST, PLACED, translate};
use super::nat::{Wish, open};
use super::packet::Packet;
use super::rewrite::End;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::start::{Start, patterns_of_arrival, start};
use super::tables::Tables;
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
    if packet.call::<PlaceOut, T>(tables, scratch, note as u32) == LOST {
        return Verdict::Drop(Stat::FragmentWithoutFirst);
    }
    if looping {
        packet.set_note(scratch.tracked.note());
    }
    let in_patterns = patterns_of_arrival(tables, arrival, scratch);
    scratch.ask(in_patterns, scratch.patterns(&scratch.device));

    if scratch.meets_nat()
        && scratch.made_here
        && let Decision::Drop(stat) = traverse_nat(packet, tables, BaseChain::NatOutput, scratch)
    {
        return Verdict::Drop(stat);
    }
    // A reply to a flow whose source was translated on loopback or at LOCAL_IN: its destination is
    // restored at LOCAL_OUT.
    if scratch.tracked.translated
        && scratch.tracked.direction == 1
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
            device: packet.device(),
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
                    wish.address = masquerade_address(&scratch.device, &scratch.headers);
                    if wish.address == [0; 4] {
                        return Verdict::Drop(Stat::NoMasqueradeAddress);
                    }
                    // The flow of a later fragment's first one is not stored, or was not: the
                    // fragment must not leave with its inner address.
                    if scratch.tracked.replayed
                        && !scratch.tracked.translated
                        && wish.address != scratch.headers.key.source
                    {
                        return Verdict::Drop(Stat::NoFlowEntry);
                    }
                }
            }
        }
        if scratch.tracked.opens {
            if let Err(stat) = open(packet, tables, scratch) {
                return Verdict::Drop(stat);
            }
            scratch.take_translation();
            if scratch.device.flags & Device::LOOPBACK != 0 {
                // INPUT sees the label with what POSTROUTING did to the flow.
                packet.set_note(scratch.tracked.note());
            }
        }
    }
    if !scratch.has_nat() || scratch.tracked.direction != 0 {
        return Verdict::Pass;
    }
    if !scratch.tracked.translated && scratch.tracked.ct & ct::SNAT != 0 {
        // Its flow ended while the packet was on the way, or just ended with it: it must not leave
        // with its inner address.
        if !last_words(tables, scratch) {
            return Verdict::Drop(Stat::NoFlowEntry);
        }
    }
    if scratch.tracked.translated && translate(packet, tables, scratch, End::Source).is_none() {
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
            let first = borrow(
                tables,
                &mut scratch.headers,
                &mut scratch.outcomes,
                Side::Egress,
            );
            if first.found {
                follow(tables, scratch, false, first);
            }
            return first.found as u32;
        }
        if note & NOTE_SEEN == 0 {
            // What this host makes may answer a flow whose source was translated on its way in.
            track(packet, tables, scratch, scratch.aliases);
            if scratch.made_here && scratch.headers.icmp as u8 == Icmp::Error as u8 {
                attach(packet, tables, scratch);
            }
        } else if scratch.headers.icmp as u8 == Icmp::Error as u8 {
            scratch.tracked.set_note(note);
            if scratch.tracked.direction == 0 {
                // Its source may have to be translated. (In the other direction all is done.)
                about(packet, tables, scratch, true);
                scratch.tracked.take_label(note);
            }
        } else {
            scratch.tracked.set_note(note);
            look_up(tables, scratch, false);
            // Only what ingress took for a flow's first packet opens one: a packet that ended its flow
            // is without a flow here, and opens none.
            scratch.tracked.opens &= note & NOTE_OPENS != 0;
        }
        lend(tables, scratch, Side::Egress);
        PLACED
    }
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
    if flow.is_alias() && flow.status.get() & Flow::LOW_OPENED == opened {
        // It bears its translation already: netfilter knows the connection, too, and was first.
        if let Some(flow) = tables.flow(&flow.other) {
            flow.status.set(flow.status.get() | Flow::FOREIGN);
        }
        return true;
    }
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
    scratch.tracked.endpoint = outside(flow);
    scratch.tracked.translated = true;
    if status & Flow::DYING != 0 {
        end_flow(tables, &lookup.key, flow);
    }
    true
}
