//! Connection tracking: which flow a packet belongs to, and what that makes of it. The labels are
//! netfilter's (`nf_conntrack_in`, net/netfilter/nf_conntrack_core.c).

use super::fragment::Borrowed;
use super::header::{Headers, Icmp, Part, be32, icmp_kind, protocol, query_ports};
use super::packet::Packet;
use super::rewrite::Endpoint;
use super::tables::Tables;
use super::tcp::{self, Outcome, Segment};
use crate::abi::blob::{TIMEOUTS, Timeout};
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;
use crate::abi::{Addr, Family, ct};

/// A packet's place in its flow.
///
/// It holds no reference to the flow: LLVM stores references that pass through memory piecemeal,
/// which makes them numbers to the verifier ("R0 invalid mem access 'scalar'").
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Tracked {
    /// What one end of the packet has to become: the source of a packet in the original direction,
    /// the destination of a reply. Meaningful if [`Tracked::translated`].
    pub endpoint: Endpoint,
    /// The packet has to be translated at this hook.
    pub translated: bool,
    /// Connection state: one bit of [`ct`], and the virtual ones.
    pub ct: u8,
    /// 0 original, 1 reply, 2 no flow.
    pub direction: u8,
    /// The packet opens a flow that is not stored yet.
    pub opens: bool,
    /// The packet is an ICMP error about the flow.
    pub error: bool,
    /// A later fragment of a datagram that opened its flow: it meets the nat chains again, for
    /// their counters.
    pub replayed: bool,
    /// Packets to count: none for a later fragment.
    pub packets: u8,
}

impl Tracked {
    /// A packet that belongs to no flow.
    #[inline(always)]
    pub fn without_flow(ct: u8) -> Self {
        Self {
            ct,
            direction: NO_FLOW,
            packets: 1,
            ..Self::default()
        }
    }

    /// A packet of a flow that is found: it has to be translated if it came under the flow's alias
    /// (its destination), or goes the original way (its source).
    #[inline(always)]
    fn in_flow(found: &Found<'_>, state: u8) -> Self {
        let flow = found.flow;
        let mut tracked = Self {
            ct: state,
            direction: found.direction,
            packets: 1,
            ..Self::default()
        };
        if flow.status.get() & Flow::SNAT != 0 {
            tracked.ct |= ct::SNAT;
            if let Some(key) = found.alias_of {
                tracked.endpoint = opener(key, flow);
                tracked.translated = true;
            } else if !found.is_reply() {
                tracked.endpoint = outside(flow);
                tracked.translated = true;
            }
        }
        tracked
    }

    /// The label as ingress hands it to egress in the packet's note.
    #[inline(always)]
    pub fn note(&self) -> u16 {
        NOTE_SEEN | (self.direction as u16) << 8 | self.ct as u16
    }
}

/// [`Tracked::direction`] of a packet without a flow.
pub const NO_FLOW: u8 = 2;

/// Set in every note, to tell it from a packet that no ingress program saw.
pub const NOTE_SEEN: u16 = 1 << 15;

/// One direction of a flow, as a packet shows it.
#[derive(Clone, Copy, Debug)]
pub struct Tuple {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Ports, source in the high half.
    pub ports: u32,
    /// Protocol number.
    pub protocol: u8,
    /// IP version.
    pub family: Family,
}

impl Tuple {
    /// The packet's own.
    #[inline(always)]
    pub fn of(headers: &Headers) -> Self {
        Self {
            source: headers.key.source,
            destination: headers.key.destination,
            ports: headers.flow_ports,
            protocol: headers.key.protocol as u8,
            family: headers.family,
        }
    }

    /// The flow's key, and whether the source is its lower endpoint.
    #[inline(always)]
    pub fn key(&self, kind: u8) -> (FlowKey, bool) {
        let (source_port, destination_port) = ((self.ports >> 16) as u16, self.ports as u16);
        let from_low = precedes(
            &self.source,
            source_port,
            &self.destination,
            destination_port,
        );
        let mut key = FlowKey {
            low: self.destination,
            high: self.source,
            low_port: destination_port,
            high_port: source_port,
            protocol: self.protocol,
            kind,
            family: self.family as u8,
            reserved: 0,
        };
        if from_low {
            key.low = self.source;
            key.high = self.destination;
            key.low_port = source_port;
            key.high_port = destination_port;
        }
        (key, from_low)
    }
}

