//! What a table of connections does when strangers have filled it, beside netfilter: connections that are
//! proven live on, and a new one still gets in.
//!
//! Netfilter drops, when there are as many as `nf_conntrack_max` says, some that are not ASSURED for each
//! new one (`early_drop`, net/netfilter/nf_conntrack_core.c): those whose hashes are near. fwbpf keeps
//! what nobody has confirmed in a table of its own, which forgets the one that nobody has used for the
//! longest time; a stranger's packets never get at the other table. So which of the unproven ones are
//! lost differs by design, and fwbpf keeps some that netfilter would give up: those that both sides have
//! confirmed, though they are not ASSURED yet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fw_common::abi::maps::EMBRYOS_MAX;
use fwbpf_tests::beside::{ADDRESSES, Name, Pair, Router, beside_netfilter, packet};
use fwbpf_tests::lab::run;
use fwbpf_tests::packet::flags::{ACK, PSH, SYN};
use fwbpf_tests::packet::{Packet, Payload};

/// Above this the machine's own setting is none that a test fills.
const MOST: u32 = 600_000;
const OPEN: [u16; 6] = [30_001, 30_002, 30_003, 30_004, 30_005, 30_006];
const LATE: u16 = 30_100;
/// UDP: answered once, and confirmed; asked once, and answered for long.
const CONFIRMED: u16 = 31_001;
const STREAM: u16 = 31_002;

#[test]
fn assured_connections_outlive_a_flood() {
    let max = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let max = max.ok().and_then(|text| text.trim().parse().ok());
    let Some(max) = max.filter(|max| (1..=MOST).contains(max)) else {
        println!("early_drop: SKIPPED: nf_conntrack_max is {max:?}, not up to {MOST}");
        return;
    };
    // The flood takes half a minute, and on a busy machine more: nothing may end of itself meanwhile.
    let lives = [
        ("netfilter/nf_conntrack_udp_timeout", "600"),
        ("netfilter/nf_conntrack_udp_timeout_stream", "600"),
    ];
    beside_netfilter("early_drop", &lives, |pair| flood(pair, max));
}

fn flood(pair: &Pair, max: u32) -> Result<()> {
    for port in OPEN {
        open(pair, port)?;
        assured(pair, 6, port)?;
    }
    udp(pair, true, CONFIRMED)?;
    udp(pair, false, CONFIRMED)?;
    udp(pair, true, CONFIRMED)?;
    udp(pair, true, STREAM)?;
    udp(pair, false, STREAM)?;
    std::thread::sleep(Duration::from_millis(2100));
    udp(pair, false, STREAM)?;
    assured(pair, 17, STREAM)?;

    let [iptables, fwbpf] = &pair.routers;
    for number in 0..max + max / 50 {
        iptables.push(true, &stranger(pair.version, number))?;
    }
    filled(iptables, pair.version, max)?;
    // The kernel's LRU tables forget what was used once before what was used twice: each stranger comes
    // twice, as real ones do.
    for number in 0..4 * EMBRYOS_MAX {
        let packet = stranger(pair.version, number);
        fwbpf.push(true, &packet)?;
        fwbpf.push(true, &packet)?;
    }
    filled(fwbpf, pair.version, max)?;

    for port in OPEN {
        let label = pair.label(true, &tcp(pair, true, port, ACK | PSH, (101, 5001)))?;
        ensure!(label == "ESTABLISHED", "port {port}: {label}");
        let label = pair.label(false, &tcp(pair, false, port, ACK, (5001, 111)))?;
        ensure!(label == "ESTABLISHED", "port {port} back: {label}");
        assured(pair, 6, port)?;
    }
    let label = udp(pair, false, STREAM)?;
    ensure!(label == "ESTABLISHED", "the stream: {label}");
    // By design: netfilter may have given it up.
    let label = fwbpf.label(pair.version, false, &datagram(pair, false, CONFIRMED))?;
    ensure!(label == "ESTABLISHED", "what both confirmed: {label}");

    open(pair, LATE).context("a new connection")?;
    assured(pair, 6, LATE)
}

