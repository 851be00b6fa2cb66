//! policy.toml's text -> [`Document`]: every key is known, every value has its place.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::types::TYPES;
use super::{Answer, Document, Entry, Masquerading, Place, Section, Verdict, What};
use crate::policy::error::{Problem, Report, nearest};
use crate::policy::model::{Family, PortRange, Prefix};
use crate::policy::names::{SCTP, TCP, UDP, protocol_names, protocol_number};
use crate::policy::save::{Word, values};
use crate::policy::set::SetDefinition;
use crate::policy::source::{SourceFile, Span};

/// Reads the text. After an error the rest is still read, so that all errors are reported.
pub(super) fn read(
    file: &SourceFile,
    given: &[SetDefinition],
    report: &mut Report<'_>,
) -> Document {
    let (root, errors) = DeTable::parse_recoverable(&file.text);
    for error in errors {
        let span = error.span().unwrap_or(0..0).into();
        let message = format!("this is not TOML: {}", error.message().trim());
        report.error(Problem::wrong("bad-toml", span, message).expected("valid TOML (toml.io)"));
    }
    let mut document = Document::default();
    let mut reader = Reader {
        report,
        sets: given.to_vec(),
    };
    // Rules refer to sets, wherever they stand.
    if let Some(sets) = root.get_ref().get("sets") {
        document.sets = reader.sets(sets);
        reader.sets.extend(document.sets.iter().cloned());
    }
    reader.root(root.get_ref(), &mut document);
    document
}

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

pub(super) struct Reader<'r, 'f> {
    pub(super) report: &'r mut Report<'f>,
    /// The sets that there are.
    pub(super) sets: Vec<SetDefinition>,
}

impl Reader<'_, '_> {
    fn root(&mut self, table: &DeTable<'_>, document: &mut Document) {
        const KEYS: &[&str] = &[
            "defaults",
            "incoming",
            "outgoing",
            "forward",
            "masquerade",
            "publish",
            "sets",
            "conntrack",
        ];
        for (key, value) in table {
            let at = key.span().into();
            match key.get_ref().as_ref() {
                "defaults" => self.defaults(value, document),
                "incoming" => self.section(value, "incoming", &mut document.incoming),
                "outgoing" => self.section(value, "outgoing", &mut document.outgoing),
                "forward" => self.section(value, "forward", &mut document.forward),
                "masquerade" => document.masquerade = self.masquerade(value, at),
                "publish" => document.publish = self.publications(value),
                // They have been read.
                "sets" => {}
                "conntrack" => self.conntrack(value, &mut document.tracking),
                unknown => self.unknown_key(unknown, at, KEYS),
            }
        }
    }

    fn defaults(&mut self, value: &Value<'_>, document: &mut Document) {
        const KEYS: &[&str] = &["loopback", "established", "neighbour_discovery"];
        let Some(table) = self.table(value) else {
            return;
        };
        let defaults = &mut document.defaults;
        for (key, value) in table {
            let place = match key.get_ref().as_ref() {
                "loopback" => &mut defaults.loopback,
                "established" => &mut defaults.established,
                "neighbour_discovery" | "neighbor_discovery" => &mut defaults.neighbour_discovery,
                unknown => {
                    self.unknown_key(unknown, key.span().into(), KEYS);
                    continue;
                }
            };
            match value.get_ref().as_bool() {
                Some(chosen) => *place = chosen,
                None => self.wrong_type(value, "true or false"),
            }
        }
    }