#[inline(always)]
fn precedes(a: &Addr, a_port: u16, b: &Addr, b_port: u16) -> bool {
    let mut word = 0;
    while word < 4 {
        if a[word] != b[word] {
            return a[word] < b[word];
        }
        word += 1;
    }
    a_port <= b_port
}

/// What [`find`] found.
///
/// Its only niche is the reference at offset 0: the kernel refuses BTF in which the discriminant of
/// an `Option` lies anywhere else ("Invalid member bits_offset"). So are the other types that
/// functions of their own pass in an `Option`.
#[repr(C)]
struct Found<'t> {
    flow: &'t Flow,
    alias_of: Option<&'t FlowKey>,
    direction: u8,
}

impl Found<'_> {
    #[inline(always)]
    fn is_reply(&self) -> bool {
        self.direction != 0
    }
}

/// Whether names of translated flows are looked up: only where they can occur, at ingress, and
/// only if the family has a nat table.
pub type Aliases = bool;

/// The live flow that a tuple belongs to.
#[inline(never)]
fn find<'t, T: Tables>(
    tables: &'t T,
    tuple: &Tuple,
    aliases: Aliases,
    now: u64,
) -> Option<Found<'t>> {
    let (key, from_low) = tuple.key(FlowKey::PRIMARY);
    if let Some(flow) = tables.flow(&key) {
        if let Some(reply) = direction(tables, &key, flow, from_low, now) {
            // Replies to a translated flow come under its alias. Under the opener's own address
            // they are a stranger's, except after the translation, where aliases are not looked up.
            if !(aliases && reply && flow.status.get() & Flow::SNAT != 0) {
                return Some(Found {
                    flow,
                    alias_of: None,
                    direction: reply as u8,
                });
            }
        }
    }
    if !aliases {
        return None;
    }
    let (key, from_low) = tuple.key(FlowKey::ALIAS);
    let alias = tables.flow(&key)?;
    let reply = (alias.status.get() & Flow::LOW_OPENED != 0) != from_low;
    if !reply {
        return None;
    }
    let flow = tables.flow(&alias.other)?;
    direction(tables, &alias.other, flow, true, now)?;
    Some(Found {
        flow,
        alias_of: Some(&alias.other),
        direction: 1,
    })
}

/// Whether the packet is a reply; nothing if the flow is past its time, which ends it.
#[inline(always)]
fn direction<T: Tables>(
    tables: &T,
    key: &FlowKey,
    flow: &Flow,
    from_low: bool,
    now: u64,
) -> Option<bool> {
    let status = flow.status.get();
    if flow.expires.get() < now {
        tables.count(Stat::Expired);
        end_flow(tables, key, flow);
        return None;
    }
    if status & Flow::DYING != 0 {
        return None;
    }
    Some((status & Flow::LOW_OPENED != 0) != from_low)
}

/// Removes a flow and its alias.
#[inline(always)]
pub fn end_flow<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow) {
    let status = flow.status.get();
    flow.status.set(status | Flow::DYING);
    if status & Flow::SNAT != 0 {
        tables.remove_flow(&flow.other);
    }
    tables.remove_flow(key);
}

/// Tracks a packet and moves its flow on.
#[inline(never)]
pub fn track<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    headers: &Headers,
    aliases: Aliases,
) -> Tracked {
    if headers.broken {
        return Tracked::without_flow(ct::INVALID);
    }
    match headers.icmp {
        Icmp::Untracked => return Tracked::without_flow(ct::UNTRACKED),
        Icmp::Other => return Tracked::without_flow(ct::INVALID),
        Icmp::Error => return about(packet, tables, headers, aliases),
        Icmp::No | Icmp::Request | Icmp::Reply => {}
    }
    let now = tables.now();
    let tuple = Tuple::of(headers);
    let protocol = headers.key.protocol as u8;
    if protocol != protocol::TCP {
        let Some(found) = find(tables, &tuple, aliases, now) else {
            // An answer that nobody asked for does not open a flow.
            if headers.icmp as u8 == Icmp::Reply as u8 {
                return Tracked::without_flow(ct::INVALID);
            }
            return opening();
        };
        let label = label(&found);
        advance_untimed(tables, generation, headers, found.flow, now);
        settle(tables, &tuple, &found);
        return label;
    }
    track_tcp(packet, tables, generation, headers, aliases)
}

