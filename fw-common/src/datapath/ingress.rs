//! The ingress hook: tracking, translation of destinations, and INPUT for what is for this host.

use super::Verdict;
use super::classify::{Decision, traverse, traverse_nat};
use super::conntrack::{NOTE_SEEN, NOTE_SENT_ON};
use super::facts::{ARRIVING, gather, gather_anew, keep_link};
use super::flow_mark;
use super::fragment::Side;
use super::gates::{are_slow, count_forwarded, passes, passes_raw};
use super::log::note_link;
use super::nat::open;
use super::packet::{Destination, Packet};
use super::place::{LOST, PlaceAgain, PlaceIn, SENT_ON};
use super::port::{self, is_not_asked, is_switched, send_elsewhere, take_patterns};
use super::reject::{self, refuse};
use super::rewrite::{End, is_refused_redirect, translate};
use super::scratch::Scratch;
use super::start::{Start, start};
use super::tables::Tables;
use super::transit::TakeName;
use super::translation::{Choose, DESTINATION, IDENTIFIER, INPUT};
use super::zone;
use crate::abi::blob::{BaseChain, HeaderFields};
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// Judges a packet that came in by an interface.
///
/// Packets for this host end here, in INPUT. Others get their label and, if they are replies to a
/// translated flow, their destination back; FORWARD is egress's, which knows the way out.
#[inline(always)]
pub fn ingress<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    let verdict = judge(packet, tables, scratch);
    flow_mark::keep(packet, tables, scratch);
    verdict
}

