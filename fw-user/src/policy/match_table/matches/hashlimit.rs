//! `-m hashlimit`.

use super::recent::{list_name, word};
use super::{MatchDraft, Unfinished};
use crate::policy::error::Problem;
use crate::policy::lists::{Hashlimit, ListMatch, Rate};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Family, Match};
use crate::policy::save::{Value, Word, packet_values};
use crate::policy::source::Span;

/// `-m hashlimit` while its options are being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    /// Above or not, how fast, in which unit, and where it says so.
    rate: Option<(bool, Speed, Span)>,
    burst: Option<(Burst, Span)>,
    mode: Option<u8>,
    source_bits: Option<u8>,
    destination_bits: Option<u8>,
    name: Option<String>,
    size: Option<u32>,
    most: Option<u32>,
    interval: Option<u32>,
    lifetime: Option<u32>,
}

/// A rate as it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Speed {
    /// Millionths of a second between packets, and the seconds of its unit.
    Packets { period: u64, unit: u32 },
    /// What 16 bytes cost.
    Bytes(u64),
}

/// A burst as it is written: a number, times 1024 or its square.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Burst(pub u64);

impl Draft {
    /// The match, if its options go together (`hashlimit_mt_check`, extensions/libxt_hashlimit.c).
    pub fn finish(self, family: Family) -> Result<Match, Unfinished> {
        let Some((above, speed, at)) = self.rate else {
            return Err(Unfinished::Says("--hashlimit-upto or --hashlimit-above"));
        };
        let Some(name) = self.name else {
            return Err(Unfinished::Says("--hashlimit-name"));
        };
        let burst = self.burst.map(|(Burst(burst), _)| burst);
        let burst_at = self.burst.map_or(at, |(_, span)| span);
        let (rate, unit) = match speed {
            Speed::Packets { period, unit } => {
                let burst = burst.unwrap_or(Hashlimit::BURST);
                if burst > Hashlimit::BURST_MAX {
                    let message = format!("a burst of {burst} packets is too much");
                    return Err(wrong(burst_at, message, "at most 1000000"));
                }
                (Rate::Packets { period, burst }, unit)
            }
            Speed::Bytes(cost) => (bytes(cost, burst, burst_at)?, 1),
        };
        let whole = Hashlimit::whole(family);
        let limit = Hashlimit {
            above,
            rate,
            mode: self.mode.unwrap_or(0),
            source_bits: self.source_bits.unwrap_or(whole),
            destination_bits: self.destination_bits.unwrap_or(whole),
            name,
            size: self.size.unwrap_or(0),
            most: self.most.unwrap_or(0),
            interval: self.interval.unwrap_or(Hashlimit::INTERVAL),
            lifetime: self
                .lifetime
                .unwrap_or_else(|| Hashlimit::usual_lifetime(rate, unit)),
        };
        if !limit.is_countable() {
            let message = "the burst is too much for so slow a rate, or the rate too high";
            return Err(wrong(at, message, "numbers that the kernel can count with"));
        }
        Ok(Match::List(ListMatch::Hashlimit(limit)))
    }
}

/// A rate in bytes with its burst, which the kernel takes in whole seconds' worth.
fn bytes(cost: u64, burst: Option<u64>, at: Span) -> Result<Rate, Unfinished> {
    let Some(burst) = burst else {
        return Ok(Rate::Bytes { cost, burst: 0 });
    };
    let second = Rate::bytes_of(cost);
    if second == 0 || burst < second {
        let message = "the burst is less than what comes in a second";
        return Err(wrong(
            at,
            message,
            "as many bytes as the rate says, or more",
        ));
    }
    Ok(Rate::Bytes {
        cost,
        burst: seconds_of(burst, second),
    })
}

/// A burst in seconds' worth, rounded up. iptables counts it in 32 bits.
pub(crate) fn seconds_of(burst: u64, second: u64) -> u64 {
    let whole = u64::from(burst as u32) / second;
    whole + u64::from(!burst.is_multiple_of(second))
}

fn wrong(at: Span, message: impl Into<String>, expected: &'static str) -> Unfinished {
    let problem = Problem::wrong("bad-hashlimit", at, message).expected(expected);
    Unfinished::Wrong(Box::new(problem))
}

/// A row of the table, for what is done to this match's draft.
macro_rules! option {
    ([$($name:literal),*], $negatable:literal, $read:expr) => {
        draft_option!(MatchDraft::Hashlimit(Draft), &[$($name),*], 1, $negatable, $read)
    };
}

