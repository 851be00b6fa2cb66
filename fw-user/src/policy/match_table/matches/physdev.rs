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
    note: "Exact where the kernel does not hand bridged frames to iptables, `sysctl net.bridge.bridge-nf-call-iptables=0` (and `-ip6tables`): no packet has a port then, only what is all inverted holds, and frames that a bridge only switches pass. Where it is on, for all or for one bridge, or would be, as `-m physdev` has iptables load br_netfilter, `load` refuses the match and says what to do.",
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
