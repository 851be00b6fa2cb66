//! From a question to a packet.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep, TcpHeader};
use fw_common::datapath::header::protocol;
use fw_common::datapath::tcp::flag;

use super::{ExplainError, Question, State};
use crate::sim::{HostDevice, SlicePacket};

/// Ports of packets whose question names none.
const HIGH_PORT: u16 = 40_000;
/// traceroute's first port, for the packet that an ICMP error quotes.
const QUOTED_PORT: u16 = 33_434;

impl Question {
    /// The packet, as it is when it reaches a device.
    pub(super) fn packet(&self, device: &HostDevice) -> Result<SlicePacket, ExplainError> {
        let mut ip = self.ip_packet()?;
        if self.state == Some(State::Invalid) {
            self.spoil(&mut ip);
        }
        if device.l2_len == 0 {
            return Ok(SlicePacket::raw_ip(ip, device.index));
        }
        let ethertype: [u8; 2] = if self.is_v6() {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        };
        let mut frame = vec![0; device.l2_len as usize - ethertype.len()];
        frame.extend(ethertype);
        frame.append(&mut ip);
        Ok(SlicePacket::ethernet(frame, device.index))
    }

    /// The packet that opens the connection which this one belongs to.
    pub(super) fn opening(&self) -> Self {
        Self {
            tcp_flags: None,
            state: Some(State::New),
            ..self.clone()
        }
    }

    /// The connection that an ICMP error is about: the quoted packet, as it was sent.
    pub(super) fn quoted(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: protocol::UDP,
            source_port: Some(HIGH_PORT),
            destination_port: Some(QUOTED_PORT),
            icmp: None,
            tcp_flags: None,
            state: None,
            ..self.clone()
        }
    }

    /// Whether the packet looks like an answer: it can only be its connection's second packet.
    pub(super) fn answers(&self) -> bool {
        match self.protocol {
            protocol::TCP => self.flags() & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK,
            protocol::ICMP if !self.is_v6() => matches!(self.icmp(), (0 | 14 | 16 | 18, _)),
            protocol::ICMPV6 if self.is_v6() => matches!(self.icmp(), (129 | 140, _)),
            _ => false,
        }
    }

    /// Whether the packet is ICMP of its own IP version.
    pub(super) fn is_icmp(&self) -> bool {
        match self.protocol {
            protocol::ICMP => !self.is_v6(),
            protocol::ICMPV6 => self.is_v6(),
            _ => false,
        }
    }

    /// Whether this is IPv6.
    pub(super) fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    fn flags(&self) -> u8 {
        self.tcp_flags.unwrap_or(match self.state {
            Some(State::Established) => flag::ACK,
            _ => flag::SYN,
        })
    }

    fn icmp(&self) -> (u8, u8) {
        self.icmp.unwrap_or(match self.source {
            IpAddr::V4(_) => (8, 0),
            IpAddr::V6(_) => (128, 0),
        })
    }

    fn ports(&self) -> (u16, u16) {
        (
            self.source_port.unwrap_or(HIGH_PORT),
            self.destination_port.unwrap_or(HIGH_PORT),
        )
    }

    fn ip_packet(&self) -> Result<Vec<u8>, ExplainError> {
        let step = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
            }
            (source, destination) => return Err(ExplainError::Families(source, destination)),
        };
        let mut bytes = Vec::new();
        let written = match self.protocol {
            protocol::TCP => {
                let (source, destination) = self.ports();
                step.tcp_header(tcp_header(source, destination, self.flags()))
                    .write(&mut bytes, &[])
            }
            protocol::UDP => {
                let (source, destination) = self.ports();
                step.udp(source, destination).write(&mut bytes, &[])
            }
            _ if self.is_icmp() => return self.icmp_packet(step),
            protocol::SCTP => {
                let (source, destination) = self.ports();
                let mut payload = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                // No tag, as an INIT has none, and no sum; then a chunk that opens an association, or data.
                payload.resize(12, 0);
                let opens = self.state.is_none_or(|state| state == State::New);
                payload.extend([u8::from(opens), 0, 0, 20, 0, 0, 0, 1]);
                payload.resize(12 + 20, 0);
                step.write(&mut bytes, IpNumber(protocol::SCTP), &payload)
            }
            other => {
                let (source, destination) = self.ports();
                // Protocols with ports begin with them; to others these are four bytes of data.
                let mut payload = [source.to_be_bytes(), destination.to_be_bytes()].concat();
                payload.resize(16, 0);
                step.write(&mut bytes, IpNumber(other), &payload)
            }
        };
        written.map_err(|error| ExplainError::Build(error.to_string()))?;
        Ok(bytes)
    }

    fn icmp_packet(
        &self,
        step: PacketBuilderStep<etherparse::IpHeaders>,
    ) -> Result<Vec<u8>, ExplainError> {
        let (kind, code) = self.icmp();
        let quoted = if self.state == Some(State::Related) {
            self.quoted().ip_packet()?
        } else {
            Vec::new()
        };
        let identifier = self.source_port.unwrap_or(1).to_be_bytes();
        let rest = if quoted.is_empty() {
            [identifier[0], identifier[1], 0, 1]
        } else {
            [0; 4]
        };
        let mut bytes = Vec::new();
        let written = if self.is_v6() {
            step.icmpv6_raw(kind, code, rest).write(&mut bytes, &quoted)
        } else {
            step.icmpv4_raw(kind, code, rest).write(&mut bytes, &quoted)
        };
        written.map_err(|error| ExplainError::Build(error.to_string()))?;
        Ok(bytes)
    }

    /// Makes the transport header contradict itself, in a place that no rule looks at.
    fn spoil(&self, ip: &mut [u8]) {
        let transport = if self.is_v6() { 40 } else { 20 };
        let places = match self.protocol {
            // The data offset.
            protocol::TCP => transport + 12..transport + 13,
            // The length.
            protocol::UDP => transport + 4..transport + 6,
            _ => return,
        };
        if let Some(bytes) = ip.get_mut(places) {
            bytes.fill(0);
        }
    }
}

fn tcp_header(source: u16, destination: u16, flags: u8) -> TcpHeader {
    let set = |bit: u8| flags & bit != 0;
    let mut header = TcpHeader::new(source, destination, 1, 65_535);
    header.fin = set(flag::FIN);
    header.syn = set(flag::SYN);
    header.rst = set(flag::RST);
    header.psh = set(flag::PSH);
    header.ack = set(flag::ACK);
    header.urg = set(flag::URG);
    header.ece = set(0x40);
    header.cwr = set(0x80);
    header
}
