//! iptables-save's format: lines -> words -> rules -> tables.
//!
//! Reading goes on after an error, so that all errors of a file are reported at once.

mod lexer;
mod options;
mod rule;
mod table;
pub(crate) mod values;

pub(crate) use lexer::Word;
pub(crate) use table::{called, is_unconditional};
pub(crate) use values::Value;

use super::error::{Problem, Report, nearest};
use super::ids::TableName;
use super::match_table::find_target;
use super::model::{ChainPolicy, Counters, Family, Ruleset};
use super::source::{SourceFile, Span};
use lexer::{Line, OpenQuote};
use options::Core;
use table::TableBuilder;

/// Reads a file. What comes back is only meant if the report has no errors.
pub(crate) fn read(file: &SourceFile, family: Family, report: &mut Report<'_>) -> Ruleset {
    let mut reader = FileReader {
        family,
        report,
        open: Open::None,
        done: Vec::new(),
        returns: false,
        shell: false,
    };
    for line in lexer::lines(&file.text) {
        reader.line(line);
    }
    reader.finish()
}

/// The words of a file's rule lines, for telling its IP version: no error is reported.
pub(crate) fn all_words(text: &str) -> impl Iterator<Item = Vec<Word>> {
    lexer::lines(text)
        .filter(|line| !line.text.trim_start().starts_with(['#', ':', '*']))
        .filter_map(|line| lexer::words(line).ok())
}

/// The table whose lines are being read.
enum Open {
    None,
    /// A table that fwbpf enforces.
    Known(TableBuilder, Span),
    /// raw, mangle or security, which must be empty; with the place of its first rule and the
    /// number of its rules.
    Idle(&'static IdleTable, Span, Option<Span>, usize),
    /// A table that does not exist: reported, its lines are skipped.
    Unknown,
}

/// A table of iptables that fwbpf does not enforce.
struct IdleTable {
    name: &'static str,
    chains: &'static [&'static str],
}

const IDLE_TABLES: &[IdleTable] = &[
    IdleTable {
        name: "raw",
        chains: &["PREROUTING", "OUTPUT"],
    },
    IdleTable {
        name: "mangle",
        chains: &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    },
    IdleTable {
        name: "security",
        chains: &["INPUT", "FORWARD", "OUTPUT"],
    },
];

struct FileReader<'r, 'f> {
    family: Family,
    report: &'r mut Report<'f>,
    open: Open,
    /// Tables that were committed.
    done: Vec<TableBuilder>,
    /// Whether carriage returns have been reported.
    returns: bool,
    /// Whether lines outside of any table have been reported.
    shell: bool,
}

impl FileReader<'_, '_> {
    fn line(&mut self, mut line: Line<'_>) {
        if let Some(text) = line.text.strip_suffix('\r') {
            line.text = text;
            if !std::mem::replace(&mut self.returns, true) {
                let end = line.start + text.len();
                let problem = Problem::wrong(
                    "carriage-return",
                    (end..end + 1).into(),
                    "the lines end as on Windows, with a carriage return",
                )
                .expected("a line feed alone")
                .help("convert the file, for example with `dos2unix`");
                self.report
                    .lenient(problem, "the carriage returns are ignored");
            }
        }
        let trimmed = line.text.trim_matches([' ', '\t']);
        if line.text.is_empty() || line.text.starts_with('#') {
            return;
        }
        let span = line.span();
        let directive =
            trimmed.is_empty() || trimmed.starts_with(['#', '*', ':', '[']) || trimmed == "COMMIT";
        let padded = if trimmed == "COMMIT" || trimmed.is_empty() {
            trimmed != line.text
        } else {
            !line.text.starts_with(trimmed)
                && !line.text.starts_with(trimmed.get(..1).unwrap_or_default())
        };
        if directive && padded {
            let span = if trimmed.is_empty() {
                (line.start..line.start + line.text.len()).into()
            } else {
                span
            };
            let problem =
                Problem::wrong("blanks", span, "blanks where iptables-restore takes none")
                    .expected("the line without blanks around it")
                    .help("remove the blanks");
            self.report.lenient(problem, "they are ignored");
        }
        match trimmed.chars().next() {
            None | Some('#') => {}
            Some('*') => self.open_table(trimmed, span),
            _ if trimmed == "COMMIT" => self.commit(span, line.terminated),
            Some(':') => self.declare_chain(line, trimmed, span),
            Some(_) => self.rule_line(line, span),
        }
    }

