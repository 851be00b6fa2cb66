//! Containers behind masquerade, by real sockets, IPv4 and IPv6.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use fwbpf_tests::guide::{GuideLab, under_both};
use fwbpf_tests::lab::address::{CONTAINER1, CONTAINER2, INTERNET, OUTSIDE, SERVER};
use fwbpf_tests::lab::sockets::{
    PATIENCE, SILENCE, connect, datagram, ip, listen, ping, round_trip, send, tcp_echo, udp,
    wait_for,
};
use fwbpf_tests::lab::{LocalReceiver, Namespace};
use fwbpf_tests::packet::{Layers, checksum_is_sound, protocol};

/// A network behind the outside host, and an address in it.
const BEYOND: [(&str, &str); 2] = [
    ("203.0.113.128/25", "203.0.113.130"),
    ("2001:db8:99::/64", "2001:db8:99::2"),
];

#[test]
fn a_container_goes_out_under_the_address_of_eth0() {
    under_both("container_goes_out", |guide| {
        tcp_echo(&guide.lab.outside, 8080)?;
        for version in 0..2 {
            let to = ip(INTERNET[version]);
            let listener = listen(&guide.lab.outside, 9000 + version as u16)?;
            let _client = connect(
                &guide.lab.container1,
                None,
                SocketAddr::new(to, 9000 + version as u16),
                PATIENCE,
            )?;
            let (_, seen) = listener.accept()?;
            ensure!(plain(seen.ip()) == ip(SERVER[version]), "seen as {seen}");

            let peer = udp(&guide.lab.outside, to, 5000)?;
            let own = udp(&guide.lab.container1, ip(CONTAINER1[version]), 6000)?;
            send(&own, to, 5000, b"hello")?;
            let seen = datagram(&peer)?.context("the datagram did not get out")?;
            ensure!(seen.ip() == ip(SERVER[version]), "seen as {seen}");
            send(&peer, seen.ip(), seen.port(), b"answer")?;
            ensure!(
                datagram(&own)? == Some(SocketAddr::new(to, 5000)),
                "the answer"
            );
        }
        Ok(())
    });
}

#[test]
fn a_container_pings() {
    under_both("container_pings", |guide| {
        for internet in INTERNET {
            let to = ip(internet);
            ensure!(ping(&guide.lab.container1, to)?, "first container to {to}");
            ensure!(ping(&guide.lab.container2, to)?, "second container to {to}");
        }
        Ok(())
    });
}

#[test]
fn two_containers_with_one_source_port_both_work() {
    under_both("two_containers_one_port", |guide| {
        tcp_echo(&guide.lab.outside, 8080)?;
        for version in 0..2 {
            let to = SocketAddr::new(ip(INTERNET[version]), 8080);
            let ends = [
                (&guide.lab.container1, ip(CONTAINER1[version])),
                (&guide.lab.container2, ip(CONTAINER2[version])),
            ];
            let mut streams = Vec::new();
            for (namespace, address) in ends {
                let from = SocketAddr::new(address, 40_000);
                streams.push(connect(namespace, Some(from), to, PATIENCE)?);
            }
            for round in 0..3 {
                for (number, stream) in streams.iter_mut().enumerate() {
                    round_trip(stream, format!("{number}, round {round}").as_bytes())?;
                }
            }
            two_datagrams(guide, version, ends)?;
        }
        Ok(())
    });
}

fn two_datagrams(
    guide: &GuideLab,
    version: usize,
    ends: [(&std::sync::Arc<Namespace>, IpAddr); 2],
) -> Result<()> {
    let to = ip(INTERNET[version]);
    let peer = udp(&guide.lab.outside, to, 5000)?;
    let mut seen = Vec::new();
    let mut sockets = Vec::new();
    for (namespace, address) in ends {
        let socket = udp(namespace, address, 40_000)?;
        send(&socket, to, 5000, b"hello")?;
        seen.push(datagram(&peer)?.context("a datagram did not get out")?);
        sockets.push(socket);
    }
    ensure!(seen[0] != seen[1], "both are seen as {}", seen[0]);
    for (from, socket) in seen.iter().zip(&sockets) {
        send(&peer, from.ip(), from.port(), b"answer")?;
        ensure!(datagram(socket)?.is_some(), "the answer to {from} is lost");
    }
    Ok(())
}

