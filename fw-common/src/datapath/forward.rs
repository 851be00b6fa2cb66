//! The fast path: packets of established flows go from interface to interface without the stack.
//!
//! It does what the slow way did for a packet before in the same direction of the same flow: the
//! same rules are counted, the flow is moved on, both ends are translated, the hop count falls, and
//! the kernel's routing table names the next hop, for each packet anew. Whatever is not certain to
//! go as it did then takes the slow way, untouched.

use super::conntrack::{Found, advance_untimed, refresh};
use super::frame::{HOPS_V4, HOPS_V6, rewrite};
use super::header::{Headers, L4_V4, L4_V6, Part, protocol};
use super::packet::{Packet, Route, Way};
use super::scratch::Scratch;
use super::shortcut::{Course, note};
use super::tables::Tables;
use super::tcp::{self, flag};
use crate::abi::blob::HeaderFields;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey, SHORTCUT_SLOTS, Shortcut};
use crate::abi::stat::Stat;
use crate::abi::{Addr, ct};

/// Sends a packet of a flow on, if all that is needed for that is known; false if nothing was done.
#[inline(always)]
pub fn forward<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    found: &Found<'_>,
    now: u64,
) -> bool {
    scratch.sending.now = now;
    set_ends(
        &scratch.headers,
        found,
        &scratch.lookup.key,
        &mut scratch.sending,
    );
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
    let Some(course) = Course::of_flow(tables, flow, reply, scratch.active) else {
        return false;
    };
    let headers = &scratch.headers;
    if course.arrival != packet.device()
        || Shortcut::differs(course.facts, headers.tcp_flags)
        || !is_usual(headers)
        || !packet.is_plain(&scratch.device.link)
        || !goes_on(flow, headers)
        || !has_hops(packet, headers)
    {
        return false;
    }

    let way = Way {
        device: packet.device(),
        family: headers.family,
        source: &headers.key.source,
        destination: &scratch.sending.destination,
        protocol: headers.key.protocol as u8,
        ports: headers.flow_ports & 0xffff_0000 | scratch.sending.ports & 0xffff,
        tos: headers.tos,
        bytes: headers.bytes,
    };
    if !packet.route(&way, &mut scratch.sending.route)
        || scratch.sending.route.device != course.departure
    {
        return false;
    }

    let now = scratch.sending.now;
    let timeout = if scratch.headers.key.protocol as u8 == protocol::TCP {
        match tables.advance_tcp(flow, &scratch.segment, reply) {
            // Out of the window: the slow way comes to the same, as nothing was changed, or (where a
            // sender overshoots) to what it is now.
            tcp::IGNORED.. => return false,
            timeout => timeout,
        }
    } else {
        advance_untimed(&scratch.headers, flow, now)
    };
    // From here on it must not fail: the flow was moved on.
    if !rewrite(packet, &scratch.headers, &scratch.sending) {
        return false;
    }
    refresh(tables, scratch.place(), flow, timeout, now);
    let (count, bytes) = (Shortcut::count(course.facts), scratch.headers.bytes);
    if count > 0 {
        tables.hit(course.slots[0], 1, bytes);
    }
    if count > 1 {
        tables.hit(course.slots[1], 1, bytes);
    }
    if count > 2 {
        tables.hit(course.slots[2], 1, bytes);
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
        || scratch.features & HeaderFields::PORTS != 0
        || walk.hits as usize > SHORTCUT_SLOTS
        || tracked.ct & ct::ESTABLISHED == 0
        || !is_usual(headers)
    {
        return;
    }
    let Some(mut flow) = tables.flow(&scratch.lookup.key) else {
        return;
    };
    if flow.is_alias() {
        flow = match tables.flow(&flow.other) {
            Some(flow) => flow,
            None => return,
        };
    }
    let reply = tracked.direction != 0;
    let numbers = flow.numbers();
    if numbers.active() == scratch.active && numbers.of(reply) != 0 {
        return;
    }
    let asked = scratch.flags_asked.get();
    // What is behind them is of walks before, and would make another course of the same one.
    let slot = |number: u32| {
        if number < walk.hits {
            walk.slots[number as usize]
        } else {
            0
        }
    };
    let course = Course {
        arrival,
        departure,
        facts: Shortcut::pack(walk.hits, asked, headers.tcp_flags),
        slots: [slot(0), slot(1), slot(2)],
    };
    note(tables, flow, reply, scratch.active, &course);
}

/// How a packet is sent on.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Sending {
    /// When its flow was found.
    pub now: u64,
    /// Where to.
    pub route: Route,
    /// Its source and destination from now on; of an IPv4 packet, what is behind the first word is not written,
    /// nor read.
    pub source: Addr,
    /// See `source`.
    pub destination: Addr,
    /// Its ports, source in the high half.
    pub ports: u32,
}

