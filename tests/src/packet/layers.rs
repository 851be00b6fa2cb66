//! Reading packets: where the layers are, whether checksums are right, fragments put together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::{crc32c, pseudo_header};
use super::protocol;

/// Where things are in an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The upper protocol, after IPv6's extension headers.
    pub protocol: u8,
    /// Where layer 4 begins.
    pub body: usize,
    /// Where the packet ends, without Ethernet's padding.
    pub end: usize,
    /// Fragment offset in bytes and the more-fragments flag, if it is a fragment.
    pub fragment: Option<(usize, bool)>,
}

impl Layers {
    /// Reads the headers; nothing if they are cut off or not IP. A packet that was cut off further
    /// back, like those that ICMP errors quote, is read as far as it goes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => read_v4(bytes),
            6 => read_v6(bytes),
            _ => None,
        }
    }

    /// Source and destination port of TCP, UDP and SCTP.
    pub fn ports(&self, bytes: &[u8]) -> Option<(u16, u16)> {
        let has_ports = matches!(
            self.protocol,
            protocol::TCP | protocol::UDP | protocol::SCTP
        );
        (has_ports && !self.is_later())
            .then(|| Some((word(bytes, self.body)?, word(bytes, self.body + 2)?)))?
    }

    /// The identifier of an ICMP or ICMPv6 echo.
    pub fn echo_id(&self, bytes: &[u8]) -> Option<u16> {
        let kind = *bytes.get(self.body)?;
        let is_echo = match self.protocol {
            protocol::ICMP => matches!(kind, 0 | 8),
            protocol::ICMPV6 => matches!(kind, 128 | 129),
            _ => false,
        };
        (is_echo && !self.is_later()).then(|| word(bytes, self.body + 4))?
    }

    /// Where the packet that an ICMP error quotes begins.
    pub fn quoted(&self, bytes: &[u8]) -> Option<usize> {
        let kind = *bytes.get(self.body)?;
        let is_error = match self.protocol {
            protocol::ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
            protocol::ICMPV6 => matches!(kind, 1..=4),
            _ => false,
        };
        (is_error && !self.is_later()).then_some(self.body + 8)
    }

    /// Where SCTP's checksum is.
    pub fn crc(&self) -> Option<usize> {
        let is_sctp = self.protocol == protocol::SCTP && !self.is_later();
        is_sctp.then_some(self.body + 8)
    }

    /// Where the layer 4 checksum is, unless it is SCTP's.
    pub fn checksum(&self) -> Option<usize> {
        let offset = match self.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            protocol::ICMP | protocol::ICMPV6 => 2,
            _ => return None,
        };
        (!self.is_later()).then_some(self.body + offset)
    }

    fn is_later(&self) -> bool {
        self.fragment.is_some_and(|(offset, _)| offset > 0)
    }
}

/// Whether the checksums of IPv4 and of layer 4 are right. A layer 4 checksum that the sender's
/// kernel left to the network card (CHECKSUM_PARTIAL: it holds the pseudo-header's sum) is as
/// good: on a veth there is no card to finish it.
pub fn checksum_is_sound(bytes: &[u8]) -> bool {
    let Some(layers) = Layers::read(bytes) else {
        return false;
    };
    let Some(packet) = bytes.get(..layers.end) else {
        return false;
    };
    if layers.source.is_ipv4() {
        let header = usize::from(packet[0] & 0x0f) * 4;
        if packet.get(..header).map(|h| ones_complement(&[h])) != Some(0xffff) {
            return false;
        }
    }
    if let (Some(at), None) = (layers.crc(), layers.fragment) {
        return sctp_sum(packet, &layers).is_some_and(|sum| packet[at..at + 4] == sum);
    }
    let (Some(offset), None) = (layers.checksum(), layers.fragment) else {
        return true;
    };
    let Some(field) = word(packet, offset) else {
        return false;
    };
    if layers.protocol == protocol::UDP && field == 0 && layers.source.is_ipv4() {
        return true;
    }
    let body = &packet[layers.body..];
    let pseudo = if layers.protocol == protocol::ICMP {
        Vec::new()
    } else {
        pseudo_header(
            layers.source,
            layers.destination,
            layers.protocol,
            body.len(),
        )
    };
    ones_complement(&[&pseudo, body]) == 0xffff || checksum_is_unfinished(packet)
}

/// What SCTP's checksum would be, of what there is of the packet.
pub fn sctp_sum(packet: &[u8], layers: &Layers) -> Option<[u8; 4]> {
    let mut body = packet.get(layers.body..layers.end)?.to_vec();
    body.get_mut(8..12)?.fill(0);
    Some(crc32c(&body).to_le_bytes())
}

/// Whether the layer 4 checksum is one that the sender's kernel left to the network card.
pub fn checksum_is_unfinished(packet: &[u8]) -> bool {
    let Some(layers) = Layers::read(packet) else {
        return false;
    };
    if !matches!(layers.protocol, protocol::TCP | protocol::UDP) || layers.fragment.is_some() {
        return false;
    }
    let pseudo = pseudo_header(
        layers.source,
        layers.destination,
        layers.protocol,
        layers.end - layers.body,
    );
    let field = layers.checksum().and_then(|at| word(packet, at));
    field == Some(ones_complement(&[&pseudo]))
}

