//! The fast path: the same packets, counters and verdicts as the slow way, sooner; and off where it
//! would bypass anything.

use std::io::Read as _;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{MASQUERADE_V6, RULES_V4, RULES_V6, with_fwbpf};
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, OTHER, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{PATIENCE, connect, datagram, ip, round_trip, send, tcp_echo, udp};
use fwbpf_tests::lab::{Firewall, FrameSocket, Fwbpf, Namespace, ServerLab, mac, run};
use fwbpf_tests::packet::{Dressing, Packet, Payload, frame};
use serde_json::Value;

/// Exchanges of two datagrams. The first three packets of a flow open it and fill its cache.
const ROUNDS: u64 = 25;
const SLOW: u64 = 3;
const TEXT: usize = 64;
const OUT: &str = "-A FORWARD -i docker0 -o eth0 -j ACCEPT";
const BACK: [&str; 2] = [
    "-A FORWARD -i eth0 -o docker0 -j ACCEPT",
    "-A FORWARD -i eth0 -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
];

/// What is behind eth1 goes out of eth0.
const RULES: &str = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i eth1 -o eth0 -j ACCEPT\nCOMMIT\n\
    *nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";
const MASQUERADED: [(Family, &str); 2] = [(Family::Ipv4, RULES), (Family::Ipv6, RULES)];

/// The most common rule of all in the table mangle: only the first two segments meet it.
#[test]
fn a_rule_about_syn_leaves_it_on() {
    const RULE: &str =
        "-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu";
    with_fwbpf("fast_path_syn", &[], |lab, fwbpf| {
        let rules = format!("*mangle\n{RULE}\nCOMMIT\n");
        fwbpf.load_with(&[], &[(Family::Ipv4, &rules), (Family::Ipv6, &rules)])?;
        tcp_echo(&lab.outside, 7)?;
        for version in 0..2 {
            let family = [Family::Ipv4, Family::Ipv6][version];
            let before = event(&fwbpf.json(&["status"])?, "fast_path")?;
            let far = SocketAddr::new(ip(INTERNET[version]), 7);
            let mut stream = connect(&lab.container1, None, far, PATIENCE)?;
            for _ in 0..ROUNDS {
                round_trip(&mut stream, b"text")?;
            }
            let sent_on = event(&fwbpf.json(&["status"])?, "fast_path")? - before;
            ensure!(sent_on >= ROUNDS, "{sent_on} segments took the fast path");
            let save = fwbpf.save(family)?;
            let (met, _) = count(&save, RULE)?;
            ensure!(met == 2, "{met} segments met the rule in\n{save}");
            let policy = save.lines().skip_while(|line| *line != "*mangle");
            let policy = policy
                .clone()
                .find(|line| line.starts_with(":FORWARD ACCEPT ["));
            let counted = policy
                .and_then(|line| line.split_once('[')?.1.split_once(':'))
                .and_then(|(packets, _)| packets.parse::<u64>().ok())
                .context("the policy's counter")?;
            ensure!(
                counted > 2 * ROUNDS,
                "the policy counts {counted} in\n{save}"
            );
        }
        Ok(())
    });
}

#[test]
fn established_flows_take_it_and_are_counted_alike() {
    with_fwbpf("fast_path_counts", &[], |lab, fwbpf| {
        let mut sent_on = 0;
        for (mode, fast) in [("auto", true), ("off", false), ("on", true)] {
            load(fwbpf, &["--counters", "--fast-path", mode])?;
            fwbpf.text(&["flows", "--flush"])?;
            for version in 0..2 {
                talk(lab, version)?;
                let family = [Family::Ipv4, Family::Ipv6][version];
                let save = fwbpf.save(family)?;
                let bytes = ROUNDS * ([20, 40][version] + 8 + TEXT as u64);
                for rule in [OUT, BACK[version]] {
                    let got = count(&save, rule)?;
                    ensure!(
                        got == (ROUNDS, bytes),
                        "{mode}: `{rule}` counts {got:?} in\n{save}"
                    );
                }
                if fast {
                    sent_on += 2 * ROUNDS - SLOW;
                }
            }
            let status = fwbpf.json(&["status"])?;
            let got = event(&status, "fast_path")?;
            ensure!(
                got == sent_on,
                "--fast-path {mode}: {got} packets, not {sent_on}"
            );
            let eth0 = interface(&status, "eth0")?;
            let places = if fast {
                serde_json::json!(["tc"])
            } else {
                serde_json::json!([])
            };
            ensure!(eth0["fast_path"] == places, "--fast-path {mode}: {eth0}");
        }
        Ok(())
    });
}

