//! Parsing: from a frame to the fields that everything else works on.

mod usual;

use core::ops::ControlFlow;

use super::packet::Packet;
use super::tables::{Step, Tables};
use crate::abi::blob::HashKey;
use crate::abi::{Addr, Family};

/// Protocol numbers that the datapath knows (IANA's assigned internet protocol numbers).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE.
    pub const GRE: u8 = 47;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDPLITE: u8 = 136;

    /// Whether ports of a protocol are translated.
    #[inline(always)]
    pub fn has_ports(number: u8) -> bool {
        matches!(number, TCP | UDP | SCTP)
    }

    /// Whether packets of a protocol are translated. The checksums of the others cover the addresses, and
    /// netfilter does not correct them either (docs/nat.md).
    #[inline(always)]
    pub const fn is_translatable(number: u8) -> bool {
        !matches!(number, DCCP | UDPLITE)
    }
}

/// What a packet's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Addresses, ports and protocol as rules see them: for ICMP, the type is the source port and
    /// the code the destination port.
    pub key: HashKey,
    /// Ports as connection tracking sees them, source in the high half: for ICMP queries, the
    /// identifier and `type << 8 | code` of the request.
    pub flow_ports: u32,
    /// Bytes of layer 3 that iptables would count for this packet.
    pub bytes: u32,
    /// Identification, for fragments.
    pub fragment_id: u32,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Bytes from the transport header to the end of the IP packet.
    pub l4_len: u16,
    /// IP version.
    pub family: Family,
    /// Whole, or which part of a fragmented datagram.
    pub part: Part,
    /// The transport header contradicts itself: connection tracking calls the packet INVALID.
    pub broken: bool,
    /// Type of service (traffic class in IPv6).
    pub tos: u8,
    /// TCP flags, as in the header's byte 13.
    pub tcp_flags: u8,
    /// What kind of message, for ICMP.
    pub icmp: Icmp,
    /// The zone of the packet's flow, which no header tells (`datapath::zone`).
    pub zone: u16,
}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole,
    /// The beginning, with the transport header.
    First,
    /// A further part.
    Later,
}

/// ICMP messages, by how connection tracking treats them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Icmp {
    /// Not ICMP.
    No,
    /// Asks for an answer: opens a flow.
    Request,
    /// Answers.
    Reply,
    /// Quotes a packet that something went wrong with.
    Error,
    /// Neighbour discovery and multicast listener messages, which are not tracked.
    Untracked,
    /// Everything else.
    Other,
}

/// What parsing came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Parsed {
    /// The headers are filled in.
    Headers,
    /// Not IP, or so broken that the stack drops it before iptables would see it.
    NotOurs,
    /// IP, but the transport header is cut short or the extension headers do not end.
    Malformed,
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            key: HashKey::default(),
            flow_ports: 0,
            bytes: 0,
            fragment_id: 0,
            l3: 0,
            l4: 0,
            l4_len: 0,
            family: Family::V4,
            part: Part::Whole,
            broken: false,
            tos: 0,
            tcp_flags: 0,
            icmp: Icmp::No,
            zone: 0,
        }
    }
}

impl Headers {
    /// Whether this is IPv6.
    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        self.family as u8 == Family::V6 as u8
    }

    /// Whether an ICMP error is a redirect.
    #[inline(always)]
    pub fn is_redirect(&self) -> bool {
        let redirect = if self.is_v6() {
            REDIRECT_V6
        } else {
            REDIRECT_V4
        };
        self.key.ports >> 16 == redirect as u32
    }
}

/// Parses the frame whose network header is at `l3`.
///
/// The checks before the transport header are those of the stack (`ip_rcv_core` in
/// net/ipv4/ip_input.c, `ip6_rcv_core` in net/ipv6/ip6_input.c): what it drops, rules never see.
#[inline(always)]
pub fn parse<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    l3: u32,
    headers: &mut Headers,
) -> Parsed {
    if l3 == ETHERNET as u32 && usual::parse(packet, headers) {
        return Parsed::Headers;
    }
    parse_any(packet, tables, l3, headers)
}

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Where the transport header is behind an Ethernet header and an IPv4 header without options.
pub const L4_V4: usize = ETHERNET + 20;
/// The same behind an IPv6 header without extension headers.
pub const L4_V6: usize = ETHERNET + 40;