/// Puts fragments of the same datagram together; whole packets and incomplete sets pass as they
/// are. The order of first appearance is kept.
pub fn reassemble(packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut result: Vec<Vec<u8>> = Vec::new();
    let mut sets: Vec<(FragmentKey, Vec<Vec<u8>>)> = Vec::new();
    for packet in packets {
        match FragmentKey::of(&packet) {
            None => result.push(packet),
            Some(key) => match sets.iter_mut().find(|(known, _)| *known == key) {
                Some((_, set)) => set.push(packet),
                None => sets.push((key, vec![packet])),
            },
        }
    }
    for (_, set) in sets {
        match join(&set) {
            Some(whole) => result.push(whole),
            None => result.extend(set),
        }
    }
    result
}

/// The one's complement sum of the parts, folded to 16 bits (RFC 1071). All parts but the last
/// must be of even length.
pub fn ones_complement(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[derive(PartialEq, Eq)]
struct FragmentKey {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: Vec<u8>,
}

impl FragmentKey {
    fn of(packet: &[u8]) -> Option<Self> {
        let layers = Layers::read(packet)?;
        layers.fragment?;
        let id = if layers.source.is_ipv4() {
            packet.get(4..6)?
        } else {
            packet.get(layers.body - 4..layers.body)?
        };
        Some(Self {
            source: layers.source,
            destination: layers.destination,
            protocol: layers.protocol,
            id: id.to_vec(),
        })
    }
}

fn join(set: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut pieces: Vec<(usize, bool, &[u8])> = Vec::new();
    let mut first = None;
    for packet in set {
        let layers = Layers::read(packet)?;
        let (offset, more) = layers.fragment?;
        if offset == 0 {
            first = Some((packet, layers));
        }
        pieces.push((offset, more, packet.get(layers.body..layers.end)?));
    }
    pieces.sort_by_key(|piece| piece.0);
    let mut body: Vec<u8> = Vec::new();
    for (offset, _, piece) in &pieces {
        if *offset != body.len() {
            return None;
        }
        body.extend_from_slice(piece);
    }
    if pieces.last()?.1 {
        return None;
    }
    let (packet, layers) = first?;
    let mut whole;
    if layers.source.is_ipv4() {
        whole = packet[..layers.body].to_vec();
        whole[2..4].copy_from_slice(&((layers.body + body.len()) as u16).to_be_bytes());
        whole[6..8].copy_from_slice(&[0, 0]);
        whole[10..12].copy_from_slice(&[0, 0]);
        let sum = !ones_complement(&[&whole]);
        whole[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        // Only the plain shape, fixed header and fragment header, is sent in fragments.
        whole = packet[..40].to_vec();
        whole[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
        whole[6] = layers.protocol;
    }
    whole.extend(body);
    Some(whole)
}

fn read_v4(bytes: &[u8]) -> Option<Layers> {
    let header = usize::from(bytes[0] & 0x0f) * 4;
    if header < 20 || bytes.len() < header {
        return None;
    }
    let field = word(bytes, 6)?;
    let (more, offset) = (field & 0x2000 != 0, usize::from(field & 0x1fff) * 8);
    Some(Layers {
        source: Ipv4Addr::from(*bytes[12..16].first_chunk::<4>()?).into(),
        destination: Ipv4Addr::from(*bytes[16..20].first_chunk::<4>()?).into(),
        protocol: bytes[9],
        body: header,
        end: usize::from(word(bytes, 2)?).clamp(header, bytes.len()),
        fragment: (more || offset > 0).then_some((offset, more)),
    })
}

fn read_v6(bytes: &[u8]) -> Option<Layers> {
    if bytes.len() < 40 {
        return None;
    }
    let mut next = bytes[6];
    let mut body = 40;
    let mut fragment = None;
    loop {
        let length = match next {
            // Hop-by-hop, routing and destination options count in eights after the first.
            0 | 43 | 60 => usize::from(*bytes.get(body + 1)?) * 8 + 8,
            44 => {
                let field = word(bytes, body + 2)?;
                fragment = Some((usize::from(field & 0xfff8), field & 1 != 0));
                8
            }
            _ => break,
        };
        next = *bytes.get(body)?;
        body += length;
        if fragment.is_some_and(|(offset, _)| offset > 0) {
            break;
        }
    }
    if body > bytes.len() {
        return None;
    }
    Some(Layers {
        source: Ipv6Addr::from(*bytes[8..24].first_chunk::<16>()?).into(),
        destination: Ipv6Addr::from(*bytes[24..40].first_chunk::<16>()?).into(),
        protocol: next,
        body,
        end: (40 + usize::from(word(bytes, 4)?)).clamp(body, bytes.len()),
        fragment,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..at + 2)?.first_chunk()?))
}
