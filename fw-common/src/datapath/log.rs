//! LOG and NFLOG: what a packet is like, for the daemon to write down.
//!
//! A lost event is counted and nothing else: the verdict does not depend on it.

use super::packet::Packet;
use super::port;
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header, HeaderFields, fact};
use crate::abi::stat::Stat;

/// Sends an event about the packet, of which at most `size` bytes are asked for.
///
/// netfilter puts fragments together first, and logs a datagram once: so does this, with its first
/// fragment.
#[inline(always)]
pub fn log<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    scratch: &mut Scratch,
    size: u32,
) {
    if scratch.query.packets == 0 {
        return;
    }
    if let Some(header) = tables.cell(generation, HEADER) {
        scratch.event.generation = Header(header).generation();
    }
    let event = &mut scratch.event;
    let headers = &scratch.headers;
    event.time = tables.now();
    event.slot = scratch.walk.slot;
    event.base = scratch.walk.base;
    event.mark = packet.mark();
    event.bytes = headers.bytes;
    // Only of what this host made is it gathered, where it leaves.
    let facts = &scratch.facts;
    event.owned = 0;
    if scratch.features & HeaderFields::OWNER != 0 {
        event.owned = facts.owner_is_told;
        event.user = facts.values[fact::USER as usize];
        event.group = facts.values[fact::GROUP as usize];
    }
    let family = headers.family;
    let comes_in = BaseChain::is_where_packets_come_in(event.base, family);
    event.link = [0; 16];
    let in_port = port::handed_over_by(scratch, comes_in);
    let event = &mut scratch.event;
    event.in_port = in_port;
    let at_port = scratch.device.is_port();
    let here = if at_port {
        scratch.device.master
    } else {
        packet.device()
    };
    event.out_port = 0;
    if comes_in {
        event.in_device = here;
        event.out_device = 0;
        take_link(packet, headers.l3 as u32, &mut event.link);
    } else {
        event.in_device = packet.arrival_device();
        event.out_device = here;
        if at_port {
            let leaves = event.base == BaseChain::ManglePostrouting.id(family)
                || event.base == BaseChain::NatPostrouting.id(family);
            event.in_device = if leaves { 0 } else { here };
            event.out_port = packet.device();
        }
        if event.in_device != 0 && scratch.is_transit() {
            // The one that it came in with, as netfilter shows: here is the one it leaves with.
            scratch.event.link = scratch.transit_link;
        }
    }
    let event = &mut scratch.event;
    let l3 = headers.l3 as u32;
    let mut length = packet.len().wrapping_sub(l3);
    // A short Ethernet frame is padded.
    if length > headers.bytes {
        length = headers.bytes;
    }
    if length > size {
        length = size;
    }
    event.taken = packet.copy(l3, length, &mut event.packet);
    if !tables.emit(event) {
        tables.count(Stat::EventLost);
    }
}

/// Keeps the Ethernet header of a packet that is about to be forwarded. (A function of its own, as the
/// stack of its caller lies below the deepest chain of calls.)
#[inline(never)]
pub(super) fn note_link<P: Packet>(packet: &P, scratch: &mut Scratch) {
    take_link(packet, scratch.headers.l3 as u32, &mut scratch.transit_link);
}

/// Writes the packet's Ethernet header as [`crate::abi::event::Event::link`] has it.
#[inline(always)]
fn take_link<P: Packet>(packet: &P, l3: u32, link: &mut [u8; 16]) {
    *link = [0; 16];
    if l3 != 14 {
        return;
    }
    // Sixteen bytes, which lie on the stack where words may be read; no IP packet is that short.
    let Some([a, b, c, d, e, f, g, h, i, j, k, l, m, n, _, _]) = packet.load::<16>(0) else {
        return;
    };
    let [o, p] = 14_u16.to_ne_bytes();
    *link = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
}
