//! `fwbpf confirm`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use serde_json::json;

use super::Failure;
use super::output::Output;
use super::running::Predecessor;
use super::trial::Trial;
use crate::cli::Confirm;
use crate::kernel::state::{Fact, StateDir};

/// Runs the command.
pub fn run(state: &StateDir, arguments: Confirm, output: &mut Output) -> Result<(), Failure> {
    let generation = Predecessor::find(state)?
        .ok_or_else(|| Failure::NotLoaded(state.clone()))?
        .generation;
    let lock = state.lock()?;
    let Some(trial) = Trial::of(state, generation) else {
        return Err(Failure::Usage(format!(
            "generation {generation} is not on trial: there is nothing to confirm or to revert"
        )));
    };
    if !arguments.revert {
        state.forget_fact(Fact::Trial)?;
        if output.json {
            return output.value(&json!({ "confirmed": generation }));
        }
        return output.line(format_args!("Generation {generation} stays."));
    }
    if !trial.is_guarded() {
        return Err(Failure::System(anyhow!(
            "the process that knows the policy before is gone; load that policy's files again"
        )));
    }
    trial.ended().write(state)?;
    drop(lock);
    wait_for_guard(state, &trial)?;
    if output.json {
        return output.value(&json!({ "reverted": generation }));
    }
    output.line(format_args!(
        "Generation {generation} is gone; what was before it is in force again."
    ))
}

fn wait_for_guard(state: &StateDir, trial: &Trial) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let started = Instant::now();
    while Trial::read(state).is_some_and(|present| present.generation == trial.generation) {
        if started.elapsed() > PATIENCE {
            bail!("the guard did not bring the policy before back; see the system's log");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
