//! iptables-save's format: lines -> words -> rules -> tables.
//!
//! Reading goes on after an error, so that all errors of a file are reported at once.

mod chains;
mod commands;
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
use super::model::{Family, Ruleset};
use super::source::{SourceFile, Span};
use lexer::Line;
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
pub(crate) fn all_words(text: &str) -> impl Iterator<Item = Vec<Word<'_>>> {
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
        if line.text.starts_with("-A ") && line.text.ends_with(|end: char| end.is_ascii_graphic()) {
            // Nearly every line: nothing is odd about its ends.
            let span = (line.start..line.start + line.text.len()).into();
            return self.rule_line(line, span);
        }
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
        for builder in self.done {
            let name = builder.name;
            *ruleset.table_mut(name) = Some(builder.finish(self.report));
        }
        ruleset
    }
}
