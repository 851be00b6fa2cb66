//! Each program by itself, run by `BPF_PROG_TEST_RUN`: what a path costs without the kernel's own
//! work around it.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::{
    ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp,
};
use aya_obj::programs::XdpAttachType;
use fw_common::abi::maps;

use super::Settings;
use super::contender::{Arena, Contender};
use super::features::FEATURES;
use super::flood::flood;
use super::forward::{answers, establish, requests};
use super::lab::{HOST, HOST6, INNER, MACS};
use super::policies;
use super::report::{CaseReport, Outcome, Row, Spread, Table};
use super::station::take_cpu;
use super::traffic::Traffic;

/// How often in one system call, where the packet stays as it is.
const REPEAT: u32 = 100_000;
/// How many system calls where it does not.
const SINGLES: usize = 5_000;

/// A packet at a hook.
struct Place {
    title: &'static str,
    program: &'static str,
    /// The interface it is at, and the one it came in by, by name.
    device: &'static str,
    arrival: Option<&'static str>,
    traffic: Traffic,
    /// Whether the program changes it, so that it can run only once on it.
    rewrites: bool,
}

/// Measures all paths.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut arena = Arena::new(Contender::FwbpfXdp, &settings.object, &policies::guide())?;
    establish(&mut arena, 1).context("open a flow")?;
    let state = arena.loaded.state_dir().context("fwbpf has one")?;
    let mut rows = Vec::new();
    for path in paths() {
        settings.check()?;
        settings.step(path.title);
        let (outcome, verdict) = match arena.lab.host.enter(|| measure(settings, state, &path))? {
            Ok((spread, verdict)) => (Outcome::Measured(spread), verdict),
            Err(error) => (Outcome::Failed(format!("{error:#}")), String::new()),
        };
        let how = if path.rewrites { ", one by one" } else { "" };
        rows.push(Row {
            contender: Contender::FwbpfXdp,
            label: Some(format!(
                "{}: {} -> {verdict}{how}",
                path.program, path.title
            )),
            outcome,
            remark: None,
        });
    }
    Ok(CaseReport {
        case: 0,
        title: "programs by themselves (BPF_PROG_TEST_RUN), caches hot",
        tables: vec![
            Table {
                title: "fwbpf's programs, the guide's policy".into(),
                unit: "ns/run",
                floor: None,
                rows,
            },
            features(settings, &arena)?,
        ],
        bars: Vec::new(),
        notes: vec![
            "one by one: the program changes the packet, so each run is a system call of its own; \
             the two readings of the clock (some 40 ns) are in the figure, and caches are cooler"
                .into(),
        ],
    })
}

/// What rules of each kind cost a packet that the guide drops.
fn features(settings: &Settings, arena: &Arena) -> Result<Table> {
    let state = arena.loaded.state_dir().context("fwbpf has one")?;
    let path = Place {
        title: "UDP flood, IPv4",
        program: maps::PROGRAM_INGRESS,
        device: "eth0",
        arrival: None,
        traffic: flood(HOST, false),
        rewrites: false,
    };
    let mut rows = Vec::new();
    for feature in &FEATURES {
        settings.check()?;
        settings.step(feature.title);
        let loaded = arena.loaded.load(&feature.policy());
        let measured =
            loaded.and_then(|_| arena.lab.host.enter(|| measure(settings, state, &path))?);
        let (outcome, verdict) = match measured {
            Ok((spread, verdict)) => (Outcome::Measured(spread), verdict),
            Err(error) => (Outcome::Failed(format!("{error:#}")), String::new()),
        };
        rows.push(Row {
            contender: Contender::FwbpfXdp,
            label: Some(format!("{} -> {verdict}", feature.title)),
            outcome,
            remark: None,
        });
    }
    Ok(Table {
        title: "fwbpf_ingress, a UDP flood, the guide's policy and one rule more".into(),
        unit: "ns/run",
        floor: None,
        rows,
    })
}

