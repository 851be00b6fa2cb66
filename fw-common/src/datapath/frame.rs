//! The frame of a packet that the fast path sends on: what changes is written in place.

use super::checksum::Difference;
use super::forward::Sending;
use super::header::{Headers, L4_V4, L4_V6, protocol};
use super::packet::{Packet, Route};
use crate::abi::Addr;

/// Where an Ethernet frame with an IPv4 header has the hop count.
pub const HOPS_V4: usize = 22;
/// The same with an IPv6 header.
pub const HOPS_V6: usize = 21;

/// Writes link-layer addresses, hop count, addresses and ports into a usual packet that has a hop
/// left; false if nothing was changed. (A function of its own for the sake of the BPF stack.)
#[inline(never)]
pub fn rewrite<P: Packet>(packet: &mut P, headers: &Headers, sending: &Sending) -> bool {
    let (key, v6) = (&headers.key, headers.is_v6());
    let changes = Changes {
        addresses: change(&key.source, &sending.source, v6).and(change(
            &key.destination,
            &sending.destination,
            v6,
        )),
        ports: Difference::default().word(headers.flow_ports, sending.ports),
        udp: key.protocol as u8 == protocol::UDP,
    };
    let l4 = headers.l4 as u32;
    let written = match (v6, changes.udp) {
        (false, true) => write::<P, { L4_V4 + 8 }, L4_V4, { L4_V4 + 6 }>(packet, sending, &changes),
        (false, false) => {
            write::<P, { L4_V4 + 20 }, L4_V4, { L4_V4 + 16 }>(packet, sending, &changes)
        }
        (true, true) => write::<P, { L4_V6 + 8 }, L4_V6, { L4_V6 + 6 }>(packet, sending, &changes),
        (true, false) => {
            write::<P, { L4_V6 + 20 }, L4_V6, { L4_V6 + 16 }>(packet, sending, &changes)
        }
    };
    if !written {
        return false;
    }
    if P::SUMS_ARE_BYTES {
        return true;
    }
    let sum_at = if changes.udp { l4 + 6 } else { l4 + 16 };
    if differ(&key.source, &sending.source, v6)
        || differ(&key.destination, &sending.destination, v6)
    {
        let sum = changes.addresses.sum();
        let _ = packet.replace_l4_sum(sum_at, sum, true, changes.udp, v6);
    }
    if sending.ports != headers.flow_ports {
        let sum = changes.ports.sum();
        let _ = packet.replace_l4_sum(sum_at, sum, false, changes.udp, v6);
    }
    true
}

/// What an address makes of a sum. Of IPv4's, three words are zero before and after.
#[inline(always)]
fn change(old: &Addr, new: &Addr, v6: bool) -> Difference {
    if v6 {
        Difference::default().address(old, new)
    } else {
        Difference::default().word(old[0], new[0])
    }
}

#[inline(always)]
fn differ(old: &Addr, new: &Addr, v6: bool) -> bool {
    old[0] != new[0] || v6 && old != new
}

/// What the transport checksum has to make up for.
struct Changes {
    addresses: Difference,
    ports: Difference,
    udp: bool,
}

/// Writes all that is in the first `N` bytes, with the transport header at `L4` and its checksum at
/// `SUM`, which changes here only where it is nothing but bytes.
#[inline(always)]
fn write<P: Packet, const N: usize, const L4: usize, const SUM: usize>(
    packet: &mut P,
    sending: &Sending,
    changes: &Changes,
) -> bool {
    let Some(frame) = packet.window_mut::<N>() else {
        return false;
    };
    set_link(frame, &sending.route);
    let (source, destination) = (&sending.source, &sending.destination);
    if L4 == L4_V4 {
        const HEADER_SUM: usize = 24;
        let hops = u16::from_be_bytes([frame[HOPS_V4], frame[HOPS_V4 + 1]]);
        frame[HOPS_V4] = frame[HOPS_V4].wrapping_sub(1);
        let sum = changes.addresses.half(hops, hops.wrapping_sub(0x100));
        let sum = sum.apply([frame[HEADER_SUM], frame[HEADER_SUM + 1]]);
        frame[HEADER_SUM] = sum[0];
        frame[HEADER_SUM + 1] = sum[1];
        put(frame, 26, source[0]);
        put(frame, 30, destination[0]);
    } else {
        frame[HOPS_V6] = frame[HOPS_V6].wrapping_sub(1);
        let mut word = 0;
        while word < 4 {
            put(frame, 22 + 4 * word, source[word]);
            put(frame, 38 + 4 * word, destination[word]);
            word += 1;
        }
    }
    put(frame, L4, sending.ports);
    if P::SUMS_ARE_BYTES {
        let old = [frame[SUM], frame[SUM + 1]];
        // RFC 768: a sum of zero is none, and one that comes to zero is written as its complement.
        if !changes.udp || old != [0, 0] {
            let new = match changes.addresses.and(changes.ports).apply(old) {
                [0, 0] if changes.udp => [0xff, 0xff],
                new => new,
            };
            frame[SUM] = new[0];
            frame[SUM + 1] = new[1];
        }
    }
    true
}

#[inline(always)]
fn set_link<const N: usize>(frame: &mut [u8; N], route: &Route) {
    put(frame, 0, u32::from_be(route.links[0]));
    put(frame, 4, u32::from_be(route.links[1]));
    put(frame, 8, u32::from_be(route.links[2]));
}

#[inline(always)]
fn put<const N: usize>(frame: &mut [u8; N], at: usize, word: u32) {
    frame[at..at + 4].copy_from_slice(&word.to_be_bytes());
}
