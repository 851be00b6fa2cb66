//! The answer's bytes.

use super::sum::{add_up, pseudo};
use crate::abi::Addr;
use crate::abi::blob::RESET;
use crate::datapath::checksum::Difference;
use crate::datapath::header::protocol;
use crate::datapath::packet::Packet;
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::Tables;
use crate::datapath::tcp::flag;

/// Bytes that an ICMP error may have in all (RFC 1812 4.3.2.3; `__icmp_send`).
const ERROR_V4: u32 = 576;
/// The same for ICMPv6: IPv6's least MTU (RFC 4443 2.4).
const ERROR_V6: u32 = 1280;

/// Puts the answer in the packet's place.
#[inline(always)]
pub fn build<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    hops: u8,
) -> Option<()> {
    if scratch.answer.turned {
        turn(packet)?;
    }
    let ip = if scratch.headers.is_v6() { 40 } else { 20 };
    if scratch.answer.kind == RESET {
        read_numbers(packet, scratch)?;
        make_room(packet, scratch, ip + 20, 0)?;
        write_reset(packet, scratch)?;
        let time = u16::from_be_bytes([hops, protocol::TCP]);
        return write_ip(packet, tables, scratch, time, 20);
    }
    let whole = (scratch.headers.l4 as u32)
        .wrapping_sub(scratch.headers.l3 as u32)
        .wrapping_add(scratch.headers.l4_len as u32);
    let most = if scratch.headers.is_v6() {
        ERROR_V6
    } else {
        ERROR_V4
    };
    let most = most - ip - 8;
    let quoted = if whole < most { whole } else { most };
    make_room(packet, scratch, ip + 8, quoted)?;
    write_error(packet, tables, scratch, quoted)?;
    let kind = if scratch.headers.is_v6() {
        protocol::ICMPV6
    } else {
        protocol::ICMP
    };
    let time = u16::from_be_bytes([hops, kind]);
    write_ip(packet, tables, scratch, time, 8 + quoted)
}

/// The frame goes back to who sent it.
#[inline(always)]
fn turn<P: Packet>(packet: &mut P) -> Option<()> {
    let destination: [u8; 6] = packet.load(0)?;
    let source: [u8; 6] = packet.load(6)?;
    packet.store(0, source)?;
    packet.store(6, destination)
}

#[inline(always)]
fn make_room<P: Packet>(
    packet: &mut P,
    scratch: &mut Scratch,
    front: u32,
    keep: u32,
) -> Option<()> {
    let (l3, l4) = (scratch.headers.l3 as u32, scratch.headers.l4 as u32);
    let room = &mut scratch.event.packet;
    packet.make_room(l3, l4, front, keep, room).then_some(())
}

/// Reads what a reset has to say (RFC 9293 3.10.7.1): the number that the sender waits for, or all
/// that it sent.
#[inline(always)]
fn read_numbers<P: Packet>(packet: &P, scratch: &mut Scratch) -> Option<()> {
    let headers = &scratch.headers;
    let tcp: [u8; 20] = packet.load(headers.l4 as u32)?;
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let flags = headers.tcp_flags;
    let header_len = (tcp[12] >> 4) as u32 * 4;
    if flags & flag::ACK != 0 {
        scratch.answer.numbers = [word(8), 0];
    } else {
        let counted = (flags & flag::SYN != 0) as u32 + (flags & flag::FIN != 0) as u32;
        let carried = (headers.l4_len as u32).wrapping_sub(header_len);
        scratch.answer.numbers = [0, word(4).wrapping_add(counted).wrapping_add(carried)];
    }
    Some(())
}

