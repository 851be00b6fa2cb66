//! A second reader of headers, over plain slices. It shares nothing with the datapath's: RFC 791, 8200,
//! 9293, 768, 792 and 4443 as they are, and what the stack does before rules see a packet
//! (`ip_rcv_core`, `ip6_rcv_core`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Not IP, or the stack drops it.
    NotOurs,
    /// IP, without a transport header that could be judged.
    Malformed,
    /// A packet for the rules.
    Packet(Box<Told>),
}

/// What its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub v6: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Of ICMP, type and code.
    pub ports: (u16, u16),
    pub tcp_flags: u8,
    /// What counters count.
    pub bytes: u32,
    /// Where the transport header is in the frame.
    pub l4: usize,
    pub part: Part,
    /// What fragments of one datagram have in common; of an IPv6 packet without a fragment header 0.
    pub id: u32,
    /// The transport header contradicts itself.
    pub broken: bool,
    pub kind: Kind,
}

/// What a packet carries of its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// A kind of ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NotIcmp,
    Request,
    Reply,
    Error,
    Untracked,
    Other,
}

/// Reads the frame whose IP header is at `l3`.
pub fn read(frame: &[u8], ethertype: u16, l3: usize) -> Wire {
    let Some(packet) = frame.get(l3..) else {
        return Wire::NotOurs;
    };
    match ethertype {
        0x0800 => read_v4(packet, l3),
        0x86dd => read_v6(packet, l3),
        _ => Wire::NotOurs,
    }
}

fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

fn read_v4(packet: &[u8], l3: usize) -> Wire {
    if packet.len() < 20 || packet[0] >> 4 != 4 {
        return Wire::NotOurs;
    }
    let header = usize::from(packet[0] & 15) * 4;
    // BIG TCP.
    let total = match half(packet, 2) {
        0 => packet.len(),
        total => total,
    };
    if header < 20 || header > total || total > packet.len() {
        return Wire::NotOurs;
    }
    let mut sum = 0;
    for at in (0..header).step_by(2) {
        sum += half(packet, at);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if sum != 0xffff {
        return Wire::NotOurs;
    }
    let fragment = half(packet, 6);
    let part = if fragment & 0x1fff != 0 {
        Part::Later
    } else if fragment & 0x2000 != 0 {
        Part::First
    } else {
        Part::Whole
    };
    let address = |at: usize| {
        let octets: [u8; 4] = packet[at..at + 4].try_into().expect("four bytes");
        IpAddr::V4(Ipv4Addr::from(octets))
    };
    let told = Told {
        v6: false,
        source: address(12),
        destination: address(16),
        protocol: packet[9],
        ports: (0, 0),
        tcp_flags: 0,
        bytes: if part == Part::Later {
            total - header
        } else {
            total
        } as u32,
        l4: l3 + header,
        part,
        id: half(packet, 4) as u32,
        broken: false,
        kind: Kind::NotIcmp,
    };
    transport(told, &packet[header..total], &packet[header..])
}

fn read_v6(packet: &[u8], l3: usize) -> Wire {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Wire::NotOurs;
    }
    // A jumbogram, or BIG TCP.
    let payload = match half(packet, 4) {
        0 => packet.len() - 40,
        payload => payload,
    };
    if 40 + payload > packet.len() {
        return Wire::NotOurs;
    }
    let (mut next, mut at, mut part, mut id) = (packet[6], 40, Part::Whole, 0);
    let mut headers = 0;
    while part != Part::Later && matches!(next, 0 | 43 | 44 | 51 | 60) {
        // Each at most once, destination options twice (RFC 8200 4.1): more than eight is an attack.
        if headers == 8 || at + 8 > packet.len() {
            return Wire::Malformed;
        }
        headers += 1;
        let length = usize::from(packet[at + 1]);
        match next {
            44 => {
                let fragment = half(packet, at + 2);
                if fragment >> 3 != 0 {
                    part = Part::Later;
                } else if fragment & 1 != 0 {
                    part = Part::First;
                }
                id = (half(packet, at + 4) << 16 | half(packet, at + 6)) as u32;
                next = packet[at];
                at += 8;
            }
            51 => {
                next = packet[at];
                at += (length + 2) * 4;
            }
            _ => {
                next = packet[at];
                at += (length + 1) * 8;
            }
        }
    }
    if at > 40 + payload {
        return Wire::Malformed;
    }
    let address = |at: usize| {
        let octets: [u8; 16] = packet[at..at + 16].try_into().expect("sixteen bytes");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let told = Told {
        v6: true,
        source: address(8),
        destination: address(24),
        protocol: next,
        ports: (0, 0),
        tcp_flags: 0,
        bytes: match part {
            Part::Whole => 40 + payload,
            Part::First => 40 + payload - 8,
            Part::Later => 40 + payload - at,
        } as u32,
        l4: l3 + at,
        part,
        id,
        broken: false,
        kind: Kind::NotIcmp,
    };
    transport(told, &packet[at..40 + payload], &packet[at..])
}

/// Reads the transport header at the beginning of what the IP packet carries. `beyond` goes on to
/// the end of the frame.
fn transport(mut told: Told, carried: &[u8], beyond: &[u8]) -> Wire {
    if told.part == Part::Later {
        return Wire::Packet(Box::new(told));
    }
    let enough = match (told.protocol, told.v6) {
        (6, _) => 20,
        (17 | 136, _) | (1, false) | (58, true) => 8,
        (33 | 132, _) => 4,
        _ => return Wire::Packet(Box::new(told)),
    };
    // What is said of the ports of these two is read where it is, as netfilter does.
    let bytes = if enough == 4 { beyond } else { carried };
    if bytes.len() < enough {
        return Wire::Malformed;
    }
    told.ports = (half(bytes, 0) as u16, half(bytes, 2) as u16);
    match told.protocol {
        6 => {
            told.tcp_flags = bytes[13];
            let offset = usize::from(bytes[12] >> 4) * 4;
            told.broken = offset < 20 || offset > carried.len();
        }
        17 => {
            let length = half(bytes, 4);
            told.broken = told.part == Part::Whole && (length < 8 || length > carried.len());
        }
        136 => {
            let coverage = half(bytes, 4);
            let too_much = told.part == Part::Whole && coverage > carried.len();
            told.broken = (1..8).contains(&coverage) || too_much || half(bytes, 6) == 0;
        }
        1 | 58 => {
            told.ports = (bytes[0].into(), bytes[1].into());
            told.kind = if told.v6 {
                icmp6(bytes[0])
            } else {
                icmp4(bytes[0])
            };
        }
        _ => {}
    }
    Wire::Packet(Box::new(told))
}

fn icmp4(kind: u8) -> Kind {
    match kind {
        8 | 13 | 15 | 17 => Kind::Request,
        0 | 14 | 16 | 18 => Kind::Reply,
        3 | 4 | 5 | 11 | 12 => Kind::Error,
        _ => Kind::Other,
    }
}

fn icmp6(kind: u8) -> Kind {
    match kind {
        128 | 139 => Kind::Request,
        129 | 140 => Kind::Reply,
        // Listener reports, neighbour discovery, RFC 2710, 4861, 3810, 4286.
        130..=136 | 143 | 151 | 152 => Kind::Untracked,
        // A redirect (RFC 4861 4.5) quotes a packet and is tracked like what does
        // (`nf_conntrack_icmpv6_redirect`, net/netfilter/nf_conntrack_proto_icmpv6.c).
        137 => Kind::Error,
        kind if kind < 128 => Kind::Error,
        _ => Kind::Other,
    }
}
