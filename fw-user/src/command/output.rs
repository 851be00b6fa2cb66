//! What commands print, and how: text for people, JSON for programs.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use clap::ColorChoice;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::Failure;
use crate::policy::Warning;

/// Where commands print to.
#[derive(Debug)]
pub struct Output {
    /// Whether JSON is wanted.
    pub json: bool,
    color: anstream::ColorChoice,
}

impl Output {
    /// Prints to standard output.
    pub fn new(json: bool, color: ColorChoice) -> Self {
        let color = match color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        };
        Self { json, color }
    }

    /// Whether standard error takes colours.
    pub fn colours_on_stderr(&self) -> bool {
        AutoStream::new(std::io::stderr(), self.color).current_choice()
            != anstream::ColorChoice::Never
    }

    /// Prints a line.
    pub fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        let mut stdout = AutoStream::new(std::io::stdout().lock(), self.color);
        Ok(writeln!(stdout, "{line}")?)
    }

    /// Prints text as it is.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = AutoStream::new(std::io::stdout().lock(), self.color);
        Ok(stdout.write_all(text.as_bytes())?)
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(std::io::stdout().lock().write_all(bytes)?)
    }

    /// Prints a heading.
    pub fn heading(&mut self, text: impl Display) -> Result<(), Failure> {
        let bold = Style::new().bold();
        self.line(format_args!("{bold}{text}{bold:#}"))
    }

    /// Prints a value as JSON.
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
        Ok(writeln!(std::io::stdout().lock(), "{text}")?)
    }

    /// Prints a table; the columns of the given numbers are aligned to the right.
    pub fn table(
        &mut self,
        header: &[&str],
        rows: impl IntoIterator<Item = Vec<String>>,
        right: &[usize],
    ) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // On a terminal long rules wrap; into a pipe every row is one line.
        table.set_content_arrangement(if std::io::stdout().is_terminal() {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        });
        table.set_header(header.iter().copied());
        for row in rows {
            table.add_row(row);
        }
        for column in right {
            if let Some(column) = table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.trim_fmt().lines() {
            self.line(format_args!(" {line}"))?;
        }
        Ok(())
    }

    /// Says what is doubtful about a policy, on standard error: as JSON a line of its own.
    pub fn doubt(&self, warning: &Warning) {
        if self.json {
            self.say(serde_json::json!({ "warning": warning }));
        } else {
            self.say(warning);
        }
    }

    /// Warns, on standard error.
    pub fn warning(&self, text: impl Display) {
        let style = AnsiColor::Yellow.on_default().bold();
        self.say(format_args!("{style}warning{style:#}: {text}"));
    }

    /// Says something on standard error. There is nothing to be done if nobody can hear it.
    pub fn say(&self, text: impl Display) {
        let mut stderr = AutoStream::new(std::io::stderr().lock(), self.color);
        let _ = writeln!(stderr, "{text}");
    }

    /// Says why a policy is refused that cannot be blamed on one word of it.
    pub fn refusal(&self, reason: impl Display) {
        if self.json {
            return self.say(serde_json::json!({ "error": reason.to_string() }));
        }
        let style = AnsiColor::Red.on_default().bold();
        self.say(format_args!("{style}error{style:#}: {reason}"));
    }

    /// Explains a failure, on standard error: as JSON a line of its own.
    pub fn failure(&self, failure: &Failure) {
        let (error, help) = match failure {
            Failure::System(error) => (format!("{error:#}"), hint(error)),
            Failure::Usage(text) | Failure::Absent(text) => (text.clone(), None),
            // Its errors have been printed with their lines.
            Failure::Refused => return,
            Failure::NotLoaded(state) => (
                format!("no firewall is loaded in {}", state.path().display()),
                Some("`fwbpf load FILE...`"),
            ),
        };
        if self.json {
            return self.say(serde_json::json!({ "error": error, "help": help }));
        }
        self.refusal(error);
        if let Some(help) = help {
            self.say(format_args!("  help: {help}"));
        }
    }
}

/// What to do about the most common cause.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let code = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .find_map(std::io::Error::raw_os_error)?;
    match code {
        libc::EPERM | libc::EACCES if !rustix::process::geteuid().is_root() => {
            Some("this needs root")
        }
        _ => None,
    }
}

/// Shows on standard error what libraries warn of, aya above all.
#[derive(Debug)]
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            anstream::eprintln!("warning: {}: {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Lets libraries' warnings through to standard error.
pub fn show_library_warnings() {
    // It only fails when there is a logger already, which then shows them.
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}