#[inline(always)]
fn judge<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    if packet.is_of_vlan() {
        return Verdict::Pass;
    }
    let as_it_is = packet.note();
    let note = zone::read_note(as_it_is, scratch);
    packet.set_note(0);
    let others = packet.is_for_other_host();
    let started = start(packet, tables, scratch);
    if others && !scratch.device.is_port() || is_not_asked(packet, scratch) {
        return Verdict::Pass;
    }
    match started {
        Start::Judge => {}
        Start::NotOurs if has_priority_tags(packet, scratch.device.l2_len) => {
            return Verdict::Drop(Stat::Malformed);
        }
        Start::NotOurs => return Verdict::Pass,
        Start::Over(verdict) => return verdict,
    }
    // A frame that was judged at a port of this bridge comes up.
    let mut judged = false;
    scratch.port = 0;
    scratch.switching = 0;
    if scratch.device.flags & (Device::PORT4 | Device::PORT6 | Device::BRIDGE) != 0 {
        if scratch.device.is_port() {
            if !is_switched(packet, scratch) {
                return Verdict::Pass;
            }
            scratch.port = packet.device();
        } else if as_it_is & NOTE_SEEN == 0 {
            scratch.port = port::of_note(scratch, as_it_is);
        } else if scratch.may_be_transit() {
            scratch.port = scratch.transit_port;
            judged = true;
        }
        take_patterns(tables, scratch, packet.device());
    }
    scratch.made_here = false;
    gather(packet, tables, scratch, ARRIVING);
    scratch.fast = scratch.device.flags & Device::FAST != 0 && !are_slow(tables, scratch);
    // On loopback every packet has been through egress just now: its label came along, it is in
    // its flow, and both sides of the translation are settled (netfilter keeps the skb's nfct).
    let looped = scratch.device.flags & Device::LOOPBACK != 0
        && note & NOTE_SEEN != 0
        && !zone::is_tracked_anew(note, scratch);
    if looped || judged {
        scratch.note = note as u32;
        zone::take(tables, scratch);
    } else {
        scratch.note = 0;
        scratch.zone_place = 0;
    }
    if judged {
        if !is_for_this_host(packet, tables, scratch) {
            zone::leave_note(packet, scratch, note);
            return Verdict::Pass;
        }
        // It is not forwarded: the kernel's errors about it find its flow as they do about what comes up otherwise.
        scratch.transit.protocol = 0;
        if packet.call::<PlaceAgain, T>(tables, scratch, scratch.note) == LOST {
            return Verdict::Drop(Stat::NoFlowEntry);
        }
    } else {
        flow_mark::find_early(packet, tables, scratch);
        let raw = (BaseChain::RawPrerouting, Side::Ingress);
        if !passes_raw(packet, tables, scratch, raw, scratch.note as u16) {
            return Verdict::Drop(Stat::Policy);
        }
        match packet.call::<PlaceIn, T>(tables, scratch, scratch.note) {
            // The stack cannot complete a datagram of this host's without its first fragment, which
            // will be judged. A forwarded one is dropped at egress.
            LOST => return Verdict::Pass,
            SENT_ON => {
                packet.set_note(NOTE_SENT_ON);
                scratch.sent_on = scratch.sending.route.device;
                count_forwarded(tables, scratch);
                return Verdict::Redirect;
            }
            _ => {}
        }
    }
    zone::settle(scratch);
    let hook = if judged {
        flow_mark::EGRESS
    } else {
        flow_mark::INGRESS
    };
    flow_mark::find(packet, tables, scratch, hook);
    scratch.ask(scratch.patterns(&scratch.device), 1);

    if !judged && !passes(packet, tables, scratch, BaseChain::ManglePrerouting) {
        return Verdict::Drop(Stat::Policy);
    }
    if !judged && scratch.meets_nat() {
        match traverse_nat(packet, tables, BaseChain::NatPrerouting, scratch) {
            Decision::Drop(stat) => return Verdict::Drop(stat),
            Decision::Translate => {
                if packet.call::<Choose, T>(tables, scratch, DESTINATION) == 0 {
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
    }
    if is_refused_redirect(scratch) {
        return Verdict::Drop(Stat::Rewrite);
    }
    if scratch.tracked.translates_destination() {
        if zone::is_lost(tables, scratch) {
            return Verdict::Drop(Stat::Rewrite);
        }
        scratch.note_outside();
        if translate(packet, tables, scratch, End::Destination).is_none() {
            return Verdict::Drop(Stat::Rewrite);
        }
        gather_anew(packet, tables, scratch);
        if scratch.port != 0
            && send_elsewhere(packet, scratch)
            && scratch.device.flags & Device::BRIDGE != 0
        {
            scratch.switching = scratch.port;
        }
    }
    if scratch.note == 0 && (scratch.device.is_port() || goes_on(packet, tables, scratch)) {
        if scratch.tracked.lacks_name && packet.call::<TakeName, T>(tables, scratch, 0) == 0 {
            return Verdict::Drop(Stat::NoTransitName);
        }
        zone::leave_note(packet, scratch, scratch.tracked.note());
        if scratch.features & HeaderFields::LINKS != 0 {
            keep_link(tables, scratch, packet.device());
        }
        scratch.note_transit();
        if scratch.features & HeaderFields::ZONES != 0 {
            zone::note_arrival(scratch, 0);
        }
        if scratch.features & HeaderFields::LOGS != 0 {
            note_link(packet, scratch);
        }
        if scratch.switching != 0 {
            return Verdict::Redirect;
        }
        return Verdict::Pass;
    }

    if scratch.features & HeaderFields::ZONES != 0 {
        zone::note_arrival(scratch, 1);
    }
    if !passes(packet, tables, scratch, BaseChain::MangleInput) {
        return Verdict::Drop(Stat::Policy);
    }
    let chain = BaseChain::FilterInput.id(scratch.headers.family);
    match traverse(packet, tables, chain, scratch) {
        Decision::Drop(stat) => return Verdict::Drop(stat),
        Decision::Reject => return refuse(packet, tables, scratch, reject::INPUT),
        Decision::Accept | Decision::Masquerade { .. } | Decision::Translate => {}
    }
    if !passes(packet, tables, scratch, BaseChain::SecurityInput) {
        return Verdict::Drop(Stat::Policy);
    }
    let nat = scratch.has_nat();
    let source = &scratch.headers.key.source;
    scratch.draft.wish.begin(source, nat, true);
    if scratch.meets_nat() {
        match traverse_nat(packet, tables, BaseChain::NatInput, scratch) {
            Decision::Drop(stat) => return Verdict::Drop(stat),
            Decision::Translate => {
                if packet.call::<Choose, T>(tables, scratch, INPUT) == 0 {
                    return Verdict::Drop(scratch.reason);
                }
            }
            // No nat table has REJECT.
            Decision::Accept | Decision::Reject | Decision::Masquerade { .. } => {}
        }
    }
    if !scratch.tracked.opens {
        return translate_source(packet, tables, scratch);
    }
    if let Err(stat) = open(packet, tables, scratch, judged) {
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

/// LOCAL_IN is a place where sources are translated: of what reaches this host under a name which a
/// translated flow has taken, by the rules of nat's INPUT, and of replies to what OUTPUT redirected.
#[inline(always)]
fn translate_source<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    if scratch.tracked.translates_source()
        && translate(packet, tables, scratch, End::Source).is_none()
    {
        return Verdict::Drop(Stat::Rewrite);
    }
    Verdict::Pass
}

/// Whether a packet is FORWARD's business. One whose destination netfilter translates behind this hook is,
/// whatever it is yet.
#[inline(always)]
fn goes_on<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &Scratch) -> bool {
    scratch.tracked.is_foreign() || !is_for_this_host(packet, tables, scratch)
}

/// Whether a packet is INPUT's business. The table of local addresses decides; an address that is
/// not in it, though the kernel would not forward it either, may have been added a moment ago, and
/// so meets INPUT too: a stale table never lets a packet past every chain.
#[inline(always)]
pub(super) fn is_for_this_host<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &Scratch,
) -> bool {
    let headers = &scratch.headers;
    scratch
        .device
        .owns(headers.family, &headers.key.destination)
        || is_for_this_host_by_tables(packet, tables, scratch)
}

/// [`is_for_this_host`] for an address that the interface's record lacks.
#[inline(never)]
fn is_for_this_host_by_tables<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &Scratch,
) -> bool {
    let headers = &scratch.headers;
    tables.is_local(headers.family, &headers.key.destination)
        || !packet.is_forwardable(&Destination {
            family: headers.family,
            source: headers.key.source,
            destination: headers.key.destination,
        })
}
