//! CHECKSUM: finishes a transport checksum that was left to the card (net/netfilter/xt_CHECKSUM.c).

use super::effect::{ACTED, DROPPED};
use super::header::{Part, protocol};
use super::packet::{Packet, SUM_BROKEN};
use super::scratch::Scratch;

/// Finishes it. Where the packet is longer than programs take apart, it is left as it is: the card, or the
/// stack for one that cannot, does it later.
#[inline(always)]
pub fn fill<P: Packet>(packet: &mut P, scratch: &mut Scratch) -> u32 {
    let headers = &scratch.headers;
    if headers.part as u8 != Part::Whole as u8 {
        return ACTED;
    }
    let (l3, l4) = (headers.l3 as u32, headers.l4 as u32);
    let field = match headers.key.protocol as u8 {
        protocol::UDP => l4 + 6,
        protocol::TCP => l4 + 16,
        _ => return ACTED,
    };
    let end = l4.wrapping_add(headers.l4_len as u32);
    let room = &mut scratch.event.packet;
    if packet.finish_sum(l3, l4, end, field, room) == SUM_BROKEN {
        return DROPPED;
    }
    ACTED
}
