//! The egress hook: OUTPUT for what this host sends, FORWARD for what it passes on, and the
//! translation of sources.

use super::Verdict;
use super::classify::{Decision, traverse, traverse_nat};
use super::conntrack::{NO_FLOW, NOTE_ABOUT_UNTRACKED, NOTE_OPENS, NOTE_SENT_ON, end_flow};
use super::facts::{LEAVING, gather, gather_anew};
use super::flow_mark;
use super::forward::remember;
use super::fragment::{Side, note_refusal};
use super::gates::{passes, passes_raw};
use super::header::{Headers, Icmp};
use super::nat::{Wish, open};
use super::packet::Packet;
use super::place::{FORGOTTEN, LOST, PlaceOut, STANDS_IN};
use super::port::{PASSED, SWITCHED, departure, forget_arrival, is_not_asked, is_switching};
use super::reject::{FORWARD, LOOPBACK, NOTE_ANSWER, NOTE_ONWARD, refuse, send_away};
use super::rewrite::{End, is_refused_redirect, translate};
use super::scratch::Scratch;
use super::start::{Start, patterns_of_arrival, start};
use super::tables::Tables;
use super::translation::{Choose, IDENTIFIER, OUTPUT, SOURCE};
use super::zone;
use crate::abi::blob::BaseChain;
use crate::abi::ct;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;

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
    let started = start(packet, tables, scratch);
    if is_not_asked(packet, scratch) {
        return Verdict::Pass;
    }
    match started {
        Start::Judge => {}
        Start::NotOurs => return Verdict::Pass,
        Start::Over(verdict) => return verdict,
    }
    if scratch.device.is_port() {
        match departure(packet, tables, scratch) {
            SWITCHED => {}
            PASSED => return Verdict::Pass,
            _ => return Verdict::Drop(Stat::BridgePort),
        }
    } else if scratch.device.flags & Device::BRIDGE != 0 && is_switching(packet, scratch) {
        return Verdict::Pass;
    }
    scratch.made_here = scratch.came_by == 0;
    zone::take(tables, scratch);
    gather(packet, tables, scratch, LEAVING);
    scratch.fast = false;
    if scratch.made_here {
        flow_mark::find_of_answer(scratch);
        let raw = (BaseChain::RawOutput, Side::Egress);
        if !passes_raw(packet, tables, scratch, raw, scratch.note as u16) {
            return Verdict::Drop(Stat::Policy);
        }
    }
    scratch.aliases = scratch.has_nat() && scratch.made_here;
    match packet.call::<PlaceOut, T>(tables, scratch, scratch.note) {
        LOST => return Verdict::Drop(Stat::FragmentWithoutFirst),
        FORGOTTEN => return Verdict::Drop(Stat::NoFlowEntry),
        STANDS_IN => return Verdict::Drop(Stat::TakenOver),
        _ => {}
    }
    zone::settle(scratch);
    flow_mark::find(packet, tables, scratch, flow_mark::EGRESS);
    if scratch.device.flags & Device::LOOPBACK != 0 {
        zone::leave_note(packet, scratch, looped_note(scratch));
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
    if scratch.meets_nat() && scratch.made_here && !scratch.answer.in_hand {
        match traverse_nat(packet, tables, BaseChain::NatOutput, scratch) {
            Decision::Drop(stat) => return Verdict::Drop(stat),
            Decision::Translate => {
                if packet.call::<Choose, T>(tables, scratch, OUTPUT) == 0 {
                    return Verdict::Drop(scratch.reason);
                }
            }
            // No nat table has REJECT.
            Decision::Accept | Decision::Reject | Decision::Masquerade { .. } => {}
        }
        if scratch.opens_echo() {
            packet.call::<Choose, T>(tables, scratch, IDENTIFIER);
        }
        scratch.query.ct = scratch.tracked.ct;
        if scratch.device.flags & Device::LOOPBACK != 0 {
            zone::leave_note(packet, scratch, scratch.tracked.note());
        }
    }
    if scratch.made_here && is_refused_redirect(scratch) {
        return Verdict::Drop(Stat::Rewrite);
    }
    // Also of a reply to a flow whose source was translated on loopback or at LOCAL_IN: its
    // destination is restored at LOCAL_OUT.
    if scratch.tracked.translates_destination() {
        scratch.note_outside();
        if translate(packet, tables, scratch, End::Destination).is_none() {
            return Verdict::Drop(Stat::Rewrite);
        }
        gather_anew(packet, tables, scratch);
    }
    let chain = if scratch.made_here {
        BaseChain::FilterOutput.id(scratch.headers.family)
    } else {
        BaseChain::FilterForward.id(scratch.headers.family)
    };
    match traverse(packet, tables, chain, scratch) {
        Decision::Drop(stat) => return Verdict::Drop(stat),
        Decision::Reject => return refuse(packet, tables, scratch, FORWARD),
        Decision::Accept | Decision::Masquerade { .. } | Decision::Translate => {}
    }
    if !scratch.made_here {
        remember(tables, scratch, scratch.came_by, packet.device());
    }
    let security = if scratch.made_here {
        BaseChain::SecurityOutput
    } else {
        BaseChain::SecurityForward
    };
    if !passes(packet, tables, scratch, security) {
        return Verdict::Drop(Stat::Policy);
    }
    if scratch.device.is_port() {
        forget_arrival(tables, scratch);
    }
    if !passes(packet, tables, scratch, BaseChain::ManglePostrouting) {
        return Verdict::Drop(Stat::Policy);
    }
    if scratch.tracked.opens || scratch.tracked.replayed {
        let (nat, embryo) = (scratch.has_nat(), !scratch.made_here);
        let source = &scratch.headers.key.source;
        scratch.draft.wish.begin(source, nat, embryo);
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
                    wish.device = match scratch.device.master {
                        0 => packet.device(),
                        bridge => bridge,
                    };
                    set_masquerade_address(wish, &scratch.device, &scratch.headers);
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
                && !scratch.answer.in_hand
                && !scratch.tracked.translates_source()
                && !wish.takes_address(&scratch.headers.key.source)
            {
                return Verdict::Drop(Stat::NoFlowEntry);
            }
        }
        if scratch.tracked.refused {
            return Verdict::Drop(Stat::NoFlowEntry);
        }
        if scratch.tracked.opens {
            if let Err(stat) = open(packet, tables, scratch, !scratch.made_here) {
                note_refusal(tables, scratch);
                return Verdict::Drop(stat);
            }
            scratch.take_translation();
            if scratch.device.flags & Device::LOOPBACK != 0 {
                // INPUT sees the label with what POSTROUTING did to the flow.
                zone::leave_note(packet, scratch, scratch.tracked.note());
            }
        }
    }
    if !scratch.has_nat() {
        return Verdict::Pass;
    }
    let settled = scratch.tracked.translates_source() || scratch.tracked.is_foreign();
    if !settled && scratch.tracked.has_source_ahead() {
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
    if scratch.answer.in_hand && send_away(packet, tables, scratch) {
        return Verdict::Answer;
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
    let note = zone::read_note(packet.note(), scratch);
    scratch.came_by = packet.arrival_device();
    scratch.note = note as u32;
    scratch.answer.in_hand = note & NOTE_ANSWER != 0;
    if scratch.answer.in_hand {
        if note & NOTE_ONWARD != 0 {
            // The kernel has found its route on the way here. Loopback's programs judge it.
            zone::leave_note(packet, scratch, note & !NOTE_ONWARD);
            scratch.sending.route.device = LOOPBACK;
            return ONWARD;
        }
        // To a port of the bridge that it may leave by, it has been judged here.
        packet.set_note(NOTE_SENT_ON);
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
        scratch.zone_place = 0;
    }
    0
}

#[inline(never)]
fn set_masquerade_address(wish: &mut Wish, device: &Device, headers: &Headers) {
    if !headers.is_v6() {
        return wish.set_address(&[device.masquerade4, 0, 0, 0]);
    }
    // On loopback the destination is one of this host's addresses, and the best source for it is
    // itself (RFC 6724 5, rule 1; `ipv6_get_saddr_eval` in net/ipv6/addrconf.c).
    if device.flags & Device::LOOPBACK != 0 {
        return wish.set_address(&headers.key.destination);
    }
    wish.set_address(&device.masquerade6);
}

/// What a packet on loopback tells ingress. An answer still says that it is about a first packet, or about one that
/// is not tracked; of a reset, which may be tracked, nothing is left of that (`nf_conntrack_in`,
/// net/netfilter/nf_conntrack_core.c).
#[inline(always)]
fn looped_note(scratch: &Scratch) -> u16 {
    const FIRST: u16 = NOTE_ANSWER | NOTE_OPENS;
    let note = scratch.tracked.note();
    let before = scratch.note as u16;
    if scratch.tracked.direction != NO_FLOW {
        if before & FIRST == FIRST {
            note | FIRST
        } else {
            note
        }
    } else if before as u8 == ct::UNTRACKED && scratch.headers.icmp as u8 == Icmp::Error as u8 {
        note | NOTE_ABOUT_UNTRACKED
    } else {
        note
    }
}

/// Finds the translation of a flow that waits for its last packet, which this is; false if there
/// is none.
#[inline(never)]
fn last_words<T: Tables>(tables: &T, scratch: &mut Scratch) -> bool {
    scratch.lookup.tuple.set(&scratch.headers);
    let lookup = &mut scratch.lookup;
    let opened = lookup.write_key(FlowKey::FIRST);
    let mut found = tables.flow(&lookup.key);
    let alias = found.filter(|flow| flow.is_alias());
    if found.is_none_or(|flow| !goes_so(flow, opened)) {
        lookup.key.set_kind(FlowKey::SECOND);
        found = tables
            .flow(&lookup.key)
            .filter(|flow| goes_so(flow, opened));
    }
    let Some(flow) = found else {
        let Some(alias) = alias.filter(|alias| alias.status.get() & Flow::LOW_OPENED == opened)
        else {
            return false;
        };
        // It bears its translation already: netfilter knows the connection, too, and was first.
        if let Some(flow) = tables.flow(&alias.other) {
            flow.status.set(flow.status.get() | Flow::FOREIGN);
        }
        return true;
    };
    let status = flow.status.get();
    if status & Flow::SNAT == 0 {
        return false;
    }
    let (address, port) = flow.translated_source();
    scratch.tracked.set_source(address, port);
    if status & Flow::DYING != 0 {
        end_flow(tables, &lookup.key, flow);
    }
    true
}

/// Whether a flow, and no alias, was opened from that end: [`Flow::LOW_OPENED`] or 0.
#[inline(always)]
fn goes_so(flow: &Flow, opened: u32) -> bool {
    flow.status.get() & (Flow::ALIAS | Flow::LOW_OPENED) == opened
}
