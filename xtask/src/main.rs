//! `cargo xtask`: all that a person or CI runs.

mod bench;
mod build;
mod cargo;
mod demo;
mod fuzz;
mod lint;
mod progress;
mod setup;
mod suites;
mod test;
mod vmtest;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{progress::Progress, setup::Need};

/// Sets up, builds, shows and tests fwbpf.
///
/// Every command first installs what it needs and the machine lacks (Debian, as root), and says
/// what and why. Once that is done, everything works offline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing for building, the demo and the tests.
    Setup,
    /// Builds the BPF object and the `fwbpf` binary that carries it.
    Build(build::Options),
    /// Enforces the guide's policy on real traffic between network namespaces, and shows it.
    Demo(demo::Options),
    /// Runs the tests: all of them, or the suites named.
    Test(test::Options),
    /// Compares fwbpf with iptables on random rule sets and packets.
    Conformance(test::ConformanceOptions),
    /// Measures fwbpf beside iptables, nftables, the bare kernel and the smallest programs.
    Bench(bench::Options),
    /// Boots Debian's kernels in virtual machines and tries fwbpf on each.
    Vmtest(vmtest::Options),
    /// Fuzzes the readers of policies, the header parser and the datapath.
    Fuzz(fuzz::Options),
    /// Formatting, clippy and the compiler's warnings, none of them tolerated.
    Lint,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let progress = Progress::new()?;
    match command {
        Command::Setup => {
            setup::ensure(&progress, &[Need::Build, Need::Demo, Need::Test]).map(drop)
        }
        Command::Build(options) => build::run(&progress, &options),
        Command::Demo(options) => demo::run(&progress, &options),
        Command::Test(options) => test::run(&progress, &options),
        Command::Conformance(options) => test::conformance(&progress, &options),
        Command::Bench(options) => bench::run(&progress, &options),
        Command::Fuzz(options) => fuzz::run(&progress, &options),
        Command::Vmtest(options) => vmtest::run(&progress, &options),
        Command::Lint => lint::run(&progress),
    }
}
