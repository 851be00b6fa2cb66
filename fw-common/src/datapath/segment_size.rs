//! TCPMSS: lowers the maximum segment size that a SYN announces (net/netfilter/xt_TCPMSS.c).

use core::ops::ControlFlow;

use super::checksum::Difference;
use super::effect::{ACTED, DROPPED};
use super::header::{Headers, Part, protocol};
use super::packet::Packet;
use super::scratch::Scratch;
use super::tables::{Step, Tables};
use crate::abi::blob::fact;

/// In place of a size: as large as the paths' MTU allows, both ways.
pub const PATH: u32 = 0xffff;

/// Where the search in the options is.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Place {
    at: u32,
    end: u32,
    /// Where the option is; 0 if it is not found.
    found: u32,
}

/// Without the option, a host is taken to accept this (RFC 1122, 4.2.2.6; RFC 8200, 8.3).
const DEFAULT_V4: u32 = 536;
const DEFAULT_V6: u32 = 1220;
/// The option: kind, length, and the size's two bytes.
const KIND: u8 = 2;
const LENGTH: u8 = 4;
/// TCP's header without options, and its longest.
const SHORTEST: u32 = 20;
const LONGEST: u32 = 60;
/// Where its checksum is.
const SUM: u32 = 16;

/// Lowers the size to this, or to what [`PATH`] says.
#[inline(always)]
pub fn lower<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    size: u32,
) -> u32 {
    let headers = &scratch.headers;
    if headers.part as u8 == Part::Later as u8 || headers.key.protocol as u8 != protocol::TCP {
        return ACTED;
    }
    let (l4, length) = (headers.l4 as u32, headers.l4_len as u32);
    let Some([offset]) = packet.load::<1>(l4 + 12) else {
        return DROPPED;
    };
    let header = (offset >> 4) as u32 * 4;
    if length < header || header < SHORTEST {
        return DROPPED;
    }
    let size = if size == PATH {
        let least = if headers.is_v6() { 60 } else { 40 };
        let there = packet.path_mtu(headers.family, &headers.key.destination, true);
        let back = packet.path_mtu(headers.family, &headers.key.source, false);
        let smallest = if there < back { there } else { back };
        if smallest <= least {
            return DROPPED;
        }
        smallest.wrapping_sub(least) & 0xffff
    } else {
        size
    };
    scratch.segment_size = Place {
        at: l4 + SHORTEST,
        end: l4 + header,
        found: 0,
    };
    let place = &mut scratch.segment_size;
    tables.run(LONGEST - SHORTEST, &mut Search { packet, place });
    let found = scratch.segment_size.found;
    if found != 0 {
        return replace(packet, scratch, found + 2, size as u16);
    }
    // Data cannot be moved on, and the header's length has four bits.
    let whole = scratch.headers.part as u8 == Part::Whole as u8;
    if length > header || header >= LONGEST || !whole {
        return ACTED;
    }
    let most = if scratch.headers.is_v6() {
        DEFAULT_V6
    } else {
        DEFAULT_V4
    };
    let size = if size < most { size } else { most };
    match add(packet, tables, scratch, size as u16, offset) {
        Some(()) => ACTED,
        None => DROPPED,
    }
}

struct Search<'a, P> {
    packet: &'a P,
    place: &'a mut Place,
}

impl<P: Packet> Step for Search<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let at = self.place.at & 0x3fff;
        if at.wrapping_add(LENGTH as u32) > self.place.end {
            return ControlFlow::Break(());
        }
        let Some([kind, length]) = self.packet.load::<2>(at) else {
            return ControlFlow::Break(());
        };
        if kind == KIND && length == LENGTH {
            self.place.found = at;
            return ControlFlow::Break(());
        }
        let length = if kind < 2 || length == 0 { 1 } else { length };
        self.place.at = at + length as u32;
        ControlFlow::Continue(())
    }
}

