//! Blocks: some rules of a table's list next to each other, and in front of them which of these
//! can match which packets, as in short chains. A packet is compared with those only.

use super::chain::{Filter, candidates};
use super::{Cell, LINEAR_MAX};

/// What stands in front of a block's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockFields {
    /// What follows the block's last rule in the list; so does each of its rules say
    /// ([`super::RuleFields::next`]).
    pub rest: u32,
    /// How many rules there are.
    pub count: u32,
    /// Which rules can match which packets.
    pub filter: Filter,
}

impl BlockFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        cell.w[0] = self.rest;
        cell.w[1] = self.count;
        self.filter.put(&mut cell);
        cell
    }
}

/// View of the cell.
#[derive(Clone, Copy)]
pub struct Block<'a>(pub &'a Cell);

impl Block<'_> {
    /// Where a list goes on, that bit says that a block does, whose cell is where the others say: its
    /// rules are behind it, the first of them one rule's cells away.
    pub const HERE: u32 = 1 << 31;
    /// Most rules in a block.
    pub const RULES: usize = LINEAR_MAX as usize;

    /// See [`BlockFields::rest`].
    #[inline(always)]
    pub fn rest(&self) -> u32 {
        self.0.w[0]
    }

    /// See [`BlockFields::count`].
    #[inline(always)]
    pub fn count(&self) -> u32 {
        self.0.w[1]
    }

    /// The rules that the packet may match, a bit each ([`super::Chain::candidates`]).
    #[inline(always)]
    pub fn candidates(&self, class: u8, ct: u8, destination_port: u32, in_patterns: u64) -> u32 {
        candidates(self.0, class, ct, destination_port, in_patterns)
    }
}
