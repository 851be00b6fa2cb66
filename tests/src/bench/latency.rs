//! Case 6: how long a small datagram and its answer take.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fw_user::policy::model::Family;

use super::Settings;
use super::lab::HOST;
use super::real::{self, ADMIN, RealArena, alternate};
use super::report::{CaseReport, Table};
use super::station::take_cpu;

const PORT: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(5);
/// The byte that ends the server.
const END: u8 = 0;

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut arenas = real::arenas(settings, "rtt", &real::CONTENDERS)?;
    let rounds = alternate(settings, "ping-pong", &mut arenas, |arena| {
        let before = arena.loaded.established(Family::Ipv4)?;
        let numbers = ping_pong(settings, arena)?;
        arena.ensure_seen(before)?;
        Ok(numbers)
    })?;
    let titles = ["median round trip", "99th percentile"];
    let tables = titles
        .into_iter()
        .zip(rounds)
        .map(|(title, rows)| Table {
            title: title.into(),
            unit: "us",
            floor: None,
            rows,
        })
        .collect();
    Ok(CaseReport {
        case: 6,
        title: "round trip of a small UDP datagram to the host, on one CPU",
        tables,
        bars: Vec::new(),
        notes: Vec::new(),
    })
}

fn ping_pong(settings: &Settings, arena: &RealArena) -> Result<[f64; 2]> {
    let server = SocketAddr::new(HOST, PORT);
    let echo = arena.lab.host.enter(|| UdpSocket::bind(server))??;
    let pings = arena
        .lab
        .wan
        .enter(|| UdpSocket::bind(SocketAddr::new(ADMIN, 0)))??;
    pings.connect(server)?;
    for socket in [&echo, &pings] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&echo));
        let times = scope.spawn(|| ping(settings, &pings));
        let times = times
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // However the client ended, the server is not left waiting.
        let _ = pings.send(&[END]);
        serving
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let mut times = times?;
        times.sort_unstable();
        let at = |part: usize| {
            times
                .get(times.len() * part / 100)
                .map(|time| time.as_nanos() as f64 / 1e3)
                .context("at least one round trip")
        };
        Ok([at(50)?, at(99)?])
    })
}

fn serve(socket: &UdpSocket) -> Result<()> {
    take_cpu()?;
    let mut bytes = [0; 64];
    loop {
        let (length, from) = socket.recv_from(&mut bytes).context("wait for a ping")?;
        if bytes[0] == END {
            return Ok(());
        }
        socket.send_to(&bytes[..length], from)?;
    }
}

fn ping(settings: &Settings, socket: &UdpSocket) -> Result<Vec<Duration>> {
    take_cpu()?;
    let mut times = Vec::new();
    let mut bytes = [1; 64];
    let begun = Instant::now();
    while begun.elapsed() < settings.run {
        let started = Instant::now();
        socket.send(&bytes[..32])?;
        socket.recv(&mut bytes).context("wait for the answer")?;
        times.push(started.elapsed());
    }
    Ok(times)
}
