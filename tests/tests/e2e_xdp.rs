//! XDP early drop by a driver: what INPUT drops ends at XDP and is counted once; all else goes on.
//!
//! veth is a driver that runs XDP natively. `--xdp auto` leaves it alone, because no hardware is
//! behind it; `--xdp native` takes it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{MASQUERADE_V6, RULES_V4, RULES_V6, with_fwbpf};
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{
    PATIENCE, Reach, connect, datagram, ip, ping, reach, round_trip, send, tcp_echo, udp,
};
use fwbpf_tests::lab::{Daemon, Firewall, FrameSocket, Fwbpf, ServerLab, mac, scrape};
use fwbpf_tests::packet::{Dressing, Packet, Payload, frame, protocol};
use serde_json::Value;

/// Rules that drop in a chain of their own, by a rule and by the policy, behind rules that match
/// without deciding.
const RULES: &str = "*filter\n\
    :INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:SORT - [0:0]\n\
    -A INPUT -i lo -j ACCEPT\n\
    -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A INPUT -i eth0 -j SORT\n\
    -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n\
    -A SORT -p udp -m udp\n\
    -A SORT -p udp -m udp --dport 9 -j DROP\n\
    -A SORT -p tcp -m tcp --dport 81 -j DROP\n\
    COMMIT\n";

/// What is sent, for each IP version.
const TO_RULE: u64 = 37;
const TO_POLICY: u64 = 23;
const SYNS: u64 = 3;
const TEXT: usize = 100;

#[test]
fn xdp_drops_and_counts_once() {
    with_fwbpf("xdp_drops", &[], |lab, fwbpf| {
        load(fwbpf, "native")?;
        ensure!(mode_at(lab, "eth0")? == Some("xdp"), "no native XDP");
        tcp_echo(&lab.server, 80)?;
        for version in 0..2 {
            flood_and_count(lab, fwbpf, version)?;
        }
        let drops = 2 * (TO_RULE + TO_POLICY + SYNS);
        let got = dropped(fwbpf)?;
        ensure!(
            got == [drops, 0],
            "[policy_xdp, policy] are {got:?}: not all of {drops} ended at XDP"
        );
        Ok(())
    });
}

#[test]
fn the_mode_says_where_packets_are_dropped() {
    with_fwbpf("xdp_modes", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 80)?;
        let drops = TO_RULE + TO_POLICY + SYNS;
        // From one mode to the next without unloading, and back.
        let mut expected = [0, 0];
        for (mode, at) in [("auto", None), ("native", Some("xdp")), ("off", None)] {
            fwbpf.load_with(&["--xdp", mode, "--counters"], &rules())?;
            ensure!(mode_at(lab, "eth0")? == at, "--xdp {mode}: eth0");
            ensure!(mode_at(lab, "lo")?.is_none(), "--xdp {mode}: lo");
            flood_and_count(lab, fwbpf, 0)?;
            expected[usize::from(at.is_none())] += drops;
            let got = dropped(fwbpf)?;
            ensure!(got == expected, "--xdp {mode}: {got:?}, not {expected:?}");
            let status = fwbpf.json(&["status"])?;
            ensure!(status["xdp"] == mode, "status says {}", status["xdp"]);
            let eth0 = interface(&status, "eth0")?;
            let hooks = eth0["hooks"].to_string();
            ensure!(hooks.contains("xdp") == at.is_some(), "{mode}: {hooks}");
            ensure!(
                eth0["xdp"] == at.map_or(Value::Null, |_| "native".into()),
                "{mode}: {eth0}"
            );
            let shown = fwbpf.text(&["status"])?;
            ensure!(shown.contains(&format!("--xdp {mode}")), "{shown}");
            ensure!(
                shown.contains("xdp (native)") == at.is_some(),
                "--xdp {mode}:\n{shown}"
            );
        }
        fwbpf.clear()?;
        ensure!(mode_at(lab, "eth0")?.is_none(), "XDP outlives unload");
        Ok(())
    });
}