#[inline(always)]
fn track_tcp<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    headers: &Headers,
    aliases: Aliases,
) -> Tracked {
    let now = tables.now();
    let tuple = Tuple::of(headers);
    let Some(segment) = segment(packet, headers) else {
        return Tracked::without_flow(ct::INVALID);
    };
    if !segment.flags_are_valid() {
        return Tracked::without_flow(ct::INVALID);
    }
    if let Some(found) = find(tables, &tuple, aliases, now) {
        let label = label(&found);
        match tcp::advance(found.flow, &segment, found.is_reply()) {
            Outcome::Live(timeout) => {
                refresh(tables, generation, found.flow, timeout, now);
                settle(tables, &tuple, &found);
                return label;
            }
            Outcome::Ignored => {
                settle(tables, &tuple, &found);
                return label;
            }
            Outcome::Invalid => return Tracked::without_flow(ct::INVALID),
            Outcome::Ended => {
                // The flow ends with this packet, which still carries its label and, if the flow
                // is translated, still has to be translated on its way out.
                let status = found.flow.status.get();
                if status & Flow::SNAT != 0 {
                    found.flow.status.set(status | Flow::DYING);
                    found.flow.expires.set(now.wrapping_add(DYING_GRACE));
                } else {
                    end_found(tables, &tuple, &found);
                }
                return label;
            }
            Outcome::Reopened => end_found(tables, &tuple, &found),
        }
    }
    if segment.opens() {
        opening()
    } else {
        Tracked::without_flow(ct::INVALID)
    }
}

/// How long a translated flow that has ended waits for its last packet to leave.
const DYING_GRACE: u64 = 1_000_000_000;

/// A TCP packet's segment. A first fragment's length is that of what it carries.
#[inline(always)]
pub fn segment<P: Packet>(packet: &P, headers: &Headers) -> Option<Segment> {
    let header: [u8; 20] = packet.load(headers.l4 as u32)?;
    Some(Segment::new(&header, headers.l4_len as u32))
}

/// A later fragment's place: its first fragment's, whose flow is not moved on again.
#[inline(always)]
pub fn follow<T: Tables>(
    tables: &T,
    headers: &Headers,
    aliases: Aliases,
    first: &Borrowed,
) -> Tracked {
    let mut tracked = look_up(tables, headers, aliases, first.ct, first.direction);
    tracked.opens = false;
    tracked.replayed = first.opened;
    tracked.packets = 0;
    tracked
}

/// Looks a packet up whose label is known already, without moving its flow on.
#[inline(always)]
pub fn look_up<T: Tables>(
    tables: &T,
    headers: &Headers,
    aliases: Aliases,
    ct: u8,
    direction: u8,
) -> Tracked {
    let mut tracked = Tracked::without_flow(ct);
    tracked.direction = direction;
    if direction == NO_FLOW {
        return tracked;
    }
    match find(tables, &Tuple::of(headers), aliases, 0) {
        Some(found) => {
            let flow = Tracked::in_flow(&found, 0);
            tracked.endpoint = flow.endpoint;
            tracked.translated = flow.translated;
        }
        None => tracked.opens = ct & ct::NEW != 0,
    }
    tracked
}

#[inline(always)]
fn opening() -> Tracked {
    Tracked {
        ct: ct::NEW,
        opens: true,
        packets: 1,
        ..Tracked::default()
    }
}