#[inline(never)]
fn parse_any<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    l3: u32,
    headers: &mut Headers,
) -> Parsed {
    let l3 = l3 & 0x3f;
    headers.l3 = l3 as u16;
    headers.key.ports = 0;
    headers.flow_ports = 0;
    headers.fragment_id = 0;
    headers.part = Part::Whole;
    headers.broken = false;
    headers.tcp_flags = 0;
    headers.icmp = Icmp::No;
    let parsed = match packet.ethertype() {
        0x0800 => parse_v4(packet, tables, l3, headers),
        0x86dd => parse_v6(packet, tables, l3, headers),
        _ => return Parsed::NotOurs,
    };
    if parsed as u8 != Parsed::Headers as u8 || headers.part as u8 == Part::Later as u8 {
        return parsed;
    }
    match parse_transport(packet, headers) {
        Some(()) => Parsed::Headers,
        None => Parsed::Malformed,
    }
}

#[inline(never)]
fn parse_v4<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    l3: u32,
    headers: &mut Headers,
) -> Parsed {
    let Some(ip) = packet.load::<20>(l3) else {
        return Parsed::NotOurs;
    };
    let header_len = (ip[0] & 0x0f) as u32 * 4;
    let total_len = u16::from_be_bytes([ip[2], ip[3]]) as u32;
    // A super-packet of more than 64 KiB has a total length of zero (BIG TCP).
    let total_len = if total_len == 0 {
        packet.len().wrapping_sub(l3)
    } else {
        total_len
    };
    if ip[0] >> 4 != 4
        || header_len < 20
        || total_len < header_len
        || packet.len().wrapping_sub(l3) < total_len
        || !sum_is_right(packet, tables, l3, &ip, header_len)
    {
        return Parsed::NotOurs;
    }
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    headers.family = Family::V4;
    headers.tos = ip[1];
    headers.key.source = [be32(ip[12], ip[13], ip[14], ip[15]), 0, 0, 0];
    headers.key.destination = [be32(ip[16], ip[17], ip[18], ip[19]), 0, 0, 0];
    headers.key.protocol = ip[9] as u32;
    headers.fragment_id = u16::from_be_bytes([ip[4], ip[5]]) as u32;
    headers.l4 = (l3 + header_len) as u16;
    headers.l4_len = clamp_len(total_len - header_len);
    headers.bytes = total_len;
    if fragment & 0x1fff != 0 {
        headers.part = Part::Later;
        // iptables counts the reassembled datagram: one header, and every fragment's data.
        headers.bytes = total_len - header_len;
    } else if fragment & 0x2000 != 0 {
        headers.part = Part::First;
    }
    Parsed::Headers
}

/// RFC 1071 over the header; the stack drops a packet whose header sum is wrong.
#[inline(always)]
fn sum_is_right<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    l3: u32,
    ip: &[u8; 20],
    header_len: u32,
) -> bool {
    let mut sum = 0u32;
    let mut at = 0;
    while at < 20 {
        sum += u16::from_be_bytes([ip[at], ip[at + 1]]) as u32;
        at += 2;
    }
    if header_len > 20 {
        let mut options = Options {
            packet,
            at: l3 + 20,
            sum,
        };
        tables.run((header_len - 20) / 4, &mut options);
        sum = options.sum;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

/// Adds up the words of IPv4 options.
struct Options<'a, P> {
    packet: &'a P,
    at: u32,
    sum: u32,
}

impl<P: Packet> Step for Options<'_, P> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let Some(word) = self.packet.load::<4>((self.at + 4 * turn) & 0xff) else {
            // No sum is right any more.
            self.sum = 0;
            return ControlFlow::Break(());
        };
        self.sum += u16::from_be_bytes([word[0], word[1]]) as u32;
        self.sum += u16::from_be_bytes([word[2], word[3]]) as u32;
        ControlFlow::Continue(())
    }
}

