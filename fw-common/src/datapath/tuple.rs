//! Naming flows: from what a packet shows to the key of the flow tables.

use super::header::Headers;
use crate::MapCell;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::{Addr, Family};

/// One direction of a flow, as a packet shows it. Aligned as [`FlowKey`] is.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
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
    /// [`FlowKey::zone`].
    pub zone: u16,
}

impl Default for Tuple {
    fn default() -> Self {
        Self {
            source: [0; 4],
            destination: [0; 4],
            ports: 0,
            protocol: 0,
            family: Family::V4,
            zone: 0,
        }
    }
}

impl Tuple {
    /// The key and whether the source is its lower endpoint, as values: for user space, where the
    /// stack is no concern.
    pub fn key_of(headers: &Headers, kind: u8) -> (FlowKey, bool) {
        let mut tuple = Self::default();
        let mut key = FlowKey::default();
        tuple.set(headers);
        let from_low = tuple.fill_key(kind, &mut key);
        (key, from_low)
    }

    /// The packet's own.
    #[inline(always)]
    pub fn set(&mut self, headers: &Headers) {
        copy_address(&mut self.source, &headers.key.source, headers.family);
        copy_address(
            &mut self.destination,
            &headers.key.destination,
            headers.family,
        );
        self.ports = headers.flow_ports;
        self.protocol = headers.key.protocol as u8;
        self.family = headers.family;
        self.zone = headers.zone;
    }

    /// One direction of the flow that bears the key: from its lower endpoint, or from the other.
    #[inline(always)]
    pub fn set_key(&mut self, key: &FlowKey, from_low: bool) {
        if from_low {
            (self.source, self.destination) = (key.low, key.high);
            self.ports = (key.low_port() as u32) << 16 | key.high_port() as u32;
        } else {
            (self.source, self.destination) = (key.high, key.low);
            self.ports = (key.high_port() as u32) << 16 | key.low_port() as u32;
        }
        self.protocol = key.protocol();
        self.family = if key.is_v4() { Family::V4 } else { Family::V6 };
        self.zone = key.zone();
    }

    /// Whether it is of a protocol without ports and from an address to itself, so that both
    /// directions look alike.
    #[inline(always)]
    pub fn is_to_itself(&self) -> bool {
        self.ports == 0 && self.source == self.destination
    }

    /// Writes the flow's key; true if the source is its lower endpoint.
    #[inline(never)]
    fn write_key(&self, kind: u8, key: &mut FlowKey) -> bool {
        self.fill_key(kind, key)
    }

    /// [`Lookup::write_key`] where there is no room for another call: eight may be nested. It is true if
    /// the source is the key's lower endpoint.
    #[inline(always)]
    pub fn fill_key(&self, kind: u8, key: &mut FlowKey) -> bool {
        let (source_port, destination_port) = ((self.ports >> 16) as u16, self.ports as u16);
        let from_low = precedes(
            &self.source,
            source_port,
            &self.destination,
            destination_port,
        );
        let form = FlowKey::form_of(kind, self.family);
        key.rest = FlowKey::rest_of(self.protocol, form, self.zone);
        let (low, high) = if from_low {
            key.ports = FlowKey::ports_of(source_port, destination_port);
            (&self.source, &self.destination)
        } else {
            key.ports = FlowKey::ports_of(destination_port, source_port);
            (&self.destination, &self.source)
        };
        copy_address(&mut key.low, low, self.family);
        copy_address(&mut key.high, high, self.family);
        from_low
    }
}

/// Looking a flow up: the tuple asked for, and its key.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    /// The tuple.
    pub tuple: Tuple,
    /// Its key, of the kind looked up last.
    pub key: FlowKey,
    /// A flow was met that is cut ([`crate::abi::flow::Flow::REVOKED`]): [`Lookup::FORTH`] or
    /// [`Lookup::BACK`]; or one that the tuple does not belong to: [`Lookup::OTHERS`]. Whoever asks for
    /// it makes it 0 before.
    pub met: u32,
    /// How many packets in a row had a flow, up to [`Lookup::MANY`].
    found: MapCell<u32>,
    /// See [`Lookup::write_key`].
    cell: MapCell<u32>,
}

impl Lookup {
    /// The tuple is that of its opener.
    pub const FORTH: u32 = 1;
    /// The tuple is that of an answer.
    pub const BACK: u32 = 2;
    /// A translated flow has the tuple for a name, on the other side of the translation.
    pub const OTHERS: u32 = 3;
    /// So it is, and netfilter does not translate that flow any more ([`super::conntrack::stands_in`]).
    pub const STANDS_IN: u32 = 4;

    /// See [`Lookup::expects_flow`].
    const MANY: u32 = 8;

    /// Whether so many packets in a row had a flow that this one will, too: then there is no use in asking first
    /// whether there may be one ([`crate::abi::flow::Hint`]), which is a line of a cache more.
    #[inline(always)]
    pub(super) fn expects_flow(&self) -> bool {
        self.found.get() >= Self::MANY
    }

    /// Notes whether a packet has a flow.
    #[inline(always)]
    pub(super) fn note_found(&self, found: bool) {
        let before = self.found.get();
        if !found {
            self.found.set(0);
        } else if before < Self::MANY {
            self.found.set(before + 1);
        }
    }

    /// Whether the flow that was met is cut.
    #[inline(always)]
    pub fn is_cut(&self) -> bool {
        self.met == Self::FORTH || self.met == Self::BACK
    }

    /// Writes the tuple's key of a kind: [`Flow::LOW_OPENED`] if the tuple's source is the lower endpoint,
    /// else 0.
    #[inline(always)]
    pub fn write_key(&mut self, kind: u8) -> u32 {
        let from_low = self.tuple.write_key(kind, &mut self.key);
        self.opened(from_low)
    }

    /// The same for a key elsewhere.
    #[inline(always)]
    pub fn write_key_to(&self, kind: u8, key: &mut FlowKey) -> u32 {
        let from_low = self.tuple.write_key(kind, key);
        self.opened(from_low)
    }

    /// No constant to the verifier, which would explore all that follows for each of the two.
    #[inline(always)]
    fn opened(&self, from_low: bool) -> u32 {
        self.cell.set(from_low as u32 * Flow::LOW_OPENED);
        self.cell.get()
    }
}

/// Copies an address. Of IPv4's only what says something: words that were written one by one, and are read by two
/// at once a moment later, have to leave the processor's store buffer first.
#[inline(always)]
fn copy_address(to: &mut Addr, from: &Addr, family: Family) {
    if family as u8 == Family::V4 as u8 {
        *to = [from[0], 0, 0, 0];
    } else {
        *to = *from;
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
