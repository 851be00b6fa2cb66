//! The usual packet's headers, read in place.

use super::{ETHERNET, Headers, Icmp, L4_V4, L4_V6, Part, be32, protocol};
use crate::abi::Family;
use crate::datapath::checksum::Difference;
use crate::datapath::packet::Packet;

/// The usual packet: on Ethernet, without IP options, extension headers and fragments, TCP or UDP,
/// with its headers where they can be read in place. Whatever is unusual about a packet, or wrong,
/// is `parse_any`'s business; what both take they parse alike.
#[inline(always)]
pub(super) fn parse<P: Packet>(packet: &P, headers: &mut Headers) -> bool {
    match packet.ethertype() {
        0x0800 => parse_v4(packet, headers),
        0x86dd => parse_v6(packet, headers),
        _ => false,
    }
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P, headers: &mut Headers) -> bool {
    let Some(w) = packet.window::<{ L4_V4 + 8 }>() else {
        return false;
    };
    let half = |at: usize| u16::from_be_bytes([w[at], w[at + 1]]) as u32;
    let word = |at: usize| be32(w[at], w[at + 1], w[at + 2], w[at + 3]);
    let total_len = half(16);
    let sum = Difference::default()
        .add_word(word(14))
        .add_word(word(18))
        .add_word(word(22))
        .add_word(word(26))
        .add_word(word(30));
    if w[14] != 0x45
        || half(20) & 0x3fff != 0
        || sum.folded() != 0xffff
        || !packet.has(ETHERNET as u32 + total_len)
    {
        return false;
    }
    headers.family = Family::V4;
    headers.tos = w[15];
    headers.key.source = [be32(w[26], w[27], w[28], w[29]), 0, 0, 0];
    headers.key.destination = [be32(w[30], w[31], w[32], w[33]), 0, 0, 0];
    headers.fragment_id = half(18);
    headers.bytes = total_len;
    let ports = be32(w[34], w[35], w[36], w[37]);
    let l4_len = total_len.wrapping_sub(20);
    parse_transport(packet, headers, L4_V4, l4_len, w[23], ports, half(38))
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P, headers: &mut Headers) -> bool {
    let Some(w) = packet.window::<{ L4_V6 + 8 }>() else {
        return false;
    };
    let half = |at: usize| u16::from_be_bytes([w[at], w[at + 1]]) as u32;
    let word = |at: usize| be32(w[at], w[at + 1], w[at + 2], w[at + 3]);
    let payload_len = half(18);
    if w[14] >> 4 != 6 || !packet.has(L4_V6 as u32 + payload_len) {
        return false;
    }
    headers.family = Family::V6;
    headers.tos = w[14] << 4 | w[15] >> 4;
    headers.key.source = [word(22), word(26), word(30), word(34)];
    headers.key.destination = [word(38), word(42), word(46), word(50)];
    headers.fragment_id = 0;
    headers.bytes = payload_len + 40;
    parse_transport(
        packet,
        headers,
        L4_V6,
        payload_len,
        w[20],
        word(54),
        half(58),
    )
}

/// TCP or UDP at `l4`, of `l4_len` bytes; `length` is the field that UDP has for it.
#[inline(always)]
fn parse_transport<P: Packet>(
    packet: &P,
    headers: &mut Headers,
    l4: usize,
    l4_len: u32,
    protocol: u8,
    ports: u32,
    length: u32,
) -> bool {
    // No total length, or one that leaves nothing, makes this large.
    if l4_len > u16::MAX as u32 {
        return false;
    }
    headers.broken = false;
    headers.tcp_flags = 0;
    match protocol {
        protocol::TCP => {
            let head = if l4 == L4_V4 {
                packet.window().map(|w: &[u8; L4_V4 + 20]| [w[46], w[47]])
            } else {
                packet.window().map(|w: &[u8; L4_V6 + 20]| [w[66], w[67]])
            };
            let Some([data_offset, flags]) = head else {
                return false;
            };
            let data_offset = (data_offset >> 4) as u32 * 4;
            if l4_len < 20 {
                return false;
            }
            headers.broken = data_offset < 20 || data_offset > l4_len;
            headers.tcp_flags = flags;
        }
        protocol::UDP => {
            if l4_len < 8 {
                return false;
            }
            headers.broken = (length < 8 || length > l4_len) && l4_len < u16::MAX as u32;
        }
        _ => return false,
    }
    headers.key.ports = ports;
    headers.flow_ports = ports;
    headers.key.protocol = protocol as u32;
    headers.l3 = ETHERNET as u16;
    headers.l4 = l4 as u16;
    headers.l4_len = l4_len as u16;
    headers.part = Part::Whole;
    headers.icmp = Icmp::No;
    true
}