#[inline(never)]
fn parse_v6<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    l3: u32,
    headers: &mut Headers,
) -> Parsed {
    let Some(ip) = packet.load::<8>(l3) else {
        return Parsed::NotOurs;
    };
    if !load_addr6(packet, l3 + 8, &mut headers.key.source)
        || !load_addr6(packet, l3 + 24, &mut headers.key.destination)
    {
        return Parsed::NotOurs;
    }
    let available = packet.len().wrapping_sub(l3).wrapping_sub(40);
    let payload_len = u16::from_be_bytes([ip[4], ip[5]]) as u32;
    // A jumbogram or a super-packet of more than 64 KiB has a payload length of zero.
    let payload_len = if payload_len == 0 {
        available
    } else {
        payload_len
    };
    if ip[0] >> 4 != 6 || available < payload_len {
        return Parsed::NotOurs;
    }
    headers.family = Family::V6;
    headers.tos = ip[0] << 4 | ip[1] >> 4;
    let walk = Extensions::walk(packet, tables, ip[6], l3 + 40);
    let skipped = walk.at.wrapping_sub(l3 + 40);
    if !walk.ended || skipped > payload_len {
        return Parsed::Malformed;
    }
    headers.key.protocol = walk.protocol as u32;
    headers.part = walk.part;
    headers.fragment_id = walk.fragment_id;
    headers.l4 = walk.at as u16;
    headers.l4_len = clamp_len(payload_len - skipped);
    headers.bytes = match walk.part {
        Part::Whole => payload_len + 40,
        // Reassembly removes the fragment header.
        Part::First => payload_len + 32,
        Part::Later => payload_len - skipped,
    };
    Parsed::Headers
}

/// Extension headers that one packet may have. RFC 8200 4.1 recommends each at most once, which
/// makes seven.
const MAX_EXTENSION_HEADERS: u32 = 8;

/// Bounds the place of a header, for the verifier. So many of the longest ones, even within a packet
/// that an ICMP error quotes behind as many, end before it: where the sum wrapped around, another
/// header would be taken for the transport's.
const FARTHEST: u32 = 0xffff;
const _: () = assert!(64 + 2 * (48 + MAX_EXTENSION_HEADERS * 2048) < FARTHEST);

/// Follows the chain as the kernel's `ipv6_find_hdr` does (net/ipv6/exthdrs_core.c): hop-by-hop,
/// routing, destination options, authentication and fragment headers are walked over.
pub struct Extensions<'a, P> {
    packet: &'a P,
    /// The header that comes next.
    pub protocol: u8,
    /// What the fragment header says, if there is one.
    pub part: Part,
    fragment_id: u32,
    /// Where the next header is.
    pub at: u32,
    /// The next header is not an extension header.
    pub ended: bool,
}

impl<'a, P: Packet> Extensions<'a, P> {
    /// Walks from the header of type `first` at `at`.
    #[inline(always)]
    pub fn walk<T: Tables>(packet: &'a P, tables: &T, first: u8, at: u32) -> Self {
        let mut walk = Self {
            packet,
            protocol: first,
            part: Part::Whole,
            fragment_id: 0,
            at,
            ended: is_transport(first),
        };
        if !walk.ended {
            tables.run(MAX_EXTENSION_HEADERS, &mut walk);
        }
        walk
    }
}

