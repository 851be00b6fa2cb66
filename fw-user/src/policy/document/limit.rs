//! `limit`: how often a rule holds, `"3/minute"` or `{ rate = "3/minute", burst = 20 }`.

use super::read::{Reader, Value, integer};
use crate::policy::error::Problem;
use crate::policy::model::Limit;
use crate::policy::save::{Word, values};

const RATE: &str = "a rate such as \"3/minute\": second, minute, hour or day";
const LIMIT: &str = "a rate such as \"3/minute\", or { rate = \"3/minute\", burst = 5 }";

impl Reader<'_, '_> {
    /// A limit.
    pub(super) fn limit(&mut self, value: &Value<'_>) -> Option<Limit> {
        if value.get_ref().as_str().is_some() {
            let period = self.rate(value)?;
            return self.possible(value, period, Limit::BURST);
        }
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, LIMIT);
            return None;
        };
        let errors = self.report.errors.len();
        let (mut period, mut burst) = (None, Limit::BURST);
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "rate" => period = self.rate(value),
                "burst" => {
                    let read = integer(value).and_then(|number| u32::try_from(number).ok());
                    match read.filter(|number| (1..=10_000).contains(number)) {
                        Some(read) => burst = read,
                        None => self.wrong_type(value, "a number of packets, from 1 to 10000"),
                    }
                }
                unknown => self.unknown_key(unknown, key.span().into(), &["rate", "burst"]),
            }
        }
        if self.report.errors.len() > errors {
            return None;
        }
        match period {
            Some(period) => self.possible(value, period, burst),
            None => {
                let span = value.span().into();
                self.report.error(
                    Problem::wrong("no-rate", span, "nothing says how often").expected(RATE),
                );
                None
            }
        }
    }

    fn rate(&mut self, value: &Value<'_>) -> Option<u32> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, RATE);
            return None;
        };
        let word = Word {
            text: text.into(),
            span: value.span().into(),
        };
        match values::rate(&word) {
            Ok(period) => Some(period),
            Err(problem) => {
                self.report.error(problem);
                None
            }
        }
    }

    /// The kernel refuses what its counters cannot hold (`limit_mt_check`, net/netfilter/xt_limit.c).
    fn possible(&mut self, value: &Value<'_>, period: u32, burst: u32) -> Option<Limit> {
        let limit = Limit { period, burst };
        if limit.credits().is_some() {
            return Some(limit);
        }
        let span = value.span().into();
        let message = "the kernel cannot keep count of a burst that is so slow to come back";
        self.report
            .error(Problem::wrong("bad-limit", span, message).expected("a smaller burst"));
        None
    }
}

/// A limit as it is read; nothing for a period that no rate has.
pub(super) fn limit(limit: Limit) -> Option<String> {
    const UNITS: [(&str, u32); 4] = [
        ("second", Limit::SECOND),
        ("minute", 60 * Limit::SECOND),
        ("hour", 3_600 * Limit::SECOND),
        ("day", 86_400 * Limit::SECOND),
    ];
    let period = limit.period.max(1);
    let exact = |(_, unit): &&(&str, u32)| unit / period > 0 && unit / (unit / period) == period;
    let (name, unit) = UNITS.iter().find(exact)?;
    let rate = format!("\"{}/{name}\"", unit / period);
    Some(match limit.burst {
        Limit::BURST => rate,
        burst => format!("{{ rate = {rate}, burst = {burst} }}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source::Span;

    #[test]
    fn every_rate_is_written_as_one_of_its_period() {
        for unit in ["second", "minute", "hour", "day"] {
            for count in (1..300).chain([999, 1000, 7000, 9999, 10_000]) {
                let period = |text: &str| {
                    let span = Span::from(0..0);
                    let word = Word {
                        text: text.to_owned().into(),
                        span,
                    };
                    values::rate(&word).expect("a rate")
                };
                let text = format!("{count}/{unit}");
                let own = period(&text);
                let written = limit(Limit {
                    period: own,
                    burst: Limit::BURST,
                });
                let written = written.unwrap_or_else(|| panic!("{text} is not written"));
                assert_eq!(period(written.trim_matches('"')), own, "{text}, {written}");
            }
        }
    }
}
