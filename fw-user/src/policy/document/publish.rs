//! `[[publish]]`: ports of this machine that lead to a container, to another host, or to another port of
//! this machine.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::lower::{conntrack, default_rule, rules_of, yes};
use super::read::{ADDRESSES, INTERFACES, PORTS, Reader, Value};
use super::write::{join, one_or_list, quoted, what};
use super::{Document, Entry, Place, Verdict, What, write};
use crate::policy::error::Problem;
use crate::policy::model::{
    CtStates, Family, Match, PortRange, Redirect, Rule, Target, Translation,
};
use crate::policy::names::{SCTP, TCP, UDP};
use crate::policy::packet_match::{AddressType, PacketMatch};
use crate::policy::save::Word;
use crate::policy::save::nat_values::translation;
use crate::policy::source::Span;

/// One published port, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// Which packets; its verdict plays no part.
    pub entry: Entry,
    /// Where they go.
    pub at: Destination,
}

/// `at`: an address, a port, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Destination {
    /// This machine's own, if there is none.
    pub address: Option<IpAddr>,
    /// The packet's own, if there is none.
    pub port: Option<u16>,
}

impl Destination {
    fn family(self) -> Option<Family> {
        self.address.map(|address| match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        })
    }

    fn target(self) -> Target {
        let ports = self.port.map(|port| PortRange {
            first: port,
            last: port,
        });
        match self.address {
            Some(address) => Target::Dnat(Translation {
                addresses: Some((address, address)),
                ports,
                ..Translation::default()
            }),
            None => Target::Redirect(Redirect {
                ports,
                random: false,
            }),
        }
    }

    fn text(self) -> String {
        match (self.address, self.port) {
            (None, None) => String::new(),
            (None, Some(port)) => format!(":{port}"),
            (Some(address), None) => address.to_string(),
            (Some(IpAddr::V4(address)), Some(port)) => format!("{address}:{port}"),
            (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
        }
    }
}

const AT: &str =
    "an address, a port, or both: \"172.17.0.2:80\", \"[2001:db8::2]:80\" or \":8080\"";

impl Reader<'_, '_> {
    /// All of `[[publish]]`.
    pub(super) fn publications(&mut self, value: &Value<'_>) -> Vec<Publication> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(value, "a list: [[publish]], or publish = [ { ... } ]");
            return Vec::new();
        };
        let items = items.iter();
        items.filter_map(|item| self.publication(item)).collect()
    }

    fn publication(&mut self, value: &Value<'_>) -> Option<Publication> {
        const KEYS: &[&str] = &[
            "protocol", "ports", "at", "in", "from", "to", "family", "comment",
        ];
        let table = self.table(value)?;
        let whole: Span = value.span().into();
        let errors = self.report.errors.len();
        let mut entry = Entry {
            verdict: Verdict::Allow,
            what: vec![What::Protocol(TCP)],
            origin: Place(Some(self.report.origin(whole))),
            ..Entry::default()
        };
        let mut at = None;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "protocol" => entry.what = self.list(value, PROTOCOLS, Self::published_protocol),
                "ports" => entry.ports = self.list(value, PORTS, Self::ports),
                "at" => at = self.destination(value),
                "in" => entry.in_interfaces = self.list(value, INTERFACES, Self::interface),
                "from" => entry.from = self.list(value, ADDRESSES, Self::prefix),
                "to" => entry.to = self.list(value, ADDRESSES, Self::prefix),
                "family" => entry.family = self.family(value),
                "comment" => entry.comment = self.comment(value),
                unknown => self.unknown_key(unknown, key.span().into(), KEYS),
            }
        }
        if self.report.errors.len() > errors {
            return None;
        }
        if entry.ports.is_empty() {
            self.report.error(
                Problem::wrong("no-ports", whole, "nothing says which ports are published")
                    .expected("`ports = [8080]`, of this machine"),
            );
        }
        let Some(at) = at else {
            self.report.error(
                Problem::wrong(
                    "no-destination",
                    whole,
                    "nothing says where the ports lead to",
                )
                .expected(format!("`at`: {AT}")),
            );
            return None;
        };
        let publication = Publication { entry, at };
        let mut families = [Family::Ipv4, Family::Ipv6].into_iter();
        if !families.any(|family| publication.applies(family)) {
            self.report.error(
                Problem::wrong(
                    "no-family",
                    whole,
                    "no packet can match: the addresses are of different IP versions",
                )
                .expected("`at`, `from`, `to` and `family` with one IP version in common"),
            );
        }
        (self.report.errors.len() == errors).then_some(publication)
    }

    fn published_protocol(&mut self, value: &Value<'_>, expected: &str) -> Option<What> {
        match value.get_ref().as_str() {
            Some("tcp") => Some(What::Protocol(TCP)),
            Some("udp") => Some(What::Protocol(UDP)),
            Some("sctp") => Some(What::Protocol(SCTP)),
            _ => {
                self.wrong_type(value, expected);
                None
            }
        }
    }

    fn destination(&mut self, value: &Value<'_>) -> Option<Destination> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, AT);
            return None;
        };
        let v6 = text.starts_with('[') || text.matches(':').count() > 1;
        let family = if v6 { Family::Ipv6 } else { Family::Ipv4 };
        let word = Word {
            text: text.into(),
            span: value.span().into(),
        };
        let mut read = Translation::default();
        if let Err(problem) = translation(&word, family, &mut read) {
            let span = value.span().into();
            self.report.error(Problem { span, ..problem });
            return None;
        }
        let one_address = read.addresses.is_none_or(|(first, last)| first == last);
        let one_port = read.ports.is_none_or(|range| range.first == range.last);
        if !one_address || !one_port {
            self.report.error(
                Problem::wrong(
                    "bad-destination",
                    value.span().into(),
                    format!("`{text}` is more than one place"),
                )
                .expected(AT)
                .help("without a port each published port keeps its number"),
            );
            return None;
        }
        Some(Destination {
            address: read.addresses.map(|(address, _)| address),
            port: read.ports.map(|range| range.first),
        })
    }
}

