//! What a virtual machine told, and the matrix of all of them.

use std::{
    fmt::{self, Write as _},
    fs,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Deserialize;

use super::kernels::Kernel;
use crate::progress::elapsed;

/// What a line of the report begins with: `MARK` of `tests/src/bin/vm_smoke`.
const MARK: &str = "@fwbpf ";

/// A line of the report, as `vm_smoke` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// The kernel.
    Kernel { release: String },
    /// A program and what the verifier made of it.
    Program(Program),
    /// What `fwbpf status` says.
    Status(Status),
    /// A claim.
    Claim(Claim),
    /// Nothing more will come.
    End,
}

/// A program and what the verifier made of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    name: String,
    verified: Option<u32>,
    error: Option<String>,
}

/// Of `fwbpf status --json`, what concerns the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Status {
    hook: String,
    features: Vec<Feature>,
}

/// An ability of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Feature {
    feature: String,
    present: bool,
    without: String,
}

/// Something that was found to be so, or not; or could not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Claim {
    name: String,
    error: Option<String>,
    lack: Option<String>,
    milliseconds: u64,
}

impl Line {
    /// The line of the report in a line of the console.
    pub fn parse(text: &str) -> Option<Self> {
        let json = text.strip_prefix(MARK)?;
        serde_json::from_str(json)
            .inspect_err(|error| eprintln!("not understood ({error}): {text}"))
            .ok()
    }

    /// What is worth saying at once.
    pub fn news(&self) -> Option<String> {
        match self {
            Self::Kernel { release } => Some(format!("booted {release}")),
            Self::Program(program) => Some(format!("{}: {}", program.name, program.text())),
            Self::Status(status) => Some(format!("attached by {}", status.hook)),
            Self::Claim(claim) => {
                let took = elapsed(Duration::from_millis(claim.milliseconds));
                Some(match (&claim.error, &claim.lack) {
                    (None, None) => format!("ok      {} ({took})", claim.name),
                    (None, Some(lack)) => format!("SKIPPED {}: {lack}", claim.name),
                    (Some(error), _) => format!("FAILED  {} ({took}): {error}", claim.name),
                })
            }
            Self::End => None,
        }
    }
}

impl Program {
    fn text(&self) -> String {
        match (&self.error, self.verified) {
            (Some(_), _) => "refused".into(),
            (None, Some(verified)) => format!("{} instructions", thousands(verified)),
            (None, None) => "accepted".into(),
        }
    }
}

/// All that one kernel told.
pub struct Report {
    kernel: Kernel,
    release: String,
    programs: Vec<Program>,
    status: Option<Status>,
    claims: Vec<Claim>,
    ended: bool,
    trouble: Option<String>,
}

impl Report {
    /// Nothing told yet.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            release: "did not boot".into(),
            programs: Vec::new(),
            status: None,
            claims: Vec::new(),
            ended: false,
            trouble: None,
        }
    }

    /// A line more.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Kernel { release } => self.release = release,
            Line::Program(program) => self.programs.push(program),
            Line::Status(status) => self.status = Some(status),
            Line::Claim(claim) => self.claims.push(claim),
            Line::End => self.ended = true,
        }
    }

    /// The machine was ended after this time.
    pub fn cut_short(&mut self, after: Duration) {
        self.trouble = Some(format!("it was ended after {}", elapsed(after)));
    }

    /// No line will follow.
    pub fn finish(&mut self, console: &Path) {
        if !self.ended {
            let why = self.trouble.take();
            self.trouble = Some(format!(
                "it did not come to its end{}; the console says why: {}",
                why.map_or_else(String::new, |why| format!(" ({why})")),
                console.display()
            ));
        }
    }

    /// What the kernel lacks for claims that were therefore not made.
    pub fn lacks(&self) -> Vec<String> {
        let lacks = self.claims.iter().filter_map(|claim| {
            let (kernel, lack) = (self.kernel.name(), claim.lack.as_ref()?);
            Some(format!("for {} on kernel {kernel}: {lack}", claim.name))
        });
        lacks.collect()
    }

    /// What went wrong, if anything.
    pub fn failures(&self) -> Vec<String> {
        let kernel = self.kernel.name();
        let claims = self.claims.iter().filter_map(|claim| {
            let error = claim.error.as_ref()?;
            Some(format!("kernel {kernel}: {} failed: {error}", claim.name))
        });
        let programs = self.programs.iter().filter_map(|program| {
            let error = program.error.as_ref()?;
            Some(format!(
                "kernel {kernel}: {} is refused: {error}",
                program.name
            ))
        });
        let trouble = self
            .trouble
            .iter()
            .map(|trouble| format!("kernel {kernel}: {trouble}"));
        programs.chain(claims).chain(trouble).collect()
    }
}

