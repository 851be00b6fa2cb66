//! Case 5: many short TCP connections, to the host and through the masquerade.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Settings;
use super::contender::Contender;
use super::lab::SERVER;
use super::real::{self, alternate, open_port};
use super::report::{Bar, CaseReport, Table};
use super::station::take_cpu;
use crate::lab::Namespace;

const PORT: u16 = 80;

/// Nobody answers for so long if all is well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut contenders = real::CONTENDERS.to_vec();
    contenders.push(Contender::FloorTrack);
    let mut arenas = real::arenas(settings, "cps", &contenders)?;
    for (_, arena) in &mut arenas {
        if let Ok(arena) = arena {
            for namespace in [&arena.lab.wan, &arena.lab.lan] {
                namespace.sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
            }
        }
    }
    let mut tables = Vec::new();
    let mut bars = Vec::new();
    for (title, masqueraded) in [
        ("connections to the host", false),
        ("connections through the masquerade", true),
    ] {
        let [mut rows] = alternate(settings, title, &mut arenas, |arena| {
            let before = arena.seen()?;
            let rate = if masqueraded {
                let server = SocketAddr::new(SERVER, PORT);
                rate(settings, &arena.lab.lan, &arena.lab.wan, server)?
            } else {
                let rate = rate(settings, &arena.lab.wan, &arena.lab.host, open_port(PORT))?;
                arena.ensure_seen(before)?;
                rate
            };
            Ok([rate])
        })?;
        for row in &mut rows {
            let plain = matches!(row.contender, Contender::NoFirewall | Contender::FloorTrack);
            if plain && masqueraded {
                row.remark = Some("no masquerade".into());
            }
        }
        let table = Table {
            title: title.into(),
            unit: "connections/s",
            floor: None,
            rows,
        };
        bars.extend(demands(&table));
        tables.push(table);
    }
    Ok(CaseReport {
        case: 5,
        title: "new connections per second, on one CPU",
        tables,
        bars,
        notes: vec![
            "each connection: handshake, one byte and its answer, end; client, server and path \
             share one CPU"
                .into(),
            "the floor's program looks each packet's connection up at both hooks, stores what is new, and does \
             nothing else"
                .into(),
        ],
    })
}

fn demands(table: &Table) -> Vec<Bar> {
    let mut bars = Vec::new();
    for fwbpf in [Contender::FwbpfXdp, Contender::FwbpfTcx] {
        for (peer, limit) in [
            (Contender::IptablesLegacy, 1.0),
            (Contender::NoFirewall, 0.9),
        ] {
            let ratio = table
                .median(fwbpf)
                .zip(table.median(peer))
                .map(|(fwbpf, peer)| fwbpf / peer);
            bars.push(Bar::at_least(
                format!("{}: {}, of {}'s", table.title, fwbpf.name(), peer.name()),
                ratio,
                limit,
            ));
        }
    }
    bars
}

fn rate(
    settings: &Settings,
    client: &Namespace,
    server: &Namespace,
    address: SocketAddr,
) -> Result<f64> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    let listener = server.enter(|| TcpListener::bind(any))??;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(&listener, &done));
        let rate = client.enter(|| connect(settings, address));
        done.store(true, Ordering::Relaxed);
        // The server waits in accept: one more connection, from where it needs no firewall.
        let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
        let _ = server.enter(|| TcpStream::connect_timeout(&own, PATIENCE));
        let served = served
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (count, seconds) = rate??;
        ensure!(
            served? >= count,
            "the client counts more connections than the server"
        );
        Ok(count as f64 / seconds)
    })
}

fn serve(listener: &TcpListener, done: &AtomicBool) -> Result<u64> {
    take_cpu()?;
    let mut count = 0;
    loop {
        let (mut stream, _) = listener.accept()?;
        if done.load(Ordering::Relaxed) {
            return Ok(count);
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
        count += 1;
        // The server closes first: its port is one and the client's are free again at once.
    }
}

fn connect(settings: &Settings, address: SocketAddr) -> Result<(u64, f64)> {
    take_cpu()?;
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < settings.run * 2 {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("connection {count}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[1])?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .with_context(|| format!("answer {count}"))?;
        ensure!(answer == [1], "another byte came back");
        count += 1;
    }
    Ok((count, started.elapsed().as_secs_f64()))
}
