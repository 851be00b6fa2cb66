//! One line of a table: a command, and for `-A` and `-I` the rule's matches and target.

use super::lexer::Word;
use super::options::{Core, by_letter, long_names};
use super::table::TableBuilder;
use super::values;
use crate::policy::error::{Problem, Report, nearest};
use crate::policy::match_table::{
    Argument, MatchDraft, MatchReading, OptionRow, ReadOption, Support, TargetDraft, TargetRow,
    all_matches, all_targets, find_match, find_target,
};
use crate::policy::model::{Counters, Family, InterfacePattern, Match, Negatable, Prefix, Target};
use crate::policy::names::{DCCP, ICMP, SCTP, TCP, UDP, protocol_name};
use crate::policy::source::Span;

/// What a line says.
pub(crate) struct Line {
    /// The command; `None` if there was none or it could not be read.
    pub command: Option<(Core, Span)>,
    /// The words after the command: the chain, and for `-I` a number, for `-P` the policy.
    pub operands: Vec<Word>,
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
    pub matches: Vec<Match>,
    pub target: Option<(Target, Span)>,
    pub counters: Option<Counters>,
    /// Ports that stood without any `-p`: the rule is meant for TCP and for UDP.
    pub both_transports: bool,
}

/// Reads a line's words.
pub(crate) fn read_line(
    words: &[Word],
    family: Family,
    table: &TableBuilder,
    report: &mut Report<'_>,
) -> Line {
    let skips = |word: &Word| match word.text.as_str() {
        "-4" | "--ipv4" => family == Family::Ipv6,
        "-6" | "--ipv6" => family == Family::Ipv4,
        _ => false,
    };
    let other_family = words.iter().any(skips);
    let words = if other_family { &[] } else { words };
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
        operands: Vec::new(),
        seen: Vec::new(),
        rule: RuleDraft::default(),
        matches: Vec::new(),
        implicit_used: false,
        target: None,
        goto: false,
        orphans: Vec::new(),
        foreign: false,
        other_family,
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
struct Orphan {
    option: Word,
    name: &'static str,
    not: bool,
    value: Word,
}

struct Reader<'a, 'r, 'f> {
    words: &'a [Word],
    next: usize,
    end: Span,
    family: Family,
    table: &'a TableBuilder,
    report: &'r mut Report<'f>,
    errors_before: usize,
    /// Where a `!` stands that waits for its option.
    not: Option<Span>,
    command: Option<(Core, Span)>,
    operands: Vec<Word>,
    seen: Vec<Core>,
    rule: RuleDraft,
    matches: Vec<LoadedMatch>,
    implicit_used: bool,
    target: Option<(&'static TargetRow, TargetDraft, Span)>,
    goto: bool,
    orphans: Vec<Orphan>,
    /// True once an unsupported match or target was met, whose options are then unknown.
    foreign: bool,
    other_family: bool,
}

/// What an option's name stands for.
enum Found {
    Core(Core),
    OfMatch(usize, &'static OptionRow<MatchDraft>),
    OfTarget(&'static OptionRow<TargetDraft>),
    Ambiguous(Vec<&'static str>),
    Nothing,
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

    fn take(&mut self) -> Option<&'a Word> {
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

    fn short_option(&mut self, word: &'a Word) {
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

    fn long_option(&mut self, word: &'a Word, long: &str) {
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
            text: text.to_owned(),
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

    /// Looks a long option up as getopt_long does: the exact name, else an unambiguous beginning.
    fn find(&self, name: &str) -> Found {
        let mut candidates: Vec<(&'static str, Found)> = Vec::new();
        candidates.extend(long_names().map(|(long, core)| (long, Found::Core(core))));
        for (index, loaded) in self.matches.iter().enumerate().rev() {
            for row in loaded.reading.options {
                // Of several uses of a match, options belong to the last.
                candidates.extend(
                    row.names
                        .iter()
                        .map(|long| (*long, Found::OfMatch(index, row))),
                );
                if loaded.name == "multiport" {
                    // Abbreviations that iptables 1.8 has as names of their own.
                    let singular = row.names[0]
                        .strip_suffix('s')
                        .filter(|_| name == &row.names[0][..row.names[0].len() - 1]);
                    candidates.extend(singular.map(|long| (long, Found::OfMatch(index, row))));
                }
            }
        }
        if let Some((row, _, _)) = &self.target {
            for option in row.options {
                candidates.extend(
                    option
                        .names
                        .iter()
                        .map(|long| (*long, Found::OfTarget(option))),
                );
            }
        }
        if let Some(exact) = candidates.iter().position(|(long, _)| *long == name) {
            return candidates.swap_remove(exact).1;
        }
        if self.foreign {
            // Options of an unsupported match are not to be taken for abbreviations.
            return Found::Nothing;
        }
        let mut beginning: Vec<_> = candidates
            .into_iter()
            .filter(|(long, _)| long.starts_with(name))
            .collect();
        let names: Vec<_> = beginning.iter().map(|(long, _)| *long).collect();
        match beginning.len() {
            0 => Found::Nothing,
            _ if same_option(&beginning) => beginning.swap_remove(0).1,
            _ => Found::Ambiguous(names),
        }
    }

    /// Loads the match that belongs to the protocol (`-p tcp --dport`), if that was not done yet.
    fn load_implicit(&mut self, word: &Word) -> bool {
        let Some(protocol) = self.rule.protocol else {
            return false;
        };
        if self.implicit_used {
            return false;
        }
        let Some(row) = protocol_name(protocol.value)
            .and_then(|name| find_match(name, self.family))
            .filter(|row| row.families.contains(&self.family))
        else {
            return false;
        };
        let Some(reading) = &row.reading else {
            return false;
        };
        self.implicit_used = true;
        self.matches.push(LoadedMatch {
            reading,
            name: row.name,
            draft: (reading.start)(),
            span: word.span,
            before_protocol: false,
        });
        true
    }

    fn core(&mut self, word: &'a Word, core: Core) {
        let not = self.not.take();
        if let Some(span) = not
            && !core.is_negatable()
        {
            self.error(
                Problem::wrong(
                    "misplaced-not",
                    span,
                    format!("`{}` cannot be negated", word.text),
                )
                .expected("no `!` here"),
            );
        }
        if core.is_command() {
            return self.command(word, core);
        }
        let repeatable = matches!(core, Core::Match | Core::Ipv4 | Core::Ipv6);
        // -j and -g exclude each other.
        let slot = if core == Core::Goto { Core::Jump } else { core };
        if !repeatable && self.seen.contains(&slot) {
            self.error(
                Problem::wrong(
                    "given-twice",
                    word.span,
                    format!("`{}` is given twice in one rule", word.text),
                )
                .expected("only one"),
            );
        }
        self.seen.push(slot);
        match core {
            // Of the rule's own IP version: lines of the other are not read at all.
            Core::Ipv4 | Core::Ipv6 => {}
            Core::Table => self.error(
                Problem::wrong(
                    "table-option",
                    word.span,
                    "a table cannot be named inside a file",
                )
                .expected("a rule for the table of the last `*` line")
                .help("put the rule after the line `*TABLE`"),
            ),
            Core::OutOfPlace => self.error(
                Problem::wrong(
                    "out-of-place",
                    word.span,
                    format!("`{}` has no place in a file", word.text),
                )
                .expected("a match or target")
                .help("leave it out"),
            ),
            Core::Fragment => self.fragment(word),
            Core::SetCounters => {
                let values = [self.argument(word), self.argument(word)];
                if let [Some(packets), Some(bytes)] = values {
                    let counters = [packets.text.parse(), bytes.text.parse()];
                    match counters {
                        [Ok(packets), Ok(bytes)] => {
                            self.rule.counters = Some(Counters { packets, bytes })
                        }
                        _ => self.error(
                            Problem::wrong(
                                "bad-counters",
                                packets.span.to(bytes.span),
                                "the counters are not numbers",
                            )
                            .expected("packets and bytes"),
                        ),
                    }
                }
            }
            _ => {
                if let Some(value) = self.argument(word) {
                    self.core_value(word, core, not.is_some(), value);
                }
            }
        }
    }

    fn core_value(&mut self, option: &'a Word, core: Core, not: bool, value: &'a Word) {
        if value.text == "!"
            && self
                .words
                .get(self.next)
                .is_some_and(|word| !word.text.starts_with('-'))
        {
            let right = format!("! {} {}", option.text, self.words[self.next].text);
            self.next += 1;
            return self.error(
                Problem::wrong("misplaced-not", value.span, "`!` stands after its option")
                    .expected("the `!` before the option")
                    .help(format!("write `{right}`")),
            );
        }
        match core {
            Core::Source | Core::Destination => {
                let Some(list) = self.ok(values::prefixes(value, self.family)) else {
                    return;
                };
                if not && list.len() > 1 {
                    return self.error(
                        Problem::wrong(
                            "negated-list",
                            value.span,
                            "a list of addresses cannot be negated",
                        )
                        .expected("one address")
                        .help("negate one address, or send the addresses to a chain that RETURNs"),
                    );
                }
                let place = if core == Core::Source {
                    &mut self.rule.sources
                } else {
                    &mut self.rule.destinations
                };
                *place = Some(Negatable { not, value: list });
            }
            Core::InInterface | Core::OutInterface => {
                let Some(name) = self.ok(values::interface(value)) else {
                    return;
                };
                if name.0.contains([' ', '/']) {
                    self.report.warn(
                        "odd-interface",
                        value.span,
                        format!(
                            "no interface can be called `{}`: the rule never matches",
                            name.0
                        ),
                        None,
                    );
                }
                let place = if core == Core::InInterface {
                    &mut self.rule.in_interface
                } else {
                    &mut self.rule.out_interface
                };
                *place = Some((Negatable { not, value: name }, option.span));
            }
            Core::Protocol => {
                let Some(number) = self.ok(values::protocol(value)) else {
                    return;
                };
                self.protocol(not, number, value);
            }
            Core::Match => self.load_match(value),
            Core::Jump | Core::Goto => self.jump(option, core, value),
            _ => {}
        }
    }

    fn protocol(&mut self, not: bool, number: u8, value: &Word) {
        if number == 0 && not {
            return self.error(
                Problem::wrong("never-matches", value.span, "`! -p all` would never match")
                    .expected("a protocol"),
            );
        }
        // NEXTHDR of extension headers, which are skipped on the way to the final header.
        const SKIPPED: [u8; 5] = [0, 43, 44, 51, 60];
        if self.family == Family::Ipv6 && number != 0 && SKIPPED.contains(&number) && !not {
            self.report.warn(
                "never-matches",
                value.span,
                format!(
                    "`-p {}` never matches: extension headers are skipped",
                    value.text
                ),
                Some("match the final header's protocol".into()),
            );
        }
        if number == self.family.other().icmp() && !not {
            let right = protocol_name(self.family.icmp()).unwrap_or_default();
            self.report.warn(
                "never-matches",
                value.span,
                format!(
                    "`-p {}` is not {}'s ICMP: it hardly ever matches",
                    value.text,
                    self.family.title()
                ),
                Some(format!("write `-p {right}`")),
            );
        }
        self.rule.protocol = (number != 0).then_some(Negatable { not, value: number });
    }

    fn fragment(&mut self, word: &Word) {
        let problem = match self.family {
            Family::Ipv4 => {
                Problem::unsupported("unsupported-option", word.span, "`-f` is not supported")
                    .help("leave the rule out: fragments follow their datagram's first fragment")
            }
            Family::Ipv6 => {
                Problem::wrong("unsupported-option", word.span, "`-f` is for IPv4 only")
            }
        };
        self.error(problem.expected("another match"));
    }

    fn command(&mut self, word: &'a Word, core: Core) {
        if self.command.is_some() {
            return self.error(
                Problem::wrong("two-commands", word.span, "a second command in one line")
                    .expected("one command per line"),
            );
        }
        self.command = Some((core, word.span));
        if core == Core::Edit {
            self.error(
                Problem::unsupported(
                    "unsupported-command",
                    word.span,
                    format!("`{}` is not supported", word.text),
                )
                .expected("-A, -I, -N, -P, -F, -X or -Z")
                .help("write the chain as it shall be in the end"),
            );
            // Its operands are of no interest.
            self.next = self.words.len();
            return;
        }
        let optional = matches!(core, Core::Flush | Core::DeleteChain | Core::Zero);
        let is_operand = |word: Option<&Word>| {
            word.is_some_and(|word| !word.text.starts_with('-') && word.text != "!")
        };
        if !optional || is_operand(self.words.get(self.next)) {
            let chain = self.argument(word).cloned();
            self.operands.extend(chain);
        }
        let second = match core {
            Core::Insert => is_operand(self.words.get(self.next)),
            Core::Policy => true,
            _ => false,
        };
        if second && !self.operands.is_empty() {
            let operand = self.argument(word).cloned();
            self.operands.extend(operand);
        }
    }

    /// The word after an option.
    fn argument(&mut self, option: &Word) -> Option<&'a Word> {
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

    fn load_match(&mut self, word: &'a Word) {
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
            return self.error(match word.text.as_str() {
                "icmp" => problem.help("write `-p ipv6-icmp -m icmp6 --icmpv6-type ...`"),
                "icmp6" | "icmpv6" | "ipv6-icmp" => {
                    problem.help("write `-p icmp -m icmp --icmp-type ...`")
                }
                _ => problem.help(row.note),
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

    fn jump(&mut self, option: &'a Word, core: Core, word: &'a Word) {
        self.goto = core == Core::Goto;
        let name = word.text.as_str();
        if self.table.has_chain(name) {
            if self.table.is_builtin(name) {
                return self.error(
                    Problem::wrong(
                        "jump-to-builtin",
                        word.span,
                        format!("`{name}` is a built-in chain: rules cannot send packets there"),
                    )
                    .expected("a chain of your own, or a target"),
                );
            }
            let target = if self.goto {
                Target::Goto(name.into())
            } else {
                Target::Jump(name.into())
            };
            self.rule.target = Some((target, word.span));
            return;
        }
        if self.goto {
            return self.unknown_target(word);
        }
        let row = find_target(name).or_else(|| self.misspelt_target(option, word));
        let Some(row) = row else {
            return self.unknown_target(word);
        };
        let Some(start) = row.start else {
            self.foreign = true;
            return self.error(
                Problem::unsupported(
                    "unsupported-target",
                    word.span,
                    format!("`-j {}` is not supported", row.name),
                )
                .expected("ACCEPT, DROP, RETURN, MASQUERADE or a chain")
                .help(row.note),
            );
        };
        let table = self.table.name;
        if !row.tables.is_empty() && !row.tables.contains(&table) {
            let allowed: Vec<_> = row.tables.iter().map(|table| table.name()).collect();
            self.error(
                Problem::wrong(
                    "wrong-table",
                    word.span,
                    format!("`{}` cannot stand in the table {table}", row.name),
                )
                .expected("another target")
                .help(format!(
                    "{} belongs into the table {}",
                    row.name,
                    allowed.join(", ")
                )),
            );
        }
        self.target = Some((row, start, word.span));
    }

    /// A target in the wrong case: evident, but iptables refuses it.
    fn misspelt_target(&mut self, option: &Word, word: &Word) -> Option<&'static TargetRow> {
        let row = all_targets().find(|row| row.name.eq_ignore_ascii_case(&word.text))?;
        if row.support == Support::No {
            return Some(row);
        }
        let problem = Problem::wrong(
            "target-case",
            word.span,
            format!("there is no target `{}`", word.text),
        )
        .expected("targets are written in capitals")
        .help(format!("write `{} {}`", option.text, row.name));
        self.report
            .lenient(problem, &format!("taken as `{}`", row.name));
        Some(row)
    }

    fn unknown_target(&mut self, word: &Word) {
        self.foreign = true;
        let name = word.text.as_str();
        if let Some(chain) = self
            .table
            .chains()
            .find(|chain| chain.eq_ignore_ascii_case(name))
        {
            return self.error(
                Problem::wrong(
                    "unknown-target",
                    word.span,
                    format!("there is no chain `{name}`"),
                )
                .expected("the chain's name in its own letters")
                .help(format!("did you mean `{chain}`?")),
            );
        }
        let what = if self.goto {
            "chain"
        } else {
            "target or chain"
        };
        let problem = Problem::wrong(
            "unknown-target",
            word.span,
            format!("there is no {what} `{name}`"),
        )
        .expected(if self.goto {
            "a chain of the same table"
        } else {
            "ACCEPT, DROP, RETURN, MASQUERADE or a chain"
        });
        let targets = all_targets()
            .filter(|row| row.support != Support::No && !self.goto)
            .map(|row| row.name);
        let near = nearest(name, self.table.chains().chain(targets));
        let problem = match near {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!(
                "to have a chain of that name, put `:{name} - [0:0]` before its first use"
            )),
        };
        self.error(problem);
    }

    fn match_option(
        &mut self,
        word: &'a Word,
        index: usize,
        row: &'static OptionRow<MatchDraft>,
        glued: Option<Word>,
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

    fn target_option(
        &mut self,
        word: &'a Word,
        row: &'static OptionRow<TargetDraft>,
        glued: Option<Word>,
    ) {
        let Some((not, words)) = self.option_words(word, row.arguments, row.negatable, glued)
        else {
            return;
        };
        // iptables looks at the protocol's number only, not at a `!` before it, and counts
        // IPv4's ICMP in, whose echo has identifiers for ports, for both IP versions.
        let with_ports = [TCP, UDP, SCTP, DCCP, ICMP];
        let fits = self
            .rule
            .protocol
            .is_some_and(|protocol| with_ports.contains(&protocol.value));
        if row.names[0] == "to-ports" && !fits {
            let message = format!("`{}` needs a protocol with ports", word.text);
            self.error(
                Problem::wrong("needs-protocol", word.span, message)
                    .expected("`-p tcp`, `-p udp`, `-p sctp` or `-p dccp` before it"),
            );
        }
        if let (Some((_, draft, _)), ReadOption::Into(read)) = (&mut self.target, &row.read) {
            let argument = Argument {
                option: word,
                not,
                words: &words,
                family: self.family,
                protocol: None,
            };
            let result = read(draft, &argument);
            self.ok(result);
        }
    }

    /// An option's `!` and its arguments, checked.
    fn option_words(
        &mut self,
        word: &'a Word,
        count: usize,
        negatable: bool,
        glued: Option<Word>,
    ) -> Option<(bool, Vec<Word>)> {
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
        let mut words: Vec<Word> = glued.into_iter().collect();
        while words.len() < count {
            let following = self
                .words
                .get(self.next)
                .filter(|next| words.is_empty() || !is_option(next));
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
                && words.is_empty()
                && self
                    .words
                    .get(self.next)
                    .is_some_and(|next| !is_option(next))
            {
                let right = format!("! {} {}", word.text, self.words[self.next].text);
                self.next += 1;
                self.error(
                    Problem::wrong("misplaced-not", value.span, "`!` stands after its option")
                        .expected("the `!` before the option")
                        .help(format!("write `{right}`")),
                );
                return None;
            }
            words.push(value.clone());
        }
        Some((not.is_some(), words))
    }

    /// `--dport` where no protocol has been named: what it means is decided at the line's end.
    fn orphan(&mut self, word: &'a Word, name: &'static str, glued: Option<Word>) {
        if self.foreign {
            self.skip_arguments();
            self.not = None;
            return;
        }
        let Some((not, words)) = self.option_words(word, 1, true, glued) else {
            return;
        };
        if let [value] = words.as_slice() {
            self.orphans.push(Orphan {
                option: word.clone(),
                name,
                not,
                value: value.clone(),
            });
        }
    }

    fn unknown_option(&mut self, word: &'a Word) {
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
        while self
            .words
            .get(self.next)
            .is_some_and(|word| !is_option(word) && word.text != "!")
        {
            self.next += 1;
        }
    }

    fn stray(&mut self, word: &'a Word) {
        self.not = None;
        if self.foreign {
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

    fn finish(mut self) -> Line {
        self.adopt_orphans();
        self.check_protocols();
        for loaded in std::mem::take(&mut self.matches) {
            match loaded.draft.finish() {
                Ok(finished) => self.rule.matches.push(normal(finished)),
                Err(_) if self.errors_before < self.report.errors.len() => {}
                Err(missing) => {
                    let message = format!("`-m {}` says nothing", loaded.name);
                    self.error(
                        Problem::wrong("missing-option", loaded.span, message).expected(missing),
                    );
                }
            }
        }
        if let Some((_, draft, span)) = self.target {
            let target = match draft {
                TargetDraft::Accept => Target::Accept,
                TargetDraft::Drop => Target::Drop,
                TargetDraft::Return => Target::Return,
                TargetDraft::Masquerade(masquerade) => Target::Masquerade(masquerade),
            };
            self.rule.target = Some((target, span));
        }
        let sound = self.report.errors.len() == self.errors_before;
        if self.command.is_none() && sound && !self.other_family {
            let span = self.words.first().map_or(self.end, |word| word.span);
            self.error(
                Problem::wrong("no-command", span, "the line has no command")
                    .expected("`-A CHAIN` before it"),
            );
        }
        let sound = self.report.errors.len() == self.errors_before;
        let Self {
            command,
            operands,
            rule,
            other_family,
            ..
        } = self;
        Line {
            command,
            operands,
            rule,
            sound,
            other_family,
        }
    }

    /// Gives ports that stood before or without `-p` their protocol.
    fn adopt_orphans(&mut self) {
        let orphans = std::mem::take(&mut self.orphans);
        let Some(first) = orphans.first() else { return };
        let span = first.option.span;
        let option = first.option.text.clone();
        let named = self.rule.protocol;
        let (protocol, taken_as, help) = match named {
            Some(Negatable {
                not: false,
                value: value @ (TCP | UDP),
            }) => {
                let name = protocol_name(value).unwrap_or_default();
                (
                    value,
                    format!("taken as if `-p {name}` stood before it"),
                    format!("write `-p {name}` before `{option}`"),
                )
            }
            None => (
                TCP,
                "taken for tcp and for udp, as two rules".to_owned(),
                format!(
                    "write `-p tcp` before `{option}`, and if udp is meant as well a second line with `-p udp`"
                ),
            ),
            Some(_) => {
                return self.error(
                    Problem::wrong(
                        "needs-protocol",
                        span,
                        format!("`{option}` needs a protocol with ports"),
                    )
                    .expected("`-p tcp` or `-p udp` before it")
                    .help("for other protocols with ports use `-m multiport`"),
                );
            }
        };
        let needs = Problem::wrong(
            "ports-without-protocol",
            span,
            format!("`{option}` needs `-p tcp` or `-p udp` before it"),
        )
        .expected("`-p tcp` or `-p udp` before it")
        .help(help);
        if !self.report.lenient(needs, &taken_as) {
            return;
        }
        self.rule.both_transports = named.is_none();
        self.rule.protocol = Some(Negatable {
            not: false,
            value: protocol,
        });
        let row = protocol_name(protocol).and_then(|name| find_match(name, self.family));
        let Some(reading) = row.and_then(|row| row.reading.as_ref()) else {
            return;
        };
        let mut draft = (reading.start)();
        for Orphan {
            option,
            name,
            not,
            value,
        } in &orphans
        {
            let argument = Argument {
                option,
                not: *not,
                words: std::slice::from_ref(value),
                family: self.family,
                protocol: Some(protocol),
            };
            let row = reading.options.iter().find(|row| row.names.contains(name));
            if let Some(OptionRow {
                read: ReadOption::Into(read),
                ..
            }) = row
            {
                let result = read(&mut draft, &argument);
                self.ok(result);
            }
        }
        let name = row.map_or("tcp", |row| row.name);
        self.matches.push(LoadedMatch {
            reading,
            name,
            draft,
            span,
            before_protocol: false,
        });
    }

    /// Matches that look into a protocol's header need the rule to name the protocol.
    fn check_protocols(&mut self) {
        for index in 0..self.matches.len() {
            let LoadedMatch {
                reading,
                name,
                span,
                before_protocol,
                ..
            } = &self.matches[index];
            let (name, span, needed, early) = (*name, *span, reading.protocols, *before_protocol);
            if needed.is_empty() {
                continue;
            }
            match self.rule.protocol {
                Some(Negatable { not: false, value }) if needed.contains(&value) => {
                    // multiport alone looks at the protocol while its options are read.
                    if early && name == "multiport" {
                        let protocol = protocol_name(value).unwrap_or_default();
                        let problem = Problem::wrong(
                            "ports-without-protocol",
                            span,
                            format!("`-m {name}` needs a protocol before it"),
                        )
                        .expected(format!("`-p {protocol}` before it"))
                        .help(format!("write `-p {protocol}` before `-m {name}`"));
                        self.report.lenient(
                            problem,
                            &format!("taken as if `-p {protocol}` stood before it"),
                        );
                    }
                }
                None if !self.foreign => self.supply_protocol(name, span, needed),
                _ => {
                    let names: Vec<_> = needed
                        .iter()
                        .filter_map(|number| protocol_name(*number))
                        .collect();
                    self.error(
                        Problem::wrong(
                            "needs-protocol",
                            span,
                            format!("`-m {name}` does not fit the rule's protocol"),
                        )
                        .expected(format!("a rule with `-p {}`", names.join("`, `-p "))),
                    );
                }
            }
        }
    }

    fn supply_protocol(&mut self, name: &str, span: Span, needed: &'static [u8]) {
        let both = name == "multiport";
        let protocol = protocol_name(needed[0]).unwrap_or_default();
        let (taken_as, help) = if both {
            (
                "taken for tcp and for udp, as two rules".to_owned(),
                "write `-p tcp` or `-p udp` before it".to_owned(),
            )
        } else {
            (
                format!("taken as if `-p {protocol}` stood there"),
                format!("write `-p {protocol}` before `-m {name}`"),
            )
        };
        let problem = Problem::wrong(
            "ports-without-protocol",
            span,
            format!("`-m {name}` needs a protocol"),
        )
        .expected(format!("a rule with `-p {protocol}`"))
        .help(help);
        if self.report.lenient(problem, &taken_as) {
            self.rule.both_transports = both;
            self.rule.protocol = Some(Negatable {
                not: false,
                value: needed[0],
            });
        }
    }
}

/// A match in the form in which the kernel keeps it: ranges and flags that exclude nothing are
/// the same as none.
fn normal(found: Match) -> Match {
    let ports = |ports: crate::policy::model::Ports| {
        let keep = |range: &Negatable<crate::policy::model::PortRange>| {
            range.not || (range.value.first, range.value.last) != (0, u16::MAX)
        };
        crate::policy::model::Ports {
            source: ports.source.filter(keep),
            destination: ports.destination.filter(keep),
        }
    };
    match found {
        Match::Tcp(mut tcp) => {
            tcp.ports = ports(tcp.ports);
            tcp.flags = tcp
                .flags
                .filter(|flags| flags.not || flags.value.mask != 0 || flags.value.set != 0);
            Match::Tcp(tcp)
        }
        Match::Udp(udp) => Match::Udp(ports(udp)),
        other => other,
    }
}

fn is_option(word: &Word) -> bool {
    word.text.len() > 1 && word.text.starts_with('-')
}

fn same_option(found: &[(&'static str, Found)]) -> bool {
    found.windows(2).all(|pair| match (&pair[0].1, &pair[1].1) {
        (Found::Core(one), Found::Core(other)) => one == other,
        (Found::OfMatch(_, one), Found::OfMatch(_, other)) => one.names == other.names,
        (Found::OfTarget(one), Found::OfTarget(other)) => std::ptr::eq(*one, *other),
        _ => false,
    })
}

/// The options that name a port and need `-p tcp` or `-p udp`.
fn orphan_name(name: &str) -> Option<&'static str> {
    ["sport", "source-port", "dport", "destination-port"]
        .into_iter()
        .find(|known| *known == name)
}

fn all_option_names() -> impl Iterator<Item = &'static str> {
    let of_matches = all_matches().filter_map(|row| row.reading.as_ref());
    let of_matches =
        of_matches.flat_map(|reading| reading.options.iter().flat_map(|row| row.names));
    let of_targets = all_targets().flat_map(|row| row.options.iter().flat_map(|row| row.names));
    of_matches
        .chain(of_targets)
        .copied()
        .chain(long_names().map(|(name, _)| name))
}

fn supported_matches(family: Family) -> String {
    let works =
        all_matches().filter(|row| row.support != Support::No && row.families.contains(&family));
    let names: Vec<_> = works.map(|row| row.name).collect();
    format!("one of {}", names.join(", "))
}
