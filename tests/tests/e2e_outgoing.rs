//! What the guide says of packets from the server and through it, by real sockets.

use anyhow::{Result, ensure};
use fwbpf_tests::guide::under_both;
use fwbpf_tests::lab::Namespace;
use fwbpf_tests::lab::address::{ADMIN, CONTAINER1, FORBIDDEN, INTERNET, OTHER, OUTSIDE};
use fwbpf_tests::lab::sockets::{Reach, datagram, ip, ping, reach, send, tcp_echo, udp};

#[test]
fn mail_and_private_networks_are_blocked_and_all_else_is_open() {
    under_both("mail_and_private_networks", |guide| {
        for port in [25, 26, 80] {
            tcp_echo(&guide.lab.outside, port)?;
        }
        for version in 0..2 {
            for (to, port, expected) in [
                (INTERNET, 80, Reach::Open),
                (INTERNET, 26, Reach::Open),
                (INTERNET, 25, Reach::Silent),
                (OUTSIDE, 25, Reach::Silent),
                (FORBIDDEN, 80, Reach::Silent),
                // The administrator is exempted before mail is blocked.
                (ADMIN, 25, Reach::Open),
            ] {
                expect(&guide.lab.server, to[version], port, expected)?;
            }
            ensure!(ping(&guide.lab.server, ip(INTERNET[version]))?);
            ensure!(!ping(&guide.lab.server, ip(FORBIDDEN[version]))?);
            let own = udp(&guide.lab.server, unspecified(version), 0)?;
            for (to, arrives) in [(INTERNET, true), (FORBIDDEN, false)] {
                let peer = udp(&guide.lab.outside, ip(to[version]), 5000)?;
                send(&own, ip(to[version]), 5000, b"hello")?;
                ensure!(
                    datagram(&peer)?.is_some() == arrives,
                    "UDP to {}",
                    to[version]
                );
            }
        }
        Ok(())
    });
}

#[test]
fn only_containers_and_the_outside_are_forwarded() {
    under_both("only_containers_and_outside", |guide| {
        let lab = &guide.lab;
        for namespace in [&lab.outside, &lab.other, &lab.container1] {
            tcp_echo(namespace, 8080)?;
        }
        for version in 0..2 {
            for (from, to, expected) in [
                (&lab.container1, INTERNET, Reach::Open),
                (&lab.container2, INTERNET, Reach::Open),
                (&lab.container1, OTHER, Reach::Silent),
                (&lab.other, CONTAINER1, Reach::Silent),
                (&lab.other, INTERNET, Reach::Silent),
                (&lab.outside, OTHER, Reach::Silent),
            ] {
                expect(from, to[version], 8080, expected)?;
            }
            ensure!(
                !ping(&lab.outside, ip(OTHER[version]))?,
                "ping is forwarded"
            );
        }
        // The guide forwards all of IPv4 from outside to containers, and of IPv6 only replies.
        expect(&lab.outside, CONTAINER1[0], 8080, Reach::Open)?;
        expect(&lab.outside, CONTAINER1[1], 8080, Reach::Silent)
    });
}

fn unspecified(version: usize) -> std::net::IpAddr {
    ip(["0.0.0.0", "::"][version])
}

fn expect(from: &Namespace, to: &str, port: u16, expected: Reach) -> Result<()> {
    let got = reach(from, None, ip(to), port)?;
    ensure!(
        got == expected,
        "{to} port {port} from {} is {got:?}, not {expected:?}",
        from.name()
    );
    Ok(())
}