#[inline(always)]
fn write_reset<P: Packet>(packet: &mut P, scratch: &mut Scratch) -> Option<()> {
    const ACK_NOT_SAID: u16 = 0x5000 | flag::RST as u16;
    const ACK_SAID: u16 = ACK_NOT_SAID | flag::ACK as u16;
    let headers = &scratch.headers;
    let acknowledged = headers.tcp_flags & flag::ACK != 0;
    let control = if acknowledged { ACK_NOT_SAID } else { ACK_SAID };
    let ports = headers.flow_ports.rotate_left(16);
    let [sequence, acknowledgement] = scratch.answer.numbers;
    let sum = pseudo(20, protocol::TCP, &scratch.answer.source)
        .add_address(&headers.key.source)
        .add_word(ports)
        .add_word(sequence)
        .add_word(acknowledgement)
        .add_half(control);
    let at = headers.l3 as u32 + if headers.is_v6() { 40 } else { 20 };
    packet.write(at, ports.to_be_bytes())?;
    packet.write(at + 4, sequence.to_be_bytes())?;
    packet.write(at + 8, acknowledgement.to_be_bytes())?;
    packet.write(at + 12, ((control as u32) << 16).to_be_bytes())?;
    let [a, b] = sum.complement();
    packet.write(at + 16, [a, b, 0, 0])
}

#[inline(always)]
fn write_error<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    quoted: u32,
) -> Option<()> {
    let headers = &scratch.headers;
    let v6 = headers.is_v6();
    let kind = if v6 { 1u16 << 8 } else { 3 << 8 } | scratch.answer.kind as u16 & 0xff;
    let at = headers.l3 as u32 + if v6 { 40 } else { 20 };
    let mut sum = Difference::default().add_half(kind);
    if v6 {
        let length = 8 + quoted;
        let own = pseudo(length, protocol::ICMPV6, &scratch.answer.source);
        sum = own.add_address(&headers.key.source).add_half(kind);
    }
    let sum = add_up(packet, tables, scratch, at + 8, quoted, sum)?;
    let [a, b] = sum.complement();
    let [high, low] = kind.to_be_bytes();
    packet.write(at, [high, low, a, b, 0, 0, 0, 0])
}

/// The IP header of an answer that carries `length` bytes; `time` is the hop count, and the protocol
/// in its low half, as IPv4 has them. (A sixth argument would be one on the stack to kernels that know
/// such, although the tables, which have no size, take no register.)
#[inline(never)]
fn write_ip<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    time: u16,
    length: u32,
) -> Option<()> {
    const DONT_FRAGMENT: u16 = 0x4000;
    let headers = &scratch.headers;
    let at = headers.l3 as u32;
    let (source, destination) = (scratch.answer.source, headers.key.source);
    if headers.is_v6() {
        packet.write(at, [0x60, 0, 0, 0])?;
        let [a, b] = (length as u16).to_be_bytes();
        let [hops, carried] = time.to_be_bytes();
        packet.write(at + 4, [a, b, carried, hops])?;
        write_address6(packet, at + 8, &source)?;
        return write_address6(packet, at + 24, &destination);
    }
    // An error has the precedence of internetwork control and the sender's type of service (RFC
    // 1812 4.3.2.5); a reset has neither, and is never fragmented.
    let reset = scratch.answer.kind == RESET;
    let tos = if reset { 0 } else { headers.tos & 0x1e | 0xc0 };
    let id = if reset { 0 } else { tables.random() as u16 };
    let fragment = if reset { DONT_FRAGMENT } else { 0 };
    let first = 0x4500u16 | tos as u16;
    let total = (length + 20) as u16;
    let sum = Difference::default()
        .add_half(first)
        .add_half(total)
        .add_half(id)
        .add_half(fragment)
        .add_half(time)
        .add_word(source[0])
        .add_word(destination[0]);
    packet.write(at, ((first as u32) << 16 | total as u32).to_be_bytes())?;
    packet.write(at + 4, ((id as u32) << 16 | fragment as u32).to_be_bytes())?;
    let [a, b] = sum.complement();
    let [c, d] = time.to_be_bytes();
    packet.write(at + 8, [c, d, a, b])?;
    packet.write(at + 12, source[0].to_be_bytes())?;
    packet.write(at + 16, destination[0].to_be_bytes())
}

#[inline(always)]
fn write_address6<P: Packet>(packet: &mut P, at: u32, address: &Addr) -> Option<()> {
    packet.write(at, address[0].to_be_bytes())?;
    packet.write(at + 4, address[1].to_be_bytes())?;
    packet.write(at + 8, address[2].to_be_bytes())?;
    packet.write(at + 12, address[3].to_be_bytes())
}
