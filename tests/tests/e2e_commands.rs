//! The command line against a running firewall: counters in and out, flows, and what `load` warns
//! of.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{MASQUERADE_V6, RULES_V4, RULES_V6, with_fwbpf};
use fwbpf_tests::lab::address::{CONTAINER1, INTERNET, SERVER};
use fwbpf_tests::lab::saved::{count, rules_only};
use fwbpf_tests::lab::sockets::{
    PATIENCE, Reach, connect, datagram, ip, ping, reach, round_trip, send, tcp_echo, udp,
};
use fwbpf_tests::lab::{Firewall, Fwbpf, Iptables, Namespace, ServerLab};
use serde_json::{Value, json};

const IPTABLES: [&str; 4] = [
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
];

/// As iptables-save prints it, so that it must come out as it went in.
const COUNTED: &str = "*filter\n\
    :INPUT DROP [12:3456]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [7:8]\n:MINE - [0:0]\n\
    [1:60] -A INPUT -i lo -j ACCEPT\n\
    [4294967296:6597069766656] -A INPUT -p udp -m udp --dport 9 -j MINE\n\
    [0:0] -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n\
    [2:200] -A MINE -j ACCEPT\n\
    COMMIT\n";

#[test]
fn load_takes_counters_over_only_when_told() {
    with_fwbpf("load_counters", &[], |lab, fwbpf| {
        let both = [(Family::Ipv4, COUNTED), (Family::Ipv6, COUNTED)];
        for (family, version) in [(Family::Ipv4, 0), (Family::Ipv6, 1)] {
            fwbpf.clear()?;
            fwbpf.load_with(&[], &both)?;
            let fresh = fwbpf.save(family)?;
            ensure!(
                !fresh.contains("3456") && fresh.contains(":INPUT DROP [0:0]"),
                "without --counters:\n{fresh}"
            );
            fwbpf.load_with(&["--counters"], &both)?;
            ensure!(fwbpf.save(family)? == COUNTED, "{}", fwbpf.save(family)?);

            // They count on from there,
            let sender = udp(&lab.outside, ip(INTERNET[version]), 0)?;
            send(&sender, ip(SERVER[version]), 9, &[0; 72])?;
            let length = [20, 40][version] + 8 + 72;
            let mine = (3, 200 + length);
            let got = count(&fwbpf.save(family)?, "-A MINE -j ACCEPT")?;
            ensure!(got == mine, "{got:?}, not {mine:?}");
            // stay when the same policy is loaded again without them, and go back with them.
            fwbpf.load_with(&[], &both)?;
            ensure!(count(&fwbpf.save(family)?, "-A MINE -j ACCEPT")? == mine);
            fwbpf.load_with(&["--counters"], &both)?;
            ensure!(fwbpf.save(family)? == COUNTED, "{}", fwbpf.save(family)?);
        }
        Ok(())
    });
}

#[test]
fn a_saved_policy_is_restored_with_its_counters() {
    with_fwbpf("save_round_trip", &["ping"], |lab, fwbpf| {
        load_guide(fwbpf)?;
        traffic(lab)?;
        let saved = [fwbpf.save(Family::Ipv4)?, fwbpf.save(Family::Ipv6)?];
        let (packets, _) = count(&saved[0], "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT")?;
        ensure!(packets == 1, "the traffic is not in\n{}", saved[0]);
        let [v4, v6] = [&saved[0], &saved[1]].map(String::as_str);
        fwbpf.clear()?;
        fwbpf.load_with(&["--counters"], &[(Family::Ipv4, v4), (Family::Ipv6, v6)])?;
        let again = [fwbpf.save(Family::Ipv4)?, fwbpf.save(Family::Ipv6)?];
        ensure!(
            saved == again,
            "{}\nbecame\n{}",
            saved.concat(),
            again.concat()
        );

        // What JSON holds is the same text.
        let value = fwbpf.json(&["show", "--save"])?;
        ensure!(value == json!({ "ipv4": v4, "ipv6": v6 }), "{value}");
        let value = fwbpf.json(&["show", "--save", "--ipv6"])?;
        ensure!(value == json!({ "ipv6": v6 }), "{value}");
        ensure!(fwbpf.text(&["show", "--save"])? == saved.concat());
        Ok(())
    });
}