    fn open_table(&mut self, text: &str, span: Span) {
        if !matches!(self.open, Open::None | Open::Unknown) {
            self.report.error(
                Problem::wrong(
                    "missing-commit",
                    span,
                    "a table begins before the last one ends",
                )
                .expected("`COMMIT` before this line"),
            );
            self.close();
        }
        let name = text[1..]
            .split([' ', '\t'])
            .find(|part| !part.is_empty())
            .unwrap_or_default();
        if let Some(known) = TableName::ALL
            .into_iter()
            .find(|table| table.name() == name)
        {
            let builder = match self.done.iter().position(|table| table.name == known) {
                None => TableBuilder::new(known),
                Some(index) => {
                    self.report.warn("table-twice", span, format!("the table {known} comes a second time: as with iptables-restore, this one replaces the first"),
                        Some("put all rules of a table between one `*` line and one COMMIT".into()));
                    let mut builder = self.done.remove(index);
                    builder.reopen();
                    builder
                }
            };
            self.open = Open::Known(builder, span);
        } else if let Some(idle) = IDLE_TABLES.iter().find(|table| table.name == name) {
            self.open = Open::Idle(idle, span, None, 0);
        } else {
            let idle = IDLE_TABLES.iter().map(|table| table.name);
            let names = TableName::ALL.into_iter().map(TableName::name).chain(idle);
            let problem =
                Problem::wrong("unknown-table", span, format!("there is no table `{name}`"))
                    .expected("filter, nat, raw, mangle or security");
            let problem = match nearest(name, names) {
                Some(near) => problem.help(format!("did you mean `*{near}`?")),
                None => problem,
            };
            self.report.error(problem);
            self.open = Open::Unknown;
        }
    }

    fn commit(&mut self, span: Span, terminated: bool) {
        if !terminated {
            let problem = Problem::wrong(
                "last-line",
                span,
                "the last line does not end with a line feed",
            )
            .expected("a line feed after it")
            .help("end the file with an empty line: iptables-restore does not see this COMMIT");
            self.report.lenient(problem, "COMMIT is taken");
        }
        if matches!(self.open, Open::None) {
            self.report.error(
                Problem::wrong("stray-commit", span, "COMMIT without a table")
                    .expected("a line such as `*filter` before it"),
            );
        }
        self.close();
    }

    fn close(&mut self) {
        match std::mem::replace(&mut self.open, Open::None) {
            Open::Known(builder, _) => self.done.push(builder),
            Open::Idle(table, _, Some(first), count) => {
                let problem = Problem::unsupported(
                    "unsupported-table",
                    first,
                    format!(
                        "rules in the table {} are not supported ({count} in this file)",
                        table.name
                    ),
                )
                .expected("no rules, only policies ACCEPT")
                .help(match table.name {
                    "security" => "leave the table out: packets bear no SELinux marks here",
                    _ => {
                        "drop packets in the filter table; leave out what marks or changes packets"
                    }
                });
                self.report.error(problem);
            }
            Open::None | Open::Unknown | Open::Idle(..) => {}
        }
    }

    fn declare_chain(&mut self, line: Line<'_>, text: &str, span: Span) {
        let offset = |part: &str| {
            // Both are parts of the line, so the difference is the offset within it.
            let at = line.start + (part.as_ptr() as usize - line.text.as_ptr() as usize);
            Span {
                start: at,
                end: at + part.len(),
            }
        };
        let mut parts = text[1..].split([' ', '\t']).filter(|part| !part.is_empty());
        let (name, policy, counters) = (parts.next(), parts.next(), parts.next());
        let builder = match &mut self.open {
            Open::None => return self.outside(span),
            Open::Unknown => return,
            Open::Idle(table, ..) => {
                let drops = policy.filter(|policy| !matches!(*policy, "ACCEPT" | "-"));
                if let Some(policy) = drops {
                    self.report.error(
                        Problem::unsupported(
                            "unsupported-table",
                            offset(policy),
                            format!(
                                "the policy {policy} in the table {} is not supported",
                                table.name
                            ),
                        )
                        .expected("ACCEPT")
                        .help("drop packets in the filter table"),
                    );
                }
                return;
            }
            Open::Known(builder, _) => builder,
        };
        let (Some(name), Some(policy)) = (name, policy) else {
            return self.report.error(
                Problem::wrong("bad-chain-line", span, "a chain's line is incomplete").expected(
                    "`:CHAIN POLICY [packets:bytes]`, with the policy `-` for a chain of your own",
                ),
            );
        };
        let name_span = offset(name);
        let counters = match counters.map(|text| (text, brackets(text))) {
            None => None,
            Some((_, Some(counters))) => Some(counters),
            Some((text, None)) => {
                return self.report.error(
                    Problem::wrong(
                        "bad-counters",
                        offset(text),
                        "the chain's counters cannot be read",
                    )
                    .expected("`[packets:bytes]`, such as `[0:0]`"),
                );
            }
        };
        if let Some(extra) = parts.next() {
            return self.report.error(
                Problem::wrong(
                    "stray-word",
                    offset(extra),
                    format!("`{extra}` is not expected here"),
                )
                .expected("the end of the line"),
            );
        }
        if !builder.is_builtin(name) {
            if builder.has_chain(name) {
                return self.report.error(
                    Problem::wrong(
                        "chain-exists",
                        name_span,
                        format!("the chain `{name}` exists already"),
                    )
                    .expected("a new name"),
                );
            }
            if policy != "-" {
                return self.policy_of_no_builtin(name, policy, name_span, offset(policy));
            }
            if let Err(problem) = chain_name(name, name_span) {
                return self.report.error(problem);
            }
            builder.add_chain(name);
            return;
        }
        if policy == "-" {
            return;
        }
        let policy_span = offset(policy);
        self.set_policy(name, policy, policy_span, counters);
    }

