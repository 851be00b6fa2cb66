//! One line of a table: a command, and for `-A` and `-I` the rule's matches and target.

mod core;
mod lookup;
mod matches;
mod targets;
mod whole;

use std::borrow::Cow;

use super::table::TableBuilder;
use crate::policy::error::{PolicyError, Problem, Report, nearest};
use crate::policy::match_table::{MatchDraft, MatchReading, TargetDraft, TargetRow, all_matches};
use crate::policy::model::{Counters, Family, InterfacePattern, Match, Negatable, Prefix, Target};
use crate::policy::save::lexer::Word;
use crate::policy::save::options::{Core, by_letter};
use crate::policy::source::Span;
use lookup::{Found, all_option_names, orphan_name};

/// What a line says.
pub(crate) struct Line<'a> {
    /// The command; `None` if there was none or it could not be read.
    pub command: Option<(Core, Span)>,
    /// The words after the command: the chain, and for `-I` a number, for `-P` the policy.
    pub operands: &'a [Word<'a>],
    pub rule: RuleDraft,
    /// False if anything was reported as an error.
    pub sound: bool,
    /// True if `-4` or `-6` names the other IP version: iptables-restore skips such a line.
    pub other_family: bool,
}

/// A rule as written: lists not yet expanded.
#[derive(Default)]
pub(crate) struct RuleDraft {
    pub sources: Option<Negatable<Vec<Prefix>>>,
    pub destinations: Option<Negatable<Vec<Prefix>>>,
    pub in_interface: Option<(Negatable<InterfacePattern>, Span)>,
    pub out_interface: Option<(Negatable<InterfacePattern>, Span)>,
    pub protocol: Option<Negatable<u8>>,
    /// `-f`; true for `! -f`.
    pub fragment: Option<bool>,
    pub matches: Vec<Match>,
    pub target: Option<(Target, Span)>,
    pub counters: Option<Counters>,
    /// Ports that stood without any `-p`: the rule is meant for TCP and for UDP.
    pub both_transports: bool,
}

/// Reads a line's words.
pub(crate) fn read_line<'a>(
    words: &'a [Word<'a>],
    family: Family,
    table: &TableBuilder,
    report: &mut Report<'_>,
) -> Line<'a> {
    let end = words.last().map_or_else(Span::default, |word| word.span);
    let mut reader = Reader {
        words,
        next: 0,
        end: (end.end..end.end).into(),
        family,
        table,
        errors_before: report.errors.len(),
        report,
        not: None,
        command: None,
        operands: &[],
        seen: 0,
        rule: RuleDraft::default(),
        matches: Vec::new(),
        implicit_used: false,
        target: None,
        goto: false,
        orphans: Vec::new(),
        foreign: false,
        other_family: false,
    };
    reader.run();
    reader.finish()
}

struct LoadedMatch {
    reading: &'static MatchReading,
    name: &'static str,
    draft: MatchDraft,
    span: Span,
    /// True if an option of it was read before the rule had a protocol.
    before_protocol: bool,
}

/// A port option before any `-p tcp` or `-p udp`.
struct Orphan<'a> {
    option: Word<'a>,
    name: &'static str,
    not: bool,
    value: Word<'a>,
}

struct Reader<'a, 'r, 'f> {
    words: &'a [Word<'a>],
    next: usize,
    end: Span,
    family: Family,
    table: &'r TableBuilder,
    report: &'r mut Report<'f>,
    errors_before: usize,
    /// Where a `!` stands that waits for its option.
    not: Option<Span>,
    command: Option<(Core, Span)>,
    operands: &'a [Word<'a>],
    /// The options so far, a bit each.
    seen: u32,
    rule: RuleDraft,
    matches: Vec<LoadedMatch>,
    implicit_used: bool,
    target: Option<(&'static TargetRow, TargetDraft, Span)>,
    goto: bool,
    orphans: Vec<Orphan<'a>>,
    /// True once an unsupported match or target was met, whose options are then unknown.
    foreign: bool,
    other_family: bool,
}

impl<'a> Reader<'a, '_, '_> {
    fn run(&mut self) {
        while let Some(word) = self.take() {
            if word.text == "!" {
                if self.not.is_some() {
                    self.error(
                        Problem::wrong("misplaced-not", word.span, "two `!` in a row")
                            .expected("an option"),
                    );
                }
                self.not = Some(word.span);
                continue;
            }
            if let Some(long) = word.text.strip_prefix("--").filter(|long| !long.is_empty()) {
                self.long_option(word, long);
            } else if word.text.len() > 1 && word.text.starts_with('-') {
                self.short_option(word);
            } else {
                self.stray(word);
            }
        }
        if let Some(span) = self.not {
            self.error(
                Problem::wrong("misplaced-not", span, "nothing follows the `!`")
                    .expected("an option that can be negated"),
            );
        }
    }