#[test]
fn iptables_and_fwbpf_restore_what_the_other_saved() {
    with_fwbpf("save_exchange", &IPTABLES, |lab, fwbpf| {
        let namespace = Namespace::new("save_exchange", "ipt")?;
        let namespace = std::sync::Arc::new(namespace);
        let iptables = Iptables::new(namespace.clone());
        load_guide(fwbpf)?;
        traffic(lab)?;
        for (family, restore, flag) in [
            (Family::Ipv4, IPTABLES[0], "--ipv4"),
            (Family::Ipv6, IPTABLES[1], "--ipv6"),
        ] {
            let saved = fwbpf.save(family)?;
            let mut command = namespace.command(restore);
            feed(command.args(["-c", "-w", "20"]), &saved)?;
            let there = uncommented(&iptables.save(family)?);
            ensure!(there == uncommented(&saved), "{saved}\nbecame\n{there}");

            let mut command = fwbpf.command();
            feed(
                command.args(["load", flag, "--counters", "-"]),
                &iptables.save(family)?,
            )?;
            let back = uncommented(&fwbpf.save(family)?);
            ensure!(back == there, "{there}\nbecame\n{back}");
            load_guide(fwbpf)?;
            traffic(lab)?;
        }
        Ok(())
    });
}

#[test]
fn policy_toml_goes_in_and_comes_out() {
    with_fwbpf("toml_round_trip", &[], |_, fwbpf| {
        const POLICY: &str = include_str!("../../examples/guide.policy.toml");
        let first = fwbpf.write_policy("policy.toml", POLICY)?;
        fwbpf.load_files(&[&first])?;
        let saved = fwbpf.text(&["show", "--save"])?;
        let printed = fwbpf.text(&["show", "--toml"])?;
        ensure!(fwbpf.json(&["show", "--toml"])? == json!({ "toml": printed }));
        let second = fwbpf.write_policy("printed.toml", &printed)?;
        fwbpf.load_files(&[&second])?;
        ensure!(fwbpf.text(&["show", "--toml"])? == printed);
        ensure!(rules_only(&fwbpf.text(&["show", "--save"])?) == rules_only(&saved));
        Ok(())
    });
}

#[test]
fn flows_are_listed_as_they_are() {
    with_fwbpf("flows_listed", &["ping"], |lab, fwbpf| {
        load_guide(fwbpf)?;
        tcp_echo(&lab.outside, 8080)?;
        ensure!(fwbpf.json(&["flows"])? == json!([]), "flows of nobody");
        for version in 0..2 {
            let (internet, server) = (ip(INTERNET[version]), ip(SERVER[version]));
            let to = SocketAddr::new(internet, 8080);
            let from = SocketAddr::new(ip(CONTAINER1[version]), 40_000);
            let mut stream = connect(&lab.container1, Some(from), to, PATIENCE)?;
            round_trip(&mut stream, b"hello")?;
            ensure!(ping(&lab.server, internet)?, "ping");
            let flows = fwbpf.json(&["flows"])?;
            let family = ["ipv4", "ipv6"][version];
            let of = |protocol: u64| {
                let mut found = flows
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|flow| flow["family"] == family && flow["protocol"] == protocol);
                let flow = found.next().with_context(|| format!("not in {flows}"))?;
                ensure!(found.next().is_none(), "twice in {flows}");
                anyhow::Ok(flow.clone())
            };
            let tcp = of(6)?;
            ensure!(tcp["state"] == "ESTABLISHED", "{tcp}");
            ensure!(
                tcp["masqueraded"] == true && tcp["assured"] == true,
                "{tcp}"
            );
            let port = tcp["reply"]["destination_port"].clone();
            let reply = json!({
                "source": internet, "source_port": 8080,
                "destination": server, "destination_port": port,
            });
            ensure!(tcp["reply"] == reply, "{tcp}");
            ensure!(
                tcp["original"]["source"] == json!(ip(CONTAINER1[version]))
                    && tcp["original"]["source_port"] == 40_000,
                "{tcp}"
            );
            // Five days, less the moment since.
            let timeout = tcp["timeout"].as_u64().context("a timeout")?;
            ensure!((431_990..=432_000).contains(&timeout), "{tcp}");
            let icmp = of([1, 58][version])?;
            ensure!(
                icmp["masqueraded"] == false && icmp["replied"] == true,
                "{icmp}"
            );

            let text = fwbpf.text(&["flows"])?;
            let line = format!(
                "ESTABLISHED src={} dst={internet} sport=40000 dport=8080 \
                 src={internet} dst={server} sport=8080 dport={port} [ASSURED] [MASQUERADED]",
                CONTAINER1[version]
            );
            ensure!(
                text.lines()
                    .any(|l| l.starts_with("tcp      6 43") && l.ends_with(&line)),
                "no line with {line} in\n{text}"
            );
        }
        Ok(())
    });
}

