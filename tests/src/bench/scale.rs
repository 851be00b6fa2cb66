//! Case 2: rules do not matter.

use anyhow::Result;
use fw_user::policy::model::Family;

use super::Settings;
use super::chart::{self, Point};
use super::contender::{Arena, Contender};
use super::flood::{self, flood, flooded};
use super::lab::{HOST, HOST6};
use super::policies;
use super::report::{Bar, CaseReport, Outcome, Row, Table};
use super::rules::{Shape, policy};

/// The same numbers make the same rules.
const SEED: u64 = 3;

/// How many rules a bar speaks of.
const BARS: [(usize, f64); 2] = [(1_000, 20.0), (10_000, 200.0)];

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut arenas = flood::arenas(settings, &policies::guide())?;
    arenas.retain(|(contender, _)| contender.has_rules() || *contender == Contender::FloorDrop);
    let (sizes, shapes): (&[usize], &[Shape]) = if settings.quick {
        (&[1_000, 10_000], &[Shape::Blocklist, Shape::Firewall])
    } else {
        (&[100, 1_000, 10_000, 100_000], &Shape::ALL)
    };
    let mut report = CaseReport {
        case: 2,
        title: "a flood dropped after rules that do not match",
        tables: Vec::new(),
        bars: Vec::new(),
        notes: vec![
            "nft: one set for the first three shapes; firewall-like rules overlap and differ in \
             verdict, which no set can hold, so there it has a rule for each"
                .into(),
        ],
    };
    for (family, name) in [(Family::Ipv4, "IPv4"), (Family::Ipv6, "IPv6")] {
        if settings.quick && family == Family::Ipv6 {
            continue;
        }
        let mut measured = Vec::new();
        let guide = guide_alone(settings, &mut arenas, family, name)?;
        for shape in shapes {
            for count in sizes {
                let title = format!("{}, {count} rules, {name}", shape.name());
                let rows = setting(settings, &title, &mut arenas, *shape, family, *count)?;
                let table = flood::table(title, rows);
                report.bars.extend(demands(&guide, &table, *shape, *count));
                measured.push((*shape, *count, table));
            }
        }
        if let Some(folder) = &settings.charts {
            let points: Vec<_> = measured
                .iter()
                .map(|(shape, rules, table)| Point {
                    shape: *shape,
                    rules: *rules,
                    table,
                })
                .collect();
            let path = folder.join(format!("rules-{}.svg", name.to_lowercase()));
            let title = format!("UDP flood dropped after rules that do not match, {name}");
            chart::draw(&path, &title, &points)?;
            report.notes.push(format!("drawn: {}", path.display()));
        }
        report.tables.push(guide);
        report
            .tables
            .extend(measured.into_iter().map(|(_, _, table)| table));
    }
    Ok(report)
}

fn guide_alone(
    settings: &Settings,
    arenas: &mut [(Contender, Result<Arena>)],
    family: Family,
    name: &str,
) -> Result<Table> {
    let title = format!("the guide alone, {name}");
    for (_, arena) in arenas.iter_mut() {
        if let Ok(arena) = arena {
            arena.loaded.load(&policies::guide())?;
        }
    }
    let rows = flooded(settings, &title, arenas, &[], flood(host(family), false))?;
    Ok(flood::table(title, rows))
}

fn setting(
    settings: &Settings,
    title: &str,
    arenas: &mut [(Contender, Result<Arena>)],
    shape: Shape,
    family: Family,
    count: usize,
) -> Result<Vec<Row>> {
    let policy = policy(shape, family, count, SEED);
    let mut left_out = Vec::new();
    for (contender, arena) in arenas.iter_mut() {
        settings.check()?;
        let Ok(arena) = arena else { continue };
        if let Some(why) = too_long(*contender, shape, count) {
            left_out.push((*contender, Outcome::NotRun(why.into())));
            continue;
        }
        settings.step(&format!("{title}: loading {}", contender.name()));
        if let Err(error) = arena.loaded.load(&policy) {
            left_out.push((*contender, Outcome::Failed(format!("{error:#}"))));
        }
    }
    flooded(
        settings,
        title,
        arenas,
        &left_out,
        flood(host(family), false),
    )
}

/// Whether measuring would take minutes for a number that nobody doubts.
fn too_long(contender: Contender, shape: Shape, count: usize) -> Option<&'static str> {
    let goes_through = match contender {
        Contender::IptablesNft => true,
        Contender::Nft => shape == Shape::Firewall,
        _ => false,
    };
    (goes_through && count >= 100_000)
        .then_some("its rules are evaluated one after the other; 10,000 take long enough")
}

fn host(family: Family) -> std::net::IpAddr {
    match family {
        Family::Ipv4 => HOST,
        Family::Ipv6 => HOST6,
    }
}

fn demands(guide: &Table, table: &Table, shape: Shape, count: usize) -> Vec<Bar> {
    const FWBPF: [Contender; 2] = [Contender::FwbpfXdp, Contender::FwbpfTcx];
    let title = &table.title;
    let mut bars = Vec::new();
    for fwbpf in FWBPF {
        let name = fwbpf.name();
        let net = table.net(fwbpf);
        if count == 10_000 {
            let limit = match shape {
                Shape::Blocklist | Shape::HostPort => 2.0,
                Shape::Acl | Shape::Firewall => 5.0,
            };
            let of_guide = net.zip(guide.net(fwbpf)).map(|(net, guide)| net / guide);
            bars.push(Bar::at_most(
                format!("{title}: {name}, net, of its own net with the guide alone"),
                of_guide,
                limit,
            ));
        }
        if let Some((_, limit)) = BARS.iter().find(|(rules, _)| *rules == count) {
            let legacy = table.net(Contender::IptablesLegacy);
            bars.push(Bar::at_least(
                format!("{title}: iptables-legacy's net, of {name}'s"),
                legacy.zip(net).map(|(legacy, net)| legacy / net),
                *limit,
            ));
        }
        if count == 100_000 {
            bars.push(Bar::at_least(
                format!("{title}: {name} loads them (1: it does)"),
                Some(f64::from(u8::from(net.is_some()))),
                1.0,
            ));
        }
    }
    bars
}
