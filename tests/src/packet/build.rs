//! Building packets.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, TcpHeader, TcpOptions,
};

use super::layers::ones_complement;
use super::protocol;

/// TCP flags as bits of the header (RFC 9293, 3.1).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts a connection.
    pub const RST: u8 = 0x04;
    /// Pushes data.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

/// What stands between the IP header and the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dressing {
    /// Nothing.
    #[default]
    Plain,
    /// IPv4: four bytes of No-Operation options. IPv6: a destination options header of padding.
    Options,
    /// IPv6: a routing header of this type, with no segments left. IPv4: nothing.
    Routing(u8),
}

/// An IP packet with all checksums right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same IP version.
    pub destination: IpAddr,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// IPv4's identification, or the low bits of IPv6's flow label: how a forwarded packet is
    /// recognised.
    pub id: u16,
    /// Type of service, traffic class.
    pub tos: u8,
    /// The MSS that TCP's options announce, among others, if there are any.
    pub mss: Option<u16>,
    /// Options or extension headers.
    pub dressing: Dressing,
    /// What it carries.
    pub payload: Payload,
}

/// Layer 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number, sent whether or not the ACK flag is set.
        acknowledgement: u32,
        /// See [`flags`].
        flags: u8,
        /// The window that the sender offers, not scaled.
        window: u16,
        /// Options; filled up to whole words with ends of options.
        options: Vec<u8>,
        /// Data.
        data: Vec<u8>,
    },
    /// A UDP datagram.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Data.
        data: Vec<u8>,
    },
    /// ICMP, or ICMPv6 if the addresses are.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The second half of the header.
        rest: [u8; 4],
        /// All after it.
        data: Vec<u8>,
    },
    /// A packet of SCTP.
    Sctp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Verification tag.
        tag: u32,
        /// All after the header.
        chunks: Vec<u8>,
    },
    /// Any other protocol.
    Other {
        /// IP protocol number.
        protocol: u8,
        /// All after the IP header.
        data: Vec<u8>,
    },
}

impl Packet {
    /// The packet on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let (protocol, body) = self.body();
        let (next, body) = self.dress(protocol, body);
        let mut bytes = self.header(next, body.len(), None);
        bytes.extend(body);
        bytes
    }

    /// The packet cut into fragments of at most `size` bytes of payload, rounded down to a
    /// multiple of eight, in order.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let (protocol, body) = self.body();
        let size = (size / 8).max(1) * 8;
        let count = body.len().div_ceil(size);
        body.chunks(size)
            .enumerate()
            .map(|(index, chunk)| {
                let piece = Piece {
                    offset: index * size,
                    more: index + 1 < count,
                };
                let mut bytes = self.header(protocol, chunk.len(), Some(piece));
                bytes.extend_from_slice(chunk);
                bytes
            })
            .collect()
    }

    /// Layer 4 and its protocol number.
    fn body(&self) -> (u8, Vec<u8>) {
        match &self.payload {
            Payload::Tcp {
                ports,
                sequence,
                acknowledgement,
                flags,
                window,
                options,
                data,
            } => {
                let mut header = TcpHeader::new(ports.0, ports.1, *sequence, *window);
                header.acknowledgment_number = *acknowledgement;
                header.fin = flags & flags::FIN != 0;
                header.syn = flags & flags::SYN != 0;
                header.rst = flags & flags::RST != 0;
                header.psh = flags & flags::PSH != 0;
                header.ack = flags & flags::ACK != 0;
                header.urg = flags & flags::URG != 0;
                let mut all = Vec::new();
                if let Some(mss) = self.mss {
                    let [high, low] = mss.to_be_bytes();
                    // MSS, two of no operation, SACK permitted (RFC 9293 3.2, RFC 2018 2).
                    all.extend([2, 4, high, low, 1, 1, 4, 2]);
                }
                all.extend(options);
                header.options = TcpOptions::try_from_slice(&all).expect("they fit");
                let mut body = header.to_bytes().to_vec();
                body.extend_from_slice(data);
                (protocol::TCP, self.summed(protocol::TCP, body, 16))
            }
            Payload::Udp { ports, data } => {
                let length = (8 + data.len()) as u16;
                let mut body = Vec::with_capacity(usize::from(length));
                for word in [ports.0, ports.1, length, 0] {
                    body.extend(word.to_be_bytes());
                }
                body.extend_from_slice(data);
                (protocol::UDP, self.summed(protocol::UDP, body, 6))
            }
            Payload::Icmp {
                kind,
                code,
                rest,
                data,
            } => {
                let mut body = vec![*kind, *code, 0, 0];
                body.extend(rest);
                body.extend_from_slice(data);
                let protocol = if self.source.is_ipv4() {
                    protocol::ICMP
                } else {
                    protocol::ICMPV6
                };
                (protocol, self.summed(protocol, body, 2))
            }
            Payload::Sctp { ports, tag, chunks } => {
                let mut body = Vec::with_capacity(12 + chunks.len());
                body.extend(ports.0.to_be_bytes());
                body.extend(ports.1.to_be_bytes());
                body.extend(tag.to_be_bytes());
                body.extend([0; 4]);
                body.extend(chunks);
                let sum = crc32c(&body).to_le_bytes();
                body[8..12].copy_from_slice(&sum);
                (protocol::SCTP, body)
            }
            Payload::Other { protocol, data } => (*protocol, data.clone()),
        }
    }

    /// Fills in the checksum at `offset`.
    fn summed(&self, protocol: u8, mut body: Vec<u8>, offset: usize) -> Vec<u8> {
        let pseudo = if protocol == protocol::ICMP {
            Vec::new()
        } else {
            pseudo_header(self.source, self.destination, protocol, body.len())
        };
        let mut sum = !ones_complement(&[&pseudo, &body]);
        if protocol == protocol::UDP && sum == 0 {
            // Zero means "no checksum" (RFC 768).
            sum = 0xffff;
        }
        body[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        body
    }

    /// IPv6 extension headers are part of the payload; IPv4 options are part of the header.
    fn dress(&self, protocol: u8, body: Vec<u8>) -> (u8, Vec<u8>) {
        const DESTINATION_OPTIONS: u8 = 60;
        const ROUTING: u8 = 43;
        if self.dressing == Dressing::Plain || self.source.is_ipv4() {
            return (protocol, body);
        }
        if let Dressing::Routing(kind) = self.dressing {
            let mut bytes = vec![protocol, 0, kind, 0, 0, 0, 0, 0];
            bytes.extend(body);
            return (ROUTING, bytes);
        }
        // PadN over the six bytes after next header and length (RFC 8200, 4.2).
        let mut bytes = vec![protocol, 0, 1, 4, 0, 0, 0, 0];
        bytes.extend(body);
        (DESTINATION_OPTIONS, bytes)
    }

    fn header(&self, next: u8, length: usize, piece: Option<Piece>) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    identification: self.id,
                    time_to_live: self.ttl,
                    protocol: IpNumber(next),
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv4Header::default()
                };
                header.dscp = IpDscp::try_new(self.tos >> 2).unwrap_or_default();
                header.ecn = IpEcn::try_new(self.tos & 3).unwrap_or_default();
                header.dont_fragment = false;
                if self.dressing == Dressing::Options && piece.is_none() {
                    const NO_OPERATION: u8 = 1;
                    header.options = Ipv4Options::from([NO_OPERATION; 4]);
                }
                if let Some(piece) = piece {
                    header.more_fragments = piece.more;
                    header.fragment_offset = piece.field();
                }
                header.total_len = (header.header_len() + length) as u16;
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let fragment = piece.map(|piece| piece.ipv6_header(next, self.id));
                let header = Ipv6Header {
                    traffic_class: self.tos,
                    flow_label: Ipv6FlowLabel::try_new(u32::from(self.id)).unwrap_or_default(),
                    payload_length: (length + fragment.map_or(0, |header| header.len())) as u16,
                    next_header: fragment
                        .map_or(IpNumber(next), |_| IpNumber::IPV6_FRAGMENTATION_HEADER),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                let mut bytes = header.to_bytes().to_vec();
                bytes.extend(fragment.into_iter().flatten());
                bytes
            }
            (source, destination) => {
                unreachable!("a packet from {source} to {destination}: mixed IP versions")
            }
        }
    }
}

