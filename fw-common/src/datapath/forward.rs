//! The fast path: packets of established flows go from interface to interface without the stack.
//!
//! It does what the slow way did for a packet before in the same direction of the same flow: the
//! same rules are counted, the flow is moved on, both ends are translated, the hop count falls, and
//! the kernel's routing table names the next hop, for each packet anew. Whatever is not certain to
//! go as it did then takes the slow way, untouched.

use super::checksum::Difference;
use super::classify::count_policy;
use super::conntrack::{Found, advance_untimed, outside, refresh};
use super::header::{Headers, L4_V4, L4_V6, Part, protocol};
use super::packet::{Packet, Route, Way};
use super::scratch::Scratch;
use super::tables::Tables;
use super::tcp::{self, flag};
use crate::abi::blob::{BaseChain, HeaderFields, Timeout};
use crate::abi::device::Device;
use crate::abi::flow::{CACHED_SLOTS, Cached, Flow};
use crate::abi::stat::Stat;
use crate::abi::{Addr, ct};

/// Sends a packet of a flow on, if all that is needed for that is known; false if nothing was done.
#[inline(always)]
pub fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    found: &Found<'_>,
) -> bool {
    set_ends(&scratch.headers, found, &mut scratch.sending);
    packet.forward(tables, scratch, found.flow, found.is_reply())
}

/// The rest of [`forward`], which a BPF program calls as a global function, for the reason that
/// [`super::stage::Stage`] gives.
#[inline(always)]
pub fn send<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    flow: &Flow,
    reply: bool,
) -> bool {
    let cached = if reply {
        &flow.cached[1]
    } else {
        &flow.cached[0]
    };
    let headers = &scratch.headers;
    let facts = cached.facts.get();
    if cached.active.get() != scratch.active
        || cached.arrival.get() != packet.device()
        || Cached::differs(facts, headers.tcp_flags)
        || !is_usual(headers)
        || !packet.is_plain(&scratch.device.link)
        || !lasts(flow, headers)
    {
        return false;
    }

    let way = Way {
        family: headers.family,
        source: headers.key.source,
        destination: scratch.sending.destination,
        protocol: headers.key.protocol as u8,
        ports: headers.flow_ports,
        tos: headers.tos,
        bytes: headers.bytes,
    };
    if !packet.route(&way, &mut scratch.sending.route)
        || scratch.sending.route.device != cached.departure.get()
    {
        return false;
    }
    if !rewrite(packet, &scratch.headers, &scratch.sending) {
        return false;
    }

    let now = tables.now();
    let timeout = if scratch.headers.key.protocol as u8 == protocol::TCP {
        match tables.advance_tcp(flow, &scratch.segment, reply) {
            // Not from an acknowledgement in an established flow.
            tcp::IGNORED.. => Timeout::Established as u32,
            timeout => timeout,
        }
    } else {
        advance_untimed(&scratch.headers, flow, now)
    };
    refresh(tables, scratch.place(), flow, timeout, now);
    let (count, bytes) = (Cached::count(facts), scratch.headers.bytes);
    if count > 0 {
        tables.hit(cached.slots[0].get(), 1, bytes);
    }
    if count > 1 {
        tables.hit(cached.slots[1].get(), 1, bytes);
    }
    if count > 2 {
        tables.hit(cached.slots[2].get(), 1, bytes);
    }
    if scratch.has(HeaderFields::MANGLE4) {
        let family = scratch.headers.family;
        count_policy(tables, scratch, BaseChain::ManglePrerouting.id(family), 1);
        count_policy(tables, scratch, BaseChain::MangleForward.id(family), 1);
        count_policy(tables, scratch, BaseChain::ManglePostrouting.id(family), 1);
    }
    tables.count(Stat::FastPath);
    true
}

/// Keeps how a packet came through FORWARD, for those behind it. A flow whose packets take several
/// ways keeps the first.
#[inline(never)]
pub fn remember<T: Tables>(tables: &T, scratch: &Scratch, arrival: u32, departure: u32) {
    let (headers, tracked, walk) = (&scratch.headers, &scratch.tracked, &scratch.walk);
    let flags = scratch.device.flags & scratch.arrival_flags;
    // The stack tells a sender of a better way when a packet leaves by where it came in
    // (`ip_rt_send_redirect`, net/ipv4/route.c; `ip6_forward`, net/ipv6/ip6_output.c).
    if arrival == departure
        || flags & (Device::FAST | Device::FAST_XDP) == 0
        || walk.uncacheable
        || scratch.has(HeaderFields::SLOW4)
        || walk.hits as usize > CACHED_SLOTS
        || tracked.ct & ct::ESTABLISHED == 0
        || !is_usual(headers)
    {
        return;
    }
    let Some(flow) = tables.flow(&scratch.lookup.key) else {
        return;
    };
    if flow.is_alias() {
        return;
    }
    let cached = if tracked.direction == 0 {
        &flow.cached[0]
    } else {
        &flow.cached[1]
    };
    if cached.active.get() == scratch.active {
        return;
    }
    cached.active.set(0);
    cached.arrival.set(arrival);
    cached.departure.set(departure);
    let asked = scratch.flags_asked.get();
    cached
        .facts
        .set(Cached::pack(walk.hits, asked, headers.tcp_flags));
    cached.slots[0].set(walk.slots[0]);
    cached.slots[1].set(walk.slots[1]);
    cached.slots[2].set(walk.slots[2]);
    cached.active.set(scratch.active);
}

