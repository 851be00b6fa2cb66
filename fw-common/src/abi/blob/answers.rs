//! How refused packets are answered: the kernel's settings of ICMP errors and hop counts.

use super::Cell;
use crate::abi::Family;

/// Argument of [`super::target::REJECT`] that asks for a TCP reset. Any other is the code of
/// "destination unreachable".
pub const RESET: u32 = 1 << 8;

/// What is the same for all answers. By default nothing is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerFields {
    /// Milliseconds between two errors to one peer, for IPv4 and IPv6; 0 for no limit.
    pub peer: [u32; 2],
    /// Nanoseconds between two errors to all, for IPv4 and IPv6; 0 for no limit.
    pub all: [u32; 2],
    /// How many errors may be sent to all at once.
    pub burst: u32,
    /// TTL and hop limit of answers.
    pub hops: [u8; 2],
}

impl Default for AnswerFields {
    fn default() -> Self {
        Self {
            peer: [0; 2],
            all: [0; 2],
            burst: 50,
            hops: [64; 2],
        }
    }
}

impl AnswerFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        let [hops4, hops6] = self.hops.map(u32::from);
        cell.w[..7].copy_from_slice(&[
            self.peer[0],
            self.peer[1],
            self.all[0],
            self.all[1],
            self.burst,
            hops4,
            hops6,
        ]);
        cell
    }

    /// Reads the cell.
    pub fn decode(cell: &Cell) -> Self {
        let w = &cell.w;
        Self {
            peer: [w[0], w[1]],
            all: [w[2], w[3]],
            burst: w[4],
            hops: [w[5] as u8, w[6] as u8],
        }
    }

    /// Nanoseconds between two errors to one peer, and to all.
    #[inline(always)]
    pub fn intervals(cell: &Cell, family: Family) -> (u64, u64) {
        let w = &cell.w;
        let (peer, all) = if family as u8 == Family::V4 as u8 {
            (w[0], w[2])
        } else {
            (w[1], w[3])
        };
        (peer as u64 * 1_000_000, all as u64)
    }

    /// How many errors may be sent to all at once.
    #[inline(always)]
    pub fn burst(cell: &Cell) -> u64 {
        cell.w[4] as u64
    }

    /// TTL or hop limit of answers.
    #[inline(always)]
    pub fn hops(cell: &Cell, family: Family) -> u8 {
        if family as u8 == Family::V4 as u8 {
            cell.w[5] as u8
        } else {
            cell.w[6] as u8
        }
    }
}
