//! The text of a `string` match: four cells. The first two hold its bytes, four in a word from the lowest;
//! the others, a byte for each of these, how many bytes of the text's beginning are what ends with it, less
//! than all (Knuth, Morris, Pratt 1977, table `next`).

use super::Cell;

/// The longest text (`XT_STRING_MAX_PATTERN_SIZE`, linux/netfilter/xt_string.h).
pub const LONGEST: usize = 128;
/// Cells of a text.
pub const CELLS: usize = 4;
/// Bit of [`super::Condition::Text`]'s flags: letters may be of either case.
pub const ANY_CASE: u32 = 1;

/// A text, in the order of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextFields {
    /// The bytes.
    pub bytes: [u8; LONGEST],
    /// How many there are.
    pub length: u8,
    /// Letters may be of either case.
    pub any_case: bool,
}

impl TextFields {
    /// The flags of its condition.
    pub const fn flags(&self) -> u32 {
        (self.length as u32) << 8 | if self.any_case { ANY_CASE } else { 0 }
    }

    /// Writes the cells.
    pub fn encode(&self) -> [Cell; CELLS] {
        let mut bytes = self.bytes;
        if self.any_case {
            for byte in &mut bytes {
                *byte = upper(*byte);
            }
        }
        let length = usize::from(self.length).min(LONGEST);
        let mut ends = [0_u8; LONGEST];
        let mut matched = 0;
        for place in 1..length {
            while matched != 0 && bytes[place] != bytes[matched] {
                matched = usize::from(ends[matched - 1]);
            }
            if bytes[place] == bytes[matched] {
                matched += 1;
            }
            ends[place] = matched as u8;
        }
        let mut cells = [Cell::default(); CELLS];
        let all = bytes.iter().chain(&ends).copied();
        for (number, byte) in all.enumerate() {
            let (cell, place) = (number / 64, number % 64);
            cells[cell].w[place / 4] |= u32::from(byte) << (place % 4 * 8);
        }
        cells
    }
}

/// How long a text is, by its condition's flags.
#[inline(always)]
pub const fn length(flags: u32) -> u32 {
    flags >> 8 & 0xff
}

/// A letter as a capital, of Latin-1, as the kernel counts (`toupper`, include/linux/ctype.h, by lib/ctype.c,
/// to which the sharp s is small, and the sign of division no letter).
#[inline(always)]
pub const fn upper(byte: u8) -> u8 {
    let ascii = byte.wrapping_sub(b'a') < 26;
    let latin = byte >= 0xdf && byte != 0xf7;
    if ascii || latin {
        byte.wrapping_sub(32)
    } else {
        byte
    }
}
