//! The arguments of the matches of [`crate::policy::packet_match`].

use std::net::IpAddr;

pub(crate) use super::values::port_range;
use super::values::{Value, number, prefix};
use super::{Problem, Word};
use crate::policy::model::Family;
use crate::policy::packet_match::{DCCP_TYPES, PACKET_TYPES, Time, WEEKDAYS, day_of};

/// `--mode` of `-m statistic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Random,
    Nth,
}

fn bad(word: &Word<'_>, what: &str, expected: impl Into<String>) -> Problem {
    let message = format!("`{}` is not {what}", word.text);
    Problem::wrong("bad-value", word.span, message).expected(expected)
}

/// A number from 0.
pub(crate) fn up_to(word: &Word<'_>, most: u32) -> Value<u32> {
    number(&word.text, most).ok_or_else(|| {
        bad(
            word,
            "a number of these",
            format!("a number from 0 to {most}"),
        )
    })
}

/// Any number of 32 bits.
pub(crate) fn number32(word: &Word<'_>) -> Value<u32> {
    up_to(word, u32::MAX)
}

/// A number from 1.
pub(crate) fn count(word: &Word<'_>) -> Value<u32> {
    match number32(word)? {
        0 => Err(bad(word, "a number to count to", "a number from 1")),
        count => Ok(count),
    }
}

/// `first`, `first:last`, `:last`, `first:`.
fn range(word: &Word<'_>, most: u32) -> Value<(u32, u32)> {
    let (first, last) = match word.text.split_once(':') {
        None => (word.text.as_ref(), word.text.as_ref()),
        Some(ends) => ends,
    };
    let end = |text: &str, default| match text {
        "" => Some(default),
        _ => number(text, most),
    };
    let empty = word.text.is_empty();
    match (end(first, 0), end(last, most)) {
        (Some(first), Some(last)) if first <= last && !empty => Ok((first, last)),
        (Some(first), Some(last)) if first > last => {
            let problem = bad(word, "a range: it is backwards", "the lower number first");
            Err(problem.help(format!("write `{last}:{first}`")))
        }
        _ => Err(bad(
            word,
            "a range",
            format!("a number from 0 to {most}, or two with a colon between"),
        )),
    }
}

/// A range of numbers of 16 bits.
pub(crate) fn half_range(word: &Word<'_>) -> Value<(u16, u16)> {
    let (first, last) = range(word, u16::MAX.into())?;
    Ok((first as u16, last as u16))
}

/// A range of numbers of 32 bits.
pub(crate) fn range32(word: &Word<'_>) -> Value<(u32, u32)> {
    range(word, u32::MAX)
}

/// `--src-range`: one address, or two with a dash between.
pub(crate) fn addresses(word: &Word<'_>, family: Family) -> Value<(IpAddr, IpAddr)> {
    let one = |text: &str, at: usize| -> Value<IpAddr> {
        let span = word.part(at, text.len());
        if text.contains('/') {
            let problem = Problem::wrong("bad-address", span, "a range has no mask");
            return Err(problem
                .expected("an address")
                .help("use `-s` or `-d` for networks"));
        }
        Ok(prefix(text, span, family)?.address)
    };
    let (first, last) = match word.text.split_once('-') {
        None => {
            let only = one(&word.text, 0)?;
            (only, only)
        }
        Some((first, last)) => (one(first, 0)?, one(last, first.len() + 1)?),
    };
    if first > last {
        let problem = bad(word, "a range: it is backwards", "the lower address first");
        return Err(problem.help(format!("write `{last}-{first}`")));
    }
    Ok((first, last))
}

