//! ICMP errors: the flow that they are about.

use super::{Aliases, NO_FLOW, find, nat_labels};
use crate::abi::ct;
use crate::abi::flow::{Flow, FlowKey};
use crate::datapath::header::Headers;
use crate::datapath::packet::Packet;
use crate::datapath::quoted::{opens_flow, read_quoted};
use crate::datapath::scratch::Scratch;
use crate::datapath::stage::{Name, Stage};
use crate::datapath::tables::Tables;
use crate::datapath::zone;

/// An ICMP error is RELATED if it quotes a packet of a known flow and goes to that packet's
/// sender; otherwise it is INVALID (`nf_conntrack_inet_error`). It does not keep the flow alive.
#[inline(always)]
pub fn about<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    aliases: Aliases,
) {
    packet.call::<About, T>(tables, scratch, aliases as u32);
}

/// The stage of [`about`]; its argument says whether aliases are looked up.
pub struct About;

impl Stage for About {
    const NAME: Name = Name::About;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        aliases: u32,
    ) -> u32 {
        relate(packet, tables, scratch, aliases != 0);
        0
    }
}

#[inline(always)]
fn relate<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch, aliases: Aliases) {
    scratch.tracked.set_without_flow(ct::INVALID);
    if !mirror(packet, tables, scratch) {
        return;
    }
    if let Some(found) = find(tables, &mut scratch.lookup, aliases, tables.now()) {
        scratch
            .tracked
            .set_in_flow(&found, &scratch.lookup.key, ct::RELATED);
        scratch.tracked.error = true;
    }
}

/// An error about a packet on loopback that has ended its flow, which still tells what both its ends were: by its
/// label, and the tuple that [`about`] has looked up in vain.
#[inline(always)]
pub(in crate::datapath) fn recall_ended<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let opened = scratch.lookup.write_key(FlowKey::FIRST);
    if !take_ended_key(tables, scratch, opened) {
        scratch.lookup.key.set_kind(FlowKey::SECOND);
        if !take_ended_key(tables, scratch, opened) {
            return;
        }
    }
    let (tracked, key) = (&mut scratch.tracked, &scratch.lookup.key);
    let Some(flow) = tables.flow(key) else {
        return;
    };
    let status = flow.status.get();
    let labels = ct::SNAT | ct::DNAT | ct::RENAMED;
    if status & Flow::DYING == 0 || (tracked.ct ^ nat_labels(status)) & labels != 0 {
        return;
    }
    if tracked.direction != 0 {
        tracked.set_reply(status, key);
    } else {
        tracked.set_original(flow, status);
    }
}

/// Whether the key is that of a flow which goes so, or becomes it: replies bear the alias.
#[inline(never)]
fn take_ended_key<T: Tables>(tables: &T, scratch: &mut Scratch, opened: u32) -> bool {
    let key = &mut scratch.lookup.key;
    let Some(record) = tables.flow(key) else {
        return false;
    };
    let reply = scratch.tracked.direction != 0;
    let same_way = (record.status.get() ^ opened) & Flow::LOW_OPENED == 0;
    if record.is_alias() != reply || same_way == reply && !key.is_to_itself() {
        return false;
    }
    if reply {
        key.set_alike(&record.other);
    }
    true
}

/// Prepares the look-up for an ICMP error: the quoted packet went the other way, and its mirror
/// image is what would come in here. False if there is none, or if the error does not go to its
/// sender.
#[inline(always)]
pub(in crate::datapath) fn mirror<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> bool {
    if !read_quoted(packet, tables, &scratch.headers, &mut scratch.quoted) {
        return false;
    }
    if scratch.headers.key.destination != scratch.quoted.tuple.source {
        return false;
    }
    zone::take_of_quoted(packet, scratch);
    let quoted = &scratch.quoted.tuple;
    let mirror = &mut scratch.lookup.tuple;
    mirror.source = quoted.destination;
    mirror.destination = quoted.source;
    mirror.ports = quoted.ports.rotate_left(16);
    mirror.protocol = quoted.protocol;
    mirror.family = quoted.family;
    mirror.zone = scratch.headers.zone;
    true
}

