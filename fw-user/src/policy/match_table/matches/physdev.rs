//! The row of `-m physdev`.

use super::{MatchDraft, Unfinished};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{InterfacePattern, Match, Negatable};
use crate::policy::packet_match::{PacketMatch, Physdev};
use crate::policy::save::{Value, values};

/// The match, if it says anything.
pub(super) fn finish(physdev: Physdev) -> Result<Match, Unfinished> {
    if physdev == Physdev::default() {
        return Err(Unfinished::Says("one of its options"));
    }
    Ok(Match::Packet(PacketMatch::Physdev(physdev)))
}

/// A row of the table, for what is done to this match.
macro_rules! option {
    ($name:literal, $arguments:literal, $read:expr) => {
        draft_option!(
            MatchDraft::Physdev(Physdev),
            &[$name],
            $arguments,
            true,
            $read
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "physdev",
    aliases: &[],
    families: BOTH,
    support: Support::Partly,
    note: "Where a bridge has iptables see what it switches (`sysctl net.bridge.bridge-nf-call-iptables=1`, `-ip6tables`, or its own setting); where none does, no packet has a port, and only what is all inverted holds. Where br_netfilter is a module that is not loaded, `load` asks for that to be settled. `! --physdev-out` without an option that is not inverted is refused where a bridge does. Of a packet that is routed, the port that it came in by is known unless it had to wait for a neighbour's address.",
    reading: Some(MatchReading {
        start: || MatchDraft::Physdev(Physdev::default()),
        protocols: &[],
        options: &[
            option!("physdev-is-in", 0, |physdev, argument| argument
                .once(&mut physdev.is_in, argument.not)),
            option!("physdev-in", 1, |physdev, argument| {
                let port = port(argument)?;
                argument.once(&mut physdev.input, port)
            }),
            option!("physdev-is-out", 0, |physdev, argument| argument
                .once(&mut physdev.is_out, argument.not)),
            option!("physdev-out", 1, |physdev, argument| {
                let port = port(argument)?;
                argument.once(&mut physdev.output, port)
            }),
            option!("physdev-is-bridged", 0, |physdev, argument| argument
                .once(&mut physdev.bridged, argument.not)),
        ],
    }),
}];

fn port(argument: &Argument<'_>) -> Value<Negatable<InterfacePattern>> {
    Ok(Negatable {
        not: argument.not,
        value: values::interface(&argument.words[0])?,
    })
}
