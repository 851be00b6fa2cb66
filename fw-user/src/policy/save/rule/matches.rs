//! `-m` and the options of matches.

use super::{LoadedMatch, Reader};
use crate::policy::error::{Problem, nearest};
use crate::policy::match_table::{
    Argument, MatchDraft, OptionRow, ReadOption, Support, all_matches, find_match,
};
use crate::policy::model::Family;
use crate::policy::names::protocol_name;
use crate::policy::save::lexer::Word;

impl<'a> Reader<'a, '_, '_> {
    pub(super) fn load_match(&mut self, word: &'a Word<'a>) {
        let Some(row) = find_match(&word.text, self.family) else {
            let problem = Problem::wrong(
                "unknown-match",
                word.span,
                format!("there is no match `{}`", word.text),
            )
            .expected("the name of a match");
            let near = nearest(&word.text, all_matches().map(|row| row.name));
            self.foreign = true;
            return self.error(match near {
                Some(near) => problem.help(format!("did you mean `-m {near}`?")),
                None => problem.help(supported_matches(self.family)),
            });
        };
        if !row.families.contains(&self.family) {
            self.foreign = true;
            let message = format!("{} has no match `{}`", self.family.title(), word.text);
            let problem =
                Problem::wrong("wrong-family", word.span, message).expected("another match");
            return self.error(match word.text.as_ref() {
                "icmp" => problem.help("write `-p ipv6-icmp -m icmp6 --icmpv6-type ...`"),
                "icmp6" | "icmpv6" | "ipv6-icmp" => {
                    problem.help("write `-p icmp -m icmp --icmp-type ...`")
                }
                "hl" => problem.help("write `-m ttl` and `--ttl-eq`, `--ttl-lt` or `--ttl-gt`"),
                "ttl" => problem.help("write `-m hl` and `--hl-eq`, `--hl-lt` or `--hl-gt`"),
                "frag" => problem.help("IPv4's fragments are matched by `-f`"),
                _ => problem.help(format!(
                    "put the rule into the file for {}, or leave it out",
                    self.family.other().title()
                )),
            });
        }
        let Some(reading) = &row.reading else {
            self.foreign = true;
            return self.error(
                Problem::unsupported(
                    "unsupported-match",
                    word.span,
                    format!("`-m {}` is not supported", word.text),
                )
                .expected(supported_matches(self.family))
                .help(row.note),
            );
        };
        // As in iptables, naming the match of the protocol counts as its implicit loading.
        let own = self
            .rule
            .protocol
            .and_then(|protocol| protocol_name(protocol.value));
        self.implicit_used |= own.is_some_and(|own| own == row.name || row.aliases.contains(&own));
        self.matches.push(LoadedMatch {
            reading,
            name: row.name,
            draft: (reading.start)(),
            span: word.span,
            before_protocol: false,
        });
    }

    pub(super) fn match_option(
        &mut self,
        word: &'a Word<'a>,
        index: usize,
        row: &'static OptionRow<MatchDraft>,
        glued: Option<Word<'a>>,
    ) {
        let Some((not, words)) = self.option_words(word, row.arguments, row.negatable, glued)
        else {
            return;
        };
        let loaded = &mut self.matches[index];
        loaded.before_protocol |= self.rule.protocol.is_none();
        match row.read {
            ReadOption::Into(read) => {
                let protocol = self
                    .rule
                    .protocol
                    .filter(|protocol| !protocol.not)
                    .map(|protocol| protocol.value);
                let argument = Argument {
                    option: word,
                    not,
                    words: &words,
                    family: self.family,
                    protocol,
                };
                let result = read(&mut loaded.draft, &argument);
                self.ok(result);
            }
            ReadOption::Unsupported(instead) => {
                let message = format!("`{}` is not supported", word.text);
                self.error(
                    Problem::unsupported("unsupported-option", word.span, message)
                        .expected("another match")
                        .help(instead),
                );
            }
        }
    }
}

pub(super) fn supported_matches(family: Family) -> String {
    let works =
        all_matches().filter(|row| row.support != Support::No && row.families.contains(&family));
    let names: Vec<_> = works.map(|row| row.name).collect();
    format!("one of {}", names.join(", "))
}
