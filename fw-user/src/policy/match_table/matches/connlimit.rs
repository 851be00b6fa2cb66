//! `-m connlimit`.

use super::recent::word;
use super::{MatchDraft, Unfinished};
use crate::policy::error::Problem;
use crate::policy::lists::{Connlimit, Hashlimit, ListMatch};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Family, Match, Side};
use crate::policy::save::{Value, Word, packet_values};

/// `-m connlimit` while its options are being read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Draft {
    /// Above or not, and how many.
    limit: Option<(bool, u32)>,
    bits: Option<u8>,
    side: Option<Side>,
}

impl Draft {
    /// The match, if it says how many.
    pub fn finish(self, family: Family) -> Result<Match, Unfinished> {
        let Some((above, limit)) = self.limit else {
            return Err(Unfinished::Says("--connlimit-upto or --connlimit-above"));
        };
        Ok(Match::List(ListMatch::Connlimit(Connlimit {
            above,
            limit,
            bits: self.bits.unwrap_or(Hashlimit::whole(family)),
            side: self.side.unwrap_or(Side::Source),
            number: 0,
        })))
    }
}

/// A row of the table, for what is done to this match's draft.
macro_rules! option {
    ($name:literal, $arguments:literal, $negatable:literal, $read:expr) => {
        draft_option!(
            MatchDraft::Connlimit(Draft),
            &[$name],
            $arguments,
            $negatable,
            $read
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "connlimit",
    aliases: &[],
    families: BOTH,
    support: Support::Yes,
    note: "Each rule counts the connections that it saw open, by address under a mask, as xt_connlimit does: put `--syn` or `--ctstate NEW` before it. A load begins anew. A rule has room for 65536 addresses and connections together.",
    reading: Some(MatchReading {
        start: || MatchDraft::Connlimit(Draft::default()),
        protocols: &[],
        options: &[
            option!("connlimit-upto", 1, true, |draft, argument| {
                let limit = word(argument, packet_values::number32)?;
                argument.once(&mut draft.limit, (argument.not, limit))
            }),
            option!("connlimit-above", 1, true, |draft, argument| {
                let limit = word(argument, packet_values::number32)?;
                argument.once(&mut draft.limit, (!argument.not, limit))
            }),
            option!("connlimit-mask", 1, false, |draft, argument| {
                let bits = word(argument, |word| bits(word, argument.family))?;
                argument.once(&mut draft.bits, bits)
            }),
            option!("connlimit-saddr", 0, false, |draft, argument| argument
                .once(&mut draft.side, Side::Source)),
            option!("connlimit-daddr", 0, false, |draft, argument| argument
                .once(&mut draft.side, Side::Destination)),
        ],
    }),
}];

/// The length of a prefix, or a mask that has one.
fn bits(word: &Word<'_>, family: Family) -> Value<u8> {
    let most = Hashlimit::whole(family);
    let prefix = match (word.text.parse(), family) {
        (Ok(std::net::IpAddr::V4(mask)), Family::Ipv4) => {
            let bits = mask.to_bits();
            Some((bits.leading_ones(), bits.count_ones()))
        }
        (Ok(std::net::IpAddr::V6(mask)), Family::Ipv6) => {
            let bits = mask.to_bits();
            Some((bits.leading_ones(), bits.count_ones()))
        }
        _ => None,
    };
    match prefix {
        Some((leading, all)) if leading == all => Ok(leading as u8),
        Some(_) => {
            let message = format!("`{}` is no mask of a network", word.text);
            Err(Problem::wrong("bad-mask", word.span, message)
                .expected(format!("a number of bits from 0 to {most}")))
        }
        None => packet_values::up_to(word, most.into()).map(|bits| bits as u8),
    }
}