    fn take(&mut self) -> Option<&'a Word<'a>> {
        let word = self.words.get(self.next);
        self.next += usize::from(word.is_some());
        word
    }

    fn error(&mut self, problem: Problem) {
        self.report.error(problem);
    }

    /// The value, or `None` after reporting why there is none.
    fn ok<T>(&mut self, value: Result<T, Problem>) -> Option<T> {
        value.map_err(|problem| self.error(problem)).ok()
    }

    fn short_option(&mut self, word: &'a Word<'a>) {
        let mut letters = word.text.chars().skip(1);
        let letter = letters.next().unwrap_or_default();
        let Some(core) = by_letter(letter) else {
            return self.unknown_option(word);
        };
        if letters.next().is_some() {
            // `-ptcp`: iptables-restore 1.8 trips over these, too. `-dport` is a slip for `--dport`.
            let message = format!("`{}` is not an option", word.text);
            let problem =
                Problem::wrong("unknown-option", word.span, message).expected("an option");
            let long = format!("-{}", word.text);
            let known =
                |text: &str| text.len() > 4 && all_option_names().any(|name| name == &text[2..]);
            let problem = if known(&long) {
                problem.help(format!("write `{long}`"))
            } else {
                let (option, argument) = word.text.split_at(1 + letter.len_utf8());
                problem.help(format!("put a blank between: `{option} {argument}`"))
            };
            self.not = None;
            return self.error(problem);
        }
        self.core(word, core);
    }

    fn long_option(&mut self, word: &'a Word<'a>, long: &'a str) {
        let (name, glued) = match long.split_once('=') {
            Some((name, value)) => (
                name,
                Some((value, word.part(long.len() - value.len() + 2, value.len()))),
            ),
            None => (long, None),
        };
        let mut found = self.find(name);
        if matches!(found, Found::Nothing) && self.load_implicit(word) {
            found = self.find(name);
        }
        let glued = glued.map(|(text, span)| Word {
            text: text.into(),
            span,
        });
        match found {
            Found::Core(_) if glued.is_some() => {
                let message = format!("`{}` is not an option", word.text);
                self.not = None;
                self.error(
                    Problem::wrong("unknown-option", word.span, message)
                        .expected("a blank instead of `=`"),
                );
            }
            Found::Core(core) => self.core(word, core),
            Found::OfMatch(index, row) => self.match_option(word, index, row, glued),
            Found::OfTarget(row) => self.target_option(word, row, glued),
            Found::Ambiguous(names) => {
                let message = format!("`{}` is the beginning of several options", word.text);
                self.not = None;
                self.error(
                    Problem::wrong("unknown-option", word.span, message)
                        .expected(format!("one of --{}", names.join(", --"))),
                );
            }
            Found::Nothing => match orphan_name(name) {
                Some(port) => self.orphan(word, port, glued),
                None => self.unknown_option(word),
            },
        }
    }

    /// The word after an option.
    fn argument(&mut self, option: &Word<'_>) -> Option<&'a Word<'a>> {
        let word = self.take();
        if word.is_none() {
            self.error(
                Problem::wrong(
                    "missing-argument",
                    option.span,
                    format!("nothing follows `{}`", option.text),
                )
                .expected("a value after it"),
            );
        }
        word
    }

