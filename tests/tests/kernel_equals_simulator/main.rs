//! The datapath in the kernel and the one in the simulator: the same rules and the same packets
//! make the same verdicts, bytes, counters, events, flows and fragments.
//!
//! The programs are attached nowhere; `BPF_PROG_TEST_RUN` gives them frames. What it cannot give:
//! the note that ingress leaves for egress (`tc_index`), so that egress always tracks for itself
//! here, and unfinished checksums. The end-to-end tests have both.
//!
//! With every second policy the fast path is on, at both hooks.
//!
//! `EQUALS_SEED`, `EQUALS_POLICIES` and `EQUALS_PACKETS` choose what is tried.

mod costs;
mod hints;
mod input;
mod kernel;
mod older;
mod programs;
mod tally;
mod trial;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fwbpf_tests::lab::{Peers, ServerLab, ready};
use kernel::Kernel;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tally::Tally;
use trial::Trial;

#[test]
fn kernel_equals_simulator() -> Result<()> {
    const TEST: &str = "kernel_equals_simulator";
    let Some(object) = object(TEST)? else {
        return Ok(());
    };
    let seed = number("EQUALS_SEED")?.unwrap_or_else(|| rand::random::<u32>().into());
    let policies = number("EQUALS_POLICIES")?.unwrap_or(40);
    let packets = number("EQUALS_PACKETS")?.unwrap_or(200) as usize;
    println!("EQUALS_SEED={seed} EQUALS_POLICIES={policies} EQUALS_PACKETS={packets}");
    let started = Instant::now();
    let lab = ServerLab::new(TEST, Peers::Emulated)?;
    let mut kernel = Kernel::load(&object)?;
    let mut tally = Tally::default();
    // What is rare may not come up among so many: a few more are tried before that is an error.
    for number in 0..policies * 2 {
        if number >= policies && tally.ensure_variety().is_ok() {
            break;
        }
        let forwards = number % 4 != 3;
        let fast = number % 2 == 0;
        let switch = if forwards { "1" } else { "0" };
        lab.server.sysctl(&[
            ("ipv4/ip_forward", switch),
            ("ipv6/conf/all/forwarding", switch),
        ])?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(number);
        let outcome = lab.server.enter(|| {
            let mut trial = Trial::new(&mut kernel, &mut random, packets, (forwards, fast))?;
            trial.run(&mut random)?;
            anyhow::Ok(trial.tally)
        })?;
        let outcome = outcome.and_then(|tally| {
            // A look at all of them takes a while.
            if number % 8 == 0 {
                kernel.check_hints()?;
            }
            Ok(tally)
        });
        tally.add(&outcome.with_context(|| format!("EQUALS_SEED={seed}, policy {number}"))?);
    }
    let strays = kernel.strays()?;
    ensure!(strays.is_empty(), "counted in slots of no rule: {strays:?}");
    println!("{policies} policies, {tally}, {:.1?}", started.elapsed());
    tally.ensure_variety()
}

#[test]
fn programs_stay_within_the_verifiers_budget() -> Result<()> {
    let Some(object) = object("programs_stay_within_the_verifiers_budget")? else {
        return Ok(());
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("verifier-budget.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut budget: BTreeMap<String, u32> = toml::from_str(&text)?;
    for (program, count) in Kernel::load(&object)?.verified()? {
        let limit = budget
            .remove(program)
            .with_context(|| format!("{} has no budget for {program}", path.display()))?;
        println!("{program}: {count} of {limit} instructions verified");
        ensure!(
            count <= limit,
            "the verifier looks at {count} instructions of {program}; its budget is {limit} ({})",
            path.display()
        );
    }
    ensure!(
        budget.is_empty(),
        "budgets of programs that there are not: {budget:?}"
    );
    Ok(())
}

/// The BPF object, which `cargo xtask test` names in `FWBPF_OBJECT`; else the one that was built
/// here last. Nothing, and a word about it, if the machine lacks something.
fn object(test: &str) -> Result<Option<Vec<u8>>> {
    if !ready(test, &["bridge"], false) {
        return Ok(None);
    }
    let path = match std::env::var_os("FWBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(
                || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                PathBuf::from,
            )
            .join("bpf/bpfel-unknown-none/bpf/fw-ebpf"),
    };
    if !path.is_file() {
        let message = format!(
            "SKIPPED {test}: missing the BPF object {} (set FWBPF_OBJECT, or run `cargo xtask build`)",
            path.display()
        );
        ensure!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{message} (and CI=true)"
        );
        eprintln!("{message}");
        return Ok(None);
    }
    let object = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(object))
}

fn number(variable: &str) -> Result<Option<u64>> {
    match std::env::var(variable) {
        Ok(text) => {
            let number = text
                .parse()
                .with_context(|| format!("{variable}={text} is not a number"))?;
            Ok(Some(number))
        }
        Err(_) => Ok(None),
    }
}
