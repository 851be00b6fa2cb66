//! Case 4: a few long TCP streams to a port of the host, offloads as veth has them.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fw_user::policy::model::Family;
use serde::Deserialize;
use serde_json::Value;

use super::Settings;
use super::contender::Contender;
use super::lab::HOST;
use super::real::{self, RealArena, alternate};
use super::report::{Bar, CaseReport, Table};
use super::station::path_cpu;
use crate::lab::Namespace;

/// The guide opens it.
const PORT: u16 = 443;

#[derive(Deserialize)]
struct End {
    sum_received: Sum,
    cpu_utilization_percent: Cpu,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    seconds: f64,
}

#[derive(Deserialize)]
struct Cpu {
    host_total: f64,
    remote_total: f64,
}

/// A server that ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Streams {
    arena: RealArena,
    _server: Server,
}

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut contenders = real::CONTENDERS.to_vec();
    if settings.quick {
        // What it shows is no surprise, and it takes five times as long.
        contenders.retain(|contender| *contender != Contender::FwbpfXdp);
    }
    let mut arenas = Vec::new();
    for (contender, arena) in real::arenas(settings, "tcp", &contenders)? {
        arenas.push((contender, arena.and_then(Streams::new)));
    }
    let mut tables = Vec::new();
    let mut bars = Vec::new();
    for streams in [1, 8] {
        let title = format!("{streams} streams");
        let [mut speed, mut effort] = alternate(settings, &title, &mut arenas, |streams_of| {
            streams_of.run(settings, streams)
        })?;
        for row in speed.iter_mut().chain(&mut effort) {
            if row.contender == Contender::FwbpfXdp {
                row.remark = Some("XDP takes veth's offloads away; --xdp auto leaves veth".into());
            }
        }
        let speed = table(
            format!("{title}: throughput, all on one CPU"),
            "Gbit/s",
            speed,
        );
        let effort = table(format!("{title}: CPU time of both ends"), "ns/kB", effort);
        let ratio = speed
            .median(Contender::FwbpfTcx)
            .zip(speed.median(Contender::NoFirewall))
            .map(|(fwbpf, none)| fwbpf / none);
        bars.push(Bar::at_least(
            format!("{title}: fwbpf at tcx, throughput, of no firewall's"),
            ratio,
            0.97,
        ));
        tables.extend([speed, effort]);
    }
    Ok(CaseReport {
        case: 4,
        title: "TCP streams to the host (iperf3)",
        tables,
        bars,
        notes: vec![
            "client, server and the path share one CPU, so throughput is the inverse of all work"
                .into(),
        ],
    })
}

fn table(title: String, unit: &'static str, rows: Vec<super::report::Row>) -> Table {
    Table {
        title,
        unit,
        floor: None,
        rows,
    }
}

impl Streams {
    fn new(arena: RealArena) -> Result<Self> {
        let mut command = on_path(&arena.lab.host);
        command
            .args(["iperf3", "--server", "--port", &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = Server(command.spawn().context("start iperf3's server")?);
        Ok(Self {
            arena,
            _server: server,
        })
    }

    fn run(&self, settings: &Settings, streams: u32) -> Result<[f64; 2]> {
        let before = self.arena.loaded.established(Family::Ipv4)?;
        let end = self.measure(settings, streams)?;
        self.arena.ensure_seen(before)?;
        ensure!(end.sum_received.bytes > 1e6, "hardly anything came through");
        let cpu = end.cpu_utilization_percent;
        let cpu_seconds = (cpu.host_total + cpu.remote_total) / 100.0 * end.sum_received.seconds;
        Ok([
            end.sum_received.bytes * 8.0 / end.sum_received.seconds / 1e9,
            cpu_seconds * 1e9 / (end.sum_received.bytes / 1e3),
        ])
    }

    fn measure(&self, settings: &Settings, streams: u32) -> Result<End> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let bytes = if settings.quick { "1G" } else { "4G" };
        let started = Instant::now();
        loop {
            let mut command = on_path(&self.arena.lab.wan);
            command
                .args([
                    "timeout",
                    "60",
                    "iperf3",
                    "--json",
                    "--client",
                    &HOST.to_string(),
                ])
                .args(["--port", &PORT.to_string(), "--bytes", bytes])
                .args(["--parallel", &streams.to_string()]);
            let output = command.output().context("start iperf3")?;
            let mut report: Value = serde_json::from_slice(&output.stdout)
                .context("expected iperf3's report in JSON")?;
            if let Ok(end) = serde_json::from_value(report["end"].take()) {
                return Ok(end);
            }
            // The server may still be starting, or busy with the end of the last run.
            if started.elapsed() > PATIENCE {
                bail!("iperf3: {}", report["error"]);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A command on the path's CPU, before most others; iperf3 would not let its other end run in real time.
fn on_path(namespace: &Namespace) -> Command {
    let mut command = namespace.command("nice");
    command
        .args(["-n", "-20", "taskset", "--cpu-list"])
        .arg(path_cpu().to_string());
    command
}
