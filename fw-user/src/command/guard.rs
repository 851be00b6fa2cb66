//! `fwbpf guard`, which only `load --trial` starts, while it holds the lock: it brings back what was
//! before a trial that nobody confirms.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use fw_common::abi::flow::FlowKey;
use rustix::process::{getpid, setsid};

use super::Failure;
use super::load::{Around, Prepared, Terms, enforce_over};
use super::plan::{Plan, Starts};
use super::revoked;
use super::running::{Predecessor, Running};
use super::trial::{ARMED, Trial};
use crate::compile::{Draft, Known};
use crate::host::Host;
use crate::kernel::attach::{self, Hook, XdpMode};
use crate::kernel::fast_path::FastPath;
use crate::kernel::flip::Helpers;
use crate::kernel::lists;
use crate::kernel::sets::{self, LiveSet};
use crate::kernel::state::{Lock, StateDir};
use crate::policy::model::Policy;

/// Runs the command.
pub fn run(state: &StateDir) -> Result<(), Failure> {
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
        if !trial.is_over() {
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

/// How often the guard looks.
const LOOK: Duration = Duration::from_millis(50);

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
    /// A policy, with what its rules had counted, and the connections that were cut already.
    Policy(Box<(Policy, Terms, HashSet<FlowKey>)>),
}

impl WayBack {
    fn find(state: &StateDir) -> Result<Self> {
        let Some(mut running) = Running::find(state)? else {
            return Ok(Self::Unload);
        };
        // A load may replace the sets: they come back as they are now.
        for set in &mut running.meta.policy.sets {
            *set = LiveSet::open(&mut running.maps, set)?.with_elements()?;
        }
        let counted = running.counters()?;
        let counted = counted
            .iter()
            .map(|(_, count)| [count.packets, count.bytes]);
        let generation = running.header.generation;
        let terms = Terms {
            starts: Starts::OfNew(counted.collect()),
            xdp: XdpMode::of(state, generation),
            fast_path: FastPath::of(state, generation),
            hook: Hook::Auto,
            trial: None,
            import: false,
            drop_revoked: false,
        };
        let cut = revoked::cut(state)?;
        Ok(Self::Policy(Box::new((running.meta.policy, terms, cut))))
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
                let (policy, terms, cut) = &**before;
                let running = Predecessor::find(state)?;
                let mut policy = policy.clone();
                let nothing = Known::default();
                let known = running.as_ref().map_or(&nothing, |old| &old.known);
                sets::place(&mut policy.sets, &known.sets);
                lists::place(&mut policy.lists, &known.lists);
                let draft = Draft::of(&policy).map_err(|limit| anyhow!("{limit}"))?;
                let prepared = Prepared {
                    policy: &policy,
                    draft,
                    plan: Plan::new(&policy, running.as_ref(), &terms.starts),
                    around: Around::read(&policy),
                    helpers: Helpers::start()?,
                };
                enforce_over(state, lock, running, prepared, terms)?;
                // What the policy on trial has cut goes on.
                revoked::restore(state, cut)
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
