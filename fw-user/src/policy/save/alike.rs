//! Lines that say what the line before said of another address: long lists are made of them, and most of what it
//! takes to read a rule is to find out what its words mean.

use super::lexer::{Line, Word};
use super::{FileReader, Open, rule, values};
use crate::policy::model::{Negatable, Prefix};
use crate::policy::source::Span;

/// A line that was read, about which there was nothing to say, and in which one address can be exchanged.
pub(super) struct Pattern {
    line: Span,
    /// The address in it.
    address: Span,
    field: Field,
    /// `!` stands before it.
    not: bool,
    /// Where later errors about its rule point to.
    target: Span,
}

#[derive(Clone, Copy)]
pub(super) enum Field {
    Source,
    Destination,
}

impl Pattern {
    /// What can be exchanged in a line with one rule; nothing if that is not certain.
    pub(super) fn of(words: &[Word<'_>], read: &rule::Line<'_>, line: Span) -> Option<Self> {
        let rule = &read.rule;
        let lists = [&rule.sources, &rule.destinations];
        let is_one = |list: &Option<Negatable<Vec<Prefix>>>| {
            list.as_ref().is_none_or(|list| list.value.len() == 1)
        };
        if rule.both_transports || !lists.into_iter().all(is_one) {
            return None;
        }
        let option = words
            .iter()
            .position(|word| matches!(&*word.text, "-s" | "-d"))?;
        let (field, list) = match &*words[option].text {
            "-s" => (Field::Source, &rule.sources),
            _ => (Field::Destination, &rule.destinations),
        };
        let address = words.get(option + 1)?;
        // No quotes, so that it stands in the file as it is.
        let is_bare = address.text.len() == address.span.end - address.span.start;
        (is_bare && is_plain(&address.text)).then_some(Self {
            line,
            address: address.span,
            field,
            not: list.as_ref()?.not,
            target: rule.target.as_ref().map_or(line, |(_, span)| *span),
        })
    }

    /// The address in a line that differs from this one in nothing else.
    fn exchanged<'t>(&self, text: &str, line: &'t str) -> Option<&'t str> {
        let before = &text[self.line.start..self.address.start];
        let after = &text[self.address.end..self.line.end];
        let address = line.strip_prefix(before)?.strip_suffix(after)?;
        is_plain(address).then_some(address)
    }

    /// Where the target is in such a line.
    fn target_in(&self, line: Span) -> Span {
        let moved = |place: usize| {
            if place < self.address.end {
                line.start + (place - self.line.start)
            } else {
                line.end - (self.line.end - place)
            }
        };
        Span {
            start: moved(self.target.start),
            end: moved(self.target.end),
        }
    }
}

/// Whether it can be nothing but one address, if it can be read as one: no name of a host, no list.
fn is_plain(text: &str) -> bool {
    let may_be_in = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'/');
    text.bytes().all(may_be_in)
}

