//! Lines and words of an iptables-save file, split exactly as iptables-restore splits them.

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
    let mut start = 0;
    text.split_inclusive('\n').map(move |whole| {
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
pub(crate) struct Word {
    pub text: String,
    pub span: Span,
}

/// A quote that was opened and not closed: the offset of the quote.
pub(crate) struct OpenQuote(pub Span);

/// Splits a line into words.
///
/// As in iptables-restore: a double quote starts a quoted part anywhere in a word and the closing
/// quote ends the word; a backslash escapes only within quotes; single quotes mean nothing.
pub(crate) fn words(line: Line<'_>) -> Result<Vec<Word>, OpenQuote> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut quote: Option<usize> = None;
    let mut escaped = false;
    for (offset, letter) in line.text.char_indices() {
        let at = line.start + offset;
        let after = at + letter.len_utf8();
        if quote.is_some() {
            let current = word.get_or_insert_with(|| Word {
                text: String::new(),
                span: (at..at).into(),
            });
            current.span.end = after;
            match letter {
                _ if escaped => {
                    current.text.push(letter);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    quote = None;
                    words.extend(word.take());
                }
                _ => current.text.push(letter),
            }
            continue;
        }
        match letter {
            ' ' | '\t' => words.extend(word.take()),
            _ => {
                let current = word.get_or_insert_with(|| Word {
                    text: String::new(),
                    span: (at..at).into(),
                });
                current.span.end = after;
                if letter == '"' {
                    quote = Some(at);
                } else {
                    current.text.push(letter);
                }
            }
        }
    }
    if let Some(at) = quote {
        return Err(OpenQuote((at..at + 1).into()));
    }
    words.extend(word);
    Ok(words)
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
            let texts: Vec<_> = found.iter().map(|word| word.text.as_str()).collect();
            assert_eq!(texts, expected, "{text}");
        }
    }
}
