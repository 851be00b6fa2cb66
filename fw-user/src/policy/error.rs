//! What is said about a policy: errors, which refuse it, and warnings, which do not.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource};
use serde::Serialize;

use super::hosts::Hosts;
use super::model::Origin;
use super::source::{LineIndex, SourceFile, Span};

/// Whether the policy is at fault or fwbpf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// iptables would refuse it as well, or it contradicts itself.
    Wrong,
    /// iptables takes it, fwbpf does not.
    Unsupported,
}

/// One thing that is wrong at one place of a file.
#[derive(Clone, Debug, Serialize)]
pub struct PolicyError {
    /// Wrong or unsupported.
    pub kind: Kind,
    /// A stable name for this sort of error, such as `unknown-chain`.
    pub code: &'static str,
    /// The file's name.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The words that the error is about.
    pub found: String,
    /// What is the matter.
    pub message: String,
    /// What was expected there, as the label under the word says it.
    pub expected: String,
    /// The nearest thing that works.
    pub help: Option<String>,
    #[serde(skip)]
    source: Arc<NamedSource<String>>,
    #[serde(skip)]
    span: Span,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PolicyError {}

impl Diagnostic for PolicyError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let kind = match self.kind {
            Kind::Wrong => "wrong",
            Kind::Unsupported => "unsupported",
        };
        Some(Box::new(format!("{kind}: {}", self.code)))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&*self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let length = self.span.end.saturating_sub(self.span.start);
        let label = LabeledSpan::new(Some(self.expected.clone()), self.span.start, length);
        Some(Box::new(std::iter::once(label)))
    }
}

/// Every error of the files that were read.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct PolicyErrors {
    /// The errors, file by file, in the order of lines.
    pub errors: Vec<PolicyError>,
}

impl PolicyErrors {
    /// The errors as people read them: each with its line and a mark under the word. What is the
    /// matter with several lines is said once.
    pub fn render(&self, colours: bool) -> String {
        let theme = if colours {
            GraphicalTheme::unicode()
        } else {
            plain_theme()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_links(false)
            .with_width(100);
        let mut text = String::new();
        let mut alike: IndexMap<_, Vec<&PolicyError>> = IndexMap::new();
        for error in &self.errors {
            let what = (error.code, &error.message, &error.expected, &error.help);
            let sort = (&error.file, what);
            // Two places of one line have a mark each.
            let beside = |group: &Vec<&PolicyError>| group[0].line == error.line;
            let column = alike
                .get(&(sort, 0))
                .is_some_and(beside)
                .then_some(error.column);
            alike
                .entry((sort, column.unwrap_or(0)))
                .or_default()
                .push(error);
        }
        for errors in alike.into_values() {
            let [first, others @ ..] = errors.as_slice() else {
                continue;
            };
            // Writing to a String cannot fail.
            let _ = if others.is_empty() {
                handler.render_report(&mut text, *first)
            } else {
                let mut first = (*first).clone();
                let said = first
                    .help
                    .map_or_else(String::new, |help| format!("{help}\n"));
                first.help = Some(said + &lines_of(others));
                handler.render_report(&mut text, &first)
            };
        }
        text
    }
}

/// `the same in the lines 7, 9 and 12`, of which there may be thousands.
fn lines_of(errors: &[&PolicyError]) -> String {
    const NAMED: usize = 8;
    let mut lines: Vec<_> = errors.iter().map(|error| error.line).collect();
    lines.dedup();
    let named: Vec<_> = lines.iter().take(NAMED).map(u32::to_string).collect();
    match (named.as_slice(), lines.len().saturating_sub(NAMED)) {
        ([line], _) => format!("the same in line {line}"),
        ([first @ .., last], 0) => format!("the same in the lines {} and {last}", first.join(", ")),
        (all, more) => format!("the same in the lines {} and {more} more", all.join(", ")),
    }
}

fn plain_theme() -> GraphicalTheme {
    GraphicalTheme::unicode_nocolor()
}

/// One line per error, for logs: `rules.v4:12:4: what is the matter`.
impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let PolicyError {
                file,
                line,
                column,
                message,
                ..
            } = error;
            write!(f, "{file}:{line}:{column}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// Something that is taken, but that its writer would want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// A stable name for this sort of warning.
    pub code: &'static str,
    /// The line it is about, if it is about one.
    pub origin: Option<Origin>,
    /// The file's name, if it is about one.
    pub file: Option<String>,
    /// What is the matter and what was made of it.
    pub text: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// `rules.v4:17: warning: ...`.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.origin) {
            (Some(file), Some(origin)) => write!(f, "{file}:{}: ", origin.line)?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, _) => {}
        }
        write!(f, "warning: {}", self.text)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// An error on its way to becoming a [`PolicyError`]: no file yet.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub kind: Kind,
    pub code: &'static str,
    pub span: Span,
    pub message: String,
    pub expected: String,
    pub help: Option<String>,
}

