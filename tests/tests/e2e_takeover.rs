//! Moving from iptables to fwbpf, and what operators do with flows: the kernel's connections are taken
//! over, and some are deleted.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{CONTAINER1, CONTAINER2, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{
    PATIENCE, SILENCE, connect, datagram, ip, listen, round_trip, send, tcp_echo, udp,
};
use fwbpf_tests::lab::{Firewall, Iptables, Namespace, ServerLab};
use serde_json::json;

const IPTABLES: [&str; 3] = [
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "conntrack",
];

const MASQUERADE: &str = "*nat\n\
    :PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
    -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";

/// Nothing may begin.
const ESTABLISHED: &str = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n\
    -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
    -A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n";

const OPEN: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";

/// Nothing translates, and nothing asks for connections: netfilter does not track any more.
const NO_NAT: &str = "*nat\n\
    :PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n\
    *mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
    :POSTROUTING ACCEPT\nCOMMIT\n";

fn both(text: &str) -> [(Family, &str); 2] {
    [(Family::Ipv4, text), (Family::Ipv6, text)]
}

/// A connection with both its ends.
struct Talk {
    near: TcpStream,
    far: TcpStream,
}

impl Talk {
    fn begin(lab: &ServerLab, from: &Namespace, own: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener = listen(&lab.outside, to.port())?;
        let near = connect(from, Some(own), to, PATIENCE).context("the connection")?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { near, far })
    }

    /// Bytes both ways.
    fn goes_on(&mut self) -> Result<()> {
        carry(&mut self.far, &mut self.near)?;
        carry(&mut self.near, &mut self.far)
    }
}

fn carry(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"text")?;
    let mut got = [0; 4];
    to.read_exact(&mut got).context("it does not go on")?;
    ensure!(got == *b"text");
    Ok(())
}

#[test]
fn connections_through_iptables_go_on() {
    with_fwbpf("takeover", &IPTABLES, |lab, fwbpf| {
        let iptables = Iptables::new(lab.server.clone());
        let rules = format!("{OPEN}{MASQUERADE}");
        iptables.load(&both(&rules))?;
        tcp_echo(&lab.server, 22)?;
        for version in 0..2 {
            let far = SocketAddr::new(ip(INTERNET[version]), 5000 + version as u16);
            let own = |addresses: [&str; 2]| SocketAddr::new(ip(addresses[version]), 6000);
            // The second one's port is taken: it gets another.
            let mut first = Talk::begin(lab, &lab.container1, own(CONTAINER1), far)?;
            let mut second = Talk::begin(lab, &lab.container2, own(CONTAINER2), far)?;
            let port = second.far.peer_addr()?.port();
            ensure!(port != 6000, "the second connection's port was not taken");
            let server = SocketAddr::new(ip(SERVER[version]), 22);
            let mut ssh = connect(&lab.outside, None, server, PATIENCE)?;
            round_trip(&mut ssh, b"before")?;

            let rules = format!("{ESTABLISHED}{MASQUERADE}");
            let told = fwbpf.load_with(&[], &both(&rules))?;
            ensure!(!told.contains("not taken over"), "{told}");
            // While both translate, the inner side's packets show that netfilter was first.
            carry(&mut second.near, &mut second.far).context("the second, beside")?;
            second.goes_on().context("the second, beside")?;
            iptables.load(&both(&format!("{OPEN}{NO_NAT}")))?;
            first.goes_on().context("the first")?;
            // Its answer is the first that comes.
            carry(&mut second.far, &mut second.near).context("the second")?;
            second.goes_on().context("the second")?;
            round_trip(&mut ssh, b"after").context("to the server")?;

            let flows = fwbpf.text(&[
                "flows",
                "--proto",
                "tcp",
                "--reply-port-dst",
                &port.to_string(),
            ])?;
            ensure!(flows.contains("[MASQUERADED]"), "{flows}");
            // Without its past, a connection does not go on.
            fwbpf.clear()?;
            fwbpf.load_with(&["--no-import"], &both(&rules))?;
            first.near.set_read_timeout(Some(SILENCE))?;
            ensure!(first.goes_on().is_err(), "nobody knows the first one");
            fwbpf.clear()?;
            iptables.load(&both(&format!("{OPEN}{MASQUERADE}")))?;
        }
        Ok(())
    });
}

/// What Docker writes for `-p 8080:80`.
fn published(version: usize) -> String {
    let (server, container) = (SERVER[version], CONTAINER1[version]);
    let to = match version {
        0 => format!("{container}:80"),
        _ => format!("[{container}]:80"),
    };
    MASQUERADE.replace(
        "-A POSTROUTING",
        &format!(
            "-A PREROUTING -d {server} -p tcp -m tcp --dport 8080 -j DNAT --to-destination {to}\n\
             -A POSTROUTING -o docker0 -s {} -j MASQUERADE\n-A POSTROUTING",
            CONTAINER2[version]
        ),
    )
}

