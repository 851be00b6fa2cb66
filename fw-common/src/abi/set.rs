//! Sets of addresses and ports: those of ipset, in maps.
//!
//! Each set is a hash map of its own, made when it is loaded, in a place of `SETS`. A key that is a
//! prefix says how long it is; `SET_INFO` says which lengths the set has, so that a look-up takes a
//! probe for each, the longest first (`mtype_test_cidrs`,
//! net/netfilter/ipset/ip_set_hash_gen.h).

use super::Addr;
use super::pod::pod;

/// An element's key. What the set's type has no use for is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetKey {
    /// The first address, masked.
    pub first: Addr,
    /// The second address, masked.
    pub second: Addr,
    /// Port, or ICMP's type and code.
    pub port: u16,
    /// Protocol number.
    pub protocol: u8,
    /// Bits of the first address that count; [`WHOLE`] where it is no prefix.
    pub first_length: u8,
    /// The same of the second one.
    pub second_length: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What is known of an element.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetEntry {
    /// When its time is over; 0 for never.
    pub expires: u64,
    /// [`SetEntry::NOMATCH`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

impl SetEntry {
    /// What the element contains is not in the set.
    pub const NOMATCH: u32 = 1;

    /// Whether its time is over (`ip_set_timeout_expired`, linux/netfilter/ipset/ip_set.h).
    #[inline(always)]
    pub fn is_over(&self, now: u64) -> bool {
        self.expires != 0 && self.expires < now
    }
}

/// What is known of a set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// For each address: by a length, the next shorter one that elements have, or [`NO_LENGTH`].
    /// [`TOP`] leads to the longest.
    ///
    /// A length that is added while packets ask changes only entries that skip it, so whatever a
    /// packet reads meanwhile leads to lengths that are there.
    pub next: [[u8; LENGTHS]; 2],
    /// How long elements stay that say nothing, in nanoseconds; 0 for ever.
    pub timeout: u64,
    /// [`SetInfo::TIMEOUTS`].
    pub flags: u64,
}

/// Elements of [`SetInfo::next`].
pub const LENGTHS: usize = 136;
/// The length of what is no prefix.
pub const WHOLE: u8 = 128;
/// Before the longest length.
pub const TOP: u8 = 129;
/// Behind the shortest one.
pub const NO_LENGTH: u8 = 0xff;

impl Default for SetInfo {
    /// Of a set that has no element.
    fn default() -> Self {
        Self {
            next: [[NO_LENGTH; LENGTHS]; 2],
            timeout: 0,
            flags: 0,
        }
    }
}

impl SetInfo {
    /// Elements have times.
    pub const TIMEOUTS: u64 = 1;

    /// Says that elements have this length.
    pub fn add_length(&mut self, address: usize, length: u8) {
        let next = &mut self.next[address];
        let mut at = TOP;
        while next[at as usize] != NO_LENGTH && next[at as usize] > length {
            at = next[at as usize];
        }
        if next[at as usize] == length {
            return;
        }
        // First what leads on from the new length, then what leads to it.
        next[length as usize] = next[at as usize];
        next[at as usize] = length;
    }

    /// What is known of an element that is added now, with a time of its own or without.
    #[inline(always)]
    pub fn entry(&self, own: bool, seconds: u32, now: u64) -> SetEntry {
        let lifetime = if own {
            seconds as u64 * 1_000_000_000
        } else {
            self.timeout
        };
        let timed = self.flags & Self::TIMEOUTS != 0 && lifetime != 0;
        SetEntry {
            expires: if timed { now.wrapping_add(lifetime) } else { 0 },
            flags: 0,
            reserved: 0,
        }
    }

    /// The lengths, the longest first.
    pub fn lengths(&self, address: usize) -> impl Iterator<Item = u8> {
        let next = &self.next[address];
        core::iter::successors(Some(next[TOP as usize]), |at| {
            next.get(*at as usize).copied()
        })
        .take_while(|length| *length != NO_LENGTH)
    }
}

pod! {
    SetKey { size: 40, fields: [Addr, Addr, u16, u8, u8, u8, [u8; 3]] }
    SetEntry { size: 16, fields: [u64, u32, u32] }
    SetInfo { size: 288, fields: [[[u8; LENGTHS]; 2], u64, u64] }
}

/// How a rule asks a set: bits of the second word of its predicate.
pub mod shape {
    /// The first address is the source; else the destination.
    pub const FIRST_SOURCE: u32 = 1;
    /// There is a first address.
    pub const FIRST: u32 = 1 << 1;
    /// There is a second address.
    pub const SECOND: u32 = 1 << 2;
    /// The second address is the source; else the destination.
    pub const SECOND_SOURCE: u32 = 1 << 3;
    /// There is a port.
    pub const PORT: u32 = 1 << 4;
    /// The port is the source's; else the destination's.
    pub const PORT_SOURCE: u32 = 1 << 5;
    /// The port is TCP's or UDP's, whichever.
    pub const ANY_TRANSPORT: u32 = 1 << 6;
    /// Elements that say `nomatch` are what is asked for.
    pub const RETURN_NOMATCH: u32 = 1 << 7;
    /// Elements come and go without anybody's telling the datapath.
    pub const VOLATILE: u32 = 1 << 8;
    /// The question has one answer: no.
    pub const NEVER: u32 = 1 << 9;
    /// An address of zeroes is no element (`hash_ip4_kadt`,
    /// net/netfilter/ipset/ip_set_hash_ip.c).
    pub const NOT_NULL: u32 = 1 << 10;
}

/// The mask of a prefix, by its length. A table, since BPF has no arithmetic for it without
/// branches, each of which the verifier would follow.
pub static MASKS: [Addr; 129] = masks();

const fn masks() -> [Addr; 129] {
    let mut masks = [[0; 4]; 129];
    let mut length = 0;
    while length < 129 {
        let mut word = 0;
        while word < 4 {
            let before = word * 32;
            masks[length][word] = if length >= before + 32 {
                u32::MAX
            } else if length <= before {
                0
            } else {
                !(u32::MAX >> (length - before))
            };
            word += 1;
        }
        length += 1;
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_found_from_the_longest_down() {
        let mut info = SetInfo::default();
        assert_eq!(info.lengths(0).count(), 0);
        for length in [24, 32, 8, 24, 128, 0, 25] {
            info.add_length(0, length);
        }
        assert!(info.lengths(0).eq([128, 32, 25, 24, 8, 0]));
        assert_eq!(info.lengths(1).count(), 0);
    }

    #[test]
    fn masks_have_as_many_bits_as_they_say() {
        for (length, mask) in (0..).zip(MASKS) {
            let bits = mask.map(u32::leading_ones);
            assert_eq!(bits.iter().sum::<u32>(), length);
            assert_eq!(mask.map(u32::count_ones), bits);
        }
    }
}
