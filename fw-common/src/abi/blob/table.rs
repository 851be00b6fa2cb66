//! Masked-hash tables: how a packet finds the few rules that it might match.

use super::Cell;
use crate::abi::Addr;

/// A masked-hash table: rules whose hashed fields agree under these masks share a bucket list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFields {
    /// Source address mask.
    pub source_mask: Addr,
    /// Destination address mask.
    pub destination_mask: Addr,
    /// Ports: source in the high half.
    pub ports_mask: u32,
    /// 0 or 0xff.
    pub protocol_mask: u32,
    /// First bucket cell.
    pub buckets: u32,
    /// Number of buckets, a power of two, less one.
    pub bucket_mask: u32,
    /// Chosen by the builder so that no bucket overflows.
    pub seed: u32,
    /// Smallest rule index in the table.
    pub min_index: u32,
}

impl TableFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let (s, d) = (self.source_mask, self.destination_mask);
        Cell {
            w: [
                s[0],
                s[1],
                s[2],
                s[3],
                d[0],
                d[1],
                d[2],
                d[3],
                self.ports_mask,
                self.protocol_mask,
                self.buckets,
                self.bucket_mask,
                self.seed,
                self.min_index,
                0,
                0,
            ],
        }
    }
}

/// View of a table cell.
#[derive(Clone, Copy)]
pub struct Table<'a>(pub &'a Cell);

impl Table<'_> {
    /// See [`TableFields::min_index`].
    #[inline(always)]
    pub fn min_index(&self) -> u32 {
        self.0.w[13]
    }

    /// Where a packet's rules are in this table: the bucket cell and the tag to look for in it.
    #[inline(always)]
    pub fn locate(&self, key: &HashKey, v6: bool) -> (u32, u32) {
        let w = &self.0.w;
        let mut masked = HashKey {
            source: [key.source[0] & w[0], 0, 0, 0],
            destination: [key.destination[0] & w[4], 0, 0, 0],
            ports: key.ports & w[8],
            protocol: key.protocol & w[9],
        };
        if v6 {
            masked.source[1] = key.source[1] & w[1];
            masked.source[2] = key.source[2] & w[2];
            masked.source[3] = key.source[3] & w[3];
            masked.destination[1] = key.destination[1] & w[5];
            masked.destination[2] = key.destination[2] & w[6];
            masked.destination[3] = key.destination[3] & w[7];
        }
        let hash = masked.hash(w[12], v6);
        let tag = (hash >> 32) as u32 | 1;
        (w[10].wrapping_add(hash as u32 & w[11]), tag)
    }
}

/// The fields that tables hash. The builder hashes a rule's masked values with the same function
/// that the datapath hashes a packet's with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HashKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port (ICMP: type) in the high half, destination port (ICMP: code) in the low.
    pub ports: u32,
    /// Protocol number.
    pub protocol: u32,
}

impl HashKey {
    /// 64 well-mixed bits: multiply-and-fold rounds over two words at a time.
    #[inline(always)]
    pub fn hash(&self, seed: u32, v6: bool) -> u64 {
        let mut hash = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash = mix(hash, self.source[0], self.destination[0]);
        hash = mix(hash, self.ports, self.protocol);
        if v6 {
            hash = mix(hash, self.source[1], self.destination[1]);
            hash = mix(hash, self.source[2], self.destination[2]);
            hash = mix(hash, self.source[3], self.destination[3]);
        }
        hash ^ (hash >> 29)
    }
}

#[inline(always)]
fn mix(hash: u64, high: u32, low: u32) -> u64 {
    let word = (high as u64) << 32 | low as u64;
    let product = (hash ^ word).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    product ^ (product >> 32)
}

/// A bucket: up to eight lists, found by tag.
#[derive(Clone, Copy)]
pub struct Bucket<'a>(pub &'a Cell);

impl Bucket<'_> {
    /// Lists in one bucket.
    pub const WAYS: usize = 8;

    /// First rule cell of the list with this tag, or 0. Tags in a bucket are distinct (the
    /// builder sees to it), so the eight compares need no branch: at most one contributes.
    #[inline(always)]
    pub fn find(&self, tag: u32) -> u32 {
        let w = &self.0.w;
        way(w[0], w[8], tag)
            | way(w[1], w[9], tag)
            | way(w[2], w[10], tag)
            | way(w[3], w[11], tag)
            | way(w[4], w[12], tag)
            | way(w[5], w[13], tag)
            | way(w[6], w[14], tag)
            | way(w[7], w[15], tag)
    }
}

#[inline(always)]
fn way(tag_here: u32, first: u32, tag: u32) -> u32 {
    let difference = tag_here ^ tag;
    let differs = (difference | difference.wrapping_neg()) >> 31;
    first & differs.wrapping_sub(1)
}
