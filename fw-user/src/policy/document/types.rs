//! `types`: types of ICMP, by names that either IP version understands in its own way, or by numbers of one
//! of them.

use super::read::{Reader, Value, integer};
use super::write::quoted;
use crate::policy::error::{Problem, nearest};
use crate::policy::model::{Family, IcmpType};
use crate::policy::names::{icmp_names, icmp_type_name, named_icmp_type};

/// A type, or one with a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By its name: what it is in each IP version that has it.
    Named(&'static str),
    /// By its number, and perhaps a code's.
    Number(u8, Option<u8>),
}

pub(super) const TYPES: &str =
    "a type such as \"echo-request\", or the number of one, such as 8 or \"3/4\"";

impl Kind {
    /// What it is in an IP version.
    pub fn of(self, family: Family) -> Option<IcmpType> {
        match self {
            Self::Named(name) => named_icmp_type(name, family),
            Self::Number(kind, code) => Some(IcmpType {
                kind: Some(kind),
                codes: code.map_or((0, u8::MAX), |code| (code, code)),
            }),
        }
    }

    /// The other way round; nothing for what policy.toml says otherwise, or cannot.
    pub fn from(kind: IcmpType, family: Family) -> Option<Self> {
        let number = kind.kind?;
        if let Some(name) = icmp_type_name(kind, family) {
            return Some(Self::Named(name));
        }
        let found = match kind.codes {
            (0, u8::MAX) => Self::Number(number, None),
            (code, _) => Self::Number(number, Some(code)),
        };
        (number <= MOST && found.of(family) == Some(kind)).then_some(found)
    }

    /// Whether it means another thing in either IP version.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Number(..))
    }
}

/// The highest number: iptables takes 255 for any type in IPv4.
const MOST: u8 = 254;

impl Reader<'_, '_> {
    /// One of `types`.
    pub(super) fn kind(&mut self, value: &Value<'_>, expected: &str) -> Option<Kind> {
        if let Some(number) = integer(value) {
            let number = u8::try_from(number).ok().filter(|number| *number <= MOST);
            if number.is_none() {
                self.wrong_type(value, &format!("a type's number, from 0 to {MOST}"));
            }
            return number.map(|number| Kind::Number(number, None));
        }
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, expected);
            return None;
        };
        if text.starts_with(|letter: char| letter.is_ascii_digit()) {
            let (kind, code) = text.split_once('/').unwrap_or((text, ""));
            let code = if text.contains('/') {
                code.parse().ok().map(Some)
            } else {
                Some(None)
            };
            let kind = kind.parse().ok().filter(|kind| *kind <= MOST);
            if let (Some(kind), Some(code)) = (kind, code) {
                return Some(Kind::Number(kind, code));
            }
            self.wrong_type(value, expected);
            return None;
        }
        let both = || {
            let [four, six] = [Family::Ipv4, Family::Ipv6].map(icmp_names);
            four.chain(six).filter(|name| *name != "any")
        };
        if let Some(name) = both().find(|name| name.eq_ignore_ascii_case(text)) {
            return Some(Kind::Named(name));
        }
        let message = format!("there is no ICMP type `{text}`");
        let problem =
            Problem::wrong("bad-icmp-type", value.span().into(), message).expected(expected);
        self.report.error(match nearest(text, both()) {
            Some(near) => problem.help(format!("did you mean \"{near}\"?")),
            None => problem,
        });
        None
    }
}

/// As it is read.
pub(super) fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Named(name) => quoted(name),
        Kind::Number(kind, None) => kind.to_string(),
        Kind::Number(kind, Some(code)) => format!("\"{kind}/{code}\""),
    }
}