/// Kernels beside each other.
pub struct Matrix {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Matrix {
    /// Of these reports.
    pub fn new(reports: &[Report]) -> Self {
        let mut matrix = Self {
            header: std::iter::once(String::new())
                .chain(reports.iter().map(|report| report.kernel.name().into()))
                .collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        };
        matrix.row(reports, "Debian's release", |report| {
            report.kernel.release().into()
        });
        matrix.row(reports, "kernel", |report| report.release.clone());
        matrix.row(reports, "attached by", |report| {
            report
                .status
                .as_ref()
                .map_or_else(|| "-".into(), |status| status.hook.clone())
        });
        let features = names(reports.iter().flat_map(|report| {
            let features = report.status.iter().flat_map(|status| &status.features);
            features.map(|feature| &feature.feature)
        }));
        for name in features {
            matrix.feature(reports, &name);
        }
        let programs = names(
            reports
                .iter()
                .flat_map(|report| report.programs.iter().map(|program| &program.name)),
        );
        for name in programs {
            matrix.row(reports, &format!("verifier: {name}"), |report| {
                let program = report.programs.iter().find(|program| program.name == name);
                program.map_or_else(|| "-".into(), Program::text)
            });
        }
        let claims = names(
            reports
                .iter()
                .flat_map(|report| report.claims.iter().map(|claim| &claim.name)),
        );
        for name in claims {
            matrix.row(reports, &format!("smoke: {name}"), |report| {
                match report.claims.iter().find(|claim| claim.name == name) {
                    None => "not run".into(),
                    Some(claim) if claim.error.is_some() => "FAILED".into(),
                    Some(claim) if claim.lack.is_some() => "skipped".into(),
                    Some(_) => "ok".into(),
                }
            });
        }
        for lack in reports.iter().flat_map(Report::lacks) {
            matrix.notes.push(format!("Missing {lack}."));
        }
        matrix
    }

    /// Replaces what is between the marks in the document.
    pub fn record(&self, document: &Path) -> Result<()> {
        let text = fs::read_to_string(document)
            .with_context(|| format!("cannot read {}", document.display()))?;
        let place = |mark: &str| {
            text.find(mark)
                .with_context(|| format!("{} has no line {mark}", document.display()))
        };
        let start = place(BEGIN)? + BEGIN.len();
        let end = place(END)?;
        let new = format!(
            "{}\n\n{}\n{}",
            &text[..start],
            self.markdown(),
            &text[end..]
        );
        fs::write(document, new).with_context(|| format!("cannot write {}", document.display()))
    }

    fn row(&mut self, reports: &[Report], title: &str, cell: impl Fn(&Report) -> String) {
        self.rows.push(
            std::iter::once(title.to_owned())
                .chain(reports.iter().map(cell))
                .collect(),
        );
    }