const PROTOCOLS: &str = "\"tcp\", \"udp\", \"sctp\" or several of them";

impl Publication {
    /// Whether the IP version has packets for it.
    fn applies(&self, family: Family) -> bool {
        let own = self.at.family();
        own.is_none_or(|only| only == family) && super::lower::applies(&self.entry, family)
    }

    /// The rules of nat's PREROUTING. Which of this machine's addresses is not asked for unless `to` says
    /// so; but it is one of them.
    fn rules(&self, family: Family) -> Vec<Rule> {
        if !self.applies(family) {
            return Vec::new();
        }
        let mut rules = rules_of(&self.entry, family);
        for rule in &mut rules {
            rule.target = self.at.target();
            if self.entry.to.is_empty() {
                // Comments come last.
                let comments = usize::from(self.entry.comment.is_some());
                let place = rule.matches.len() - comments;
                let local = Match::Packet(PacketMatch::AddressType(AddressType {
                    source: None,
                    destination: Some(yes(AddressType::LOCAL)),
                }));
                rule.matches.insert(place, local);
            }
        }
        rules
    }
}

/// The rules of nat's PREROUTING that all publications stand for.
pub(super) fn translations(document: &Document, family: Family) -> Vec<Rule> {
    let all = document.publish.iter();
    all.flat_map(|each| each.rules(family)).collect()
}

/// The rule that lets published connections through this chain, if any goes that way: to other hosts in
/// FORWARD, to this one in INPUT.
pub(super) fn acceptance(document: &Document, family: Family, chain: &str) -> Option<Rule> {
    let onward = match chain {
        "FORWARD" => true,
        "INPUT" => false,
        _ => return None,
    };
    let mut all = document.publish.iter();
    all.find(|each| each.applies(family) && each.at.address.is_some() == onward)?;
    let mut rule = default_rule("published");
    rule.matches.insert(0, conntrack(CtStates::DNAT));
    Some(rule)
}

/// Writes `[[publish]]`.
pub(super) fn push_publications(text: &mut String, document: &Document) {
    for Publication { entry, at } in &document.publish {
        text.push_str("[[publish]]\n");
        // Writing to a String cannot fail.
        if entry.what != [What::Protocol(TCP)] {
            let protocols = one_or_list(entry.what.iter().map(what).collect());
            let _ = writeln!(text, "protocol = {protocols}");
        }
        let _ = writeln!(
            text,
            "ports = [{}]",
            join(entry.ports.iter().map(write::port))
        );
        let _ = writeln!(text, "at = {}", quoted(&at.text()));
        if !entry.in_interfaces.is_empty() {
            let names = entry.in_interfaces.iter().map(|name| quoted(name));
            let _ = writeln!(text, "in = {}", one_or_list(names.collect()));
        }
        for (key, list) in [("from", &entry.from), ("to", &entry.to)] {
            if !list.is_empty() {
                let _ = writeln!(text, "{key} = [{}]", join(list.iter().map(write::address)));
            }
        }
        if let Some(family) = entry.family {
            let _ = writeln!(text, "family = \"{}\"", family.name());
        }
        if let Some(comment) = &entry.comment {
            let _ = writeln!(text, "comment = {}", quoted(comment));
        }
        text.push('\n');
    }
}
