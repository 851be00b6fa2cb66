//! `-m string`.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use fw_common::abi::blob::TextFields;

/// `-m string`: a text that a packet holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// `!` before the text.
    pub not: bool,
    /// `--string` or `--hex-string`: from 1 to [`Text::LONGEST`] bytes.
    pub bytes: Vec<u8>,
    /// `--algo`. Both find the same.
    pub algorithm: Algorithm,
    /// `--from`: the first byte that counts, from the IP header's.
    pub from: u16,
    /// `--to`: the first that does not count any more.
    pub to: u16,
    /// `--icase`.
    pub any_case: bool,
}

/// `--algo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Boyer-Moore.
    Bm,
    /// Knuth-Morris-Pratt.
    Kmp,
}

impl Algorithm {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bm => "bm",
            Self::Kmp => "kmp",
        }
    }
}

impl Text {
    /// The longest text.
    pub const LONGEST: usize = fw_common::abi::blob::text::LONGEST;

    /// The text as the datapath has it.
    pub fn fields(&self) -> TextFields {
        let mut bytes = [0; Self::LONGEST];
        for (place, byte) in bytes.iter_mut().zip(&self.bytes) {
            *place = *byte;
        }
        TextFields {
            bytes,
            length: self.bytes.len().min(Self::LONGEST) as u8,
            any_case: self.any_case,
        }
    }

    /// Writes the options as `string_save` does (extensions/libxt_string.c): in hexadecimal if a byte is
    /// none that can be printed, or the last one is a backslash.
    pub(super) fn write(&self, f: &mut String) -> fmt::Result {
        f.push_str(if self.not { " ! " } else { " " });
        let printable = |byte: &u8| (0x20..0x7f).contains(byte);
        if self.bytes.iter().all(printable) && self.bytes.last() != Some(&b'\\') {
            f.push_str("--string \"");
            for byte in &self.bytes {
                if matches!(byte, b'"' | b'\\') {
                    f.push('\\');
                }
                f.push(char::from(*byte));
            }
            f.push('"');
        } else {
            f.push_str("--hex-string \"|");
            for byte in &self.bytes {
                write!(f, "{byte:02x}")?;
            }
            f.push_str("|\"");
        }
        write!(f, " --algo {}", self.algorithm.name())?;
        if self.from != 0 {
            write!(f, " --from {}", self.from)?;
        }
        if self.to != u16::MAX {
            write!(f, " --to {}", self.to)?;
        }
        if self.any_case {
            f.push_str(" --icase");
        }
        Ok(())
    }
}