/// What to do instead of matching a rate without limiting it.
const RATE_MATCH: &str =
    "a rate is not measured by itself: limit with --hashlimit-above, which has a bucket";

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "hashlimit",
    aliases: &[],
    families: BOTH,
    support: Support::Partly,
    note: "xt_hashlimit's arithmetic, in packets or bytes, by any mix of addresses (under masks) and ports. A table lives on over a load as long as rules name it with the same numbers. Without `--hashlimit-htable-max` or `-size` it holds 65536 buckets.",
    reading: Some(MatchReading {
        start: || MatchDraft::Hashlimit(Draft::default()),
        protocols: &[],
        options: &[
            option!(["hashlimit-upto", "hashlimit"], true, |draft, argument| {
                limit(draft, argument, argument.not)
            }),
            option!(["hashlimit-above"], true, |draft, argument| {
                limit(draft, argument, !argument.not)
            }),
            option!(["hashlimit-burst"], false, |draft, argument| {
                let Burst(burst) = word(argument, burst)?;
                argument.once(&mut draft.burst, (Burst(burst), argument.option.span))
            }),
            option!(["hashlimit-mode"], false, |draft, argument| {
                let mode = word(argument, mode)?;
                argument.once(&mut draft.mode, mode)
            }),
            option!(["hashlimit-srcmask"], false, |draft, argument| {
                let bits = word(argument, |word| bits(word, argument.family))?;
                argument.once(&mut draft.source_bits, bits)
            }),
            option!(["hashlimit-dstmask"], false, |draft, argument| {
                let bits = word(argument, |word| bits(word, argument.family))?;
                argument.once(&mut draft.destination_bits, bits)
            }),
            option!(["hashlimit-name"], false, |draft, argument| {
                let name = word(argument, |word| list_name(word, LONGEST_NAME))?;
                argument.once(&mut draft.name, name)
            }),
            option!(["hashlimit-htable-size"], false, |draft, argument| {
                let number = word(argument, packet_values::number32)?;
                argument.once(&mut draft.size, number)
            }),
            option!(["hashlimit-htable-max"], false, |draft, argument| {
                let number = word(argument, packet_values::number32)?;
                argument.once(&mut draft.most, number)
            }),
            option!(["hashlimit-htable-gcinterval"], false, |draft, argument| {
                let number = word(argument, packet_values::count)?;
                argument.once(&mut draft.interval, number)
            }),
            option!(["hashlimit-htable-expire"], false, |draft, argument| {
                let number = word(argument, packet_values::count)?;
                argument.once(&mut draft.lifetime, number)
            }),
            OptionRow {
                names: &["hashlimit-rate-match"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Unsupported(RATE_MATCH),
            },
            OptionRow {
                names: &["hashlimit-rate-interval"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Unsupported(RATE_MATCH),
            },
        ],
    }),
}];

/// `NAME_MAX`, without the terminating zero.
const LONGEST_NAME: usize = 254;

fn limit(draft: &mut Draft, argument: &Argument<'_>, above: bool) -> Value<()> {
    let [word] = argument.words else {
        return Ok(());
    };
    argument.once(&mut draft.rate, (above, speed(word)?, word.span))
}

/// `5/minute` or `512kb/s`.
pub(crate) fn speed(word: &Word<'_>) -> Value<Speed> {
    const UNITS: [(&str, u32); 4] = [
        ("second", 1),
        ("minute", 60),
        ("hour", 3_600),
        ("day", 86_400),
    ];
    let bad = || {
        let message = format!("`{}` is not a rate", word.text);
        Problem::wrong("bad-hashlimit", word.span, message).expected(
            "packets such as `5/minute` (second, minute, hour, day), or bytes such as `512kb/s`",
        )
    };
    let fast = || {
        let message = format!("the rate `{}` is too fast", word.text);
        Problem::wrong("bad-hashlimit", word.span, message)
            .expected("at most 1000000 packets or 4294967295 times 16 bytes a second")
    };
    if let Some(bytes) = word.text.strip_suffix("b/s") {
        let bytes = scaled(bytes).filter(|bytes| *bytes != 0).ok_or_else(bad)?;
        let cost = match bytes >> 4 {
            0..0xffff_ffff => Rate::cost_of(bytes),
            _ => 0,
        };
        if cost == 0 {
            return Err(fast());
        }
        return Ok(Speed::Bytes(cost));
    }
    let (count, unit) = word.text.split_once('/').unwrap_or((&word.text, "second"));
    let named = |(name, _): &&(&str, u32)| {
        let beginning = name.get(..unit.len());
        !unit.is_empty() && beginning.is_some_and(|name| name.eq_ignore_ascii_case(unit))
    };
    let (_, unit) = UNITS.iter().find(named).ok_or_else(bad)?;
    let count = decimal(count).filter(|count| *count != 0).ok_or_else(bad)?;
    match Rate::SECOND * u64::from(*unit) / count {
        0 => Err(fast()),
        period => Ok(Speed::Packets {
            period,
            unit: *unit,
        }),
    }
}

/// A number of packets, or of bytes such as `1mb`.
pub(crate) fn burst(word: &Word<'_>) -> Value<Burst> {
    let text = word.text.as_ref();
    let number = match text.strip_suffix('b') {
        Some(bytes) => scaled(bytes),
        None if text.ends_with(['k', 'm']) => scaled(text),
        None => decimal(text).filter(|number| *number <= Hashlimit::BURST_MAX),
    };
    match number {
        Some(number) if number != 0 => Ok(Burst(number)),
        _ => {
            let message = format!("`{text}` is not a burst");
            Err(Problem::wrong("bad-hashlimit", word.span, message)
                .expected("packets from 1 to 1000000, or bytes such as `1mb`"))
        }
    }
}

/// A number with `k` for 1024 or `m` for its square behind it.
fn scaled(text: &str) -> Option<u64> {
    let (number, factor) = match text.strip_suffix('k') {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix('m') {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    decimal(number)?.checked_mul(factor)
}

fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `srcip,dstport`.
fn mode(word: &Word<'_>) -> Value<u8> {
    let mut mode = 0;
    for (part, span) in word.parts(',') {
        let named = Hashlimit::MODES.iter().find(|(_, name)| *name == part);
        let Some((bit, _)) = named else {
            let message = format!("`{part}` is nothing to tell packets apart by");
            return Err(Problem::wrong("bad-hashlimit", span, message)
                .expected("srcip, srcport, dstip, dstport or several of them"));
        };
        mode |= bit;
    }
    Ok(mode)
}

/// The length of a prefix.
fn bits(word: &Word<'_>, family: Family) -> Value<u8> {
    packet_values::up_to(word, Hashlimit::whole(family).into()).map(|bits| bits as u8)
}
