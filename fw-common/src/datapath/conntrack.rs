//! Connection tracking: which flow a packet belongs to, and what that makes of it. The labels are
//! netfilter's (`nf_conntrack_in`, net/netfilter/nf_conntrack_core.c).

mod errors;
mod find;
mod tracked;

pub use errors::{About, about, attach};
pub(super) use errors::{is_about_transit, mirror, recall_ended};
pub use find::{Aliases, Found, find, second};
pub use tracked::{
    NO_FLOW, NOTE_ABOUT_UNTRACKED, NOTE_OPENS, NOTE_SEEN, NOTE_SENT_ON, NOTE_TRANSIT, Tracked,
    nat_labels,
};

use super::forward::forward;
use super::fragment::Borrowed;
use super::header::{Headers, Icmp, L4_V4, Part, protocol};
use super::packet::Packet;
use super::scratch::Scratch;
use super::sctp::{self, ReadChunks};
use super::stage::{Name, Stage};
use super::tables::Tables;
use super::tcp::{self, Segment, flag};
use super::tuple::Lookup;
use super::window::{option, read_options};
use crate::abi::blob::{HeaderFields, Timeout};
use crate::abi::ct;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};

/// Removes a flow and its alias. (Inlined, as what it calls is at the bottom of the stack.)
#[inline(always)]
pub fn end_flow<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) {
    let status = flow.status.get();
    flow.status.set(status | Flow::DYING);
    if has_links(status) {
        tables.unlink(key, flow);
    }
    remove(tables, key, flow);
}

/// Whether more than its key and its alias leads to a flow.
#[inline(always)]
fn has_links(status: u32) -> bool {
    status & Flow::LISTED != 0 || status & Flow::TRANSLATED == Flow::TRANSLATED
}

/// Removes a flow that is in no list, and its alias.
#[inline(always)]
fn remove<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) {
    let status = flow.status.get();
    if status & Flow::TRANSLATED != 0 {
        tables.remove_flow(&flow.other);
    }
    if tables.remove_flow(key) && status & Flow::EARLY != 0 {
        tables.free_place(key);
    }
}

/// Tracks the packet in the scratch space and moves its flow on; true if the fast path sent it on.
#[inline(never)]
pub fn track<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    aliases: Aliases,
) -> bool {
    // Also for what is not looked up: the packet before left what it met.
    scratch.lookup.met = 0;
    if scratch.headers.broken {
        scratch.tracked.set_without_flow(ct::INVALID);
        return false;
    }
    match scratch.headers.icmp {
        Icmp::Untracked => {
            scratch.tracked.set_without_flow(ct::UNTRACKED);
            return false;
        }
        Icmp::Other => {
            scratch.tracked.set_without_flow(ct::INVALID);
            return false;
        }
        Icmp::Error => {
            about(packet, tables, scratch, aliases);
            return false;
        }
        Icmp::No | Icmp::Request | Icmp::Reply => {}
    }
    scratch.lookup.tuple.set(&scratch.headers);
    if scratch.headers.key.protocol as u8 == protocol::TCP {
        return track_tcp(packet, tables, scratch, aliases);
    }
    let sctp = scratch.headers.key.protocol as u8 == protocol::SCTP;
    if sctp {
        packet.call::<ReadChunks, T>(tables, scratch, 0);
    }
    let now = tables.now();
    let Some(found) = find(tables, &mut scratch.lookup, aliases, now) else {
        look_for_others(tables, scratch);
        // An answer that nobody asked for does not open a flow, nor does one in a flow that is cut.
        if scratch.headers.icmp as u8 == Icmp::Reply as u8
            || scratch.lookup.met == Lookup::BACK
            || sctp && !opens_association(tables, scratch)
        {
            scratch.tracked.set_without_flow(ct::INVALID);
        } else {
            scratch.tracked.set_opening();
        }
        return false;
    };
    if scratch.fast && forward(packet, tables, scratch, &found, now) {
        return true;
    }
    scratch.tracked.set_label(&found, &scratch.lookup.key);
    let timeout = if sctp {
        tables.advance_sctp(found.flow, &scratch.chunks, found.is_reply() as u32)
    } else {
        advance_untimed(&scratch.headers, found.flow, now)
    };
    // The verifier would explore the rest for each.
    let timeout = scratch.forget(timeout);
    if timeout >= tcp::IGNORED {
        if timeout == tcp::INVALID {
            scratch.tracked.set_without_flow(ct::INVALID);
        } else {
            expect(tables, &scratch.lookup, &found);
            settle(tables, scratch, &found);
        }
        return false;
    }
    refresh(tables, scratch.place(), found.flow, timeout, now);
    expect(tables, &scratch.lookup, &found);
    settle(tables, scratch, &found);
    false
}