/// A packet of a known flow is NEW until something came back (`resolve_normal_ct`).
#[inline(always)]
fn label(found: &Found<'_>) -> Tracked {
    let answered = found.flow.status.get() & Flow::SEEN_REPLY != 0;
    let state = if found.is_reply() || answered {
        ct::ESTABLISHED
    } else {
        ct::NEW
    };
    Tracked::in_flow(found, state)
}

/// UDP, ICMP and the rest: a timer, and for UDP the proof of a lasting exchange.
#[inline(always)]
fn advance_untimed<T: Tables>(
    tables: &T,
    generation: T::Generation,
    headers: &Headers,
    flow: &Flow,
    now: u64,
) {
    let protocol = headers.key.protocol as u8;
    let status = flow.status.get();
    let mut timeout = untimed(headers);
    // Only an exchange that goes on for two seconds is a stream (`nf_conntrack_udp_packet`).
    if (protocol == protocol::UDP || protocol == protocol::UDPLITE)
        && status & Flow::SEEN_REPLY != 0
        && now > flow.created.wrapping_add(UDP_STREAM_AFTER)
    {
        timeout = Timeout::UdpStream;
        flow.status.set(status | Flow::ASSURED);
    }
    refresh(tables, generation, flow, timeout, now);
}

const UDP_STREAM_AFTER: u64 = 2_000_000_000;

/// The timeout of a flow of a protocol without states.
#[inline(always)]
fn untimed(headers: &Headers) -> Timeout {
    match headers.key.protocol as u8 {
        protocol::UDP | protocol::UDPLITE => Timeout::Udp,
        protocol::ICMP => Timeout::Icmp,
        protocol::ICMPV6 => Timeout::Icmpv6,
        _ => Timeout::Generic,
    }
}

#[inline(always)]
fn refresh<T: Tables>(
    tables: &T,
    generation: T::Generation,
    flow: &Flow,
    timeout: Timeout,
    now: u64,
) {
    flow.expires
        .set(now.wrapping_add(lifetime(tables, generation, timeout)));
}

#[inline(always)]
fn lifetime<T: Tables>(tables: &T, generation: T::Generation, timeout: Timeout) -> u64 {
    let seconds = match tables.cell(generation, TIMEOUTS) {
        Some(cell) => match cell.w.get(timeout as usize & 15) {
            Some(seconds) => *seconds,
            None => 0,
        },
        None => 0,
    };
    seconds as u64 * 1_000_000_000
}

/// Notes the first reply, after the packet got its label, and promotes a flow that both sides have
/// confirmed: an outsider's first packets never take a place in the confirmed table.
#[inline(always)]
fn settle<T: Tables>(tables: &T, tuple: &Tuple, found: &Found<'_>) {
    let flow = found.flow;
    let status = flow.status.get();
    if found.is_reply() {
        if status & Flow::SEEN_REPLY == 0 {
            flow.status.set(status | Flow::SEEN_REPLY);
        }
        return;
    }
    if status & (Flow::EMBRYO | Flow::SEEN_REPLY) == Flow::EMBRYO | Flow::SEEN_REPLY {
        let (key, _) = tuple.key(FlowKey::PRIMARY);
        flow.status.set(status & !Flow::EMBRYO);
        if tables.promote_flow(&key, flow).is_err() {
            flow.status.set(status);
        }
    }
}

/// Ends a flow that a tuple led to.
#[inline(always)]
fn end_found<T: Tables>(tables: &T, tuple: &Tuple, found: &Found<'_>) {
    let (key, _) = tuple.key(FlowKey::PRIMARY);
    end_flow(tables, found.alias_of.unwrap_or(&key), found.flow);
}

/// The endpoint that opened a flow.
#[inline(always)]
pub fn opener(key: &FlowKey, flow: &Flow) -> Endpoint {
    if flow.status.get() & Flow::LOW_OPENED != 0 {
        Endpoint {
            address: key.low,
            port: key.low_port,
        }
    } else {
        Endpoint {
            address: key.high,
            port: key.high_port,
        }
    }
}

