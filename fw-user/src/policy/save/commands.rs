//! Lines with commands, carried out on the table that is open.

use super::alike::Pattern;
use super::chains::{brackets, chain_name};
use super::lexer::{Line, OpenQuote};
use super::options::Core;
use super::table::TableBuilder;
use super::{FileReader, Open, is_builtin_anywhere};
use super::{lexer, rule, slips, values};
use crate::policy::error::{Problem, nearest};
use crate::policy::source::Span;

impl FileReader<'_, '_> {
    pub(super) fn rule_line(&mut self, mut line: Line<'_>, span: Span) {
        self.pattern = None;
        let mut counters = None;
        let body = line.text.trim_start_matches([' ', '\t']);
        let indent = line.text.len() - body.len();
        if body.starts_with('[') {
            let end = body.find(']').map_or(0, |end| end + 1);
            counters = brackets(&body[..end]);
            if counters.is_none() {
                let start = line.start + indent;
                let length = if end == 0 {
                    body.find(' ').unwrap_or(body.len())
                } else {
                    end
                };
                return self.report.error(
                    Problem::wrong(
                        "bad-counters",
                        (start..start + length).into(),
                        "the rule's counters cannot be read",
                    )
                    .expected("`[packets:bytes]`, such as `[0:0]`"),
                );
            }
            line.start += indent + end;
            line.text = &body[end..];
        }
        if matches!(self.open, Open::None) && !self.outside(span) {
            return;
        }
        let builder = match &mut self.open {
            Open::None | Open::Unknown => return,
            Open::Known(builder, _) => builder,
        };
        let errors_before = self.report.errors.len();
        let warnings_before = self.report.warnings.len();
        let words = match lexer::words(line) {
            Ok(words) => words,
            Err(OpenQuote(quote)) => {
                self.report.error(
                    Problem::wrong("open-quote", quote, "a quote is opened and not closed")
                        .expected("a second `\"` on the same line"),
                );
                return slips::explain(self.report, errors_before, line);
            }
        };
        let mut read = rule::read_line(&words, self.family, builder, self.report);
        if !read.sound {
            slips::explain(self.report, errors_before, line);
        }
        if read.other_family {
            let other = self.family.other().title();
            return self.report.warn(
                "other-family",
                span,
                format!("the line is for {other}: it is skipped, as iptables-restore does"),
                None,
            );
        }
        if !read.sound {
            return;
        }
        if let Some(counters) = counters
            && read.rule.counters.replace(counters).is_some()
        {
            return self.report.error(
                Problem::wrong(
                    "given-twice",
                    span,
                    "the rule has counters in brackets and with `-c`",
                )
                .expected("only one of them"),
            );
        }
        let has_only_a_rule = line.text.starts_with("-A ") && line.start == span.start;
        let pattern = has_only_a_rule.then(|| Pattern::of(&words, &read, span));
        let place = self.execute(read, span);
        let silent = self.report.errors.len() == errors_before
            && self.report.warnings.len() == warnings_before;
        self.pattern = pattern.flatten().filter(|_| silent).zip(place);
    }