/// Tracks a packet that is known to belong to no flow, and to be no ICMP error.
#[inline(always)]
pub fn track_stranger(scratch: &mut Scratch) {
    let headers = &scratch.headers;
    let opens = match headers.icmp {
        Icmp::Untracked => return scratch.tracked.set_without_flow(ct::UNTRACKED),
        Icmp::Reply | Icmp::Other | Icmp::Error => false,
        Icmp::No | Icmp::Request if headers.broken => false,
        Icmp::No if headers.key.protocol as u8 == protocol::TCP => {
            let segment = Segment::of_flags(headers.tcp_flags, scratch.features);
            segment.flags_are_valid() && segment.opens()
        }
        Icmp::No | Icmp::Request => true,
    };
    if opens {
        scratch.tracked.set_opening();
    } else {
        scratch.tracked.set_without_flow(ct::INVALID);
    }
}

#[inline(always)]
fn track_tcp<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    aliases: Aliases,
) -> bool {
    if !read_segment(packet, scratch) || !scratch.segment.flags_are_valid() {
        scratch.tracked.set_without_flow(ct::INVALID);
        return false;
    }
    let now = tables.now();
    if let Some(found) = find(tables, &mut scratch.lookup, aliases, now) {
        read_options(packet, tables, scratch, sack_permitted(&found));
        if scratch.headers.part as u8 == Part::First as u8 {
            be_liberal(found.flow);
        }
        if scratch.fast && forward(packet, tables, scratch, &found, now) {
            return true;
        }
        scratch.tracked.set_label(&found, &scratch.lookup.key);
        let outcome = tables.advance_tcp(found.flow, &scratch.segment, found.is_reply());
        // The verifier would explore the rest for each outcome.
        match scratch.forget(outcome) {
            tcp::REOPENED => reopen(tables, &scratch.lookup, &found),
            tcp::INVALID => {
                scratch.tracked.set_without_flow(ct::INVALID);
                return false;
            }
            tcp::LOST_TRACK => {
                shorten(tables, scratch.place(), found.flow, now);
                scratch.tracked.set_without_flow(ct::INVALID);
                return false;
            }
            // The flow ends with this packet, which still carries its label and, if the flow is
            // translated, still has to be translated on its way out.
            tcp::ENDED => {
                let status = found.flow.status.get();
                if scratch.features & HeaderFields::CONNECTIONS != 0 {
                    // Rules may still ask for its record.
                    let seen = if found.is_reply() {
                        Flow::SEEN_REPLY
                    } else {
                        0
                    };
                    found.flow.status.set(status | seen | Flow::DYING);
                    return false;
                }
                // What this host gets or sends was translated when it was found; only the source of
                // a forwarded packet is still ahead. On loopback, INPUT may answer it, which is told
                // to whoever sent it. Its mark may be asked for at every hook.
                let waits = if scratch.features & HeaderFields::FLOW_MARKS != 0 {
                    true
                } else if scratch.made_here {
                    scratch.device.flags & Device::LOOPBACK != 0 && status & Flow::TRANSLATED != 0
                } else {
                    scratch.tracked.has_source_ahead()
                };
                if !waits {
                    end_found(tables, &scratch.lookup, &found);
                    return false;
                }
                found.flow.status.set(status | Flow::DYING);
                found.flow.expires.set(now.wrapping_add(DYING_GRACE));
                return false;
            }
            tcp::IGNORED => {
                settle(tables, scratch, &found);
                return false;
            }
            timeout => {
                refresh(tables, scratch.place(), found.flow, timeout, now);
                expect(tables, &scratch.lookup, &found);
                settle(tables, scratch, &found);
                return false;
            }
        }
    }
    look_for_others(tables, scratch);
    // What is cut is not picked up in the middle.
    let cut = scratch.lookup.is_cut() && scratch.segment.flags & flag::SYN == 0;
    if scratch.segment.opens() && !cut {
        scratch.tracked.set_opening();
    } else {
        scratch.tracked.set_without_flow(ct::INVALID);
    }
    false
}

