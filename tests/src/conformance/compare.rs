//! One rule set and its traffic on both sides.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fw_user::policy::model::Family;

use super::counters::Counts;
use super::grammar::Rules;
use super::side::{Seen, Side};
use super::traffic::{Place, Step, Traffic};
use super::write::sender;
use crate::packet::describe;

/// What is tried: the rules on either side are the same unless the test tests itself.
#[derive(Clone, Debug)]
pub struct Trial {
    /// IP version.
    pub family: Family,
    /// The rules.
    pub rules: Rules,
    /// The packets.
    pub traffic: Traffic,
}

/// The first thing that was not the same.
#[derive(Clone, Debug)]
pub enum Difference {
    /// The firewall under test refuses what iptables takes.
    Refused(String),
    /// Something else came out.
    Delivery {
        /// Number of the step.
        step: usize,
        /// What the reference let out.
        reference: Vec<Seen>,
        /// What the firewall under test let out.
        tested: Vec<Seen>,
    },
    /// The dump of the rules is another text.
    Spelling(Vec<String>),
    /// Something else was counted.
    Counters(Vec<String>),
}

/// Both labs.
pub struct Pair {
    /// iptables.
    pub reference: Side,
    /// The firewall under test.
    pub tested: Side,
    /// How the rules of the firewall under test are falsified, for `--sabotage`.
    pub falsify: fn(&Rules) -> Rules,
    /// Whether to stop, so that the labs are removed.
    pub interrupted: &'static AtomicBool,
    /// In how many trials counters, or what came later, were not compared (differences 18 and 22).
    pub rerouted: usize,
    /// How many trials that differ do not count, as a connection answers itself (difference 26).
    pub mirrored: usize,
}

/// More than two ticks of a kernel with 250 a second, Debian's.
const JIFFIES: Duration = Duration::from_millis(9);

/// A step is processed before its send call returns, except when the kernel defers the work to a
/// thread because of load. Only when the sides differ is it worth waiting for that.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(2),
    Duration::from_millis(20),
    Duration::from_millis(100),
];

impl Pair {
    /// Runs the trial on both sides.
    pub fn run(&mut self, trial: &Trial) -> Result<Option<Difference>> {
        if let Some(refusal) = self.load(trial)? {
            return Ok(Some(refusal));
        }
        let tables: Vec<&str> = trial.rules.tables.iter().map(|table| table.name).collect();
        let waits = trial.rules.count_connections();
        let mut opened = HashSet::new();
        let mut asked = HashSet::new();
        for (number, step) in trial.traffic.steps.iter().enumerate() {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            if waits && step.has_syn() {
                // Difference 20.
                if step.is_syn() && !opened.insert(trial.traffic.ends(step)) {
                    continue;
                }
                asked.insert((step.flow, step.way));
                std::thread::sleep(JIFFIES);
            }
            // Difference 20, too.
            let forth = (step.flow, step.way.reversed());
            if asked.contains(&forth) && !self.reference.has_come_out(forth) {
                continue;
            }
            if let Some(difference) = self.step(trial, number, step)? {
                let sources = trial.rules.translate_sources();
                if self.reference.errors_differ_in_place(&self.tested)
                    || sources && difference.is_of_resets_to_loopback()
                {
                    self.rerouted += 1;
                    return Ok(None);
                }
                return Ok(self.unless_mirrored(difference));
            }
        }
        let reference = read(&self.reference, trial.family, &tables)?;
        let tested = read(&self.tested, trial.family, &tables)?;
        let difference = compare_counts(&reference, &tested);
        if let Some(Difference::Counters(_)) = difference
            && self.reference.errors_at() != self.tested.errors_at()
        {
            self.rerouted += 1;
            return Ok(None);
        }
        Ok(difference.and_then(|difference| self.unless_mirrored(difference)))
    }

    fn unless_mirrored(&mut self, difference: Difference) -> Option<Difference> {
        let mirrored = self.reference.is_mirrored();
        self.mirrored += usize::from(mirrored);
        (!mirrored).then_some(difference)
    }

