//! Case 8: a flood of SYNs on an open port, with established connections around.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fw_user::kernel::flows::{FlowTable, count};
use fw_user::kernel::state::StateDir;

use super::Settings;
use super::contender::{Contender, Loaded};
use super::flood::flood;
use super::lab::{Ends, HOST, PathLab};
use super::policies;
use super::real::open_port;
use super::report::{Bar, CaseReport, Outcome, Row, Spread, Table};
use super::station::Station;
use super::traffic::Traffic;
use crate::lab::run as execute;

const PORT: u16 = 80;
/// How long a legitimate client waits for its connection.
const PATIENCE: Duration = Duration::from_secs(4);
/// What this process has open besides connections.
const OTHER_FILES: u64 = 500;
/// SYNs between two looks at whether to go on.
const PIECE: u64 = 100_000;

const CONTENDERS: [Contender; 5] = [
    Contender::NoFirewall,
    Contender::IptablesLegacy,
    Contender::Nft,
    Contender::FwbpfXdp,
    Contender::FwbpfTcx,
];

/// What came of a flood.
struct Survival {
    syns: u64,
    lost: u64,
    tried: u64,
    refused: u64,
    tracked: Option<u64>,
}

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let wanted = if settings.quick { 2_000 } else { 10_000 };
    let connections =
        wanted.min(allow_files(2 * wanted + OTHER_FILES)?.saturating_sub(OTHER_FILES) / 2);
    ensure!(
        connections > 0,
        "this process may not have so many files open as two connections and the lab need"
    );
    let mut survived = BTreeMap::new();
    for contender in CONTENDERS {
        settings.check()?;
        settings.step(&format!("SYN flood: {}", contender.name()));
        survived.insert(contender, survive(settings, contender, connections));
    }
    let table = |title: String, unit, number: &dyn Fn(&Survival) -> Option<u64>| Table {
        title,
        unit,
        floor: None,
        rows: CONTENDERS
            .into_iter()
            .map(|contender| Row {
                contender,
                label: None,
                outcome: outcome(&survived[&contender], number),
                remark: None,
            })
            .collect(),
    };
    let tables = vec![
        table(
            format!("of {connections} established connections, half of them idle, lost"),
            "connections",
            &|survival| Some(survival.lost),
        ),
        table(
            "legitimate clients that could not connect during the flood".into(),
            "clients",
            &|survival| Some(survival.refused),
        ),
        table("of so many who tried".into(), "clients", &|survival| {
            Some(survival.tried)
        }),
        table("flows tracked at the end".into(), "flows", &|survival| {
            survival.tracked
        }),
        table("SYNs sent".into(), "packets", &|survival| {
            Some(survival.syns)
        }),
    ];
    let mut bars = Vec::new();
    for fwbpf in [Contender::FwbpfXdp, Contender::FwbpfTcx] {
        let name = fwbpf.name();
        for (claim, table) in [
            ("established connections lost", 0),
            ("legitimate clients not served", 1),
        ] {
            let value = tables
                .get(table)
                .and_then(|table: &Table| table.median(fwbpf));
            bars.push(Bar::at_most(format!("{name}: {claim}"), value, 0.0));
        }
    }
    Ok(CaseReport {
        case: 8,
        title: "a SYN flood on an open port",
        tables,
        bars,
        notes: vec![
            "fwbpf's tables are allocated when it starts and never grow: see case 9; the host's \
             own SYN cookies are on everywhere, as is the kernel's default"
                .into(),
        ],
    })
}

fn outcome(survival: &Result<Survival>, number: &dyn Fn(&Survival) -> Option<u64>) -> Outcome {
    match survival {
        Err(error) => Outcome::Failed(format!("{error:#}")),
        Ok(survival) => number(survival)
            .and_then(|number| Spread::of(vec![number as f64]))
            .map_or_else(
                || Outcome::NotRun("nothing is tracked".into()),
                Outcome::Measured,
            ),
    }
}