    /// `:FORWARD ACCEPT` in nat: the chain is built in elsewhere. Without rules it means nothing.
    fn policy_of_no_builtin(
        &mut self,
        name: &str,
        policy: &str,
        name_span: Span,
        policy_span: Span,
    ) {
        let Open::Known(builder, _) = &self.open else {
            return;
        };
        let table = builder.name;
        let builtin: Vec<_> = table.builtin_chains().to_vec();
        let elsewhere = IDLE_TABLES.iter().any(|idle| idle.chains.contains(&name));
        if elsewhere {
            let problem = Problem::wrong(
                "no-such-builtin",
                name_span,
                format!("the table {table} has no chain {name}"),
            )
            .expected(format!("one of {}", builtin.join(", ")))
            .help("leave the line out");
            if policy == "ACCEPT" {
                self.report.lenient(problem, "the line is ignored");
            } else {
                self.report.error(problem);
            }
            return;
        }
        let problem = Problem::wrong(
            "policy-of-own-chain",
            policy_span,
            format!("`{name}` is not a built-in chain and has no policy"),
        )
        .expected("`-`");
        let problem = match nearest(name, builtin) {
            Some(near) => problem.help(format!(
                "did you mean `:{near} {policy}`? A chain of your own is declared `:{name} - [0:0]`"
            )),
            None => problem.help(format!("write `:{name} - [0:0]`")),
        };
        self.report.error(problem);
    }

    fn set_policy(&mut self, name: &str, policy: &str, span: Span, counters: Option<Counters>) {
        let Open::Known(builder, _) = &mut self.open else {
            return;
        };
        let accept = match policy {
            "ACCEPT" => true,
            "DROP" => false,
            _ => {
                let problem =
                    Problem::wrong("bad-policy", span, format!("`{policy}` cannot be a policy"))
                        .expected("ACCEPT or DROP");
                let upper = policy.to_uppercase();
                let meant = match upper.as_str() {
                    "ACCEPT" | "DROP" => upper.as_str(),
                    "REJECT" => "DROP",
                    _ => return self.report.error(problem),
                };
                let exact = meant == upper;
                let problem = problem.help(format!("write `{meant}`"));
                if !exact
                    || !self
                        .report
                        .lenient(problem.clone(), &format!("taken as `{meant}`"))
                {
                    if !exact {
                        self.report.error(problem);
                    }
                    return;
                }
                meant == "ACCEPT"
            }
        };
        if !accept && builder.name == TableName::Nat {
            return self.report.error(
                Problem::unsupported(
                    "nat-policy",
                    span,
                    "the policy DROP in the table nat is not supported",
                )
                .expected("ACCEPT")
                .help("drop packets in the filter table"),
            );
        }
        let origin = Some(self.report.origin(span));
        builder.set_policy(
            name,
            ChainPolicy {
                accept,
                counters,
                origin,
            },
        );
    }

    fn rule_line(&mut self, mut line: Line<'_>, span: Span) {
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
        let builder = match &mut self.open {
            Open::None => return self.outside(span),
            Open::Unknown => return,
            Open::Idle(_, _, first, count) => {
                first.get_or_insert(span);
                *count += 1;
                return;
            }
            Open::Known(builder, _) => builder,
        };
        let words = match lexer::words(line) {
            Ok(words) => words,
            Err(OpenQuote(quote)) => {
                return self.report.error(
                    Problem::wrong("open-quote", quote, "a quote is opened and not closed")
                        .expected("a second `\"` on the same line"),
                );
            }
        };
        let mut read = rule::read_line(&words, self.family, builder, self.report);
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
        self.execute(read, span);
    }

