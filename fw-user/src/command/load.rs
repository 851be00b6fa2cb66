//! `fwbpf load`: everything that can be refused is refused before anything is touched; the last
//! step is the flip.

use std::mem::ManuallyDrop;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use fw_common::abi::blob::AnswerFields;
use rustix::thread::disable_transparent_huge_pages;
use serde::Serialize;

use super::Failure;
use super::output::Output;
use super::plan::{Plan, Starts, starts};
use super::require;
use super::revoked::{Revoked, cut_revoked};
use super::running::{Predecessor, running_id};
use super::source::{self, Size};
use super::trial::Trial;
use crate::cli::Load;
use crate::compile::{Draft, Known, Settings};
use crate::host::Host;
use crate::kernel::attach::{self, Attachment, Hook, Via, XdpMode, attach_all};
use crate::kernel::clock;
use crate::kernel::fast_path::{FastPath, Places};
use crate::kernel::flip::Helpers;
use crate::kernel::import::{Import, take_over};
use crate::kernel::load::{Maps, Programs, check_owner, prepare};
use crate::kernel::state::{Fact, Lock, Settled, StateDir};
use crate::kernel::sync::{Next, prune_devices, replace, set_counters, store};
use crate::kernel::sysctl::{answer_settings, conntrack_setting};
use crate::kernel::{lists, probe, sets};
use crate::policy::SshSession;
use crate::policy::lint::cuts_ssh;
use crate::policy::model::{InterfacePattern, Policy};

/// What a load did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The new generation's number.
    pub generation: u32,
    /// Rules and chain policies that are counted.
    pub counters: usize,
    /// Of those, the ones that went on from the policy before.
    pub counters_kept: usize,
    /// Size of the compiled policy.
    pub cells: usize,
    /// What the programs are attached to.
    pub hook: Via,
    /// What the kernel lacks, and what is done without it. Looked for where programs were attached anew:
    /// at the start, not at each reload.
    pub lacking: Vec<probe::Finding>,
    /// The interfaces.
    pub interfaces: Vec<Attachment>,
    /// Interface patterns that no interface fits at present.
    pub missing: Vec<InterfacePattern>,
    /// What was taken over from the kernel's tracking; nothing if it tracked nothing.
    pub import: Option<Import>,
    /// What became of the connections that the policy would not let begin; nothing if that was not asked.
    pub revoked: Option<Revoked>,
    /// What did not go as it should, though the policy is in force.
    pub problems: Vec<String>,
    /// If the policy is on trial: for how many seconds.
    pub trial_seconds: Option<u64>,
}

/// How a policy is put in force.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What counters start with.
    pub starts: Starts,
    /// Where XDP drops.
    pub xdp: XdpMode,
    /// Where the fast path is.
    pub fast_path: FastPath,
    /// What to attach to.
    pub hook: Hook,
    /// Unless it is confirmed within that time, the policy before comes back.
    pub trial: Option<Duration>,
    /// A first policy takes over what the kernel tracks.
    pub import: bool,
    /// Connections that the policy would not let begin are cut.
    pub drop_revoked: bool,
}