/// Segments that offloads have yet to cut, checksums that they have yet to fill in, and a way out
/// that is narrower than the way in.
#[test]
fn bulk_data_arrives_whole() {
    with_fwbpf("fast_path_bulk", &[], |lab, fwbpf| {
        load(fwbpf, &[])?;
        tcp_echo(&lab.outside, 8080)?;
        let text: Vec<u8> = (0..600_000u32).map(|n| (n ^ n >> 8) as u8).collect();
        for mtu in [1500, 1300] {
            lab.server.ip(&format!("link set eth0 mtu {mtu}\n"))?;
            lab.outside.ip(&format!("link set wire0 mtu {mtu}\n"))?;
            for internet in INTERNET {
                let before = event(&fwbpf.json(&["status"])?, "fast_path")?;
                let to = SocketAddr::new(ip(internet), 8080);
                let mut stream = connect(&lab.container1, None, to, PATIENCE)?;
                round_trip(&mut stream, &text).with_context(|| format!("MTU {mtu}, {internet}"))?;
                let after = event(&fwbpf.json(&["status"])?, "fast_path")?;
                // At 64 KiB a packet at most, each way.
                ensure!(after - before >= 20, "{} packets took it", after - before);
            }
        }
        Ok(())
    });
}

/// Both ends' FINs take it, and only the last acknowledgement does not; what has become of the connection is the same.
#[test]
fn connections_close_on_it() {
    with_fwbpf("fast_path_closing", &[], |lab, fwbpf| {
        tcp_echo(&lab.outside, 8080)?;
        for (mode, most) in [("on", u64::MAX), ("off", 0)] {
            load(fwbpf, &["--fast-path", mode])?;
            for internet in INTERNET {
                fwbpf.text(&["flows", "--flush"])?;
                let to = SocketAddr::new(ip(internet), 8080);
                let mut stream = connect(&lab.container1, None, to, PATIENCE)?;
                for _ in 0..3 {
                    round_trip(&mut stream, b"hello")?;
                }
                // Acknowledgements may be put off.
                std::thread::sleep(Duration::from_millis(100));
                let before = event(&fwbpf.json(&["status"])?, "fast_path")?;
                stream.shutdown(Shutdown::Write)?;
                let end = stream.read(&mut [0])?;
                ensure!(end == 0, "the other end closes, too");
                std::thread::sleep(Duration::from_millis(100));
                let took = event(&fwbpf.json(&["status"])?, "fast_path")? - before;
                ensure!(
                    (2.min(most)..=most).contains(&took),
                    "{mode}: {took} packets took it"
                );
                let flows = fwbpf.text(&["flows"])?;
                ensure!(flows.contains("TIME_WAIT"), "{mode}: {flows}");
            }
        }
        Ok(())
    });
}

/// What changes while a flow is cached counts for its next packet.
#[test]
fn a_cached_verdict_never_outlives_its_reasons() {
    with_fwbpf("fast_path_changes", &[], |lab, fwbpf| {
        load(fwbpf, &[])?;
        let peer = udp(&lab.outside, ip(INTERNET[0]), 5000)?;
        let own = udp(&lab.container1, ip(CONTAINER1[0]), 6000)?;
        let exchange = || -> Result<bool> {
            send(&own, ip(INTERNET[0]), 5000, b"hello")?;
            let Some(seen) = datagram(&peer)? else {
                return Ok(false);
            };
            send(&peer, seen.ip(), seen.port(), b"answer")?;
            Ok(datagram(&own)?.is_some())
        };
        for _ in 0..4 {
            ensure!(exchange()?, "before any change");
        }
        // The policy.
        let closed = RULES_V4.replace(OUT, "-A FORWARD -i docker0 -o eth0 -j DROP");
        fwbpf.load_with(&[], &[(Family::Ipv4, &closed), (Family::Ipv6, RULES_V6)])?;
        ensure!(!exchange()?, "the new policy drops it");
        load(fwbpf, &[])?;
        for _ in 0..3 {
            ensure!(exchange()?, "the first policy again");
        }
        // The route: by eth1 the guide forwards nothing.
        lab.server.ip(&format!(
            "route add {}/32 via {} dev eth1\n",
            INTERNET[0], OTHER[0]
        ))?;
        ensure!(!exchange()?, "the route leads elsewhere");
        lab.server.ip(&format!("route del {}/32\n", INTERNET[0]))?;
        ensure!(exchange()?, "the first route again");
        // Forwarding itself.
        lab.server.sysctl(&[("ipv4/ip_forward", "0")])?;
        ensure!(!exchange()?, "this host forwards nothing");
        lab.server.sysctl(&[("ipv4/ip_forward", "1")])?;
        ensure!(exchange()?, "this host forwards again");
        Ok(())
    });
}