    fn load(&mut self, trial: &Trial) -> Result<Option<Difference>> {
        let text = trial.rules.text();
        let sets = &trial.rules.sets.text;
        self.reference
            .firewall
            .give_sets(sets)
            .with_context(|| format!("ipset refuses what was generated:\n{sets}"))?;
        self.tested.firewall.give_sets(sets)?;
        self.reference.hand_over(trial.traffic.switched)?;
        self.tested.hand_over(trial.traffic.switched)?;
        self.reference
            .firewall
            .load(&[(trial.family, &text)])
            .with_context(|| format!("iptables refuses what was generated:\n{text}"))?;
        let falsified = (self.falsify)(&trial.rules).text();
        if let Err(error) = self
            .tested
            .firewall
            .load_anew(&[(trial.family, &falsified)])
        {
            return Ok(Some(Difference::Refused(format!("{error:#}"))));
        }
        let draws = text.contains("--random");
        let reroutes = trial.family == Family::Ipv6 && trial.rules.change_what_is_sent();
        self.reference.reset(draws, reroutes)?;
        self.tested.reset(draws, reroutes)?;
        Ok(None)
    }

    fn step(&mut self, trial: &Trial, number: usize, step: &Step) -> Result<Option<Difference>> {
        let Trial {
            family, traffic, ..
        } = trial;
        self.reference.send(traffic, step)?;
        self.tested.send(traffic, step)?;
        let mut reference = self
            .reference
            .receive(traffic, step, *family, Duration::ZERO)?;
        let mut tested = self
            .tested
            .receive(traffic, step, *family, Duration::ZERO)?;
        for patience in PATIENCE {
            if reference == tested {
                return Ok(None);
            }
            reference.extend(self.reference.receive(traffic, step, *family, patience)?);
            tested.extend(self.tested.receive(traffic, step, *family, patience)?);
            reference.sort();
            tested.sort();
        }
        Ok((reference != tested).then_some(Difference::Delivery {
            step: number,
            reference,
            tested,
        }))
    }
}

impl Difference {
    /// Whether the two would be the same without resets to ::1, which are delivered on fwbpf's side and not on
    /// iptables' (difference 22).
    fn is_of_resets_to_loopback(&self) -> bool {
        let Self::Delivery {
            reference, tested, ..
        } = self
        else {
            return false;
        };
        let delivered = |seen: &[Seen], is: bool| {
            let mut resets = seen.iter().filter(|one| one.resets_to_loopback);
            resets.all(|one| (one.place == Place::Server) == is)
        };
        let rest = |seen: &[Seen]| -> Vec<Seen> {
            let others = seen.iter().filter(|one| !one.resets_to_loopback);
            others.cloned().collect()
        };
        delivered(reference, false) && delivered(tested, true) && rest(reference) == rest(tested)
    }

    /// The difference, and what led to it, in words.
    pub fn report(&self, trial: &Trial, pair: &Pair) -> String {
        let mut text = String::new();
        let version = match trial.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        for line in trial.rules.sets.text.lines() {
            let _ = writeln!(text, "    {line}");
        }
        let _ = writeln!(text, "rules ({version}):");
        for line in trial.rules.text().lines() {
            let _ = writeln!(text, "    {line}");
        }
        if !matches!(self, Self::Refused(_)) {
            let _ = writeln!(text, "packets:");
            for (number, step) in trial.traffic.steps.iter().enumerate() {
                let flow = &trial.traffic.flows[step.flow];
                let from = sender(flow, step.way).place;
                for packet in pair.reference.packets(&trial.traffic, step) {
                    let _ = writeln!(text, "    {number}. from {from}: {}", describe(&packet));
                }
            }
        }
        match self {
            Self::Refused(error) => {
                let _ = writeln!(
                    text,
                    "iptables loads these rules, the other refuses:\n{error}"
                );
            }
            Self::Delivery {
                step,
                reference,
                tested,
            } => {
                let _ = writeln!(text, "after packet {step}:");
                for (name, seen) in [
                    (pair.reference.firewall.name(), reference),
                    (pair.tested.firewall.name(), tested),
                ] {
                    if seen.is_empty() {
                        let _ = writeln!(text, "    {name}: nothing came out");
                    }
                    for one in seen {
                        let sums = if one.sound { "" } else { ", CHECKSUM WRONG" };
                        let words = describe(&one.bytes).replace(", checksum wrong", "");
                        let _ = writeln!(text, "    {name}: at {}: {words}{sums}", one.place);
                    }
                }
                text += &first_bytes_that_differ(reference, tested);
            }
            Self::Spelling(lines) | Self::Counters(lines) => {
                for line in lines {
                    let _ = writeln!(text, "    {line}");
                }
            }
        }
        text
    }
}