impl Terms {
    fn of(arguments: &Load, policy: &Policy) -> Self {
        Self {
            starts: if arguments.counters {
                Starts::Written(starts(policy))
            } else {
                Starts::Zero
            },
            xdp: arguments.xdp,
            fast_path: arguments.fast_path,
            hook: arguments.hook,
            trial: arguments
                .trial
                .map(|seconds| Duration::from_secs(seconds.into())),
            import: !arguments.no_import,
            drop_revoked: arguments.drop_revoked,
        }
    }
}

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Load, output: &mut Output) -> Result<(), Failure> {
    let helpers = Helpers::start()?;
    let size = Size::of(&arguments.policy);
    if size == Size::Huge {
        // They are off for all others: see `main`. Where the kernel refuses, it takes a little longer.
        let _ = disable_transparent_huge_pages(false);
    }
    let large = size >= Size::Large;
    let ((running, here), parsed) = beside(
        large,
        // Reading a small policy may wait for standard input, and is soon done otherwise.
        || (Predecessor::find(state), large.then(Here::read)),
        || source::parse_for(&arguments.policy),
    );
    let running = running?;
    let nothing = Known::default();
    let known = running.as_ref().map_or(&nothing, |running| &running.known);
    let mut policy = source::take(parsed?, &known.sets, output)?;
    sets::place(&mut policy.sets, &known.sets);
    policy.size_lists(lists::recent_entries());
    lists::place(&mut policy.lists, &known.lists);
    // It goes with the process: taking a large one apart takes milliseconds.
    let policy = ManuallyDrop::new(policy);
    let terms = Terms::of(arguments, &policy);
    // Which counters go on is found out meanwhile: it depends on what runs, not on the draft.
    let ((plan, around), draft) = beside(
        large,
        || {
            let plan = Plan::new(&policy, running.as_ref(), &terms.starts);
            let around = match here {
                Some(Ok(here)) if here.is_fresh() => Ok(Around::of(&policy, here)),
                _ => Around::read(&policy),
            };
            (plan, around)
        },
        || Draft::of(&policy),
    );
    // A policy that exceeds a limit is refused before the kernel is asked for anything.
    let draft = match draft {
        Ok(draft) => draft,
        Err(limit) => {
            output.refusal(&limit);
            return Err(Failure::Refused);
        }
    };
    for warning in draft.costs(&policy) {
        output.doubt(&warning);
    }
    // Afterwards may be too late to read it.
    if let Some(session) = SshSession::of_environment() {
        for warning in cuts_ssh(&policy, &session) {
            output.doubt(&warning);
        }
    }
    let prepared = Prepared {
        policy: &policy,
        draft,
        plan,
        around,
        helpers,
    };
    let outcome = enforce(state, running, prepared, &terms)?;
    report(&outcome, output)
}

/// A policy, and what was made of it before anything is changed.
pub struct Prepared<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// What was compiled so far, beside the sets and lists of what runs.
    pub draft: Draft,
    /// How it follows what runs.
    pub plan: Result<Plan>,
    /// What is around it.
    pub around: Result<Around>,
    /// Who will wait for the kernel.
    pub helpers: Helpers,
}

/// What there is on this host, whatever the policy.
struct Here {
    host: Host,
    answers: AnswerFields,
    read: Instant,
}

impl Here {
    /// Looks around in this network namespace.
    fn read() -> Result<Self> {
        let read = Instant::now();
        Ok(Self {
            host: Host::read()?,
            answers: answer_settings(),
            read,
        })
    }

    /// Whether nothing much can have changed since: reading a policy may have waited for the names of hosts.
    fn is_fresh(&self) -> bool {
        self.read.elapsed() < Duration::from_millis(200)
    }
}

/// What a policy meets on this host.
pub struct Around {
    /// Whether the kernel has all that the policy asks for.
    required: Result<()>,
    here: Here,
    tracking: Settings,
}

impl Around {
    /// Looks around in this network namespace.
    pub fn read(policy: &Policy) -> Result<Self> {
        Ok(Self::of(policy, Here::read()?))
    }

    fn of(policy: &Policy, here: Here) -> Self {
        Self {
            required: require::all(policy, &here.host),
            here,
            tracking: Settings::of(&policy.tracking, conntrack_setting),
        }
    }
}

/// Does two things at a time, if they are large enough to be worth a thread.
fn beside<A: Send, B>(
    worth: bool,
    other: impl FnOnce() -> A + Send,
    this: impl FnOnce() -> B,
) -> (A, B) {
    if !worth {
        return (other(), this());
    }
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let this = this();
        let other = other
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (other, this)
    })
}

/// Puts a policy in force that was made beside what ran then.
fn enforce(
    state: &StateDir,
    mut running: Option<Predecessor>,
    mut prepared: Prepared<'_>,
    terms: &Terms,
) -> Result<Outcome> {
    let lock = state.lock()?;
    if lock.waited {
        prepared.around = Around::read(prepared.policy);
    }
    if state.exists() {
        check_owner(state)?;
    }
    if running_id(state)? != running.as_ref().map(|running| running.id) {
        let now = Predecessor::find(state)?;
        let nothing = Known::default();
        let [before, still] =
            [&running, &now].map(|one| one.as_ref().map_or(&nothing, |one| &one.known));
        if still.sets != before.sets || still.lists != before.lists {
            bail!("the sets or lists of the running policy were replaced meanwhile; load again");
        }
        prepared.plan = Plan::new(prepared.policy, now.as_ref(), &terms.starts);
        running = now;
    }
    let first = running.is_none();
    if first && state.exists() {
        // Of a load that died before anything was in force, or of an `unload` that did: its maps may
        // be too small, its sets of another policy, its programs on another hook.
        detach(state)
            .and_then(|()| state.empty())
            .context("cannot remove what a load or `unload` left that was interrupted")?;
    }
    let result = enforce_over(state, &lock, running, prepared, terms);
    if first && result.is_err() {
        // Nothing was in force before, so nothing may be left behind.
        if let Err(error) = detach(state).and_then(|()| state.remove()) {
            return result.context(format!("and what was begun could not be undone: {error:#}"));
        }
    }
    result
}

