//! The benchmark measures what it says: the generator's frames are what was planned, contenders
//! drop and forward all of them, and a contender that does not is shown as failed. No time is
//! asserted.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fw_user::policy::model::Family;
use fwbpf_tests::bench::contender::{Arena, Contender};
use fwbpf_tests::bench::flood::{self, flood, flooded};
use fwbpf_tests::bench::lab::{Ends, FLOOD, FLOOD6, HOST, HOST6, PathLab};
use fwbpf_tests::bench::report::{Outcome, Row};
use fwbpf_tests::bench::rules::{Shape, policy};
use fwbpf_tests::bench::station::Station;
use fwbpf_tests::bench::traffic::Traffic;
use fwbpf_tests::bench::{Settings, forward, policies};
use fwbpf_tests::lab::{FrameSocket, ready};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Settings as small as they can be, or nothing if something is missing.
fn settings(test: &str) -> Option<Settings> {
    let programs = [
        "iptables-legacy-restore",
        "iptables-nft-restore",
        "nft",
        "ethtool",
    ];
    if !ready(test, &programs, true) {
        return None;
    }
    let path = std::env::var_os("FWBPF_BENCH_OBJECT").map(PathBuf::from);
    let Some(object) = path.and_then(|path| std::fs::read(path).ok()) else {
        let message = format!(
            "SKIPPED {test}: missing the benchmark's BPF object (FWBPF_BENCH_OBJECT, which \
             `cargo xtask test bench` sets)"
        );
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{message} (and CI=true)"
        );
        eprintln!("{message}");
        return None;
    };
    Some(Settings {
        object,
        rounds: 1,
        run: Duration::from_millis(2),
        quick: true,
        only: Vec::new(),
        charts: None,
        interrupted: &INTERRUPTED,
    })
}

#[test]
fn generated_frames_are_the_planned_ones() {
    let Some(settings) = settings("generated_frames_are_the_planned_ones") else {
        return;
    };
    for (destination, tcp) in [(HOST, false), (HOST, true), (HOST6, false), (HOST6, true)] {
        let name = format!("frames-{}-{tcp}", destination.is_ipv4());
        let lab = PathLab::new(&name, Ends::Generated).unwrap();
        let listener = FrameSocket::open(&lab.host, "eth0").unwrap();
        let mut station = Station::new(Arc::clone(&lab.wan), "wire0", &settings.object).unwrap();
        station.attach("sink").unwrap();
        let traffic = Traffic {
            addresses: 3,
            port_count: 2,
            ..flood(destination, tcp)
        };
        station.plan(traffic).unwrap();
        let cost = station.send(7).unwrap();
        assert_eq!(cost.packets, 7);
        let mut frames = Vec::new();
        while let Some(frame) = listener.receive().unwrap() {
            if frame[6..12] == traffic.macs[0] && is_planned(&frame, tcp) {
                frames.push(frame);
            }
        }
        assert_eq!(frames.len(), 7, "{destination} {tcp}");
        for (number, frame) in (0..).zip(&frames) {
            check(frame, traffic, number);
        }
    }
}

/// The wire also carries what the kernel says by itself, such as multicast listener reports.
fn is_planned(frame: &[u8], tcp: bool) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match packet.transport {
        Some(TransportSlice::Tcp(_)) => tcp,
        Some(TransportSlice::Udp(_)) => !tcp,
        _ => false,
    }
}

fn check(frame: &[u8], traffic: Traffic, number: u32) {
    assert_eq!(frame[..6], traffic.macs[1]);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let ports = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            let IpAddr::V4(first) = FLOOD else {
                panic!("FLOOD is IPv4")
            };
            let source = u32::from(first) + number % traffic.addresses;
            assert_eq!(u32::from_be_bytes(header.source), source);
            assert_eq!(IpAddr::from(header.destination), HOST);
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match packet.transport.unwrap() {
                TransportSlice::Tcp(tcp) => {
                    let sum = tcp
                        .calc_checksum_ipv4(header.source, header.destination)
                        .unwrap();
                    assert_eq!(tcp.checksum(), sum);
                    assert!(tcp.syn() && !tcp.ack());
                    [tcp.source_port(), tcp.destination_port()]
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp
                        .to_header()
                        .calc_checksum_ipv4(&header, udp.payload())
                        .unwrap();
                    assert_eq!(udp.checksum(), sum);
                    [udp.source_port(), udp.destination_port()]
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let IpAddr::V6(first) = FLOOD6 else {
                panic!("FLOOD6 is IPv6")
            };
            let source = u128::from(first) + u128::from(number % traffic.addresses);
            assert_eq!(u128::from_be_bytes(header.source), source);
            assert_eq!(IpAddr::from(header.destination), HOST6);
            match packet.transport.unwrap() {
                TransportSlice::Tcp(tcp) => {
                    let sum = tcp
                        .to_header()
                        .calc_checksum_ipv6(&header, tcp.payload())
                        .unwrap();
                    assert_eq!(tcp.checksum(), sum);
                    [tcp.source_port(), tcp.destination_port()]
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp
                        .to_header()
                        .calc_checksum_ipv6(&header, udp.payload())
                        .unwrap();
                    assert_eq!(udp.checksum(), sum);
                    [udp.source_port(), udp.destination_port()]
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    };
    let source_port = traffic.ports[0] + (number % traffic.port_count) as u16;
    assert_eq!(ports, [source_port, traffic.ports[1]]);
}

#[test]
fn every_contender_drops_the_flood() {
    let Some(settings) = settings("every_contender_drops_the_flood") else {
        return;
    };
    for family in [Family::Ipv4, Family::Ipv6] {
        let destination = match family {
            Family::Ipv4 => HOST,
            Family::Ipv6 => HOST6,
        };
        for shape in Shape::ALL {
            let rules = policy(shape, family, 50, 1);
            let mut arenas = flood::arenas(&settings, &rules).unwrap();
            for tcp in [false, true] {
                let flood = flood(destination, tcp);
                let rows = flooded(&settings, shape.name(), &mut arenas, &[], flood).unwrap();
                assert_eq!(rows.len(), flood::CONTENDERS.len());
                ensure_measured(&rows);
            }
        }
    }
}

#[test]
fn every_contender_forwards() {
    let Some(settings) = settings("every_contender_forwards") else {
        return;
    };
    let report = forward::run(&settings).unwrap();
    for table in &report.tables {
        ensure_measured(&table.rows);
    }
}

#[test]
fn a_contender_that_lets_the_flood_in_has_failed() {
    let Some(settings) = settings("a_contender_that_lets_the_flood_in_has_failed") else {
        return;
    };
    let mut open = policies::guide();
    for (_, text) in &mut open.save {
        *text = text.replace(
            "-A INPUT -j DROP",
            "-A INPUT -p udp -j ACCEPT\n-A INPUT -j DROP",
        );
    }
    for contender in [Contender::IptablesLegacy, Contender::FwbpfTcx] {
        let arena = Arena::new(contender, &settings.object, &open);
        let mut arenas = vec![(contender, arena)];
        let flood = flood(HOST, false);
        let rows = flooded(&settings, "let in", &mut arenas, &[], flood).unwrap();
        assert!(
            matches!(&rows[0].outcome, Outcome::Failed(why) if why.contains("counted")),
            "{rows:?}"
        );
    }
}

fn ensure_measured(rows: &[Row]) {
    for row in rows {
        match &row.outcome {
            Outcome::Measured(spread) => assert!(spread.min > 0.0, "{row:?}"),
            Outcome::NotRun(_) => {}
            Outcome::Failed(_) => panic!("{row:?}"),
        }
    }
}
