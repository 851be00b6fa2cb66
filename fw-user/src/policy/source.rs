//! The files of a policy and the places in them.

use std::ops::Range;

use super::model::Family;

/// A policy file as read from disk: iptables-save's format, or policy.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path as the user gave it.
    pub name: String,
    /// What is in it.
    pub text: String,
    /// The IP version that `--ipv4` or `--ipv6` named; `None` to find out.
    pub family: Option<Family>,
}

impl SourceFile {
    /// A file from its bytes. Bytes that are not UTF-8 become U+FFFD: they can only matter in a
    /// comment, where iptables takes any bytes.
    pub fn new(name: impl Into<String>, bytes: &[u8], family: Option<Family>) -> Self {
        Self {
            name: name.into(),
            text: String::from_utf8_lossy(bytes).into_owned(),
            family,
        }
    }
}

/// Bytes of a file, from `start` up to but not including `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// From the start of this span to the end of the other.
    pub fn to(self, other: Self) -> Self {
        Self {
            start: self.start,
            end: other.end,
        }
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self {
            start: range.start,
            end: range.end,
        }
    }
}

/// The line and the column (in characters) of a byte, both from 1.
pub(crate) fn line_and_column(text: &str, byte: usize) -> (u32, u32) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[start..].chars().count() + 1;
    (saturate(line), saturate(column))
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
