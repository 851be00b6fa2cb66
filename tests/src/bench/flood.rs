//! Case 1: a flood that the guide's INPUT chain drops.

use std::net::IpAddr;

use anyhow::Result;

use super::Settings;
use super::contender::{Arena, Contender, Policy, family};
use super::lab::{FLOOD, FLOOD6, HOST, HOST6, MACS};
use super::measure::{ensure_same, rounds};
use super::policies;
use super::report::{Bar, CaseReport, Outcome, Row, Table};
use super::station::Cost;
use super::traffic::Traffic;

/// How many sources a flood has.
pub const SOURCES: u32 = 60_000;

/// Who is flooded.
pub const CONTENDERS: [Contender; 7] = [
    Contender::FloorDrop,
    Contender::NoFirewall,
    Contender::IptablesLegacy,
    Contender::IptablesNft,
    Contender::Nft,
    Contender::FwbpfXdp,
    Contender::FwbpfTcx,
];

/// A flood to a port that no rule allows and no one listens on.
pub fn flood(destination: IpAddr, tcp: bool) -> Traffic {
    let source = if destination.is_ipv4() { FLOOD } else { FLOOD6 };
    Traffic {
        macs: [MACS[0], MACS[1]],
        source,
        addresses: SOURCES,
        destination,
        tcp,
        ports: [40_000, 5_001],
        port_count: 1,
        vary_destination: false,
    }
}

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut arenas = arenas(settings, &policies::guide())?;
    let mut tables = Vec::new();
    for (name, tcp) in [("UDP", false), ("SYN", true)] {
        let title = format!("{name} flood from {SOURCES} sources, IPv4");
        let rows = flooded(settings, &title, &mut arenas, &[], flood(HOST, tcp))?;
        tables.push(table(title, rows));
    }
    let title = format!("UDP flood from {SOURCES} sources, IPv6");
    let rows = flooded(settings, &title, &mut arenas, &[], flood(HOST6, false))?;
    tables.push(table(title, rows));
    let bars = tables.iter().take(2).flat_map(bars).collect();
    Ok(CaseReport {
        case: 1,
        title: "a flood dropped by the guide's INPUT chain",
        tables,
        bars,
        notes: vec![
            "without a firewall the kernel answers (ICMP error or RST, rate-limited): other work, \
             shown for orientation"
                .into(),
        ],
    })
}

/// A path for each of [`CONTENDERS`], with this policy.
pub fn arenas(settings: &Settings, policy: &Policy) -> Result<Vec<(Contender, Result<Arena>)>> {
    let mut arenas = Vec::new();
    for contender in CONTENDERS {
        settings.check()?;
        settings.step(&format!("setting up {}", contender.name()));
        let arena = settings
            .ask_for(contender)
            .and_then(|()| Arena::new(contender, &settings.object, policy));
        arenas.push((contender, arena));
    }
    Ok(arenas)
}

/// Floods all but those left out, in turn.
pub fn flooded(
    settings: &Settings,
    title: &str,
    arenas: &mut [(Contender, Result<Arena>)],
    left_out: &[(Contender, Outcome)],
    traffic: Traffic,
) -> Result<Vec<Row>> {
    for (_, arena) in arenas.iter_mut() {
        if let Ok(arena) = arena {
            arena.wan.plan(traffic)?;
        }
    }
    let mut rows = rounds(settings, title, arenas, left_out, &mut |arena, packets| {
        flood_once(arena, traffic, packets)
    })?;
    for row in &mut rows {
        if row.contender == Contender::NoFirewall {
            row.remark = Some("answers: other work".into());
        }
    }
    Ok(rows)
}

/// Sends a flood, and makes sure that the contender's own counters say that it dropped it.
fn flood_once(arena: &mut Arena, traffic: Traffic, packets: u64) -> Result<Cost> {
    let family = family(traffic.destination);
    let received = arena.received("eth0")?;
    let dropped = arena.loaded.dropped(family)?;
    let floor = arena
        .floor
        .as_mut()
        .map(|floor| floor.floor())
        .transpose()?;
    let cost = arena.wan.send(packets)?;
    ensure_same("made", packets, cost.packets)?;
    let arrived = arena.received("eth0")? - received;
    ensure_same("received by eth0", packets, arrived)?;
    if let (Some(before), Some(after)) = (dropped, arena.loaded.dropped(family)?) {
        ensure_same("dropped by the INPUT chain", packets, after - before)?;
    }
    if let (Some(before), Some(floor)) = (floor, arena.floor.as_mut()) {
        ensure_same("dropped by the floor", packets, floor.floor()? - before)?;
    }
    Ok(cost)
}

/// A table whose net figures are above the drop floor.
pub fn table(title: String, rows: Vec<Row>) -> Table {
    Table {
        title,
        unit: "ns/packet",
        floor: Some(Contender::FloorDrop),
        rows,
    }
}

fn bars(table: &Table) -> Vec<Bar> {
    let ratio = |contender| Some(table.net(contender)? / table.net(Contender::IptablesLegacy)?);
    vec![
        Bar::at_most(
            format!("{}: fwbpf with XDP, net, of iptables-legacy's", table.title),
            ratio(Contender::FwbpfXdp),
            1.0 / 6.0,
        ),
        Bar::at_most(
            format!("{}: fwbpf with tcx, net, of iptables-legacy's", table.title),
            ratio(Contender::FwbpfTcx),
            0.5,
        ),
    ]
}
