//! The tables raw, mangle and security: each of their chains is walked through where it has rules, and
//! only counted where it has none.

use super::classify::{Decision, traverse};
use super::fragment::{Side, borrow, lend};
use super::header::Part;
use super::packet::Packet;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use super::tcp::flag;
use crate::abi::blob::{BaseChain, GATES, HeaderFields, gate};

/// What a chain needs: one of [`gate`]'s words.
#[inline(always)]
fn word<T: Tables>(tables: &T, scratch: &Scratch, place: usize) -> u32 {
    let Some(generation) = tables.generation(scratch.place()) else {
        return gate::WALK;
    };
    let family = scratch.headers.family as u32;
    match tables.cell(generation, GATES.wrapping_add(family & 1)) {
        Some(cell) => cell.w[place & 15],
        None => gate::WALK,
    }
}

/// Sends the packet through a chain; false if it drops it. What chains are asked is in the scratch
/// space ([`Scratch::ask`]).
#[inline(always)]
pub fn passes<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    chain: BaseChain,
) -> bool {
    if scratch.features & HeaderFields::GATES == 0 {
        return true;
    }
    // The verifier would go through the rest once for each chain, and once for each answer.
    let place = scratch.forget(gate::word(chain) as u32);
    if packet.call::<Meet, T>(tables, scratch, place) != gate::WALK {
        return true;
    }
    let chain = scratch.forget(chain.id(scratch.headers.family));
    let passes = traverse(packet, tables, chain, scratch) == Decision::Accept;
    scratch.forget(passes as u32) != 0
}

/// The stage of [`meet`], for the programs that meet most chains.
pub struct Meet;

impl Stage for Meet {
    const NAME: Name = Name::Meet;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        place: u32,
    ) -> u32 {
        meet(tables, scratch, place)
    }
}

/// Counts the packet if that is all that the chain does.
#[inline(never)]
fn meet<T: Tables>(tables: &T, scratch: &Scratch, place: u32) -> u32 {
    let word = word(tables, scratch, place as usize);
    if word == gate::WALK || word == gate::NONE {
        return word;
    }
    if word & gate::SYN != 0 && scratch.headers.tcp_flags & flag::SYN != 0 {
        return gate::WALK;
    }
    let packets = scratch.query.packets as u32;
    let slot = (word & !gate::SYN).wrapping_sub(1);
    tables.hit(slot, packets, scratch.headers.bytes);
    word
}

/// Whether packets that are forwarded meet more than counters.
#[inline(never)]
pub fn are_slow<T: Tables>(tables: &T, scratch: &Scratch) -> bool {
    scratch.features & HeaderFields::GATES != 0 && word(tables, scratch, gate::SLOW) != 0
}

/// Counts a packet that the fast path has sent on at the policies on its way through this host, of
/// which none is slow, but for table raw's, which was met before.
#[inline(always)]
pub fn count_forwarded<T: Tables>(tables: &T, scratch: &mut Scratch) {
    if scratch.features & HeaderFields::GATES == 0 {
        return;
    }
    scratch.query.packets = 1;
    for chain in &gate::FORWARDED[1..] {
        meet(tables, scratch, gate::word(*chain) as u32);
    }
}

/// Sends a packet through a chain of the table raw, which comes before tracking; false if it drops it.
///
/// A later fragment has its ports from its first one, and is not counted as another packet; of one
/// whose first is not known, the rest of the way decides. `note` is what egress said of the packet, on
/// loopback; to all others the packet is one without a flow (`conntrack_mt`,
/// net/netfilter/xt_conntrack.c).
#[inline(always)]
pub fn passes_raw<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    (chain, side): (BaseChain, Side),
    note: u16,
) -> bool {
    if scratch.features & HeaderFields::GATES == 0 {
        return true;
    }
    if !begin_raw(tables, scratch, side, note) {
        return true;
    }
    let passes = passes(packet, tables, scratch, chain);
    scratch.outcomes.keep();
    passes
}

/// Prepares the question; false for a later fragment whose first one is not known.
#[inline(never)]
fn begin_raw<T: Tables>(tables: &T, scratch: &mut Scratch, side: Side, note: u16) -> bool {
    let patterns = scratch.patterns(&scratch.device);
    match side {
        Side::Ingress => scratch.ask_untracked(note, patterns, 1),
        Side::Egress => scratch.ask_untracked(note, 1, patterns),
    }
    if scratch.headers.part as u8 == Part::Later as u8 {
        scratch.query.packets = 0;
        let (headers, outcomes) = (&mut scratch.headers, &mut scratch.outcomes);
        return borrow(tables, headers, outcomes, side).found;
    }
    lend(tables, scratch, side);
    true
}