/// A driver that cannot is said, and everything else holds.
#[test]
fn an_interface_without_native_xdp_is_named() {
    with_fwbpf("xdp_cannot", &[], |_, fwbpf| {
        let said = fwbpf.load_with(&["--xdp", "native"], &rules())?;
        let line = said
            .lines()
            .find(|line| line.contains("docker0"))
            .with_context(|| format!("not a word of docker0:\n{said}"))?;
        ensure!(line.contains("no native XDP"), "{line}");
        let status = fwbpf.json(&["status"])?;
        let docker0 = interface(&status, "docker0")?;
        ensure!(
            docker0["hooks"] == serde_json::json!(["egress", "ingress"])
                || docker0["hooks"] == serde_json::json!(["ingress", "egress"]),
            "{docker0}"
        );
        Ok(())
    });
}

/// Replies, translated ones included, belong to flows, which are none of XDP's business.
#[test]
fn the_guide_holds_with_native_xdp() {
    with_fwbpf("xdp_guide", &["ping"], |lab, fwbpf| {
        let v6 = format!("{RULES_V6}{MASQUERADE_V6}");
        fwbpf.load_with(
            &["--xdp", "native"],
            &[(Family::Ipv4, RULES_V4), (Family::Ipv6, &v6)],
        )?;
        for port in [80, 81] {
            tcp_echo(&lab.server, port)?;
        }
        tcp_echo(&lab.outside, 8080)?;
        for version in 0..2 {
            let (server, internet) = (ip(SERVER[version]), ip(INTERNET[version]));
            for (port, expected) in [(80, Reach::Open), (81, Reach::Silent)] {
                let got = reach(&lab.outside, None, server, port)?;
                ensure!(got == expected, "{server} port {port} is {got:?}");
            }
            ensure!(ping(&lab.outside, server)?, "{server} answers no ping");
            let out = SocketAddr::new(internet, 8080);
            for namespace in [&lab.server, &lab.container1] {
                let mut stream = connect(namespace, None, out, PATIENCE)?;
                // Larger than a segment, so that merged segments come back as well.
                round_trip(&mut stream, &[7; 60_000])?;
            }
            let peer = udp(&lab.outside, internet, 5000)?;
            let own = udp(&lab.container1, ip(CONTAINER1[version]), 6000)?;
            send(&own, internet, 5000, b"hello")?;
            let seen = datagram(&peer)?.context("the datagram did not get out")?;
            ensure!(seen.ip() == server, "seen as {seen}");
            send(&peer, seen.ip(), seen.port(), b"answer")?;
            ensure!(datagram(&own)?.is_some(), "the answer is lost");
            ensure!(ping(&lab.container1, internet)?, "a container's ping");
        }
        Ok(())
    });
}