impl Sending {
    #[inline(always)]
    fn set(&mut self, (source, destination): (&Addr, &Addr), ports: u32, v6: bool) {
        self.ports = ports;
        self.source[0] = source[0];
        self.destination[0] = destination[0];
        if v6 {
            self.source = *source;
            self.destination = *destination;
        }
    }
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

/// Whether another hop is left, and all that [`rewrite`] writes is where it can be written in place.
#[inline(always)]
fn has_hops<P: Packet>(packet: &P, headers: &Headers) -> bool {
    let tcp = headers.key.protocol as u8 == protocol::TCP;
    let hops = match (headers.is_v6(), tcp) {
        (false, true) => packet
            .window::<{ L4_V4 + 20 }>()
            .map(|frame| frame[HOPS_V4]),
        (false, false) => packet.window::<{ L4_V4 + 8 }>().map(|frame| frame[HOPS_V4]),
        (true, true) => packet
            .window::<{ L4_V6 + 20 }>()
            .map(|frame| frame[HOPS_V6]),
        (true, false) => packet.window::<{ L4_V6 + 8 }>().map(|frame| frame[HOPS_V6]),
    };
    hops.is_some_and(|hops| hops > 1)
}

/// Whether the flow goes on, and whatever the packet makes of it the slow way would make of it, too: also if it
/// takes the slow way after all, as it is out of the window. So flows open and end the slow way, as far as answers to
/// what was ignored could be among it ([`tcp::advance`]).
#[inline(always)]
fn goes_on(flow: &Flow, headers: &Headers) -> bool {
    let status = flow.status.get();
    const KEPT_BACK: u32 = Flow::EMBRYO | Flow::DYING | Flow::FOREIGN;
    if status & (Flow::SEEN_REPLY | KEPT_BACK) != Flow::SEEN_REPLY {
        return false;
    }
    headers.key.protocol as u8 != protocol::TCP
        || headers.tcp_flags & (flag::SYN | flag::RST | flag::ACK) == flag::ACK
            && tcp::state_of(flow).wrapping_sub(tcp::state::ESTABLISHED) <= CLOSING
}

/// How many states come between [`tcp::state::ESTABLISHED`] and the last one in which [`goes_on`] holds.
const CLOSING: u8 = tcp::state::CLOSE_WAIT - tcp::state::ESTABLISHED;
const _: () = assert!(CLOSING == 2 && tcp::state::FIN_WAIT - tcp::state::ESTABLISHED == 1);

/// What both ends are after all translation.
#[inline(never)]
fn set_ends(headers: &Headers, found: &Found<'_>, key: &FlowKey, sending: &mut Sending) {
    let flow = found.flow;
    let status = flow.status.get();
    let v6 = headers.is_v6();
    if status & Flow::TRANSLATED == 0 {
        sending.set(
            (&headers.key.source, &headers.key.destination),
            headers.flow_ports,
            v6,
        );
    } else if found.is_under_alias() {
        // A reply: both ends are those of the flow's own key.
        let low = status & Flow::LOW_OPENED != 0;
        set_to_key(sending, key, !low, v6);
    } else if status & Flow::DNAT == 0 {
        let (address, port) = flow.translated_source();
        let ports = headers.flow_ports & 0xffff | (port as u32) << 16;
        sending.set((address, &headers.key.destination), ports, v6);
    } else {
        let low = status & Flow::OTHER_LOW != 0;
        set_to_key(sending, &flow.other, low, v6);
    }
}

#[inline(always)]
fn set_to_key(sending: &mut Sending, key: &FlowKey, from_low: bool, v6: bool) {
    if from_low {
        let ports = (key.low_port() as u32) << 16 | key.high_port() as u32;
        sending.set((&key.low, &key.high), ports, v6);
    } else {
        let ports = (key.high_port() as u32) << 16 | key.low_port() as u32;
        sending.set((&key.high, &key.low), ports, v6);
    }
}
