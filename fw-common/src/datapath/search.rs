//! `string`: whether a packet holds some bytes, from its IP header to its end (`string_mt`,
//! net/netfilter/xt_string.c, and `skb_find_text`, net/core/skbuff.c).
//!
//! Such a match is asked in its turn, as a list is ([`super::lists`]): the chain of calls is short there,
//! and a search takes long. Each byte is looked at once, and as often again as the search falls back: at
//! most twice as many turns as bytes, whatever an enemy sends (Knuth, Morris, Pratt 1977). Where nothing has
//! begun to match, eight bytes take one turn.
//!
//! The kernel's Boyer-Moore finds no text across two pieces of an skb, its own Knuth-Morris-Pratt does; so
//! does this, for both.

use core::ops::ControlFlow;

use super::fragment::note_outcome;
use super::header::Part;
use super::limit::{FAIL, HOLD, LATER};
use super::packet::Packet;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::{Step, Tables};
use crate::abi::blob::text::{self, CELLS, LONGEST, upper};
use crate::abi::event::Event;

/// Bytes that are looked at together: a power of two.
const PIECE: usize = Event::PACKET;
/// Turns of the longest search: two for each byte of the longest packet that an offload makes (`GSO_MAX_SIZE`,
/// include/linux/netdevice.h, 8 * 65535), and one for each piece.
const TURNS: u32 = 1 << 21;

/// A search, and how far it has got.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// The text, and behind it how long a beginning of it ends with each of its bytes ([`text`]).
    text: [[u32; 16]; CELLS],
    /// A piece of the packet.
    piece: [u8; PIECE],
    /// How many bytes of it there are.
    filled: u32,
    /// The one that is next.
    place: u32,
    /// Where the next piece begins, and where the last one ends.
    at: u32,
    end: u32,
    /// How many bytes of the text have been found up to here.
    matched: u32,
    /// How many it has.
    length: u32,
    /// Letters may be of either case.
    any_case: bool,
    /// What the text begins with, in both cases.
    first: u8,
    other: u8,
    found: bool,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            text: [[0; 16]; CELLS],
            piece: [0; PIECE],
            filled: 0,
            place: 0,
            at: 0,
            end: 0,
            matched: 0,
            length: 0,
            any_case: false,
            first: 0,
            other: 0,
            found: false,
        }
    }
}

/// The stage of a search: its argument says nothing, its result is [`HOLD`] or [`FAIL`].
pub struct Find;

impl Stage for Find {
    const NAME: Name = Name::Find;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        _argument: u32,
    ) -> u32 {
        if scratch.headers.part as u8 == Part::Later as u8 {
            // Datagrams are put together before rules see them. This is what the first fragment got.
            return if scratch.outcomes.next() { HOLD } else { FAIL };
        }
        if !prepare(packet, tables, scratch) {
            return LATER;
        }
        tables.run(
            TURNS,
            &mut Searching {
                packet,
                search: &mut scratch.search,
            },
        );
        let held = scratch.search.found != scratch.list.is_not();
        note_outcome(tables, scratch, held);
        if held { HOLD } else { FAIL }
    }
}

/// Takes the text out of the policy.
#[inline(always)]
fn prepare<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) -> bool {
    let Some(generation) = tables.generation(scratch.place()) else {
        return false;
    };
    let (first, flags, from, to) = scratch.list.text();
    let search = &mut scratch.search;
    for number in 0..CELLS {
        let Some(cell) = tables.cell(generation, first.wrapping_add(number as u32)) else {
            return false;
        };
        search.text[number] = cell.w;
    }
    search.length = text::length(flags);
    search.any_case = flags & text::ANY_CASE != 0;
    search.first = search.text[0][0] as u8;
    search.other = search.first;
    let lower = search.first.wrapping_add(32);
    if search.any_case && upper(lower) == search.first {
        search.other = lower;
    }
    let l3 = scratch.headers.l3 as u32;
    search.at = l3.wrapping_add(from);
    // Short Ethernet frames are padded.
    let mut end = l3.wrapping_add(scratch.headers.bytes);
    if end > packet.len() {
        end = packet.len();
    }
    let limit = l3.wrapping_add(to);
    search.end = if end > limit { limit } else { end };
    search.filled = 0;
    search.place = 0;
    search.matched = 0;
    search.found = false;
    true
}

struct Searching<'a, P> {
    packet: &'a P,
    search: &'a mut Search,
}

impl<P: Packet> Step for Searching<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        if self.search.place >= self.search.filled {
            return self.next_piece();
        }
        let search = &mut *self.search;
        let place = search.place;
        if search.matched == 0
            && place & 7 == 0
            && search.filled.wrapping_sub(place) >= 8
            && !search.may_begin(place as usize)
        {
            search.place = place.wrapping_add(8);
            return ControlFlow::Continue(());
        }
        let mut byte = search.piece[place as usize % PIECE];
        if search.any_case {
            byte = upper(byte);
        }
        let matched = search.matched;
        if search.byte(matched) == byte {
            search.matched = matched.wrapping_add(1);
            search.place = place.wrapping_add(1);
            if search.matched >= search.length {
                search.found = true;
                return ControlFlow::Break(());
            }
        } else if matched == 0 {
            search.place = place.wrapping_add(1);
        } else {
            let shorter = LONGEST as u32 + matched.wrapping_sub(1);
            search.matched = search.byte(shorter) as u32;
        }
        ControlFlow::Continue(())
    }
}

impl<P: Packet> Searching<'_, P> {
    #[inline(always)]
    fn next_piece(&mut self) -> ControlFlow<()> {
        let search = &mut *self.search;
        if search.at >= search.end {
            return ControlFlow::Break(());
        }
        let mut length = search.end.wrapping_sub(search.at);
        if length > PIECE as u32 {
            length = PIECE as u32;
        }
        let filled = self.packet.copy(search.at, length, &mut search.piece);
        if filled == 0 {
            return ControlFlow::Break(());
        }
        search.filled = filled;
        search.place = 0;
        search.at = search.at.wrapping_add(filled);
        ControlFlow::Continue(())
    }
}

impl Search {
    /// A byte of the text, or of what is behind it.
    #[inline(always)]
    fn byte(&self, number: u32) -> u8 {
        let word = number as usize / 4 % (16 * CELLS);
        (self.text[word / 16][word % 16] >> (number % 4 * 8)) as u8
    }

    /// Whether the text could begin with one of the eight bytes at a place, which 8 divides.
    ///
    /// Without branches, of which the verifier would explore both ways.
    #[inline(always)]
    fn may_begin(&self, place: usize) -> bool {
        let (first, other) = (self.first as u32, self.other as u32);
        let place = place & (PIECE - 8);
        let mut begins = 0;
        for byte in 0..8 {
            let byte = self.piece[place + byte] as u32;
            // Less than zero where they are the same.
            begins |= (byte ^ first).wrapping_sub(1) | (byte ^ other).wrapping_sub(1);
        }
        begins >> 31 != 0
    }
}