#[test]
fn flushed_flows_are_judged_anew() {
    with_fwbpf("flows_flushed", &[], |lab, fwbpf| {
        load_guide(fwbpf)?;
        for version in 0..2 {
            let (internet, server) = (ip(INTERNET[version]), ip(SERVER[version]));
            let own = udp(&lab.server, server, 6000)?;
            let peer = udp(&lab.outside, internet, 5000)?;
            send(&own, internet, 5000, b"question")?;
            ensure!(datagram(&peer)?.is_some(), "the question is lost");
            send(&peer, server, 6000, b"answer")?;
            ensure!(datagram(&own)?.is_some(), "the answer is lost");

            let ended = fwbpf.json(&["flows", "--flush"])?;
            ensure!(ended == json!({ "ended": 1 }), "{ended}");
            ensure!(fwbpf.json(&["flows"])? == json!([]), "flows are left");
            let used: Vec<Value> = fwbpf.json(&["status"])?["tables"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|table| table["used"].clone())
                .collect();
            ensure!(used == [0, 0, 0, 0], "entries are left: {used:?}");

            send(&peer, server, 6000, b"another answer")?;
            ensure!(datagram(&own)?.is_none(), "it is nobody's answer any more");
            send(&own, internet, 5000, b"question")?;
            send(&peer, server, 6000, b"answer")?;
            ensure!(datagram(&own)?.is_some(), "a new question has no answer");
            fwbpf.text(&["flows", "--flush"])?;
        }
        Ok(())
    });
}

#[test]
fn load_warns_of_a_policy_that_cuts_the_ssh_session() {
    with_fwbpf("load_warns_ssh", &[], |_, fwbpf| {
        let closed = RULES_V4.replace("--dport 22 ", "--dport 2222 ");
        let closed_v6 = RULES_V6.replace("--dport 22 ", "--dport 2222 ");
        ensure!(
            closed != RULES_V4 && closed_v6 != RULES_V6,
            "the guide has changed"
        );
        for version in 0..2 {
            let session = format!("{} 50000 {} 22", INTERNET[version], SERVER[version]);
            for (cuts, v4, v6) in [(true, &*closed, &*closed_v6), (false, RULES_V4, RULES_V6)] {
                let v4 = fwbpf.write_policy("rules.v4", v4)?;
                let v6 = fwbpf.write_policy("rules.v6", v6)?;
                let say = |command: &str, ssh: &str| -> Result<Option<String>> {
                    let output = fwbpf
                        .command()
                        .arg(command)
                        .args([&v4, &v6])
                        .env("SSH_CONNECTION", ssh)
                        .output()?;
                    let said = String::from_utf8(output.stderr)?;
                    ensure!(output.status.success(), "{command}: {said}");
                    Ok(said
                        .lines()
                        .find(|line| line.contains("cuts the SSH connection"))
                        .map(str::to_owned))
                };
                let loaded = say("load", &session)?;
                ensure!(loaded.is_some() == cuts, "load says {loaded:?}");
                ensure!(
                    loaded == say("check", &session)?,
                    "check says something else"
                );
                ensure!(say("load", "")?.is_none(), "there is no SSH session");
            }
        }
        Ok(())
    });
}

fn load_guide(fwbpf: &Fwbpf) -> Result<()> {
    let v6 = format!("{RULES_V6}{MASQUERADE_V6}");
    fwbpf.load(&[(Family::Ipv4, RULES_V4), (Family::Ipv6, &v6)])
}

/// Something for most rules to count.
fn traffic(lab: &ServerLab) -> Result<()> {
    tcp_echo(&lab.server, 80).ok();
    tcp_echo(&lab.outside, 8080).ok();
    for version in 0..2 {
        let (internet, server) = (ip(INTERNET[version]), ip(SERVER[version]));
        for (port, expected) in [(80, Reach::Open), (81, Reach::Silent)] {
            let got = reach(&lab.outside, None, server, port)?;
            ensure!(got == expected, "port {port} is {got:?}");
        }
        ensure!(reach(&lab.container1, None, internet, 8080)? == Reach::Open);
        ensure!(reach(&lab.server, None, internet, 25)? == Reach::Silent);
    }
    Ok(())
}

/// Runs a command with text on its standard input.
fn feed(command: &mut Command, text: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}with\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The tables in one order, without the comments that have the date.
fn uncommented(save: &str) -> String {
    let mut tables: Vec<String> = Vec::new();
    for line in save.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with('*') {
            tables.push(String::new());
        }
        if let Some(table) = tables.last_mut() {
            *table += line;
            table.push('\n');
        }
    }
    tables.sort();
    tables.concat()
}