#[test]
fn what_it_would_bypass_switches_it_off() {
    with_fwbpf("fast_path_obstacles", &["iptables-legacy"], |lab, fwbpf| {
        load(fwbpf, &[])?;
        ensure!(places(fwbpf, "eth0")? == ["tc"], "nothing is in the way");

        let iptables = |action: &str| {
            run(lab
                .server
                .command("iptables-legacy")
                .args(["-w", "20", action, "FORWARD", "-j", "ACCEPT"]))
        };
        iptables("-A")?;
        load(fwbpf, &[])?;
        ensure!(
            places(fwbpf, "eth0")?.is_empty(),
            "netfilter's rules would be bypassed"
        );
        let why = why_not(fwbpf, "eth0")?;
        ensure!(why.contains("netfilter has "), "{why}");
        talk(lab, 0)?;
        ensure!(
            event(&fwbpf.json(&["status"])?, "fast_path")? == 0,
            "a packet took it"
        );
        Ok(())
    });
    with_fwbpf("fast_path_ipsec", &[], |lab, fwbpf| {
        lab.server
            .ip("xfrm policy add dir fwd src 10.9.0.0/16 dst 10.8.0.0/16 action block\n")?;
        load(fwbpf, &[])?;
        let why = why_not(fwbpf, "eth0")?;
        ensure!(why.contains("IPsec policies"), "{why}");
        ensure!(places(fwbpf, "eth0")?.is_empty(), "IPsec would be bypassed");
        Ok(())
    });
}

/// At XDP, between interfaces whose peers take redirected frames.
#[test]
fn xdp_forwards_if_it_is_told_to() {
    with_fwbpf("fast_path_xdp", &["ethtool"], |lab, fwbpf| {
        let rules = MASQUERADED;
        ready_for_xdp(lab)?;
        fwbpf.load_with(&["--xdp", "native"], &rules)?;
        ensure!(places(fwbpf, "eth0")? == ["tc"], "a veth is not hardware");
        ensure!(
            why_not(fwbpf, "eth0")?.contains("not at XDP"),
            "and that is said"
        );
        fwbpf.load_with(&["--xdp", "native", "--fast-path", "on"], &rules)?;
        ensure!(places(fwbpf, "eth0")? == ["tc", "xdp"], "eth0");
        ensure!(places(fwbpf, "eth1")? == ["tc", "xdp"], "eth1");
        for (version, own) in OTHER.iter().enumerate() {
            exchange(&lab.other, own, lab, version)?;
        }
        let sent_on = event(&fwbpf.json(&["status"])?, "fast_path")?;
        let expected = 2 * (2 * ROUNDS - SLOW);
        ensure!(sent_on == expected, "{sent_on} packets, not {expected}");
        Ok(())
    });
}

/// The stack forwards no frame that was sent to all, to many or to somebody else (`ip_forward`,
/// net/ipv4/ip_forward.c; `ip6_forward`, net/ipv6/ip6_output.c), and takes a priority tag off first.
#[test]
fn only_plain_frames_for_this_host_are_sent_on() {
    const FOREIGN: [[u8; 6]; 3] = [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 9, 9]];
    with_fwbpf("fast_path_frames", &["ethtool"], |lab, fwbpf| {
        for xdp in ["off", "native"] {
            fwbpf.load_with(&["--xdp", xdp, "--fast-path", "on"], &MASQUERADED)?;
            fwbpf.text(&["flows", "--flush"])?;
            ready_for_xdp(lab)?;
            // What sees other hosts' frames: the server's interface lets them in.
            lab.server.ip("link set eth0 promisc on\n")?;
            let wire = FrameSocket::open(&lab.outside, "wire0")?;
            for (version, own) in OTHER.iter().enumerate() {
                let (own, seen) = converse(&lab.other, own, lab, version)?;
                let before = event(&fwbpf.json(&["status"])?, "fast_path")?;
                for link in FOREIGN {
                    wire.send(&frame(mac::OUTSIDE, link, &answer(version, seen)))?;
                    ensure!(
                        datagram(&own)?.is_none(),
                        "--xdp {xdp}: {link:x?} was sent on"
                    );
                }
                let mut tagged = frame(mac::OUTSIDE, mac::SERVER, &answer(version, seen));
                tagged.splice(12..12, [0x81, 0, 0xe0, 0]);
                wire.send(&tagged)?;
                ensure!(
                    datagram(&own)?.is_some(),
                    "--xdp {xdp}: a priority is no reason"
                );
                let after = event(&fwbpf.json(&["status"])?, "fast_path")?;
                ensure!(
                    after == before,
                    "--xdp {xdp}: {} took the fast path",
                    after - before
                );
                wire.send(&frame(mac::OUTSIDE, mac::SERVER, &answer(version, seen)))?;
                ensure!(
                    datagram(&own)?.is_some(),
                    "--xdp {xdp}: the plain frame is lost"
                );
                let after = event(&fwbpf.json(&["status"])?, "fast_path")?;
                ensure!(
                    after == before + 1,
                    "--xdp {xdp}: the plain frame went slowly"
                );
            }
        }
        Ok(())
    });
}

