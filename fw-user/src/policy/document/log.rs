//! `log`: what a rule holds for is written down before the rule decides.

use super::limit::limit;
use super::read::{Reader, Value, integer};
use super::write::quoted;
use crate::policy::error::{Problem, nearest};
use crate::policy::model::{Limit, Log, Target};

/// How packets are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logging {
    /// What each line begins with.
    pub prefix: String,
    /// A level of syslog.
    pub level: u8,
    /// How many lines there are at most.
    pub limit: Option<Limit>,
}

const LOG: &str = "true, a prefix such as \"dropped: \", or { prefix = \"dropped: \", \
    level = \"info\", limit = \"3/minute\" }";
const LEVEL: &str = "a level from \"emerg\" to \"debug\", or from 0 to 7";

impl Logging {
    const PLAIN: Self = Self {
        prefix: String::new(),
        level: Log::LEVEL,
        limit: None,
    };

    /// The target of the rule that does it.
    pub fn target(&self) -> Target {
        Target::Log(Log {
            prefix: self.prefix.clone(),
            level: self.level,
            ..Log::PLAIN
        })
    }

    /// What policy.toml can say of a target; the limit is its rule's.
    pub fn of(log: &Log, limit: Option<Limit>) -> Option<Self> {
        let logging = Self {
            prefix: log.prefix.clone(),
            level: log.level,
            limit,
        };
        let said = logging.target() == Target::Log(log.clone());
        let printable = !log.prefix.chars().any(char::is_control);
        (said && printable).then_some(logging)
    }
}

impl Reader<'_, '_> {
    /// `log`.
    pub(super) fn logging(&mut self, value: &Value<'_>) -> Option<Logging> {
        if let Some(on) = value.get_ref().as_bool() {
            return on.then_some(Logging::PLAIN);
        }
        if value.get_ref().as_str().is_some() {
            let prefix = self.prefix_of_lines(value)?;
            return Some(Logging {
                prefix,
                ..Logging::PLAIN
            });
        }
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, LOG);
            return None;
        };
        let mut logging = Logging::PLAIN;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "prefix" => logging.prefix = self.prefix_of_lines(value).unwrap_or_default(),
                "level" => logging.level = self.level(value).unwrap_or(Log::LEVEL),
                "limit" => logging.limit = self.limit(value),
                unknown => {
                    let known = ["prefix", "level", "limit"];
                    self.unknown_key(unknown, key.span().into(), &known);
                }
            }
        }
        Some(logging)
    }

    fn prefix_of_lines(&mut self, value: &Value<'_>) -> Option<String> {
        const MOST: usize = Log::PREFIX;
        match value.get_ref().as_str() {
            Some(text)
                if (1..=MOST).contains(&text.len()) && !text.chars().any(char::is_control) =>
            {
                Some(text.to_owned())
            }
            _ => {
                self.wrong_type(value, &format!("a text of 1 to {MOST} bytes"));
                None
            }
        }
    }

    fn level(&mut self, value: &Value<'_>) -> Option<u8> {
        if let Some(number) = integer(value) {
            let level = u8::try_from(number).ok().filter(|level| *level <= 7);
            if level.is_none() {
                self.wrong_type(value, LEVEL);
            }
            return level;
        }
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, LEVEL);
            return None;
        };
        let named = Log::LEVELS.iter().find(|(name, _)| *name == text);
        if named.is_none() {
            let message = format!("`{text}` is no level of the log");
            let problem = Problem::wrong("bad-level", value.span().into(), message).expected(LEVEL);
            let names = Log::LEVELS.iter().map(|(name, _)| *name);
            self.report.error(match nearest(text, names) {
                Some(near) => problem.help(format!("did you mean \"{near}\"?")),
                None => problem,
            });
        }
        named.map(|(_, level)| *level)
    }
}

/// As it is read, in the shortest form.
pub(super) fn log(logging: &Logging) -> String {
    let mut parts = Vec::new();
    if !logging.prefix.is_empty() {
        parts.push(format!("prefix = {}", quoted(&logging.prefix)));
    }
    if logging.level != Log::LEVEL {
        let named = Log::LEVELS
            .iter()
            .find(|(_, level)| *level == logging.level);
        let name = named.map_or("warning", |(name, _)| *name);
        parts.push(format!("level = \"{name}\""));
    }
    if let Some(text) = logging.limit.and_then(limit) {
        parts.push(format!("limit = {text}"));
    }
    match parts.as_slice() {
        [] => "true".into(),
        [_] if !logging.prefix.is_empty() => quoted(&logging.prefix),
        parts => format!("{{ {} }}", parts.join(", ")),
    }
}