/// An Ethernet frame around an IP packet.
pub fn frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = match packet.first().map(|byte| byte >> 4) {
        Some(6) => EtherType::IPV6,
        _ => EtherType::IPV4,
    };
    let header = Ethernet2Header {
        source,
        destination,
        ether_type,
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(packet);
    bytes
}

/// What TCP, UDP and ICMPv6 checksums cover besides the segment.
pub(super) fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// SCTP's checksum (RFC 9260, appendix A).
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ (POLYNOMIAL & 0_u32.wrapping_sub(sum & 1))
        })
    })
}

/// Where a fragment stands in its datagram.
#[derive(Clone, Copy)]
struct Piece {
    offset: usize,
    more: bool,
}

impl Piece {
    fn ipv6_header(self, next: u8, id: u16) -> [u8; 8] {
        Ipv6FragmentHeader {
            next_header: IpNumber(next),
            fragment_offset: self.field(),
            more_fragments: self.more,
            identification: u32::from(id),
        }
        .to_bytes()
    }

    fn field(self) -> IpFragOffset {
        IpFragOffset::try_new((self.offset / 8) as u16).unwrap_or(IpFragOffset::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Layers, checksum_is_sound, reassemble};

    fn udp(source: &str, destination: &str) -> Packet {
        Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 64,
            id: 7,
            tos: 0,
            mss: None,
            dressing: Dressing::Plain,
            payload: Payload::Udp {
                ports: (1000, 2000),
                data: (0..100).collect(),
            },
        }
    }

    #[test]
    fn the_sum_of_sctp_is_castagnolis() {
        // RFC 3720, appendix B.4; and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn built_packets_are_read_back() {
        for (source, destination) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            for dressing in [Dressing::Plain, Dressing::Options, Dressing::Routing(0)] {
                let packet = Packet {
                    dressing,
                    ..udp(source, destination)
                };
                let bytes = packet.bytes();
                let layers = Layers::read(&bytes).unwrap();
                assert_eq!(layers.source, packet.source);
                assert_eq!(layers.protocol, protocol::UDP);
                assert_eq!(layers.ports(&bytes), Some((1000, 2000)));
                assert!(checksum_is_sound(&bytes));
                let mut broken = bytes.clone();
                *broken.last_mut().unwrap() ^= 1;
                assert!(!checksum_is_sound(&broken));
            }
        }
    }

    #[test]
    fn fragments_are_put_together_again() {
        for (source, destination) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let packet = udp(source, destination);
            let fragments = packet.fragments(48);
            assert_eq!(fragments.len(), 3);
            assert_eq!(reassemble(fragments), vec![packet.bytes()]);
        }
    }
}
