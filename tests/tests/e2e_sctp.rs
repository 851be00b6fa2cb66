//! SCTP under iptables and under fwbpf: a port that Docker publishes, and what containers send, by frames
//! whose checksums are looked at, and by real sockets where the kernel has SCTP.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use fwbpf_tests::guide::{GuideLab, under_both};
use fwbpf_tests::lab::address::{CONTAINER1, CONTAINER2, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{PATIENCE, ip};
use fwbpf_tests::lab::{FrameSocket, Namespace, UnfinishedSender, mac};
use fwbpf_tests::packet::chunk::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK};
use fwbpf_tests::packet::{Dressing, Layers, Packet, Payload, checksum_is_sound, frame, protocol};
use socket2::{Domain, Protocol, Socket, Type};

const PUBLISHED: u16 = 3868;
const INNER: u16 = 2905;
/// A port of a server out there.
const REMOTE: u16 = 36_412;
const L2: usize = 14;

/// What Docker writes for `-p 3868:2905/sctp`.
fn rules(version: usize, ports: &str) -> String {
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

fn load(guide: &GuideLab, ports: &str) -> Result<()> {
    guide.load(&rules(0, ports), &rules(1, ports))
}

type End = (IpAddr, u16);

/// A packet with one chunk of so many bytes, which tells a tag.
fn packet(from: End, to: End, tag: u32, kind: u8, told: u32, length: usize) -> Vec<u8> {
    let mut chunk = vec![kind, 3];
    chunk.extend((length as u16).to_be_bytes());
    chunk.extend(told.to_be_bytes());
    chunk.resize(length.next_multiple_of(4), 0x5a);
    let packet = Packet {
        source: from.0,
        destination: to.0,
        ttl: 64,
        id: 7,
        tos: 0,
        mss: None,
        dressing: Dressing::Plain,
        payload: Payload::Sctp {
            ports: (from.1, to.1),
            tag,
            chunks: chunk,
        },
    };
    packet.bytes()
}

/// A host that is played: its wire, and the link-layer addresses of both ends.
struct Host(FrameSocket, [[u8; 6]; 2]);

impl Host {
    fn outside(guide: &GuideLab) -> Result<Self> {
        let wire = FrameSocket::open(&guide.lab.outside, "wire0")?;
        Ok(Self(wire, [mac::OUTSIDE, mac::SERVER]))
    }

    fn container(namespace: &Namespace, link: [u8; 6]) -> Result<Self> {
        let wire = FrameSocket::open(namespace, "eth0")?;
        Ok(Self(wire, [link, mac::BRIDGE]))
    }

    fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let [own, peer] = self.1;
        frame(own, peer, packet)
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        Ok(self.0.send(&self.frame(packet))?)
    }

    /// The next packet of SCTP, and its ends.
    fn receive(&self) -> Result<(Vec<u8>, [End; 2])> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let Some(frame) = self.0.receive()? else {
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            };
            let packet = frame.get(L2..).context("a frame")?;
            let layers = Layers::read(packet);
            if let Some(layers) = layers.filter(|layers| layers.protocol == protocol::SCTP) {
                let (source, destination) = layers.ports(packet).context("ports")?;
                let ends = [(layers.source, source), (layers.destination, destination)];
                return Ok((packet.to_vec(), ends));
            }
        }
        bail!("nothing came")
    }

    /// The same; it must be between these, and sound.
    fn expect(&self, from: End, to: End) -> Result<()> {
        let (packet, ends) = self.receive()?;
        ensure!(ends == [from, to], "{ends:?} instead of {:?}", [from, to]);
        ensure!(checksum_is_sound(&packet), "a wrong checksum from {from:?}");
        Ok(())
    }
}

