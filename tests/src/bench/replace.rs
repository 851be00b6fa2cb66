//! Case 7: how long a policy takes to load, and what its replacement does to traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fw_user::policy::model::Family;

use super::Settings;
use super::contender::{Arena, Contender, Loaded, Policy};
use super::flood::flood;
use super::forward::{establish, requests};
use super::lab::{Ends, HOST, PathLab};
use super::policies;
use super::real::alternate;
use super::report::{Bar, CaseReport, Outcome, Row, Spread, Table};
use super::rules::{Shape, policy};

const CONTENDERS: [Contender; 4] = [
    Contender::IptablesLegacy,
    Contender::IptablesNft,
    Contender::Nft,
    Contender::FwbpfTcx,
];

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut report = CaseReport {
        case: 7,
        title: "loading and replacing a policy",
        tables: Vec::new(),
        bars: Vec::new(),
        notes: vec![
            "load: from nothing, fwbpf's programs verified and attached anew; replace: what runs \
             gives way to as many other rules, 0.1 s later. nft: `flush ruleset` and the new one in one \
             transaction, one set for the blocklist"
                .into(),
        ],
    };
    let sizes: &[usize] = if settings.quick {
        &[10, 10_000]
    } else {
        &[10, 10_000, 100_000]
    };
    let shapes: &[Shape] = if settings.quick {
        &[Shape::Blocklist]
    } else {
        &[Shape::Blocklist, Shape::Firewall]
    };
    for shape in shapes {
        for count in sizes {
            times(settings, *shape, *count, &mut report)?;
        }
    }
    let replacements = if settings.quick { 20 } else { 100 };
    under_traffic(settings, replacements, &mut report)?;
    Ok(report)
}

fn times(settings: &Settings, shape: Shape, count: usize, report: &mut CaseReport) -> Result<()> {
    let title = format!("{}, {count} rules", shape.name());
    let policies = [1, 2].map(|seed| policy(shape, Family::Ipv4, count, seed));
    let mut arenas = Vec::new();
    for contender in CONTENDERS {
        let fresh = settings
            .ask_for(contender)
            .and_then(|()| Fresh::new(contender));
        arenas.push((contender, fresh));
    }
    // A failure shows at once; success takes seconds at 100,000 rules.
    let settings = settings.with_rounds(if count > 10_000 { 2 } else { settings.rounds });
    let [load, replace] = alternate(&settings, &title, &mut arenas, |fresh| {
        fresh.measure(&policies)
    })?;
    for (name, rows) in [("load", load), ("replace", replace)] {
        let table = Table {
            title: format!("{name}: {title}"),
            unit: "ms",
            floor: None,
            rows,
        };
        if count >= 10_000 {
            let fastest = [
                Contender::IptablesLegacy,
                Contender::IptablesNft,
                Contender::Nft,
            ]
            .into_iter()
            .filter_map(|peer| table.median(peer))
            .min_by(f64::total_cmp);
            let ratio = table
                .median(Contender::FwbpfTcx)
                .zip(fastest)
                .map(|(fwbpf, fastest)| fwbpf / fastest);
            let claim = format!("{}: fwbpf, of the fastest peer's time", table.title);
            report.bars.push(Bar::at_most(claim, ratio, 0.5));
        }
        report.tables.push(table);
    }
    Ok(())
}

/// A host on which nothing is loaded.
struct Fresh {
    loaded: Loaded,
    _lab: PathLab,
}

impl Fresh {
    fn new(contender: Contender) -> Result<Self> {
        let lab = PathLab::new(&format!("load-{}", contender.name()), Ends::Real)?;
        Ok(Self {
            loaded: Loaded::new(contender, Arc::clone(&lab.host))?,
            _lab: lab,
        })
    }

    /// Milliseconds to load from nothing, and to replace.
    fn measure(&mut self, policies: &[Policy; 2]) -> Result<[f64; 2]> {
        self.loaded.clear()?;
        let load = self.loaded.load(&policies[0])?;
        thread::sleep(PAUSE);
        let replace = self.loaded.load(&policies[1])?;
        Ok([load, replace].map(|time| time.as_secs_f64() * 1e3))
    }
}