impl<P: Packet> Step for Extensions<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let Some(head) = self.packet.load::<8>(self.at & FARTHEST) else {
            return ControlFlow::Break(());
        };
        let length = match self.protocol {
            44 => {
                let fragment = u16::from_be_bytes([head[2], head[3]]);
                self.fragment_id = be32(head[4], head[5], head[6], head[7]);
                if fragment & 0xfff8 != 0 {
                    self.part = Part::Later;
                } else if fragment & 1 != 0 {
                    self.part = Part::First;
                }
                8
            }
            51 => (head[1] as u32 + 2) * 4,
            _ => (head[1] as u32 + 1) * 8,
        };
        self.protocol = head[0];
        self.at = (self.at + length) & FARTHEST;
        self.ended = self.part as u8 == Part::Later as u8 || is_transport(head[0]);
        if self.ended {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[inline(always)]
fn is_transport(protocol: u8) -> bool {
    !matches!(protocol, 0 | 43 | 44 | 51 | 60)
}

#[inline(never)]
fn parse_transport<P: Packet>(packet: &P, headers: &mut Headers) -> Option<()> {
    let l4 = headers.l4 as u32;
    let available = headers.l4_len as u32;
    let v6 = headers.is_v6();
    match (headers.key.protocol as u8, v6) {
        (protocol::TCP, _) => {
            if available < 20 {
                return None;
            }
            let tcp: [u8; 14] = packet.load(l4)?;
            let data_offset = (tcp[12] >> 4) as u32 * 4;
            headers.key.ports = be32(tcp[0], tcp[1], tcp[2], tcp[3]);
            headers.flow_ports = headers.key.ports;
            headers.tcp_flags = tcp[13];
            headers.broken = data_offset < 20 || data_offset > available;
        }
        (protocol::UDP, _) => {
            if available < 8 {
                return None;
            }
            let udp: [u8; 8] = packet.load(l4)?;
            let length = u16::from_be_bytes([udp[4], udp[5]]) as u32;
            headers.key.ports = be32(udp[0], udp[1], udp[2], udp[3]);
            headers.flow_ports = headers.key.ports;
            headers.broken = headers.part as u8 == Part::Whole as u8
                && (length < 8 || length > available)
                && available < u16::MAX as u32;
        }
        (protocol::UDPLITE, _) => {
            if available < 8 {
                return None;
            }
            let udplite: [u8; 8] = packet.load(l4)?;
            let coverage = u16::from_be_bytes([udplite[4], udplite[5]]) as u32;
            headers.key.ports = be32(udplite[0], udplite[1], udplite[2], udplite[3]);
            headers.flow_ports = headers.key.ports;
            // RFC 3828 3.1: zero covers all, and there must be a sum (`udplite_error`).
            let whole = headers.part as u8 == Part::Whole as u8;
            headers.broken = (coverage != 0) & (coverage < 8)
                | whole & (coverage > available)
                | (udplite[6] | udplite[7] == 0);
        }
        (protocol::SCTP | protocol::DCCP, _) => {
            let ports: [u8; 4] = packet.load(l4)?;
            headers.key.ports = be32(ports[0], ports[1], ports[2], ports[3]);
            headers.flow_ports = headers.key.ports;
        }
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
            if available < 8 {
                return None;
            }
            let icmp: [u8; 8] = packet.load(l4)?;
            let id = u16::from_be_bytes([icmp[4], icmp[5]]);
            let (kind, request) = icmp_kind(icmp[0], v6);
            headers.key.ports = (icmp[0] as u32) << 16 | icmp[1] as u32;
            headers.flow_ports = query_ports(kind, request, icmp[1], id);
            headers.icmp = kind;
        }
        _ => {}
    }
    Some(())
}

/// ICMP's redirect (RFC 792).
const REDIRECT_V4: u8 = 5;
/// Neighbour discovery's redirect (RFC 4861 4.5).
const REDIRECT_V6: u8 = 137;

/// How a message type is tracked, and the request type that it belongs to
/// (net/netfilter/nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c).
#[inline(always)]
pub fn icmp_kind(message: u8, v6: bool) -> (Icmp, u8) {
    if v6 {
        match message {
            0..=127 => (Icmp::Error, 0),
            128 | 139 => (Icmp::Request, message),
            129 | 140 => (Icmp::Reply, message - 1),
            130..=136 | 143 | 151 | 152 => (Icmp::Untracked, 0),
            // It quotes a packet, as errors do ([`super::quoted`]).
            REDIRECT_V6 => (Icmp::Error, 0),
            _ => (Icmp::Other, 0),
        }
    } else {
        match message {
            3 | 4 | REDIRECT_V4 | 11 | 12 => (Icmp::Error, 0),
            8 | 13 | 15 | 17 => (Icmp::Request, message),
            0 => (Icmp::Reply, 8),
            14 | 16 | 18 => (Icmp::Reply, message - 1),
            _ => (Icmp::Other, 0),
        }
    }
}

/// The flow ports of an ICMP query: the asking side's is the identifier, the answering side's is
/// the request's type and code.
#[inline(always)]
pub fn query_ports(kind: Icmp, request: u8, code: u8, id: u16) -> u32 {
    let service = (request as u32) << 8 | code as u32;
    match kind {
        Icmp::Request => (id as u32) << 16 | service,
        Icmp::Reply => service << 16 | id as u32,
        Icmp::No | Icmp::Error | Icmp::Untracked | Icmp::Other => 0,
    }
}

/// A word from four bytes in network order.
#[inline(always)]
pub fn be32(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// Loads an IPv6 address. A function of its own for the sake of the BPF stack: LLVM gives every
/// load of an inlined function a place of its own.
#[inline(never)]
pub fn load_addr6<P: Packet>(packet: &P, offset: u32, address: &mut Addr) -> bool {
    let Some(bytes) = packet.load::<16>(offset) else {
        return false;
    };
    let word = |at: usize| be32(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    *address = [word(0), word(4), word(8), word(12)];
    true
}

/// Super-packets can be longer than 16 bits say; nothing compares lengths beyond a header's.
#[inline(always)]
fn clamp_len(length: u32) -> u16 {
    if length > u16::MAX as u32 {
        u16::MAX
    } else {
        length as u16
    }
}
