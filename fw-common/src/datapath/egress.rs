//! The egress hook: OUTPUT for what this host sends, FORWARD for what it passes on, and the
//! translation of sources.

use super::Verdict;
use super::classify::{Decision, traverse, traverse_nat};
use super::conntrack::{
    NOTE_OPENS, NOTE_SEEN, NOTE_SENT_ON, about, attach, end_flow, follow, look_up, outside, track,
};
use super::facts::{LEAVING, gather};
use super::flow_mark;
use super::forward::remember;
use super::fragment::{Side, borrow, lend};
use super::gates::{passes, passes_raw};
use super::header::{Headers, Icmp, Part};
use super::ingress::{LOST, PLACED, translate};
use super::nat::{Wish, open};
use super::packet::Packet;
use super::reject::{FORWARD, LOOPBACK, NOTE_ANSWER, NOTE_ONWARD, close, refuse, send_away};
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
    let verdict = judge(packet, tables, scratch);
    flow_mark::keep(packet, tables, scratch);
    verdict
}

#[inline(always)]
fn judge<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    if packet.is_of_vlan() {
        return Verdict::Pass;
    }
    match enter(packet, scratch) {
        SEEN => return Verdict::Pass,
        ONWARD => return Verdict::Redirect,
        _ => {}
    }
    match start(packet, tables, scratch) {
        Start::Judge => {}
        Start::NotOurs => return Verdict::Pass,
        Start::Over(verdict) => return verdict,
    }
    scratch.made_here = scratch.came_by == 0;
    gather(packet, tables, scratch, LEAVING);
    scratch.fast = false;
    if scratch.made_here {
        let raw = (BaseChain::RawOutput, Side::Egress);
        if !passes_raw(packet, tables, scratch, raw, scratch.note as u16) {
            return Verdict::Drop(Stat::Policy);
        }
    }
    scratch.aliases = scratch.has_nat() && scratch.made_here;
    if packet.call::<PlaceOut, T>(tables, scratch, scratch.note) == LOST {
        return Verdict::Drop(Stat::FragmentWithoutFirst);
    }
    flow_mark::find(packet, tables, scratch, flow_mark::EGRESS);
    if scratch.device.flags & Device::LOOPBACK != 0 {
        packet.set_note(scratch.tracked.note());
    }
    let in_patterns = patterns_of_arrival(tables, scratch.came_by, scratch);
    scratch.ask(in_patterns, scratch.patterns(&scratch.device));

    let mangle = if scratch.made_here {
        BaseChain::MangleOutput
    } else {
        BaseChain::MangleForward
    };
    if !passes(packet, tables, scratch, mangle) {
        return Verdict::Drop(Stat::Policy);
    }
    if scratch.meets_nat()
        && scratch.made_here
        && !scratch.answer.in_hand
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
        BaseChain::FilterOutput.id(scratch.headers.family)
    } else {
        BaseChain::FilterForward.id(scratch.headers.family)
    };
    match traverse(packet, tables, chain, scratch) {
        Decision::Drop(stat) => return Verdict::Drop(stat),
        Decision::Reject => return refuse(packet, tables, scratch, FORWARD),
        Decision::Accept | Decision::Masquerade { .. } => {}
    }
    if !scratch.made_here {
        remember(tables, scratch, scratch.came_by, packet.device());
    }
    let security = if scratch.made_here {
        BaseChain::SecurityOutput
    } else {
        BaseChain::SecurityForward
    };
    if !passes(packet, tables, scratch, security)
        || !passes(packet, tables, scratch, BaseChain::ManglePostrouting)
    {
        return Verdict::Drop(Stat::Policy);
    }
    if scratch.answer.in_hand && send_away(packet, tables, scratch) {
        return Verdict::Answer;
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
                // No nat table has REJECT.
                Decision::Accept | Decision::Reject => {}
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
                        && !scratch.answer.in_hand
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

/// Results of [`enter`]: the packet was judged already.
const SEEN: u32 = 1;
/// It goes on to [`super::forward::Sending::route`].
const ONWARD: u32 = 2;

/// Reads the note of a packet that was here before, or was told about by ingress. An answer is one that
/// this host makes, whoever sent what it answers.
#[inline(never)]
fn enter<P: Packet>(packet: &mut P, scratch: &mut Scratch) -> u32 {
    let note = packet.note();
    scratch.came_by = packet.arrival_device();
    scratch.note = note as u32;
    scratch.answer.in_hand = note & NOTE_ANSWER != 0;
    if scratch.answer.in_hand {
        if note & NOTE_ONWARD != 0 {
            // The kernel has found its route on the way here. Loopback's programs judge it.
            packet.set_note(note & !NOTE_ONWARD);
            scratch.sending.route.device = LOOPBACK;
            return ONWARD;
        }
        packet.set_note(0);
        scratch.came_by = 0;
        return 0;
    }
    if note == NOTE_SENT_ON {
        // Who sent it on and this are one call on one CPU: nobody else can have left such a note.
        if scratch.sent_on == packet.device() {
            scratch.sent_on = 0;
            return SEEN;
        }
        scratch.note = 0;
    }
    if scratch.came_by == 0 {
        scratch.note = 0;
    }
    0
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
        let error = scratch.headers.icmp as u8 == Icmp::Error as u8;
        let skips = scratch.untracked && !error;
        if scratch.forget(skips as u32) != 0 {
            scratch.tracked.set_without_flow(ct::UNTRACKED);
        } else if note & NOTE_SEEN == 0 {
            // What this host makes may answer a flow whose source was translated on its way in.
            track(packet, tables, scratch, scratch.aliases);
            // Asked again, so that tracking is not gone through once for each answer.
            let error = scratch.headers.icmp as u8 == Icmp::Error as u8;
            if scratch.made_here && error && note & NOTE_ANSWER == 0 {
                attach(packet, tables, scratch);
                // One that carries a flow is its, whatever table raw says (`notrack_tg`,
                // net/netfilter/xt_CT.c).
                if scratch.untracked && scratch.tracked.ct == ct::INVALID {
                    scratch.tracked.set_without_flow(ct::UNTRACKED);
                }
            }
        } else if scratch.headers.icmp as u8 == Icmp::Error as u8 {
            scratch.tracked.set_note(note);
            if scratch.tracked.direction == 0 || note & NOTE_ANSWER != 0 {
                // Its source may have to be translated. (In the other direction all is done, but
                // for an answer.)
                about(packet, tables, scratch, true);
                let direction = scratch.tracked.direction;
                scratch.tracked.take_label(note);
                if note & NOTE_ANSWER != 0 {
                    // What it answers may resemble another flow, which goes the other way.
                    scratch.tracked.translated &= direction == scratch.tracked.direction;
                    recall_outside(scratch);
                }
            }
        } else {
            scratch.tracked.set_note(note);
            let answer = note & NOTE_ANSWER != 0;
            // What a reset answers may have come under another name.
            let aliases = answer && scratch.aliases && scratch.tracked.direction == 1;
            let aliases = scratch.forget(aliases as u32) != 0;
            look_up(tables, scratch, aliases);
            // Only what ingress took for a flow's first packet opens one: a packet that ended its flow
            // is without a flow here, and opens none.
            scratch.tracked.opens &= note & NOTE_OPENS != 0;
            if answer {
                // It meets nat's chain, but opens nothing.
                scratch.tracked.opens = false;
                scratch.tracked.replayed = note & NOTE_OPENS != 0;
                close(tables, scratch);
            }
        }
        lend(tables, scratch, Side::Egress);
        PLACED
    }
}

/// An error about a reply that has ended its translated flow: the name by which that came in is still
/// known, as the error is made on the spot.
#[inline(always)]
fn recall_outside(scratch: &mut Scratch) {
    let tracked = &mut scratch.tracked;
    if tracked.direction == 0 && !tracked.translated && tracked.ct & ct::SNAT != 0 {
        tracked.endpoint = scratch.transit_outside;
        tracked.translated = true;
        tracked.error = true;
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
