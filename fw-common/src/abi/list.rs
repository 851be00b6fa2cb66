//! Lists: what rules remember of addresses, for as long as it is worth remembering.
//!
//! A list is an array of cells of its own, as long as it may ever need to be, in a place of `LISTS`.
//! Its first cell says what it is and where its parts are, its second what its kind has to know besides;
//! then come hash buckets, 16 in a cell; then entries. An entry is found by its bucket, whose entries are chained, and all are chained once more
//! in the order in which they were used, so that the oldest makes way. Whoever changes a list, or
//! reads what somebody else may be changing, holds its lock, which is in its first words.
//!
//! A reference to an entry is the number of its first cell; 0 is none.

use super::Addr;
use super::blob::{Cell, PAGE_CELLS};
use crate::MapCell;

/// A cell of a list.
pub type ListCell = [MapCell<u32>; 16];
/// What one look-up brings into reach.
pub type ListPage = [ListCell; PAGE_CELLS];

const _: () = assert!(size_of::<ListPage>() == size_of::<super::blob::Page>());

/// Words of a list's first cell.
pub mod head {
    /// The lock, which is two words: 0 if nobody holds it.
    pub const LOCK: usize = 0;
    /// Entries in use.
    pub const COUNT: usize = 2;
    /// The entry that was used longest ago.
    pub const OLDEST: usize = 3;
    /// The one that was used last.
    pub const NEWEST: usize = 4;
    /// Entries that were in use, chained by their [`super::entry::NEXT`].
    pub const FREE: usize = 5;
    /// The first entry that never was.
    pub const FRESH: usize = 6;
    /// How many entries there may be.
    pub const CAPACITY: usize = 7;
    /// Cells of an entry.
    pub const STRIDE: usize = 8;
    /// Buckets less one, which are a power of two.
    pub const BUCKETS: usize = 9;
    /// What hashes begin with, so that nobody outside knows who shares a bucket.
    pub const SEED: usize = 10;
    /// What the list's kind makes of it.
    pub const DETAIL: usize = 11;
    /// Four words: of an address (the source, where there are two), only these bits count.
    pub const MASK: usize = 12;
}

/// Words of an entry's first cell.
pub mod entry {
    /// The next in its bucket, or among the free ones.
    pub const NEXT: usize = 0;
    /// The one that was used before it.
    pub const OLDER: usize = 1;
    /// The one that was used after it.
    pub const NEWER: usize = 2;
    /// Its bucket.
    pub const BUCKET: usize = 3;
    /// Its key: nine words.
    pub const KEY: usize = 4;
    /// Whether it is in use, and what its kind makes of the other bits.
    pub const STATE: usize = 13;
}

/// Words of a key: two addresses, and what tells keys of the same addresses apart.
pub const KEY_WORDS: usize = 9;
/// The key's last word.
pub const KEY_REST: usize = 8;
/// [`entry::STATE`] of an entry in use.
pub const USED: u32 = 1;
/// Buckets in a cell.
pub const BUCKETS_IN_CELL: u32 = 16;
/// The first bucket's cell.
pub const FIRST_BUCKET: u32 = 2;
/// Entries that a list may have.
pub const ENTRIES_MAX: u32 = 1 << 20;

/// `-m recent`: an entry keeps the times of the last packets, as many as [`head::DETAIL`] says and one
/// more, behind its first cell, eight in a cell. Its state: the hop limit in bits 8 to 15, and in the
/// high half the place of the next time to be written, in which 0 stands for the end as well. Of 65,536 times
/// the last one counts for nothing, as in netfilter, whose number of times has 16 bits.
pub mod recent {
    /// Times in a cell.
    pub const TIMES_IN_CELL: u32 = 8;
    /// Times that an entry may keep.
    pub const TIMES_MAX: u32 = 1 << 16;
    /// The word that says how many times there are.
    pub const COUNT: usize = 14;

    /// What a rule asks: remember the address.
    pub const SET: u32 = 0;
    /// Is it there?
    pub const CHECK: u32 = 1;
    /// Is it there, and if so, remember that it came again.
    pub const UPDATE: u32 = 2;
    /// Forget it.
    pub const REMOVE: u32 = 3;
    /// The bits of one of these.
    pub const QUESTION: u32 = 3;
    /// The packet's destination is meant.
    pub const DESTINATION: u32 = 1 << 2;
    /// The hop limit must be the same.
    pub const HOPS: u32 = 1 << 3;
    /// The oldest entry goes if its time is over.
    pub const REAP: u32 = 1 << 4;
}

/// `-m hashlimit`: an entry is a bucket of credit. Its second cell holds how much there is.
pub mod hashlimit {
    use crate::abi::Addr;

    /// Four words of the list's second cell: the bits of a destination that count.
    pub const SECOND_MASK: usize = 0;
    /// The bits of the ports that count, the source's in the high half.
    pub const PORTS: usize = 4;
    /// Milliseconds that a bucket lives without being asked.
    pub const LIFETIME: usize = 5;
    /// Two words: what a packet costs, or [`CHUNK`] bytes.
    pub const COST: usize = 6;
    /// Two words: the most credit there can be; where bytes cost, how often a bucket is filled at once.
    pub const CAP: usize = 8;
    /// [`BYTES`].
    pub const FLAGS: usize = 10;
    /// Bytes cost, not packets.
    pub const BYTES: u32 = 1;

    /// The word of an entry that says when it was asked last, in milliseconds.
    pub const TIME: usize = 14;
    /// Two words of an entry's second cell: the credit.
    pub const CREDIT: usize = 0;
    /// How often the bucket may still be filled at once.
    pub const REFILLS: usize = 2;