impl Problem {
    /// Something that iptables refuses too.
    pub fn wrong(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        let (message, expected) = (message.into(), String::new());
        Self {
            kind: Kind::Wrong,
            code,
            span,
            message,
            expected,
            help: None,
        }
    }

    /// Something that iptables takes and fwbpf does not.
    pub fn unsupported(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unsupported,
            ..Self::wrong(code, span, message)
        }
    }

    /// Says what was expected at the place.
    pub fn expected(self, expected: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            ..self
        }
    }

    /// Says what to write instead.
    pub fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

/// Collects what is said about one file.
pub(crate) struct Report<'a> {
    file: &'a SourceFile,
    index: u32,
    strict: bool,
    /// Who is asked for the addresses of hosts.
    pub hosts: Option<&'a dyn Hosts>,
    lines: LineIndex,
    /// Made for the first error.
    source: Option<Arc<NamedSource<String>>>,
    pub errors: Vec<PolicyError>,
    pub warnings: Vec<Warning>,
}

impl<'a> Report<'a> {
    pub fn new(
        file: &'a SourceFile,
        index: usize,
        strict: bool,
        hosts: Option<&'a dyn Hosts>,
    ) -> Self {
        Self {
            lines: LineIndex::new(&file.text),
            ..Self::empty(file, index, strict, hosts)
        }
    }

    fn empty(
        file: &'a SourceFile,
        index: usize,
        strict: bool,
        hosts: Option<&'a dyn Hosts>,
    ) -> Self {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Self {
            file,
            index,
            strict,
            hosts,
            lines: LineIndex::default(),
            source: None,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// For a piece of this file: nobody is asked for the addresses of hosts.
    pub fn of_piece(file: &'a SourceFile, index: usize, strict: bool, lines: LineIndex) -> Self {
        Self {
            lines,
            ..Self::empty(file, index, strict, None)
        }
    }

    /// Where its lines begin.
    pub fn lines(&self) -> &LineIndex {
        &self.lines
    }

    /// The file.
    pub fn file(&self) -> &'a SourceFile {
        self.file
    }

    /// Its index among the policy's files.
    pub fn index(&self) -> usize {
        self.index as usize
    }

    /// Whether whatever iptables-restore refuses is refused.
    pub fn strict(&self) -> bool {
        self.strict
    }

    /// Where its lines begin, from the one that begins here on.
    pub fn line_starts(&self, byte: usize) -> &[usize] {
        self.lines.starts_from(byte)
    }

    /// The place of a byte for the model.
    pub fn origin(&self, span: Span) -> Origin {
        Origin {
            file: self.index,
            line: self.lines.line(span.start),
        }
    }

    pub fn error(&mut self, problem: Problem) {
        let Problem {
            kind,
            code,
            span,
            message,
            expected,
            help,
        } = problem;
        let text = &self.file.text;
        let (line, column) = (
            self.lines.line(span.start),
            self.lines.column(text, span.start),
        );
        let found = text
            .get(span.start..span.end)
            .unwrap_or_default()
            .to_owned();
        let file = self.file.name.clone();
        let source = self
            .source
            .get_or_insert_with(|| Arc::new(NamedSource::new(&file, text.clone())));
        let source = Arc::clone(source);
        self.errors.push(PolicyError {
            kind,
            code,
            file,
            line,
            column,
            found,
            message,
            expected,
            help,
            source,
            span,
        });
    }

    pub fn warn(
        &mut self,
        code: &'static str,
        span: Span,
        text: impl Into<String>,
        help: Option<String>,
    ) {
        let (origin, file) = (Some(self.origin(span)), Some(self.file.name.clone()));
        self.warnings.push(Warning {
            code,
            origin,
            file,
            text: text.into(),
            help,
        });
    }

    /// Something that iptables refuses although its meaning is evident: a warning that says what
    /// is made of it, or with `--strict` an error. True if it is taken.
    pub fn lenient(&mut self, problem: Problem, taken_as: &str) -> bool {
        if self.strict {
            self.error(problem);
        } else {
            let text = format!("{}; {taken_as}", problem.message);
            self.warn(problem.code, problem.span, text, problem.help);
        }
        !self.strict
    }
}

/// The candidate that was probably meant, if one is near enough.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let allowed = 1 + word.chars().count() / 4;
    candidates
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
