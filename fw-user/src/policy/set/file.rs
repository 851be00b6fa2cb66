//! The files that `ipset save` writes and `ipset restore` reads.

use std::collections::HashMap;
use std::sync::Arc;

use super::{SetDefinition, SetElement, SetKind, parse_element};
use crate::policy::error::{Problem, Report, nearest};
use crate::policy::model::Family;
use crate::policy::save::{Word, file_lines, line_words};
use crate::policy::source::{SourceFile, Span};

/// Whether a file holds sets: by its name, or by its first command.
pub(crate) fn is_set_file(file: &SourceFile) -> bool {
    let mut lines = file.text.lines().map(str::trim);
    let first = lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .unwrap_or_default();
    file.name.to_lowercase().ends_with(".ipset")
        || ["create ", "add ", "-N ", "flush "]
            .iter()
            .any(|command| first.starts_with(command))
}

/// Reads a file into the sets that there are already.
pub(crate) fn read(file: &SourceFile, sets: &mut Vec<SetDefinition>, report: &mut Report<'_>) {
    let mut reader = Reader {
        by_name: HashMap::new(),
        first: sets.len(),
        sets,
        elements: Vec::new(),
        places: Vec::new(),
        report,
        told: Told::default(),
    };
    for line in file_lines(&file.text) {
        match line_words(line) {
            Ok(words) => reader.line(&words),
            Err(span) => reader.report.error(
                Problem::wrong("open-quote", span, "the quote is not closed")
                    .expected("another quote"),
            ),
        }
    }
    reader.finish();
}

/// What has been said once, and need not be said for each line.
#[derive(Default)]
struct Told {
    comments: bool,
    counters: bool,
}

struct Reader<'r, 'f> {
    sets: &'r mut Vec<SetDefinition>,
    /// The first set of this file.
    first: usize,
    by_name: HashMap<String, usize>,
    /// The elements of this file's sets.
    elements: Vec<Vec<SetElement>>,
    /// Where each key is among them.
    places: Vec<HashMap<fw_common::abi::set::SetKey, usize, rustc_hash::FxBuildHasher>>,
    report: &'r mut Report<'f>,
    told: Told,
}

