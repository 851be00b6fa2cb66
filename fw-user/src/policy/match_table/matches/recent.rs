//! `-m recent`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{MatchDraft, Unfinished};
use crate::policy::error::Problem;
use crate::policy::lists::{ListMatch, Question, Recent};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Family, Match, Side};
use crate::policy::save::{Value, Word, packet_values};
use crate::policy::source::Span;

/// `-m recent` while its options are being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    question: Option<(bool, Question)>,
    seconds: Option<u32>,
    reap: Option<Span>,
    hits: Option<u32>,
    hops: Option<Span>,
    name: Option<String>,
    mask: Option<Option<IpAddr>>,
    source: Option<()>,
    destination: Option<()>,
    side: Option<Side>,
    /// Where the last option is that only `--rcheck` and `--update` go with.
    at: Option<Span>,
}

impl Draft {
    /// The match, if it asks something and its options go together (`recent_check`,
    /// extensions/libxt_recent.c, and `recent_mt_check`, net/netfilter/xt_recent.c).
    pub fn finish(self, family: Family) -> Result<Match, Unfinished> {
        let Some((not, question)) = self.question else {
            return Err(Unfinished::Says("--set, --rcheck, --update or --remove"));
        };
        let asks = matches!(question, Question::Check | Question::Update);
        if let Some(at) = self.at
            && !asks
        {
            let message = format!("`--{}` knows no times", question.option());
            return Err(wrong(at, message, "`--rcheck` or `--update`"));
        }
        if let Some(at) = self.reap
            && self.seconds.is_none()
        {
            let message = "`--reap` does not know what is old";
            return Err(wrong(at, message, "`--seconds` beside it"));
        }
        let whole = match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::BROADCAST),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        };
        Ok(Match::List(ListMatch::Recent(Recent {
            not,
            question,
            seconds: self.seconds.unwrap_or(0),
            reap: self.reap.is_some(),
            hits: self.hits.unwrap_or(0),
            hops: self.hops.is_some(),
            name: self.name.unwrap_or_else(|| Recent::NAME.to_owned()),
            mask: self.mask.flatten().unwrap_or(whole),
            side: self.side.unwrap_or(Side::Source),
        })))
    }
}

fn wrong(at: Span, message: impl Into<String>, expected: &'static str) -> Unfinished {
    let problem = Problem::wrong("bad-recent", at, message).expected(expected);
    Unfinished::Wrong(Box::new(problem))
}

