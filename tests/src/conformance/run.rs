//! The whole test: many trials on several pairs of labs, and what is printed about them.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use fw_common::abi::stat::Stat;
use fw_user::policy::model::Family;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::compare::{self, Difference, Pair, Trial};
use super::differences::prepare_reference;
use super::grammar::Rules;
use super::minimise::minimise;
use super::random_ports::{OTHER_DRAWS, TWIN_RUNS};
use super::side::{self, Side};
use super::traffic::{Traffic, Ways};
use crate::lab::{Firewall, Fwbpf, Iptables};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rule sets for each IP version.
    pub rulesets: usize,
    /// Packets for each rule set.
    pub packets: usize,
    /// Where the random numbers begin.
    pub seed: u64,
    /// IP versions.
    pub families: Vec<Family>,
    /// The firewall under test.
    pub tested: Tested,
    /// Pairs of labs that work side by side.
    pub jobs: usize,
    /// How many divergences are minimised.
    pub minimise: usize,
    /// Only this trial, by the number that a report names.
    pub only: Option<usize>,
    /// Whether the rules of the firewall under test are falsified.
    pub sabotage: Option<Sabotage>,
    /// Options of every `fwbpf load`.
    pub load_options: Vec<String>,
    /// Ends the test at the next packet when set, so that the labs are removed.
    pub interrupted: &'static AtomicBool,
}

/// The firewall under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tested {
    /// This binary of fwbpf.
    Fwbpf(PathBuf),
    /// fwbpf's datapath, simulated.
    Simulated,
    /// iptables itself.
    Iptables,
}

/// How the test is shown a wrong firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A rule is left out.
    Rule,
    /// The policies are turned around.
    Policy,
}

/// The sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rule sets compared.
    pub rulesets: usize,
    /// Packets compared.
    pub packets: usize,
    /// Rule sets that made a difference.
    pub divergences: usize,
    /// Rule sets that made one only with one draw of random ports.
    pub draws: usize,
    /// Rule sets with which iptables never comes to the same as iptables, as draws decide.
    pub undecided: usize,
    /// Rule sets in which a flow found no name for its way.
    pub nameless: usize,
    /// Rule sets that count connections, and made a difference only once.
    pub late: usize,
    /// Rule sets whose counters are not compared, as an error of the host's was routed anew.
    pub rerouted: usize,
    /// Rule sets that differ and do not count, as a connection answers itself.
    pub mirrored: usize,
    /// Packets that took the fast path, minimisation included.
    pub fast_path: u64,
}