impl FileReader<'_, '_> {
    /// Reads a line as the last one with another address; false if it is not one, and nothing was done.
    pub(super) fn repeats(&mut self, line: Line<'_>, span: Span) -> bool {
        let (Some((pattern, place)), Open::Known(builder, _)) = (&mut self.pattern, &mut self.open)
        else {
            return false;
        };
        let text = &self.report.file().text;
        let Some(address) = pattern.exchanged(text, line.text) else {
            return false;
        };
        // What is wrong with it is said by whoever reads the line in full.
        let Ok(prefix) = values::prefix(address, span, self.family) else {
            return false;
        };
        let value = Negatable {
            not: pattern.not,
            value: prefix,
        };
        let target = pattern.target_in(span);
        builder.repeat(place, pattern.field, value, span, target, self.report)
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::{LoadOptions, SourceFile, load};

    /// Each line after one that it resembles, and after one that it does not.
    #[test]
    fn a_line_means_the_same_behind_one_that_it_resembles() {
        let lines = [
            "-A INPUT -s 192.0.2.1 -j DROP",
            "-A INPUT -s 192.0.2.0/24 -j DROP",
            "-A INPUT -s 10.1/16 -j DROP",
            "-A INPUT -s 1.2.3.4/255.255.0.0 -j DROP",
            "-A INPUT -s 0.0.0.0/0 -j DROP",
            "-A INPUT -s any/0 -j DROP",
            "-A INPUT -s 192.0.2.1,192.0.2.2 -j DROP",
            "-A INPUT -s 2001:db8::1 -j DROP",
            "-A INPUT -s 300.0.2.1 -j DROP",
            "-A INPUT -s 192.0.2.1/33 -j DROP",
            "-A INPUT -s -j DROP",
            "-A INPUT -s  -j DROP",
            "-A INPUT -s \"192.0.2.7\" -j DROP",
            "-A INPUT ! -s 192.0.2.1 -j DROP",
            "-A INPUT ! -s 0.0.0.0/0 -j DROP",
            "-A INPUT -d 192.0.2.1 -p tcp --dport 22 -j own",
            "-A INPUT -d 192.0.2.2 -p tcp --dport 22 -j own",
            "-A INPUT -d 192.0.2.2 --dport 22 -j own",
            "-A INPUT -s 192.0.2.3 -d 192.0.2.2 -j own",
            "-A INPUT -s 192.0.2.4 -d 192.0.2.2 -j own",
            "-A INPUT -s 192.0.2.4 -d 192.0.2.5 -j own",
            "-A INPUT -j DROP -s 192.0.2.4",
            "-A INPUT -j DROP -s 192.0.2.5",
            "-A own -s 192.0.2.1 -m comment --comment -s -j DROP",
            "-A own -s 192.0.2.2 -m comment --comment -s -j DROP",
            "-A own -m comment --comment -s -s 192.0.2.2 -j DROP",
            "-A own -m comment --comment -s -s 192.0.2.3 -j DROP",
            "-A own -i 192.0.2.2 -j nowhere",
            "-A INPUT -s 10.0.0.0/8 -d 0.0.0.0/0 -j DROP",
            "[1:2] -A INPUT -s 192.0.2.9 -j DROP",
            "-A INPUT -s 192.0.2.9 -j DROP -c 3 4",
            "-A INPUT -s 192.0.2.8 -j DROP -c 3 4",
            "-I INPUT -s 192.0.2.8 -j DROP",
            "-I INPUT -s 192.0.2.9 -j DROP",
            "-F INPUT",
        ];
        compare("*filter\n:INPUT ACCEPT [0:0]\n:own - [0:0]", &lines);
        // These are wrong, which is said when the table is whole, of where the target stands.
        let lines = [
            "-A INPUT -s 192.0.2.1 -j MASQUERADE",
            "-A INPUT -s 192.0.2.100 -j MASQUERADE",
            "-A INPUT -j MASQUERADE -s 192.0.2.1",
            "-A INPUT -j MASQUERADE -s 192.0.2.100",
        ];
        compare("*nat\n:INPUT ACCEPT [0:0]\n:own - [0:0]", &lines);
    }

    /// Compares two lines behind three others, the second of them twice, with the same lines and a comment between them.
    fn compare(head: &str, lines: &[&str]) {
        for first in lines {
            for second in lines {
                let [together, apart] = ["", "# not a rule\n"].map(|between| {
                    let rules =
                        format!("{head}\n{first}\n{between}{second}\n{between}{second}\nCOMMIT\n");
                    let file = SourceFile::new("rules.v4", rules, None);
                    match load(&[file], LoadOptions::default()) {
                        Ok(loaded) => {
                            let mut ruleset = loaded.policy.ipv4.expect("it is IPv4's");
                            let tables = [&mut ruleset.filter, &mut ruleset.nat]
                                .into_iter()
                                .flatten();
                            let chains = tables.flat_map(|table| &mut table.chains);
                            for rule in chains.flat_map(|chain| &mut chain.rules) {
                                rule.origin.line = without_comments(rule.origin.line, between);
                            }
                            format!("{ruleset:?} {}", loaded.warnings.len())
                        }
                        Err(errors) => {
                            let errors = errors.errors.iter();
                            let said = errors.map(|error| {
                                let line = without_comments(error.line, between);
                                format!("{line} {} {} {}", error.column, error.code, error.found)
                            });
                            said.collect::<Vec<_>>().join("\n")
                        }
                    }
                });
                assert_eq!(together, apart, "{first}\n{second}");
            }
        }
    }

    /// The number that a line has where there is nothing between the two.
    fn without_comments(line: u32, between: &str) -> u32 {
        match line {
            _ if between.is_empty() => line,
            0..=4 => line,
            5 | 6 => line - 1,
            _ => line - 2,
        }
    }
}
