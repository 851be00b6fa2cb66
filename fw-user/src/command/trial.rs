//! A policy on trial: unless somebody confirms it in time, the one before comes back.
//!
//! Whoever locks himself out cannot confirm. `load --trial` starts a guard, a process of its own
//! that no terminal's end reaches, before anything changes. The guard knows the policy that ran
//! (or that none did), waits for the deadline, and restores it under the same lock and by the same
//! steps as a load. What is on trial is said by a fact in the state directory: the generation, the
//! deadline, and the guard's process. Removing the fact confirms.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, getpid, setsid, test_kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::json;

use super::Failure;
use super::load::{Starts, Terms, enforce_over};
use super::output::Output;
use super::running::{Predecessor, Running};
use crate::cli::Confirm;
use crate::compile::Draft;
use crate::host::Host;
use crate::kernel::attach::{self, Hook, XdpMode};
use crate::kernel::fast_path::FastPath;
use crate::kernel::state::{Fact, Lock, StateDir};
use crate::policy::model::Policy;

/// What the state directory says of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The generation on trial.
    generation: u32,
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

    fn is_guarded(&self) -> bool {
        Pid::from_raw(self.guard).is_some_and(|guard| test_kill_process(guard).is_ok())
    }

    /// Whether this process is the guard.
    fn is_ours(&self) -> bool {
        self.guard == getpid().as_raw_nonzero().get()
    }

    fn read(state: &StateDir) -> Option<Self> {
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

    fn write(&self, state: &StateDir) -> Result<()> {
        state.set_fact(Fact::Trial, &self.text())
    }
}

/// Runs `fwbpf confirm`.
pub fn confirm(state: &StateDir, arguments: Confirm, output: &mut Output) -> Result<(), Failure> {
    let generation = generation(state)?.ok_or_else(|| Failure::NotLoaded(state.clone()))?;
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
    Trial {
        deadline: 0,
        ..trial
    }
    .write(state)?;
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
        thread::sleep(LOOK);
    }
    Ok(())
}

/// How often the guard looks.
const LOOK: Duration = Duration::from_millis(50);

/// What the guard says when it knows the way back.
const ARMED: &str = "armed";

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

/// Runs `fwbpf guard`, which only `load --trial` starts, holding the lock.
pub fn guard(state: &StateDir) -> Result<(), Failure> {
    // Out of the terminal's session: its end is the very case that this is for.
    setsid().map_err(std::io::Error::from)?;
    let way_back = WayBack::find(state)?;
    {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{ARMED}")?;
        stdout.flush()?;
    }
    silence()?;
    let mut watched = None;
    while let Some(trial) = under_guard(state, watched)? {
        watched = Some(trial);
        if now() < trial.deadline {
            thread::sleep(LOOK);
            continue;
        }
        let lock = state.lock()?;
        // Whoever confirmed or loaded meanwhile was faster.
        if running_trial(state)? != Some(trial) {
            continue;
        }
        match way_back.take(state, &lock) {
            Ok(()) => {
                let what = way_back.name();
                syslog(
                    NOTICE,
                    &format!("the policy on trial was not confirmed: {what}"),
                );
                return Ok(());
            }
            Err(error) => {
                syslog(ERROR, &format!("cannot end the policy on trial: {error:#}"));
                drop(lock);
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
    Ok(())
}

/// The trial that this guard watches; `before` is what it was when last seen.
///
/// While a load is under way, what the directory says may be of a generation that is not in force
/// yet: then the guard waits for that load to end. If it failed, the trial from before goes on.
fn under_guard(state: &StateDir, before: Option<Trial>) -> Result<Option<Trial>> {
    if let Some(trial) = running_trial(state)? {
        return Ok(Some(trial));
    }
    if !state.exists() {
        return Ok(None);
    }
    let _lock = state.lock()?;
    if let Some(trial) = running_trial(state)? {
        return Ok(Some(trial));
    }
    let running = generation(state)?;
    let goes_on = before.filter(|trial| running == Some(trial.generation));
    match (goes_on, Trial::read(state).filter(Trial::is_ours)) {
        (Some(trial), Some(_)) => {
            trial.write(state)?;
            Ok(Some(trial))
        }
        _ => Ok(None),
    }
}

fn running_trial(state: &StateDir) -> Result<Option<Trial>> {
    let Some(generation) = generation(state)? else {
        return Ok(None);
    };
    Ok(Trial::of(state, generation).filter(Trial::is_ours))
}

fn generation(state: &StateDir) -> Result<Option<u32>> {
    Ok(Predecessor::find(state)?.map(|running| running.generation))
}

/// What ran before the trial.
enum WayBack {
    /// Nothing.
    Unload,
    /// A policy, with what its rules had counted.
    Policy(Box<(Policy, Terms)>),
}

impl WayBack {
    fn find(state: &StateDir) -> Result<Self> {
        let Some(running) = Running::find(state)? else {
            return Ok(Self::Unload);
        };
        let counted = running.counters()?;
        let counted = counted
            .iter()
            .map(|(_, count)| [count.packets, count.bytes]);
        let terms = Terms {
            starts: Starts::OfNew(counted.collect()),
            xdp: XdpMode::from_name(&state.fact(Fact::Xdp).unwrap_or_default()),
            fast_path: FastPath::from_name(&state.fact(Fact::FastPath).unwrap_or_default()),
            hook: Hook::Auto,
            trial: None,
        };
        Ok(Self::Policy(Box::new((running.meta.policy, terms))))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Unload => "there is no firewall again, as before",
            Self::Policy(_) => "the policy before is in force again",
        }
    }

    fn take(&self, state: &StateDir, lock: &Lock) -> Result<()> {
        match self {
            Self::Unload => {
                attach::detach_all(state, &Host::read()?)?;
                state.remove()
            }
            Self::Policy(before) => {
                let (policy, terms) = &**before;
                let draft = Draft::of(policy).map_err(|limit| anyhow!("{limit}"))?;
                let running = Predecessor::find(state)?;
                enforce_over(state, lock, running, policy, draft, terms).map(drop)
            }
        }
    }
}

/// Lets go of the streams that belong to the command that started us.
fn silence() -> Result<()> {
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(&null)
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .context("cannot let go of the standard streams")
}

/// Severities of RFC 5424, table 2.
const ERROR: u8 = 3;
const NOTICE: u8 = 5;

/// Tells the system's log. There is nothing to be done if nobody listens.
fn syslog(severity: u8, text: &str) {
    /// `daemon`, RFC 5424 table 1.
    const FACILITY: u8 = 3;
    let line = format!(
        "<{}>fwbpf[{}]: {text}",
        FACILITY << 3 | severity,
        getpid().as_raw_nonzero()
    );
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.send_to(line.as_bytes(), "/dev/log");
    }
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
