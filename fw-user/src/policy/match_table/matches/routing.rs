//! The row of `-m rt`.

use super::MatchDraft;
use super::packet::PacketDraft;
use crate::policy::match_table::{
    Argument, MatchReading, MatchRow, ONLY_V6, OptionRow, ReadOption, Support,
};
use crate::policy::packet_match::{PacketMatch, Routing};
use crate::policy::save::{Value, packet_values as values};

/// An option with one argument, which may stand behind `!`.
macro_rules! option {
    ($name:literal, |$routing:ident, $argument:ident| $read:expr) => {
        packet_part!(
            &[$name],
            1,
            true,
            PacketMatch::Routing($routing),
            |$argument| $read
        )
    };
}

const fn unsupported(name: &'static [&'static str], arguments: usize) -> OptionRow<MatchDraft> {
    OptionRow {
        names: name,
        arguments,
        negatable: false,
        read: ReadOption::Unsupported(
            "what is in a routing header of type 0 is not looked at, and the kernel drops such packets by itself (RFC 5095): `--rt-type 0` alone",
        ),
    }
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "rt",
    aliases: &[],
    families: ONLY_V6,
    support: Support::Partly,
    note: "`--rt-type`, `--rt-segsleft` and `--rt-len`, of IPv6's routing header.",
    reading: Some(MatchReading {
        start: || {
            let none = PacketMatch::Routing(Routing::default());
            MatchDraft::Packet(PacketDraft::of(none, ""))
        },
        protocols: &[],
        options: &[
            option!("rt-type", |routing, argument| {
                let value = values::up_to(&argument.words[0], 255)? as u8;
                argument.once(&mut routing.kind, argument.negatable(value))
            }),
            option!("rt-segsleft", |routing, argument| {
                let value = values::range32(&argument.words[0])?;
                argument.once(&mut routing.left, argument.negatable(value))
            }),
            option!("rt-len", |routing, argument| {
                let value = values::number32(&argument.words[0])?;
                argument.once(&mut routing.length, argument.negatable(value))
            }),
            unsupported(&["rt-0-res"], 0),
            unsupported(&["rt-0-addrs"], 1),
            unsupported(&["rt-0-not-strict"], 0),
        ],
    }),
}];