    /// What a rule asks: what is over the limit.
    pub const ABOVE: u32 = 1;

    /// Credit that a millisecond brings, as a power of two: a quarter of `CREDITS_PER_JIFFY` for 250
    /// jiffies a second, and all of it for 1000 (net/netfilter/xt_hashlimit.c).
    pub const PER_MILLISECOND: u32 = 37;
    /// The same of `CREDITS_PER_JIFFY_BYTES`.
    pub const BYTES_PER_MILLISECOND: u32 = 22;
    /// What a second brings, and the most there can be, where bytes cost.
    pub const BYTES_CAP: u64 = 1000 << BYTES_PER_MILLISECOND;
    /// Bytes cost by so many, as a power of two (`XT_HASHLIMIT_BYTE_SHIFT`).
    pub const CHUNK: u32 = 4;

    /// What the second cell of a list says.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Terms {
        /// See [`SECOND_MASK`].
        pub mask: Addr,
        /// See [`PORTS`].
        pub ports: u32,
        /// See [`LIFETIME`].
        pub lifetime: u32,
        /// See [`COST`].
        pub cost: u64,
        /// See [`CAP`].
        pub cap: u64,
        /// See [`BYTES`].
        pub bytes: bool,
    }
}

/// `-m connlimit`: an entry is an address, and behind it are cells of the list that name its connections,
/// chained by their [`entry::NEXT`].
pub mod connlimit {
    /// The word of an entry that leads to the first connection.
    pub const FIRST: usize = 14;
    /// How many there are.
    pub const COUNT: usize = 15;

    /// Four words of a connection: its key's lower address.
    pub const LOW: usize = 4;
    /// The higher one.
    pub const HIGH: usize = 8;
    /// Both ports, the lower endpoint's in the high half.
    pub const PORTS: usize = 1;
    /// The protocol, above it [`FROM_LOW`] and the IP version's bit of a key's form, and the zone.
    pub const REST: usize = 2;
    /// The lower endpoint opened it.
    pub const FROM_LOW: u32 = 1 << 8;

    /// What a rule asks: the destination's connections.
    pub const DESTINATION: u32 = 1;
}

/// What a list is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListShape {
    /// How many entries it may have.
    pub capacity: u32,
    /// Cells of an entry.
    pub stride: u32,
    /// What its kind makes of it.
    pub detail: u32,
    /// The bits of an address that count.
    pub mask: Addr,
    /// What its kind has to know besides.
    pub terms: [u32; 16],
}

impl ListShape {
    /// A list of recent addresses, whose entries keep so many times, a power of two.
    pub const fn recent(capacity: u32, times: u32, mask: Addr) -> Self {
        Self {
            capacity,
            stride: 1 + times.div_ceil(recent::TIMES_IN_CELL),
            detail: times - 1,
            mask,
            terms: [0; 16],
        }
    }

    /// A table of buckets.
    pub fn hashlimit(capacity: u32, mask: Addr, terms: &hashlimit::Terms) -> Self {
        let mut words = [0; 16];
        words[hashlimit::SECOND_MASK..][..4].copy_from_slice(&terms.mask);
        words[hashlimit::PORTS] = terms.ports;
        words[hashlimit::LIFETIME] = terms.lifetime;
        for (word, value) in [(hashlimit::COST, terms.cost), (hashlimit::CAP, terms.cap)] {
            words[word] = value as u32;
            words[word + 1] = (value >> 32) as u32;
        }
        words[hashlimit::FLAGS] = if terms.bytes { hashlimit::BYTES } else { 0 };
        Self {
            capacity,
            stride: 2,
            detail: 0,
            mask,
            terms: words,
        }
    }

    /// Connections by address, so many cells of both.
    pub const fn connlimit(capacity: u32, mask: Addr) -> Self {
        Self {
            capacity,
            stride: 1,
            detail: 0,
            mask,
            terms: [0; 16],
        }
    }

    /// How many buckets it has.
    pub const fn buckets(&self) -> u32 {
        self.capacity.next_power_of_two()
    }

    /// The first entry's cell.
    pub const fn first_entry(&self) -> u32 {
        FIRST_BUCKET + self.buckets().div_ceil(BUCKETS_IN_CELL)
    }

    /// How many pages it takes.
    pub const fn pages(&self) -> u32 {
        (self.first_entry() + self.capacity * self.stride).div_ceil(PAGE_CELLS as u32)
    }

    /// The first two cells of an empty list.
    pub const fn head(&self, seed: u32) -> [Cell; 2] {
        let mut cell = Cell { w: [0; 16] };
        cell.w[head::FRESH] = self.first_entry();
        cell.w[head::CAPACITY] = self.capacity;
        cell.w[head::STRIDE] = self.stride;
        cell.w[head::BUCKETS] = self.buckets() - 1;
        cell.w[head::SEED] = seed;
        cell.w[head::DETAIL] = self.detail;
        let [a, b, c, d] = self.mask;
        cell.w[head::MASK] = a;
        cell.w[head::MASK + 1] = b;
        cell.w[head::MASK + 2] = c;
        cell.w[head::MASK + 3] = d;
        [cell, Cell { w: self.terms }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_a_hundred_addresses_is_small() {
        let shape = ListShape::recent(100, 32, [u32::MAX; 4]);
        assert_eq!(shape.stride, 5);
        assert_eq!(shape.first_entry(), 2 + 8);
        assert_eq!(shape.pages(), 8);
    }
}
