//! Conditions that a rule's fields cannot hold, asked of a packet.

use super::scratch::Scratch;
use crate::abi::blob::{Predicate, condition};

/// Whether a predicate's condition is met, whatever its `not` says.
#[inline(always)]
pub(super) fn holds(predicate: Predicate<'_>, scratch: &Scratch) -> bool {
    let w = &predicate.0.w;
    let query = &scratch.query;
    let headers = &scratch.headers;
    let key = &headers.key;
    match predicate.kind() {
        condition::PORTS => {
            let which = w[0] >> 16;
            let source = in_ranges(w, key.ports >> 16) & (which & 1);
            let destination = in_ranges(w, key.ports & 0xffff) & (which >> 1 & 1);
            source | destination != 0
        }
        condition::SOURCE => under_mask(&key.source, w),
        condition::DESTINATION => under_mask(&key.destination, w),
        condition::SOURCE_RANGE => within(&key.source, w),
        condition::DESTINATION_RANGE => within(&key.destination, w),
        condition::IN_INTERFACE => query.in_patterns >> (w[1] & 63) & 1 != 0,
        condition::OUT_INTERFACE => query.out_patterns >> (w[1] & 63) & 1 != 0,
        condition::PROTOCOL => key.protocol == w[1],
        condition::TCP_FLAGS => {
            scratch.ask_flags(w[1]);
            headers.tcp_flags as u32 & w[1] == w[2]
        }
        condition::CT_STATE => query.ct as u32 & w[1] != 0,
        condition::CT_DIRECTION => {
            if query.direction >= 2 {
                w[2] != 0
            } else {
                query.direction as u32 == w[1]
            }
        }
        condition::ICMP => {
            let code = key.ports & 0xffff;
            key.ports >> 16 == w[1] && code >= w[2] && code <= w[3]
        }
        _ => false,
    }
}

/// 1 if the port is in any of the cell's 15 ranges.
#[inline(never)]
fn in_ranges(w: &[u32; 16], port: u32) -> u32 {
    let mut found = 0;
    let mut place = 1;
    while place < 16 {
        let outside = port.wrapping_sub(w[place] & 0xffff) | (w[place] >> 16).wrapping_sub(port);
        found |= (outside >> 31) ^ 1;
        place += 1;
    }
    found
}

/// Whether an address is from the cell's first to its last.
#[inline(never)]
fn within(address: &[u32; 4], w: &[u32; 16]) -> bool {
    let pair = |a: u32, b: u32| (a as u64) << 32 | b as u64;
    let high = pair(address[0], address[1]);
    let low = pair(address[2], address[3]);
    let (first, last) = (pair(w[1], w[2]), pair(w[5], w[6]));
    if high < first || high > last {
        return false;
    }
    !(high == first && low < pair(w[3], w[4]) || high == last && low > pair(w[7], w[8]))
}

/// Whether an address under the cell's mask is the cell's.
#[inline(always)]
pub(super) fn under_mask(address: &[u32; 4], w: &[u32; 16]) -> bool {
    ((address[0] & w[5]) ^ w[1])
        | ((address[1] & w[6]) ^ w[2])
        | ((address[2] & w[7]) ^ w[3])
        | ((address[3] & w[8]) ^ w[4])
        == 0
}
