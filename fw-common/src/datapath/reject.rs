//! REJECT: a refused packet becomes the answer to itself, and goes back.
//!
//! What is answered, and with what, is the kernel's (`nf_send_reset` and `nf_send_unreach` in
//! net/ipv4/netfilter/nf_reject_ipv4.c, `__icmp_send` in net/ipv4/icmp.c, and their IPv6 twins). The
//! answer belongs to the refused packet's flow, in the other direction, as RELATED
//! (`nf_conntrack_attach`); a note says that to the egress program of the interface that it leaves by,
//! where it meets OUTPUT.

mod build;
mod limits;
mod sum;

use super::Verdict;
use super::conntrack::{NO_FLOW, NOTE_OPENS, NOTE_SEEN, NOTE_SENT_ON, NOTE_TRANSIT, refresh};
use super::facts::is_sent_by_the_kernel;
use super::header::{Headers, Icmp, Part, protocol};
use super::packet::Packet;
use super::port;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use super::tcp::{self, flag};
use super::zone;
use crate::abi::blob::{ANSWERS, AnswerFields, RESET, Timeout};
use crate::abi::device::{Device, address_kind};
use crate::abi::flow::FlowKey;
use crate::abi::stat::Stat;
use crate::abi::{Addr, ct};

/// In a note: the packet is an answer that was put in the place of a refused packet.
pub const NOTE_ANSWER: u16 = 1 << 13;

/// In a note, beside [`NOTE_ANSWER`]: the answer is for this host, and goes on to loopback. The way
/// there leads over the interface that has its address: only so does the kernel find its route.
pub const NOTE_ONWARD: u16 = 1 << 14;

/// Index of the loopback interface (`LOOPBACK_IFINDEX`, include/net/flow.h).
pub const LOOPBACK: u32 = 1;

/// What is sent instead of a refused packet, and how.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Answer {
    /// The interface that it is sent out of.
    pub device: u32,
    /// The kernel finds the neighbour; otherwise the frame is ready.
    pub to_neighbour: bool,
    /// The packet in hand is an answer.
    pub in_hand: bool,
    /// It has to have its frame turned around.
    turned: bool,
    /// No chain meets it.
    unseen: bool,
    /// The endpoints of the packet that it answers.
    pub refused: [Addr; 2],
    /// That packet was refused where its destination would have been translated: this host made it, or it
    /// was for this host.
    pub on_the_spot: bool,
    /// It came in by loopback, with both ends translated.
    pub looped: bool,
    /// The source of the answer.
    source: Addr,
    /// The code of the answer, or [`RESET`].
    kind: u32,
    /// Of a TCP segment: what the answer bears as sequence number and as acknowledgement.
    numbers: [u32; 2],
    /// A sum over parts of the packet: what it is, where the next part is, how much is left.
    sum: u32,
    at: u32,
    left: u32,
}

/// Where the kernel would send an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WayBack {
    /// Index of the interface.
    pub device: u32,
    /// The source that it would choose.
    pub source: Addr,
    /// Whether it chose one.
    pub has_source: bool,
}

/// Puts the answer in a refused packet's place, if there is one to give.
#[inline(always)]
pub fn refuse<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    hook: u32,
) -> Verdict {
    match packet.call::<Respond, T>(tables, scratch, hook) {
        ANSWERED => Verdict::Answer,
        _ => Verdict::Drop(Stat::Rejected),
    }
}

/// Argument of [`refuse`]: the packet is for this host.
pub const INPUT: u32 = 1;
/// It is on its way through, or made here.
pub const FORWARD: u32 = 0;

/// The stage of [`refuse`]; its argument is the hook.
pub struct Respond;

/// The answer is in the packet's place.
const ANSWERED: u32 = 1;