    fn section(&mut self, value: &Value<'_>, name: &str, section: &mut Section) {
        const KEYS: &[&str] = &["default", "rules"];
        let Some(table) = self.table(value) else {
            return;
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "default" => {
                    section.origin = Place(Some(self.report.origin(key.span().into())));
                    match value.get_ref().as_str() {
                        Some("allow") => section.accept = true,
                        Some("drop") => section.accept = false,
                        _ => self.wrong_type(value, "\"allow\" or \"drop\""),
                    }
                }
                "rules" => {
                    let Some(rules) = value.get_ref().as_array() else {
                        self.wrong_type(
                            value,
                            "a list of rules: [ { allow = \"tcp\", ports = [22] } ]",
                        );
                        continue;
                    };
                    for rule in rules.iter() {
                        section.rules.extend(self.rule(rule, name));
                    }
                }
                unknown => self.unknown_key(unknown, key.span().into(), KEYS),
            }
        }
    }

    fn rule(&mut self, value: &Value<'_>, section: &str) -> Option<Entry> {
        const KEYS: &[&str] = &[
            "allow",
            "drop",
            "reject",
            "with",
            "types",
            "ports",
            "source_ports",
            "from",
            "to",
            "from_set",
            "to_set",
            "in",
            "out",
            "family",
            "limit",
            "log",
            "comment",
        ];
        let table = self.table(value)?;
        let whole: Span = value.span().into();
        let errors = self.report.errors.len();
        let mut entry = Entry {
            origin: Place(Some(self.report.origin(whole))),
            ..Entry::default()
        };
        let mut decided = false;
        let mut with = None;
        for (key, value) in table {
            let at: Span = key.span().into();
            match key.get_ref().as_ref() {
                verb @ ("allow" | "drop" | "reject") => {
                    if std::mem::replace(&mut decided, true) {
                        self.report.error(
                            Problem::wrong(
                                "two-verdicts",
                                at,
                                "a rule either allows, drops or rejects",
                            )
                            .expected("only one of `allow`, `drop` and `reject`")
                            .help("write two rules"),
                        );
                    }
                    entry.verdict = match verb {
                        "allow" => Verdict::Allow,
                        "drop" => Verdict::Drop,
                        _ => Verdict::Reject(Answer::default()),
                    };
                    entry.what = self.list(value, "a protocol such as \"tcp\"", Self::what);
                }
                "types" => entry.types = self.list(value, TYPES, Self::kind),
                "ports" => entry.ports = self.list(value, PORTS, Self::ports),
                "source_ports" => entry.source_ports = self.list(value, PORTS, Self::ports),
                "from" => entry.from = self.list(value, ADDRESSES, Self::prefix),
                "to" => entry.to = self.list(value, ADDRESSES, Self::prefix),
                key @ ("from_set" | "to_set") => {
                    if let Some((name, family)) = self.named_set(value) {
                        entry.set_families.extend(family);
                        match key {
                            "from_set" => entry.from_set = Some(name),
                            _ => entry.to_set = Some(name),
                        }
                    }
                }
                "in" => {
                    if section == "outgoing" {
                        self.report.error(
                            Problem::wrong(
                                "misplaced-interface",
                                at,
                                "outgoing packets were not received by any interface",
                            )
                            .expected("`out`"),
                        );
                    }
                    entry.in_interfaces = self.list(value, INTERFACES, Self::interface);
                }
                "out" => {
                    if section == "incoming" {
                        self.report.error(
                            Problem::wrong(
                                "misplaced-interface",
                                at,
                                "incoming packets are not sent by any interface",
                            )
                            .expected("`in`"),
                        );
                    }
                    entry.out_interfaces = self.list(value, INTERFACES, Self::interface);
                }
                "with" => with = self.answer(value).map(|answer| (answer, at)),
                "family" => entry.family = self.family(value),
                "limit" => entry.limit = self.limit(value),
                "log" => entry.log = self.logging(value),
                "comment" => entry.comment = self.comment(value),
                unknown => self.unknown_key(unknown, at, KEYS),
            }
        }
        if let Some((answer, at)) = with {
            self.set_answer(&mut entry, answer, at);
        }
        // A misspelt key has been reported already, and it may have been the verdict.
        if !decided && self.report.errors.len() == errors {
            self.report.error(
                Problem::wrong(
                    "no-verdict",
                    whole,
                    "the rule neither allows, drops nor rejects anything",
                )
                .expected("`allow = ...`, `drop = ...` or `reject = ...`")
                .help("for every protocol write `allow = \"any\"`"),
            );
        }
        if self.report.errors.len() == errors {
            self.check(&entry, whole);
        }
        (self.report.errors.len() == errors).then_some(entry)
    }

    /// `with`.
    fn answer(&mut self, value: &Value<'_>) -> Option<Answer> {
        let text = value.get_ref().as_str();
        let found = Answer::ALL
            .into_iter()
            .find(|answer| text == Some(answer.name()));
        if found.is_none() {
            let names = Answer::ALL.map(|answer| format!("\"{}\"", answer.name()));
            self.wrong_type(value, &names.join(", "));
        }
        found
    }

    /// Only what is rejected is answered, and only TCP by a reset.
    fn set_answer(&mut self, entry: &mut Entry, answer: Answer, at: Span) {
        let tcp = entry.what.iter().all(|what| *what == What::Protocol(TCP));
        if !matches!(entry.verdict, Verdict::Reject(_)) {
            self.report.error(
                Problem::wrong("misplaced-with", at, "only what is rejected is answered")
                    .expected("`with` in a rule that has `reject`"),
            );
        } else if answer == Answer::TcpReset && !tcp {
            self.report.error(
                Problem::wrong("misplaced-with", at, "a TCP reset answers TCP only")
                    .expected("`reject = \"tcp\"`")
                    .help("write two rules, the other without `with`"),
            );
        } else {
            entry.verdict = Verdict::Reject(answer);
        }
    }

    /// What no single key can tell.
    fn check(&mut self, entry: &Entry, whole: Span) {
        let has_ports = !entry.ports.is_empty() || !entry.source_ports.is_empty();
        let portless = entry
            .what
            .iter()
            .any(|what| !matches!(what, What::Protocol(TCP | UDP | SCTP)));
        if has_ports && portless {
            self.report.error(
                Problem::wrong(
                    "ports-without-protocol",
                    whole,
                    "ports need tcp, udp or sctp",
                )
                .expected("`\"tcp\"`, `\"udp\"`, `\"sctp\"` or several of them as the protocol")
                .help("write `allow = [\"tcp\", \"udp\"]` (or `drop`) for both"),
            );
        }
        if !entry.types.is_empty() && entry.what.iter().any(|what| *what != What::Icmp) {
            self.report.error(
                Problem::wrong("types-without-icmp", whole, "only ICMP has types")
                    .expected("`\"icmp\"` as the protocol, in a rule of its own"),
            );
        }
        let families = [Family::Ipv4, Family::Ipv6].into_iter();
        let families = families.filter(|family| super::lower::applies(entry, *family));
        let families = families.count();
        if families == 0 {
            self.report.error(
                Problem::wrong(
                    "no-family",
                    whole,
                    "no packet can match: addresses, types and family are of different IP versions",
                )
                .expected("`from`, `to`, `types` and `family` with one IP version in common"),
            );
        } else if families == 2 && entry.types.iter().any(|kind| kind.is_number()) {
            self.report.error(
                Problem::wrong(
                    "type-without-family",
                    whole,
                    "a type's number means different things in IPv4 and in IPv6",
                )
                .expected("the type's name, or `family = \"ipv4\"` or `family = \"ipv6\"`"),
            );
        }
    }

    fn masquerade(&mut self, value: &Value<'_>, at: Span) -> Option<Masquerading> {
        const KEYS: &[&str] = &["out", "from", "family"];
        let table = self.table(value)?;
        let mut masquerade = Masquerading {
            origin: Place(Some(self.report.origin(at))),
            ..Masquerading::default()
        };
        let errors = self.report.errors.len();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "out" => masquerade.out_interfaces = self.list(value, INTERFACES, Self::interface),
                "from" => masquerade.from = self.list(value, ADDRESSES, Self::prefix),
                "family" => masquerade.family = self.family(value),
                unknown => self.unknown_key(unknown, key.span().into(), KEYS),
            }
        }
        if masquerade.out_interfaces.is_empty() && self.report.errors.len() == errors {
            self.report.error(
                Problem::wrong("no-interface", at, "masquerading needs an interface")
                    .expected("`out = [\"eth0\"]`, the interfaces towards the outside"),
            );
        }
        Some(masquerade)
    }

    /// A value or a list of values. An empty list is refused: it would match nothing or anything.
    pub(super) fn list<T>(
        &mut self,
        value: &Value<'_>,
        expected: &str,
        mut read: impl FnMut(&mut Self, &Value<'_>, &str) -> Option<T>,
    ) -> Vec<T> {
        let Some(items) = value.get_ref().as_array() else {
            return read(self, value, expected).into_iter().collect();
        };
        if items.is_empty() {
            self.report.error(
                Problem::wrong("empty-list", value.span().into(), "the list is empty")
                    .expected(expected)
                    .help("leave the key out for no restriction"),
            );
        }
        items
            .iter()
            .filter_map(|item| read(self, item, expected))
            .collect()
    }

    fn what(&mut self, value: &Value<'_>, expected: &str) -> Option<What> {
        if let Some(number) = integer(value) {
            return match u8::try_from(number) {
                Ok(number) if number > 0 => Some(What::Protocol(number)),
                _ => self.refuse(
                    value,
                    "bad-protocol",
                    "a protocol's number is from 1 to 255",
                    expected,
                ),
            };
        }
        let Some(name) = value.get_ref().as_str() else {
            return self.mistyped(value, expected);
        };
        match name {
            "any" => Some(What::Any),
            "icmp" => Some(What::Icmp),
            "established" => Some(What::Established),
            "invalid" => Some(What::Invalid),
            _ => {
                match protocol_number(name) {
                    Some(number) => Some(What::Protocol(number)),
                    None => {
                        let near = nearest(
                            name,
                            ["any", "established", "invalid"]
                                .into_iter()
                                .chain(protocol_names()),
                        );
                        let problem = Problem::wrong("unknown-protocol", value.span().into(), format!("there is no protocol `{name}`"))
                        .expected("tcp, udp, icmp, any, established, invalid, or a protocol's name or number");
                        self.report.error(match near {
                            Some(near) => problem.help(format!("did you mean \"{near}\"?")),
                            None => problem,
                        });
                        None
                    }
                }
            }
        }
    }

    pub(super) fn ports(&mut self, value: &Value<'_>, expected: &str) -> Option<PortRange> {
        if let Some(number) = integer(value) {
            return match u16::try_from(number) {
                Ok(port) => Some(PortRange {
                    first: port,
                    last: port,
                }),
                Err(_) => self.refuse(value, "bad-port", "a port is from 0 to 65535", expected),
            };
        }
        let Some(text) = value.get_ref().as_str() else {
            return self.mistyped(value, expected);
        };
        let range = text
            .split_once('-')
            .filter(|(low, _)| low.bytes().all(|byte| byte.is_ascii_digit()));
        let spelt = range.map_or_else(|| text.to_owned(), |(low, high)| format!("{low}:{high}"));
        let word = Word {
            text: spelt.into(),
            span: value.span().into(),
        };
        match values::port_range(&word, None) {
            Ok(range) => Some(range),
            Err(_) => self.refuse(
                value,
                "bad-port",
                &format!("`{text}` is neither a port nor a range of ports"),
                expected,
            ),
        }
    }

    pub(super) fn prefix(&mut self, value: &Value<'_>, expected: &str) -> Option<Prefix> {
        let Some(text) = value.get_ref().as_str() else {
            return self.mistyped(value, expected);
        };
        let family = if text.contains(':') {
            Family::Ipv6
        } else {
            Family::Ipv4
        };
        match values::prefix(text, value.span().into(), family) {
            Ok(prefix) => Some(prefix),
            Err(problem) => {
                self.report.error(Problem {
                    span: value.span().into(),
                    ..problem
                });
                None
            }
        }
    }

    pub(super) fn interface(&mut self, value: &Value<'_>, expected: &str) -> Option<String> {
        let Some(text) = value.get_ref().as_str() else {
            return self.mistyped(value, expected);
        };
        if let Some(stem) = text.strip_suffix('*') {
            let message = format!("`{text}` is not an interface");
            self.report.error(
                Problem::wrong("bad-interface", value.span().into(), message)
                    .expected(expected)
                    .help(format!(
                        "every interface that begins with `{stem}` is written \"{stem}+\""
                    )),
            );
            return None;
        }
        let word = Word {
            text: text.into(),
            span: value.span().into(),
        };
        match values::interface(&word) {
            Ok(pattern) => Some(pattern.0),
            Err(problem) => {
                self.report.error(problem);
                None
            }
        }
    }

    pub(super) fn family(&mut self, value: &Value<'_>) -> Option<Family> {
        match value.get_ref().as_str() {
            Some("ipv4") => Some(Family::Ipv4),
            Some("ipv6") => Some(Family::Ipv6),
            _ => self.mistyped(value, "\"ipv4\" or \"ipv6\""),
        }
    }

    pub(super) fn comment(&mut self, value: &Value<'_>) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) if text.len() <= 255 && !text.chars().any(char::is_control) => {
                Some(text.to_owned())
            }
            _ => self.mistyped(value, "a line of at most 255 bytes"),
        }
    }

    pub(super) fn table<'v, 'i>(&mut self, value: &'v Value<'i>) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, "a table with keys");
        }
        table
    }

    fn mistyped<T>(&mut self, value: &Value<'_>, expected: &str) -> Option<T> {
        self.wrong_type(value, expected);
        None
    }

    pub(super) fn wrong_type(&mut self, value: &Value<'_>, expected: &str) {
        let message = match value.get_ref() {
            DeValue::String(text) => format!("`{text}` is not expected here"),
            other => format!("a value of type {} is not expected here", other.type_str()),
        };
        self.report
            .error(Problem::wrong("bad-value", value.span().into(), message).expected(expected));
    }

    fn refuse<T>(
        &mut self,
        value: &Value<'_>,
        code: &'static str,
        message: &str,
        expected: &str,
    ) -> Option<T> {
        self.report
            .error(Problem::wrong(code, value.span().into(), message).expected(expected));
        None
    }

    pub(super) fn unknown_key(&mut self, key: &str, span: Span, known: &[&str]) {
        let problem = Problem::wrong("unknown-key", span, format!("there is no key `{key}` here"))
            .expected(format!("one of {}", known.join(", ")));
        self.report
            .error(match nearest(key, known.iter().copied()) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem,
            });
    }
}

pub(super) const PORTS: &str = "a port such as 22, or a range such as \"8000-8100\"";
pub(super) const ADDRESSES: &str = "an address such as \"192.0.2.2\" or \"2001:db8::/32\"";
pub(super) const INTERFACES: &str = "an interface such as \"eth0\"";

pub(super) fn integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .or(Some(-1))
}
