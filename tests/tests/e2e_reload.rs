//! Loading, reloading, failing to load, unloading: what happens to traffic and to counters.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use aya::maps::{Array, Map, MapData};
use fw_common::abi::maps;
use fw_user::kernel::state::{Fact, StateDir};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{RULES_V4, RULES_V6, under_both, under_fwbpf, with_fwbpf};
use fwbpf_tests::lab::address::{INTERNET, SERVER};
use fwbpf_tests::lab::saved::rules_only;
use fwbpf_tests::lab::sockets::{
    PATIENCE, Reach, connect, ip, reach, round_trip, send, tcp_echo, udp,
};
use fwbpf_tests::lab::{Firewall as _, Fwbpf, fwbpf_binary};

#[test]
fn a_bad_reload_changes_nothing() {
    under_both("bad_reload", |guide| {
        tcp_echo(&guide.lab.server, 80)?;
        tcp_echo(&guide.lab.server, 81)?;
        let before = rules_only(&guide.save()?);
        let open = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n";
        for bad in [
            "-A INPUT -m nosuchmatch -j ACCEPT\nCOMMIT\n",
            "-A INPUT -s 300.1.2.3 -j ACCEPT\nCOMMIT\n",
            "-A INPUT -j NOSUCHCHAIN\nCOMMIT\n",
            "-A INPUT -p tcp --dport 99999 -j ACCEPT\nCOMMIT\n",
        ] {
            let text = format!("{open}{bad}");
            let result = guide.firewall.load(&[(Family::Ipv4, &text)]);
            ensure!(result.is_err(), "it was loaded:\n{text}");
            ensure!(
                rules_only(&guide.save()?) == before,
                "the rules changed by\n{text}"
            );
        }
        for server in SERVER {
            for (port, expected) in [(80, Reach::Open), (81, Reach::Silent)] {
                let got = reach(&guide.lab.outside, None, ip(server), port)?;
                ensure!(got == expected, "port {port} is {got:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_good_reload_loses_none_of_a_thousand_flows() {
    const FLOWS: usize = 1000;
    under_both("good_reload", |guide| {
        tcp_echo(&guide.lab.outside, 8080)?;
        tcp_echo(&guide.lab.server, 80)?;
        let mut streams = Vec::with_capacity(FLOWS);
        for number in 0..FLOWS {
            // In turn: out of a container through masquerade, and in to the server.
            let (from, to, port) = if number % 2 == 0 {
                (&guide.lab.container1, INTERNET[number / 2 % 2], 8080)
            } else {
                (&guide.lab.outside, SERVER[number / 2 % 2], 80)
            };
            let to = SocketAddr::new(ip(to), port);
            let mut stream = connect(from, None, to, PATIENCE).context("open a flow")?;
            round_trip(&mut stream, b"before")?;
            streams.push(stream);
        }
        // New connections to port 80 end, and a rule more moves all others.
        let changed = |rules: &str| {
            rules
                .replace("-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n", "")
                .replace(
                    "-A INPUT -j DROP",
                    "-A INPUT -p tcp -m tcp --dport 8443 -j ACCEPT\n-A INPUT -j DROP",
                )
        };
        let v6 = format!("{}{}", changed(RULES_V6), fwbpf_tests::guide::MASQUERADE_V6);
        guide.load(&changed(RULES_V4), &v6)?;
        for (number, stream) in streams.iter_mut().enumerate() {
            round_trip(stream, b"after").with_context(|| format!("flow {number} is lost"))?;
        }
        let got = reach(&guide.lab.outside, None, ip(SERVER[0]), 80)?;
        ensure!(
            got == Reach::Silent,
            "the new rules do not hold: port 80 is {got:?}"
        );
        Ok(())
    });
}

#[test]
fn counters_equal_what_was_sent() {
    under_both("counters_equal", |guide| {
        const PACKETS: u64 = 37;
        const LENGTH: u64 = 100;
        for version in 0..2 {
            let family = [Family::Ipv4, Family::Ipv6][version];
            let header = [20 + 8, 40 + 8][version];
            let to = ip(SERVER[version]);
            let before = guide.count(family, "-A INPUT -j DROP")?;
            let sender = udp(&guide.lab.outside, ip(INTERNET[version]), 0)?;
            for _ in 0..PACKETS {
                send(&sender, to, 9, &[0; LENGTH as usize])?;
            }
            let after = guide.count(family, "-A INPUT -j DROP")?;
            let expected = (before.0 + PACKETS, before.1 + PACKETS * (LENGTH + header));
            ensure!(after == expected, "{family:?}: {after:?}, not {expected:?}");
        }
        Ok(())
    });
}

#[test]
fn a_killed_load_leaves_the_old_or_the_new_policy() {
    under_fwbpf("killed_load", |guide| {
        let binary = fwbpf_binary().context("there is no fwbpf binary")?;
        let fwbpf = Fwbpf::new(guide.lab.server.clone(), binary)?;
        let old = rules_only(&guide.save()?);
        let changed = RULES_V4.replace("--dport 443", "--dport 444");
        let new_v4 = fwbpf.write_policy("changed.rules.v4", &changed)?;
        let new_v6 = fwbpf.write_policy("changed.rules.v6", RULES_V6)?;
        fwbpf.load_files(&[&new_v4, &new_v6])?;
        let new = rules_only(&guide.save()?);
        ensure!(old != new);
        let mut outcomes = [0, 0];
        for round in 0..30 {
            guide.load_guide()?;
            let mut load = fwbpf
                .command()
                .arg("load")
                .args([&new_v4, &new_v6])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            // The moments are spread over the time that a load takes; what is waited for is time.
            std::thread::sleep(Duration::from_millis(round * 4));
            load.kill()?;
            load.wait()?;
            let found = rules_only(&guide.save()?);
            ensure!(found == old || found == new, "after {round}:\n{found}");
            outcomes[usize::from(found == new)] += 1;
            let got = reach(&guide.lab.outside, None, ip(SERVER[0]), 81)?;
            ensure!(
                got == Reach::Silent,
                "port 81 is {got:?} after a killed load"
            );
        }
        eprintln!(
            "killed loads: {} left the old policy, {} the new",
            outcomes[0], outcomes[1]
        );
        // And the next load works as if nothing had been.
        guide.load_guide()?;
        ensure!(rules_only(&guide.save()?) == old);
        Ok(())
    });
}

#[test]
fn the_firewall_stays_when_the_process_ends_and_goes_by_unload() {
    under_fwbpf("stays_and_goes", |guide| {
        tcp_echo(&guide.lab.server, 81)?;
        let to = ip(SERVER[0]);
        // `load` has ended, or GuideLab::new would not have returned; nothing of it runs on.
        let got = reach(&guide.lab.outside, None, to, 81)?;
        ensure!(got == Reach::Silent, "port 81 is {got:?}");
        guide.firewall.clear()?;
        let got = reach(&guide.lab.outside, None, to, 81)?;
        ensure!(got == Reach::Open, "after unload port 81 is {got:?}");
        let state = std::path::Path::new("/sys/fs/bpf").join(guide.lab.server.name());
        let left = std::fs::read_dir(&state).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} pins are left in {}", state.display());
        let binary = fwbpf_binary().context("there is no fwbpf binary")?;
        let status = Fwbpf::new(guide.lab.server.clone(), binary)?
            .output(&["show"])?
            .status;
        ensure!(
            status.code() == Some(4),
            "show ended with {status}, not with 4: nothing loaded"
        );
        Ok(())
    });
}

/// The programs of another version may not have said, where these look first, that there are flows.
#[test]
fn flows_of_another_versions_programs_are_found() {
    with_fwbpf("other_programs", &[], |lab, fwbpf| {
        let established = "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
        let rules = |more: &str| {
            let rules = format!(
                "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n{established}{more}COMMIT\n"
            );
            [Family::Ipv4, Family::Ipv6].map(|family| (family, rules.clone()))
        };
        let load = |more| fwbpf.load(&rules(more).each_ref().map(|(f, text)| (*f, text.as_str())));
        load("-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n-A INPUT -p ipv6-icmp -j ACCEPT\n")?;
        tcp_echo(&lab.server, 80)?;
        let mut streams = SERVER.map(|server| {
            connect(
                &lab.outside,
                None,
                SocketAddr::new(ip(server), 80),
                PATIENCE,
            )
        });
        for stream in &mut streams {
            round_trip(stream.as_mut().expect("port 80 is open"), b"before")?;
        }

        let state = StateDir::new(fwbpf.state_dir());
        let hinted = MapData::from_pin(state.map(maps::HINTED)).map(Map::Array)?;
        let mut hinted: Array<MapData, u64> = hinted.try_into()?;
        let mut bits = 0;
        for place in 0..hinted.len() {
            bits += hinted.get(&place, 0)?.count_ones();
            hinted.set(place, 0, 0)?;
        }
        ensure!(bits > 0, "no flow has a hint");
        state.forget_fact(Fact::Object)?;
        load("-A INPUT -p ipv6-icmp -j ACCEPT\n")?;
        for stream in &mut streams {
            let stream = stream.as_mut().expect("port 80 was open");
            round_trip(stream, b"after").context("a connection was lost")?;
        }
        Ok(())
    });
}