/// Has the hosts behind eth0 and eth1 take redirected frames, and send none without its checksum,
/// which is left to an offload otherwise.
fn ready_for_xdp(lab: &ServerLab) -> Result<()> {
    lab.take_redirected()?;
    for namespace in [&lab.other, &lab.outside] {
        run(namespace
            .command("ethtool")
            .args(["-K", "wire0", "tx", "off"]))?;
    }
    Ok(())
}

/// Opens a flow and has it cached both ways; the inner socket, and the port that the far side sees.
fn converse(
    namespace: &Arc<Namespace>,
    own: &str,
    lab: &ServerLab,
    version: usize,
) -> Result<(UdpSocket, u16)> {
    let peer = udp(&lab.outside, ip(INTERNET[version]), 5000)?;
    let own = udp(namespace, ip(own), 6000)?;
    let mut port = 0;
    for _ in 0..3 {
        send(&own, ip(INTERNET[version]), 5000, &[1; TEXT])?;
        let seen = datagram(&peer)?.context("a datagram is lost")?;
        send(&peer, seen.ip(), seen.port(), &[2; TEXT])?;
        datagram(&own)?.context("an answer is lost")?;
        port = seen.port();
    }
    Ok((own, port))
}

/// An answer of the far side.
fn answer(version: usize, port: u16) -> Vec<u8> {
    let packet = Packet {
        source: ip(INTERNET[version]),
        destination: ip(SERVER[version]),
        ttl: 64,
        id: 1,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload: Payload::Udp {
            ports: (5000, port),
            data: vec![3; TEXT],
        },
    };
    packet.bytes()
}

/// A container talks with the internet.
fn talk(lab: &ServerLab, version: usize) -> Result<()> {
    exchange(&lab.container1, CONTAINER1[version], lab, version)
}

fn exchange(namespace: &Arc<Namespace>, own: &str, lab: &ServerLab, version: usize) -> Result<()> {
    let peer = udp(&lab.outside, ip(INTERNET[version]), 5000)?;
    let own = udp(namespace, ip(own), 6000)?;
    for round in 0..ROUNDS {
        send(&own, ip(INTERNET[version]), 5000, &[1; TEXT])?;
        let seen = datagram(&peer)?.with_context(|| format!("datagram {round} is lost"))?;
        ensure!(seen.ip() == ip(SERVER[version]), "seen as {seen}");
        send(&peer, seen.ip(), seen.port(), &[2; TEXT])?;
        datagram(&own)?.with_context(|| format!("answer {round} is lost"))?;
    }
    Ok(())
}

fn load(fwbpf: &Fwbpf, options: &[&str]) -> Result<()> {
    let v6 = format!("{RULES_V6}{MASQUERADE_V6}");
    let rules = [(Family::Ipv4, RULES_V4), (Family::Ipv6, &v6)];
    fwbpf.load_with(options, &rules).map(drop)
}

fn places(fwbpf: &Fwbpf, name: &str) -> Result<Vec<String>> {
    let status = fwbpf.json(&["status"])?;
    let places = interface(&status, name)?["fast_path"].clone();
    Ok(serde_json::from_value(places)?)
}

fn why_not(fwbpf: &Fwbpf, name: &str) -> Result<String> {
    let status = fwbpf.json(&["status"])?;
    let why = interface(&status, name)?["fast_path_why_not"].clone();
    why.as_str()
        .map(str::to_owned)
        .context("no reason is given")
}

fn event(status: &Value, name: &str) -> Result<u64> {
    named(&status["events"], name)?["count"]
        .as_u64()
        .context("a count is no number")
}

fn interface<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    named(&status["interfaces"], name)
}

fn named<'a>(list: &'a Value, name: &str) -> Result<&'a Value> {
    let mut items = list.as_array().into_iter().flatten();
    items
        .find(|item| item["name"] == name)
        .with_context(|| format!("no {name} in {list}"))
}