/// When both let the same number out at the same places, the bytes are what differs.
fn first_bytes_that_differ(reference: &[Seen], tested: &[Seen]) -> String {
    let mut text = String::new();
    for (left, right) in reference.iter().zip(tested) {
        if left.place == right.place && left.bytes != right.bytes {
            let hex =
                |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
            let at = left
                .bytes
                .iter()
                .zip(&right.bytes)
                .position(|(a, b)| a != b)
                .unwrap_or(left.bytes.len().min(right.bytes.len()));
            let _ = writeln!(
                text,
                "    byte {at} differs (checksums blanked):\n      {}\n      {}",
                hex(&left.bytes),
                hex(&right.bytes)
            );
        }
    }
    text
}

fn read(side: &Side, family: Family, tables: &[&str]) -> Result<Counts> {
    let text = side.firewall.save(family)?;
    Counts::parse(&text, tables).with_context(|| format!("{} printed", side.firewall.name()))
}

fn compare_counts(reference: &Counts, tested: &Counts) -> Option<Difference> {
    let texts = |counts: &Counts| -> Vec<String> {
        counts.entries.iter().map(|e| e.text.clone()).collect()
    };
    let (left, right) = (texts(reference), texts(tested));
    let mut lines = Vec::new();
    for (index, entry) in reference.entries.iter().enumerate() {
        let Some(other) = tested.entries.get(index) else {
            break;
        };
        let expected = entry.count;
        if expected != other.count {
            lines.push(format!(
                "{} {}: expected [{}:{}], counted [{}:{}]",
                entry.table,
                entry.text,
                expected.packets,
                expected.bytes,
                other.count.packets,
                other.count.bytes
            ));
        }
    }
    if left.len() == right.len() && !lines.is_empty() {
        return Some(Difference::Counters(lines));
    }
    if left != right {
        let changed = left
            .iter()
            .map(|line| (line, right.contains(line), "only iptables prints"))
            .chain(
                right
                    .iter()
                    .map(|line| (line, left.contains(line), "only the other prints")),
            )
            .filter(|(_, both, _)| !both)
            .map(|(line, _, who)| format!("{who}: {line}"));
        return Some(Difference::Spelling(changed.collect()));
    }
    None
}

/// The identity, for trials that are meant.
pub fn unchanged(rules: &Rules) -> Rules {
    rules.clone()
}

/// Leaves the first rule out that decides something.
pub fn without_a_rule(rules: &Rules) -> Rules {
    let mut rules = rules.clone();
    for table in &mut rules.tables {
        if let Some(at) = table.rules.iter().position(|rule| rule.contains(" -j ")) {
            table.rules.remove(at);
            break;
        }
    }
    rules
}

/// Makes every policy its opposite in filter.
pub fn with_another_policy(rules: &Rules) -> Rules {
    let mut rules = rules.clone();
    for (_, policy) in &mut rules.tables[0].chains {
        *policy = match *policy {
            "ACCEPT" => "DROP",
            "DROP" => "ACCEPT",
            other => other,
        };
    }
    rules
}

/// Refuses nothing at run time: a check that both sides can be had at all.
pub fn ensure_loadable(pair: &mut Pair) -> Result<()> {
    for side in [&pair.reference, &pair.tested] {
        if let Err(error) = side.firewall.clear() {
            bail!("{} does not work here: {error:#}", side.firewall.name());
        }
    }
    Ok(())
}
