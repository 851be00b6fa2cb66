//! Updates of SCTP's checksum, CRC32c (RFC 9260, appendix A).
//!
//! A CRC is linear: the one of a changed message differs from the old one by the one of the change, which
//! here is four bytes with nothing but zeroes behind them. Those four are a polynomial, and each bit behind
//! multiplies it by x, modulo Castagnoli's. (What a CRC begins with and ends with cancels out.) Bits are
//! reflected: the highest bit of a word stands for the lowest power.

/// Castagnoli's polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The number one.
const ONE: u32 = 1 << 31;

/// What so many bytes are, in the lower byte of their number and in the higher one: a power of x each.
/// Together two multiplications, whatever the length.
static LOW: [u32; 256] = powers(times_byte(ONE));
static HIGH: [u32; 256] = powers(LOW_TIMES_256);

const LOW_TIMES_256: u32 = times_byte(powers(times_byte(ONE))[255]);

/// By how much the CRC of a message of `length` bytes, fewer than 2^16, changes with its first word; both
/// words are as they lie in memory on a machine with its lowest byte first.
#[inline(always)]
pub fn change_of(first_word: u32, length: u32) -> u32 {
    let low = LOW[(length & 0xff) as usize];
    let high = HIGH[(length >> 8 & 0xff) as usize];
    times(times(first_word, low), high)
}

#[inline(always)]
const fn times(mut one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= other & (one >> 31).wrapping_neg();
        one <<= 1;
        other = times_x(other);
        bit += 1;
    }
    product
}

#[inline(always)]
const fn times_x(word: u32) -> u32 {
    word >> 1 ^ POLYNOMIAL & (word & 1).wrapping_neg()
}

const fn times_byte(mut word: u32) -> u32 {
    let mut bit = 0;
    while bit < 8 {
        word = times_x(word);
        bit += 1;
    }
    word
}

const fn powers(base: u32) -> [u32; 256] {
    let mut all = [ONE; 256];
    let mut exponent = 1;
    while exponent < all.len() {
        all[exponent] = times(all[exponent - 1], base);
        exponent += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{POLYNOMIAL, change_of};

    /// Byte by byte.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 != 0 {
                    crc >> 1 ^ POLYNOMIAL
                } else {
                    crc >> 1
                };
            }
        }
        !crc
    }

    #[test]
    fn a_change_of_the_first_word_is_what_a_fresh_sum_says() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let lengths = (4..2100).chain([4095, 4096, 4097, 9000, 40_000, 65_279, 65_280, 65_535]);
        let mut room = [0; u16::MAX as usize];
        for length in lengths {
            let bytes = &mut room[..length as usize];
            bytes.fill_with(|| random() as u8);
            let before = crc32c(bytes);
            let change = random() as u32;
            for (byte, by) in bytes.iter_mut().zip(change.to_le_bytes()) {
                *byte ^= by;
            }
            let by = change_of(change, length);
            assert_eq!(before ^ by, crc32c(bytes), "{length} bytes");
        }
    }
}
