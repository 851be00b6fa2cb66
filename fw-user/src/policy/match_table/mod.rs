//! One row per match and target of iptables 1.8: its names, how it is read, and what fwbpf does
//! with it. The parser, its error messages and docs/iptables-support.md read these rows.

/// A row of the table, for what an option does to the draft of one match or target: the draft, names,
/// arguments, whether `!` may stand before it, and what it does.
macro_rules! draft_option {
    ($enum:ident::$variant:ident($draft:ty), $names:expr, $arguments:expr, $negatable:expr, $read:expr) => {
        OptionRow {
            names: $names,
            arguments: $arguments,
            negatable: $negatable,
            read: ReadOption::Into(|draft, argument| match draft {
                $enum::$variant(draft) => {
                    let read: fn(&mut $draft, &Argument<'_>) -> Value<()> = $read;
                    read(draft, argument)
                }
                _ => Ok(()),
            }),
        }
    };
}

mod change;
mod flow_mark;
mod foreign;
mod log;
mod matches;
mod nat;
mod reject;
mod segment_size;
mod set_target;
mod support;
mod targets;

#[cfg(feature = "testing")]
pub(crate) use matches::hashlimit;
pub(crate) use matches::{MATCHES, MatchDraft, Unfinished};
pub use support::support_document;
pub(crate) use targets::{TARGETS, TargetDraft};

use super::error::Problem;
use super::ids::TableName;
use super::model::{Family, Negatable};
use super::save::{Value, Word};

/// How much of a match or target works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    Yes,
    Partly,
    No,
}

/// A match.
pub(crate) struct MatchRow {
    /// The name that is printed.
    pub name: &'static str,
    /// Further names that `-m` takes.
    pub aliases: &'static [&'static str],
    /// The IP versions that have it.
    pub families: &'static [Family],
    pub support: Support,
    /// What works, in a sentence; for what does not, why and what to write instead.
    pub note: &'static str,
    /// How it is read; `None` if it is not supported.
    pub reading: Option<MatchReading>,
}

/// How a match is read.
pub(crate) struct MatchReading {
    /// The match before its first option.
    pub start: fn() -> MatchDraft,
    /// The protocols of which the rule must name one; any if empty.
    pub protocols: &'static [u8],
    pub options: &'static [OptionRow<MatchDraft>],
}

/// A target.
pub(crate) struct TargetRow {
    pub name: &'static str,
    pub families: &'static [Family],
    pub support: Support,
    pub note: &'static str,
    /// The draft it begins with; `None` if it is not supported.
    pub start: Option<TargetDraft>,
    /// The tables it may stand in; any if empty.
    pub tables: &'static [TableName],
    pub options: &'static [OptionRow<TargetDraft>],
}

/// An option of a match or target.
pub(crate) struct OptionRow<Draft: 'static> {
    /// The names without the dashes; the first is the one that is printed.
    pub names: &'static [&'static str],
    /// How many words follow it.
    pub arguments: usize,
    /// Whether `!` may stand before it.
    pub negatable: bool,
    pub read: ReadOption<Draft>,
}

/// What an option does to its match or target.
pub(crate) enum ReadOption<Draft: 'static> {
    /// Reads the arguments into the draft.
    Into(fn(&mut Draft, &Argument<'_>) -> Value<()>),
    /// iptables has the option, fwbpf does not; what to do instead.
    Unsupported(&'static str),
}

/// An option as it was written.
pub(crate) struct Argument<'a> {
    pub option: &'a Word<'a>,
    pub not: bool,
    /// As many as [`OptionRow::arguments`] says.
    pub words: &'a [Word<'a>],
    pub family: Family,
    /// The protocol that `-p` named before, if it is not negated.
    pub protocol: Option<u8>,
}

impl Argument<'_> {
    /// Puts a value where none may be yet.
    pub fn once<T>(&self, place: &mut Option<T>, value: T) -> Value<()> {
        if place.is_some() {
            return Err(self.twice());
        }
        *place = Some(value);
        Ok(())
    }

    /// A value with the `!` before its option.
    pub fn negatable<T>(&self, value: T) -> Negatable<T> {
        Negatable {
            not: self.not,
            value,
        }
    }

    /// The error for an option that is given again.
    pub fn twice(&self) -> Problem {
        let message = format!("`{}` is given twice in one match", self.option.text);
        Problem::wrong("given-twice", self.option.span, message).expected("only one")
    }
}

/// Both IP versions.
pub(crate) const BOTH: &[Family] = &[Family::Ipv4, Family::Ipv6];
/// iptables only.
pub(crate) const ONLY_V4: &[Family] = &[Family::Ipv4];
/// ip6tables only.
pub(crate) const ONLY_V6: &[Family] = &[Family::Ipv6];

/// The match of that name, for either IP version.
pub(crate) fn find_match(name: &str, family: Family) -> Option<&'static MatchRow> {
    let named = |row: &&MatchRow| row.name == name || row.aliases.contains(&name);
    let mut rows = all_matches().filter(named);
    let of_family = all_matches()
        .filter(named)
        .find(|row| row.families.contains(&family));
    of_family.or_else(|| rows.next())
}

/// Every match.
pub(crate) fn all_matches() -> impl Iterator<Item = &'static MatchRow> {
    let known = MATCHES
        .iter()
        .chain(matches::packet::header::MATCHES)
        .chain(matches::packet::machine::MATCHES)
        .chain(matches::packet::statistic::MATCHES)
        .chain(matches::packet::time::MATCHES)
        .chain(matches::packet::transport::MATCHES)
        .chain(matches::conntrack::MATCHES)
        .chain(matches::set::MATCHES)
        .chain(matches::recent::MATCHES)
        .chain(matches::hashlimit::MATCHES)
        .chain(matches::addrtype::MATCHES)
        .chain(matches::routing::MATCHES)
        .chain(matches::string::MATCHES)
        .chain(matches::frag::MATCHES)
        .chain(matches::physdev::MATCHES)
        .chain(matches::policy::MATCHES)
        .chain(matches::rpfilter::MATCHES)
        .chain(matches::connlimit::MATCHES);
    known.chain(foreign::MATCHES)
}

/// The target of that name.
pub(crate) fn find_target(name: &str) -> Option<&'static TargetRow> {
    all_targets().find(|row| row.name == name)
}

/// Every target.
pub(crate) fn all_targets() -> impl Iterator<Item = &'static TargetRow> {
    let known = TARGETS.iter().chain(log::TARGETS).chain(change::TARGETS);
    let known = known.chain(flow_mark::TARGETS).chain(segment_size::TARGETS);
    let known = known.chain(set_target::TARGETS).chain(reject::TARGETS);
    known.chain(nat::TARGETS).chain(foreign::TARGETS)
}