/// Between a load and the next: kernels do some of the work behind the command's end, and a load of fwbpf's
/// that follows at once waits until no packet is left that began before the one before.
const PAUSE: Duration = Duration::from_millis(100);
/// Rules in the policies that replace each other under traffic.
const RULES: usize = 1_000;
/// Flows that are forwarded meanwhile.
const FLOWS: u32 = 10_000;
/// Packets that the generator sends between two looks at whether to go on.
const PIECE: u64 = 20_000;

fn under_traffic(settings: &Settings, replacements: u32, report: &mut CaseReport) -> Result<()> {
    let policies = [1, 2].map(|seed| policy(Shape::Firewall, Family::Ipv4, RULES, seed));
    let mut lost = Vec::new();
    let mut let_in = Vec::new();
    for contender in [
        Contender::IptablesLegacy,
        Contender::Nft,
        Contender::FwbpfXdp,
        Contender::FwbpfTcx,
    ] {
        settings.check()?;
        settings.step(&format!("replacing under traffic: {}", contender.name()));
        let result = Arena::new(contender, &settings.object, &policies::guide())
            .and_then(|mut arena| replace_under_traffic(&mut arena, &policies, replacements));
        for (rows, number) in [(&mut lost, 0), (&mut let_in, 1)] {
            let outcome = match &result {
                Ok(numbers) => Outcome::Measured(
                    Spread::of(vec![numbers[number] as f64]).context("one number is there")?,
                ),
                Err(error) => Outcome::Failed(format!("{error:#}")),
            };
            rows.push(Row {
                contender,
                label: result.as_ref().ok().map(|numbers| {
                    format!("{}, {} packets", contender.name(), numbers[number + 2])
                }),
                outcome,
                remark: None,
            });
        }
    }
    for (title, rows) in [
        ("established and forwarded packets that were lost", lost),
        ("packets of a flood that were not dropped", let_in),
    ] {
        let table = Table {
            title: format!("{replacements} replacements of {RULES} rules under traffic: {title}"),
            unit: "packets",
            floor: None,
            rows,
        };
        for fwbpf in [Contender::FwbpfXdp, Contender::FwbpfTcx] {
            report.bars.push(Bar::at_most(
                format!("{title}, {}", fwbpf.name()),
                table.median(fwbpf),
                0.0,
            ));
        }
        report.tables.push(table);
    }
    Ok(())
}

/// What was lost, what was let in, and how many packets that was among.
fn replace_under_traffic(
    arena: &mut Arena,
    policies: &[Policy; 2],
    replacements: u32,
) -> Result<[u64; 4]> {
    arena.loaded.load(&policies[0])?;
    establish(arena, FLOWS)?;
    let half = replacements / 2;

    arena.lan.plan(requests(FLOWS))?;
    let before = arena.wan.sink()?;
    let sent = during(&arena.loaded, policies, half, || {
        arena.lan.send(PIECE).map(|cost| cost.packets)
    })?;
    let lost = sent - (arena.wan.sink()?.matching - before.matching);

    arena.wan.plan(flood(HOST, false))?;
    let seen = arena.wan.sink()?.total;
    // fwbpf's rule keeps its counter over a replacement; the others' begin anew.
    let dropped = arena.loaded.fwbpf().is_some();
    let counted = arena.loaded.dropped(Family::Ipv4)?;
    let flooded = during(&arena.loaded, policies, half, || {
        arena.wan.send(PIECE).map(|cost| cost.packets)
    })?;
    // The host answers what it lets in: nobody listens there.
    let mut let_in = arena.wan.sink()?.total - seen;
    if let (true, Some(before), Some(after)) =
        (dropped, counted, arena.loaded.dropped(Family::Ipv4)?)
    {
        let_in = let_in.max(flooded.abs_diff(after - before));
    }
    Ok([lost, let_in, sent, flooded])
}

/// Sends for as long as the replacements take; returns how much was sent.
fn during(
    loaded: &Loaded,
    policies: &[Policy; 2],
    replacements: u32,
    mut send: impl FnMut() -> Result<u64> + Send,
) -> Result<u64> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                sent += send()?;
            }
            Ok(sent)
        });
        let replaced = (0..replacements as usize)
            .try_for_each(|turn| loaded.load(&policies[(turn + 1) % 2]).map(drop));
        done.store(true, Ordering::Relaxed);
        let sent = sending
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        replaced?;
        sent
    })
}
