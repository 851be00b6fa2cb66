//! `cargo xtask test` and `cargo xtask conformance`.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

use crate::{
    build,
    cargo::cargo,
    lint,
    progress::{Progress, elapsed},
    setup::{self, Need},
    suites::{self, Suite},
};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// The suites to run: `lint`, `unit`, `lab`, `conformance`, or a file of tests/tests without
    /// its `.rs`. Without a name, all of them.
    suites: Vec<String>,

    /// Only the tests whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,

    /// List the suites and stop.
    #[arg(long)]
    list: bool,
}

/// Options of `cargo xtask conformance`, which are those of the program that it builds and runs.
#[derive(Args)]
pub struct ConformanceOptions {
    /// `--rulesets N --packets M --seed S`, and whatever else `conformance --help` tells.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds, runs every suite even when one fails, and sums up.
pub fn run(progress: &Progress, options: &Options) -> Result<()> {
    let suites = choose(&suites::all()?, &options.suites)?;
    if options.list {
        for suite in &suites {
            println!("{}", suite.name());
        }
        return Ok(());
    }
    let built = Built::make(progress, &[Need::Build, Need::Test, Need::Bench])?;
    let mut results = Vec::new();
    for suite in &suites {
        let started = Instant::now();
        let mut counts = Counts::default();
        let outcome = built.run(progress, suite, options.only.as_deref(), &mut counts);
        results.push(Outcome {
            suite: suite.clone(),
            counts,
            error: outcome.err().map(|error| format!("{error:#}")),
            took: started.elapsed(),
        });
        if progress.interrupted() {
            break;
        }
    }
    println!("\n{}", table(&results));
    let failed: Vec<&str> = results
        .iter()
        .filter(|result| result.error.is_some())
        .map(|result| result.suite.name())
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Sets up, builds optimised, and runs the comparison with iptables.
pub fn conformance(progress: &Progress, options: &ConformanceOptions) -> Result<()> {
    if !suites::has_bin("conformance") {
        bail!("the package fwbpf-tests has no binary `conformance`");
    }
    let built = Built::make(progress, &[Need::Build, Need::Test])?;
    progress.hand_over(built.conformance(progress)?.args(&options.arguments))
}

/// What the suites run against.
struct Built {
    object: PathBuf,
    /// The benchmark's programs.
    bench: PathBuf,
    binary: PathBuf,
}

impl Built {
    fn make(progress: &Progress, needs: &[Need]) -> Result<Self> {
        let toolchain = setup::ensure(progress, needs)?;
        let object = build::object(progress, &toolchain)?;
        let bench = build::bpf_object(progress, &toolchain, "bench-ebpf")?;
        let binary = build::binary(progress, &object, false)?;
        Ok(Self {
            object,
            bench,
            binary,
        })
    }

    fn run(
        &self,
        progress: &Progress,
        suite: &Suite,
        only: Option<&str>,
        counts: &mut Counts,
    ) -> Result<()> {
        let mut command = match suite {
            Suite::Lint => {
                progress.say("\n== lint");
                lint::format(progress)?;
                return lint::clippy(progress, &self.object);
            }
            Suite::Unit => {
                self.cargo_test(&["--workspace", "--exclude=fw-ebpf", "--exclude=fwbpf-tests"])
            }
            Suite::Lab => self.cargo_test(&["--package=fwbpf-tests", "--lib", "--bins"]),
            Suite::Integration(name) => self.cargo_test(&["--package=fwbpf-tests", "--test", name]),
            Suite::Conformance(way) => {
                let mut command = self.conformance(progress)?;
                command.args(way.options());
                command
            }
        };
        if let (Some(only), false) = (only, matches!(suite, Suite::Conformance(_))) {
            // Whoever runs one test wants to see what it says.
            command.args(["--", only, "--show-output"]);
        }
        progress.show(suite.name(), &mut command, |line| counts.add(line))
    }

    fn cargo_test(&self, arguments: &[&str]) -> Command {
        let mut command = self.cargo("test");
        command.arg("--no-fail-fast").args(arguments);
        command
    }

    /// Optimised on both sides: it loads hundreds of policies.
    fn conformance(&self, progress: &Progress) -> Result<Command> {
        let binary = build::binary(progress, &self.object, true)?;
        let mut command = self.cargo("run");
        command
            .args(["--release", "--package=fwbpf-tests", "--bin=conformance"])
            .arg("--")
            .env("FWBPF_BIN", binary);
        Ok(command)
    }

    fn cargo(&self, verb: &str) -> Command {
        let mut command = cargo();
        command
            .arg(verb)
            .env("FWBPF_OBJECT", &self.object)
            .env("FWBPF_BENCH_OBJECT", &self.bench)
            .env("FWBPF_BIN", &self.binary);
        command
    }
}

/// What Rust's test harness says at the end of each binary.
#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Adds up `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<&str> = result.split([' ', ';']).filter(|w| !w.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

struct Outcome {
    suite: Suite,
    counts: Counts,
    error: Option<String>,
    took: Duration,
}

fn choose(all: &[Suite], names: &[String]) -> Result<Vec<Suite>> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let mut chosen = Vec::new();
    for name in names {
        match all.iter().find(|suite| suite.name() == name) {
            Some(suite) => chosen.push(suite.clone()),
            None => bail!(
                "there is no suite `{name}`; there are: {}",
                all.iter().map(Suite::name).collect::<Vec<_>>().join(", ")
            ),
        }
    }
    Ok(chosen)
}

fn table(results: &[Outcome]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_HORIZONTAL_ONLY)
        .set_header(["suite", "result", "passed", "failed", "ignored", "time"]);
    for result in results {
        let Counts {
            passed,
            failed,
            ignored,
        } = result.counts;
        let counted = matches!(
            result.suite,
            Suite::Unit | Suite::Lab | Suite::Integration(_)
        );
        let count = |number: u64| {
            if counted {
                number.to_string()
            } else {
                String::new()
            }
        };
        table.add_row([
            result.suite.name().to_owned(),
            if result.error.is_none() {
                "ok"
            } else {
                "FAILED"
            }
            .to_owned(),
            count(passed),
            count(failed),
            count(ignored),
            elapsed(result.took),
        ]);
    }
    for column in 2..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harness_lines_add_up() {
        let mut counts = Counts::default();
        counts.add("running 3 tests");
        counts.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        counts.add("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.01s");
        assert_eq!((counts.passed, counts.failed, counts.ignored), (14, 3, 1));
    }

    #[test]
    fn an_unknown_suite_is_told_with_those_that_exist() {
        let error = choose(&[Suite::Lint, Suite::Unit], &["units".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no suite `units`; there are: lint, unit"
        );
    }
}
