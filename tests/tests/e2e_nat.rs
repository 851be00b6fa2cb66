//! What RFC 4787 asks of a translator, by real sockets: docs/nat.md says which test shows what.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use fw_user::policy::model::Family;
use fwbpf_tests::guide::{GuideLab, under_both, with_fwbpf};
use fwbpf_tests::lab::Firewall as _;
use fwbpf_tests::lab::address::{CONTAINER1, CONTAINER2, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{datagram, ip, send, udp};

/// RFC 4787 REQ-1 and REQ-3, and `find_appropriate_src` of net/netfilter/nf_nat_core.c.
#[test]
fn a_source_keeps_the_port_that_it_got() {
    under_both("nat_keeps_port", |guide| {
        for (version, far) in INTERNET.into_iter().enumerate() {
            let far = ip(far);
            let peers = [
                udp(&guide.lab.outside, far, 5000)?,
                udp(&guide.lab.outside, far, 5001)?,
                udp(&guide.lab.outside, far, 5002)?,
            ];
            let (first, second) = containers(guide, version, 6000)?;
            let own = seen(&first, &peers[0])?;
            ensure!(own.port() == 6000, "the first one's port became {own}");
            let other = seen(&second, &peers[0])?;
            ensure!(other.port() != 6000, "two flows bear one name: {other}");
            ensure!(other.port() >= 1024, "an unprivileged port became {other}");
            for peer in &peers[1..] {
                let again = seen(&second, peer)?;
                ensure!(again == other, "the second one was {other}, and is {again}");
                let again = seen(&first, peer)?;
                ensure!(again == own, "the first one was {own}, and is {again}");
            }
        }
        Ok(())
    });
}

/// RFC 4787 REQ-3 a): privileged ports stay privileged.
#[test]
fn a_privileged_port_becomes_a_privileged_one() {
    under_both("nat_privileged", |guide| {
        for (version, far) in INTERNET.into_iter().enumerate() {
            let peer = udp(&guide.lab.outside, ip(far), 5000)?;
            let (first, second) = containers(guide, version, 700)?;
            ensure!(seen(&first, &peer)?.port() == 700);
            let port = seen(&second, &peer)?.port();
            ensure!((600..1024).contains(&port) && port != 700, "it is {port}");
        }
        Ok(())
    });
}

/// RFC 4787 REQ-8: only whom the container wrote to may answer.
#[test]
fn strangers_do_not_reach_a_mapping() {
    under_both("nat_filtering", |guide| {
        for (version, far) in INTERNET.into_iter().enumerate() {
            let far = ip(far);
            let peer = udp(&guide.lab.outside, far, 5000)?;
            let stranger = udp(&guide.lab.outside, far, 5001)?;
            let (own, _) = containers(guide, version, 6000)?;
            let mapping = seen(&own, &peer)?;
            send(&stranger, mapping.ip(), mapping.port(), b"stranger")?;
            ensure!(datagram(&own)?.is_none(), "a stranger got in");
            send(&peer, mapping.ip(), mapping.port(), b"answer")?;
            ensure!(datagram(&own)?.is_some(), "the answer did not");
        }
        Ok(())
    });
}

/// A container's flow, and one of the other direction between the same two endpoints, which bears
/// their second name: when the first one is gone, what the container sends opens another, and does
/// not leave as if it answered the second.
#[test]
fn a_flow_of_the_other_direction_is_not_answered() {
    const RULES: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n\
        *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
        -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";
    with_fwbpf("nat_second_name", &[], |lab, fwbpf| {
        fwbpf.load(&[(Family::Ipv4, RULES), (Family::Ipv6, RULES)])?;
        for (version, far) in INTERNET.into_iter().enumerate() {
            let (inner, outer) = (CONTAINER1[version], SERVER[version]);
            lab.outside
                .ip(&format!("route add {inner} via {outer}\n"))?;
            let peer = udp(&lab.outside, ip(far), 5000)?;
            let own = udp(&lab.container1, ip(inner), 6000)?;
            let mapping = SocketAddr::new(ip(outer), 6000);
            ensure!(seen(&own, &peer)? == mapping);
            send(&peer, ip(inner), 6000, b"directly")?;
            ensure!(datagram(&own)?.is_some(), "the peer's did not get in");
            fwbpf.text(&["flows", "--delete", "--src", inner])?;
            let again = seen(&own, &peer)?;
            ensure!(again == mapping, "it leaves as {again}");
        }
        Ok(())
    });
}

fn containers(guide: &GuideLab, version: usize, port: u16) -> Result<(UdpSocket, UdpSocket)> {
    Ok((
        udp(&guide.lab.container1, ip(CONTAINER1[version]), port)?,
        udp(&guide.lab.container2, ip(CONTAINER2[version]), port)?,
    ))
}

/// Under which address and port a socket's datagram gets to a peer.
fn seen(own: &UdpSocket, peer: &UdpSocket) -> Result<SocketAddr> {
    let to = peer.local_addr()?;
    send(own, to.ip(), to.port(), b"hello")?;
    datagram(peer)?.with_context(|| format!("the datagram to {to} did not get out"))
}