/// How a packet is sent on.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Sending {
    /// Where to.
    pub route: Route,
    /// Its source and destination from now on.
    pub source: Addr,
    /// See `source`.
    pub destination: Addr,
    /// Its ports, source in the high half.
    pub ports: u32,
}

/// TCP or UDP in one piece, on Ethernet, without options or extension headers; and for the best
/// effort: of the others the stack derives a priority from the type of service (`rt_tos2priority`,
/// net/ipv4/route.c).
#[inline(always)]
fn is_usual(headers: &Headers) -> bool {
    let l4 = if headers.is_v6() { L4_V6 } else { L4_V4 };
    let has_ports = matches!(headers.key.protocol as u8, protocol::TCP | protocol::UDP);
    headers.part as u8 == Part::Whole as u8
        && headers.l4 as usize == l4
        && headers.tos & 0x1c == 0
        && has_ports
        && !headers.broken
}

/// Whether the packet leaves the flow in the state that it is in.
#[inline(always)]
fn lasts(flow: &Flow, headers: &Headers) -> bool {
    let status = flow.status.get();
    if status & (Flow::SEEN_REPLY | Flow::EMBRYO | Flow::DYING) != Flow::SEEN_REPLY {
        return false;
    }
    headers.key.protocol as u8 != protocol::TCP
        || headers.tcp_flags & (flag::SYN | flag::FIN | flag::RST | flag::ACK) == flag::ACK
            && tcp::state_of(flow) == tcp::state::ESTABLISHED
}

/// What both ends are after all translation.
#[inline(never)]
fn set_ends(headers: &Headers, found: &Found<'_>, sending: &mut Sending) {
    sending.source = headers.key.source;
    sending.destination = headers.key.destination;
    sending.ports = headers.flow_ports;
    let flow = found.flow;
    if flow.status.get() & Flow::SNAT == 0 {
        return;
    }
    if let Some(key) = found.alias_of {
        let low = flow.status.get() & Flow::LOW_OPENED != 0;
        let (address, port) = if low {
            (&key.low, key.low_port)
        } else {
            (&key.high, key.high_port)
        };
        sending.destination = *address;
        sending.ports = headers.flow_ports & 0xffff_0000 | port as u32;
    } else {
        let end = outside(flow);
        sending.source = end.address;
        sending.ports = headers.flow_ports & 0xffff | (end.port as u32) << 16;
    }
}

/// Writes link-layer addresses, hop count, addresses and ports; false if nothing was changed.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, headers: &Headers, sending: &Sending) -> bool {
    let key = &headers.key;
    let addresses = Difference::default()
        .address(&key.source, &sending.source)
        .address(&key.destination, &sending.destination);
    let written = if headers.is_v6() {
        rewrite_v6(packet, sending)
    } else {
        rewrite_v4(packet, sending, addresses)
    };
    if !written {
        return false;
    }
    let (l4, v6) = (headers.l4 as u32, headers.is_v6());
    let udp = key.protocol as u8 == protocol::UDP;
    let sum_at = if udp { l4 + 6 } else { l4 + 16 };
    if addresses.sum() != 0 {
        let _ = packet.replace_l4_sum(sum_at, addresses.sum(), true, udp, v6);
    }
    if sending.ports != headers.flow_ports {
        let ports = Difference::default().word(headers.flow_ports, sending.ports);
        let _ = packet.replace_l4_sum(sum_at, ports.sum(), false, udp, v6);
        let _ = packet.store(l4, sending.ports.to_be_bytes());
    }
    true
}

#[inline(never)]
fn rewrite_v4<P: Packet>(packet: &mut P, sending: &Sending, addresses: Difference) -> bool {
    const HOPS: usize = 22;
    const SUM: usize = 24;
    let Some(frame) = packet.window::<L4_V4>() else {
        return false;
    };
    let mut new = *frame;
    if new[HOPS] <= 1 {
        return false;
    }
    set_link(&mut new, &sending.route);
    let hops = u16::from_be_bytes([new[HOPS], new[HOPS + 1]]);
    new[HOPS] -= 1;
    let sum = addresses.half(hops, hops.wrapping_sub(0x100));
    let sum = sum.apply([new[SUM], new[SUM + 1]]);
    new[SUM] = sum[0];
    new[SUM + 1] = sum[1];
    put(&mut new, 26, sending.source[0]);
    put(&mut new, 30, sending.destination[0]);
    packet.store(0, new).is_some()
}

#[inline(never)]
fn rewrite_v6<P: Packet>(packet: &mut P, sending: &Sending) -> bool {
    const HOPS: usize = 21;
    let Some(frame) = packet.window::<L4_V6>() else {
        return false;
    };
    let mut new = *frame;
    if new[HOPS] <= 1 {
        return false;
    }
    set_link(&mut new, &sending.route);
    new[HOPS] -= 1;
    put_address(&mut new, 22, &sending.source);
    put_address(&mut new, 38, &sending.destination);
    packet.store(0, new).is_some()
}

#[inline(always)]
fn set_link<const N: usize>(frame: &mut [u8; N], route: &Route) {
    frame[..6].copy_from_slice(&route.destination);
    frame[6..12].copy_from_slice(&route.source);
}

#[inline(always)]
fn put_address<const N: usize>(frame: &mut [u8; N], at: usize, address: &Addr) {
    put(frame, at, address[0]);
    put(frame, at + 4, address[1]);
    put(frame, at + 8, address[2]);
    put(frame, at + 12, address[3]);
}

#[inline(always)]
fn put<const N: usize>(frame: &mut [u8; N], at: usize, word: u32) {
    frame[at..at + 4].copy_from_slice(&word.to_be_bytes());
}
