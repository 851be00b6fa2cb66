//! A policy on trial: unless somebody confirms it in time, the one before comes back.
//!
//! Whoever locks himself out cannot confirm. `load --trial` starts a guard, a process of its own
//! that no terminal's end reaches, before anything changes. The guard knows the policy that ran
//! (or that none did), waits for the deadline, and restores it under the same lock and by the same
//! steps as a load. What is on trial is said by a fact in the state directory: the generation, the
//! deadline, and the guard's process. Removing the fact confirms.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, getpid, test_kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::kernel::state::{Fact, Lock, StateDir};

/// What the state directory says of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The generation on trial.
    pub generation: u32,
    /// When it ends: seconds of `CLOCK_BOOTTIME`, which goes on while the machine sleeps.
    deadline: u64,
    /// The guard.
    guard: i32,
}

/// A trial, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrialStatus {
    /// Seconds until the policy before comes back.
    pub seconds_left: u64,
    /// Whether the process lives that brings it back.
    pub guarded: bool,
}

impl Trial {
    /// The trial of the running policy, if it is on one.
    pub fn of(state: &StateDir, generation: u32) -> Option<Self> {
        Self::read(state).filter(|trial| trial.generation == generation)
    }

    /// Puts the policy that the next flip brings on trial, and sees to a guard. The lock says that
    /// no other load is under way.
    pub fn begin(
        state: &StateDir,
        _lock: &Lock,
        running: Option<u32>,
        next: u32,
        period: Duration,
    ) -> Result<()> {
        // A guard that is there already knows the last policy that somebody wanted to keep.
        let present = running.and_then(|generation| Self::of(state, generation));
        let guard = match present.filter(Self::is_guarded) {
            Some(trial) => trial.guard,
            None => start_guard(state)?,
        };
        Self {
            generation: next,
            deadline: now() + period.as_secs(),
            guard,
        }
        .write(state)
    }

    /// For `status`.
    pub fn status(&self) -> TrialStatus {
        TrialStatus {
            seconds_left: self.deadline.saturating_sub(now()),
            guarded: self.is_guarded(),
        }
    }

    /// Whether the guard lives.
    pub fn is_guarded(&self) -> bool {
        Pid::from_raw(self.guard).is_some_and(|guard| test_kill_process(guard).is_ok())
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        now() >= self.deadline
    }

    /// The same, over.
    pub fn ended(self) -> Self {
        Self {
            deadline: 0,
            ..self
        }
    }

    /// Whether this process is the guard.
    pub fn is_ours(&self) -> bool {
        self.guard == getpid().as_raw_nonzero().get()
    }

    /// Of whichever generation.
    pub fn read(state: &StateDir) -> Option<Self> {
        Self::parse(&state.fact(Fact::Trial)?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let trial = Self {
            generation: words.next()?.parse().ok()?,
            deadline: words.next()?.parse().ok()?,
            guard: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(trial)
    }

    fn text(&self) -> String {
        format!("{} {} {}", self.generation, self.deadline, self.guard)
    }

    /// Says so.
    pub fn write(&self, state: &StateDir) -> Result<()> {
        state.set_fact(Fact::Trial, &self.text())
    }
}

/// What the guard says when it knows the way back.
pub const ARMED: &str = "armed";

/// Starts a guard, and waits until it knows the way back.
fn start_guard(state: &StateDir) -> Result<i32> {
    let program = std::env::current_exe().context("cannot find fwbpf's own file")?;
    let mut child = Command::new(program)
        .arg("--state-dir")
        .arg(state.path())
        .arg("guard")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start the process that would bring the policy before back")?;
    let stdout = child.stdout.take().context("its output is a pipe")?;
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("cannot hear from the process that would bring the policy before back")?;
    if line.trim_end() != ARMED {
        bail!(
            "the process that would bring the policy before back has failed; nothing was changed"
        );
    }
    Ok(child.id().cast_signed())
}

fn now() -> u64 {
    clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_as_written() {
        let trial = Trial {
            generation: 7,
            deadline: 12_345,
            guard: 99,
        };
        assert_eq!(Trial::parse(&trial.text()), Some(trial));
        for text in ["", "7", "7 12345", "7 12345 99 1", "a b c"] {
            assert_eq!(Trial::parse(text), None, "{text}");
        }
    }

    #[test]
    fn no_process_guards_who_is_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let trial = Trial {
            generation: 1,
            deadline: 0,
            guard: child.id().cast_signed(),
        };
        child.wait().unwrap();
        assert!(!trial.is_guarded());
    }
}
