//! [`Document`] -> policy.toml's text, in one form only: equal documents are equal texts.

use std::fmt::{self, Write as _};

use super::limit::limit;
use super::log::log;
use super::publish::push_publications;
use super::sets::push_sets;
use super::tracking::push_tracking;
use super::types::kind;
use super::{Answer, Document, Entry, Section, Verdict, What};
use crate::policy::model::{PortRange, Prefix};
use crate::policy::names::protocol_name;

/// The canonical text.
pub(super) fn write(document: &Document) -> String {
    let mut text = String::new();
    let defaults = document.defaults;
    if defaults != Document::default().defaults {
        text.push_str("[defaults]\n");
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "loopback = {}", defaults.loopback);
        let _ = writeln!(text, "established = {}", defaults.established);
        let _ = writeln!(
            text,
            "neighbour_discovery = {}\n",
            defaults.neighbour_discovery
        );
    }
    push_section(&mut text, "incoming", &document.incoming);
    push_section(&mut text, "outgoing", &document.outgoing);
    push_section(&mut text, "forward", &document.forward);
    if let Some(masquerade) = &document.masquerade {
        text.push_str("[masquerade]\n");
        let out = masquerade.out_interfaces.iter().map(|name| quoted(name));
        let _ = writeln!(text, "out = [{}]", join(out));
        if !masquerade.from.is_empty() {
            let _ = writeln!(
                text,
                "from = [{}]",
                join(masquerade.from.iter().map(address))
            );
        }
        if let Some(family) = masquerade.family {
            let _ = writeln!(text, "family = \"{}\"", family.name());
        }
        text.push('\n');
    }
    push_publications(&mut text, document);
    push_sets(&mut text, &document.sets);
    push_tracking(&mut text, &document.tracking);
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn push_section(text: &mut String, name: &str, section: &Section) {
    let default = if section.accept { "allow" } else { "drop" };
    let _ = writeln!(text, "[{name}]\ndefault = \"{default}\"");
    if !section.rules.is_empty() {
        text.push_str("rules = [\n");
        for rule in &section.rules {
            let _ = writeln!(text, "  {rule},");
        }
        text.push_str("]\n");
    }
    text.push('\n');
}

/// `{ allow = "tcp", ports = [22] }`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verdict {
            Verdict::Allow => "allow",
            Verdict::Drop => "drop",
            Verdict::Reject(_) => "reject",
        };
        write!(
            f,
            "{{ {verb} = {}",
            one_or_list(self.what.iter().map(what).collect())
        )?;
        if let Verdict::Reject(answer) = self.verdict
            && answer != Answer::default()
        {
            write!(f, ", with = \"{}\"", answer.name())?;
        }
        let lists = [
            ("types", self.types.iter().map(kind).collect()),
            ("ports", self.ports.iter().map(port).collect::<Vec<_>>()),
            ("source_ports", self.source_ports.iter().map(port).collect()),
            ("from", self.from.iter().map(address).collect()),
            ("to", self.to.iter().map(address).collect()),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            write!(f, ", {key} = [{}]", list.join(", "))?;
        }
        for (key, set) in [("from_set", &self.from_set), ("to_set", &self.to_set)] {
            if let Some(name) = set {
                write!(f, ", {key} = {}", quoted(name))?;
            }
        }
        for (key, names) in [("in", &self.in_interfaces), ("out", &self.out_interfaces)] {
            if !names.is_empty() {
                let names = names.iter().map(|name| quoted(name)).collect();
                write!(f, ", {key} = {}", one_or_list(names))?;
            }
        }
        if let Some(family) = self.family {
            write!(f, ", family = \"{}\"", family.name())?;
        }
        if let Some(text) = self.limit.and_then(limit) {
            write!(f, ", limit = {text}")?;
        }
        if let Some(logging) = &self.log {
            write!(f, ", log = {}", log(logging))?;
        }
        if let Some(comment) = &self.comment {
            write!(f, ", comment = {}", quoted(comment))?;
        }
        f.write_str(" }")
    }
}

pub(super) fn one_or_list(items: Vec<String>) -> String {
    match items.as_slice() {
        [only] => only.clone(),
        _ => format!("[{}]", items.join(", ")),
    }
}

pub(super) fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

pub(super) fn what(what: &What) -> String {
    match what {
        What::Any => quoted("any"),
        What::Icmp => quoted("icmp"),
        What::Established => quoted("established"),
        What::Invalid => quoted("invalid"),
        // The name `icmp` means each IP version's own.
        What::Protocol(number) => match protocol_name(*number).filter(|name| *name != "icmp") {
            Some(name) => quoted(name),
            None => number.to_string(),
        },
    }
}

pub(super) fn port(range: &PortRange) -> String {
    match range {
        PortRange { first, last } if first == last => first.to_string(),
        PortRange { first, last } => format!("\"{first}-{last}\""),
    }
}

pub(super) fn address(prefix: &Prefix) -> String {
    let text = prefix.to_string();
    let whole = if prefix.address.is_ipv4() {
        "/32"
    } else {
        "/128"
    };
    quoted(text.strip_suffix(whole).unwrap_or(&text))
}

/// A TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