/// A packet of this host's own that no flow was found for: see [`find::stands_in`].
#[inline(always)]
fn look_for_others<T: Tables>(tables: &T, scratch: &mut Scratch) {
    if scratch.lookup.met == Lookup::OTHERS
        && scratch.made_here
        && find::stands_in(tables, &mut scratch.lookup)
    {
        scratch.lookup.met = Lookup::STANDS_IN;
    }
}

/// Whether the side that receives the packet has permitted selective acknowledgements.
#[inline(always)]
pub fn sack_permitted(found: &Found<'_>) -> bool {
    let receiver = if found.is_reply() {
        &found.flow.sent[0]
    } else {
        &found.flow.sent[1]
    };
    receiver.flags() & option::SACK_PERMITTED != 0
}

/// Windows of a flow with fragmented segments are not held against anybody from now on: how long a
/// segment is, only its last fragment tells, while netfilter puts it together before it looks.
#[inline(always)]
pub fn be_liberal(flow: &Flow) {
    flow.sent[0].add_flags(option::LIBERAL);
    flow.sent[1].add_flags(option::LIBERAL);
}

/// A flow whose end was out of its window does not live on for days (`nf_tcp_handle_invalid`).
#[inline(never)]
fn shorten<T: Tables>(tables: &T, place: u32, flow: &Flow, now: u64) {
    const LONG: u64 = 120_000_000_000;
    let old = flow.expires.get();
    if old < now.wrapping_add(LONG) {
        return;
    }
    refresh(tables, place, flow, Timeout::Unacknowledged as u32, now);
    if old < flow.expires.get() {
        flow.expires.set(old);
    }
}

/// How long a translated flow that has ended waits for its last packet to leave, or to come back in on loopback.
const DYING_GRACE: u64 = 1_000_000_000;

/// Reads a TCP packet's segment. A first fragment's length is that of what it carries.
#[inline(always)]
pub fn read_segment<P: Packet>(packet: &P, scratch: &mut Scratch) -> bool {
    let length = scratch.headers.l4_len as u32;
    // Where the usual packet has it, it can be read in place.
    if scratch.headers.l4 as usize == L4_V4
        && let Some(frame) = packet.window::<{ L4_V4 + 20 }>()
    {
        scratch.segment = Segment::new(frame, L4_V4, length, scratch.features);
        return true;
    }
    match packet.load::<20>(scratch.headers.l4 as u32) {
        Some(header) => {
            scratch.segment = Segment::new(&header, 0, length, scratch.features);
            true
        }
        None => false,
    }
}

/// A later fragment's place: its first fragment's, whose flow is not moved on again. (Not inlined, so
/// that its stack is not under that of [`track`].)
#[inline(never)]
pub fn follow<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    aliases: Aliases,
    first: Borrowed,
) {
    scratch.tracked.set_without_flow(first.ct);
    scratch.tracked.direction = first.direction;
    packet.call::<LookUp, T>(tables, scratch, aliases as u32);
    scratch.tracked.opens = false;
    scratch.tracked.replayed = first.opened;
    scratch.tracked.refused = first.refused;
    scratch.tracked.packets = 0;
    if first.translated && !scratch.tracked.translates_destination() {
        // The flow is not stored yet, or was not.
        let end = scratch.outcomes.destination;
        scratch.tracked.set_destination(&end.address, end.port);
        scratch.tracked.original.address = scratch.headers.key.destination;
        scratch.tracked.original.port = scratch.headers.flow_ports as u16;
        scratch.tracked.lacks_name = true;
    }
}

/// Looks a packet up whose label is known already, without moving its flow on. The argument says
/// whether it may bear an alias.
pub struct LookUp;