/// The endpoint that the far side of a translated flow sees instead.
#[inline(always)]
pub fn outside(flow: &Flow) -> Endpoint {
    Endpoint {
        address: flow.nat_source,
        port: flow.nat_port,
    }
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted {
    /// Its tuple, as quoted.
    pub tuple: Tuple,
    /// Offset of its IP header.
    pub l3: u16,
    /// Offset of its transport header.
    pub l4: u16,
}

/// Parses the packet that an ICMP error quotes: RFC 792 promises its IP header and eight bytes.
#[inline(always)]
pub fn quoted<P: Packet>(packet: &P, headers: &Headers) -> Option<Quoted> {
    let l3 = (headers.l4 as u32).wrapping_add(8);
    let (source, destination, inner_protocol, l4) = if headers.is_v6() {
        let ip: [u8; 40] = packet.load(l3)?;
        let word = |at: usize| be32(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let source = [word(8), word(12), word(16), word(20)];
        let destination = [word(24), word(28), word(32), word(36)];
        if ip[0] >> 4 != 6 {
            return None;
        }
        (source, destination, ip[6], l3 + 40)
    } else {
        let ip: [u8; 20] = packet.load(l3)?;
        let header_len = (ip[0] & 0x0f) as u32 * 4;
        // A quoted later fragment has no ports (`nf_ct_get_tuplepr` refuses it).
        if ip[0] >> 4 != 4 || header_len < 20 || u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
            return None;
        }
        let source = [be32(ip[12], ip[13], ip[14], ip[15]), 0, 0, 0];
        let destination = [be32(ip[16], ip[17], ip[18], ip[19]), 0, 0, 0];
        (source, destination, ip[9], l3 + header_len)
    };
    let ports = match (inner_protocol, headers.is_v6()) {
        (
            protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP | protocol::DCCP,
            _,
        ) => {
            let ports: [u8; 4] = packet.load(l4)?;
            be32(ports[0], ports[1], ports[2], ports[3])
        }
        (protocol::ICMP, false) | (protocol::ICMPV6, true) => {
            let icmp: [u8; 8] = packet.load(l4)?;
            let (kind, request) = icmp_kind(icmp[0], headers.is_v6());
            if !matches!(kind, Icmp::Request | Icmp::Reply) {
                return None;
            }
            query_ports(
                kind,
                request,
                icmp[1],
                u16::from_be_bytes([icmp[4], icmp[5]]),
            )
        }
        _ => 0,
    };
    Some(Quoted {
        tuple: Tuple {
            source,
            destination,
            ports,
            protocol: inner_protocol,
            family: headers.family,
        },
        l3: l3 as u16,
        l4: l4 as u16,
    })
}

/// An ICMP error is RELATED if it quotes a packet of a known flow and goes to that packet's
/// sender; otherwise it is INVALID (`nf_conntrack_inet_error`). It does not keep the flow alive.
#[inline(never)]
pub fn about<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    headers: &Headers,
    aliases: Aliases,
) -> Tracked {
    let Some(quoted) = quoted(packet, headers) else {
        return Tracked::without_flow(ct::INVALID);
    };
    // The quoted packet went the other way: its mirror image is what would come in here.
    let mirror = Tuple {
        source: quoted.tuple.destination,
        destination: quoted.tuple.source,
        ports: quoted.tuple.ports.rotate_left(16),
        ..quoted.tuple
    };
    if headers.key.destination != quoted.tuple.source {
        return Tracked::without_flow(ct::INVALID);
    }
    match find(tables, &mirror, aliases, tables.now()) {
        Some(found) => Tracked {
            error: true,
            ..Tracked::in_flow(&found, ct::RELATED)
        },
        None => Tracked::without_flow(ct::INVALID),
    }
}

/// A flow as its first packet makes it.
#[inline(never)]
pub fn new_flow<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    headers: &Headers,
    flow: &mut Flow,
) {
    let now = tables.now();
    *flow = Flow::default();
    let mut timeout = untimed(headers);
    if headers.key.protocol as u8 == protocol::TCP && headers.part as u8 != Part::Later as u8 {
        if let Some(segment) = segment(packet, headers) {
            if let Some(first) = tcp::open(flow, &segment) {
                timeout = first;
            }
        }
    }
    flow.created = now;
    refresh(tables, generation, flow, timeout, now);
}
