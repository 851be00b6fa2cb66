//! The files of a policy and the places in them.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

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
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>, family: Option<Family>) -> Self {
        Self {
            name: name.into(),
            // The common case first: nothing is copied.
            text: String::from_utf8(bytes.into())
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
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

/// Where the lines of a file begin, to tell places quickly in long files.
#[derive(Clone, Debug, Default)]
pub(crate) struct LineIndex {
    /// Pieces of a file that are read side by side share them.
    starts: Arc<Vec<usize>>,
    /// How many of them are looked at by whoever asks for the lines that follow.
    until: usize,
    /// The line of the last question: the next is most often about the same or the one after.
    last: Cell<usize>,
}

impl LineIndex {
    pub fn new(text: &str) -> Self {
        let newlines = || memchr::memchr_iter(b'\n', text.as_bytes());
        let mut starts = Vec::with_capacity(newlines().count() + 1);
        starts.push(0);
        starts.extend(newlines().map(|newline| newline + 1));
        Self {
            until: starts.len(),
            starts: Arc::new(starts),
            last: Cell::new(0),
        }
    }

    /// The same for a piece that ends here.
    pub fn until(&self, end: usize) -> Self {
        Self {
            until: self.starts.partition_point(|start| *start < end),
            ..self.clone()
        }
    }

    /// Where lines begin, from the one that begins here on.
    pub fn starts_from(&self, byte: usize) -> &[usize] {
        let first = self.starts.partition_point(|start| *start < byte);
        self.starts.get(first..self.until).unwrap_or_default()
    }

    /// The line of a byte, from 1.
    pub fn line(&self, byte: usize) -> u32 {
        saturate(self.number(byte))
    }

    fn number(&self, byte: usize) -> usize {
        let begun = |line: usize| self.starts.get(line).is_some_and(|start| *start <= byte);
        let last = self.last.get();
        let near = (last..last + 2).find(|line| *line > 0 && begun(line - 1) && !begun(*line));
        let number = near.unwrap_or_else(|| self.starts.partition_point(|start| *start <= byte));
        self.last.set(number);
        number
    }

    /// The column of a byte in characters, from 1.
    pub fn column(&self, text: &str, byte: usize) -> u32 {
        let before = self.number(byte);
        let start = before
            .checked_sub(1)
            .and_then(|index| self.starts.get(index));
        let left = start
            .and_then(|start| text.get(*start..byte))
            .unwrap_or_default();
        saturate(left.chars().count() + 1)
    }
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_ends_where_the_next_begins() {
        let lines = LineIndex::new("a\nb\nc\nd");
        assert_eq!(lines.starts_from(1), [2, 4, 6]);
        assert_eq!(lines.until(4).starts_from(1), [2]);
        assert!(lines.until(4).starts_from(6).is_empty());
        assert_eq!(lines.until(4).line(6), 4);
    }

    #[test]
    fn places_count_from_one_and_in_characters() {
        let text = "ab\n\u{e9}c\n\nd";
        let lines = LineIndex::new(text);
        let places: Vec<_> = [0, 1, 2, 3, 5, 7, 8, 9]
            .map(|byte| (lines.line(byte), lines.column(text, byte)))
            .to_vec();
        let expected = [
            (1, 1),
            (1, 2),
            (1, 3),
            (2, 1),
            (2, 2),
            (3, 1),
            (4, 1),
            (4, 2),
        ];
        assert_eq!(places, expected);
    }
}
