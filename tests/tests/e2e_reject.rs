//! REJECT, by real sockets: whoever is refused learns it at once, whoever refuses.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::with_fwbpf;
use fwbpf_tests::lab::address::{OTHER, OUTSIDE, SERVER};
use fwbpf_tests::lab::sockets::{Reach, connect, ip, reach, send, tcp_echo, udp};
use fwbpf_tests::lab::{Firewall, Namespace, saved};

/// Well below the second after which TCP asks again.
const AT_ONCE: Duration = Duration::from_millis(700);
/// Over IPv6 a connection that is being opened fails with the error that comes after its second SYN,
/// with ip6tables as well (`tcp_v6_err`, net/ipv6/tcp_ipv6.c, while the socket is in use).
const SECOND_TIME: Duration = Duration::from_millis(1_700);

fn load(fwbpf: &impl Firewall, rules: &str) -> Result<()> {
    let v4 = format!("*filter\n{rules}COMMIT\n");
    let v6 = v4.replace("icmp-port", "icmp6-port");
    let v6 = v6.replace("icmp-host-prohibited", "icmp6-addr-unreachable");
    fwbpf.load(&[(Family::Ipv4, &v4), (Family::Ipv6, &v6)])
}

/// The rules of a chain: a reset, and errors of two kinds.
fn rules(chain: &str) -> String {
    format!(
        "-A {chain} -p tcp -m tcp --dport 81 -j REJECT --reject-with tcp-reset\n\
         -A {chain} -p tcp -m tcp --dport 82 -j REJECT\n\
         -A {chain} -p tcp -m tcp --dport 83 -j REJECT --reject-with icmp-host-prohibited\n\
         -A {chain} -p udp -j REJECT --reject-with icmp-port-unreachable\n"
    )
}

/// What `from` learns when it talks to `to`.
fn is_refused(from: &Namespace, to: &str) -> Result<()> {
    let address = ip(to);
    for (port, expected) in [
        (81, ErrorKind::ConnectionRefused),
        (82, ErrorKind::ConnectionRefused),
        (83, ErrorKind::HostUnreachable),
    ] {
        let began = Instant::now();
        let target = SocketAddr::new(address, port);
        match connect(from, None, target, Duration::from_secs(3)) {
            Ok(_) => bail!("{to} port {port} is open"),
            Err(error) => ensure!(
                error.kind() == expected,
                "{to} port {port}: {error}, expected {expected}"
            ),
        }
        let took = began.elapsed();
        let patience = if address.is_ipv6() && port != 81 {
            SECOND_TIME
        } else {
            AT_ONCE
        };
        ensure!(took < patience, "{to} port {port} took {took:?}");
    }
    // The error reaches the socket that it is about, by what it quotes.
    for length in [0, 1, 1400] {
        let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = udp(from, ip(any), 0)?;
        socket.connect(SocketAddr::new(address, 5000))?;
        socket.send(&vec![7; length])?;
        match socket.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            other => bail!("{to}: UDP of {length} bytes: {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn what_input_refuses_is_answered() {
    with_fwbpf("input_refuses", &[], |lab, fwbpf| {
        load(fwbpf, &rules("INPUT"))?;
        for server in SERVER {
            is_refused(&lab.outside, server)?;
            is_refused(&lab.container1, server)?;
            // Over loopback.
            is_refused(&lab.server, server)?;
        }
        Ok(())
    });
}

#[test]
fn what_forward_refuses_is_answered() {
    with_fwbpf("forward_refuses", &[], |lab, fwbpf| {
        load(fwbpf, &rules("FORWARD"))?;
        for other in OTHER {
            is_refused(&lab.outside, other)?;
            is_refused(&lab.container1, other)?;
        }
        Ok(())
    });
}

#[test]
fn what_output_refuses_is_answered() {
    with_fwbpf("output_refuses", &[], |lab, fwbpf| {
        load(fwbpf, &rules("OUTPUT"))?;
        for peer in OUTSIDE.into_iter().chain(SERVER) {
            is_refused(&lab.server, peer)?;
        }
        Ok(())
    });
}

/// A policy that refuses a connection which stands cuts it with a reset that both ends believe.
#[test]
fn a_connection_is_cut_by_a_reset() {
    with_fwbpf("cut_by_a_reset", &[], |lab, fwbpf| {
        tcp_echo(&lab.server, 84)?;
        for version in 0..2 {
            fwbpf.load(&[
                (Family::Ipv4, "*filter\nCOMMIT\n"),
                (Family::Ipv6, "*filter\nCOMMIT\n"),
            ])?;
            let target = SocketAddr::new(ip(SERVER[version]), 84);
            let mut stream = connect(&lab.outside, None, target, Duration::from_secs(3))?;
            stream.write_all(b"hello")?;
            stream.read_exact(&mut [0; 5])?;
            load(
                fwbpf,
                "-A INPUT -p tcp -m tcp --dport 84 -j REJECT --reject-with tcp-reset\n\
                 -A OUTPUT -m conntrack --ctstate RELATED\n",
            )?;
            // Many segments at once, as offloads hand them over.
            let _ = stream.write_all(&[1; 60_000]);
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let error = stream.read(&mut [0; 16]).err().context("it goes on")?;
            ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
            let family = [Family::Ipv4, Family::Ipv6][version];
            let related = "-A OUTPUT -m conntrack --ctstate RELATED";
            ensure!(
                saved::count(&fwbpf.save(family)?, related)?.0 > 0,
                "no RELATED"
            );
        }
        Ok(())
    });
}

/// The kernel's limits hold for what is sent in its place.
#[test]
fn errors_are_sent_as_often_as_the_kernel_would() {
    with_fwbpf("errors_are_limited", &[], |lab, fwbpf| {
        lab.server.sysctl(&[("ipv4/icmp_ratelimit", "1000")])?;
        let limited =
            "*filter\n-A INPUT -p udp -m udp --dport 5000 -j REJECT\n-A OUTPUT -p icmp\nCOMMIT\n";
        fwbpf.load(&[(Family::Ipv4, limited)])?;
        let own = udp(&lab.outside, ip("0.0.0.0"), 0)?;
        for _ in 0..30 {
            let _ = send(&own, ip(SERVER[0]), 5000, b"hello");
        }
        let (sent, _) = saved::count(&fwbpf.save(Family::Ipv4)?, "-A OUTPUT -p icmp")?;
        ensure!((6..10).contains(&sent), "{sent} errors were sent");
        let status = fwbpf.status()?;
        ensure!(status.contains("answer_limited"), "{status}");
        // Resets have no limit.
        load(fwbpf, &rules("INPUT"))?;
        for _ in 0..30 {
            let reached = reach(&lab.outside, None, ip(SERVER[0]), 81)?;
            ensure!(reached == Reach::Refused, "{reached:?}");
        }
        Ok(())
    });
}
