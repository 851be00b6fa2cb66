//! Which connections live on when strangers fill the tables, and what is never in them.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fw_common::abi::maps::HINTS_MAX;
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{under_both, with_fwbpf};
use fwbpf_tests::lab::address::{ADMIN, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{connect, ip, round_trip, tcp_echo};
use fwbpf_tests::lab::{Firewall as _, FrameSocket, Fwbpf, LocalSender, ServerLab, mac, saved};
use fwbpf_tests::packet::flags::SYN;
use fwbpf_tests::packet::{Dressing, Packet, Payload, frame};

const PORT: u16 = 22;
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The port is open; all else has to be established.
const RULES: &str = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n\
    -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -j ACCEPT\n\
    -A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n";

/// Connections that live while the flood comes.
const LIVE: usize = 30;
/// Strangers' first packets: more than there is room for.
const STRANGERS: u32 = 100_000;
/// Places for strangers in the tier of connections, of both IP versions together.
const PLACES: u64 = HINTS_MAX as u64 / 4;

/// A SYN flood at an open port takes the few places that the confirmed tier has for strangers, and fills
/// the tier of embryos, which forgets its oldest; connections, though idle, are in the other tier, and a
/// client that comes meanwhile gets in.
#[test]
fn connections_live_through_a_flood() {
    with_fwbpf("flood", &[], |lab, fwbpf| {
        fwbpf.load(&FAMILIES.map(|family| (family, RULES)))?;
        tcp_echo(&lab.server, PORT)?;
        for (version, server) in SERVER.into_iter().enumerate() {
            let server = SocketAddr::new(ip(server), PORT);
            let open = || {
                let stream = connect(&lab.outside, None, server, Duration::from_secs(20));
                let mut stream = stream.context("a client does not get in")?;
                stream.set_nodelay(true)?;
                round_trip(&mut stream, b"hello")?;
                Ok::<_, anyhow::Error>(stream)
            };
            let mut live = Vec::new();
            for _ in 0..LIVE {
                live.push(open()?);
            }
            let late = std::thread::scope(|scope| {
                let flood = scope.spawn(|| flood(lab, version));
                let late = open();
                flood.join().expect("the flood does not panic")?;
                late
            })?;
            live.push(late);

            let (flows, embryos) = tables(fwbpf, version)?;
            let connections = LIVE as u64 + 1;
            ensure!(
                (connections..=connections + PLACES).contains(&flows.used),
                "{} flows are in the tier of {connections} connections and {PLACES} strangers",
                flows.used
            );
            // Those of the first flood have them still when the second comes.
            ensure!(
                version == 1 || flows.used > connections + PLACES / 2,
                "{} flows: the strangers' places are not used",
                flows.used
            );
            // A kernel that divides the table among its CPUs forgets some a little before it is full.
            ensure!(
                embryos.used <= embryos.max && embryos.used > embryos.max / 2,
                "{} of {} embryos",
                embryos.used,
                embryos.max
            );
            for stream in &mut live {
                round_trip(stream, b"still there").context("a connection was lost")?;
            }
            open().context("after the flood")?;
        }
        Ok(())
    });
}

/// What each type of ICMP is to rules that ask for the state, beside netfilter: neighbour discovery and
/// multicast listeners' messages are not tracked (`icmpv6_error` and `nf_conntrack_icmpv6_init_net`,
/// net/netfilter/nf_conntrack_proto_icmpv6.c), most others open nothing.
#[test]
fn each_type_of_icmp_has_its_label() {
    let seen = RefCell::new(Vec::new());
    under_both("icmp_labels", |guide| {
        let rules = FAMILIES.map(label_rules);
        guide.load(&rules[0], &rules[1])?;
        let sender = LocalSender::open(&guide.lab.outside)?;
        for (version, family) in FAMILIES.into_iter().enumerate() {
            for kind in kinds(family) {
                let packet = icmp(version, kind);
                sender.send(&packet.bytes(), packet.destination)?;
            }
        }
        let mut labels = Vec::new();
        for family in FAMILIES {
            let save = guide.firewall.save(family)?;
            for kind in kinds(family) {
                labels.push((family, kind, label(&save, family, kind)?));
            }
        }
        seen.borrow_mut().push(labels);
        Ok(())
    });
    let seen = seen.into_inner();
    let [iptables, fwbpf] = &seen[..] else {
        // One of them cannot be had here, which was said.
        return;
    };
    for (expected, got) in iptables.iter().zip(fwbpf) {
        assert_eq!(expected, got, "iptables, fwbpf");
    }
    for kind in (130..=136).chain([143]) {
        assert!(
            fwbpf.contains(&(Family::Ipv6, kind, "UNTRACKED")),
            "type {kind}"
        );
    }
    assert!(fwbpf.contains(&(Family::Ipv4, 8, "NEW")), "a ping");
}

/// SYNs from as many endpoints, at the rate that one socket sends.
fn flood(lab: &ServerLab, version: usize) -> Result<()> {
    let wire = FrameSocket::open(&lab.outside, "wire0")?;
    let mut packet = Packet {
        source: ip(ADMIN[version]),
        destination: ip(SERVER[version]),
        ttl: 64,
        id: 0,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload: Payload::Udp {
            ports: (0, 0),
            data: Vec::new(),
        },
    };
    for number in 0..STRANGERS {
        packet.source = stranger(version, number);
        packet.payload = Payload::Tcp {
            ports: (1024 + (number % 50_000) as u16, PORT),
            sequence: number,
            acknowledgement: 0,
            flags: SYN,
            window: 1000,
            options: Vec::new(),
            data: Vec::new(),
        };
        let bytes = frame(mac::OUTSIDE, mac::SERVER, &packet.bytes());
        // The wire's queue may be full for a moment.
        while let Err(error) = wire.send(&bytes) {
            ensure!(error.raw_os_error() == Some(libc::ENOBUFS), "{error}");
        }
    }
    Ok(())
}

/// Of benchmarks' networks (RFC 2544, RFC 5180): nobody of the lab.
fn stranger(version: usize, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    match version {
        0 => IpAddr::from([198, 18 + (a & 1), b, c]),
        _ => IpAddr::from([0x2001, 2, 0, 0, 0, 0, number as u16, (number >> 16) as u16]),
    }
}

struct Table {
    used: u64,
    max: u64,
}

/// The two tiers of an IP version.
fn tables(fwbpf: &Fwbpf, version: usize) -> Result<(Table, Table)> {
    let status = fwbpf.json(&["status"])?;
    let table = |name: &str| {
        let mut tables = status["tables"].as_array().into_iter().flatten();
        let table = tables.find(|table| table["table"] == name);
        let table = table.with_context(|| format!("no table {name}"))?;
        let number = |field: &str| table[field].as_u64().context("a number of entries");
        Ok::<_, anyhow::Error>(Table {
            used: number("used")?,
            max: number("max")?,
        })
    };
    let suffix = ["4", "6"][version];
    Ok((
        table(&format!("flows{suffix}"))?,
        table(&format!("embryos{suffix}"))?,
    ))
}

/// All types. What iptables calls type 255 of IPv4 is any.
fn kinds(family: Family) -> std::ops::RangeInclusive<u8> {
    match family {
        Family::Ipv4 => 0..=254,
        Family::Ipv6 => 0..=255,
    }
}

const LABELS: [&str; 5] = ["INVALID", "NEW", "ESTABLISHED", "RELATED", "UNTRACKED"];

fn label_rule(family: Family, kind: u8, label: &str) -> String {
    let from = match family {
        Family::Ipv4 => format!("-s {}/32 -p icmp -m icmp --icmp-type {kind}", INTERNET[0]),
        Family::Ipv6 => format!(
            "-s {}/128 -p ipv6-icmp -m icmp6 --icmpv6-type {kind}",
            INTERNET[1]
        ),
    };
    format!("-A INPUT {from} -m conntrack --ctstate {label}")
}

fn label_rules(family: Family) -> String {
    let mut text = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n".to_owned();
    for kind in kinds(family) {
        for label in LABELS {
            text += &label_rule(family, kind, label);
            text += "\n";
        }
    }
    text + "COMMIT\n"
}

/// The label under which a type was counted.
fn label(save: &str, family: Family, kind: u8) -> Result<&'static str> {
    let mut counted = Vec::new();
    for label in LABELS {
        if saved::count(save, &label_rule(family, kind, label))?.0 != 0 {
            counted.push(label);
        }
    }
    ensure!(counted.len() == 1, "{family:?}, type {kind}: {counted:?}");
    Ok(counted[0])
}

fn icmp(version: usize, kind: u8) -> Packet {
    Packet {
        source: ip(INTERNET[version]),
        destination: ip(SERVER[version]),
        ttl: 64,
        id: 1,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload: Payload::Icmp {
            kind,
            code: 0,
            rest: [0, kind, 0, 1],
            data: vec![0; 40],
        },
    }
}
