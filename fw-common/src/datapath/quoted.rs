//! The packets that ICMP errors quote.

use super::header::{
    Extensions, Headers, Icmp, Part, be32, icmp_kind, load_addr6, protocol, query_ports,
};
use super::packet::Packet;
use super::tables::Tables;
use super::tcp::Segment;
use super::tuple::Tuple;

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quoted {
    /// Its tuple, as quoted.
    pub tuple: Tuple,
    /// Offset of its IP header.
    pub l3: u16,
    /// Offset of its transport header.
    pub l4: u16,
    /// From there on so many bytes, as its IP header says, whether they are quoted or not.
    pub l4_len: u16,
    /// It is no answer to an ICMP query.
    pub is_request: bool,
    /// Translating its far end leaves the error's sender what it is.
    pub keeps_sender: bool,
}

/// Parses the packet that an ICMP error quotes: RFC 792 promises its IP header and eight bytes.
#[inline(never)]
pub fn read_quoted<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    quoted: &mut Quoted,
) -> bool {
    quote(packet, tables, headers, quoted).is_some()
}

#[inline(always)]
fn quote<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    quoted: &mut Quoted,
) -> Option<()> {
    let mut l3 = (headers.l4 as u32).wrapping_add(8);
    let v6 = headers.is_v6();
    if v6 && headers.is_redirect() {
        if !quotes(packet, headers) {
            return None;
        }
        l3 = (headers.l4 as u32).wrapping_add(REDIRECT_OPTIONS + 8);
    }
    let tuple = &mut quoted.tuple;
    let (l4, end) = if v6 {
        let ip = packet.load::<8>(l3)?;
        if ip[0] >> 4 != 6
            || !load_addr6(packet, l3 + 8, &mut tuple.source)
            || !load_addr6(packet, l3 + 24, &mut tuple.destination)
        {
            return None;
        }
        let walk = Extensions::walk(packet, tables, ip[6], l3 + 40);
        if !walk.ended || walk.part as u8 == Part::Later as u8 {
            return None;
        }
        tuple.protocol = walk.protocol;
        let length = u16::from_be_bytes([ip[4], ip[5]]) as u32;
        (walk.at, l3.wrapping_add(40).wrapping_add(length))
    } else {
        let ip = packet.load::<20>(l3)?;
        let header_len = (ip[0] & 0x0f) as u32 * 4;
        // A quoted later fragment has no ports (`nf_ct_get_tuplepr` refuses it).
        let later = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
        if ip[0] >> 4 != 4 || header_len < 20 || later {
            return None;
        }
        tuple.source = [be32(ip[12], ip[13], ip[14], ip[15]), 0, 0, 0];
        tuple.destination = [be32(ip[16], ip[17], ip[18], ip[19]), 0, 0, 0];
        tuple.protocol = ip[9];
        let length = u16::from_be_bytes([ip[2], ip[3]]) as u32;
        (l3 + header_len, l3.wrapping_add(length))
    };
    tuple.family = headers.family;
    quoted.is_request = true;
    quoted.l3 = l3 as u16;
    quoted.l4 = l4 as u16;
    quoted.l4_len = end.wrapping_sub(l4) as u16;
    tuple.ports = match (tuple.protocol, v6) {
        (
            protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP | protocol::DCCP,
            _,
        ) => u32::from_be_bytes(packet.load::<4>(l4)?),
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
            let icmp = packet.load::<8>(l4)?;
            let (kind, request) = icmp_kind(icmp[0], v6);
            if !matches!(kind, Icmp::Request | Icmp::Reply) {
                return None;
            }
            quoted.is_request = matches!(kind, Icmp::Request);
            let id = u16::from_be_bytes([icmp[4], icmp[5]]);
            query_ports(kind, request, icmp[1], id)
        }
        _ => 0,
    };
    Some(())
}

/// Where the options of neighbour discovery's redirect begin, from its ICMPv6 header on.
const REDIRECT_OPTIONS: u32 = 40;

/// Whether a redirect comes from a neighbour, and its first option is the packet that it is about
/// (RFC 4861 4.5 and 4.6.3; no other place for it is looked at, `nf_conntrack_icmpv6_redirect` in
/// net/netfilter/nf_conntrack_proto_icmpv6.c).
#[inline(never)]
fn quotes<P: Packet>(packet: &P, headers: &Headers) -> bool {
    const REDIRECTED_HEADER: u8 = 4;
    let [hops] = packet.load::<1>(headers.l3 as u32 + 7).unwrap_or([0]);
    let option = packet
        .load::<2>(headers.l4 as u32 + REDIRECT_OPTIONS)
        .unwrap_or([0; 2]);
    let is_link_local = headers.key.source[0] >> 22 == 0xfe80 >> 6;
    headers.key.ports & 0xff == 0
        && hops == 255
        && is_link_local
        && option[0] == REDIRECTED_HEADER
        && option[1] != 0
}

/// Whether the quoted packet could have opened a flow, by the settings in the policy's features.
#[inline(never)]
pub fn opens_flow<P: Packet>(packet: &P, quoted: &Quoted, features: u32) -> bool {
    if quoted.tuple.protocol == protocol::TCP {
        return packet.load::<20>(quoted.l4 as u32).is_some_and(|header| {
            let segment = Segment::new(&header, 0, 20, features);
            segment.flags_are_valid() && segment.opens()
        });
    }
    quoted.is_request
}
