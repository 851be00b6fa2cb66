//! Internet checksum updates (RFC 1624): `new = !(!old + !from + to)`, in one's complement.
//!
//! Differences are sums of words as they lie in memory, kept in 64 bits; the byte order of the machine
//! does not matter as long as every term uses the same (RFC 1071 2.B). Carries are added at the end only:
//! to add each at once takes a branch for each, which no processor foretells.

/// An accumulated change of the words under a checksum: up to 2^32 of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// A 32-bit word changed. The values are in host byte order, the words in network order.
    #[inline(always)]
    #[must_use]
    pub fn word(self, from: u32, to: u32) -> Self {
        self.plus(!from.to_be()).plus(to.to_be())
    }

    /// A 16-bit word changed.
    #[inline(always)]
    #[must_use]
    pub fn half(self, from: u16, to: u16) -> Self {
        self.plus(!(from.to_be() as u32)).plus(to.to_be() as u32)
    }

    /// Four words of an address changed.
    #[inline(always)]
    #[must_use]
    pub fn address(self, from: &[u32; 4], to: &[u32; 4]) -> Self {
        self.word(from[0], to[0])
            .word(from[1], to[1])
            .word(from[2], to[2])
            .word(from[3], to[3])
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The change that [`Difference::sum`] told.
    #[inline(always)]
    pub fn of_sum(sum: u32) -> Self {
        Self(sum as u64)
    }

    /// Another word is in the sum.
    #[inline(always)]
    #[must_use]
    pub fn add_word(self, word: u32) -> Self {
        self.plus(word.to_be())
    }

    /// Another 16-bit word is in the sum.
    #[inline(always)]
    #[must_use]
    pub fn add_half(self, half: u16) -> Self {
        self.plus(half.to_be() as u32)
    }

    /// An address is in the sum.
    #[inline(always)]
    #[must_use]
    pub fn add_address(self, address: &[u32; 4]) -> Self {
        self.add_word(address[0])
            .add_word(address[1])
            .add_word(address[2])
            .add_word(address[3])
    }

    /// The sum in 16 bits.
    #[inline(always)]
    pub fn folded(self) -> u16 {
        let sum = self.0;
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        // 33 bits, then 18, 17 and 16.
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum field of what was added up, as it lies in memory.
    #[inline(always)]
    pub fn complement(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// The sum, as `bpf_csum_diff` would return it.
    #[inline(always)]
    pub fn sum(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }

    /// A checksum field, as it lies in memory, after the change.
    #[inline(always)]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let old = !u16::from_ne_bytes(checksum) as u32;
        self.plus(old).complement()
    }

    #[inline(always)]
    fn plus(self, term: u32) -> Self {
        Self(self.0.wrapping_add(term as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::Difference;

    /// RFC 1071 over words in network order.
    fn checksum(words: &[u16]) -> [u8; 2] {
        let mut sum: u32 = words.iter().map(|&word| word as u32).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn an_update_equals_a_fresh_sum() {
        let mut words = [
            0x4500, 0x0073, 0x0000, 0x4000, 0x4011, 0xc0a8, 0x0001, 0xc0a8, 0x00c7,
        ];
        let before = checksum(&words);
        words[5] = 0x0a00;
        words[6] = 0xfffe;
        words[8] = 0xffff;
        let difference = Difference::default()
            .word(0xc0a8_0001, 0x0a00_fffe)
            .half(0x00c7, 0xffff);
        assert_eq!(difference.apply(before), checksum(&words));
    }

    #[test]
    fn carries_are_added_at_the_end() {
        let mut most = Difference::default();
        for _ in 0..100_000 {
            most = most.add_word(u32::MAX);
        }
        // In one's complement 0xffff is zero.
        assert_eq!((most.folded(), most.sum()), (0xffff, u32::MAX));
        let one = most.add_word(1);
        assert_eq!(one.folded().to_be(), 1);
        assert_eq!(Difference::of_sum(one.sum()).folded(), one.folded());
        assert_eq!(one.and(most).folded(), one.folded());
    }
}
