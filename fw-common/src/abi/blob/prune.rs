//! Which tables of a long chain can hold a packet's rules: bitmaps over the tables by source, by
//! destination and by destination port. A table is looked at if all three have its bit.
//!
//! They may say too much, never too little: entries are found by a hash of so many leading bits of an
//! address as tell the chain's rules apart best, and by a port without its low bits; rules that fix
//! much less than that are in a bitmap of their own.

use super::Cell;
use crate::abi::Addr;

/// The bit of the table with this number. The last bit stands for all further tables.
#[inline(always)]
pub const fn table_bit(number: u32) -> u32 {
    (number | (63_u32.wrapping_sub(number) as i32 >> 31) as u32) & 63
}

/// A cell that leads to a chain's bitmaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneFields {
    /// Bitmaps of the rules that are not in the entries: by source, destination, destination port.
    pub always: [u64; 3],
    /// 32 less the logarithm of the number of entries by address.
    pub shift: u32,
    /// First cells of the entries, in the same order.
    pub first: [u32; 3],
    /// The leading bits of a source, and of a destination, that its entry is found by: masks of an
    /// address's first two words, the first one in the high half.
    pub leading: [u64; 2],
}

impl PruneFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        for (place, bits) in self.always.iter().enumerate() {
            cell.w[2 * place] = *bits as u32;
            cell.w[2 * place + 1] = (*bits >> 32) as u32;
        }
        cell.w[6] = self.shift;
        cell.w[7..10].copy_from_slice(&self.first);
        for (place, mask) in self.leading.iter().enumerate() {
            cell.w[10 + 2 * place] = (*mask >> 32) as u32;
            cell.w[11 + 2 * place] = *mask as u32;
        }
        cell
    }
}

/// View of the cell.
#[derive(Clone, Copy)]
pub struct Prune<'a>(pub &'a Cell);

/// Entries in one cell.
pub const ENTRIES: u32 = 8;

impl Prune<'_> {
    /// Entries by destination port.
    pub const PORTS: u32 = 1 << 10;

    /// The entry of a source (0) or destination (1).
    #[inline(always)]
    pub fn entry(&self, dimension: usize, address: &Addr) -> u32 {
        let w = &self.0.w;
        let first = address[0] & w[10 + 2 * dimension];
        let second = address[1] & w[11 + 2 * dimension];
        let leading = first.wrapping_mul(0x85eb_ca6b) ^ second;
        leading.wrapping_mul(0x9e37_79b1) >> (w[6] & 31)
    }

    /// The entry of a destination port.
    #[inline(always)]
    pub const fn port_entry(port: u32) -> u32 {
        port >> 6 & (Self::PORTS - 1)
    }

    /// The cell of an entry: by source (0), destination (1), destination port (2).
    #[inline(always)]
    pub fn cell(&self, dimension: usize, entry: u32) -> u32 {
        self.0.w[7 + dimension].wrapping_add(entry / ENTRIES)
    }

    /// The bitmap of an entry, in its cell, with the rules that are in none.
    #[inline(always)]
    pub fn bits(&self, dimension: usize, entry: u32, cell: &Cell) -> u64 {
        let at = (entry % ENTRIES) as usize * 2;
        let (w, always) = (&cell.w, &self.0.w);
        let low = w[at] | always[2 * dimension];
        let high = w[at + 1] | always[2 * dimension + 1];
        low as u64 | (high as u64) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::table_bit;

    #[test]
    fn tables_beyond_the_last_bit_share_it() {
        let bits = [0, 1, 62, 63, 64, 1000, u32::MAX / 2].map(table_bit);
        assert_eq!(bits, [0, 1, 62, 63, 63, 63, 63]);
    }
}
