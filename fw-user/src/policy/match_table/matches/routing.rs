//! The row of `-m rt`.

use super::MatchDraft;
use super::packet::PacketDraft;
use crate::policy::match_table::{
    Argument, MatchReading, MatchRow, ONLY_V6, OptionRow, ReadOption, Support,
};
use crate::policy::model::Negatable;
use crate::policy::packet_match::{PacketMatch, Routing};
use crate::policy::save::packet_values as values;

/// An option: name, and what it does to the draft.
macro_rules! option {
    ($name:literal, |$routing:ident, $argument:ident| $read:expr) => {
        OptionRow {
            names: &[$name],
            arguments: 1,
            negatable: true,
            read: ReadOption::Into(|draft, $argument| match routing_of(draft) {
                Some($routing) => $read,
                None => Ok(()),
            }),
        }
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
                argument.once(&mut routing.kind, with_not(argument, value))
            }),
            option!("rt-segsleft", |routing, argument| {
                let value = values::range32(&argument.words[0])?;
                argument.once(&mut routing.left, with_not(argument, value))
            }),
            option!("rt-len", |routing, argument| {
                let value = values::number32(&argument.words[0])?;
                argument.once(&mut routing.length, with_not(argument, value))
            }),
            unsupported(&["rt-0-res"], 0),
            unsupported(&["rt-0-addrs"], 1),
            unsupported(&["rt-0-not-strict"], 0),
        ],
    }),
}];

fn with_not<T>(argument: &Argument<'_>, value: T) -> Negatable<T> {
    Negatable {
        not: argument.not,
        value,
    }
}

fn routing_of(draft: &mut MatchDraft) -> Option<&mut Routing> {
    match draft {
        MatchDraft::Packet(packet) => packet.routing(),
        _ => None,
    }
}