/// Netfilter has dropped some early, and fwbpf's table of what is not confirmed is full.
fn filled(router: &Router, version: usize, max: u32) -> Result<()> {
    if router.name() == "iptables" {
        let stat = run(router
            .namespace
            .command("cat")
            .arg("/proc/net/stat/nf_conntrack"))?;
        let mut lines = stat.lines();
        let names = lines.next().context("no statistics")?;
        let place = names
            .split_whitespace()
            .position(|name| name == "early_drop");
        let place = place.context("early drops are not counted")?;
        let mut dropped = 0;
        for line in lines {
            let number = line.split_whitespace().nth(place).context("a short line")?;
            dropped += u64::from_str_radix(number, 16)?;
        }
        let count = run(router
            .namespace
            .command("cat")
            .arg("/proc/sys/net/netfilter/nf_conntrack_count"))?;
        println!(
            "netfilter: {dropped} dropped early, {} of {max}",
            count.trim()
        );
        ensure!(dropped > 0, "netfilter has dropped none early");
        return Ok(());
    }
    let status: serde_json::Value = serde_json::from_str(&router.status()?)?;
    let name = format!("embryos{}", ["4", "6"][version]);
    let mut tables = status["tables"].as_array().into_iter().flatten();
    let table = tables.find(|table| table["table"] == name.as_str());
    let table = table.with_context(|| format!("no table {name}"))?;
    let number = |field: &str| table[field].as_u64().context("a number of entries");
    let (used, most) = (number("used")?, number("max")?);
    println!("fwbpf: {used} of {most}");
    // A kernel that divides the table among its CPUs forgets some a little before it is full.
    ensure!(used > most / 2, "{used} of {most} are not confirmed");
    Ok(())
}

fn open(pair: &Pair, port: u16) -> Result<()> {
    for (from_client, flags, numbers, expected) in [
        (true, SYN, (100, 0), "NEW"),
        (false, SYN | ACK, (5000, 101), "ESTABLISHED"),
        (true, ACK, (101, 5001), "ESTABLISHED"),
    ] {
        let label = pair.label(from_client, &tcp(pair, from_client, port, flags, numbers))?;
        ensure!(label == expected, "port {port}: {label}, not {expected}");
    }
    Ok(())
}

/// Both have the connection, and it is ASSURED.
fn assured(pair: &Pair, protocol: u8, port: u16) -> Result<()> {
    let name = Name {
        protocol,
        port: Some(port),
        address: ADDRESSES[pair.version][0],
    };
    for router in &pair.routers {
        let found = router.connection(pair.version, name)?;
        let has = found
            .as_ref()
            .is_some_and(|found| found.0.contains("[ASSURED]"));
        ensure!(has, "{}: port {port}: {found:?}", router.name());
    }
    Ok(())
}

fn tcp(pair: &Pair, from_client: bool, port: u16, flags: u8, numbers: (u32, u32)) -> Packet {
    let ports = if from_client { (port, 80) } else { (80, port) };
    let data = if flags & PSH != 0 {
        vec![0; 10]
    } else {
        Vec::new()
    };
    let payload = Payload::Tcp {
        ports,
        sequence: numbers.0,
        acknowledgement: numbers.1,
        flags,
        window: 1000,
        options: Vec::new(),
        data,
    };
    packet(pair.version, from_client, payload)
}

fn udp(pair: &Pair, from_client: bool, port: u16) -> Result<&'static str> {
    pair.label(from_client, &datagram(pair, from_client, port))
}

fn datagram(pair: &Pair, from_client: bool, port: u16) -> Packet {
    let ports = if from_client { (port, 53) } else { (53, port) };
    let data = vec![0; 8];
    packet(pair.version, from_client, Payload::Udp { ports, data })
}

/// A SYN from an endpoint of the client's network that nobody else has.
fn stranger(version: usize, number: u32) -> Packet {
    const PORTS: u32 = 50_000;
    let payload = Payload::Tcp {
        ports: (1024 + (number % PORTS) as u16, 80),
        sequence: number,
        acknowledgement: 0,
        flags: SYN,
        window: 1000,
        options: Vec::new(),
        data: Vec::new(),
    };
    let host = 100 + (number / PORTS) as u8;
    let source = match version {
        0 => [192, 0, 2, host].into(),
        _ => [0x2001, 0xdb8, 0, 0, 0, 0, 1, u16::from(host)].into(),
    };
    Packet {
        source,
        ..packet(version, true, payload)
    }
}
