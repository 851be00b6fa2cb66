//! LOG and NFLOG: what `fwbpf daemon` writes is what the kernel's own logger would have written
//! (net/netfilter/nf_log_syslog.c), and what is not said changes no verdict.

use anyhow::{Context as _, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{ADMIN, CONTAINER1, INTERNET, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{datagram, ip, ping, send, udp};
use fwbpf_tests::lab::{Daemon, Firewall as _, run};

const OPEN: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n";

#[test]
fn lines_are_the_kernels() {
    with_fwbpf("log_lines", &[], |lab, fwbpf| {
        let rules = format!(
            "{OPEN}-A INPUT -p udp --dport 4000 -j LOG --log-prefix \"in: \"\n\
             -A FORWARD -p udp --dport 4000 -j LOG --log-prefix \"through: \"\n\
             -A OUTPUT -p udp --dport 4000 -j NFLOG --nflog-prefix \"out \" --nflog-group 7\nCOMMIT\n\
             *mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
             -A PREROUTING -p udp --dport 4001 -j LOG --log-prefix \"before: \"\nCOMMIT\n"
        );
        fwbpf.load(&[(Family::Ipv4, &rules), (Family::Ipv6, &rules)])?;
        let mut daemon = Daemon::start(fwbpf, &["--log", "stdout"])?;

        send(
            &udp(&lab.outside, ip(ADMIN[0]), 3999)?,
            ip(SERVER[0]),
            4000,
            b"hello",
        )?;
        let line = without_id(&daemon.line_with("in: ")?);
        let expected = "in: IN=eth0 OUT= MAC=02:00:00:00:01:0a:02:00:00:00:01:01:08:00 SRC=192.0.2.2 \
            DST=198.51.100.10 LEN=33 TOS=0x00 PREC=0x00 TTL=64 DF PROTO=UDP SPT=3999 DPT=4000 LEN=13 ";
        ensure!(line == expected, "{line}\ninstead of\n{expected}");

        let other = udp(&lab.outside, ip(ADMIN[0]), 3998)?;
        send(&other, ip(SERVER[0]), 4001, b"hello")?;
        let line = daemon.line_with("before: ")?;
        ensure!(line.starts_with("before: IN=eth0 OUT= MAC="), "{line}");

        // The link-layer header is the one that the packet came in with, as in netfilter.
        send(
            &udp(&lab.container1, ip(CONTAINER1[0]), 3999)?,
            ip(INTERNET[0]),
            4000,
            b"hello",
        )?;
        let line = without_id(&daemon.line_with("through: ")?);
        let expected = "through: IN=docker0 OUT=eth0 MAC=02:00:00:00:02:01:02:00:00:00:02:02:08:00 \
            SRC=172.17.0.2 DST=203.0.113.7 LEN=33 TOS=0x00 PREC=0x00 TTL=63 DF PROTO=UDP SPT=3999 \
            DPT=4000 LEN=13 ";
        ensure!(line == expected, "{line}\ninstead of\n{expected}");

        send(
            &udp(&lab.server, ip(SERVER[1]), 3999)?,
            ip(INTERNET[1]),
            4000,
            b"hello",
        )?;
        let line = daemon.line_with("out ")?;
        let begins = "out IN= OUT=eth0 SRC=2001:0db8:0001:0000:0000:0000:0000:0010 \
            DST=2001:0db8:0007:0000:0000:0000:0000:0007 LEN=53 TC=0 HOPLIMIT=64 FLOWLBL=";
        let ends = " PROTO=UDP SPT=3999 DPT=4000 LEN=13 NFLOG=7 ";
        ensure!(line.starts_with(begins) && line.ends_with(ends), "{line}");
        Ok(())
    });
}

/// What the kernel sends by itself has a socket without a file: nobody is named.
#[test]
fn lines_name_who_sends_where_that_is_asked() {
    with_fwbpf("log_owner", &["setpriv", "bash"], |lab, fwbpf| {
        let rules = format!(
            "{OPEN}-A OUTPUT -p udp --dport 4000 -j LOG --log-prefix \"whose: \" --log-uid\n\
             -A OUTPUT -p ICMP -j LOG --log-prefix \"icmp: \" --log-uid\n\
             -A FORWARD -j LOG --log-prefix \"through: \" --log-uid\nCOMMIT\n"
        );
        let of = |icmp: &str| rules.replace("ICMP", icmp);
        fwbpf.load(&[
            (Family::Ipv4, &of("icmp")),
            (Family::Ipv6, &of("ipv6-icmp")),
        ])?;
        let mut daemon = Daemon::start(fwbpf, &["--log", "stdout"])?;
        for version in 0..2 {
            let script = format!("echo hello > /dev/udp/{}/4000", INTERNET[version]);
            let mut command = lab.server.command("setpriv");
            command.args(["--reuid", "33", "--regid", "34", "--clear-groups"]);
            run(command.args(["bash", "-c", &script]))?;
            let line = daemon.line_with("whose: ")?;
            ensure!(line.ends_with(" LEN=14 UID=33 GID=34 "), "{line}");
            let from = udp(&lab.container1, ip(CONTAINER1[version]), 3999)?;
            send(&from, ip(INTERNET[version]), 4000, b"hello")?;
            let line = daemon.line_with("through: ")?;
            ensure!(!line.contains("UID="), "{line}");
            ensure!(ping(&lab.outside, ip(SERVER[version]))?, "no answer");
            let line = daemon.line_with("icmp: ")?;
            ensure!(!line.contains("UID="), "{line}");
        }
        Ok(())
    });
}

#[test]
fn json_names_the_rule_of_the_policy_that_spoke() {
    with_fwbpf("log_json", &[], |lab, fwbpf| {
        let mut daemon = Daemon::start(fwbpf, &["--log", "json"])?;
        for prefix in ["first ", "second "] {
            let rules = format!(
                "{OPEN}-A INPUT -p udp --dport 4000 -j LOG --log-prefix \"{prefix}\" --log-level 6\nCOMMIT\n"
            );
            fwbpf.load(&[(Family::Ipv4, &rules)])?;
            send(
                &udp(&lab.outside, ip(ADMIN[0]), 0)?,
                ip(SERVER[0]),
                4000,
                b"hello",
            )?;
            let line = daemon.line_with(prefix)?;
            let event: serde_json::Value = serde_json::from_str(&line).context("parse the line")?;
            ensure!(event["prefix"] == prefix && event["level"] == 6, "{line}");
            ensure!(event["in"] == "eth0" && event["bytes"] == 33, "{line}");
        }
        Ok(())
    });
}

#[test]
fn a_full_ring_and_a_limited_log_let_packets_pass() {
    with_fwbpf("log_full", &[], |lab, fwbpf| {
        let rules = format!(
            "{OPEN}-A INPUT -p udp --dport 4000 -m limit --limit 1/hour --limit-burst 2 -j LOG\n\
             -A INPUT -p udp --dport 4000 -j NFLOG\n-A INPUT -p udp --dport 4000 -j ACCEPT\nCOMMIT\n"
        );
        fwbpf.load(&[(Family::Ipv4, &rules)])?;
        // Nobody reads the ring buffer, which has room for some three thousand.
        let here = udp(&lab.server, ip(SERVER[0]), 4000)?;
        let there = udp(&lab.outside, ip(ADMIN[0]), 0)?;
        const SENT: u64 = 4_000;
        for _ in 0..SENT {
            send(&there, ip(SERVER[0]), 4000, b"hello")?;
            ensure!(datagram(&here)?.is_some(), "a datagram is lost");
        }
        let saved = fwbpf.save(Family::Ipv4)?;
        for (rule, packets) in [("-j LOG", 2), ("-j NFLOG", SENT), ("-j ACCEPT", SENT)] {
            let (counted, _) = count(&saved, rule)?;
            ensure!(
                counted == packets,
                "{counted} packets met {rule}, {packets} should"
            );
        }
        let status: serde_json::Value = serde_json::from_str(&fwbpf.status()?)?;
        ensure!(lost(&status) > Some(0), "no event is lost: {status}");
        Ok(())
    });
}

/// What the status says of events that found no room.
fn lost(status: &serde_json::Value) -> Option<u64> {
    let events = status["events"].as_array()?;
    let found = events.iter().find(|event| event["name"] == "event_lost")?;
    found["count"].as_u64()
}

/// The line without the identification, which the sender draws.
fn without_id(line: &str) -> String {
    let words = line.split(' ').filter(|word| !word.starts_with("ID="));
    words.collect::<Vec<_>>().join(" ")
}
