//! `cargo xtask conformance`: the same rules and packets through iptables and through fwbpf.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use fw_user::policy::model::Family;
use fwbpf_tests::conformance::{Options, Sabotage, Tested, run};
use fwbpf_tests::lab::{fwbpf_binary, ready};

/// Sends random packets through random rule sets, in iptables and in fwbpf, and compares what is
/// delivered, every byte of it, and every counter.
#[derive(Parser)]
struct Arguments {
    /// Rule sets, for each IP version.
    #[arg(long, default_value_t = 200)]
    rulesets: usize,
    /// Packets for each rule set.
    #[arg(long, default_value_t = 200)]
    packets: usize,
    /// The same seed makes the same rules and packets; `random` draws one, and says which.
    #[arg(long, default_value = "1", value_parser = seed)]
    seed: u64,
    /// One IP version only.
    #[arg(long)]
    family: Option<FamilyName>,
    /// The binary to test, instead of FWBPF_BIN or the newest that cargo built.
    #[arg(long)]
    fwbpf: Option<PathBuf>,
    /// Pairs of labs working side by side; as many as there are CPUs unless given.
    #[arg(long)]
    jobs: Option<usize>,
    /// How many divergences are minimised; the others are only named.
    #[arg(long, default_value_t = 20)]
    minimise: usize,
    /// Run one trial only, by its number in a report.
    #[arg(long)]
    only: Option<usize>,
    /// Compare iptables with itself: proves that the test itself makes no difference.
    #[arg(long, conflicts_with = "fwbpf")]
    self_check: bool,
    /// Try fwbpf's datapath in the simulator instead of in the kernel.
    #[arg(long, conflicts_with_all = ["fwbpf", "self_check"])]
    simulate: bool,
    /// An option of every `fwbpf load`, such as `--load-option=--fast-path=off`. Repeatable.
    #[arg(long = "load-option", allow_hyphen_values = true)]
    load_options: Vec<String>,
    /// Give one side other rules: proves that a difference is found. Succeeds if it is.
    #[arg(long)]
    sabotage: Option<SabotageName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum FamilyName {
    Ipv4,
    Ipv6,
}

#[derive(Clone, Copy, ValueEnum)]
enum SabotageName {
    /// One rule is missing on one side.
    Rule,
    /// The policies are turned around on one side.
    Policy,
}

/// A seed in decimal, or a drawn one of as many digits as a person cares to type.
fn seed(text: &str) -> Result<u64, String> {
    if text == "random" {
        return Ok(rand::random_range(0..1_000_000_000));
    }
    text.parse()
        .map_err(|_| "expected a number of 64 bits, or `random`".into())
}

/// Set by Ctrl-C, a closed terminal and `kill`.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let programs = [
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
        "conntrack",
    ];
    let needs_fwbpf = !arguments.self_check && !arguments.simulate && arguments.fwbpf.is_none();
    if !ready("conformance", &programs, needs_fwbpf) {
        return ExitCode::FAILURE;
    }
    match compare(&arguments) {
        Ok(success) if success => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        // Programs that were running got the signal too, and failed.
        Err(_) if INTERRUPTED.load(Ordering::Relaxed) => {
            eprintln!("interrupted; the namespaces are removed");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("the conformance test cannot run: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn compare(arguments: &Arguments) -> Result<bool> {
    let families = match arguments.family {
        Some(FamilyName::Ipv4) => vec![Family::Ipv4],
        Some(FamilyName::Ipv6) => vec![Family::Ipv6],
        None => vec![Family::Ipv4, Family::Ipv6],
    };
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .context("cannot install the handler for Ctrl-C")?;
    let tested = if arguments.self_check {
        Tested::Iptables
    } else if arguments.simulate {
        Tested::Simulated
    } else {
        let binary = arguments.fwbpf.clone().or_else(fwbpf_binary);
        Tested::Fwbpf(binary.context("there is no fwbpf binary")?)
    };
    println!("seed {}", arguments.seed);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let outcome = run(&Options {
        rulesets: arguments.rulesets,
        packets: arguments.packets,
        seed: arguments.seed,
        families,
        tested,
        jobs: arguments.jobs.unwrap_or(cpus),
        minimise: arguments.minimise,
        only: arguments.only,
        sabotage: arguments.sabotage.map(|name| match name {
            SabotageName::Rule => Sabotage::Rule,
            SabotageName::Policy => Sabotage::Policy,
        }),
        load_options: arguments.load_options.clone(),
        interrupted: &INTERRUPTED,
    })?;
    if outcome.draws > 0 {
        println!(
            "{} rulesets differed with one draw of random ports and not with others",
            outcome.draws
        );
    }
    if outcome.undecided > 0 {
        println!(
            "{} rulesets are not compared: drawn ports decide so much that iptables never agrees with iptables",
            outcome.undecided
        );
    }
    if outcome.nameless > 0 {
        println!(
            "{} rulesets are not compared: a fifth connection of one source was translated to one destination",
            outcome.nameless
        );
    }
    if outcome.late > 0 {
        println!(
            "{} rulesets that count connections differed once, and not when they ran again",
            outcome.late
        );
    }
    if outcome.rerouted > 0 {
        println!(
            "{} rulesets are not compared to their end: an error of the host's was routed anew",
            outcome.rerouted
        );
    }
    if outcome.mirrored > 0 {
        println!(
            "{} rulesets are not compared to their end: a connection's two ends were translated to each other",
            outcome.mirrored
        );
    }
    if outcome.fast_path > 0 {
        println!("the fast path sent {} packets on", outcome.fast_path);
    }
    println!(
        "compared {} rulesets, {} packets: {} divergences",
        outcome.rulesets, outcome.packets, outcome.divergences
    );
    Ok((outcome.divergences > 0) == arguments.sabotage.is_some())
}
