//! What the guide says of packets to the server, by real sockets, IPv4 and IPv6.

use anyhow::{Result, ensure};
use fwbpf_tests::guide::{GuideLab, under_both};
use fwbpf_tests::lab::address::{
    ADMIN, BRIDGE, CONTAINER1, INTERNET, LOOPBACK, OTHER, OUTSIDE, SERVER,
};
use fwbpf_tests::lab::sockets::{Reach, datagram, ip, ping, reach, send, tcp_echo, udp};
use fwbpf_tests::lab::{Peers, ServerLab, ready};

/// Without a firewall everything is reachable: what the other tests find blocked is blocked by
/// the firewall.
#[test]
fn without_a_firewall_all_is_open() {
    const NAME: &str = "without_a_firewall_all_is_open";
    if !ready(NAME, &["ping"], false) {
        return;
    }
    let lab = ServerLab::new(NAME, Peers::Real).unwrap();
    tcp_echo(&lab.server, 81).unwrap();
    tcp_echo(&lab.other, 80).unwrap();
    for version in 0..2 {
        let open = |from, to: [&str; 2], port| {
            assert_eq!(
                reach(from, None, ip(to[version]), port).unwrap(),
                Reach::Open
            );
        };
        open(&lab.outside, SERVER, 81);
        open(&lab.container1, BRIDGE, 81);
        open(&lab.container1, OTHER, 80);
        open(&lab.outside, OTHER, 80);
        assert!(ping(&lab.outside, ip(CONTAINER1[version])).unwrap());
    }
}

#[test]
fn loopback_is_open() {
    under_both("loopback_is_open", |guide| {
        let server = &guide.lab.server;
        tcp_echo(server, 9999)?;
        for version in 0..2 {
            for to in [LOOPBACK, SERVER, BRIDGE] {
                let to = ip(to[version]);
                expect(reach(server, None, to, 9999)?, Reach::Open, to, 9999)?;
            }
        }
        Ok(())
    });
}

#[test]
fn ping_is_answered() {
    under_both("ping_is_answered", |guide| {
        for server in SERVER {
            ensure!(ping(&guide.lab.outside, ip(server))?, "from outside");
        }
        ensure!(
            ping(&guide.lab.container1, ip(BRIDGE[0]))?,
            "from a container"
        );
        // The containers' IPv6 addresses are of fc00::/7, to which the guide forbids the server to
        // talk, and the answer is an outgoing packet.
        ensure!(
            !ping(&guide.lab.container1, ip(BRIDGE[1]))?,
            "the server answers to fc00::/7"
        );
        Ok(())
    });
}

#[test]
fn ssh_and_web_are_reachable_and_81_is_not() {
    under_both("ssh_and_web_are_reachable", |guide| {
        for port in [22, 80, 443, 81] {
            tcp_echo(&guide.lab.server, port)?;
        }
        for server in SERVER {
            let to = ip(server);
            for (port, expected) in [
                (22, Reach::Open),
                (80, Reach::Open),
                (443, Reach::Open),
                (81, Reach::Silent),
            ] {
                let got = reach(&guide.lab.outside, None, to, port)?;
                expect(got, expected, to, port)?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_administrator_gets_in_everywhere() {
    under_both("the_administrator_gets_in", |guide| {
        tcp_echo(&guide.lab.server, 81)?;
        for version in 0..2 {
            let to = ip(SERVER[version]);
            for (from, expected) in [(ADMIN, Reach::Open), (INTERNET, Reach::Silent)] {
                let got = reach(&guide.lab.outside, Some(ip(from[version])), to, 81)?;
                expect(got, expected, to, 81)?;
            }
            let server = udp(&guide.lab.server, to, 5353)?;
            let admin = udp(&guide.lab.outside, ip(ADMIN[version]), 0)?;
            send(&admin, to, 5353, b"hello")?;
            ensure!(datagram(&server)?.is_some(), "UDP of the administrator");
        }
        Ok(())
    });
}

#[test]
fn replies_come_back_and_unsolicited_packets_do_not() {
    under_both("replies_come_back", |guide| {
        tcp_echo(&guide.lab.outside, 7777)?;
        for version in 0..2 {
            replies(guide, version)?;
        }
        Ok(())
    });
}

fn replies(guide: &GuideLab, version: usize) -> Result<()> {
    let (own, peer) = (ip(SERVER[version]), ip(OUTSIDE[version]));
    let got = reach(&guide.lab.server, None, peer, 7777)?;
    expect(got, Reach::Open, peer, 7777)?;
    // Only the one that was spoken to may answer, from the port that was spoken to.
    let client = udp(&guide.lab.server, own, 5300)?;
    let asked = udp(&guide.lab.outside, peer, 53)?;
    let same_host = udp(&guide.lab.outside, peer, 54)?;
    let stranger = udp(&guide.lab.outside, ip(INTERNET[version]), 53)?;
    for socket in [&asked, &same_host, &stranger] {
        send(socket, own, 5300, b"unasked")?;
    }
    ensure!(datagram(&client)?.is_none(), "a datagram came in unasked");
    send(&client, peer, 53, b"question")?;
    ensure!(datagram(&asked)?.is_some(), "the question did not go out");
    send(&same_host, own, 5300, b"not me")?;
    send(&stranger, own, 5300, b"nor me")?;
    ensure!(datagram(&client)?.is_none(), "a stranger's answer came in");
    send(&asked, own, 5300, b"answer")?;
    ensure!(datagram(&client)?.is_some(), "the answer did not come in");
    Ok(())
}

fn expect(got: Reach, expected: Reach, to: std::net::IpAddr, port: u16) -> Result<()> {
    ensure!(
        got == expected,
        "{to} port {port} is {got:?}, not {expected:?}"
    );
    Ok(())
}
