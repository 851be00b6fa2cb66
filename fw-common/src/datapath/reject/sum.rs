//! Sums over a packet: whether its own is right, and what the answer's is.

use core::ops::ControlFlow;

use crate::abi::blob::RESET;
use crate::abi::event::Event;
use crate::datapath::checksum::Difference;
use crate::datapath::header::{Headers, Part, protocol};
use crate::datapath::packet::Packet;
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::{Step, Tables};

/// Whether the packet's transport checksum is right, where the kernel looks (`nf_reject_verify_csum`,
/// net/netfilter/nf_reject_ipv4.c, and `nf_ip_checksum`, net/netfilter/utils.c). A first fragment's
/// cannot be known.
#[inline(never)]
pub fn is_right<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> bool {
    let headers = &scratch.headers;
    if headers.part as u8 != Part::Whole as u8 {
        return true;
    }
    let l4 = headers.l4 as u32;
    if scratch.answer.kind != RESET && !has_sum(packet, headers) {
        return true;
    }
    // Two bytes that no sum of the transport covers: the identification, or of the flow label.
    let spare = headers.l3 as u32 + if headers.is_v6() { 2 } else { 4 };
    if packet.is_sum_known(spare) {
        return true;
    }
    let mut start = Difference::default();
    let transport = matches!(headers.key.protocol as u8, protocol::TCP | protocol::UDP);
    if headers.is_v6() || transport {
        start = pseudo(
            headers.l4_len as u32,
            headers.key.protocol as u8,
            &headers.key.source,
        );
        start = start.add_address(&headers.key.destination);
    }
    let length = headers.l4_len as u32;
    // Without a pseudo header the kernel adds the IP header up as well, whose sum is right: nothing but
    // zeroes behind it are as good.
    add_up(packet, tables, scratch, l4, length, start)
        .is_some_and(|sum| matches!(sum.folded(), 0 | 0xffff))
}

/// Whether the protocol's packets have a sum over all of what they carry; of others the kernel takes
/// the sum for right.
#[inline(always)]
fn has_sum<P: Packet>(packet: &P, headers: &Headers) -> bool {
    const GRE: u8 = 47;
    const ESP: u8 = 50;
    const AH: u8 = 51;
    let l4 = headers.l4 as u32;
    match headers.key.protocol as u8 {
        protocol::UDP => packet.load::<2>(l4.wrapping_add(6)) != Some([0, 0]),
        GRE => packet
            .load::<1>(l4)
            .is_some_and(|[flags]| flags & 0x80 != 0),
        ESP | AH | protocol::SCTP | protocol::UDPLITE | protocol::DCCP => false,
        _ => true,
    }
}

/// The pseudo header's sum, but for the destination (RFC 9293 3.1, RFC 8200 8.1).
#[inline(always)]
pub fn pseudo(length: u32, protocol: u8, source: &[u32; 4]) -> Difference {
    Difference::default()
        .add_address(source)
        .add_half(length as u16)
        .add_half(protocol as u16)
}

/// Adds a part of the packet to a sum.
#[inline(always)]
pub fn add_up<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
    at: u32,
    length: u32,
    start: Difference,
) -> Option<Difference> {
    scratch.answer.sum = start.sum();
    scratch.answer.at = at;
    scratch.answer.left = length;
    let parts = length.div_ceil(ROOM);
    tables.run(parts, &mut Adding { packet, scratch });
    (scratch.answer.left == 0).then(|| Difference::of_sum(scratch.answer.sum))
}

/// Bytes that are added up at a time.
const ROOM: u32 = Event::PACKET as u32;

struct Adding<'a, P> {
    packet: &'a P,
    scratch: &'a mut Scratch,
}

impl<P: Packet> Step for Adding<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let (answer, room) = (&mut self.scratch.answer, &mut self.scratch.event.packet);
        let length = if answer.left < ROOM {
            answer.left
        } else {
            ROOM
        };
        if !self.packet.add_up(answer.at, length, &mut answer.sum, room) {
            return ControlFlow::Break(());
        }
        answer.at = answer.at.wrapping_add(length);
        answer.left = answer.left.wrapping_sub(length);
        ControlFlow::Continue(())
    }
}