/// How many words an option takes, and what becomes of it.
enum SetOption {
    /// Taken.
    Number,
    /// Says nothing that matters here.
    Ignored(usize),
    /// Not supported: why.
    No(&'static str),
}

fn create_option(name: &str) -> Option<SetOption> {
    Some(match name {
        "family" | "maxelem" | "timeout" | "netmask" | "range" => SetOption::Number,
        "hashsize" | "bucketsize" | "initval" | "probes" | "resize" => SetOption::Ignored(1),
        "counters" | "comment" | "-exist" | "-!" | "nomatch" => SetOption::Ignored(0),
        "skbinfo" => SetOption::No("packets are not marked by sets: leave it out"),
        "forceadd" => SetOption::No(
            "a full set takes no further elements: leave it out, and choose a `maxelem` that is large enough",
        ),
        "bitmask" => SetOption::No("write `netmask` with the number of bits"),
        _ => return None,
    })
}

const CREATE_OPTIONS: [&str; 12] = [
    "family",
    "maxelem",
    "timeout",
    "netmask",
    "range",
    "hashsize",
    "bucketsize",
    "counters",
    "comment",
    "skbinfo",
    "forceadd",
    "-exist",
];

impl Reader<'_, '_> {
    fn line(&mut self, words: &[Word<'_>]) {
        let [command, rest @ ..] = words else { return };
        let arguments: Vec<&Word<'_>> = rest
            .iter()
            .filter(|word| !matches!(word.text.as_ref(), "-exist" | "-!"))
            .collect();
        match command.text.as_ref() {
            text if text.starts_with('#') => {}
            "COMMIT" => {}
            "create" | "-N" | "--create" | "n" => self.create(command, &arguments),
            "add" | "-A" | "--add" => self.add(command, &arguments),
            "flush" | "-F" | "--flush" => {
                if let Some(index) = self.set(command, arguments.first().copied()) {
                    self.elements[index].clear();
                    self.places[index].clear();
                }
            }
            "del" | "-D" | "--del" | "swap" | "rename" | "destroy" | "test" => self.report.error(
                Problem::unsupported(
                    "unsupported-command",
                    command.span,
                    format!("`{}` is not supported in a file of sets", command.text),
                )
                .expected("`create`, `add` or `flush`")
                .help("write the sets as they shall be, as `ipset save` does"),
            ),
            _ => {
                let problem = Problem::wrong(
                    "unknown-command",
                    command.span,
                    format!("there is no command `{}` in a file of sets", command.text),
                )
                .expected("`create`, `add` or `flush`");
                let near = nearest(&command.text, ["create", "add", "flush"]);
                self.report.error(match near {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem,
                });
            }
        }
    }

    fn create(&mut self, command: &Word<'_>, words: &[&Word<'_>]) {
        let [name, kind, options @ ..] = words else {
            return self.report.error(
                Problem::wrong("incomplete", command.span, "the line is not complete")
                    .expected("`create NAME TYPE`, such as `create blocked hash:net`"),
            );
        };
        if name.text.len() > 31 {
            return self.report.error(
                Problem::wrong("bad-set-name", name.span, "the name of the set is too long")
                    .expected("31 characters at most"),
            );
        }
        if self.sets.iter().any(|set| set.name == name.text) {
            return self.report.error(
                Problem::wrong(
                    "set-twice",
                    name.span,
                    format!("the set `{}` is made twice", name.text),
                )
                .expected("another name"),
            );
        }
        let known = SetKind::ALL.iter().find(|known| known.name() == kind.text);
        let Some(kind) = known.copied() else {
            return self.unknown_kind(kind);
        };
        let mut set = SetDefinition {
            name: name.text.as_ref().to_owned(),
            kind,
            family: Family::Ipv4,
            netmask: None,
            timeout: None,
            capacity: 65_536,
            range: None,
            place: self.sets.len() as u32,
            origin: self.report.origin(name.span),
            elements: None,
        };
        let mut rest = options.iter().copied();
        while let Some(option) = rest.next() {
            let name = option.text.as_ref();
            match create_option(name) {
                Some(SetOption::Number) => {
                    let Some(value) = rest.next() else {
                        return self.missing_value(option);
                    };
                    if let Err(expected) = take_option(&mut set, name, &value.text) {
                        let message = format!("`{}` is no {name} of this set", value.text);
                        self.report.error(
                            Problem::wrong("bad-value", value.span, message).expected(expected),
                        );
                    }
                }
                Some(SetOption::Ignored(words)) => {
                    if name == "counters" && !std::mem::replace(&mut self.told.counters, true) {
                        self.report.warn(
                            "set-counters",
                            option.span,
                            "elements of sets are not counted one by one",
                            Some("the rules that ask the set are: `fwbpf show`".to_owned()),
                        );
                    }
                    if words > 0 && rest.nth(words - 1).is_none() {
                        return self.missing_value(option);
                    }
                }
                Some(SetOption::No(why)) => self.report.error(
                    Problem::unsupported(
                        "unsupported-set-option",
                        option.span,
                        format!("`{name}` is not supported"),
                    )
                    .expected("another option")
                    .help(why),
                ),
                None => {
                    let problem = Problem::wrong(
                        "unknown-option",
                        option.span,
                        format!("sets have no option `{name}`"),
                    )
                    .expected("an option of `create`");
                    let near = nearest(name, CREATE_OPTIONS);
                    self.report.error(match near {
                        Some(near) => problem.help(format!("did you mean `{near}`?")),
                        None => problem,
                    });
                }
            }
        }
        if kind.is_bitmap() {
            let Some((first, last)) = set.range else {
                return self.report.error(
                    Problem::wrong(
                        "missing-option",
                        name.span,
                        format!("{} has no range", kind.name()),
                    )
                    .expected("`range FIRST-LAST` behind the type"),
                );
            };
            set.capacity = (last - first).saturating_add(1);
        }
        self.by_name.insert(set.name.clone(), self.elements.len());
        self.sets.push(set);
        self.elements.push(Vec::new());
        self.places.push(HashMap::default());
    }

    fn unknown_kind(&mut self, kind: &Word<'_>) {
        let names = SetKind::ALL.map(SetKind::name);
        let why = match kind.text.as_ref() {
            "hash:net,iface" => {
                "match the interface with `-i` or `-o` beside a set of type hash:net"
            }
            "hash:mac" | "hash:ip,mac" | "bitmap:ip,mac" => {
                "match the addresses of layer 3 with hash:ip"
            }
            "hash:ip,mark" => "match the mark in the rule, beside a set of type hash:ip",
            "hash:net,port,net" => {
                "write two sets, hash:net,port and hash:net, and ask both in one rule if every pair of theirs is meant"
            }
            "list:set" => "write one rule for each of its sets",
            text => {
                let problem = Problem::wrong(
                    "unknown-set-type",
                    kind.span,
                    format!("there is no type of sets `{text}`"),
                )
                .expected(format!("one of {}", names.join("; ")));
                return self.report.error(match nearest(text, names) {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem,
                });
            }
        };
        self.report.error(
            Problem::unsupported(
                "unsupported-set-type",
                kind.span,
                format!("sets of type {} are not supported", kind.text),
            )
            .expected(format!("one of {}", names.join("; ")))
            .help(why),
        );
    }

