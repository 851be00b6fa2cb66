//! Case 3: established flows through the masquerade.

use anyhow::{Context as _, Result};

use super::Settings;
use super::contender::{Arena, Contender};
use super::lab::{HOST, INNER, MACS, SERVER};
use super::measure::{ensure_same, rounds};
use super::policies;
use super::report::{Bar, CaseReport, Outcome, Row, Table};
use super::station::{Cost, Station};
use super::traffic::Traffic;

/// Who forwards.
const CONTENDERS: [Contender; 7] = [
    Contender::FloorForward,
    Contender::NoFirewall,
    Contender::IptablesLegacy,
    Contender::IptablesNft,
    Contender::Nft,
    Contender::FwbpfXdp,
    Contender::FwbpfTcx,
];

/// Inner hosts that share the flows.
const HOSTS: u32 = 250;
/// Every flow has a port of its own, so that the masquerade can keep it, and answers find back.
const FIRST_PORT: u16 = 2_048;
const SERVER_PORT: u16 = 53;

/// Which way packets are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    Back,
}

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut arenas = Vec::new();
    for contender in CONTENDERS {
        settings.check()?;
        settings.step(&format!("setting up {}", contender.name()));
        let arena = settings
            .ask_for(contender)
            .and_then(|()| Arena::new(contender, &settings.object, &policies::guide()));
        arenas.push((contender, arena));
    }
    let mut tables = Vec::new();
    let mut bars = Vec::new();
    for (flows, way) in [
        (1, Way::Out),
        (10_000, Way::Out),
        (60_000, Way::Out),
        (10_000, Way::Back),
    ] {
        let (title, back) = match way {
            Way::Out => (format!("{flows} flows, requests"), false),
            Way::Back => (format!("{flows} flows, answers"), true),
        };
        let rows = forwarded(settings, &title, &mut arenas, flows, way)?;
        let table = Table {
            title,
            unit: "ns/packet",
            floor: None,
            rows,
        };
        if !back {
            bars.extend(demands(&table));
        }
        tables.push(table);
    }
    Ok(CaseReport {
        case: 3,
        title: "established UDP flows forwarded with masquerade",
        tables,
        bars,
        notes: vec![
            "without a firewall nothing is translated; both include the generator's and the \
             sink's own cost"
                .into(),
        ],
    })
}

fn forwarded(
    settings: &Settings,
    title: &str,
    arenas: &mut [(Contender, Result<Arena>)],
    flows: u32,
    way: Way,
) -> Result<Vec<Row>> {
    for (_, slot) in arenas.iter_mut() {
        if let Ok(arena) = slot
            && let Err(error) = establish(arena, flows)
        {
            // What cannot carry the flows is shown as failed, here and from now on.
            *slot = Err(error.context(format!("opening {flows} flows")));
        }
    }
    let mut rows = rounds(
        settings,
        title,
        arenas,
        &[],
        &mut |arena, packets| match way {
            Way::Out => out(arena, packets),
            Way::Back => back(arena, packets),
        },
    )?;
    for row in &mut rows {
        if row.contender == Contender::NoFirewall {
            row.remark = Some("no masquerade".into());
        }
        if row.contender == Contender::FloorForward && way == Way::Back {
            row.outcome = Outcome::NotRun("the floor has one direction only".into());
        }
    }
    Ok(rows)
}

/// From the inner hosts to the server.
pub fn requests(flows: u32) -> Traffic {
    Traffic {
        macs: [MACS[3], MACS[2]],
        source: INNER,
        addresses: HOSTS.min(flows),
        destination: SERVER,
        tcp: false,
        ports: [FIRST_PORT, SERVER_PORT],
        port_count: flows,
        vary_destination: false,
    }
}

/// From the server to the masquerade's address.
pub fn answers(flows: u32) -> Traffic {
    Traffic {
        macs: [MACS[0], MACS[1]],
        source: SERVER,
        addresses: 1,
        destination: HOST,
        tcp: false,
        ports: [SERVER_PORT, FIRST_PORT],
        port_count: flows,
        vary_destination: true,
    }
}

/// Opens the flows: a request, its answer, and a request again, for each.
pub fn establish(arena: &mut Arena, flows: u32) -> Result<()> {
    arena.lan.plan(requests(flows))?;
    let masqueraded = translates(arena.contender);
    arena.wan.plan(Traffic {
        // Nobody translates back without a firewall: the answers go to an inner host as they are.
        destination: if masqueraded { HOST } else { INNER },
        ..answers(flows)
    })?;
    arena.wan.expect(if masqueraded { HOST } else { INNER })?;
    arena.lan.expect(SERVER)?;
    let flows = u64::from(flows);
    out(arena, flows).context("first requests")?;
    if arena.contender != Contender::FloorForward {
        back(arena, flows).context("answers")?;
    }
    out(arena, flows).context("second requests")?;
    Ok(())
}

fn translates(contender: Contender) -> bool {
    contender != Contender::NoFirewall
}

fn out(arena: &mut Arena, packets: u64) -> Result<Cost> {
    let translated = translates(arena.contender);
    through(&mut arena.lan, &mut arena.wan, packets, translated)
}

fn back(arena: &mut Arena, packets: u64) -> Result<Cost> {
    through(&mut arena.wan, &mut arena.lan, packets, true)
}

/// Sends packets from one end, and makes sure that the other end got all of them, with the source
/// address that they have to have there.
fn through(from: &mut Station, to: &mut Station, packets: u64, check_source: bool) -> Result<Cost> {
    let before = to.sink()?;
    let cost = from.send(packets)?;
    let after = to.sink()?;
    ensure_same("made", packets, cost.packets)?;
    ensure_same("came through", packets, after.total - before.total)?;
    if check_source {
        ensure_same(
            "came through with the right source address",
            packets,
            after.matching - before.matching,
        )?;
    }
    Ok(cost)
}

fn demands(table: &Table) -> Vec<Bar> {
    let ratio = |of, to| Some(table.median(of)? / table.median(to)?);
    let title = &table.title;
    vec![
        Bar::at_most(
            format!("{title}: fwbpf with XDP, total, of the floor's"),
            ratio(Contender::FwbpfXdp, Contender::FloorForward),
            1.6,
        ),
        Bar::at_least(
            format!("{title}: iptables-legacy's total, of fwbpf's with XDP"),
            ratio(Contender::IptablesLegacy, Contender::FwbpfXdp),
            3.0,
        ),
        Bar::at_most(
            format!(
                "{title}: fwbpf with tcx (0.7 where its redirect is exact), of iptables-legacy's"
            ),
            ratio(Contender::FwbpfTcx, Contender::IptablesLegacy),
            0.9,
        ),
    ]
}
