//! iptables-save's format: lines -> words -> rules -> tables.
//!
//! Reading goes on after an error, so that all errors of a file are reported at once.

mod alike;
mod chains;
mod commands;
mod lexer;
pub(crate) mod nat_values;
mod options;
mod outgoing;
pub(crate) mod packet_values;
mod pieces;
mod rule;
mod slips;
mod table;
pub(crate) mod values;

pub(crate) use lexer::Word;
pub(crate) use slips::shell_script;
pub(crate) use table::{called, is_unconditional};
pub(crate) use values::Value;

use super::error::{Problem, Report, nearest};
use super::ids::TableName;
use super::model::{Family, Ruleset};
use super::source::{SourceFile, Span};
use alike::Pattern;
use commands::Place;
use lexer::Line;
use pieces::Row;
use table::TableBuilder;

/// Reads a file. What comes back is only meant if the report has no errors.
pub(crate) fn read(file: &SourceFile, family: Family, report: &mut Report<'_>) -> Ruleset {
    let mut reader = FileReader::new(family, report);
    let mut whole = true;
    let (mut next, mut looked) = (0, 0);
    while let Some(line) = lexer::lines_between(&file.text, next, file.text.len()).next() {
        if line.text.starts_with("-A ") && looked <= next {
            match reader.row(next) {
                Row::Read(end) => {
                    next = end;
                    whole = file.text[..end].ends_with('\n');
                    continue;
                }
                Row::Short(end) => looked = end,
            }
        }
        whole = line.terminated;
        next += line.text.len() + usize::from(line.terminated);
        reader.line(line);
    }
    reader.finish(whole)
}

/// The words of a file's rule lines, for telling its IP version: no error is reported.
pub(crate) fn all_words(text: &str) -> impl Iterator<Item = Vec<Word<'_>>> {
    lexer::lines(text)
        .filter(|line| !line.text.trim_start().starts_with(['#', ':', '*']))
        .filter_map(|line| lexer::words(line).ok())
}

/// The lines of any file that is written so.
pub(crate) fn file_lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    lexer::lines(text)
}

/// The words of a line, or the place of a quote that is not closed.
pub(crate) fn line_words(line: Line<'_>) -> Result<Vec<Word<'_>>, Span> {
    lexer::words(line).map_err(|quote| quote.0)
}

/// The table whose lines are being read.
enum Open {
    None,
    /// A table that fwbpf enforces.
    Known(TableBuilder, Span),
    /// A table that does not exist: reported, its lines are skipped.
    Unknown,
}

/// Whether a table has a built-in chain of that name.
fn is_builtin_anywhere(name: &str) -> bool {
    let mut tables = TableName::ALL.into_iter().map(TableName::builtin_chains);
    tables.any(|chains| chains.contains(&name))
}

struct FileReader<'r, 'f> {
    family: Family,
    report: &'r mut Report<'f>,
    open: Open,
    /// Tables that were committed.
    done: Vec<TableBuilder>,
    /// Of those, the ones that another table's beginning had to end: they may go on later.
    uncommitted: Vec<TableName>,
    /// Whether carriage returns have been reported.
    returns: bool,
    /// Whether lines outside of any table have been refused.
    outside: bool,
    /// The last line, if others like it may follow, and the place of its rule.
    pattern: Option<(Pattern, Place)>,
}

impl<'r, 'f> FileReader<'r, 'f> {
    fn new(family: Family, report: &'r mut Report<'f>) -> Self {
        Self {
            family,
            report,
            open: Open::None,
            done: Vec::new(),
            uncommitted: Vec::new(),
            returns: false,
            outside: false,
            pattern: None,
        }
    }
}

impl FileReader<'_, '_> {
    fn line(&mut self, mut line: Line<'_>) {
        if line.text.starts_with("-A ") && line.text.ends_with(|end: char| end.is_ascii_graphic()) {
            // Nearly every line: nothing is odd about its ends.
            let span = (line.start..line.start + line.text.len()).into();
            if !self.repeats(line, span) {
                self.rule_line(line, span);
            }
            return;
        }
        self.pattern = None;
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
        let name = text[1..]
            .split([' ', '\t'])
            .find(|part| !part.is_empty())
            .unwrap_or_default();
        if !matches!(self.open, Open::None | Open::Unknown) {
            let problem = Problem::wrong(
                "missing-commit",
                span,
                "a table begins before the last one ends",
            )
            .expected("`COMMIT` before this line")
            .help("put `COMMIT` before this line");
            let (again, taken_as) = match &self.open {
                Open::Known(open, _) if open.name.name() == name => {
                    (true, "the open table goes on")
                }
                _ => (false, "the last one is taken to end here"),
            };
            let taken = self.report.lenient(problem, taken_as);
            if again && taken {
                return;
            }
            if let Open::Known(open, _) = &self.open {
                self.uncommitted.push(open.name);
            }
            self.close();
        }
        if let Some(known) = TableName::ALL
            .into_iter()
            .find(|table| table.name() == name)
        {
            let builder = match self.done.iter().position(|table| table.name == known) {
                None => TableBuilder::new(known),
                Some(index) if self.uncommitted.contains(&known) => self.done.remove(index),
                Some(index) => {
                    self.report.warn("table-twice", span, format!("the table {known} comes a second time: as with iptables-restore, this one replaces the first"),
                        Some("put all rules of a table between one `*` line and one COMMIT".into()));
                    let mut builder = self.done.remove(index);
                    builder.reopen();
                    builder
                }
            };
            self.open = Open::Known(builder, span);
        } else {
            let names = TableName::ALL.into_iter().map(TableName::name);
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
        if let Open::Known(open, _) = &self.open {
            let name = open.name;
            self.uncommitted.retain(|table| *table != name);
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
            Open::None | Open::Unknown => {}
        }
    }

    /// A line that stands before the first table or after a COMMIT. The table of the first kind is
    /// evident, as on iptables' command line; true if the line can be read as one of it.
    fn outside(&mut self, span: Span) -> bool {
        let problem = Problem::wrong("no-table", span, "the line stands in no table")
            .expected("a line such as `*filter` before it")
            .help("rules stand between a `*TABLE` line and COMMIT, as iptables-save writes them");
        if self.done.is_empty() && !self.outside {
            if self
                .report
                .lenient(problem, "the table filter is taken to begin here")
            {
                let filter = TableBuilder::new(TableName::Filter);
                self.open = Open::Known(filter, span);
                return true;
            }
            self.outside = true;
        } else if !std::mem::replace(&mut self.outside, true) {
            let problem = problem.help("put it before the COMMIT of its table");
            self.report.error(problem);
        }
        false
    }

    /// Ends the file, of which the last line is whole or not.
    fn finish(mut self, whole: bool) -> Ruleset {
        if let Open::Known(_, span) = &self.open {
            let problem = Problem::wrong("missing-commit", *span, "the table has no COMMIT")
                .expected("`COMMIT` after its last line");
            if whole {
                let problem = problem.help("put `COMMIT` at the end; is the file whole?");
                let taken_as = "it is taken to end with the file";
                self.report.lenient(problem, taken_as);
            } else {
                let help = "the last line is cut off, so the file is not whole";
                self.report.error(problem.help(help));
            }
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
