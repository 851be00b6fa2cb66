//! The first process of a virtual machine that `cargo xtask vmtest` boots: makes a system of an
//! initramfs, loads every BPF program, makes the smoke set's claims, tells what it found in lines
//! of JSON that begin with [`MARK`], and switches the machine off.
//!
//! Started as any other process it leaves the system as it is and only makes the claims.

mod machine;
mod programs;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use fwbpf_tests::guide::GuideLab;
use fwbpf_tests::smoke::CLAIMS;
use serde::Serialize;

/// What a line of the report begins with, among the kernel's own messages on the console.
const MARK: &str = "@fwbpf ";

/// A line of the report. `xtask/src/vmtest/report.rs` reads them.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// The kernel.
    Kernel { release: String },
    /// A program and what the verifier made of it.
    Program {
        name: String,
        verified: Option<u32>,
        error: Option<String>,
    },
    /// What `fwbpf status` says after a load.
    Status(serde_json::Value),
    /// A claim: that it holds, why it does not, or what this kernel lacks for it.
    Claim {
        name: String,
        error: Option<String>,
        lack: Option<String>,
        milliseconds: u128,
    },
    /// Nothing more will come.
    End,
}

fn main() -> ExitCode {
    let first_process = std::process::id() == 1;
    if first_process && let Err(error) = machine::prepare() {
        claim("boot", || Err(error));
        machine::switch_off();
    }
    examine();
    say(&Line::End);
    if first_process {
        machine::switch_off();
    }
    ExitCode::SUCCESS
}

fn examine() {
    say(&Line::Kernel {
        release: machine::release(),
    });
    let mut lab = None;
    claim("load", || {
        let guide = GuideLab::with_options("vm_smoke", &[])?;
        guide.load_guide()?;
        lab = Some(guide);
        Ok(())
    });
    let Some(guide) = lab else {
        // Which of them is it, and how do the others fare?
        claim("verifier", || tell(programs::verify()?));
        return;
    };
    claim("verifier", || tell(programs::loaded()?));
    claim("status", || {
        say(&Line::Status(serde_json::from_str(&guide.status()?)?));
        Ok(())
    });
    for one in CLAIMS {
        match (one.lack)() {
            None => claim(one.name, || (one.statement)(&guide)),
            lack => say(&Line::Claim {
                name: one.name.to_owned(),
                error: None,
                lack,
                milliseconds: 0,
            }),
        }
    }
    claim("unload", || guide.firewall.clear());
}

/// Tells what became of each program, and whether all is well.
fn tell(outcomes: Vec<(String, Result<Option<u32>>)>) -> Result<()> {
    let mut refused = Vec::new();
    for (name, outcome) in outcomes {
        if outcome.is_err() {
            refused.push(name.clone());
        }
        say(&Line::Program {
            name,
            verified: outcome.as_ref().ok().copied().flatten(),
            error: outcome.err().map(|error| format!("{error:#}")),
        });
    }
    match refused.as_slice() {
        [] => Ok(()),
        refused => Err(anyhow!("refused: {}", refused.join(", "))),
    }
}

/// Tells whether something holds. A panic is a failure like others: this process may not end.
fn claim(name: &str, statement: impl FnOnce() -> Result<()>) {
    let started = Instant::now();
    let error = match catch_unwind(AssertUnwindSafe(statement)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("it panicked; the message is on the console".to_owned()),
    };
    say(&Line::Claim {
        name: name.to_owned(),
        error,
        lack: None,
        milliseconds: started.elapsed().as_millis(),
    });
}

fn say(line: &Line) {
    match serde_json::to_string(line) {
        // The line break before it ends whatever the kernel was about to say.
        Ok(text) => println!("\n{MARK}{text}"),
        Err(error) => println!("\ncannot write a line of the report: {error}"),
    }
}
