//! `-m set`.

use super::MatchDraft;
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Match, SetMatch, Side};
use crate::policy::save::{Value, Word};

/// `-m set` while its options are being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    set: Option<(bool, String, Vec<Side>)>,
    return_nomatch: bool,
    keep_counters: bool,
    keep_subcounters: bool,
}

impl Draft {
    /// The match, if it names a set.
    pub fn finish(self) -> Option<Match> {
        let (not, name, sides) = self.set?;
        Some(Match::Set(SetMatch {
            not,
            name,
            sides,
            return_nomatch: self.return_nomatch,
            keep_counters: self.keep_counters,
            keep_subcounters: self.keep_subcounters,
        }))
    }
}

/// What to do instead of asking for an element's counters.
const COUNTERS: &str = "elements are not counted one by one: limit with `-m limit`";

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "set",
    aliases: &[],
    families: BOTH,
    support: Support::Partly,
    note: "Sets come from `ipset save` files that are loaded beside the rules; `fwbpf set` changes them while they are in use. Types hash:ip, hash:net, hash:ip,port, hash:net,port, hash:ip,port,ip, hash:ip,port,net, hash:net,net, bitmap:ip and bitmap:port, with `timeout` and `nomatch`; elements have no counters and comments.",
    reading: Some(MatchReading {
        start: || MatchDraft::Set(Draft::default()),
        protocols: &[],
        options: &[
            OptionRow {
                names: &["match-set", "set"],
                arguments: 2,
                negatable: true,
                read: ReadOption::Into(|draft, argument| {
                    let (MatchDraft::Set(draft), [name, sides]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    let value = (argument.not, set_name(name)?, set_sides(sides)?);
                    argument.once(&mut draft.set, value)
                }),
            },
            OptionRow {
                names: &["return-nomatch"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let MatchDraft::Set(draft) = draft else {
                        return Ok(());
                    };
                    flag(&mut draft.return_nomatch, argument, true)
                }),
            },
            OptionRow {
                names: &["update-counters"],
                arguments: 0,
                negatable: true,
                read: ReadOption::Into(|draft, argument| {
                    let MatchDraft::Set(draft) = draft else {
                        return Ok(());
                    };
                    flag(&mut draft.keep_counters, argument, argument.not)
                }),
            },
            OptionRow {
                names: &["update-subcounters"],
                arguments: 0,
                negatable: true,
                read: ReadOption::Into(|draft, argument| {
                    let MatchDraft::Set(draft) = draft else {
                        return Ok(());
                    };
                    flag(&mut draft.keep_subcounters, argument, argument.not)
                }),
            },
            unsupported(&["packets-eq"]),
            unsupported(&["packets-lt"]),
            unsupported(&["packets-gt"]),
            unsupported(&["bytes-eq"]),
            unsupported(&["bytes-lt"]),
            unsupported(&["bytes-gt"]),
        ],
    }),
}];

const fn unsupported(names: &'static [&'static str]) -> OptionRow<MatchDraft> {
    OptionRow {
        names,
        arguments: 1,
        negatable: true,
        read: ReadOption::Unsupported(COUNTERS),
    }
}

fn flag(place: &mut bool, argument: &Argument<'_>, value: bool) -> Value<()> {
    if std::mem::replace(place, value) {
        return Err(argument.twice());
    }
    Ok(())
}

/// The name of a set.
pub(crate) fn set_name(word: &Word<'_>) -> Value<String> {
    let name = word.text.as_ref();
    if name.is_empty() || name.starts_with('-') || name.len() > 31 {
        return Err(Problem::wrong(
            "bad-set-name",
            word.span,
            format!("`{name}` is no name of a set"),
        )
        .expected("1 to 31 characters, the first of them no `-`"));
    }
    Ok(name.to_owned())
}

/// `src,dst`: which of a packet's ends each part of an element is compared with.
pub(crate) fn set_sides(word: &Word<'_>) -> Value<Vec<Side>> {
    let mut sides = Vec::new();
    for (part, span) in word.parts(',') {
        sides.push(match part {
            "src" => Side::Source,
            "dst" => Side::Destination,
            _ => {
                return Err(Problem::wrong(
                    "bad-set-side",
                    span,
                    format!("`{part}` is no end of a packet"),
                )
                .expected("src or dst"));
            }
        });
        // `IPSET_DIM_MAX`
        if sides.len() > 6 {
            return Err(
                Problem::wrong("bad-set-side", span, "there are more than six sides")
                    .expected("as many as the set's elements have parts"),
            );
        }
    }
    Ok(sides)
}