    /// Where the rules of a line were put, if they were put at the end of a chain.
    fn execute(&mut self, line: rule::Line<'_>, span: Span) -> Option<Place> {
        let Open::Known(builder, _) = &mut self.open else {
            return None;
        };
        let (command, _) = line.command?;
        let first = line.operands.first();
        let name = first.map(|word| word.text.as_ref());
        let name_span = first.map_or(span, |word| word.span);
        if let Some(name) = name
            && command != Core::NewChain
            && !builder.has_chain(name)
        {
            let problem = unknown_chain(name, name_span, builder);
            self.report.error(problem);
            return None;
        }
        match (command, name) {
            (Core::Append, Some(name)) => {
                if let Some(problem) = misplaced_interface(name, &line.rule) {
                    self.report.error(problem);
                    return None;
                }
                return builder.insert(name, None, line.rule, span, self.report);
            }
            (Core::Insert, Some(name)) => {
                if let Some(problem) = misplaced_interface(name, &line.rule) {
                    self.report.error(problem);
                    return None;
                }
                let count = builder.rule_count(name);
                let number = match line.operands.get(1) {
                    None => Some(1),
                    Some(word) => values::number(&word.text, u32::MAX)
                        .and_then(|number| usize::try_from(number).ok()),
                };
                match number {
                    Some(number) if (1..=count + 1).contains(&number) => {
                        builder.insert(name, Some(number - 1), line.rule, span, self.report);
                    }
                    _ => {
                        let span = line.operands.get(1).map_or(span, |word| word.span);
                        self.report.error(Problem::wrong("bad-rule-number", span, format!("`{name}` has {count} rules so far: nothing can be inserted there"))
                            .expected(format!("a number from 1 to {}", count + 1)));
                    }
                }
            }
            (Core::Policy, Some(name)) => {
                if !builder.is_builtin(name) {
                    self.report.error(
                        Problem::wrong(
                            "policy-of-own-chain",
                            name_span,
                            format!("`{name}` is not a built-in chain and has no policy"),
                        )
                        .expected("a built-in chain"),
                    );
                    return None;
                }
                if let Some(policy) = line.operands.get(1) {
                    let name = name.to_owned();
                    self.set_policy(&name, &policy.text, policy.span, line.rule.counters);
                }
            }
            (Core::NewChain, Some(name)) => {
                if builder.has_chain(name) {
                    self.report.error(
                        Problem::wrong(
                            "chain-exists",
                            name_span,
                            format!("the chain `{name}` exists already"),
                        )
                        .expected("a new name"),
                    );
                    return None;
                }
                match chain_name(name, name_span) {
                    Ok(()) => builder.add_chain(name),
                    Err(problem) => self.report.error(problem),
                }
            }
            (Core::Flush, name) => builder.flush(name),
            // iptables-restore's -Z leaves the counters that the file itself gives as they are,
            // and all others begin at zero anyway.
            (Core::Zero, _) => {}
            (Core::DeleteChain, None) => builder.remove_unused_chains(),
            (Core::DeleteChain, Some(name)) => {
                if let Err(why) = builder.remove_chain(name) {
                    self.report.error(
                        Problem::wrong(
                            "chain-in-use",
                            name_span,
                            format!("the chain `{name}` cannot be deleted: {why}"),
                        )
                        .expected("an unused chain of your own"),
                    );
                }
            }
            _ => {}
        }
        None
    }
}

/// The end of a chain: the chain's number, and how many rules it has.
pub(super) struct Place {
    pub chain: usize,
    pub rules: usize,
}

pub(super) fn unknown_chain(name: &str, span: Span, builder: &TableBuilder) -> Problem {
    let table = builder.name;
    let problem = Problem::wrong(
        "unknown-chain",
        span,
        format!("the table {table} has no chain `{name}`"),
    )
    .expected("a chain that was declared before");
    match nearest(name, builder.chains()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None if is_builtin_anywhere(name) => {
            problem.help(format!("{table} has {}", table.builtin_chains().join(", ")))
        }
        None => problem.help(format!("put `:{name} - [0:0]` before its first rule")),
    }
}

/// `-i` in a chain whose packets have no input interface, or `-o` where they have no output yet.
pub(super) fn misplaced_interface(chain: &str, rule: &rule::RuleDraft) -> Option<Problem> {
    let (interface, option, why) = match chain {
        "OUTPUT" | "POSTROUTING" => (&rule.in_interface, "-i", "packets there were not received"),
        "INPUT" | "PREROUTING" => (
            &rule.out_interface,
            "-o",
            "packets there are not being sent",
        ),
        _ => return None,
    };
    let (_, span) = interface.as_ref()?;
    let other = if option == "-i" { "-o" } else { "-i" };
    Some(
        Problem::wrong(
            "misplaced-interface",
            *span,
            format!("`{option}` cannot stand in {chain}"),
        )
        .expected(format!("`{other}`: {why}")),
    )
}
