//! `cargo xtask bench`: fwbpf beside its peers and the floors.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fwbpf_tests::bench::machine::Machine;
use fwbpf_tests::bench::report::CaseReport;
use fwbpf_tests::bench::{CASES, Settings};
use fwbpf_tests::lab::ready;
use serde::Serialize;

/// Measures fwbpf, iptables-legacy, iptables-nft, nft, the bare kernel and the smallest possible
/// programs, on the same path in the same run, and says which of the demanded bars are met.
#[derive(Parser)]
struct Arguments {
    /// Fewer and shorter runs, and fewer settings: about three minutes.
    #[arg(long)]
    quick: bool,
    /// Write everything that was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// These cases only.
    #[arg(long, value_name = "N", num_args = 1..)]
    case: Vec<u8>,
    /// Only contenders whose names have one of these texts in them, where contenders are alternated.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    contender: Vec<String>,
    /// Runs of each contender.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Draw the scaling curves of case 2 into this folder; not with --quick, which measures too
    /// few points.
    #[arg(long, value_name = "DIR", env = "FWBPF_BENCH_CHARTS")]
    charts: Option<PathBuf>,
    /// The benchmark's BPF object, as `cargo xtask bench` builds it.
    #[arg(long, env = "FWBPF_BENCH_OBJECT")]
    object: PathBuf,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const PROGRAMS: [&str; 4] = [
    "iptables-legacy-restore",
    "iptables-nft-restore",
    "nft",
    "ethtool",
];

#[derive(Serialize)]
struct Everything {
    machine: Machine,
    quick: bool,
    cases: Vec<CaseReport>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !ready("bench", &PROGRAMS, true) {
        return ExitCode::FAILURE;
    }
    match bench(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .context("cannot install the handler for Ctrl-C")?;
    let settings = Settings {
        object: std::fs::read(&arguments.object)
            .with_context(|| format!("read {}", arguments.object.display()))?,
        rounds: arguments.rounds.max(1),
        run: Duration::from_millis(if arguments.quick { 60 } else { 200 }),
        quick: arguments.quick,
        only: arguments.contender.clone(),
        charts: arguments.charts.clone().filter(|_| !arguments.quick),
        interrupted: &INTERRUPTED,
    };
    let machine = Machine::here();
    println!("{}", machine.text());
    let mut cases = Vec::new();
    let mut failed = Vec::new();
    for (number, case) in CASES {
        if !arguments.case.is_empty() && !arguments.case.contains(&number) {
            continue;
        }
        settings.check()?;
        settings.begin(&format!("case {number}"));
        let started = Instant::now();
        let report = match case(&settings) {
            Ok(report) => report,
            // What the other cases find in an hour is worth having.
            Err(error) => {
                settings.check()?;
                eprintln!("case {number} failed: {error:#}");
                failed.push(number.to_string());
                continue;
            }
        };
        print!("{}", report.text());
        println!(
            "case {number} took {:.0} s",
            started.elapsed().as_secs_f64()
        );
        cases.push(report);
    }
    if let Some(path) = &arguments.json {
        let everything = Everything {
            machine,
            quick: arguments.quick,
            cases,
        };
        std::fs::write(path, serde_json::to_string_pretty(&everything)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    ensure!(failed.is_empty(), "failed: case {}", failed.join(", "));
    Ok(())
}
