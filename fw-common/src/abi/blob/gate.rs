//! What the chains of the tables raw, mangle and security need of each packet, a cell for each IP
//! version: most of them only count, or are not there at all, and then nobody walks through them.

use super::{BaseChain, Cell};

/// A word of the cell: there is no such chain.
pub const NONE: u32 = 0;
/// A word of the cell: packets go through the chain. Any other is the counter of the policy, plus one,
/// of a chain that accepts and has no rules, or none for most packets ([`SYN`]).
pub const WALK: u32 = u32::MAX;
/// Beside a counter: packets go through the chain if they are TCP segments with SYN, of which all its
/// rules are; of the others it only counts.
pub const SYN: u32 = 1 << 31;
/// The word that is not zero if a chain that forwarded packets meet is more than a counter: the fast
/// path then leaves all to the chains.
pub const SLOW: usize = 15;
/// The chains that have a word, in its order.
pub const CHAINS: [BaseChain; 10] = [
    BaseChain::RawPrerouting,
    BaseChain::RawOutput,
    BaseChain::ManglePrerouting,
    BaseChain::MangleInput,
    BaseChain::MangleForward,
    BaseChain::MangleOutput,
    BaseChain::ManglePostrouting,
    BaseChain::SecurityInput,
    BaseChain::SecurityForward,
    BaseChain::SecurityOutput,
];

/// The chains that forwarded packets meet, in that order.
pub const FORWARDED: [BaseChain; 5] = [
    BaseChain::RawPrerouting,
    BaseChain::ManglePrerouting,
    BaseChain::MangleForward,
    BaseChain::SecurityForward,
    BaseChain::ManglePostrouting,
];

/// The word of a chain.
#[inline(always)]
pub const fn word(chain: BaseChain) -> usize {
    (chain as usize).wrapping_sub(BaseChain::RawPrerouting as usize) & 15
}

/// The cell of these words, one for each of [`CHAINS`].
pub fn encode(words: [u32; CHAINS.len()]) -> Cell {
    let mut cell = Cell::default();
    cell.w[..CHAINS.len()].copy_from_slice(&words);
    let walked = |chain: &BaseChain| cell.w[word(*chain)] == WALK;
    cell.w[SLOW] = FORWARDED.iter().any(walked).into();
    cell
}
