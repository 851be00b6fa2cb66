//! What rules remember of addresses, with real connections.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{OUTSIDE, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{Reach, connect, ip, reach, tcp_echo, udp, wait_for};
use fwbpf_tests::lab::{Firewall as _, Fwbpf, Namespace};

/// Both IP versions with the same rules of the table filter.
fn load(fwbpf: &Fwbpf, rules: &str) -> Result<()> {
    let text = format!(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A INPUT -i lo -j ACCEPT\n\
         -A INPUT -p ipv6-icmp -j ACCEPT\n\
         {rules}COMMIT\n"
    );
    fwbpf.load(&[
        (Family::Ipv4, &text.replace("ipv6-icmp", "icmp")),
        (Family::Ipv6, &text),
    ])
}

fn expect(from: &Namespace, version: usize, port: u16, expected: Reach, when: &str) -> Result<()> {
    let got = reach(from, None, ip(SERVER[version]), port)?;
    ensure!(got == expected, "{when}, {}: {got:?}", SERVER[version]);
    Ok(())
}

/// The recipe of a thousand servers: three connections a minute, the fourth is refused, and so is every
/// one after it until there was silence for a minute.
const BRUTE_FORCE: &str = "\
     -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
     -A INPUT -p tcp -m tcp --dport 81 -m conntrack --ctstate NEW -m recent --set --name SSH\n\
     -A INPUT -p tcp -m tcp --dport 81 -m conntrack --ctstate NEW -m recent --update --seconds 60 --hitcount 4 --name SSH -j DROP\n\
     -A INPUT -p tcp -m tcp --dport 81 -j ACCEPT\n";

#[test]
fn who_connects_too_often_is_refused_and_remembered_over_a_load() {
    with_fwbpf("lists_recent", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 81)?;
        load(fwbpf, BRUTE_FORCE)?;
        for version in [0, 1] {
            for number in 1..=3 {
                let when = format!("connection {number}");
                expect(&lab.outside, version, 81, Reach::Open, &when)?;
            }
            expect(&lab.outside, version, 81, Reach::Silent, "connection 4")?;
            load(fwbpf, BRUTE_FORCE)?;
            expect(&lab.outside, version, 81, Reach::Silent, "after a load")?;

            let list = fwbpf.json(&["recent", "list", "SSH"])?;
            let entries = list[0]["entries"].as_array().cloned().unwrap_or_default();
            let own = |entry: &&serde_json::Value| entry["address"] == OUTSIDE[version];
            let times = entries
                .iter()
                .find(own)
                .and_then(|e| e["seconds_ago"].as_array());
            // What is refused is a SYN, sent again and again.
            ensure!(
                times.is_some_and(|times| times.len() >= 5),
                "the list is {list}"
            );

            fwbpf.text(&["recent", "del", "SSH", OUTSIDE[version]])?;
            expect(
                &lab.outside,
                version,
                81,
                Reach::Open,
                "once it is forgotten",
            )?;
            fwbpf.text(&["recent", "flush", "SSH"])?;
            for _ in 0..4 {
                fwbpf.text(&["recent", "add", "SSH", OUTSIDE[version]])?;
            }
            expect(
                &lab.outside,
                version,
                81,
                Reach::Silent,
                "once it was added by hand",
            )?;
        }
        let code = |arguments: &[&str]| -> Result<Option<i32>> {
            Ok(fwbpf.output(arguments)?.status.code())
        };
        ensure!(code(&["recent", "del", "SSH", "203.0.113.99"])? == Some(5));
        ensure!(code(&["recent", "list", "SHS"])? == Some(2));
        // Without a rule that names it, the list is gone, and begins anew.
        load(fwbpf, "-A INPUT -p tcp -m tcp --dport 81 -j ACCEPT\n")?;
        ensure!(code(&["recent", "list", "SSH"])? == Some(2));
        load(fwbpf, BRUTE_FORCE)?;
        expect(&lab.outside, 0, 81, Reach::Open, "with a new list")
    });
}

