//! Marks are the kernel's: they choose routes.

use anyhow::ensure;
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, OTHER};
use fwbpf_tests::lab::sockets::{datagram, ip, send, udp};
use fwbpf_tests::lab::{Firewall, Iptables, run};

#[test]
fn a_mark_that_prerouting_sets_chooses_the_route() {
    with_fwbpf("marks", &[], |lab, fwbpf| {
        const RULES: &str = "*mangle\n-A PREROUTING -i docker0 -p udp --dport 5001 -j MARK --set-mark 0x7\nCOMMIT\n";
        fwbpf.load(&[(Family::Ipv4, RULES), (Family::Ipv6, RULES)])?;
        for (version, length) in [(0, 32), (1, 128)] {
            let (far, other) = (INTERNET[version], OTHER[version]);
            let version_flag = ["-4", "-6"][version];
            let far_prefix = format!("{far}/{length}");
            let route = format!("{far_prefix} via {other} table 100");
            for words in ["rule add fwmark 7 table 100", &format!("route add {route}")] {
                let mut ip = lab.server.command("ip");
                run(ip.arg(version_flag).args(words.split(' ')))?;
            }
            lab.other.ip(&format!(
                "address add {far}/{length} dev lo{}",
                ["", " nodad"][version]
            ))?;
            let by_default = udp(&lab.outside, ip(far), 5000)?;
            let by_mark = udp(&lab.other, ip(far), 5001)?;
            let astray = udp(&lab.outside, ip(far), 5001)?;
            let own = udp(&lab.container1, ip(CONTAINER1[version]), 0)?;
            send(&own, ip(far), 5000, b"unmarked")?;
            ensure!(datagram(&by_default)?.is_some(), "the usual way to {far}");
            send(&own, ip(far), 5001, b"marked")?;
            ensure!(datagram(&by_mark)?.is_some(), "the marked way to {far}");
            ensure!(
                datagram(&astray)?.is_none(),
                "a marked datagram went the usual way"
            );
        }
        Ok(())
    });
}

#[test]
fn a_flow_keeps_its_mark_and_gives_it_to_its_packets() {
    with_fwbpf("flow_marks", &[], |lab, fwbpf| {
        // A packet of six bytes marks its flow; those that the mark does not fit any more get it, too.
        const RULES: &str = "*mangle\n\
            -A PREROUTING -i docker0 -p udp -m length --length 34 -j CONNMARK --set-mark 0x7\n\
            -A PREROUTING -i docker0 -j CONNMARK --restore-mark\nCOMMIT\n\
            *filter\n-A FORWARD -p udp -m connmark ! --mark 7 -m mark ! --mark 7 -j ACCEPT\n\
            -A FORWARD -m connmark --mark 7 -m mark --mark 7 -j ACCEPT\n-A FORWARD -p udp -j DROP\nCOMMIT\n";
        const NEW_RULES: &str =
            "*mangle\n-A PREROUTING -i docker0 -j CONNMARK --restore-mark\nCOMMIT\n";
        fwbpf.load(&[
            (Family::Ipv4, RULES),
            (Family::Ipv6, &RULES.replace("--length 34", "--length 54")),
        ])?;
        for version in 0..2 {
            let (far, other) = (INTERNET[version], OTHER[version]);
            let (version_flag, length) = (["-4", "-6"][version], [32, 128][version]);
            let far_prefix = format!("{far}/{length}");
            let route = format!("{far_prefix} via {other} table 100");
            for words in ["rule add fwmark 7 table 100", &format!("route add {route}")] {
                let mut ip = lab.server.command("ip");
                run(ip.arg(version_flag).args(words.split(' ')))?;
            }
            lab.other.ip(&format!(
                "address add {far_prefix} dev lo{}",
                ["", " nodad"][version]
            ))?;
            let by_default = udp(&lab.outside, ip(far), 5000)?;
            let by_mark = udp(&lab.other, ip(far), 5000)?;
            let plain = udp(&lab.container1, ip(CONTAINER1[version]), 6000)?;
            let marked = udp(&lab.container1, ip(CONTAINER1[version]), 6001)?;
            send(&plain, ip(far), 5000, b"plain")?;
            ensure!(datagram(&by_default)?.is_some(), "the usual way to {far}");
            // Six bytes behind the headers.
            for text in [&b"marked"[..], b"what follows"] {
                send(&marked, ip(far), 5000, text)?;
                ensure!(datagram(&by_mark)?.is_some(), "the marked way to {far}");
            }
            // A flow that is there already is marked by a later packet.
            let later = udp(&lab.container1, ip(CONTAINER1[version]), 6002)?;
            send(&later, ip(far), 5000, b"plain")?;
            ensure!(datagram(&by_default)?.is_some(), "the usual way to {far}");
            for text in [&b"marked"[..], b"what follows"] {
                send(&later, ip(far), 5000, text)?;
                ensure!(
                    datagram(&by_mark)?.is_some(),
                    "the way to {far} once marked"
                );
            }
            let flows = fwbpf.text(&["flows", "--sport", "6001", "--src", CONTAINER1[version]])?;
            ensure!(flows.contains("mark=7"), "{flows}");
            let flows = fwbpf.text(&["flows", "--sport", "6000", "--src", CONTAINER1[version]])?;
            ensure!(!flows.contains("mark="), "{flows}");
        }
        // The flows outlive the policy, and so do their marks.
        fwbpf.load(&[(Family::Ipv4, NEW_RULES), (Family::Ipv6, NEW_RULES)])?;
        for version in 0..2 {
            let far = ip(INTERNET[version]);
            let by_mark = udp(&lab.other, far, 5000)?;
            let marked = udp(&lab.container1, ip(CONTAINER1[version]), 6001)?;
            send(&marked, far, 5000, b"later")?;
            ensure!(datagram(&by_mark)?.is_some(), "the marked way to {far}");
        }
        Ok(())
    });
}

#[test]
fn the_marks_of_the_kernels_connections_are_taken_over() {
    let programs = [
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
        "conntrack",
    ];
    with_fwbpf("marks_takeover", &programs, |lab, fwbpf| {
        const RULES: &str = "*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
            -A PREROUTING -p udp -j CONNMARK --set-mark 0x17\nCOMMIT\n";
        let iptables = Iptables::new(lab.server.clone());
        iptables.load(&[(Family::Ipv4, RULES), (Family::Ipv6, RULES)])?;
        for version in 0..2 {
            let far = INTERNET[version];
            let sink = udp(&lab.outside, ip(far), 5000)?;
            let own = udp(&lab.container1, ip(CONTAINER1[version]), 6000)?;
            send(&own, ip(far), 5000, b"hello")?;
            ensure!(datagram(&sink)?.is_some(), "it did not arrive");
        }
        fwbpf.load_with(&[], &[(Family::Ipv4, RULES), (Family::Ipv6, RULES)])?;
        for far in INTERNET {
            let flows = fwbpf.json(&["flows", "--dst", far, "--proto", "udp"])?;
            ensure!(flows[0]["mark"] == 0x17, "{flows}");
        }
        Ok(())
    });
}