/// The sum of `fwbpf_dropped_packets_total` is all drops, wherever they happen.
#[test]
fn the_reasons_of_drops_add_up() {
    const METRICS: &str = "127.0.0.1:9469";
    with_fwbpf("drops_add_up", &[], |lab, fwbpf| {
        load(fwbpf, "native")?;
        let _daemon = Daemon::start(fwbpf, &["--metrics", METRICS])?;
        let before = reasons(&scrape(&lab.server, METRICS)?)?;
        let internet = udp(&lab.outside, ip(INTERNET[0]), 0)?;
        for _ in 0..11 {
            // INPUT, at XDP.
            send(&internet, ip(SERVER[0]), 9, b"in")?;
        }
        for _ in 0..7 {
            // FORWARD, which only the other hooks know.
            send(&internet, ip(CONTAINER1[0]), 9, b"through")?;
        }
        let wire = FrameSocket::open(&lab.outside, "wire0")?;
        for _ in 0..5 {
            wire.send(&cut_short())?;
        }
        let after = reasons(&scrape(&lab.server, METRICS)?)?;
        let more: Vec<(&str, u64)> = after
            .iter()
            .map(|(reason, count)| (reason.as_str(), count - before.get(reason).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        ensure!(
            more == [("malformed", 5), ("policy", 7), ("policy_xdp", 11)],
            "dropped by reason: {more:?}"
        );
        Ok(())
    });
}

/// A TCP segment of which only the ports are there.
fn cut_short() -> Vec<u8> {
    let packet = Packet {
        source: ip(INTERNET[0]),
        destination: ip(SERVER[0]),
        ttl: 64,
        id: 1,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload: Payload::Other {
            protocol: protocol::TCP,
            data: vec![0, 1, 0, 80],
        },
    };
    frame(mac::OUTSIDE, mac::SERVER, &packet.bytes())
}

/// `fwbpf_dropped_packets_total` by reason.
fn reasons(metrics: &str) -> Result<BTreeMap<String, u64>> {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix("fwbpf_dropped_packets_total{reason=\""))
        .map(|rest| {
            let (reason, count) = rest.split_once("\"} ").context("a line of another form")?;
            Ok((reason.to_owned(), count.parse()?))
        })
        .collect()
}

fn rules() -> [(Family, &'static str); 2] {
    [(Family::Ipv4, RULES), (Family::Ipv6, RULES)]
}

fn load(fwbpf: &Fwbpf, mode: &str) -> Result<()> {
    fwbpf.load_with(&["--xdp", mode], &rules()).map(drop)
}

/// Sends what must be dropped and what must not, and compares every counter with it.
fn flood_and_count(lab: &ServerLab, fwbpf: &Fwbpf, version: usize) -> Result<()> {
    let family = [Family::Ipv4, Family::Ipv6][version];
    let (to, header) = (ip(SERVER[version]), [20, 40][version]);
    let sender = udp(&lab.outside, ip(INTERNET[version]), 0)?;
    for _ in 0..TO_RULE {
        send(&sender, to, 9, &[0; TEXT])?;
    }
    for _ in 0..TO_POLICY {
        send(&sender, to, 10, &[0; TEXT])?;
    }
    for _ in 0..SYNS {
        let got = reach(&lab.outside, None, to, 81)?;
        ensure!(got == Reach::Silent, "port 81 is {got:?}");
    }
    let got = reach(&lab.outside, None, to, 80)?;
    ensure!(got == Reach::Open, "port 80 is {got:?}");

    let save = fwbpf.save(family)?;
    let datagram = header + 8 + TEXT as u64;
    // Linux' SYN has 20 bytes of options.
    let syn = header + 40;
    let datagrams = TO_RULE + TO_POLICY;
    for (what, packets, bytes) in [
        (
            "-A SORT -p udp -m udp --dport 9 -j DROP",
            TO_RULE,
            TO_RULE * datagram,
        ),
        ("-A SORT -p udp -m udp", datagrams, datagrams * datagram),
        ("-A SORT -p tcp -m tcp --dport 81 -j DROP", SYNS, SYNS * syn),
        (":INPUT DROP", TO_POLICY, TO_POLICY * datagram),
        (
            "-A INPUT -i eth0 -j SORT",
            datagrams + SYNS + 1,
            datagrams * datagram + (SYNS + 1) * syn,
        ),
        ("-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", 1, syn),
    ] {
        let got = count(&save, what)?;
        ensure!(
            got == (packets, bytes),
            "{family:?}: `{what}` counts {got:?}, not {:?}, in\n{save}",
            (packets, bytes)
        );
    }
    Ok(())
}

/// How many packets XDP and how many the other hooks dropped by rules and policies.
fn dropped(fwbpf: &Fwbpf) -> Result<[u64; 2]> {
    let status = fwbpf.json(&["status"])?;
    let count = |name: &str| {
        status["drops"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|drop| drop["name"] == name)
            .and_then(|drop| drop["count"].as_u64())
            .with_context(|| format!("no drops of the name {name} in {status}"))
    };
    Ok([count("policy_xdp")?, count("policy")?])
}

fn interface<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    status["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|interface| interface["name"] == name)
        .with_context(|| format!("no {name} in {status}"))
}

/// What iproute2 says of XDP at an interface: `xdp` in the driver, `xdpgeneric` above it.
fn mode_at(lab: &ServerLab, name: &str) -> Result<Option<&'static str>> {
    let text = fwbpf_tests::lab::run(std::process::Command::new("ip").args([
        "-n",
        lab.server.name(),
        "link",
        "show",
        name,
    ]))?;
    Ok(["xdpgeneric", "xdp"]
        .into_iter()
        .find(|word| text.split_whitespace().any(|other| other == *word)))
}