/// As many packets as a list can remember at most, counted one by one.
#[test]
fn the_longest_list_counts_65_535_packets() {
    const MOST: u32 = 65_535;
    with_fwbpf("lists_longest", &[], |lab, fwbpf| {
        let rules = "-A INPUT -p udp -m udp --dport 81 -m recent --set --name LONG\n\
                     -A INPUT -p udp -m udp --dport 82 -m recent --rcheck --hitcount 65535 --name LONG\n\
                     -A INPUT -p udp -j DROP\n";
        load(fwbpf, rules)?;
        let socket = udp(&lab.outside, ip(OUTSIDE[0]), 0)?;
        let send = |port: u16, count: u32| -> Result<Duration> {
            let started = Instant::now();
            for _ in 0..count {
                socket.send_to(b"x", (ip(SERVER[0]), port))?;
            }
            Ok(started.elapsed())
        };
        let counted =
            |text: &str| -> Result<u64> { Ok(count(&fwbpf.save(Family::Ipv4)?, text)?.0) };
        let set = "-A INPUT -p udp -m udp --dport 81 -m recent --set --name LONG \
                   --mask 255.255.255.255 --rsource";
        let asked = "-A INPUT -p udp -m udp --dport 82 -m recent --rcheck --hitcount 65535 --name LONG \
                     --mask 255.255.255.255 --rsource";
        send(81, MOST - 1)?;
        wait_for("all packets but one", || {
            Ok(counted(set)? == u64::from(MOST - 1))
        })?;
        send(82, 1)?;
        send(81, 1)?;
        wait_for("the last one", || Ok(counted(set)? == u64::from(MOST)))?;
        ensure!(counted(asked)? == 0, "one packet less is enough");
        let usual = send(83, 1000)?;
        let long = send(82, 1000)?;
        println!("1000 datagrams: {usual:?}, and {long:?} where 65535 times are looked at");
        wait_for("each to be counted", || Ok(counted(asked)? == 1000))
    });
}

/// Two connections an hour for each source; who is over it is counted by a second rule of the same name.
#[test]
fn each_source_has_a_limit_of_its_own() {
    with_fwbpf("lists_hashlimit", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 81)?;
        let limit = "--hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name web";
        let rules = format!(
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A INPUT -p tcp -m tcp --dport 81 -m hashlimit --hashlimit-upto 1/hour {limit} -j ACCEPT\n"
        );
        load(fwbpf, &rules)?;
        for version in [0, 1] {
            for number in 1..=2 {
                let when = format!("connection {number}");
                expect(&lab.outside, version, 81, Reach::Open, &when)?;
            }
            expect(&lab.outside, version, 81, Reach::Silent, "connection 3")?;
            expect(&lab.other, version, 81, Reach::Open, "of another source")?;
            load(fwbpf, &rules)?;
            expect(&lab.outside, version, 81, Reach::Silent, "after a load")?;
        }
        // With other numbers the table begins anew.
        load(fwbpf, &rules.replace("1/hour", "2/hour"))?;
        expect(&lab.outside, 0, 81, Reach::Open, "with another limit")
    });
}

/// Two connections for each address; the third is refused, until one of the two is closed.
#[test]
fn an_address_has_so_many_connections() {
    with_fwbpf("lists_connlimit", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 81)?;
        load(
            fwbpf,
            "-A INPUT -p tcp -m tcp --dport 81 --syn -m connlimit --connlimit-above 2 -j DROP\n\
             -A INPUT -p tcp -m tcp --dport 81 -j ACCEPT\n",
        )?;
        for version in [0, 1] {
            let server = SocketAddr::new(ip(SERVER[version]), 81);
            let open = || connect(&lab.outside, None, server, Duration::from_secs(2));
            let (first, _second) = (open()?, open()?);
            expect(&lab.outside, version, 81, Reach::Silent, "connection 3")?;
            expect(&lab.other, version, 81, Reach::Open, "of another address")?;
            drop(first);
            // Until the server has closed it, too.
            wait_for("another, once one is closed", || {
                Ok(reach(&lab.outside, None, server.ip(), 81)? == Reach::Open)
            })?;
        }
        Ok(())
    });
}