    /// An option's `!` and its arguments, checked.
    fn option_words(
        &mut self,
        word: &'a Word<'a>,
        count: usize,
        negatable: bool,
        glued: Option<Word<'a>>,
    ) -> Option<(bool, Cow<'a, [Word<'a>]>)> {
        let not = self.not.take();
        if let Some(span) = not.filter(|_| !negatable) {
            self.error(
                Problem::wrong(
                    "misplaced-not",
                    span,
                    format!("`{}` cannot be negated", word.text),
                )
                .expected("no `!` here"),
            );
        }
        let mut not = not.is_some();
        let mut first = self.next;
        let glued_words = usize::from(glued.is_some());
        while self.next - first + glued_words < count {
            let is_first = self.next == first && glued.is_none();
            let following = self
                .words
                .get(self.next)
                .filter(|next| is_first || !is_option(next));
            let Some(value) = following else {
                let message = match count {
                    1 => format!("nothing follows `{}`", word.text),
                    _ => format!("`{}` needs {count} values", word.text),
                };
                self.error(
                    Problem::wrong("missing-argument", word.span, message)
                        .expected("a value after it"),
                );
                return None;
            };
            self.next += 1;
            if value.text == "!"
                && is_first
                && let Some(negated) = self.words.get(self.next).filter(|next| !is_option(next))
            {
                if !self.takes_late_not(word, value, negated, negatable && !not) {
                    self.next += 1;
                    return None;
                }
                first = self.next;
                not = true;
            }
        }
        let following = &self.words[first..self.next];
        let words = match glued {
            None => Cow::Borrowed(following),
            Some(glued) => std::iter::once(glued)
                .chain(following.iter().cloned())
                .collect(),
        };
        Some((not, words))
    }

    /// `-d ! ADDRESS`, as iptables wrote it before 1.4.3 and refuses it today; whether it is taken.
    fn takes_late_not(
        &mut self,
        option: &Word<'_>,
        not: &Word<'_>,
        value: &Word<'_>,
        negatable: bool,
    ) -> bool {
        let problem = Problem::wrong("misplaced-not", not.span, "`!` stands after its option")
            .expected("the `!` before the option");
        if !negatable {
            self.error(problem.help("leave it out"));
            return false;
        }
        let right = format!("! {} {}", option.text, value.text);
        let problem = problem.help(format!("write `{right}`"));
        self.report.lenient(problem, &format!("taken as `{right}`"))
    }

    /// `--dport` where no protocol has been named: what it means is decided at the line's end.
    fn orphan(&mut self, word: &'a Word<'a>, name: &'static str, glued: Option<Word<'a>>) {
        if self.foreign {
            self.skip_arguments();
            self.not = None;
            return;
        }
        let Some((not, words)) = self.option_words(word, 1, true, glued) else {
            return;
        };
        if let [value] = &*words {
            self.orphans.push(Orphan {
                option: word.clone(),
                name,
                not,
                value: value.clone(),
            });
        }
    }

    fn unknown_option(&mut self, word: &'a Word<'a>) {
        self.not = None;
        self.skip_arguments();
        if self.foreign {
            // Most likely of the match or target that was reported as unsupported.
            return;
        }
        let name = word.text.trim_start_matches('-');
        let problem = Problem::wrong(
            "unknown-option",
            word.span,
            format!("`{}` is not an option here", word.text),
        )
        .expected("an option of iptables or of a match named before");
        let owner = all_matches().find(|row| {
            let options = row.reading.iter().flat_map(|reading| reading.options);
            options
                .flat_map(|option| option.names)
                .any(|known| *known == name)
        });
        let problem = match (owner, nearest(name, all_option_names())) {
            (Some(row), _) => problem.help(match row.name {
                "tcp" | "udp" | "icmp" => format!("it needs `-p {}` before it", row.name),
                "icmp6" => "it needs `-p ipv6-icmp` before it".to_owned(),
                name => format!("it needs `-m {name}` before it"),
            }),
            (None, Some(near)) => problem.help(format!("did you mean `--{near}`?")),
            (None, None) => problem,
        };
        self.error(problem);
    }

    /// Skips what looks like the arguments of an option that is not known.
    fn skip_arguments(&mut self) {
        if let [not, value, ..] = &self.words[self.next..]
            && not.text == "!"
            && !is_option(value)
        {
            self.next += 2;
        }
        while self
            .words
            .get(self.next)
            .is_some_and(|word| !is_option(word) && word.text != "!")
        {
            self.next += 1;
        }
    }

    fn stray(&mut self, word: &'a Word<'a>) {
        self.not = None;
        let before = self.next.checked_sub(2).map(|index| &self.words[index]);
        let reported = &self.report.errors[self.errors_before..];
        let follows = |error: &PolicyError| before.is_some_and(|word| word.text == error.found);
        if self.foreign || reported.last().is_some_and(follows) {
            // Of what was taken for another's value, or of a match that is not known.
            return;
        }
        let problem = Problem::wrong(
            "stray-word",
            word.span,
            format!("`{}` is not expected here", word.text),
        )
        .expected("an option");
        let problem = if word.text.starts_with('#') {
            self.next = self.words.len();
            problem
                .help("comments stand on lines of their own, or in `-m comment --comment \"...\"`")
        } else if word.text == "iptables" || word.text == "ip6tables" {
            problem.help("this looks like a shell script: leave the program's name out, as in iptables-save's output")
        } else if word.text.starts_with('\'') {
            self.skip_arguments();
            problem.help("quote with `\"`: single quotes mean nothing here")
        } else if word.text.starts_with('$') || word.text.starts_with('<') {
            problem.help("this looks like a placeholder that nothing was put in for")
        } else if word.text == "COMMIT" {
            problem.help("COMMIT stands alone on its line")
        } else {
            problem
        };
        self.error(problem);
    }
}

fn is_option(word: &Word<'_>) -> bool {
    word.text.len() > 1 && word.text.starts_with('-')
}