/// A row of the table, for what is done to this match's draft.
macro_rules! option {
    ($name:literal, $arguments:literal, $negatable:literal, $read:expr) => {
        draft_option!(
            MatchDraft::Recent(Draft),
            &[$name],
            $arguments,
            $negatable,
            $read
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "recent",
    aliases: &[],
    families: BOTH,
    support: Support::Yes,
    note: "Lists of 100 addresses, of which the one used longest ago makes way, as in xt_recent. A list lives on over a load for as long as rules name it; `fwbpf recent` shows and changes it, as /proc/net/xt_recent does. `--hitcount` up to 65,535.",
    reading: Some(MatchReading {
        start: || MatchDraft::Recent(Draft::default()),
        protocols: &[],
        options: &[
            option!("set", 0, true, |draft, argument| ask(
                draft,
                argument,
                Question::Set
            )),
            option!("rcheck", 0, true, |draft, argument| ask(
                draft,
                argument,
                Question::Check
            )),
            option!("update", 0, true, |draft, argument| ask(
                draft,
                argument,
                Question::Update
            )),
            option!("remove", 0, true, |draft, argument| ask(
                draft,
                argument,
                Question::Remove
            )),
            option!("seconds", 1, false, |draft, argument| {
                draft.at = Some(argument.option.span);
                let seconds = word(argument, packet_values::count)?;
                argument.once(&mut draft.seconds, seconds)
            }),
            option!("reap", 0, false, |draft, argument| {
                draft.at = Some(argument.option.span);
                argument.once(&mut draft.reap, argument.option.span)
            }),
            option!("hitcount", 1, false, |draft, argument| {
                let hits = word(argument, hits)?;
                if hits != 0 {
                    draft.at = Some(argument.option.span);
                }
                argument.once(&mut draft.hits, hits)
            }),
            option!("rttl", 0, false, |draft, argument| {
                draft.at = Some(argument.option.span);
                argument.once(&mut draft.hops, argument.option.span)
            }),
            option!("name", 1, false, |draft, argument| {
                let name = word(argument, |word| list_name(word, LONGEST_NAME))?;
                argument.once(&mut draft.name, name)
            }),
            option!("mask", 1, false, |draft, argument| {
                let mask = word(argument, |word| mask(word, argument.family))?;
                argument.once(&mut draft.mask, mask)
            }),
            option!("rsource", 0, false, |draft, argument| {
                draft.side = Some(Side::Source);
                argument.once(&mut draft.source, ())
            }),
            option!("rdest", 0, false, |draft, argument| {
                draft.side = Some(Side::Destination);
                argument.once(&mut draft.destination, ())
            }),
        ],
    }),
}];

/// `XT_RECENT_NAME_LEN`, without the terminating zero.
const LONGEST_NAME: usize = 199;

/// Reads an option's one argument.
pub(super) fn word<T: Default>(
    argument: &Argument<'_>,
    read: impl Fn(&Word<'_>) -> Value<T>,
) -> Value<T> {
    match argument.words {
        [word] => read(word),
        _ => Ok(T::default()),
    }
}

fn ask(draft: &mut Draft, argument: &Argument<'_>, question: Question) -> Value<()> {
    if let Some((_, before)) = draft.question
        && before != question
    {
        let option = argument.option;
        let message = format!("`{}` stands beside `--{}`", option.text, before.option());
        return Err(Problem::wrong("bad-recent", option.span, message)
            .expected("one of --set, --rcheck, --update and --remove")
            .help("write `-m recent` before each"));
    }
    argument.once(&mut draft.question, (argument.not, question))
}

fn hits(word: &Word<'_>) -> Value<u32> {
    let hits = packet_values::number32(word)?;
    if hits > Recent::HITS_MAX {
        let message = format!("`--hitcount {hits}` is more than a list remembers of an address");
        return Err(Problem::wrong("bad-recent", word.span, message)
            .expected(format!("at most {}", Recent::HITS_MAX))
            .help("count in `-m hashlimit`, which remembers a rate instead of every packet"));
    }
    Ok(hits)
}

/// The name of a list, which would be a file in /proc (`xt_check_proc_name`,
/// net/netfilter/x_tables.c).
pub(super) fn list_name(word: &Word<'_>, longest: usize) -> Value<String> {
    let name = word.text.as_ref();
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/\"'\\".contains(&byte);
    let good = !name.is_empty() && !name.starts_with('-') && name.bytes().all(plain);
    if !good || matches!(name, "." | "..") || name.len() > longest {
        let message = format!("`{name}` is no name of a list");
        return Err(
            Problem::wrong("bad-list-name", word.span, message).expected(format!(
                "1 to {longest} letters, digits and signs, without blanks, quotes and slashes"
            )),
        );
    }
    Ok(name.to_owned())
}

fn mask(word: &Word<'_>, family: Family) -> Value<Option<IpAddr>> {
    let address: Option<IpAddr> = match family {
        Family::Ipv4 => word.text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::Ipv6 => word.text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    };
    if address.is_none() {
        let message = format!("`{}` is no mask", word.text);
        return Err(
            Problem::wrong("bad-mask", word.span, message).expected(match family {
                Family::Ipv4 => "a mask such as 255.255.255.0",
                Family::Ipv6 => "a mask such as ffff:ffff:ffff:ffff::",
            }),
        );
    }
    Ok(address)
}
