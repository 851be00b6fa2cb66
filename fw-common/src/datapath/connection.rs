//! What rules ask about a packet's connection as netfilter keeps it: both of its tuples, its status, and
//! how long it lives on (`conntrack_mt`, net/netfilter/xt_conntrack.c).
//!
//! It is found where the mark of the packet's flow is ([`super::flow_mark`]), in the flow's record. Of a
//! flow that the packet opens there is no record yet: the packet tells it, as far as chains have got.
//! What this host answers in the stead of a packet carries that packet's connection, which is left here; in
//! the stead of one without a connection, what tracking finds.

use super::conntrack::{NO_FLOW, NOTE_SEEN, Tracked, is_about_transit};
use super::header::{Icmp, protocol};
use super::predicate::under_mask;
use super::scratch::Scratch;
use super::tables::Tables;
use super::tuple::Tuple;
use crate::abi::Addr;
use crate::abi::blob::{HeaderFields, Predicate, WITHOUT_FLOW, condition};
use crate::abi::ct::{self, asked, end, status};
use crate::abi::flow::{Flow, FlowKey};

/// The connection of the packet in hand.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Connection {
    /// By [`end`].
    addresses: [Addr; end::COUNT],
    /// By [`asked`].
    values: [u32; asked::COUNT],
    /// When it ends; 0 if it is not stored yet.
    expires: u64,
    /// There is one.
    known: u32,
}

/// Finds the connection of a packet that has one; [`super::flow_mark`] has found its record, if it has
/// one.
#[inline(always)]
pub(super) fn find<T: Tables>(tables: &T, scratch: &mut Scratch) {
    if scratch.features & HeaderFields::CONNECTIONS == 0 {
        return;
    }
    let error = scratch.headers.icmp as u8 == Icmp::Error as u8;
    if scratch.made_here {
        if scratch.answer.in_hand && scratch.note as u16 & NOTE_SEEN != 0 {
            return;
        }
        if error && !scratch.tracked.stored && is_about_transit(scratch) {
            return;
        }
    }
    scratch.connection.known = 1;
    if !(scratch.tracked.stored && read_record(tables, scratch)) {
        read_packet(scratch, error);
    }
}

/// Reads the flow's record; false if it is gone.
#[inline(never)]
fn read_record<T: Tables>(tables: &T, scratch: &mut Scratch) -> bool {
    let Scratch {
        mark, connection, ..
    } = scratch;
    let Some(named) = tables.flow(mark.name()) else {
        return false;
    };
    if !named.is_alias() {
        copy(connection, mark.name(), named);
        return true;
    }
    let Some(flow) = tables.flow(&named.other) else {
        return false;
    };
    copy(connection, &named.other, flow);
    true
}

#[inline(always)]
fn copy(connection: &mut Connection, key: &FlowKey, flow: &Flow) {
    let bits = flow.status.get();
    let from_low = bits & Flow::LOW_OPENED != 0;
    connection.set_protocol(key.protocol());
    let (source, destination, ports) = ends(key, from_low);
    connection.set_original(source, destination, ports);
    if bits & Flow::TRANSLATED == 0 {
        connection.set_reply(source, destination, ports);
    } else {
        let (source, destination, ports) = ends(&flow.other, bits & Flow::OTHER_LOW != 0);
        connection.set_reply(source, destination, ports);
    }
    let mut known = status::CONFIRMED;
    if bits & Flow::SEEN_REPLY != 0 {
        known |= status::SEEN_REPLY;
    }
    if bits & Flow::ASSURED != 0 {
        known |= status::ASSURED;
    }
    connection.values[asked::STATUS as usize] = known as u32;
    connection.expires = flow.expires.get();
}

/// Source, destination and ports of what goes from one end of a key to the other.
#[inline(always)]
fn ends(key: &FlowKey, from_low: bool) -> (&Addr, &Addr, u32) {
    let (low, high) = (key.low_port() as u32, key.high_port() as u32);
    if from_low {
        (&key.low, &key.high, low << 16 | high)
    } else {
        (&key.high, &key.low, high << 16 | low)
    }
}

/// Takes the packet's own tuple, or that of the packet which an error is about.
#[inline(never)]
fn read_packet(scratch: &mut Scratch, error: bool) {
    let Scratch {
        headers,
        tracked,
        quoted,
        connection,
        ..
    } = scratch;
    let (source, destination, ports, number) = if error {
        let tuple = &quoted.tuple;
        (
            &tuple.source,
            &tuple.destination,
            tuple.ports,
            tuple.protocol,
        )
    } else {
        let key = &headers.key;
        (
            &key.source,
            &key.destination,
            headers.flow_ports,
            key.protocol as u8,
        )
    };
    connection.set_protocol(number);
    // An error goes the other way than what it is about.
    if (tracked.direction == 0) == error {
        connection.set_original(destination, source, ports.rotate_left(16));
        connection.set_reply(destination, source, ports.rotate_left(16));
    } else {
        connection.set_original(source, destination, ports);
        connection.set_reply(source, destination, ports);
        if tracked.opens && tracked.ct & ct::DNAT != 0 {
            let original = &tracked.original;
            connection.set_reply(source, destination, as_renamed(tracked, ports));
            let ports = ports & 0xffff_0000 | original.port as u32;
            connection.set_original(source, &original.address, ports);
        }
    }
    // Only a flow that has ended with this packet was confirmed, and has no record.
    let ended = !tracked.opens && !error;
    connection.values[asked::STATUS as usize] = match (ended, tracked.direction) {
        (true, 1) => (status::CONFIRMED | status::SEEN_REPLY) as u32,
        (true, _) => status::CONFIRMED as u32,
        (false, _) => 0,
    };
    connection.expires = 0;
}

