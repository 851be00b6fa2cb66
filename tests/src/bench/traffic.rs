//! What the generator is told to send.

use std::net::IpAddr;

use anyhow::{Context, Result};
use bench_ebpf::{FRAME4, FRAME6, Plan};
use etherparse::PacketBuilder;

/// UDP datagrams or TCP's SYNs, from many addresses and ports in turn.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Link-layer source and destination.
    pub macs: [[u8; 6]; 2],
    /// The lowest source address.
    pub source: IpAddr,
    /// How many source addresses.
    pub addresses: u32,
    /// The destination address.
    pub destination: IpAddr,
    /// TCP or UDP.
    pub tcp: bool,
    /// The lowest source port and the lowest destination port.
    pub ports: [u16; 2],
    /// How many ports on the side that varies.
    pub port_count: u32,
    /// Whether that side is the destination.
    pub vary_destination: bool,
}

const ETHERNET: usize = 14;

impl Traffic {
    /// The frame's length on the wire.
    pub fn frame_length(&self) -> usize {
        if self.source.is_ipv4() {
            FRAME4
        } else {
            FRAME6
        }
    }

    /// As the generator takes it.
    pub fn plan(&self) -> Result<Plan> {
        let mut bytes = self.frame()?;
        let (address_at, transport) = match self.source {
            IpAddr::V4(_) => (26, 34),
            IpAddr::V6(_) => (34, 54),
        };
        let address = u32::from_be_bytes(
            bytes[address_at..address_at + 4]
                .try_into()
                .context("an address has four bytes at its end")?,
        );
        let check = transport + if self.tcp { 16 } else { 6 };
        let varied_port = transport + if self.vary_destination { 2 } else { 0 };
        bytes[address_at..address_at + 4].fill(0);
        bytes[varied_port..varied_port + 2].fill(0);
        bytes[check..check + 2].fill(0);
        let end = match self.source {
            IpAddr::V4(_) => {
                bytes[24..26].fill(0);
                ETHERNET + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]))
            }
            IpAddr::V6(_) => transport + usize::from(u16::from_be_bytes([bytes[18], bytes[19]])),
        };
        let (header_sum, addresses) = match self.source {
            IpAddr::V4(_) => (sum(&bytes[ETHERNET..transport]), &bytes[26..34]),
            IpAddr::V6(_) => (0, &bytes[22..54]),
        };
        let length = u16::try_from(end - transport).context("a frame is short")?;
        let protocol: u16 = if self.tcp { 6 } else { 17 };
        let transport_sum = sum(addresses)
            + sum(&length.to_be_bytes())
            + sum(&protocol.to_be_bytes())
            + sum(&bytes[transport..end]);
        let mut frame = [0; FRAME6 / 8];
        for (word, eight) in frame.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(eight.try_into().context("a chunk is of eight")?);
        }
        Ok(Plan {
            frame,
            sent: 0,
            header_sum,
            transport_sum,
            address,
            addresses: self.addresses,
            port: u32::from(self.ports[usize::from(self.vary_destination)]),
            ports: self.port_count,
            next_address: 0,
            next_port: 0,
            vary_destination: u32::from(self.vary_destination),
            tcp: u32::from(self.tcp),
        })
    }

    /// The first frame, padded as Ethernet does.
    pub fn frame(&self) -> Result<Vec<u8>> {
        const TTL: u8 = 64;
        let link = PacketBuilder::ethernet2(self.macs[0], self.macs[1]);
        let network = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                link.ipv4(source.octets(), destination.octets(), TTL)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                link.ipv6(source.octets(), destination.octets(), TTL)
            }
            _ => anyhow::bail!("source and destination are of one family"),
        };
        let mut bytes = Vec::new();
        if self.tcp {
            const SEQUENCE: u32 = 0x0102_0304;
            const WINDOW: u16 = 65_535;
            network
                .tcp(self.ports[0], self.ports[1], SEQUENCE, WINDOW)
                .syn()
                .write(&mut bytes, &[])?;
        } else {
            // Ethernet's shortest frame, without the frame check sequence, has 18 bytes of UDP.
            network
                .udp(self.ports[0], self.ports[1])
                .write(&mut bytes, &[0; 18])?;
        }
        bytes.resize(self.frame_length(), 0);
        Ok(bytes)
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_ne_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum()
}
