//! `[sets.NAME]`: sets in policy.toml.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use toml::de::DeTable;

use super::read::{Reader, Value};
use super::write::quoted;
use crate::policy::error::{Problem, nearest};
use crate::policy::model::Family;
use crate::policy::set::{
    MOST_SECONDS, SetDefinition, SetElement, SetKind, parse_element, print_element,
};
use crate::policy::source::Span;

impl Reader<'_, '_> {
    /// All of `[sets]`.
    pub(super) fn sets(&mut self, value: &Value<'_>) -> Vec<SetDefinition> {
        let Some(table) = self.table(value) else {
            return Vec::new();
        };
        let mut sets: Vec<SetDefinition> = Vec::new();
        for (name, value) in table {
            let span = name.span().into();
            let name = name.get_ref().as_ref();
            let known = self.sets.iter().any(|set| set.name == name);
            if known || name.is_empty() || name.len() > 31 || name.starts_with('-') {
                let message = match known {
                    true => format!("another file makes the set `{name}` too"),
                    false => format!("`{name}` is no name of a set"),
                };
                self.report.error(
                    Problem::wrong("bad-set-name", span, message)
                        .expected("a name of its own, of 1 to 31 characters"),
                );
                continue;
            }
            if let Some(table) = self.table(value) {
                sets.push(self.set(name, span, table));
            }
        }
        sets
    }

    fn set(&mut self, name: &str, span: Span, table: &DeTable<'_>) -> SetDefinition {
        const KEYS: &[&str] = &["type", "family", "timeout", "size", "elements"];
        let mut set = SetDefinition {
            name: name.to_owned(),
            kind: SetKind::HashNet,
            family: Family::Ipv4,
            netmask: None,
            timeout: None,
            capacity: 65_536,
            range: None,
            place: 0,
            origin: self.report.origin(span),
            elements: Some(Arc::default()),
        };
        let mut elements = None;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "type" => match value.get_ref().as_str().and_then(kind) {
                    Some(kind) => set.kind = kind,
                    None => self.wrong_type(value, TYPES),
                },
                "family" => set.family = self.family(value).unwrap_or(set.family),
                "timeout" => set.timeout = self.whole(value, MOST_SECONDS, "seconds"),
                "size" => {
                    set.capacity = self.whole(value, 1 << 24, "elements").unwrap_or(1).max(1);
                }
                "elements" => elements = Some(value),
                unknown => self.unknown_key(unknown, key.span().into(), KEYS),
            }
        }
        if let Some(value) = elements {
            self.elements(value, &mut set);
        }
        set
    }

    fn whole(&mut self, value: &Value<'_>, most: u32, what: &str) -> Option<u32> {
        let number = super::read::integer(value).and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| *number <= most);
        if number.is_none() {
            self.wrong_type(value, &format!("a number of {what} up to {most}"));
        }
        number
    }

    fn elements(&mut self, value: &Value<'_>, set: &mut SetDefinition) {
        let Some(items) = value.get_ref().as_array() else {
            return self.wrong_type(value, "a list of elements: [\"192.0.2.0/24\"]");
        };
        let mut elements: Vec<SetElement> = Vec::new();
        let mut places = HashMap::new();
        for item in items.iter() {
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(item, "an element such as \"192.0.2.0/24\"");
                continue;
            };
            match element(text, set) {
                Ok(found) => {
                    for element in found {
                        let place = *places.entry(element.key).or_insert(elements.len());
                        match elements.get_mut(place) {
                            Some(there) => *there = element,
                            None => elements.push(element),
                        }
                    }
                }
                Err((message, expected)) => self.report.error(
                    Problem::wrong("bad-element", item.span().into(), message).expected(expected),
                ),
            }
        }
        if elements.len() > set.capacity as usize {
            let message = format!("the set `{}` is full", set.name);
            self.report.error(
                Problem::wrong("set-full", value.span().into(), message)
                    .expected(format!("{} elements at most", set.capacity))
                    .help("give the set a larger `size`"),
            );
        }
        set.elements = Some(Arc::new(elements));
    }

    /// The set that `from_set` or `to_set` names: one of addresses. One that no file gives may be in
    /// the kernel already.
    pub(super) fn named_set(&mut self, value: &Value<'_>) -> Option<(String, Option<Family>)> {
        let Some(name) = value.get_ref().as_str() else {
            self.wrong_type(value, "the name of a set");
            return None;
        };
        let Some(set) = self.sets.iter().find(|set| set.name == name) else {
            return Some((name.to_owned(), None));
        };
        if set.kind.dimension() != 1 || set.kind.shape().first.is_none() {
            let message = format!("the set `{name}` is of type {}", set.kind.name());
            self.report.error(
                Problem::wrong("bad-set", value.span().into(), message)
                    .expected("a set of addresses: hash:net, hash:ip or bitmap:ip")
                    .help("rule files ask sets of every type: `-m set --match-set NAME src,dst`"),
            );
            return None;
        }
        Some((name.to_owned(), Some(set.family)))
    }
}

