//! The row of `-m string`.

use super::{MatchDraft, Unfinished};
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::Match;
use crate::policy::packet_match::{Algorithm, PacketMatch, Text};
use crate::policy::save::{Value, Word, packet_values as values};
use crate::policy::source::Span;

/// `-m string` while its options are being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    bytes: Option<(bool, Vec<u8>)>,
    algorithm: Option<Algorithm>,
    from: Option<u16>,
    to: Option<u16>,
    any_case: Option<()>,
    /// Where the last option is that says from where to where.
    at: Span,
}

impl Draft {
    /// The match, if it says what is looked for, and how.
    pub fn finish(self) -> Result<Match, Unfinished> {
        let Some((not, bytes)) = self.bytes else {
            return Err(Unfinished::Says("--string or --hex-string"));
        };
        let Some(algorithm) = self.algorithm else {
            return Err(Unfinished::Says("--algo"));
        };
        let (from, to) = (self.from.unwrap_or(0), self.to.unwrap_or(u16::MAX));
        if from > to {
            let message = format!("nothing is from {from} to {to}");
            let problem = Problem::wrong("bad-range", self.at, message)
                .expected("a `--from` that is not behind `--to`");
            return Err(Unfinished::Wrong(Box::new(problem)));
        }
        Ok(Match::Packet(PacketMatch::Text(Text {
            not,
            bytes,
            algorithm,
            from,
            to,
            any_case: self.any_case.is_some(),
        })))
    }
}

/// A row of the table, for what is done to this match's draft.
macro_rules! option {
    ($name:literal, $arguments:literal, $negatable:literal, $read:expr) => {
        draft_option!(
            MatchDraft::Text(Draft),
            &[$name],
            $arguments,
            $negatable,
            $read
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "string",
    aliases: &[],
    families: BOTH,
    support: Support::Yes,
    note: "A text within `--to`, as since Linux 6.5. Both algorithms find it wherever it is in the packet; the kernel's `bm` does not where a packet is in pieces in memory. A datagram in fragments is searched as far as its first one goes. A search looks at every byte of every packet that meets it: ask for ports before.",
    reading: Some(MatchReading {
        start: || MatchDraft::Text(Draft::default()),
        protocols: &[],
        options: &[
            option!("string", 1, true, |draft, argument| {
                let [word] = argument.words else {
                    return Ok(());
                };
                let bytes = bounded(word, word.text.as_bytes().to_vec())?;
                argument.once(&mut draft.bytes, (argument.not, bytes))
            }),
            option!("hex-string", 1, true, |draft, argument| {
                let [word] = argument.words else {
                    return Ok(());
                };
                let bytes = bounded(word, hexadecimal(word)?)?;
                argument.once(&mut draft.bytes, (argument.not, bytes))
            }),
            option!("algo", 1, false, |draft, argument| {
                let [word] = argument.words else {
                    return Ok(());
                };
                let algorithm = match word.text.as_ref() {
                    "bm" => Algorithm::Bm,
                    "kmp" => Algorithm::Kmp,
                    _ => {
                        let message = format!("`{}` is no way to search", word.text);
                        let problem = Problem::wrong("bad-value", word.span, message);
                        return Err(problem.expected("bm or kmp"));
                    }
                };
                argument.once(&mut draft.algorithm, algorithm)
            }),
            option!("from", 1, false, |draft, argument| {
                let [word] = argument.words else {
                    return Ok(());
                };
                draft.at = word.span;
                let from = values::up_to(word, u16::MAX.into())? as u16;
                argument.once(&mut draft.from, from)
            }),
            option!("to", 1, false, |draft, argument| {
                let [word] = argument.words else {
                    return Ok(());
                };
                draft.at = word.span;
                let to = values::up_to(word, u16::MAX.into())? as u16;
                argument.once(&mut draft.to, to)
            }),
            option!("icase", 0, false, |draft, argument| argument
                .once(&mut draft.any_case, ())),
        ],
    }),
}];

/// A text of a length that the kernel takes.
fn bounded(word: &Word<'_>, bytes: Vec<u8>) -> Value<Vec<u8>> {
    if (1..=Text::LONGEST).contains(&bytes.len()) {
        return Ok(bytes);
    }
    let message = format!("the text has {} bytes", bytes.len());
    let expected = format!("from 1 to {} bytes", Text::LONGEST);
    Err(Problem::wrong("bad-text", word.span, message).expected(expected))
}

/// `--hex-string`: letters, and between bars bytes in hexadecimal. A backslash outside of bars makes a
/// letter of what follows it. iptables takes what follows a closing bar for a letter, even if that is a
/// bar (`parse_hex_string`, extensions/libxt_string.c).
fn hexadecimal(word: &Word<'_>) -> Value<Vec<u8>> {
    let bad = |what: &str| {
        let message = format!("`{}` has {what}", word.text);
        Problem::wrong("bad-text", word.span, message)
            .expected("letters, and bytes between bars, e.g. \"|0d 0a|Host\"")
    };
    let mut rest = word.text.as_bytes();
    let mut bytes = Vec::new();
    let mut within = false;
    while let [first, behind @ ..] = rest {
        match (first, within) {
            (b'\\', true) => return Err(bad("a backslash between bars")),
            (b'\\', false) => {
                let [letter, behind @ ..] = behind else {
                    return Err(bad("nothing behind its last backslash"));
                };
                bytes.push(*letter);
                rest = behind;
                continue;
            }
            (b'|', false) => {
                within = true;
                rest = behind;
                while let [b' ', behind @ ..] = rest {
                    rest = behind;
                }
                if rest.is_empty() {
                    break;
                }
            }
            (b'|', true) => {
                within = false;
                rest = behind;
                let [letter, behind @ ..] = rest else {
                    break;
                };
                bytes.push(*letter);
                rest = behind;
                continue;
            }
            _ => {}
        }
        if !within {
            bytes.push(rest[0]);
            rest = &rest[1..];
            continue;
        }
        let [high, low, behind @ ..] = rest else {
            return Err(bad("half a byte"));
        };
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let (Some(high), Some(low)) = (digit(high), digit(low)) else {
            return Err(bad("a byte that is not hexadecimal"));
        };
        if behind.is_empty() {
            return Err(bad("no closing bar"));
        }
        bytes.push((high * 16 + low) as u8);
        rest = behind.strip_prefix(b" ").unwrap_or(behind);
    }
    Ok(bytes)
}