fn detach(state: &StateDir) -> Result<()> {
    attach::detach_all(state, &Host::read()?)
}

/// Replaces what runs, which `old` is, by a policy.
pub fn enforce_over(
    state: &StateDir,
    lock: &Lock,
    old: Option<Predecessor>,
    prepared: Prepared<'_>,
    options: &Terms,
) -> Result<Outcome> {
    let Prepared {
        policy,
        mut draft,
        plan,
        around,
        helpers,
    } = prepared;
    let Around {
        required,
        here: Here { host, answers, .. },
        tracking,
    } = around?;
    required?;
    draft.track_as(tracking);
    draft.answer_as(answers);
    let had_sets = old.as_ref().is_some_and(|old| !old.known.sets.is_empty());
    let had_lists = old.as_ref().is_some_and(|old| !old.known.lists.is_empty());
    let first = old.is_none();
    let running = old.as_ref().map(|old| old.generation);
    let plan = plan?;
    let generation = plan.generation;
    let open = old.map(|old| old.maps);
    // The kernel takes about as long for its part as the rest takes to compile and to store.
    let (ready, tables, stored) = thread::scope(|scope| {
        let (give, meta) = mpsc::sync_channel(1);
        let plan = &plan;
        let ready = scope.spawn(move || {
            // Whoever does not want it has failed.
            let _ = give.send(plan.describe(policy));
            Ready::make(state, lock, policy, plan, open, options.hook)
        });
        // Without it, the thread has failed: its answer is looked at below.
        let meta = || meta.recv().unwrap_or_default();
        let mut tables = draft.finish(&plan.slots, generation, meta);
        tables.set_clock(clock::read());
        let stored = store(&tables.cells);
        let ready = ready
            .join()
            .map_err(|_| anyhow!("preparing the kernel's maps panicked"))??;
        stored.map(|stored| (ready, tables, stored))
    })?;
    let Ready {
        mut maps,
        mut programs,
        via,
        settled,
    } = ready;
    let next = Next {
        generation,
        cells: &tables.cells,
        patterns: &tables.patterns,
    };
    let on_trial = state.fact(Fact::Trial);
    if let Some(period) = options.trial {
        Trial::begin(state, lock, running, generation, period)?;
    }
    for (fact, word) in [
        (Fact::Xdp, options.xdp.name()),
        (Fact::FastPath, options.fast_path.name()),
    ] {
        state.set_term(fact, running, generation, word)?;
    }
    let mut problems = Vec::new();
    let mut import = None;
    let interfaces = if first {
        // The programs let everything pass while there is no policy, so that they can be on every
        // interface before the first one takes effect, on all of them at once.
        let interfaces = attach_all(state, &host, &mut programs, via, options.xdp)?;
        let taken = if options.import {
            // As near to the flip as can be: what begins in between is not known here.
            take_over(&mut maps, &host)
        } else {
            Ok(None)
        };
        replace(&mut maps, &host, &next, stored, &settled, helpers)?;
        match taken {
            Ok(taken) => import = taken,
            Err(error) => problems.push(format!(
                "not all connections that the kernel tracks were taken over: {error:#}"
            )),
        }
        interfaces
    } else {
        replace(&mut maps, &host, &next, stored, &settled, helpers)?;
        attach_later(state, &host, &mut maps, &mut programs, via, options.xdp)
            .context("the new policy is in force, but not everywhere")?
    };
    if had_sets {
        sets::prune(&maps, &policy.sets).context("the new policy is in force")?;
    }
    if had_lists {
        lists::prune(&maps, &policy.lists).context("the new policy is in force")?;
    }
    if options.trial.is_none() && on_trial.is_some() {
        // Whoever loads a policy for good has not locked himself out.
        state.forget_fact(Fact::Trial)?;
    }
    Places::make(state, &host, options.fast_path, via)?.apply(&mut maps)?;
    let revoked = options
        .drop_revoked
        .then(|| cut_revoked(state, &host))
        .transpose()
        .context("the new policy is in force, but not all connections were judged by it")?;

    let names = tables.patterns.iter().map(|pattern| &pattern.name);
    let fits = |pattern: &&InterfacePattern| {
        !host
            .interfaces
            .iter()
            .any(|interface| pattern.matches(&interface.name))
    };
    let began = interfaces.iter().any(|attachment| attachment.new);
    Ok(Outcome {
        generation: plan.generation,
        counters: plan.slots.of.len(),
        counters_kept: plan.slots.of.len() - plan.fresh_slots.len(),
        cells: tables.cells.len(),
        missing: names.filter(fits).cloned().collect(),
        hook: via,
        lacking: began.then(probe::lacking).unwrap_or_default(),
        interfaces,
        import,
        revoked,
        problems,
        trial_seconds: options.trial.map(|period| period.as_secs()),
    })
}

