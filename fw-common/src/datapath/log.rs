//! LOG and NFLOG: what a packet is like, for the daemon to write down.
//!
//! A lost event is counted and nothing else: the verdict does not depend on it.

use super::packet::Packet;
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::event::Event;
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
    let family = headers.family;
    let comes_in = event.base == BaseChain::FilterInput.id(family)
        || event.base == BaseChain::NatPrerouting.id(family)
        || event.base == BaseChain::NatInput.id(family);
    event.link[14] = 0;
    event.link[15] = 0;
    if comes_in {
        event.in_device = packet.device();
        event.out_device = 0;
        if headers.l3 == 14
            && let Some(link) = packet.load::<14>(0)
        {
            take_link(event, &link);
        }
    } else {
        event.in_device = packet.arrival_device();
        event.out_device = packet.device();
        if event.in_device != 0 && scratch.is_transit() {
            take_link(&mut scratch.event, &scratch.transit_link);
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

#[inline(always)]
fn take_link(event: &mut Event, link: &[u8; 14]) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = *link;
    let [o, p] = 14_u16.to_ne_bytes();
    event.link = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
}