/// The types, bitmaps apart: they save ipset memory, and here nothing.
const TYPES: &str = "\"hash:net\", \"hash:ip\", \"hash:ip,port\", \"hash:net,port\", \
                     \"hash:ip,port,ip\", \"hash:ip,port,net\" or \"hash:net,net\"";

fn kind(name: &str) -> Option<SetKind> {
    let mut all = SetKind::ALL.into_iter();
    all.find(|kind| kind.name() == name && !kind.is_bitmap())
}

/// `192.0.2.0/24 timeout 60 nomatch`, or what is the matter and what was expected.
fn element(text: &str, set: &SetDefinition) -> Result<Vec<SetElement>, (String, String)> {
    let mut words = text.split_whitespace();
    let keys = parse_element(words.next().unwrap_or_default(), set)
        .map_err(|bad| (bad.message, bad.expected))?;
    let (mut timeout, mut nomatch) = (None, false);
    while let Some(word) = words.next() {
        match word {
            "timeout" if set.timeout.is_some() => {
                let seconds = words.next().and_then(|word| word.parse().ok());
                timeout = Some(
                    seconds
                        .filter(|seconds| *seconds <= MOST_SECONDS)
                        .ok_or_else(|| {
                            (
                                "`timeout` has no value".to_owned(),
                                "seconds behind it".to_owned(),
                            )
                        })?,
                );
            }
            "nomatch" if set.kind.has_nomatch() => nomatch = true,
            _ => {
                let near = nearest(word, ["timeout", "nomatch"]);
                let expected = match near {
                    Some(near) => format!("`{near}`, if the set's type and `timeout` allow it"),
                    None => "an element alone, or with `timeout SECONDS` or `nomatch`".to_owned(),
                };
                return Err((
                    format!("`{word}` does not fit the set {}", set.name),
                    expected,
                ));
            }
        }
    }
    let element = |key| SetElement {
        key,
        timeout,
        nomatch,
    };
    Ok(keys.into_iter().map(element).collect())
}

/// The sets, as text.
pub(super) fn push_sets(text: &mut String, sets: &[SetDefinition]) {
    for set in sets {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "[sets.{}]", quoted(&set.name));
        let _ = writeln!(text, "type = {}", quoted(set.kind.name()));
        let _ = writeln!(text, "family = {}", quoted(set.family.name()));
        if let Some(seconds) = set.timeout {
            let _ = writeln!(text, "timeout = {seconds}");
        }
        let _ = writeln!(text, "size = {}", set.capacity);
        let elements = set.elements.iter().flat_map(|elements| elements.iter());
        text.push_str("elements = [\n");
        for element in elements {
            let mut line = print_element(&element.key, set);
            if let Some(seconds) = element.timeout {
                let _ = write!(line, " timeout {seconds}");
            }
            if element.nomatch {
                line.push_str(" nomatch");
            }
            let _ = writeln!(text, "  {},", quoted(&line));
        }
        text.push_str("]\n\n");
    }
}
