//! The row of `-m statistic`.

use super::super::{MatchDraft, Unfinished};
use super::{PacketDraft, one, yes};
use crate::policy::error::Problem;
use crate::policy::match_table::{Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption};
use crate::policy::model::Negatable;
use crate::policy::packet_match::{PacketMatch, Statistic};
use crate::policy::save::{Value, packet_values as values};
use crate::policy::source::Span;

/// `-m statistic` while its options are being read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StatisticDraft {
    mode: Option<values::Mode>,
    not: bool,
    probability: Option<u32>,
    every: Option<u32>,
    packet: Option<u32>,
    at: Span,
}

impl StatisticDraft {
    pub const NONE: Self = Self {
        mode: None,
        not: false,
        probability: None,
        every: None,
        packet: None,
        at: Span { start: 0, end: 0 },
    };

    pub fn finish(self) -> Result<PacketMatch, Unfinished> {
        let value = match (self.mode, self.probability, self.every, self.packet) {
            (Some(values::Mode::Random), Some(probability), None, None) => {
                Statistic::Random(probability)
            }
            (Some(values::Mode::Random), ..) => {
                return Err(Unfinished::Says("--probability alone"));
            }
            (Some(values::Mode::Nth), None, Some(every), Some(packet)) if packet < every => {
                Statistic::Nth { every, packet }
            }
            (Some(values::Mode::Nth), None, Some(_), Some(_)) => {
                let message = "the `--packet` is none of those that `--every` counts";
                let problem = Problem::wrong("bad-statistic", self.at, message)
                    .expected("a number below that of `--every`");
                return Err(Unfinished::Wrong(Box::new(problem)));
            }
            (Some(values::Mode::Nth), ..) => {
                return Err(Unfinished::Says("--every and --packet"));
            }
            (None, ..) => return Err(Unfinished::Says("--mode")),
        };
        Ok(PacketMatch::Statistic(Negatable {
            not: self.not,
            value,
        }))
    }
}

pub(super) const STATISTIC: &str = "--mode random or nth";

pub(crate) const MATCHES: &[MatchRow] = &[yes(
    "statistic",
    BOTH,
    "`--mode random` and `--mode nth`, whose count all CPUs share. A load begins it anew, as \
         iptables-restore does.",
    MatchReading {
        start: || MatchDraft::Packet(one(STATISTIC)),
        protocols: &[],
        options: &[
            option!(&["mode"], 1, false, |draft, argument| {
                let mode = values::mode(&argument.words[0])?;
                draft.statistic.at = argument.words[0].span;
                argument.once(&mut draft.statistic.mode, mode)
            }),
            option!(&["probability"], 1, true, |draft, argument| {
                let value = values::probability(&argument.words[0])?;
                draft.statistic.not = argument.not;
                argument.once(&mut draft.statistic.probability, value)
            }),
            option!(&["every"], 1, true, |draft, argument| {
                let value = values::count(&argument.words[0])?;
                draft.statistic.not = argument.not;
                argument.once(&mut draft.statistic.every, value)
            }),
            option!(&["packet"], 1, false, |draft, argument| {
                let value = values::number32(&argument.words[0])?;
                argument.once(&mut draft.statistic.packet, value)
            }),
        ],
    },
)];