impl Stage for Respond {
    const NAME: Name = Name::Respond;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        hook: u32,
    ) -> u32 {
        scratch.answer.kind = scratch.walk.argument;
        if !may_be_answered(packet, tables, scratch)
            || !sum::is_right(packet, tables, scratch)
            || !find_way(packet, tables, scratch, hook == INPUT)
        {
            return 0;
        }
        let settings = match tables.generation(scratch.place()) {
            Some(generation) => tables.cell(generation, ANSWERS),
            None => None,
        };
        let Some(settings) = settings else {
            return 0;
        };
        if scratch.answer.kind != RESET && !limits::allow(tables, scratch, settings) {
            tables.count(Stat::AnswerLimited);
            return 0;
        }
        let hops = AnswerFields::hops(settings, scratch.headers.family);
        scratch.answer.refused = [scratch.headers.key.source, scratch.headers.key.destination];
        scratch.answer.on_the_spot = scratch.made_here || hook == INPUT;
        let by_loopback = scratch.device.flags & Device::LOOPBACK != 0;
        scratch.answer.looped = by_loopback && !scratch.made_here;
        if build::build(packet, tables, scratch, hops).is_none() {
            tables.count(Stat::AnswerLost);
            return 0;
        }
        // What was found for a packet to this host, or of its own, is in hand still. The reset itself may not lead to it:
        // it bears the destination as it was translated.
        let is_in_hand = scratch.answer.unseen || scratch.answer.on_the_spot;
        if is_in_hand && scratch.answer.kind == RESET && scratch.tracked.stored {
            close(tables, scratch);
        }
        if scratch.answer.unseen {
            scratch.sent_on = scratch.answer.device;
            packet.set_note(NOTE_SENT_ON);
        } else {
            zone::leave_note(packet, scratch, note_of(scratch));
        }
        tables.count(Stat::Rejected);
        ANSWERED
    }
}

/// The label that the answer bears. What has no flow gives it none: it is tracked by itself. That a
/// rule took the flow away is all that table raw has to know.
#[inline(always)]
fn note_of(scratch: &Scratch) -> u16 {
    let (tracked, headers) = (&scratch.tracked, &scratch.headers);
    let mut note = NOTE_ANSWER;
    if tracked.direction != NO_FLOW {
        let label = ct::RELATED | tracked.ct & (ct::SNAT | ct::DNAT | ct::RENAMED);
        note |= NOTE_SEEN | label as u16 | ((tracked.direction ^ 1) as u16 & 1) << 8;
        note |= (tracked.transit as u16 & 3) << NOTE_TRANSIT;
        // A reset is the first packet of a flow that is not stored to come to POSTROUTING, and
        // meets its nat chain (`nf_nat_inet_fn`, net/netfilter/nf_nat_core.c).
        if tracked.opens {
            note |= NOTE_OPENS;
        }
    } else {
        note |= (tracked.ct & ct::UNTRACKED) as u16;
    }
    if scratch.made_here && scratch.device.flags & Device::LOOPBACK == 0 && !headers.is_v6() {
        note |= NOTE_ONWARD;
    }
    note
}

/// Whether the kernel answers such a packet at all.
#[inline(never)]
fn may_be_answered<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) -> bool {
    // The kernel's own ICMP messages leave while their socket is locked, which the answer would need
    // (`icmp_xmit_lock`, net/ipv4/icmp.c).
    let icmp = scratch.headers.icmp as u8 != Icmp::No as u8;
    if icmp && scratch.made_here && is_sent_by_the_kernel(packet, scratch) {
        return false;
    }
    let headers = &scratch.headers;
    let (source, destination) = (&headers.key.source, &headers.key.destination);
    if headers.part as u8 == Part::Later as u8 || is_nobody(headers, source) {
        return false;
    }
    if scratch.answer.kind == RESET {
        return headers.key.protocol as u8 == protocol::TCP
            && headers.tcp_flags & flag::RST == 0
            && !is_for_many(tables, headers, destination);
    }
    if packet.packet_type() != 0 || is_for_many(tables, headers, destination) {
        return false;
    }
    let message = (headers.key.ports >> 16) as u8;
    match (headers.key.protocol as u8, headers.is_v6()) {
        // All other types are errors, known or unknown (`icmp_pointers`).
        (protocol::ICMP, false) => matches!(message, 0 | 8 | 13..=18),
        (protocol::ICMPV6, true) => message >= 128,
        // What has nothing behind its headers is not answered (`reject6_csum_ok`).
        (NO_NEXT_HEADER, true) => false,
        (_, true) => headers.l4_len != 0,
        _ => true,
    }
}

/// IPv6's "no next header".
const NO_NEXT_HEADER: u8 = 59;

/// Whether nobody could get an answer at an address.
#[inline(always)]
fn is_nobody(headers: &Headers, address: &Addr) -> bool {
    if headers.is_v6() {
        let [a, b, c, d] = *address;
        a >> 24 == 0xff || a | b | c | d == 0
    } else {
        address[0] == 0 || address[0] >= 0xe000_0000
    }
}

/// Whether an address is a multicast or a broadcast one.
#[inline(always)]
fn is_for_many<T: Tables>(tables: &T, headers: &Headers, address: &Addr) -> bool {
    is_nobody(headers, address)
        || tables.local_kind(headers.family, address) == address_kind::BROADCAST
}

