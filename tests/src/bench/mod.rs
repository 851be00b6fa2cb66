//! The benchmark: fwbpf beside its peers and the floors, on one path, in one run.

pub mod chart;
pub mod connections;
pub mod contender;
pub mod features;
pub mod flood;
pub mod floor;
pub mod forward;
pub mod lab;
pub mod latency;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod policies;
pub mod programs;
pub mod real;
pub mod replace;
pub mod report;
pub mod rules;
pub mod scale;
pub mod station;
pub mod streams;
pub mod synflood;
pub mod traffic;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use self::contender::Contender;
use self::report::CaseReport;

/// How much is measured.
#[derive(Clone)]
pub struct Settings {
    /// The benchmark's BPF object.
    pub object: Vec<u8>,
    /// Runs of each contender.
    pub rounds: usize,
    /// How long a run takes, about.
    pub run: Duration,
    /// Fewer settings.
    pub quick: bool,
    /// Texts one of which has to be in a contender's name, if there are any.
    pub only: Vec<String>,
    /// Where charts go, if they are wanted.
    pub charts: Option<PathBuf>,
    /// Set by Ctrl-C.
    pub interrupted: &'static AtomicBool,
}

impl Settings {
    /// Fails after Ctrl-C, so that everything is dropped, and with it removed.
    pub fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Fails for a contender that is not asked for.
    pub fn ask_for(&self, contender: Contender) -> Result<()> {
        let asked = self.only.iter().any(|text| contender.name().contains(text));
        ensure!(asked || self.only.is_empty(), "not asked for");
        Ok(())
    }

    /// The same with another number of rounds.
    pub fn with_rounds(&self, rounds: usize) -> Self {
        Self {
            rounds,
            ..self.clone()
        }
    }

    /// Says what goes on.
    pub fn step(&self, what: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K{what}");
        }
    }

    /// Says what begins.
    pub fn begin(&self, what: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[2K");
        }
        eprintln!("{what} ...");
    }
}

/// Measures one case.
pub type Case = fn(&Settings) -> Result<CaseReport>;

/// All cases, by their numbers in issue 3; 0: the programs by themselves.
pub const CASES: [(u8, Case); 10] = [
    (0, programs::run),
    (1, flood::run),
    (2, scale::run),
    (3, forward::run),
    (4, streams::run),
    (5, connections::run),
    (6, latency::run),
    (7, replace::run),
    (8, synflood::run),
    (9, memory::run),
];