/// `--mac-source`.
pub(crate) fn link_address(word: &Word<'_>) -> Value<[u8; 6]> {
    let wrong = || {
        bad(
            word,
            "an Ethernet address",
            "six bytes, as in 52:54:00:12:34:56",
        )
    };
    let mut address = [0; 6];
    let mut parts = word.text.split(':');
    for byte in &mut address {
        let part = parts.next().unwrap_or_default();
        let digits =
            (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        *byte = digits
            .then(|| u8::from_str_radix(part, 16).ok())
            .flatten()
            .ok_or_else(wrong)?;
    }
    match parts.next() {
        None => Ok(address),
        Some(_) => Err(wrong()),
    }
}

/// `--dscp`.
pub(crate) fn dscp(word: &Word<'_>) -> Value<u8> {
    Ok(up_to(word, 0x3f)? as u8)
}

/// `--dscp-class` (RFC 2474, 2597, 3246).
pub(crate) fn dscp_class(word: &Word<'_>) -> Value<u8> {
    let name = word.text.to_ascii_uppercase();
    let digits = |prefix: &str| name.strip_prefix(prefix).map(str::as_bytes);
    let value = match (name.as_str(), digits("CS"), digits("AF")) {
        ("BE", ..) => Some(0),
        ("EF", ..) => Some(0x2e),
        (_, Some([class @ b'0'..=b'7']), _) => Some((class - b'0') * 8),
        (_, _, Some([class @ b'1'..=b'4', drop @ b'1'..=b'3'])) => {
            Some((class - b'0') * 8 + (drop - b'0') * 2)
        }
        _ => None,
    };
    value.ok_or_else(|| {
        bad(
            word,
            "a class of DSCP",
            "BE, EF, CS0 to CS7, or AF11 to AF43",
        )
    })
}

/// The names of types of service (RFC 1349).
const TOS_NAMES: [(&str, u8); 5] = [
    ("Minimize-Delay", 0x10),
    ("Maximize-Throughput", 0x08),
    ("Maximize-Reliability", 0x04),
    ("Minimize-Cost", 0x02),
    ("Normal-Service", 0x00),
];

/// `--tos`, `--set-tos`: a value, a value and a mask, or a name.
pub(crate) fn tos(word: &Word<'_>) -> Value<(u8, u8)> {
    let named = |(name, _): &&(&str, u8)| name.eq_ignore_ascii_case(&word.text);
    if let Some((_, value)) = TOS_NAMES.iter().find(named) {
        return Ok((*value, 0x3f));
    }
    let byte = |text: &str| number(text, 0xff).map(|value| value as u8);
    let read = match word.text.split_once('/') {
        None => byte(&word.text).map(|value| (value, 0xff)),
        Some((value, mask)) => byte(value).zip(byte(mask)),
    };
    read.ok_or_else(|| {
        let names: Vec<_> = TOS_NAMES.iter().map(|(name, _)| *name).collect();
        let expected = format!(
            "a value such as 0x10, with or without `/mask`; or {}",
            names.join(", ")
        );
        bad(word, "a type of service", expected)
    })
}

/// `--pkt-type`.
pub(crate) fn packet_type(word: &Word<'_>) -> Value<u8> {
    const ALIASES: [(u8, &str); 3] = [(0, "host"), (1, "bcast"), (2, "mcast")];
    let mut known = PACKET_TYPES.iter().chain(&ALIASES);
    let found = known.find(|(_, name)| name.eq_ignore_ascii_case(&word.text));
    let found = found.map(|(number, _)| *number);
    found.ok_or_else(|| {
        bad(
            word,
            "a kind of addressee",
            "unicast, broadcast or multicast",
        )
    })
}

/// `--mark`: a value, with or without `/mask`.
pub(crate) fn mark(word: &Word<'_>) -> Value<(u32, u32)> {
    let read = match word.text.split_once('/') {
        None => number(&word.text, u32::MAX).map(|value| (value, u32::MAX)),
        Some((value, mask)) => number(value, u32::MAX).zip(number(mask, u32::MAX)),
    };
    read.ok_or_else(|| {
        bad(
            word,
            "a mark",
            "a number such as 0x10, with or without `/mask`",
        )
    })
}

/// `--zone` of CT: a number.
pub(crate) fn zone(word: &Word<'_>) -> Value<u16> {
    if word.text == "mark" {
        let message = "`mark` is not supported as a zone";
        return Err(Problem::unsupported("zone-of-mark", word.span, message)
            .expected("a number")
            .help(
                "zones that only marks tell are not known when the policy is loaded, and a packet has room for the \
                 place of one among those that are: write a rule for each mark, `-m mark --mark 1 -j CT --zone 1`",
            ));
    }
    Ok(up_to(word, u16::MAX.into())? as u16)
}

/// `--uid-owner`: a user by name or number, or two numbers with a dash between.
pub(crate) fn users(word: &Word<'_>) -> Value<(u32, u32)> {
    ids(word, "/etc/passwd", "a user")
}

/// `--gid-owner`: the same of a group.
pub(crate) fn groups(word: &Word<'_>) -> Value<(u32, u32)> {
    ids(word, "/etc/group", "a group")
}

fn ids(word: &Word<'_>, file: &str, what: &str) -> Value<(u32, u32)> {
    // -1 means "nobody in particular" to the kernel.
    const MOST: u32 = u32::MAX - 1;
    if let Some(id) = named(&word.text, file) {
        return Ok((id, id));
    }
    let (first, last) = match word.text.split_once('-') {
        None => (word.text.as_ref(), word.text.as_ref()),
        Some(ends) => ends,
    };
    match (number(first, MOST), number(last, MOST)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        (Some(first), Some(last)) => {
            let problem = bad(word, "a range: it is backwards", "the lower number first");
            Err(problem.help(format!("write `{last}-{first}`")))
        }
        _ => Err(bad(
            word,
            what,
            format!("the name of {what} of this machine, a number, or two with a dash between"),
        )),
    }
}

/// The number of a user or group of this machine: it is the third field of the file, after the name.
fn named(name: &str, file: &str) -> Option<u32> {
    let lines = std::fs::read_to_string(file).ok()?;
    lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1))??
            .parse()
            .ok()
    })
}