/// Finds where the answer goes, and whose it is; false if there is no way.
#[inline(never)]
fn find_way<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    here: bool,
) -> bool {
    let headers = &scratch.headers;
    let (source, destination) = (headers.key.source, headers.key.destination);
    let reset = scratch.answer.kind == RESET;
    let answer = &mut scratch.answer;
    answer.source = destination;
    answer.turned = false;
    answer.unseen = false;
    answer.to_neighbour = false;
    answer.device = packet.device();
    if scratch.device.flags & Device::LOOPBACK != 0 {
        return true;
    }
    if scratch.made_here {
        // An error comes from the address that the packet was sent from; a reset, as if from afar.
        if !reset {
            answer.source = source;
        }
        answer.to_neighbour = true;
        if headers.is_v6() {
            answer.device = LOOPBACK;
        } else if !scratch.device.owns(headers.family, &source) {
            let owner = tables.local_device(headers.family, &source);
            if owner != 0 {
                answer.device = owner;
            }
        }
        return true;
    }
    // Of what a bridge's port hands over, layer 3 knows the bridge.
    let arrival = match scratch.device.master {
        0 => packet.arrival_device(),
        bridge => bridge,
    };
    let port = port::handed_over_by(scratch, here);
    let answer = &mut scratch.answer;
    if reset && port != 0 {
        // It goes back by that port as it is (`nf_send_reset`): past all chains, and with the addresses that the
        // packet has here.
        answer.unseen = true;
        if here || scratch.device.is_port() {
            answer.turned = true;
            answer.device = port;
            return true;
        }
    }
    let mut back = WayBack::default();
    let found = packet.way_to(&source, headers.family, arrival, &mut back);
    if here {
        // Its neighbour is the one that sent it, as far as is known.
        answer.to_neighbour = found;
        answer.turned = !found && scratch.device.l2_len != 0;
        answer.device = if found { back.device } else { arrival };
        return true;
    }
    answer.to_neighbour = true;
    answer.device = if found { back.device } else { arrival };
    if reset {
        return true;
    }
    if found && back.has_source {
        scratch.answer.source = back.source;
        return true;
    }
    // Kernels before 6.7 do not say which address they would choose.
    let device = scratch.answer.device;
    source_of(tables, device, scratch)
}

/// Takes an interface's address for the source of an error; false if it has none.
#[inline(never)]
fn source_of<T: Tables>(tables: &T, device: u32, scratch: &mut Scratch) -> bool {
    /// `INADDR_DUMMY`, include/uapi/linux/in.h (RFC 7600).
    const DUMMY: u32 = 0xc000_0008;
    let Some(device) = tables.device(device) else {
        return false;
    };
    if scratch.headers.is_v6() {
        scratch.answer.source = device.masquerade6;
        return device.masquerade6[0] != 0;
    }
    let address = if device.masquerade4 == 0 {
        DUMMY
    } else {
        device.masquerade4
    };
    scratch.answer.source = [address, 0, 0, 0];
    true
}

/// Sends an answer on whose destination was translated on loopback: what it is about bears a name of a
/// translated flow, and the kernel routes it anew (`nf_nat_ipv4_local_fn`).
#[inline(never)]
pub fn send_away<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> bool {
    let headers = &scratch.headers;
    if scratch.device.flags & Device::LOOPBACK == 0
        || !scratch.tracked.translates_destination()
        || tables.is_local(headers.family, &headers.key.destination)
    {
        return false;
    }
    let mut way = WayBack::default();
    if !packet.way_to(&headers.key.destination, headers.family, LOOPBACK, &mut way) {
        return false;
    }
    scratch.answer.device = way.device;
    scratch.answer.to_neighbour = true;
    scratch.sent_on = way.device;
    packet.set_note(NOTE_SENT_ON);
    true
}

/// A flow that was sent a reset is closed (`nf_conntrack_tcp_set_closing`,
/// net/netfilter/nf_conntrack_proto_tcp.c).
#[inline(never)]
pub fn close<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let mut found = tables.flow(&scratch.lookup.key);
    if found.is_none() {
        // By the second name it was looked for last.
        scratch.lookup.key.set_kind(FlowKey::FIRST);
        found = tables.flow(&scratch.lookup.key);
    }
    let Some(mut flow) = found else {
        return;
    };
    if flow.is_alias() {
        flow = match tables.flow(&flow.other) {
            Some(flow) => flow,
            None => return,
        };
    }
    if tcp::close(flow) {
        let now = tables.now();
        refresh(tables, scratch.place(), flow, Timeout::Close as u32, now);
    }
}