    fn feature(&mut self, reports: &[Report], name: &str) {
        let find = |report: &Report| {
            let features = report.status.iter().flat_map(|status| &status.features);
            features.into_iter().find(|f| f.feature == name).cloned()
        };
        self.row(reports, name, |report| {
            find(report)
                .map_or("-", |f| if f.present { "yes" } else { "no" })
                .into()
        });
        let lacking = reports.iter().filter_map(find).find(|f| !f.present);
        if let Some(feature) = lacking {
            self.notes
                .push(format!("Without {name}: {}.", feature.without));
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        let mut line = |cells: &[String]| {
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        };
        line(&self.header);
        line(&vec!["---".to_owned(); self.header.len()]);
        for row in &self.rows {
            line(row);
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }
}

const BEGIN: &str = "<!-- `cargo xtask vmtest --record` writes from here -->";
const END: &str = "<!-- to here -->";

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::ASCII_HORIZONTAL_ONLY);
        table.set_header(&self.header);
        for row in &self.rows {
            table.add_row(row);
        }
        writeln!(f, "{table}")?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

/// Each name once, in the order of the first appearance.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in all {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kernel: Kernel, lines: &[&str]) -> Report {
        let mut report = Report::new(kernel);
        for line in lines {
            if let Some(line) = Line::parse(line) {
                report.add(line);
            }
        }
        report.finish(Path::new("console.log"));
        report
    }

    #[test]
    fn what_is_missing_is_a_failure() {
        let report = report(
            Kernel::Bookworm,
            &[
                "[    0.5] the kernel's own words",
                r#"@fwbpf {"kernel":{"release":"6.1.0-1"}}"#,
                r#"@fwbpf {"program":{"name":"a","verified":1234567,"error":null}}"#,
                r#"@fwbpf {"program":{"name":"b","verified":null,"error":"too large"}}"#,
                r#"@fwbpf {"claim":{"name":"filter","error":null,"lack":null,"milliseconds":5}}"#,
            ],
        );
        let failures = report.failures();
        assert_eq!(failures.len(), 2, "{failures:?}");
        assert!(failures[0].contains("b is refused: too large"));
        assert!(failures[1].contains("did not come to its end"));
        let text = Matrix::new(&[report]).markdown();
        assert!(
            text.contains("| verifier: a | 1,234,567 instructions |"),
            "{text}"
        );
        assert!(text.contains("| verifier: b | refused |"), "{text}");
        assert!(text.contains("| smoke: filter | ok |"), "{text}");
    }

    #[test]
    fn what_could_not_be_asked_is_said() {
        let report = report(
            Kernel::Trixie,
            &[
                r#"@fwbpf {"claim":{"name":"bridge","error":null,"lack":"no br_netfilter","milliseconds":0}}"#,
                r#"@fwbpf "end""#,
            ],
        );
        assert!(report.failures().is_empty());
        let lack = "for bridge on kernel 6.12: no br_netfilter";
        assert_eq!(report.lacks(), [lack]);
        let text = Matrix::new(&[report]).markdown();
        assert!(text.contains("| smoke: bridge | skipped |"), "{text}");
        assert!(text.contains(&format!("Missing {lack}.")), "{text}");
    }

    #[test]
    fn kernels_stand_beside_each_other() {
        let status = |tcx: bool| {
            format!(
                r#"@fwbpf {{"status":{{"hook":"{}","generation":1,"features":[{{"feature":"tcx","present":{tcx},"required":false,"without":"attached by clsact"}}]}}}}"#,
                if tcx { "tcx" } else { "clsact" }
            )
        };
        let reports = [
            report(Kernel::Bookworm, &[&status(false), r#"@fwbpf "end""#]),
            report(Kernel::Trixie, &[&status(true), r#"@fwbpf "end""#]),
        ];
        assert!(reports.iter().all(|report| report.failures().is_empty()));
        let text = Matrix::new(&reports).markdown();
        assert!(text.contains("| attached by | clsact | tcx |"), "{text}");
        assert!(text.contains("| tcx | no | yes |"), "{text}");
        assert!(text.contains("Without tcx: attached by clsact."), "{text}");
    }
}
