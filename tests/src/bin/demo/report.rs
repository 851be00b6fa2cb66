//! What the demo prints.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use comfy_table::{Cell, Color, ContentArrangement, LineStyle, Table, presets};
use fw_user::policy::model::Family;
use indicatif::{ProgressBar, ProgressStyle};

use crate::probe::{Effect, Probe, Promise};

/// The sandbox.
pub const MAP: &str = "\
  internet 203.0.113.7, admin 192.0.2.2 --- eth0 [ server, fwbpf ] docker0 --- container 172.17.0.2
                                                   |                    `---- container 172.17.0.3
                    host 192.168.50.9 ---------- eth1          (each of them with IPv6 as well)";

/// A probe and what came of it.
pub struct Outcome {
    /// What was tried.
    pub probe: Probe,
    /// What happened.
    pub got: Effect,
    /// The policy's line that decided.
    pub decided: Option<String>,
}

impl Outcome {
    fn is_right(&self) -> bool {
        self.probe.promise.is_kept_by(&self.got) && self.decided.is_some()
    }
}

/// Prints one table for each IP version.
pub fn tables(outcomes: &[Outcome]) {
    for (family, name, file) in [
        (Family::Ipv4, "IPv4", "guide.rules.v4"),
        (Family::Ipv6, "IPv6", "guide.rules.v6"),
    ] {
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header([
                &format!("{name} probe"),
                "expected",
                "got",
                &format!("decided by line of {file}"),
            ]);
        for outcome in outcomes.iter().filter(|o| o.probe.family == family) {
            let color = if outcome.is_right() {
                Color::Green
            } else {
                Color::Red
            };
            table.add_row([
                Cell::new(outcome.probe.what),
                Cell::new(promise(outcome.probe.promise)),
                Cell::new(effect(&outcome.got, outcome.probe.promise)).fg(color),
                Cell::new(outcome.decided.as_deref().unwrap_or("no line counted it")),
            ]);
        }
        println!("{table}\n");
    }
}

/// Prints the sum; true if all came out as promised.
pub fn verdict(outcomes: &[Outcome]) -> bool {
    let right = outcomes.iter().filter(|o| o.is_right()).count();
    println!(
        "{right} of {} probes went as the guide says.",
        outcomes.len()
    );
    for outcome in outcomes.iter().filter(|o| !o.is_right()) {
        println!(
            "  not so: {} ({})",
            outcome.probe.what,
            match outcome.probe.family {
                Family::Ipv4 => "IPv4",
                Family::Ipv6 => "IPv6",
            }
        );
    }
    right == outcomes.len()
}

fn promise(promise: Promise) -> String {
    match promise {
        Promise::Passes => "passes".into(),
        Promise::SeenAs(address) => format!("as {address}"),
        Promise::Blocked => "blocked".into(),
    }
}

fn effect(effect: &Effect, promise: Promise) -> String {
    match (effect, promise) {
        // Two connections from one address: the second's port is all that is new.
        (Effect::Passes(seen), Promise::SeenAs(address)) => {
            format!("as {}", seen.replace(&format!(", {address}:"), ", :"))
        }
        (Effect::Passes(_), Promise::Passes | Promise::Blocked) => "passes".into(),
        (Effect::Blocked, _) => "blocked".into(),
    }
}

/// A spinner on a terminal, a line at the start and at the end elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    started: Instant,
}

impl Progress {
    /// Begins something of unknown length.
    pub fn start(title: &str) -> Self {
        Self::with(
            title,
            ProgressBar::new_spinner,
            "{spinner:.cyan} {prefix} {elapsed:.dim}",
        )
    }

    /// Begins something of `length` steps.
    pub fn counting(title: &str, length: usize) -> Self {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        Self::with(
            title,
            || ProgressBar::new(length),
            "{spinner:.cyan} {prefix} {pos}/{len} {elapsed:.dim}  {wide_msg:.dim}",
        )
    }

    /// Names the step that begins now.
    pub fn step(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(what.to_owned());
        }
    }

    /// Ends it.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "  ok  {} ({:.1} s)",
            self.title,
            self.started.elapsed().as_secs_f64()
        );
    }

    fn with(title: &str, bar: impl FnOnce() -> ProgressBar, style: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = bar().with_prefix(title.to_owned());
            bar.set_style(ProgressStyle::with_template(style).expect("the templates are right"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            eprintln!("- {title} ...");
        }
        Self {
            bar,
            title: title.to_owned(),
            started: Instant::now(),
        }
    }
}
