//! SCTP under iptables and under fwbpf: a port that Docker publishes, and what containers send, by frames
//! whose checksums are looked at, and by real sockets where the kernel has SCTP.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use fwbpf_tests::association::{self, INNER, PUBLISHED, REMOTE, rules};
use fwbpf_tests::guide::{GuideLab, under_both};
use fwbpf_tests::lab::address::{CONTAINER1, CONTAINER2, INTERNET, SERVER};
use fwbpf_tests::lab::sockets::{PATIENCE, ip};
use fwbpf_tests::lab::{FrameSocket, Namespace, UnfinishedSender, mac};
use fwbpf_tests::packet::chunk::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK};
use fwbpf_tests::packet::{Dressing, Layers, Packet, Payload, checksum_is_sound, frame, protocol};

const L2: usize = 14;

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
    if let Some(lack) = association::lack() {
        eprintln!("SKIPPED sockets_talk_through_a_published_port_and_from_containers: {lack}");
        return;
    }
    under_both("sctp_sockets", |guide| {
        load(guide, " --to-ports 30000-30999")?;
        association::talk_both_ways(guide)
    });
}