#[test]
fn a_published_port_is_reached_from_outside() {
    under_both("sctp_published", |guide| {
        load(guide, "")?;
        let outside = Host::outside(guide)?;
        let inside = Host::container(&guide.lab.container1, mac::CONTAINER1)?;
        for version in 0..2 {
            let client = (ip(INTERNET[version]), 5000);
            let public = (ip(SERVER[version]), PUBLISHED);
            let inner = (ip(CONTAINER1[version]), INNER);
            let talk = [
                (true, 0, INIT, 1, 20),
                (false, 1, INIT_ACK, 2, 311),
                (true, 2, COOKIE_ECHO, 0, 290),
                (false, 1, COOKIE_ACK, 0, 8),
                (true, 2, DATA, 9, 1001),
                (false, 1, DATA, 9, 1317),
            ];
            for (forth, tag, kind, told, length) in talk {
                let passed = if forth {
                    outside.send(&packet(client, public, tag, kind, told, length))?;
                    inside.expect(client, inner)
                } else {
                    inside.send(&packet(inner, client, tag, kind, told, length))?;
                    outside.expect(public, client)
                };
                passed.with_context(|| format!("chunk {kind} to or from {}", public.0))?;
            }
        }
        Ok(())
    });
}

/// Two containers ask one host from the same port.
#[test]
fn containers_go_out_under_the_address_of_eth0() {
    under_both("sctp_masquerade", |guide| {
        load(guide, "")?;
        let outside = Host::outside(guide)?;
        let first = Host::container(&guide.lab.container1, mac::CONTAINER1)?;
        let second = Host::container(&guide.lab.container2, mac::CONTAINER2)?;
        for version in 0..2 {
            let remote = (ip(INTERNET[version]), REMOTE);
            let mut seen = Vec::new();
            for (container, address) in [(&first, CONTAINER1), (&second, CONTAINER2)] {
                let own = (ip(address[version]), 5000);
                container.send(&packet(own, remote, 0, INIT, 1, 20))?;
                let (asked, [from, to]) = outside.receive()?;
                ensure!(checksum_is_sound(&asked), "a wrong checksum from {own:?}");
                ensure!(
                    from.0 == ip(SERVER[version]) && to == remote,
                    "{from:?} to {to:?}"
                );
                outside.send(&packet(remote, from, 1, INIT_ACK, 2, 100))?;
                container.expect(remote, own)?;
                seen.push(from.1);
            }
            ensure!(seen[0] == 5000 && seen[1] != 5000, "from ports {seen:?}");
        }
        Ok(())
    });
}

/// A sum that is left to the card is made of a packet whose field is zero (`skb_crc32c_csum_help`,
/// net/core/dev.c): it has to stay so.
#[test]
fn a_sum_that_is_left_to_the_card_stays_unfinished() {
    under_both("sctp_unfinished", |guide| {
        load(guide, " --to-ports 30000-30999")?;
        let outside = Host::outside(guide)?;
        let inside = Host::container(&guide.lab.container1, mac::CONTAINER1)?;
        let sender = UnfinishedSender::open(&guide.lab.container1, "eth0")?;
        for version in 0..2 {
            let (own, remote) = (
                (ip(CONTAINER1[version]), 5000),
                (ip(INTERNET[version]), REMOTE),
            );
            let mut init = packet(own, remote, 0, INIT, 1, 20);
            let layers = Layers::read(&init).context("a packet")?;
            let field = layers.crc().context("a sum")?;
            init[field..field + 4].fill(0);
            sender.send(&inside.frame(&init), L2 + layers.body, 8)?;
            let (sent, [from, _]) = outside.receive()?;
            ensure!(from.1 != 5000, "the port stayed");
            ensure!(
                sent[field..field + 4] == [0; 4],
                "the sum is {:x?}",
                &sent[field..field + 4]
            );
        }
        Ok(())
    });
}

#[test]
fn sockets_talk_through_a_published_port_and_from_containers() {
    if let Err(error) = Socket::new(Domain::IPV4, Type::STREAM, Some(SCTP)) {
        eprintln!("SKIPPED sockets_talk_through_a_published_port: no sockets of SCTP: {error}");
        return;
    }
    under_both("sctp_sockets", |guide| {
        load(guide, " --to-ports 30000-30999")?;
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
    });
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
