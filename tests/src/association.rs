//! SCTP by real sockets, through a port that Docker publishes and from containers, where the kernel has SCTP.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::guide::GuideLab;
use crate::lab::Namespace;
use crate::lab::address::{CONTAINER1, INTERNET, SERVER};
use crate::lab::sockets::{PATIENCE, ip};

/// The port that is published.
pub const PUBLISHED: u16 = 3868;
/// The container's.
pub const INNER: u16 = 2905;
/// A port of a server out there.
pub const REMOTE: u16 = 36_412;

/// What Docker writes for `-p 3868:2905/sctp`; containers go out from these ports, if any are named.
pub fn rules(version: usize, ports: &str) -> String {
    let container = CONTAINER1[version];
    let (network, inner) = match version {
        0 => ("172.17.0.0/16", format!("{container}:{INNER}")),
        _ => ("fd17::/64", format!("[{container}]:{INNER}")),
    };
    let icmpv6 = match version {
        0 => "",
        _ => "-A INPUT -p ipv6-icmp -j ACCEPT\n",
    };
    format!(
        "*nat\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s {network} ! -o docker0 -p sctp -j MASQUERADE{ports}\n\
         -A DOCKER ! -i docker0 -p sctp -m sctp --dport {PUBLISHED} -j DNAT --to-destination {inner}\n\
         COMMIT\n*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n{icmpv6}\
         -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A FORWARD -d {container} ! -i docker0 -o docker0 -p sctp -m sctp --dport {INNER} -m conntrack --ctstate NEW -j ACCEPT\n\
         -A FORWARD -i docker0 ! -o docker0 -m conntrack --ctstate NEW -j ACCEPT\n\
         COMMIT\n"
    )
}

/// Why there is nothing to test.
pub fn lack() -> Option<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(SCTP));
    socket
        .err()
        .map(|error| format!("the kernel has no sockets of SCTP: {error}"))
}

/// From outside to the published port, and from a container out, under [`rules`] with ports from 30,000 on.
pub fn talk_both_ways(guide: &GuideLab) -> Result<()> {
    let lab = &guide.lab;
    for version in 0..2 {
        let [client, server, container] =
            [INTERNET, SERVER, CONTAINER1].map(|address| ip(address[version]));
        let inside = listen(&lab.container1, SocketAddr::new(container, INNER))?;
        let published = SocketAddr::new(server, PUBLISHED);
        let from = talk(&lab.outside, client, published, &inside)?;
        ensure!(from.ip() == client, "the container sees {from}");
        let out_there = listen(&lab.outside, SocketAddr::new(client, REMOTE))?;
        let remote = SocketAddr::new(client, REMOTE);
        let from = talk(&lab.container1, container, remote, &out_there)?;
        ensure!(
            from.ip() == server && (30_000..31_000).contains(&from.port()),
            "the server out there sees {from}"
        );
    }
    Ok(())
}

const SCTP: Protocol = Protocol::SCTP;

/// One that is used like TCP's (RFC 6458, 4).
fn socket(namespace: &Namespace, own: SocketAddr) -> Result<Socket> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(own), Type::STREAM, Some(SCTP))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.bind(&own.into())?;
        Ok(socket)
    };
    namespace
        .enter(open)?
        .with_context(|| format!("a socket at {own}"))
}

fn listen(namespace: &Namespace, own: SocketAddr) -> Result<Socket> {
    let socket = socket(namespace, own)?;
    socket.listen(8)?;
    Ok(socket)
}

/// Connects and sends something both ways; whom the listener saw.
fn talk(from: &Namespace, own: IpAddr, to: SocketAddr, listener: &Socket) -> Result<SocketAddr> {
    let socket = socket(from, SocketAddr::new(own, 0))?;
    socket
        .connect_timeout(&to.into(), PATIENCE)
        .with_context(|| format!("connect to {to}"))?;
    let (accepted, seen) = listener.accept().context("accept")?;
    let mut ends = [TcpStream::from(socket), TcpStream::from(accepted)];
    for (sender, receiver) in [(0, 1), (1, 0)] {
        for length in [1, 1000, 20_000] {
            let text = vec![0x42; length];
            ends[sender].write_all(&text)?;
            let mut got = vec![0; length];
            ends[receiver].read_exact(&mut got)?;
            ensure!(got == text, "{length} bytes came out as others");
        }
    }
    seen.as_socket().context("an address")
}
