//! The row of `-m time`.

use super::super::MatchDraft;
use super::{PacketDraft, many, yes};
use crate::policy::match_table::{Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption};
use crate::policy::packet_match::{PacketMatch, Time};
use crate::policy::save::{Value, packet_values as values};

/// A part of `-m time`.
macro_rules! time {
    ($names:expr, $arguments:literal, $negatable:literal, |$time:ident, $argument:ident| $read:expr) => {
        packet_part!(
            $names,
            $arguments,
            $negatable,
            PacketMatch::Time($time),
            |$argument| {
                $read;
                Ok(())
            }
        )
    };
}

pub(crate) const MATCHES: &[MatchRow] = &[yes(
    "time",
    BOTH,
    "By the kernel's clock, also after it was set. A leap second, or another time zone of the \
         kernel's for `--kerneltz`, takes effect with the next load.",
    MatchReading {
        start: || {
            let always = PacketMatch::Time(Time {
                dates: (0, Time::LAST_DATE),
                daytime: (0, Time::LAST_SECOND),
                weekdays: Time::WEEKDAYS,
                monthdays: Time::MONTHDAYS,
                kernel_zone: false,
                contiguous: false,
            });
            MatchDraft::Packet(many(always, ""))
        },
        protocols: &[],
        options: &[
            time!(&["datestart"], 1, false, |time, argument| {
                time.dates.0 = values::date(&argument.words[0])?
            }),
            time!(&["datestop"], 1, false, |time, argument| {
                time.dates.1 = values::date(&argument.words[0])?
            }),
            time!(&["timestart"], 1, false, |time, argument| {
                time.daytime.0 = values::daytime(&argument.words[0])?
            }),
            time!(&["timestop"], 1, false, |time, argument| {
                time.daytime.1 = values::daytime(&argument.words[0])?
            }),
            time!(&["weekdays"], 1, true, |time, argument| {
                let days = values::weekdays(&argument.words[0])?;
                let flip = if argument.not { Time::WEEKDAYS } else { 0 };
                time.weekdays = days ^ flip
            }),
            time!(&["monthdays"], 1, true, |time, argument| {
                let days = values::monthdays(&argument.words[0])?;
                let flip = if argument.not { Time::MONTHDAYS } else { 0 };
                time.monthdays = days ^ flip
            }),
            time!(&["kerneltz", "localtz"], 0, false, |time, _argument| {
                time.kernel_zone = true
            }),
            time!(&["utc"], 0, false, |time, _argument| {
                time.kernel_zone = false
            }),
            time!(&["contiguous"], 0, false, |time, _argument| {
                time.contiguous = true
            }),
        ],
    },
)];
