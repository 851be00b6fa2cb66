//! The rows of [`crate::policy::packet_match`]: lengths, marks, owners, the time and the like.

/// An option of these matches: names, arguments, whether `!` may stand before it, and what it does
/// to the draft.
macro_rules! option {
    ($names:expr, $arguments:literal, $negatable:literal, $read:expr) => {
        draft_option!(
            MatchDraft::Packet(PacketDraft),
            $names,
            $arguments,
            $negatable,
            $read
        )
    };
}

/// An option of a match that has only this one: `$make` makes the match of its value.
macro_rules! whole {
    ($names:expr, $negatable:literal, $value:path, $make:path) => {
        option!($names, 1, $negatable, |draft, argument| {
            let value = $value(&argument.words[0])?;
            draft.set(argument, $make(argument.negatable(value)))
        })
    };
}

pub(crate) mod header;
pub(crate) mod machine;
pub(crate) mod statistic;
pub(crate) mod time;
pub(crate) mod transport;

use self::statistic::{STATISTIC, StatisticDraft};
use super::Unfinished;
use crate::policy::match_table::{Argument, MatchReading, MatchRow, Support};
use crate::policy::model::{Family, Match};
use crate::policy::packet_match::{AddressType, Ecn, Owner, PacketMatch};
use crate::policy::save::Value;

/// One of these matches while its options are being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct PacketDraft {
    /// What has been read, or what the match is before its first option.
    built: Option<PacketMatch>,
    /// The option that it cannot be without.
    missing: &'static str,
    statistic: StatisticDraft,
}

/// A match of which one option says all.
const fn one(missing: &'static str) -> PacketDraft {
    PacketDraft {
        built: None,
        missing,
        statistic: StatisticDraft::NONE,
    }
}

/// A match of several options.
fn many(built: PacketMatch, missing: &'static str) -> PacketDraft {
    PacketDraft {
        built: Some(built),
        ..one(missing)
    }
}

impl PacketDraft {
    /// A match of several options, of which it cannot be without one.
    pub fn of(built: PacketMatch, missing: &'static str) -> Self {
        many(built, missing)
    }

    /// What has been read.
    pub fn built(&mut self) -> Option<&mut PacketMatch> {
        self.built.as_mut()
    }

    pub fn finish(self) -> Result<Match, Unfinished> {
        if self.missing == STATISTIC {
            return self.statistic.finish().map(Match::Packet);
        }
        let says_nothing = match &self.built {
            None => true,
            Some(PacketMatch::Range {
                source,
                destination,
            }) => source.is_none() && destination.is_none(),
            Some(PacketMatch::Ecn(ecn)) => *ecn == Ecn::default(),
            Some(PacketMatch::Owner(owner)) => *owner == Owner::default(),
            Some(PacketMatch::AddressType(types)) => *types == AddressType::default(),
            Some(PacketMatch::Time(time)) if time.contiguous && time.daytime.0 < time.daytime.1 => {
                return Err(Unfinished::Says(
                    "a `--timestop` before its `--timestart`, which `--contiguous` is for",
                ));
            }
            Some(_) => false,
        };
        match self.built {
            Some(built) if !says_nothing => Ok(Match::Packet(built)),
            _ => Err(Unfinished::Says(self.missing)),
        }
    }

    /// Takes all that a match says, once.
    fn set(&mut self, argument: &Argument<'_>, built: PacketMatch) -> Value<()> {
        argument.once(&mut self.built, built)
    }
}

const fn yes(
    name: &'static str,
    families: &'static [Family],
    note: &'static str,
    reading: MatchReading,
) -> MatchRow {
    MatchRow {
        name,
        aliases: &[],
        families,
        support: Support::Yes,
        note,
        reading: Some(reading),
    }
}