    fn missing_value(&mut self, option: &Word<'_>) {
        self.report.error(
            Problem::wrong(
                "missing-value",
                option.span,
                format!("`{}` has no value", option.text),
            )
            .expected("a value behind it"),
        );
    }

    /// The set of this file that a line is about, among [`Reader::elements`].
    fn set(&mut self, command: &Word<'_>, name: Option<&Word<'_>>) -> Option<usize> {
        let Some(name) = name else {
            self.report.error(
                Problem::wrong("incomplete", command.span, "the line is not complete")
                    .expected("the name of a set behind it"),
            );
            return None;
        };
        let found = self.by_name.get(name.text.as_ref()).copied();
        if found.is_none() {
            let message = format!("the file makes no set `{}` before this line", name.text);
            let problem =
                Problem::wrong("unknown-set", name.span, message).expected("the name of a set");
            let near = nearest(&name.text, self.by_name.keys().map(String::as_str));
            let problem = match near {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help(format!("put `create {} hash:net` before it", name.text)),
            };
            self.report.error(problem);
        }
        found
    }

    fn add(&mut self, command: &Word<'_>, words: &[&Word<'_>]) {
        let Some(index) = self.set(command, words.first().copied()) else {
            return;
        };
        let [_, element, options @ ..] = words else {
            return self.report.error(
                Problem::wrong("incomplete", command.span, "the line is not complete")
                    .expected("an element behind the set's name"),
            );
        };
        let set = &self.sets[self.first + index];
        let keys = match parse_element(&element.text, set) {
            Ok(keys) => keys,
            Err(bad) => {
                return self.report.error(
                    Problem::wrong("bad-element", element.span, bad.message).expected(bad.expected),
                );
            }
        };
        let Some((timeout, nomatch)) = self.add_options(index, options) else {
            return;
        };
        let set = &self.sets[self.first + index];
        let (elements, places) = (&mut self.elements[index], &mut self.places[index]);
        for key in keys {
            let element = SetElement {
                key,
                timeout,
                nomatch,
            };
            match places.get(&key) {
                Some(place) => elements[*place] = element,
                None => {
                    places.insert(key, elements.len());
                    elements.push(element);
                }
            }
        }
        if elements.len() > set.capacity as usize {
            let message = format!("the set `{}` is full", set.name);
            let problem = Problem::wrong("set-full", element.span, message)
                .expected(format!("{} elements at most", set.capacity))
                .help("write a larger `maxelem` into the line that makes the set");
            // Once will do.
            elements.clear();
            places.clear();
            self.report.error(problem);
        }
    }