/// Runs the test. Reports go to standard output, progress to standard error.
pub fn run(options: &Options) -> Result<Outcome> {
    let total = options.rulesets * options.families.len();
    let shared = Shared {
        next: AtomicUsize::new(0),
        total,
        started: Instant::now(),
        outcome: Mutex::new(Outcome::default()),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.clamp(1, total.max(1)))
            .map(|job| {
                let shared = &shared;
                scope.spawn(move || work(options, shared, job))
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let outcome = *shared.outcome.lock().expect("no worker panicked");
    Ok(outcome)
}

struct Shared {
    next: AtomicUsize,
    total: usize,
    started: Instant,
    outcome: Mutex<Outcome>,
}

fn work(options: &Options, shared: &Shared, job: usize) -> Result<()> {
    stay_on_one_cpu(job);
    let mut pair = pair(options, job)?;
    compare::ensure_loadable(&mut pair)?;
    let mut ran = false;
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.total {
            // With `only`, there may be nothing that this worker loaded.
            let sent_on = if ran {
                count(&pair, Stat::FastPath)?
            } else {
                0
            };
            let mut outcome = shared.outcome.lock().expect("no worker panicked");
            outcome.fast_path += sent_on;
            outcome.rerouted += pair.rerouted;
            outcome.mirrored += pair.mirrored;
            return Ok(());
        }
        if options.only.is_some_and(|only| only != number) {
            continue;
        }
        ran = true;
        let trial = trial(options, number);
        let difference = difference_of(options, job, &mut pair, &trial, shared)
            .with_context(|| format!("trial {number}"))?;
        shared.finished(&trial, difference.is_some());
        if let Some(difference) = difference {
            report(options, shared, &mut pair, number, &trial, &difference)?;
        }
    }
}

/// How many packets fwbpf has counted for this reason; nothing is to be known of others.
fn count(pair: &Pair, stat: Stat) -> Result<u64> {
    let Ok(status) = pair.tested.firewall.status() else {
        return Ok(0);
    };
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let list = if stat.is_drop() { "drops" } else { "events" };
    let events = status[list].as_array().into_iter().flatten();
    Ok(events
        .filter(|event| event["name"] == stat.name())
        .filter_map(|event| event["count"].as_u64())
        .sum())
}

/// Runs a trial again. Difference 19: also whether a flow found no name for its way, so that it does not count.
fn again(pair: &mut Pair, trial: &Trial) -> Result<(Option<Difference>, bool)> {
    let names_may_lack = trial.rules.translate_destinations();
    let refused = |pair: &Pair| {
        if names_may_lack {
            count(pair, Stat::NoTransitName)
        } else {
            Ok(0)
        }
    };
    let before = refused(pair)?;
    let difference = pair.run(trial)?;
    Ok((difference, refused(pair)? > before))
}

/// Runs a trial; again with other random ports if a draw may have made the difference.
fn difference_of(
    options: &Options,
    job: usize,
    pair: &mut Pair,
    trial: &Trial,
    shared: &Shared,
) -> Result<Option<Difference>> {
    let Some(first) = pair.run(trial)? else {
        return Ok(None);
    };
    let drew = pair.reference.drew_ports() || pair.tested.drew_ports();
    let late = trial.rules.count_connections();
    for turn in 0..=if drew { OTHER_DRAWS } else { 0 } {
        let (difference, nameless) = again(pair, trial)?;
        let mut outcome = shared.outcome.lock().expect("no worker panicked");
        let reason = match difference {
            _ if nameless => &mut outcome.nameless,
            Some(_) => continue,
            None if turn == 0 && late => &mut outcome.late,
            None if drew => &mut outcome.draws,
            None => return Ok(Some(first)),
        };
        *reason += 1;
        return Ok(None);
    }
    if drew && options.tested != Tested::Iptables && !iptables_agrees(options, job, trial)? {
        let mut outcome = shared.outcome.lock().expect("no worker panicked");
        outcome.undecided += 1;
        return Ok(None);
    }
    Ok(Some(first))
}

/// Difference 3: whether iptables comes to the same as iptables, with whatever ports both draw.
fn iptables_agrees(options: &Options, job: usize, trial: &Trial) -> Result<bool> {
    let twins = Options {
        tested: Tested::Iptables,
        sabotage: None,
        ..options.clone()
    };
    let mut twins = pair(&twins, job)?;
    for _ in 0..TWIN_RUNS {
        if twins.run(trial)?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many of the trials have bridges that hand over what they switch.
const SWITCHED: f64 = 0.25;

/// The trial of this number: the same for the same seed, whatever else runs.
fn trial(options: &Options, number: usize) -> Trial {
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    random.set_stream(number as u64);
    let family = options.families[number % options.families.len()];
    let real = options.tested != Tested::Simulated;
    let ways = Ways {
        loopback: real,
        switched: real && random.random_bool(SWITCHED) && side::can_hand_over(),
    };
    let mut traffic = Traffic::generate(&mut random, family, options.packets, ways);
    let rules = Rules::generate(&mut random, family, &traffic.flows);
    if rules.ask_for_lengths() {
        // Difference 2.
        traffic.send_whole();
    }
    let destinations = rules.translate_destinations();
    let translates = destinations || rules.translate_sources();
    if translates || ways.switched || rules.change_congestion() {
        // Difference 2.
        traffic.send_in_order();
    }
    // Difference 25.
    let routed_early = ways.switched && family == Family::Ipv6 && translates;
    if destinations || routed_early {
        // Difference 18.
        traffic.keep_alive(rules.leave_untracked() || routed_early);
    }
    Trial {
        family,
        rules,
        traffic,
    }
}

fn pair(options: &Options, job: usize) -> Result<Pair> {
    let iptables = |server| -> Result<Box<dyn Firewall>> { Ok(Box::new(Iptables::new(server))) };
    let reference = Side::new(&format!("conformance-ref{job}"), iptables)?;
    prepare_reference(&reference.server)?;
    let name = format!("conformance-dut{job}");
    let tested = match &options.tested {
        Tested::Simulated => Side::simulated(&name)?,
        Tested::Fwbpf(binary) => Side::new(&name, |server| {
            let options: Vec<&str> = options.load_options.iter().map(String::as_str).collect();
            let fwbpf = Fwbpf::new(server, binary.clone())?.with_load_options(&options);
            Ok(Box::new(fwbpf))
        })?,
        Tested::Iptables => {
            let side = Side::new(&name, iptables)?;
            prepare_reference(&side.server)?;
            side
        }
    };
    if options
        .load_options
        .iter()
        .any(|option| option == "--fast-path=on")
    {
        tested.take_redirected()?;
    }
    Ok(Pair {
        reference,
        tested,
        interrupted: options.interrupted,
        rerouted: 0,
        mirrored: 0,
        falsify: match options.sabotage {
            None => compare::unchanged,
            Some(Sabotage::Rule) => compare::without_a_rule,
            Some(Sabotage::Policy) => compare::with_another_policy,
        },
    })
}

fn report(
    options: &Options,
    shared: &Shared,
    pair: &mut Pair,
    number: usize,
    trial: &Trial,
    difference: &Difference,
) -> Result<()> {
    let so_far = shared
        .outcome
        .lock()
        .expect("no worker panicked")
        .divergences;
    let mut text = format!(
        "divergence in trial {number} (again: --seed {} --only {number})\n",
        options.seed
    );
    if so_far > options.minimise {
        text += "not minimised\n";
        let mut trial = trial.clone();
        if let Difference::Delivery { step, .. } = difference {
            let at = *step;
            let last = trial.traffic.steps[at].clone();
            trial.traffic.steps = vec![last];
            text += &format!("only packet {at} is shown\n");
        } else {
            trial.traffic.steps.clear();
        }
        text += &difference.report(&trial, pair);
    } else {
        match minimise(pair, trial)? {
            Some((small, difference)) => text += &difference.report(&small, pair),
            None => {
                text += "it did not happen again when the trial was run again\n";
                text += &difference.report(trial, pair);
            }
        }
    }
    println!("{text}");
    Ok(())
}

impl Shared {
    fn finished(&self, trial: &Trial, differs: bool) {
        let mut outcome = self.outcome.lock().expect("no worker panicked");
        outcome.rulesets += 1;
        outcome.packets += trial.traffic.steps.len();
        outcome.divergences += usize::from(differs);
        let step = (self.total / 10).max(1);
        if outcome.rulesets.is_multiple_of(step) {
            eprintln!(
                "{} of {} rule sets, {} packets, {} divergences, {:.0} s",
                outcome.rulesets,
                self.total,
                outcome.packets,
                outcome.divergences,
                self.started.elapsed().as_secs_f32()
            );
        }
    }
}

/// Packets are processed on the CPU that sends them, in order, before the send call returns.
fn stay_on_one_cpu(job: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    // A machine that forbids it only makes the test wait more often.
    let _ = set
        .set(job % cpus)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
}