    fn execute(&mut self, line: rule::Line, span: Span) {
        let Open::Known(builder, _) = &mut self.open else {
            return;
        };
        let Some((command, _)) = line.command else {
            return;
        };
        let first = line.operands.first();
        let name = first.map(|word| word.text.as_str());
        let name_span = first.map_or(span, |word| word.span);
        if let Some(name) = name
            && command != Core::NewChain
            && !builder.has_chain(name)
        {
            let problem = unknown_chain(name, name_span, builder);
            return self.report.error(problem);
        }
        match (command, name) {
            (Core::Append, Some(name)) => {
                if let Some(problem) = misplaced_interface(name, &line.rule) {
                    return self.report.error(problem);
                }
                builder.insert(name, None, line.rule, span, self.report);
            }
            (Core::Insert, Some(name)) => {
                if let Some(problem) = misplaced_interface(name, &line.rule) {
                    return self.report.error(problem);
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
                    return self.report.error(
                        Problem::wrong(
                            "policy-of-own-chain",
                            name_span,
                            format!("`{name}` is not a built-in chain and has no policy"),
                        )
                        .expected("a built-in chain"),
                    );
                }
                if let Some(policy) = line.operands.get(1) {
                    let name = name.to_owned();
                    self.set_policy(&name, &policy.text, policy.span, line.rule.counters);
                }
            }
            (Core::NewChain, Some(name)) => {
                if builder.has_chain(name) {
                    return self.report.error(
                        Problem::wrong(
                            "chain-exists",
                            name_span,
                            format!("the chain `{name}` exists already"),
                        )
                        .expected("a new name"),
                    );
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
    }

    /// A line that stands before the first table or after a COMMIT.
    fn outside(&mut self, span: Span) {
        if std::mem::replace(&mut self.shell, true) {
            return;
        }
        self.report.error(
            Problem::wrong("no-table", span, "the line stands in no table")
                .expected("a line such as `*filter` before it")
                .help(
                    "rules stand between a `*TABLE` line and COMMIT, as iptables-save writes them",
                ),
        );
    }

    fn finish(mut self) -> Ruleset {
        if let Open::Known(_, span) | Open::Idle(_, span, ..) = &self.open {
            let problem = Problem::wrong("missing-commit", *span, "the table has no COMMIT")
                .expected("`COMMIT` after its last line")
                .help("is the file cut off? Nothing of a table is loaded without its COMMIT");
            self.report.error(problem);
            self.close();
        }
        let mut ruleset = Ruleset::default();
        for builder in &self.done {
            *ruleset.table_mut(builder.name) = Some(builder.finish(self.report));
        }
        ruleset
    }
}

fn brackets(text: &str) -> Option<Counters> {
    let (packets, bytes) = text.strip_prefix('[')?.strip_suffix(']')?.split_once(':')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (packets, bytes) = Some((packets, bytes)).filter(|pair| plain(pair.0) && plain(pair.1))?;
    Some(Counters {
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

/// Whether a chain of one's own may have that name.
fn chain_name(name: &str, span: Span) -> Result<(), Problem> {
    // XT_EXTENSION_MAXNAMELEN is 29 with the terminating zero.
    const LONGEST: usize = 28;
    let bad = |why: String| Problem::wrong("bad-chain-name", span, why);
    if name.len() > LONGEST {
        return Err(bad(format!("the chain's name `{name}` is too long"))
            .expected(format!("at most {LONGEST} characters")));
    }
    if name.is_empty() || name.starts_with(['-', '!']) {
        return Err(bad(format!("a chain's name cannot be `{name}`"))
            .expected("a name that begins with a letter"));
    }
    if name.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '"')
    {
        return Err(bad(format!("a chain's name cannot be `{name}`"))
            .expected("a name without blanks and quotes"));
    }
    if find_target(name).is_some() {
        return Err(
            bad(format!("`{name}` is a target and cannot name a chain")).expected("another name")
        );
    }
    Ok(())
}

fn unknown_chain(name: &str, span: Span, builder: &TableBuilder) -> Problem {
    let table = builder.name;
    let problem = Problem::wrong(
        "unknown-chain",
        span,
        format!("the table {table} has no chain `{name}`"),
    )
    .expected("a chain that was declared before");
    match nearest(name, builder.chains()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None if IDLE_TABLES.iter().any(|idle| idle.chains.contains(&name)) => {
            problem.help(format!("{table} has {}", table.builtin_chains().join(", ")))
        }
        None => problem.help(format!("put `:{name} - [0:0]` before its first rule")),
    }
}

/// `-i` in a chain whose packets have no input interface, or `-o` where they have no output yet.
fn misplaced_interface(chain: &str, rule: &rule::RuleDraft) -> Option<Problem> {
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
