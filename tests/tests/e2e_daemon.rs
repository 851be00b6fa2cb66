//! What `fwbpf daemon` does beside the firewall: ends flows whose time is over, or whose address
//! is gone, and guards interfaces that appear.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use fw_common::abi::maps;
use fw_user::kernel::state::StateDir;
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{MASQUERADE_V6, RULES_V4, RULES_V6, with_fwbpf};
use fwbpf_tests::lab::address::{ADMIN, CONTAINER1, CONTAINER2, INTERNET, OTHER, SERVER};
use fwbpf_tests::lab::saved::count;
use fwbpf_tests::lab::sockets::{
    PATIENCE, Reach, connect, ip, ping, reach, round_trip, send, tcp_echo, udp, wait_up_to,
};
use fwbpf_tests::lab::{Daemon, Firewall, Fwbpf, Namespace, ServerLab};
use serde_json::{Value, json};
use socket2::SockRef;

/// `nf_conntrack_tcp_timeout_close`, the shortest, and those of ICMP and of unanswered UDP.
const CLOSED: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(30);
/// The daemon walks the tables every five seconds; a loaded machine takes longer.
const WALK: Duration = Duration::from_secs(20);

#[test]
fn flows_end_with_their_time_and_no_sooner() {
    with_fwbpf("flows_end", &["ping"], |lab, fwbpf| {
        let v6 = format!("{RULES_V6}{MASQUERADE_V6}");
        fwbpf.load(&[(Family::Ipv4, RULES_V4), (Family::Ipv6, &v6)])?;
        tcp_echo(&lab.outside, 8080)?;
        let _daemon = Daemon::start(fwbpf, &[])?;

        let mut live = Vec::new();
        for version in 0..2 {
            let internet = ip(INTERNET[version]);
            live.push(open(&lab.container1, internet, 8080)?);
            // Unanswered: in a place for strangers' first packets.
            let admin = udp(&lab.outside, ip(ADMIN[version]), 0)?;
            send(&admin, ip(SERVER[version]), 9, b"anybody there?")?;
            ensure!(ping(&lab.container1, internet)?, "ping to {internet}");
        }
        let short = Instant::now();
        for internet in INTERNET {
            let stream = open(&lab.container2, ip(internet), 8080)?;
            // Closing resets.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        let closed = Instant::now();

        // Flow tables of both IP versions, then those of embryos; a translated flow counts twice.
        let all = [7, 7, 0, 0];
        let got = used(fwbpf)?;
        ensure!(got == all, "the tables hold {got:?} at the beginning");
        let ended = |expected: [u64; 4], from: Instant, lifetime: Duration| {
            wait_up_to(
                lifetime + WALK,
                &format!("the tables hold {expected:?}"),
                || Ok(used(fwbpf)? == expected),
            )
            .with_context(|| format!("{:?}", used(fwbpf)))?;
            let after = from.elapsed();
            ensure!(
                // Expiry is counted in ticks of a coarse clock.
                after + Duration::from_millis(50) >= lifetime,
                "flows with a lifetime of {lifetime:?} ended after {after:?}"
            );
            Ok(())
        };
        ended([5, 5, 0, 0], closed, CLOSED)?;
        ended([2, 2, 0, 0], short, SHORT)?;
        // Strangers' packets need not look for the others any more. It is every sixth walk's business.
        wait_up_to(WALK * 6, "only flows that live have hints", || {
            Ok((1..=4).contains(&hints(fwbpf)?))
        })?;
        for stream in &mut live {
            round_trip(stream, b"still there").context("a flow that lives was ended")?;
        }
        Ok(())
    });
}

#[test]
fn masqueraded_flows_end_with_their_address_or_interface() {
    const OPEN: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n\
        *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
        -A POSTROUTING -o eth0 -j MASQUERADE\n-A POSTROUTING -o eth1 -j MASQUERADE\nCOMMIT\n";
    with_fwbpf("flows_lose_address", &[], |lab, fwbpf| {
        fwbpf.load(&[(Family::Ipv4, OPEN), (Family::Ipv6, OPEN)])?;
        for namespace in [&lab.outside, &lab.other] {
            tcp_echo(namespace, 8080)?;
        }
        let mut streams = Vec::new();
        for version in 0..2 {
            for (from, to) in [
                (&lab.container1, INTERNET[version]),
                (&lab.container2, OTHER[version]),
                (&lab.server, INTERNET[version]),
            ] {
                streams.push(open(from, ip(to), 8080)?);
            }
        }
        let all = [
            CONTAINER1[0],
            CONTAINER2[0],
            SERVER[0],
            CONTAINER1[1],
            CONTAINER2[1],
            SERVER[1],
        ];
        ensure_openers(fwbpf, &all)?;
        let _daemon = Daemon::start(fwbpf, &[])?;
        ensure_openers(fwbpf, &all).context("the daemon's first look")?;

        lab.server.ip("address add 198.51.100.77/24 dev eth0\n")?;
        lab.server.ip("address del 198.51.100.77/24 dev eth0\n")?;
        lab.server
            .ip(&format!("address del {}/24 dev eth0\n", SERVER[0]))?;
        let left = [
            CONTAINER2[0],
            SERVER[0],
            CONTAINER1[1],
            CONTAINER2[1],
            SERVER[1],
        ];
        wait_for_openers(fwbpf, &left).context("eth0's IPv4 address is gone")?;

        lab.server.ip("link set eth1 down\n")?;
        let left = [SERVER[0], CONTAINER1[1], SERVER[1]];
        wait_for_openers(fwbpf, &left).context("eth1 is down")?;
        // What is left works: the container's by eth0 in IPv6, and the server's own.
        for number in [3, 5] {
            round_trip(&mut streams[number], b"still there")?;
        }
        Ok(())
    });
}

#[test]
fn an_interface_that_appears_is_filtered() {
    const RULES: &str = "*filter\n\
        :INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
        -A INPUT -i late0 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT\n\
        -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A INPUT -i tun+ -j ACCEPT\n\
        COMMIT\n";
    with_fwbpf("late_interface", &[], |lab, fwbpf| {
        let rules = [(Family::Ipv4, RULES), (Family::Ipv6, RULES)];
        let said = fwbpf.load_with(&[], &rules)?;
        let line = said
            .lines()
            .find(|line| line.contains("do not exist"))
            .with_context(|| format!("load does not say what is missing: {said}"))?;
        ensure!(
            line.contains("late0") && line.contains("tun+") && line.contains("fwbpf daemon"),
            "{line}"
        );
        let path = fwbpf.write_policy("late.v4", RULES)?;
        let outcome = fwbpf.json(&["load", &path.display().to_string()])?;
        ensure!(outcome["missing"] == json!(["late0", "tun+"]), "{outcome}");
        fwbpf.load_with(&[], &rules)?;
        ensure!(
            degraded(fwbpf)?.contains("late0"),
            "status does not say that late0 is missing"
        );
        for port in [80, 81] {
            tcp_echo(&lab.server, port)?;
        }

        let daemon = Daemon::start(fwbpf, &[])?;
        for round in 1..=2 {
            let peer = Namespace::new("late_interface", &format!("late{round}"))?;
            appear(lab, &peer)?;
            wait_up_to(PATIENCE, "late0 is guarded", || {
                Ok(hooks(fwbpf, "late0")? == 2)
            })?;
            for server in ["192.0.2.129", "2001:db8:99::1"] {
                for (port, expected) in [(80, Reach::Open), (81, Reach::Silent)] {
                    let got = reach(&peer, None, ip(server), port)?;
                    ensure!(
                        got == expected,
                        "round {round}: {server} port {port} is {got:?}"
                    );
                }
            }
            for (version, family) in [Family::Ipv4, Family::Ipv6].into_iter().enumerate() {
                let save = fwbpf.save(family)?;
                let rule = "-A INPUT -i late0 -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW -j ACCEPT";
                let (packets, _) = count(&save, rule)?;
                ensure!(
                    packets == round,
                    "round {round}: {packets} packets in\n{save}"
                );
                // The rule is late0's, not eth0's.
                let got = reach(&lab.outside, None, ip(SERVER[version]), 80)?;
                ensure!(got == Reach::Silent, "port 80 at eth0 is {got:?}");
            }
            ensure!(!degraded(fwbpf)?.contains("late0"), "late0 is there");
            // It goes, and comes again with another index.
            lab.server.ip("link del late0\n")?;
            wait_up_to(
                PATIENCE,
                "late0 is gone",
                || Ok(hooks(fwbpf, "late0")? == 0),
            )?;
        }
        // Without the daemon nobody guards it, and status says so.
        drop(daemon);
        let peer = Namespace::new("late_interface", "late3")?;
        appear(lab, &peer)?;
        ensure!(hooks(fwbpf, "late0")? == 0, "who guards late0?");
        let text = degraded(fwbpf)?;
        ensure!(text.contains("late0 is not filtered"), "{text}");
        Ok(())
    });
}

fn open(from: &Namespace, to: IpAddr, port: u16) -> Result<TcpStream> {
    let mut stream = connect(from, None, SocketAddr::new(to, port), PATIENCE)
        .with_context(|| format!("{} connects to {to}", from.name()))?;
    round_trip(&mut stream, b"hello")?;
    Ok(stream)
}

/// late0 in the server, with a host behind it.
fn appear(lab: &ServerLab, peer: &Namespace) -> Result<()> {
    lab.server.ip(&format!(
        "link add late0 type veth peer name wire0 netns {}\n\
         address add 192.0.2.129/25 dev late0\n\
         address add 2001:db8:99::1/64 dev late0 nodad\n\
         link set late0 up\n",
        peer.name()
    ))?;
    // Neighbour discovery is not part of what is tested: IPv6's would need a rule.
    let mac = |namespace: &Namespace, name: &str| -> Result<String> {
        let text = fwbpf_tests::lab::run(std::process::Command::new("ip").args([
            "-n",
            namespace.name(),
            "-j",
            "link",
            "show",
            name,
        ]))?;
        let links: Value = serde_json::from_str(&text)?;
        let address = links[0]["address"].as_str().context("an address")?;
        Ok(address.to_owned())
    };
    let (own, far) = (mac(&lab.server, "late0")?, mac(peer, "wire0")?);
    peer.ip(&format!(
        "address add 192.0.2.130/25 dev wire0\n\
         address add 2001:db8:99::2/64 dev wire0 nodad\n\
         link set wire0 up\n\
         neighbour replace 192.0.2.129 lladdr {own} dev wire0 nud permanent\n\
         neighbour replace 2001:db8:99::1 lladdr {own} dev wire0 nud permanent\n"
    ))?;
    lab.server.ip(&format!(
        "neighbour replace 192.0.2.130 lladdr {far} dev late0 nud permanent\n\
         neighbour replace 2001:db8:99::2 lladdr {far} dev late0 nud permanent\n"
    ))
}

/// How many hints have the bit that says that they may say something.
fn hints(fwbpf: &Fwbpf) -> Result<u32> {
    let state = StateDir::new(fwbpf.state_dir());
    let hinted = MapData::from_pin(state.map(maps::HINTED)).map(Map::Array)?;
    let hinted: Array<MapData, u64> = hinted.try_into()?;
    let words = hinted.iter().map(|word| Ok(word?.count_ones()));
    words.sum()
}

/// Entries of the four flow tables.
fn used(fwbpf: &Fwbpf) -> Result<[u64; 4]> {
    let status = fwbpf.json(&["status"])?;
    let mut used = [0; 4];
    for (place, table) in used
        .iter_mut()
        .zip(status["tables"].as_array().into_iter().flatten())
    {
        *place = table["used"].as_u64().context("a number of entries")?;
    }
    Ok(used)
}

fn wait_for_openers(fwbpf: &Fwbpf, expected: &[&str]) -> Result<()> {
    let mut last = Ok(());
    let waited = wait_up_to(PATIENCE, "the flows that are left", || {
        last = ensure_openers(fwbpf, expected);
        Ok(last.is_ok())
    });
    waited.and(last)
}

/// Exactly these addresses have TCP flows, and no alias is left of others.
fn ensure_openers(fwbpf: &Fwbpf, expected: &[&str]) -> Result<()> {
    let flows = fwbpf.json(&["flows"])?;
    let mut openers = Vec::new();
    let mut entries = 0;
    for flow in flows.as_array().into_iter().flatten() {
        entries += 1 + u64::from(flow["masqueraded"] == true);
        if flow["protocol"] == 6 {
            let source = flow["original"]["source"].as_str();
            openers.push(ip(source.context("a source")?));
        }
    }
    let mut expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
    openers.sort();
    expected.sort();
    ensure!(
        openers == expected,
        "flows of {openers:?}, not of {expected:?}"
    );
    let used: u64 = used(fwbpf)?.iter().sum();
    ensure!(used == entries, "{used} entries for {entries}");
    Ok(())
}

fn hooks(fwbpf: &Fwbpf, name: &str) -> Result<usize> {
    let status = fwbpf.json(&["status"])?;
    let interfaces = status["interfaces"].as_array();
    Ok(interfaces
        .into_iter()
        .flatten()
        .find(|interface| interface["name"] == name)
        .and_then(|interface| interface["hooks"].as_array())
        .map_or(0, Vec::len))
}

fn degraded(fwbpf: &Fwbpf) -> Result<String> {
    Ok(fwbpf.json(&["status"])?["degraded"].to_string())
}