fn survive(settings: &Settings, contender: Contender, connections: u64) -> Result<Survival> {
    let lab = PathLab::new(&format!("syn-{}", contender.name()), Ends::Real)?;
    execute(
        lab.host
            .command("ethtool")
            .args(["-K", "eth0", "gro", "on"]),
    )?;
    let loaded = Loaded::new(contender, Arc::clone(&lab.host))?;
    loaded.load(&policies::guide())?;
    let mut station = Station::new(Arc::clone(&lab.wan), "wire0", &settings.object)?;
    station.attach("pass")?;
    station.plan(Traffic {
        ports: [1_024, PORT],
        port_count: 61_001,
        ..flood(HOST, true)
    })?;

    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
    let listener = lab.host.enter(|| TcpListener::bind(any))??;
    let mut established = lab.wan.enter(|| open(&listener, connections))??;
    exchange(&mut established, |_| true)?;

    let done = AtomicBool::new(false);
    let (syns, (tried, refused)) = thread::scope(|scope| {
        let flooding = scope.spawn(|| -> Result<u64> {
            let mut syns = 0;
            while !done.load(Ordering::Relaxed) {
                syns += station.send(PIECE)?.packets;
            }
            Ok(syns)
        });
        let clients = lab
            .wan
            .enter(|| clients(settings, &listener, &mut established));
        done.store(true, Ordering::Relaxed);
        let syns = flooding
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        anyhow::Ok((syns?, clients??))
    })?;
    let tracked = tracked(&lab, &loaded, contender)?;
    let lost = exchange(&mut established, |_| true)?;
    Ok(Survival {
        syns,
        lost,
        tried,
        refused,
        tracked,
    })
}

/// A client's end and the server's.
type Connection = (TcpStream, TcpStream);

fn open(listener: &TcpListener, count: u64) -> Result<Vec<Connection>> {
    (0..count)
        .map(|number| {
            let client = TcpStream::connect_timeout(&open_port(PORT), PATIENCE)
                .with_context(|| format!("open connection {number}"))?;
            let (server, _) = listener.accept()?;
            for end in [&client, &server] {
                end.set_read_timeout(Some(Duration::from_secs(2)))?;
                end.set_nodelay(true)?;
            }
            Ok((client, server))
        })
        .collect()
}

/// Sends a byte each way through those connections that `which` picks; returns how many failed.
fn exchange(connections: &mut [Connection], which: impl Fn(usize) -> bool) -> Result<u64> {
    let mut failed = 0;
    for (place, (client, server)) in connections.iter_mut().enumerate() {
        if !which(place) {
            continue;
        }
        let alive = client
            .write_all(&[1])
            .and_then(|()| server.read_exact(&mut [0]))
            .and_then(|()| server.write_all(&[2]))
            .and_then(|()| client.read_exact(&mut [0]));
        failed += u64::from(alive.is_err());
        ensure!(
            failed < 200,
            "{failed} connections are lost, of the first {place}"
        );
    }
    Ok(failed)
}

/// New connections during the flood, while half of the old ones are used; returns how many were
/// tried and how many failed.
fn clients(
    settings: &Settings,
    listener: &TcpListener,
    established: &mut [Connection],
) -> Result<(u64, u64)> {
    let length = Duration::from_secs(if settings.quick { 2 } else { 10 });
    let started = Instant::now();
    listener.set_nonblocking(true)?;
    let (mut tried, mut refused) = (0, 0);
    while started.elapsed() < length {
        settings.check()?;
        tried += 1;
        if TcpStream::connect_timeout(&open_port(PORT), PATIENCE).is_err() {
            refused += 1;
        }
        loop {
            match listener.accept() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("accept a legitimate client"),
            }
        }
        // One in a hundred at a time, and never the odd ones.
        let turn = (tried as usize * 2) % 100;
        exchange(established, |place| place % 100 == turn)?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok((tried, refused))
}

/// How many flows the firewall remembers.
fn tracked(lab: &PathLab, loaded: &Loaded, contender: Contender) -> Result<Option<u64>> {
    match (contender, loaded.state_dir()) {
        (Contender::NoFirewall, _) => Ok(None),
        (_, Some(state)) => {
            let state = StateDir::new(state);
            let mut flows = 0;
            for table in FlowTable::ALL {
                flows += count(&state, table)? as u64;
            }
            Ok(Some(flows))
        }
        (_, None) => {
            let count = lab.host.read_sysctl("netfilter/nf_conntrack_count")?;
            Ok(Some(count.trim().parse()?))
        }
    }
}

/// Lets this process have so many files open, or as many as it may have; returns how many that is.
/// (A container's root may not raise the limit of the container.)
fn allow_files(wanted: u64) -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current.filter(|current| *current < wanted) else {
        return Ok(wanted);
    };
    let set = |count, maximum| {
        let limit = Rlimit {
            current: Some(count),
            maximum: Some(maximum),
        };
        setrlimit(Resource::Nofile, limit)
    };
    if set(wanted, limit.maximum.unwrap_or(wanted).max(wanted)).is_ok() {
        return Ok(wanted);
    }
    let most = limit.maximum.unwrap_or(current);
    set(most, most).context("allow this process two sockets for each connection")?;
    Ok(most)
}
