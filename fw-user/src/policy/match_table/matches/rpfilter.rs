//! The row of `-m rpfilter`.

use super::MatchDraft;
use crate::policy::match_table::{BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support};
use crate::policy::model::Match;
use crate::policy::packet_match::PacketMatch;

/// `-m rpfilter` while its options are being read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Draft {
    loose: Option<()>,
    invert: Option<()>,
}

impl Draft {
    /// The match.
    pub fn finish(self) -> Match {
        Match::Packet(PacketMatch::ReversePath {
            loose: self.loose.is_some(),
            invert: self.invert.is_some(),
        })
    }
}

const fn unsupported(
    name: &'static [&'static str],
    instead: &'static str,
) -> OptionRow<MatchDraft> {
    OptionRow {
        names: name,
        arguments: 0,
        negatable: false,
        read: ReadOption::Unsupported(instead),
    }
}

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "rpfilter",
    aliases: &[],
    families: BOTH,
    support: Support::Partly,
    note: "`--loose` and `--invert`. The kernel's routing tables and rules are asked for each packet. `load` refuses it where they do not say all that is needed: where loopback's forwarding is off, in VRFs, and, without `--loose`, where routes lead to a prefix by several interfaces. If forwarding is switched off later, every way is taken for right, and counted (`path_unknown` in `fwbpf status`). `fwbpf explain` takes it for right, too.",
    reading: Some(MatchReading {
        start: || MatchDraft::ReversePath(Draft::default()),
        protocols: &[],
        options: &[
            OptionRow {
                names: &["loose"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    MatchDraft::ReversePath(path) => argument.once(&mut path.loose, ()),
                    _ => Ok(()),
                }),
            },
            OptionRow {
                names: &["invert"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    MatchDraft::ReversePath(path) => argument.once(&mut path.invert, ()),
                    _ => Ok(()),
                }),
            },
            unsupported(
                &["validmark"],
                "kernels before 6.10 do not tell a program which way a mark leads: leave it out where no routing rule asks for marks",
            ),
            unsupported(
                &["accept-local"],
                "it is not told by which interface this host's own addresses are reached: match them with `-s` or `-m addrtype --src-type LOCAL` before",
            ),
        ],
    }),
}];