impl Stage for LookUp {
    const NAME: Name = Name::LookUp;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        aliases: u32,
    ) -> u32 {
        look_up(tables, scratch, aliases != 0);
        0
    }
}

#[inline(always)]
fn look_up<T: Tables>(tables: &T, scratch: &mut Scratch, aliases: Aliases) {
    let (label, direction) = (scratch.tracked.ct, scratch.tracked.direction);
    if direction == NO_FLOW {
        return;
    }
    scratch.lookup.tuple.set(&scratch.headers);
    scratch.tracked.opens = label & ct::NEW != 0;
    if let Some(found) = find(tables, &mut scratch.lookup, aliases, 0) {
        if found.direction() == direction {
            scratch
                .tracked
                .set_in_flow(&found, &scratch.lookup.key, label);
            scratch.tracked.ct = label | scratch.tracked.ct & (ct::DNAT | ct::RENAMED);
            if direction == 0 && found.flow.status.get() & Flow::FOREIGN != 0 {
                found
                    .flow
                    .status
                    .set(found.flow.status.get() & !Flow::FOREIGN);
            }
            return;
        }
    } else {
        return;
    }
    // The flow goes the other way: the packet's is the second one. (Found already, if nothing bears the
    // first name any more.)
    let lookup = &mut scratch.lookup;
    let opened = lookup.write_key(FlowKey::SECOND);
    let place = tables.find_second(lookup, aliases, opened, 0);
    if let Some(found) = find::found_second(tables, lookup, place)
        && found.direction() == direction
    {
        scratch.tracked.set_in_flow(&found, &lookup.key, label);
        scratch.tracked.ct = label | scratch.tracked.ct & (ct::DNAT | ct::RENAMED);
    }
}

/// Whether a packet of SCTP that belongs to no flow can open one: it is tried on a flow that is drafted anew
/// when it is stored.
#[inline(always)]
fn opens_association<T: Tables>(tables: &T, scratch: &Scratch) -> bool {
    tables.advance_sctp(&scratch.draft.flow, &scratch.chunks, sctp::OPENS) < tcp::IGNORED
}

/// UDP, ICMP and the rest: a timer, and for UDP and GRE the proof of a lasting exchange.
#[inline(always)]
pub fn advance_untimed(headers: &Headers, flow: &Flow, now: u64) -> u32 {
    let protocol = headers.key.protocol as u8;
    let status = flow.status.get();
    if status & Flow::SEEN_REPLY == 0 {
        return untimed(headers);
    }
    let stream = match protocol {
        // Only an exchange that goes on for two seconds is a stream (`nf_conntrack_udp_packet`).
        protocol::UDP
            if status & Flow::ASSURED == 0
                && now <= flow.opened_at().wrapping_add(UDP_STREAM_AFTER) =>
        {
            return Timeout::Udp as u32;
        }
        // One of UDP-Lite is as soon as both ends have spoken (`nf_conntrack_udplite_packet`).
        protocol::UDP | protocol::UDPLITE => Timeout::UdpStream,
        // And so is a tunnel (`nf_conntrack_gre_packet`).
        protocol::GRE => Timeout::GreStream,
        _ => return untimed(headers),
    };
    flow.status.set(status | Flow::ASSURED);
    stream as u32
}

const UDP_STREAM_AFTER: u64 = 2_000_000_000;

/// The timeout of a flow of a protocol without states.
#[inline(always)]
fn untimed(headers: &Headers) -> u32 {
    let timeout = match headers.key.protocol as u8 {
        protocol::UDP | protocol::UDPLITE => Timeout::Udp,
        protocol::ICMP => Timeout::Icmp,
        protocol::ICMPV6 => Timeout::Icmpv6,
        protocol::GRE => Timeout::Gre,
        _ => Timeout::Generic,
    };
    timeout as u32
}

/// Sets when the flow ends, from the policy's cells of timeouts. The timeout is a [`Timeout`], or what
/// [`tcp::lifetime`] takes.
#[inline(never)]
pub fn refresh<T: Tables>(tables: &T, place: u32, flow: &Flow, timeout: u32, now: u64) {
    let seconds = match tables.front(place) {
        Some(front) => tcp::lifetime(&front[tcp::timeout_cell(timeout)].w, timeout),
        None => 0,
    };
    flow.expires
        .set(now.wrapping_add(seconds as u64 * 1_000_000_000));
}