/// The kernel's maps and programs, with all in them that the next policy has beside the running one.
struct Ready {
    maps: Maps,
    programs: Programs,
    via: Via,
    settled: Settled,
}

impl Ready {
    fn make(
        state: &StateDir,
        lock: &Lock,
        policy: &Policy,
        plan: &Plan,
        open: Option<Maps>,
        hook: Hook,
    ) -> Result<Self> {
        let (mut maps, programs) = prepare(state, lock, plan.places, open)?;
        let via = Via::choose(state, hook)?;
        let settled = state.settled(lock)?;
        sets::fill(&mut maps, &policy.sets)?;
        lists::fill(&maps, &policy.lists)?;
        set_counters(&maps, &plan.fresh_slots)?;
        Ok(Self {
            maps,
            programs,
            via,
            settled,
        })
    }
}

fn attach_later(
    state: &StateDir,
    host: &Host,
    maps: &mut Maps,
    programs: &mut Programs,
    via: Via,
    xdp: XdpMode,
) -> Result<Vec<Attachment>> {
    let interfaces = attach_all(state, host, programs, via, xdp)?;
    prune_devices(maps, host)?;
    Ok(interfaces)
}

fn report(outcome: &Outcome, output: &mut Output) -> Result<(), Failure> {
    for finding in &outcome.lacking {
        output.say(format_args!("note: {finding}"));
    }
    for attachment in &outcome.interfaces {
        for problem in &attachment.problems {
            output.warning(format_args!("{}: {problem}", attachment.interface));
        }
    }
    for problem in &outcome.problems {
        output.warning(problem);
    }
    if let Some(left) = outcome.import.filter(|import| import.redirected > 0) {
        output.warning(format_args!(
            "{} connections that the kernel redirects to this host itself, or that this host has opened \
             and the kernel redirects, are not taken over: they end when iptables' rules are removed",
            left.redirected
        ));
    }
    if let Some(left) = outcome.import.filter(|import| import.others > 0) {
        output.warning(format_args!(
            "{} connections are not taken over: one direction is in a zone of its own, or they are of a protocol \
             that is not translated, or there is no room for them",
            left.others
        ));
    }
    if !outcome.missing.is_empty() {
        let names: Vec<&str> = outcome.missing.iter().map(|p| p.0.as_str()).collect();
        output.warning(format_args!(
            "the policy names interfaces that do not exist now: {}; `fwbpf daemon` attaches to \
             interfaces when they appear, otherwise load again then",
            names.join(", ")
        ));
    }
    if output.json {
        return output.value(outcome);
    }
    let names: Vec<&str> = outcome
        .interfaces
        .iter()
        .map(|attachment| attachment.interface.as_str())
        .collect();
    output.line(format_args!(
        "Generation {} is in force on {}: {} counters, {} of them carried on.",
        outcome.generation,
        names.join(", "),
        outcome.counters,
        outcome.counters_kept,
    ))?;
    if let Some(import) = &outcome.import {
        output.line(format_args!(
            "{} connections were taken over from the kernel's tracking.",
            import.taken
        ))?;
    }
    if let Some(Revoked { cut, undecided }) = outcome.revoked {
        output.line(format_args!(
            "{cut} connections were cut that this policy would not let begin."
        ))?;
        if undecided > 0 {
            output.line(format_args!(
                "{undecided} connections were kept of which that is not certain: it depends on rules \
                 that ask what is not known any more."
            ))?;
        }
    }
    let Some(seconds) = outcome.trial_seconds else {
        return Ok(());
    };
    output.line(format_args!(
        "It is on trial: open a new connection to this machine and run `fwbpf confirm` there. \
         Unless that happens within {seconds} seconds, what was before comes back."
    ))
}
