//! Whether answers to a packet would leave by the interface that it came in by, which `-m rpfilter` asks
//! (`rpfilter_mt`, net/ipv4/netfilter/ipt_rpfilter.c and net/ipv6/netfilter/ip6t_rpfilter.c).

use super::packet::{NO_PATH, PATH_UNKNOWN, Packet};
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::Addr;
use crate::abi::Family;
use crate::abi::blob::fact;
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// `PACKET_LOOPBACK` of linux/if_packet.h: a copy of what this host sends to many.
const LOOPED: u32 = 5;
/// Answers leave by that interface, or by any.
const RIGHT: u32 = fact::PATH_STRICT | fact::PATH_LOOSE;

/// Notes it of a packet that arrives.
#[inline(never)]
pub fn read<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) {
    let found = path(packet, tables, scratch);
    scratch.facts.set(fact::REVERSE_PATH, found);
}

#[inline(always)]
fn path<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &Scratch) -> u32 {
    if scratch.device.flags & Device::LOOPBACK != 0 || packet.packet_type() == LOOPED {
        return RIGHT;
    }
    let headers = &scratch.headers;
    let (source, destination) = (&headers.key.source, &headers.key.destination);
    let from = if headers.is_v6() {
        if source[0] | source[1] | source[2] | source[3] == 0 {
            // It will not be forwarded.
            return RIGHT;
        }
        if is_of_link(source) {
            // Each interface has a route to its link, and a local one to its own address.
            let own = tables.is_local(Family::V6, source);
            return if own { 0 } else { RIGHT };
        }
        destination[0] >> 24 != 0xff && !is_of_link(destination)
    } else {
        let (source, destination) = (source[0], destination[0]);
        let to_link = destination == u32::MAX || destination >> 8 == 0xe0_0000;
        if source >> 24 == 0 && to_link {
            return RIGHT;
        }
        destination >> 28 != 0xe && destination != u32::MAX && destination >> 24 != 0
    };
    let from = if from { Some(destination) } else { None };
    let found = packet.path_to(headers.family, from, source, headers.tos as u32);
    if found == packet.device() || found != NO_PATH && found == scratch.device.master {
        return RIGHT;
    }
    match found {
        NO_PATH => 0,
        PATH_UNKNOWN => {
            tables.count(Stat::PathUnknown);
            RIGHT
        }
        _ => fact::PATH_LOOSE,
    }
}

/// Whether an IPv6 address is of one link only, fe80::/10.
#[inline(always)]
fn is_of_link(address: &Addr) -> bool {
    address[0] >> 22 == 0xfe80 >> 6
}