/// An embryonic flow lives longer now.
#[inline(always)]
fn expect<T: Tables>(tables: &T, lookup: &Lookup, found: &Found<'_>) {
    let flow = found.flow;
    let status = flow.status.get();
    if status & (Flow::EMBRYO | Flow::EARLY) == Flow::EMBRYO {
        tables.expect_embryo(&lookup.key, flow.expires.get());
        if status & Flow::DNAT != 0 {
            tables.expect_embryo(&flow.other, flow.expires.get());
        }
    }
}

/// Notes the first reply, after the packet got its label, and promotes a flow that both sides have
/// confirmed: an outsider's first packets never take a place in the confirmed table. The opener confirms
/// it by a packet behind the first reply; and one that is ASSURED, as its other side goes on and on, must
/// not make way for others' first packets either (`early_drop_list`, net/netfilter/nf_conntrack_core.c).
#[inline(never)]
fn settle<T: Tables>(tables: &T, scratch: &Scratch, found: &Found<'_>) {
    let flow = found.flow;
    let status = flow.status.get();
    let proof = if found.is_reply() {
        if status & Flow::SEEN_REPLY == 0 {
            flow.status.set(status | Flow::SEEN_REPLY);
        }
        Flow::EMBRYO | Flow::ASSURED
    } else {
        Flow::EMBRYO | Flow::SEEN_REPLY
    };
    let proof = scratch.forget(proof);
    let status = flow.status.get();
    if status & proof == proof {
        if status & Flow::EARLY != 0 {
            flow.status.set(status & !(Flow::EMBRYO | Flow::EARLY));
            tables.free_place(&scratch.lookup.key);
            return;
        }
        // The alias first: what is promoted may be used for something else at once.
        if status & Flow::DNAT != 0
            && let Some(alias) = tables.flow(&flow.other)
        {
            let _ = tables.promote_flow(&flow.other, alias);
        }
        flow.status.set(status & !Flow::EMBRYO);
        if tables.promote_flow(&scratch.lookup.key, flow).is_err() {
            flow.status.set(status);
        }
    }
}

/// Ends a flow between whose ends another one begins. If nothing else leads to it, the next one takes its
/// place (`nat::succeed`), which costs less than making room first.
#[inline(always)]
fn reopen<T: Tables>(tables: &T, lookup: &Lookup, found: &Found<'_>) {
    let status = found.flow.status.get();
    if has_links(status) {
        end_found(tables, lookup, found);
    } else {
        found.flow.status.set(status | Flow::DYING);
    }
}

/// Ends a flow that a tuple led to.
#[inline(never)]
fn end_found<T: Tables>(tables: &T, lookup: &Lookup, found: &Found<'_>) {
    end_flow(tables, &lookup.key, found.flow);
}

/// Drafts a flow as its first packet makes it.
#[inline(never)]
pub fn draft_flow<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) {
    scratch.draft.flow = Flow::default();
    let now = tables.now();
    let mut timeout = untimed(&scratch.headers);
    if scratch.headers.key.protocol as u8 == protocol::TCP && read_segment(packet, scratch) {
        read_options(packet, tables, scratch, true);
        let flow = &scratch.draft.flow;
        tcp::open(flow, &scratch.segment);
        timeout = tables.advance_tcp(flow, &scratch.segment, false);
        if scratch.headers.part as u8 == Part::First as u8 {
            be_liberal(flow);
        }
    }
    if scratch.headers.key.protocol as u8 == protocol::SCTP {
        packet.call::<ReadChunks, T>(tables, scratch, 0);
        timeout = tables.advance_sctp(&scratch.draft.flow, &scratch.chunks, sctp::OPENS);
    }
    if scratch.headers.key.protocol as u8 == protocol::UDP {
        scratch.draft.flow.set_opened_at(now);
    }
    scratch.mark.draft(&scratch.draft.flow);
    refresh(tables, scratch.place(), &scratch.draft.flow, timeout, now);
}