/// An ICMP error that this host makes itself carries the flow of the packet that it is about, even
/// if that flow is not stored yet (`nf_ct_attach` in net/ipv4/icmp.c and net/ipv6/icmp.c). Sets the
/// label right that [`track`] gave it.
#[inline(never)]
pub fn attach<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) {
    // Neighbour discovery's redirect is no ICMP error to the kernel that makes one
    // (`ndisc_send_redirect`, net/ipv6/ndisc.c).
    if scratch.headers.is_v6() && scratch.headers.is_redirect() {
        return;
    }
    if !read_quoted(packet, tables, &scratch.headers, &mut scratch.quoted)
        || scratch.headers.key.destination != scratch.quoted.tuple.source
    {
        return;
    }
    let unknown = scratch.tracked.ct == ct::INVALID;
    let mut state = ct::RELATED;
    let mut unsettled = false;
    let mut stored = false;
    let direction = if is_about_transit(scratch) {
        // About an INVALID packet: it has no flow to carry, though its like may open one.
        if scratch.transit_direction == NO_FLOW {
            if !zone::is_taken(scratch.transit.protocol) {
                scratch.note |= (scratch.transit_label & ct::UNTRACKED) as u32;
            }
            return;
        }
        // Replies bear names of their own, by which tracking has found their flow, unless both
        // endpoints are the same. What goes the other way may resemble another flow.
        let names_itself = scratch.quoted.tuple.is_to_itself()
            && (scratch.headers.is_v6() || is_the_kernels(&scratch.headers));
        if scratch.transit_direction != 0 && !unknown && !names_itself {
            return;
        }
        // The one whose source has become its destination is found by its alias, and its answer's
        // destination is restored here.
        let tracked = &scratch.tracked;
        let labels = tracked.ct & (ct::SNAT | ct::DNAT | ct::RENAMED);
        let answers = tracked.stored && tracked.direction == scratch.transit_direction ^ 1;
        // What opens a flow is in none yet: another one is.
        let answers = answers && !scratch.transit_opens;
        let is_its = answers && labels == scratch.transit_label;
        if names_itself && is_its && labels != 0 {
            return;
        }
        // Its mark is kept where tracking has found it.
        stored = is_its;
        state |= scratch.transit_label;
        unsettled = scratch.transit_opens;
        scratch.transit_direction ^ 1
    } else if unknown
        && is_the_kernels(&scratch.headers)
        && !zone::says_nothing(scratch)
        && opens_flow(packet, &scratch.quoted, scratch.features)
    {
        1
    } else {
        return;
    };
    let mark = scratch.tracked.mark;
    scratch.tracked.set_without_flow(state);
    if stored {
        scratch.tracked.stored = true;
        scratch.tracked.mark = mark;
    }
    scratch.tracked.direction = direction;
    scratch.tracked.unsettled = unsettled || unknown;
    if scratch.tracked.has_source_ahead() {
        // The flow is not stored yet, or the packet has ended it: the error comes from where the
        // packet was sent to, as its sender knows it.
        let end = scratch.transit_outside;
        scratch.tracked.set_source(&end.address, end.port);
        scratch.tracked.error = true;
    }
}

/// Whether the ICMP error in hand quotes the packet that this CPU is forwarding, or delivering on
/// loopback ([`Scratch::note_transit`]).
#[inline(always)]
pub(in crate::datapath) fn is_about_transit(scratch: &Scratch) -> bool {
    let (quoted, transit) = (&scratch.quoted.tuple, &scratch.transit);
    quoted.ports == transit.ports
        && quoted.protocol == transit.protocol
        && quoted.source == transit.source
        && quoted.destination == transit.destination
}

/// Whether the kernel made the ICMP error in hand, and not a local process: it gives its IPv4 errors
/// the precedence "internetwork control" (`__icmp_send` in net/ipv4/icmp.c). This finds those that
/// it makes later, when a neighbour does not answer. IPv6 has no such mark.
#[inline(always)]
fn is_the_kernels(headers: &Headers) -> bool {
    !headers.is_v6() && headers.tos & 0xe0 == 0xc0
}