/// `--mode`.
pub(crate) fn mode(word: &Word<'_>) -> Value<Mode> {
    match word.text.as_ref() {
        "random" => Ok(Mode::Random),
        "nth" => Ok(Mode::Nth),
        _ => Err(bad(word, "a mode", "random or nth")),
    }
}

/// `--probability`, in parts of 2^31.
pub(crate) fn probability(word: &Word<'_>) -> Value<u32> {
    let value = word.text.parse::<f64>().ok();
    let value = value.filter(|value| (0.0..=1.0).contains(value));
    value
        .map(|value| (value * f64::from(1u32 << 31)).round() as u32)
        .ok_or_else(|| bad(word, "a probability", "a number from 0 to 1"))
}

/// `--datestart`: `2026[-11[-25[T13[:30[:59]]]]]`.
pub(crate) fn date(word: &Word<'_>) -> Value<u32> {
    let read = || {
        let (date, time) = match word.text.split_once(['T', 't']) {
            None => (word.text.as_ref(), None),
            Some((date, time)) => (date, Some(time)),
        };
        let fields: Option<Vec<u32>> = date.split('-').map(|text| decimal(text, 4)).collect();
        let (year, month, day) = match fields?.as_slice() {
            [year] => (*year, 1, 1),
            [year, month] => (*year, *month, 1),
            [year, month, day] => (*year, *month, *day),
            _ => return None,
        };
        let seconds = match time {
            None => 0,
            Some(time) => clock(time, 1)?,
        };
        day_of(year, month, day)?
            .checked_mul(86_400)?
            .checked_add(seconds)
    };
    let fits = read().filter(|seconds| *seconds <= Time::LAST_DATE);
    fits.ok_or_else(|| {
        bad(
            word,
            "a date",
            "one such as 2026-11-25T13:30:59, or its beginning",
        )
    })
}

/// `--timestart`: `13:30[:59]`.
pub(crate) fn daytime(word: &Word<'_>) -> Value<u32> {
    clock(&word.text, 2).ok_or_else(|| bad(word, "a time of day", "one such as 13:30 or 13:30:59"))
}

/// Seconds since midnight, of at least so many fields.
fn clock(text: &str, least: usize) -> Option<u32> {
    let fields: Option<Vec<u32>> = text.split(':').map(|text| decimal(text, 2)).collect();
    let fields = fields?;
    let field = |place: usize| fields.get(place).copied().unwrap_or_default();
    let (hours, minutes, seconds) = (field(0), field(1), field(2));
    let fits = (least..=3).contains(&fields.len()) && hours < 24 && minutes < 60 && seconds < 60;
    fits.then_some(hours * 3_600 + minutes * 60 + seconds)
}

fn decimal(text: &str, longest: usize) -> Option<u32> {
    let digits =
        (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `--weekdays`: names, of which two letters will do, or numbers from 1 for Monday.
pub(crate) fn weekdays(word: &Word<'_>) -> Value<u8> {
    let mut days = 0;
    for part in word.text.split(',') {
        let named = |name: &str| {
            let beginning = part.get(..2).zip(name.get(..2));
            beginning.is_some_and(|(part, name)| part.eq_ignore_ascii_case(name))
        };
        let place = match decimal(part, 1) {
            Some(day @ 1..=7) => Some(day as usize - 1),
            Some(_) => None,
            None => WEEKDAYS.iter().position(|name| named(name)),
        };
        let day = place.ok_or_else(|| {
            bad(
                word,
                "a list of weekdays",
                "names such as Mon, or numbers from 1 for Monday to 7, with commas",
            )
        })?;
        days |= 2 << day;
    }
    Ok(days)
}

/// `--monthdays`: numbers from 1 to 31, also as `1st` or `22nd`.
pub(crate) fn monthdays(word: &Word<'_>) -> Value<u32> {
    let mut days = 0;
    for part in word.text.split(',') {
        let digits = part.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let ending = &part[digits.len()..];
        let known = ["", "st", "nd", "rd", "th"].contains(&ending);
        let day = decimal(digits, 2).filter(|day| known && (1..=31).contains(day));
        let day = day.ok_or_else(|| {
            bad(
                word,
                "a list of days of the month",
                "numbers from 1 to 31, with commas",
            )
        })?;
        days |= 1 << day;
    }
    Ok(days)
}

/// `--dccp-types`.
pub(crate) fn dccp_types(word: &Word<'_>) -> Value<u16> {
    let mut types = 0;
    for (name, span) in word.parts(',') {
        let known = DCCP_TYPES
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name));
        let Some(bit) = known else {
            let message = format!("`{name}` is not a type of DCCP packets");
            return Err(Problem::wrong("bad-value", span, message)
                .expected(format!("types of {}, with commas", DCCP_TYPES.join(" "))));
        };
        types |= 1 << bit;
    }
    Ok(types)
}