#[test]
fn connections_to_published_ports_go_on() {
    with_fwbpf("takeover_published", &IPTABLES, |lab, fwbpf| {
        let iptables = Iptables::new(lab.server.clone());
        let of = |filter: &str, version| format!("{filter}{}", published(version));
        let (v4, v6) = (of(OPEN, 0), of(OPEN, 1));
        iptables.load(&[(Family::Ipv4, &v4), (Family::Ipv6, &v6)])?;
        let mut talks = Vec::new();
        for server in SERVER {
            let to = SocketAddr::new(ip(server), 8080);
            // From outside, and from the container beside, whose source is translated, too; one of
            // each whose opener speaks first, and one whose other end does.
            for from in [&lab.outside, &lab.outside, &lab.container2, &lab.container2] {
                let listener = listen(&lab.container1, 80)?;
                let near = connect(from, None, to, PATIENCE).context("the connection")?;
                let (far, _) = listener.accept()?;
                for stream in [&near, &far] {
                    stream.set_read_timeout(Some(PATIENCE))?;
                }
                let mut talk = Talk { near, far };
                talk.goes_on()?;
                talks.push(talk);
            }
        }
        let (v4, v6) = (of(ESTABLISHED, 0), of(ESTABLISHED, 1));
        let told = fwbpf.load_with(&[], &[(Family::Ipv4, &v4), (Family::Ipv6, &v6)])?;
        ensure!(!told.contains("not taken over"), "{told}");
        let flows = fwbpf.text(&["flows", "--proto", "tcp", "--dport", "8080"])?;
        ensure!(flows.matches("[DNAT]").count() == 8, "{flows}");
        ensure!(flows.matches("[MASQUERADED]").count() == 4, "{flows}");
        for (number, talk) in talks.iter_mut().enumerate() {
            carry(&mut talk.near, &mut talk.far)
                .and_then(|()| talk.goes_on())
                .with_context(|| format!("connection {number}, beside"))?;
        }
        // What iptables translated until now is translated by fwbpf.
        iptables.load(&both(&format!("{OPEN}{NO_NAT}")))?;
        for (number, talk) in talks.iter_mut().enumerate() {
            let context = || format!("connection {number}, after");
            if number % 2 == 0 {
                carry(&mut talk.near, &mut talk.far).with_context(context)?;
            }
            talk.goes_on().with_context(context)?;
        }
        fwbpf.clear()
    });
}

#[test]
fn nothing_is_said_where_nothing_was_tracked() {
    with_fwbpf("takeover_nothing", &[], |_, fwbpf| {
        let said = fwbpf.json(&["status"]);
        ensure!(said.is_err(), "something is loaded");
        let rules = fwbpf.write_policy("rules.v4", ESTABLISHED)?;
        let path = rules.to_str().context("a path")?;
        let outcome = fwbpf.json(&["load", "--ipv4", path])?;
        ensure!(outcome["import"].is_null(), "{outcome}");
        ensure!(outcome["problems"] == json!([]), "{outcome}");
        Ok(())
    });
}

#[test]
fn flows_are_deleted_by_what_they_are() {
    with_fwbpf("flows_delete", &[], |lab, fwbpf| {
        fwbpf.load_with(&[], &both(&format!("{OPEN}{MASQUERADE}")))?;
        for version in 0..2 {
            let far = ip(INTERNET[version]);
            let peer = udp(&lab.outside, far, 5000)?;
            let first = udp(&lab.container1, ip(CONTAINER1[version]), 6000)?;
            let second = udp(&lab.container2, ip(CONTAINER2[version]), 6000)?;
            let seen = |socket| -> Result<u16> {
                send(socket, far, 5000, b"hello")?;
                Ok(datagram(&peer)?.context("it did not arrive")?.port())
            };
            ensure!(seen(&first)? == 6000);
            let drawn = seen(&second)?;
            ensure!(drawn != 6000, "two flows bear one name");
            ensure!(seen(&second)? == drawn);

            let delete =
                |arguments: &[&str]| fwbpf.json(&[&["flows", "--delete"], arguments].concat());
            let all = fwbpf.json(&[
                "flows",
                "--proto",
                "udp",
                "--dport",
                "5000",
                "--dst",
                INTERNET[version],
            ])?;
            ensure!(
                all.as_array().is_some_and(|flows| flows.len() == 2),
                "{all}"
            );
            ensure!(delete(&["--src", "192.0.2.99"])?["deleted"] == 0);
            ensure!(delete(&["--proto", "tcp", "--dport", "5000"])?["deleted"] == 0);
            let one = delete(&[
                "--proto",
                "udp",
                "--src",
                CONTAINER1[version],
                "--dport",
                "5000",
            ])?;
            ensure!(one["deleted"] == 1, "{one}");
            // The other one lives, and keeps its port.
            ensure!(seen(&second)? == drawn);
            let address = delete(&["--address", CONTAINER2[version]])?;
            ensure!(address["deleted"] == 1, "{address}");
            // Both ports are free, and the list of the source is gone with its flow.
            ensure!(seen(&second)? == 6000, "the port is not free");
            let left = fwbpf.json(&["flows", "--dst", INTERNET[version]])?;
            ensure!(
                left.as_array().is_some_and(|flows| flows.len() == 1),
                "{left}"
            );
            delete(&["--dst", INTERNET[version]])?;
        }
        let refused = fwbpf.output(&["flows", "--delete"])?;
        ensure!(refused.status.code() == Some(2), "all flows were deleted");
        Ok(())
    });
}