/// Writes a smaller size; a larger one never. (The sum changes as if the size began at an even place,
/// as netfilter has it.)
#[inline(never)]
fn replace<P: Packet>(packet: &mut P, scratch: &mut Scratch, at: u32, size: u16) -> u32 {
    let Some(old) = packet.load::<2>(at) else {
        return DROPPED;
    };
    let old = u16::from_be_bytes(old);
    if old <= size {
        return ACTED;
    }
    let headers = &scratch.headers;
    let sum = headers.l4 as u32 + SUM;
    let change = Difference::default().half(old, size).sum();
    let v6 = headers.is_v6();
    if packet.store(at, size.to_be_bytes()).is_none()
        || packet
            .replace_l4_sum(sum, change, false, false, v6)
            .is_none()
    {
        return DROPPED;
    }
    scratch.facts.set(fact::SEGMENT, size as u32);
    ACTED
}

/// Puts the option before all others.
#[inline(never)]
fn add<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    size: u16,
    offset: u8,
) -> Option<()> {
    const MORE: u32 = LENGTH as u32;
    let end = scratch.segment_size.end;
    // Something may fill the frame up behind the packet. To grow first makes sure that the stack
    // knows of no sum of all bytes.
    if !packet.resize(packet.len().wrapping_add(MORE)) || !packet.resize(end.wrapping_add(MORE)) {
        return None;
    }
    let first = scratch.headers.l4 as u32 + SHORTEST;
    scratch.segment_size.at = end;
    scratch.segment_size.end = first;
    let place = &mut scratch.segment_size;
    tables.run(
        (LONGEST - SHORTEST) / 4,
        &mut Move {
            packet: &mut *packet,
            place,
        },
    );
    let [high, low] = size.to_be_bytes();
    let option = [KIND, LENGTH, high, low];
    packet.store(first, option)?;
    let l4 = scratch.headers.l4 as u32;
    let [flags]: [u8; 1] = packet.load(l4 + 13)?;
    let longer = offset.wrapping_add(0x10);
    packet.store(l4 + 12, [longer])?;
    let v6 = scratch.headers.is_v6();
    let length = scratch.headers.l4_len;
    let change = Difference::default().half(length, length.wrapping_add(MORE as u16));
    packet.replace_l4_sum(l4 + SUM, change.sum(), true, false, v6)?;
    let half = |offset: u8| u16::from_be_bytes([offset, flags]);
    let change = Difference::default()
        .word(0, u32::from_be_bytes(option))
        .half(half(offset), half(longer));
    packet.replace_l4_sum(l4 + SUM, change.sum(), false, false, v6)?;
    lengthen(packet, &mut scratch.headers, MORE as u16)?;
    let bytes = scratch.headers.bytes;
    scratch.facts.set(fact::LENGTH, bytes);
    scratch.facts.set(fact::SEGMENT, size as u32);
    scratch.facts.note_option(KIND);
    Some(())
}

/// Makes room of four bytes before the options, a word a step from behind.
struct Move<'a, P> {
    packet: &'a mut P,
    place: &'a mut Place,
}

impl<P: Packet> Step for Move<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let at = self.place.at.wrapping_sub(4) & 0x3fff;
        if at < self.place.end {
            return ControlFlow::Break(());
        }
        self.place.at = at;
        let moved = match self.packet.load::<4>(at) {
            Some(word) => self.packet.store(at + 4, word),
            None => None,
        };
        match moved {
            Some(()) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        }
    }
}

/// The IP header says that the packet is longer.
#[inline(always)]
fn lengthen<P: Packet>(packet: &mut P, headers: &mut Headers, by: u16) -> Option<()> {
    let l3 = headers.l3 as u32;
    let at = l3 + if headers.is_v6() { 4 } else { 2 };
    let old: [u8; 2] = packet.load(at)?;
    let new = u16::from_be_bytes(old).wrapping_add(by).to_be_bytes();
    packet.store(at, new)?;
    if !headers.is_v6() {
        let word = |half: [u8; 2]| u32::from_ne_bytes([0, 0, half[0], half[1]]);
        packet.replace_l3_sum(l3 + 10, word(old), word(new))?;
    }
    headers.bytes = headers.bytes.wrapping_add(by as u32);
    headers.l4_len = headers.l4_len.wrapping_add(by);
    Some(())
}