/// The destination of a packet that opens a flow has been translated: answers will come from there.
#[inline(always)]
pub(super) fn redirected(scratch: &mut Scratch) {
    if scratch.features & HeaderFields::CONNECTIONS != 0 {
        take_destination(scratch);
    }
}

#[inline(never)]
fn take_destination(scratch: &mut Scratch) {
    let Scratch {
        headers,
        tracked,
        connection,
        ..
    } = scratch;
    if tracked.direction == 0 && !tracked.stored {
        let key = &headers.key;
        let ports = as_renamed(tracked, headers.flow_ports);
        connection.set_reply(&key.source, &key.destination, ports);
    }
}

/// The ports of a packet that opens a flow, with the identifier that an echo got with its destination.
#[inline(always)]
fn as_renamed(tracked: &Tracked, ports: u32) -> u32 {
    if tracked.ct & ct::RENAMED != 0 {
        (tracked.identifier as u32) << 16 | ports & 0xffff
    } else {
        ports
    }
}

impl Connection {
    /// Whether there is one.
    #[inline(always)]
    pub(super) fn is_known(&self) -> bool {
        self.known != 0
    }

    /// Bits of [`status`].
    #[inline(always)]
    pub(super) fn status(&self) -> u8 {
        self.values[asked::STATUS as usize] as u8
    }

    /// What its opener sends, but for the IP version.
    #[inline(always)]
    pub(super) fn original(&self, tuple: &mut Tuple) {
        set(&mut tuple.source, &self.addresses[end::ORIGINAL_SOURCE]);
        let destination = &self.addresses[end::ORIGINAL_DESTINATION];
        set(&mut tuple.destination, destination);
        let first = asked::PORTS as usize;
        tuple.ports = self.values[first] << 16 | self.values[first + 1];
        tuple.protocol = self.values[asked::PROTOCOL as usize] as u8;
    }

    #[inline(always)]
    fn set_protocol(&mut self, number: u8) {
        self.values[asked::PROTOCOL as usize] = number as u32;
    }

    #[inline(always)]
    fn set_original(&mut self, source: &Addr, destination: &Addr, ports: u32) {
        set(&mut self.addresses[end::ORIGINAL_SOURCE], source);
        set(&mut self.addresses[end::ORIGINAL_DESTINATION], destination);
        self.values[asked::PORTS as usize] = ports >> 16;
        self.values[asked::PORTS as usize + 1] = ports & 0xffff;
    }

    /// Sets the reply's tuple to the inverse of the one that the opener's packets have as they leave.
    #[inline(always)]
    fn set_reply(&mut self, source: &Addr, destination: &Addr, ports: u32) {
        set(&mut self.addresses[end::REPLY_SOURCE], destination);
        set(&mut self.addresses[end::REPLY_DESTINATION], source);
        let number = self.values[asked::PROTOCOL as usize] as u8;
        let (source, destination) = if matches!(number, protocol::ICMP | protocol::ICMPV6) {
            // The identifier stays where it is, and the type becomes the answer's
            // (`nf_conntrack_invert_icmp_tuple`, net/netfilter/nf_conntrack_proto_icmp.c; its like for
            // IPv6).
            const ECHO: u32 = 8 << 8;
            let (kind, code) = (ports & 0xff00, ports & 0xff);
            let answer = if number == protocol::ICMP && kind == ECHO {
                0
            } else {
                kind.wrapping_add(0x100) & 0xff00
            };
            (ports >> 16, answer | code)
        } else {
            (ports & 0xffff, ports >> 16)
        };
        self.values[asked::PORTS as usize + 2] = source;
        self.values[asked::PORTS as usize + 3] = destination;
    }
}

/// Word by word, as [`FlowKey::set`].
#[inline(always)]
fn set(place: &mut Addr, address: &Addr) {
    let [a, b, c, d] = *address;
    place[0] = a;
    place[1] = b;
    place[2] = c;
    place[3] = d;
}

/// Whether what a predicate asks for is the same for all packets of the same direction that come after
/// this one: addresses and ports are, status and age are not.
#[inline(always)]
pub(super) fn is_lasting(predicate: Predicate<'_>) -> bool {
    predicate.kind() == condition::CT_ADDRESS || predicate.0.w[1] < asked::STATUS
}

/// Whether a predicate about the packet's connection holds, its `not` included. Without a connection,
/// the state alone decides, if the rule asks for it.
#[inline(never)]
pub(super) fn holds<T: Tables>(tables: &T, predicate: Predicate<'_>, scratch: &Scratch) -> bool {
    let w = &predicate.0.w;
    let connection = &scratch.connection;
    if scratch.query.direction >= NO_FLOW || connection.known == 0 {
        return w[WITHOUT_FLOW] != 0;
    }
    if predicate.kind() == condition::CT_ADDRESS {
        let address = &connection.addresses[w[10] as usize % end::COUNT];
        return under_mask(address, w) != predicate.not();
    }
    let value = if w[1] == asked::EXPIRES {
        left(tables, connection)
    } else {
        connection.values[w[1] as usize % asked::COUNT]
    };
    let value = value & w[2];
    (value >= w[3] && value <= w[4]) != predicate.not()
}

/// For how many seconds the connection lives on unless another packet comes. One that is not confirmed
/// has no time yet: netfilter's is an interval then, from which the present is subtracted all the same
/// (`nf_ct_expires`, net/netfilter/nf_conntrack.h).
#[inline(always)]
fn left<T: Tables>(tables: &T, connection: &Connection) -> u32 {
    let now = tables.now();
    if connection.expires <= now {
        return 0;
    }
    (connection.expires.wrapping_sub(now) / 1_000_000_000) as u32
}
