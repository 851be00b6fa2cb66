//! The row of `-m frag`.

use super::MatchDraft;
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, MatchReading, MatchRow, ONLY_V6, OptionRow, ReadOption, Support,
};
use crate::policy::packet_match::Frag;
use crate::policy::save::{Value, packet_values as values};

/// A row of the table, for what is done to this match.
macro_rules! option {
    ($name:literal, $arguments:literal, $negatable:literal, $read:expr) => {
        draft_option!(
            MatchDraft::Frag(Frag),
            &[$name],
            $arguments,
            $negatable,
            $read
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "frag",
    aliases: &[],
    families: ONLY_V6,
    support: Support::Yes,
    note: "Holds for nothing, as in iptables where connections are tracked: datagrams are put together before rules see them.",
    reading: Some(MatchReading {
        start: || MatchDraft::Frag(Frag::default()),
        protocols: &[],
        options: &[
            option!("fragid", 1, true, |frag, argument| {
                let value = values::range32(&argument.words[0])?;
                // iptables forgets a range of all, with `!` or without.
                let asked = (value != (0, u32::MAX)).then_some(argument.negatable(value));
                match asked {
                    Some(asked) => argument.once(&mut frag.id, asked),
                    None => Ok(()),
                }
            }),
            option!("fraglen", 1, true, |frag, argument| {
                let value = values::number32(&argument.words[0])?;
                argument.once(&mut frag.length, argument.negatable(value))
            }),
            option!("fragres", 0, false, |frag, argument| flag(
                &mut frag.reserved,
                argument
            )),
            option!("fragfirst", 0, false, |frag, argument| flag(
                &mut frag.first,
                argument
            )),
            option!("fragmore", 0, false, |frag, argument| {
                either(frag.last, argument)?;
                flag(&mut frag.more, argument)
            }),
            option!("fraglast", 0, false, |frag, argument| {
                either(frag.more, argument)?;
                flag(&mut frag.last, argument)
            }),
        ],
    }),
}];

fn flag(place: &mut bool, argument: &Argument<'_>) -> Value<()> {
    if std::mem::replace(place, true) {
        return Err(argument.twice());
    }
    Ok(())
}

fn either(other: bool, argument: &Argument<'_>) -> Value<()> {
    if !other {
        return Ok(());
    }
    let message = "`--fragmore` and `--fraglast` exclude each other";
    Err(Problem::wrong("excludes", argument.option.span, message).expected("one of them"))
}