#[test]
fn icmp_errors_reach_the_container_that_they_are_about() {
    under_both("icmp_errors_reach_container", |guide| {
        let outside = &guide.lab.outside;
        outside.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        outside.ip(&format!(
            "route add {} dev wire0 mtu 1300\nroute add {} dev wire0 mtu 1300\n",
            BEYOND[0].0, BEYOND[1].0
        ))?;
        for version in 0..2 {
            errors(guide, version)?;
        }
        Ok(())
    });
}

fn errors(guide: &GuideLab, version: usize) -> Result<()> {
    let container = &guide.lab.container2;
    let (own, beyond) = (ip(CONTAINER2[version]), ip(BEYOND[version].1));
    let icmp = [protocol::ICMP, protocol::ICMPV6][version];
    let receiver = LocalReceiver::open(container, version == 1, icmp)?;

    // As traceroute: the second hop says that the time is over.
    let socket = udp(container, own, 33_434)?;
    set_hops(&socket, 2)?;
    send(&socket, beyond, 33_434, b"probe")?;
    let time_exceeded = [(11, 0), (3, 0)][version];
    error_about(&receiver, OUTSIDE[version], time_exceeded, own, 33_434)
        .context("time exceeded")?;

    // A router's link is smaller than the packet.
    set_hops(&socket, 64)?;
    send(&socket, beyond, 33_434, &[0; 1350])?;
    let too_big = [(3, 4), (2, 0)][version];
    error_about(&receiver, OUTSIDE[version], too_big, own, 33_434).context("packet too big")?;

    // Nobody listens there: the socket itself learns of it.
    let closed = udp(container, own, 5001)?;
    closed.connect(SocketAddr::new(ip(INTERNET[version]), 1))?;
    closed.send(b"anybody?")?;
    wait_for("the error about a closed port", || {
        Ok(closed
            .take_error()?
            .is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused))
    })
}

/// Waits for an ICMP error from `router` that quotes a packet of the container's own address and
/// port, as the container knows them.
fn error_about(
    receiver: &LocalReceiver,
    router: &str,
    (kind, code): (u8, u8),
    own: IpAddr,
    port: u16,
) -> Result<()> {
    let mut others = Vec::new();
    let found = wait_for("the ICMP error", || {
        while let Some(received) = receiver.receive()? {
            let (from, packet) = (received.source, received.bytes);
            let body = match from {
                // IPv4's raw sockets give the header, too.
                IpAddr::V4(_) => {
                    ensure!(checksum_is_sound(&packet), "a checksum is wrong");
                    packet.get(20..).unwrap_or_default()
                }
                IpAddr::V6(_) => &packet,
            };
            let Some(quoted) = body.get(8..) else {
                continue;
            };
            let inner = Layers::read(quoted).context("the error quotes no packet")?;
            let ports = inner.ports(quoted);
            let right = from == ip(router)
                && body[..2] == [kind, code]
                && inner.source == own
                && ports.is_some_and(|(source, _)| source == port);
            if right {
                return Ok(true);
            }
            others.push(format!(
                "{from}: type {} code {} about {} {ports:?}",
                body[0], body[1], inner.source
            ));
        }
        Ok(false)
    });
    found.with_context(|| format!("other errors that came: {others:?}"))
}

fn set_hops(socket: &UdpSocket, hops: u32) -> Result<()> {
    let socket = socket2::SockRef::from(socket);
    if socket.domain()? == socket2::Domain::IPV4 {
        socket.set_ttl_v4(hops)?;
    } else {
        socket.set_unicast_hops_v6(hops)?;
    }
    Ok(())
}

/// A dual-stack listener shows IPv4 addresses mapped.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[test]
fn silence_is_shorter_than_patience() {
    // The tests of what must not happen rest on it that what may happen takes far less.
    assert!(SILENCE * 4 < PATIENCE);
}