fn paths() -> Vec<Place> {
    let out = requests(1);
    let back = answers(1);
    let at = |title, program, device, arrival, traffic, rewrites| Place {
        title,
        program,
        device,
        arrival,
        traffic,
        rewrites,
    };
    let udp = flood(HOST, false);
    let syn = flood(HOST, true);
    let (xdp, ingress, egress) = (
        maps::PROGRAM_XDP,
        maps::PROGRAM_INGRESS,
        maps::PROGRAM_EGRESS,
    );
    vec![
        at("UDP flood, IPv4", xdp, "eth0", None, udp, false),
        at("SYN flood, IPv4", xdp, "eth0", None, syn, false),
        at(
            "UDP flood, IPv6",
            xdp,
            "eth0",
            None,
            flood(HOST6, false),
            false,
        ),
        at("established request", xdp, "docker0", None, out, true),
        at("established answer", xdp, "eth0", None, back, true),
        at("UDP flood, IPv4", ingress, "eth0", None, udp, false),
        at("SYN flood, IPv4", ingress, "eth0", None, syn, false),
        at(
            "UDP flood, IPv6",
            ingress,
            "eth0",
            None,
            flood(HOST6, false),
            false,
        ),
        at("established request", ingress, "docker0", None, out, true),
        at(
            "established request, masqueraded",
            egress,
            "eth0",
            Some("docker0"),
            out,
            true,
        ),
        at(
            "established answer, masqueraded back",
            ingress,
            "eth0",
            None,
            back,
            true,
        ),
        at(
            "established answer",
            egress,
            "docker0",
            Some("eth0"),
            translated(back),
            true,
        ),
        at(
            "a datagram of this host's",
            egress,
            "eth0",
            None,
            own(out),
            false,
        ),
    ]
}

/// An answer as it is behind the masquerade.
fn translated(back: Traffic) -> Traffic {
    Traffic {
        macs: [MACS[2], MACS[3]],
        destination: INNER,
        ..back
    }
}

/// The same from this host itself.
fn own(out: Traffic) -> Traffic {
    Traffic {
        macs: [MACS[1], MACS[0]],
        source: HOST,
        ports: [60_000, 53],
        ..out
    }
}

fn measure(settings: &Settings, state: &Path, path: &Place) -> Result<(Spread, String)> {
    let pin = fw_user::kernel::state::StateDir::new(state).program(path.program);
    let device = nix::net::if_::if_nametoindex(path.device)?;
    let arrival = path
        .arrival
        .map(nix::net::if_::if_nametoindex)
        .transpose()?
        .unwrap_or(0);
    let frame = path.traffic.frame()?;
    // Ends with this thread, which the caller has made for this alone.
    take_cpu()?;
    if path.program == maps::PROGRAM_XDP {
        let program = Xdp::from_pin(&pin, XdpAttachType::Interface)?;
        let context = words(&[0, frame.len() as u32, 0, device, 0, 0]);
        runs(settings, path, |repeat| {
            program.test_run(options(&frame, &context, repeat))
        })
    } else {
        let program = SchedClassifier::from_pin(&pin)?;
        // `struct __sk_buff` up to `ifindex`.
        let mut fields = [0; 11];
        fields[9] = arrival;
        fields[10] = device;
        let context = words(&fields);
        runs(settings, path, |repeat| {
            program.test_run(options(&frame, &context, repeat))
        })
    }
    .with_context(|| {
        let IpAddr::V4(_) = path.traffic.source else {
            return format!("{} with IPv6", path.program);
        };
        format!("{} with IPv4", path.program)
    })
}

fn runs(
    settings: &Settings,
    path: &Place,
    run: impl Fn(u32) -> Result<TestRunResult, ProgramError>,
) -> Result<(Spread, String)> {
    let verdict = match (path.program == maps::PROGRAM_XDP, run(1)?.return_value) {
        (true, 1) => "XDP_DROP".into(),
        (true, 2) => "XDP_PASS".into(),
        (true, 4) => "XDP_REDIRECT".into(),
        (false, 2) => "drop".into(),
        (false, 7) => "redirect".into(),
        (false, u32::MAX) => "pass".into(),
        (_, other) => format!("return value {other}"),
    };
    let mut times = Vec::new();
    for _ in 0..settings.rounds {
        if path.rewrites {
            let mut singles = Vec::new();
            for _ in 0..SINGLES {
                singles.push(run(1)?.duration.as_nanos() as f64);
            }
            times.extend(Spread::of(singles).map(|spread| spread.median));
        } else {
            times.push(run(REPEAT)?.duration.as_nanos() as f64);
        }
    }
    let spread = Spread::of(times).context("at least one round")?;
    Ok((spread, verdict))
}

fn options<'a>(frame: &'a [u8], context: &'a [u8], repeat: u32) -> TestRunOptions<'a> {
    TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(context),
        repeat,
        ..TestRunOptions::default()
    }
}

fn words(fields: &[u32]) -> Vec<u8> {
    fields.iter().copied().flat_map(u32::to_ne_bytes).collect()
}
