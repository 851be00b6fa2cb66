//! SET.

use super::matches::set::{set_name, set_sides};
use super::targets::{TargetDraft, flag};
use super::{Argument, BOTH, OptionRow, ReadOption, Support, TargetRow, Value};
use crate::policy::error::Problem;
use crate::policy::model::{SetChange, Side};
use crate::policy::save::values::number;

pub(crate) const TARGETS: &[TargetRow] = &[TargetRow {
    name: "SET",
    families: BOTH,
    support: Support::Partly,
    note: "`--add-set` with `--exist` and `--timeout`, and `--del-set`, of sets without prefixes.",
    start: Some(TargetDraft::Set(SetChange::NONE)),
    tables: &[],
    options: &[
        OptionRow {
            names: &["add-set"],
            arguments: 2,
            negatable: false,
            read: ReadOption::Into(|draft, argument| {
                let TargetDraft::Set(change) = draft else {
                    return Ok(());
                };
                named(&mut change.add, argument)
            }),
        },
        OptionRow {
            names: &["del-set"],
            arguments: 2,
            negatable: false,
            read: ReadOption::Into(|draft, argument| {
                let TargetDraft::Set(change) = draft else {
                    return Ok(());
                };
                named(&mut change.delete, argument)
            }),
        },
        OptionRow {
            names: &["exist"],
            arguments: 0,
            negatable: false,
            read: ReadOption::Into(|draft, argument| match draft {
                TargetDraft::Set(change) => flag(&mut change.exist, argument),
                _ => Ok(()),
            }),
        },
        OptionRow {
            names: &["timeout"],
            arguments: 1,
            negatable: false,
            read: ReadOption::Into(|draft, argument| {
                let (TargetDraft::Set(change), [word]) = (draft, argument.words) else {
                    return Ok(());
                };
                let seconds = number(&word.text, u32::MAX - 1).ok_or_else(|| {
                    let message = format!("`{}` is no number of seconds", word.text);
                    Problem::wrong("bad-number", word.span, message).expected("seconds, 0 for ever")
                })?;
                argument.once(&mut change.timeout, seconds)
            }),
        },
        OptionRow {
            names: &["map-set"],
            arguments: 2,
            negatable: false,
            read: ReadOption::Unsupported("packets are not marked by sets: leave it out"),
        },
    ],
}];

fn named(place: &mut Option<(String, Vec<Side>)>, argument: &Argument<'_>) -> Value<()> {
    let [name, sides] = argument.words else {
        return Ok(());
    };
    argument.once(place, (set_name(name)?, set_sides(sides)?))
}
