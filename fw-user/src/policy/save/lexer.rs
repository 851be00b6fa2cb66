//! Lines and words of an iptables-save file, split exactly as iptables-restore splits them.

use std::borrow::Cow;

use crate::policy::source::Span;

/// One line without its line feed.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    pub text: &'a str,
    /// Byte offset of the line in its file.
    pub start: usize,
    /// False for a last line that the file ends without a line feed.
    pub terminated: bool,
}

impl Line<'_> {
    /// Where the line is, without blanks around it.
    pub fn span(&self) -> Span {
        let indent = self.text.len() - self.text.trim_start().len();
        let start = self.start + indent;
        Span {
            start,
            end: start + self.text.trim().len(),
        }
    }
}

/// The lines of a file.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    lines_between(text, 0, text.len())
}

/// The lines between two places where lines begin or end.
pub(crate) fn lines_between(
    text: &str,
    start: usize,
    end: usize,
) -> impl Iterator<Item = Line<'_>> {
    let mut start = start;
    text[start..end].split_inclusive('\n').map(move |whole| {
        let text = whole.strip_suffix('\n');
        let line = Line {
            text: text.unwrap_or(whole),
            start,
            terminated: text.is_some(),
        };
        start += whole.len();
        line
    })
}

/// A word: its text after quotes and escapes are gone, and where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word<'t> {
    /// A part of the line, unless quotes or escapes moved the letters.
    pub text: Cow<'t, str>,
    pub span: Span,
}

/// A quote that was opened and not closed: the offset of the quote.
pub(crate) struct OpenQuote(pub Span);

/// Splits a line into words.
///
/// As in iptables-restore: a double quote starts a quoted part anywhere in a word and the closing
/// quote ends the word; a backslash escapes only within quotes; single quotes mean nothing.
pub(crate) fn words(line: Line<'_>) -> Result<Vec<Word<'_>>, OpenQuote> {
    // More than most rules have.
    let mut words = Vec::with_capacity(16);
    let mut rest = line.text;
    loop {
        rest = rest.trim_start_matches(BLANKS);
        if rest.is_empty() {
            return Ok(words);
        }
        let start = line.start + (line.text.len() - rest.len());
        let ends = |byte| matches!(byte, b' ' | b'\t' | b'"');
        let end = rest.bytes().position(ends).unwrap_or(rest.len());
        let (plain, after) = rest.split_at(end);
        rest = after;
        let text = if after.starts_with('"') {
            let (quoted, after) = quoted(plain, after).ok_or_else(|| {
                let quote = start + plain.len();
                OpenQuote((quote..quote + 1).into())
            })?;
            rest = after;
            Cow::Owned(quoted)
        } else {
            Cow::Borrowed(plain)
        };
        let end = line.start + (line.text.len() - rest.len());
        words.push(Word {
            text,
            span: (start..end).into(),
        });
    }
}

const BLANKS: [char; 2] = [' ', '\t'];

/// A word that ends with a quoted part, and what follows it; nothing if the quote is not closed.
fn quoted<'t>(plain: &str, from_quote: &'t str) -> Option<(String, &'t str)> {
    let mut text = plain.to_owned();
    let mut letters = from_quote.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((text, &from_quote[at + 1..])),
            '\\' => text.push(letters.next()?.1),
            _ => text.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_where_iptables_restore_ends_them() {
        let cases: [(&str, &[&str]); 7] = [
            (r#"-A  INPUT	-j x"#, &["-A", "INPUT", "-j", "x"]),
            (r#""a b" c"#, &["a b", "c"]),
            (r#"a"b c"d"#, &["ab c", "d"]),
            (r#""a\"b\\" """#, &["a\"b\\", ""]),
            (r#"a\b 'c d'"#, &["a\\b", "'c", "d'"]),
            (r#""a""b""#, &["a", "b"]),
            ("  ", &[]),
        ];
        for (text, expected) in cases {
            let line = Line {
                text,
                start: 0,
                terminated: true,
            };
            let found = words(line)
                .map_err(|_| "open quote")
                .expect("all quotes are closed");
            let texts: Vec<_> = found.iter().map(|word| word.text.as_ref()).collect();
            assert_eq!(texts, expected, "{text}");
        }
    }
}
