//! Effects: what targets do that let the walk through the chains go on.
//!
//! The rule is counted first, as all are. An effect happens once for each packet and rule: XDP, which
//! must leave all to the tc programs unless the packet ends with it, ends its walk instead. And the
//! fast path does not cache a way through the chains with an effect on it.

use super::change::change;
use super::fill::fill;
use super::log::log;
use super::packet::Packet;
use super::scratch::Scratch;
use super::segment_size::lower;
use super::sets::change_sets;
use super::stage::{Name, Stage};
use super::tables::Tables;
use crate::abi::blob::{Effect, effect_kind};

/// The effect happened.
pub const ACTED: u32 = 1;
/// It happened, and that ends the packet.
pub const DROPPED: u32 = 2;
/// It must not happen here.
pub const LATER: u32 = 0;

/// The stage of an effect: its argument is the effect cell's place, its result [`ACTED`],
/// [`DROPPED`] or [`LATER`].
/// The counter of its rule is in [`super::classify::Walk::slot`].
pub struct Act;

impl Stage for Act {
    const NAME: Name = Name::Act;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        at: u32,
    ) -> u32 {
        if tables.holds_back() {
            return LATER;
        }
        let Some(generation) = tables.generation(scratch.place()) else {
            return LATER;
        };
        let Some(cell) = tables.cell(generation, at) else {
            return LATER;
        };
        match Effect(cell).kind() {
            effect_kind::LOG | effect_kind::NFLOG => {
                let size = cell.w[1];
                log(packet, tables, generation, scratch, size);
                ACTED
            }
            effect_kind::SETS => {
                change_sets(tables, scratch, cell);
                ACTED
            }
            effect_kind::FILL_SUM => fill(packet, scratch),
            effect_kind::SEGMENT_SIZE => {
                let size = cell.w[1];
                lower(packet, tables, scratch, size)
            }
            kind if change(packet, scratch, cell, kind) => ACTED,
            // An effect that this program does not know.
            _ => LATER,
        }
    }
}