    /// The time and `nomatch` of an element; nothing if something was wrong.
    fn add_options(&mut self, index: usize, words: &[&Word<'_>]) -> Option<(Option<u32>, bool)> {
        let (mut timeout, mut nomatch) = (None, false);
        let mut rest = words.iter().copied();
        while let Some(option) = rest.next() {
            let set = &self.sets[self.first + index];
            let wrong = |span: Span, message: String, expected: &str| {
                Problem::wrong("bad-value", span, message).expected(expected)
            };
            let problem = match option.text.as_ref() {
                "timeout" => match rest.next().map(|word| (word.span, word.text.parse())) {
                    Some((_, Ok(seconds))) if seconds <= MOST_SECONDS && set.timeout.is_some() => {
                        timeout = Some(seconds);
                        continue;
                    }
                    Some((_, Ok(seconds))) if seconds <= MOST_SECONDS => wrong(
                        option.span,
                        format!("elements of the set `{}` have no times", set.name),
                        "`timeout` in the line that makes the set too, be it 0",
                    ),
                    Some((span, _)) => wrong(
                        span,
                        "this is no number of seconds".to_owned(),
                        "0 to 2147483",
                    ),
                    None => wrong(
                        option.span,
                        "`timeout` has no value".to_owned(),
                        "seconds behind it",
                    ),
                },
                "nomatch" if set.kind.has_nomatch() => {
                    nomatch = true;
                    continue;
                }
                "nomatch" => wrong(
                    option.span,
                    format!("elements of {} cannot be excepted", set.kind.name()),
                    "no `nomatch`: the type has no prefixes",
                ),
                "packets" | "bytes" => match rest.next() {
                    Some(_) => continue,
                    None => return self.missing(option),
                },
                "comment" => match rest.next() {
                    Some(_) => {
                        if !std::mem::replace(&mut self.told.comments, true) {
                            self.report.warn(
                                "set-comments",
                                option.span,
                                "comments of elements are not kept",
                                Some("they stay in the file".to_owned()),
                            );
                        }
                        continue;
                    }
                    None => return self.missing(option),
                },
                "skbmark" | "skbprio" | "skbqueue" => Problem::unsupported(
                    "unsupported-set-option",
                    option.span,
                    format!("`{}` is not supported", option.text),
                )
                .expected("no mark")
                .help("packets are not marked by sets: leave it out"),
                text => Problem::wrong(
                    "unknown-option",
                    option.span,
                    format!("elements have no option `{text}`"),
                )
                .expected("`timeout`, `comment` or `nomatch`"),
            };
            self.report.error(problem);
            return None;
        }
        Some((timeout, nomatch))
    }

    fn missing<T>(&mut self, option: &Word<'_>) -> Option<T> {
        self.missing_value(option);
        None
    }

    fn finish(self) {
        for (set, elements) in self.sets[self.first..].iter_mut().zip(self.elements) {
            set.elements = Some(Arc::new(elements));
        }
    }
}

/// `IPSET_MAX_TIMEOUT`, linux/netfilter/ipset/ip_set.h.
pub const MOST_SECONDS: u32 = (u32::MAX >> 1) / 1000;

/// Takes an option of `create`, or says what was expected.
pub(super) fn take_option(set: &mut SetDefinition, name: &str, value: &str) -> Result<(), String> {
    let number = |most: u32| {
        let number = value.parse::<u32>().ok().filter(|number| *number <= most);
        number.ok_or_else(|| format!("a number up to {most}"))
    };
    match name {
        "family" => {
            set.family = match value {
                "inet" | "ipv4" | "-4" => Family::Ipv4,
                "inet6" | "ipv6" | "-6" if !set.kind.is_bitmap() => Family::Ipv6,
                _ => return Err("inet or inet6".to_owned()),
            };
        }
        "maxelem" => set.capacity = number(MOST_ELEMENTS)?.max(1),
        "timeout" => set.timeout = Some(number(MOST_SECONDS)?),
        "netmask" => {
            let with_mask = matches!(set.kind, SetKind::HashIp | SetKind::BitmapIp);
            let length = number(set.whole().into())? as u8;
            if !with_mask || length == 0 {
                return Err("a number of bits, for hash:ip or bitmap:ip".to_owned());
            }
            set.netmask = Some(length);
        }
        _ => set.range = Some(range(set.kind, value)?),
    }
    Ok(())
}

/// More would take gigabytes.
const MOST_ELEMENTS: u32 = 1 << 24;

fn range(kind: SetKind, text: &str) -> Result<(u32, u32), String> {
    let one = |text: &str| match kind {
        SetKind::BitmapPort => text.parse::<u16>().ok().map(u32::from),
        _ => text
            .parse::<std::net::Ipv4Addr>()
            .ok()
            .map(|address| address.to_bits()),
    };
    let ends = match (text.split_once('-'), text.split_once('/')) {
        (Some((first, last)), _) => one(first).zip(one(last)),
        (None, Some((address, length))) => one(address)
            .zip(
                length
                    .parse::<u32>()
                    .ok()
                    .filter(|length| (16..=32).contains(length)),
            )
            .map(|(address, length)| {
                let rest = u32::MAX.checked_shr(length).unwrap_or(0);
                (address & !rest, address | rest)
            }),
        (None, None) => None,
    };
    match ends {
        // `IPSET_BITMAP_MAX_RANGE`
        Some((first, last)) if first <= last && last - first <= 0xffff => Ok((first, last)),
        _ => Err(match kind {
            SetKind::BitmapPort => "a range such as 0-65535".to_owned(),
            _ => "a range of 65536 addresses at most, such as 192.0.2.0/24".to_owned(),
        }),
    }
}
