//! `[conntrack]`: how connections are tracked.

use std::fmt::Write as _;

use super::read::{Reader, Value, integer};
use crate::policy::tracking::{KEYS, Kind, Tracking};

impl Reader<'_, '_> {
    /// The settings.
    pub(super) fn conntrack(&mut self, value: &Value<'_>, tracking: &mut Tracking) {
        let Some(table) = self.table(value) else {
            return;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let Some(place) = KEYS.iter().position(|key| key.name == name) else {
                let known = KEYS.map(|key| key.name);
                self.unknown_key(name, key.span().into(), &known);
                continue;
            };
            let (read, expected) = match KEYS[place].kind {
                Kind::Switch(_) => (value.get_ref().as_bool().map(u32::from), "true or false"),
                // The kernel keeps times in less than that many.
                Kind::Seconds(_) => {
                    let read = integer(value).and_then(|number| u32::try_from(number).ok());
                    let read = read.filter(|seconds| (1..=i32::MAX as u32).contains(seconds));
                    (read, "a number of seconds, from 1")
                }
                Kind::Retransmissions => {
                    let read = integer(value).and_then(|number| u8::try_from(number).ok());
                    (read.map(u32::from), "a number from 0 to 255")
                }
            };
            match read {
                Some(read) => tracking.set(place, read),
                None => self.wrong_type(value, expected),
            }
        }
    }
}

/// The settings as they are read.
pub(super) fn push_tracking(text: &mut String, tracking: &Tracking) {
    if tracking.settings.is_empty() {
        return;
    }
    text.push_str("[conntrack]\n");
    for (place, key) in KEYS.iter().enumerate() {
        let Some(value) = tracking.get(place) else {
            continue;
        };
        let _ = match key.kind {
            Kind::Switch(_) => writeln!(text, "{} = {}", key.name, value != 0),
            Kind::Seconds(_) | Kind::Retransmissions => writeln!(text, "{} = {value}", key.name),
        };
    }
    text.push('\n');
}
