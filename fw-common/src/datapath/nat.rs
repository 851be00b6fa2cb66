//! Planning source translation: which address and port a new flow gets.
//!
//! Port choice follows netfilter's `nf_nat_l4proto_unique_tuple` (net/netfilter/nf_nat_core.c).
//! The reservation is the insertion of the alias itself, so there is nothing between checking a
//! port and taking it.

use core::ops::ControlFlow;

use super::conntrack::{Tracked, Tuple, end_flow, new_flow};
use super::header::{Headers, Icmp, protocol};
use super::packet::Packet;
use super::tables::{InsertError, Step, Tables, Tier};
use crate::abi::Addr;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;

/// What a packet's way needs room for. Too large for the BPF stack, so the caller lends it.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// The packet's headers.
    pub headers: Headers,
    /// The packet's place in its flow. The stage that finds it is a function of its own and leaves
    /// it here, so that the verifier explores what follows once, not once for every way to get
    /// here.
    pub tracked: Tracked,
    /// The flow that it opens.
    pub draft: Draft,
}

/// Where a flow is built before it is stored.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Draft {
    /// The flow.
    pub flow: Flow,
    /// Its key.
    pub key: FlowKey,
    /// Its alias's key, if it is translated.
    pub alias: FlowKey,
    /// What is asked for.
    pub wish: Wish,
}

/// What the rules ask for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Wish {
    /// The source address to take; the packet's own if no rule asked for another.
    pub address: Addr,
    /// Range of ports, packed; 0 for any.
    pub ports: u32,
    /// Interface that the flow leaves by.
    pub device: u32,
    /// Do not try the original port first.
    pub random: bool,
    /// The family has a nat table: reply tuples must be unique.
    pub nat: bool,
    /// An outsider opened the flow: it starts in the embryonic tier.
    pub embryo: bool,
}

/// Stores the flow that a packet opens, with its translation if it has one.
///
/// Even a flow that no rule translates may need another port: its reply tuple may be in use by a
/// translated flow (netfilter's null binding).
#[inline(never)]
pub fn open<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    headers: &Headers,
    draft: &mut Draft,
) -> Result<(), Stat> {
    let wish = draft.wish;
    let tuple = Tuple::of(headers);
    let (key, from_low) = tuple.key(FlowKey::PRIMARY);
    draft.key = key;
    new_flow(packet, tables, generation, headers, &mut draft.flow);
    let opened = if from_low { Flow::LOW_OPENED } else { 0 };

    let port = (headers.flow_ports >> 16) as u16;
    let stays = wish.address == headers.key.source;
    let keep_port = !wish.random && (wish.ports == 0 || in_range(wish.ports, port));
    if stays && keep_port && (!wish.nat || tables.flow(&tuple.key(FlowKey::ALIAS).0).is_none()) {
        let (status, tier) = if wish.embryo {
            (opened | Flow::EMBRYO, Tier::Embryo)
        } else {
            (opened, Tier::Confirmed)
        };
        draft.flow.status.set(status);
        return match insert(tables, draft, tier) {
            Ok(()) | Err(InsertError::Exists) => Ok(()),
            Err(InsertError::Full) => Err(Stat::NoFlowEntry),
        };
    }

    draft.flow.other = draft.key;
    let (low, count) = candidates(headers, wish.ports, port);
    let mut search = Search {
        tables,
        headers,
        draft,
        address: wish.address,
        low,
        count,
        offset: tables.random(),
        port: 0,
        own_port: port,
        own_first: keep_port && !stays,
        stays,
        found: false,
    };
    tables.run(ATTEMPTS, &mut search);
    let (found, port) = (search.found, search.port);
    if !found {
        return Err(Stat::NoFreePort);
    }

    draft.flow.other = draft.alias;
    draft.flow.status.set(opened | Flow::SNAT);
    draft.flow.nat_source = wish.address;
    draft.flow.nat_port = port;
    draft.flow.nat_device = wish.device;
    match insert(tables, draft, Tier::Confirmed) {
        Ok(()) => Ok(()),
        Err(error) => {
            tables.remove_flow(&draft.alias);
            match error {
                // The flow's next packet was faster, on another CPU: it has a translation.
                InsertError::Exists => Ok(()),
                InsertError::Full => Err(Stat::NoFlowEntry),
            }
        }
    }
}

/// Stores the draft; a dying flow under its key makes way.
#[inline(always)]
fn insert<T: Tables>(tables: &T, draft: &Draft, tier: Tier) -> Result<(), InsertError> {
    let result = tables.insert_flow(&draft.key, &draft.flow, tier);
    if result == Err(InsertError::Exists) {
        if let Some(old) = tables.flow(&draft.key) {
            if old.status.get() & Flow::DYING != 0 {
                end_flow(tables, &draft.key, old);
                return tables.insert_flow(&draft.key, &draft.flow, tier);
            }
        }
    }
    result
}

/// As many as netfilter tries at first (`NF_NAT_MAX_ATTEMPTS`), and it gives up when they fail on
/// a range of that size; trying more hardly ever helps on a larger one.
const ATTEMPTS: u32 = 128;

/// The first candidate and how many there are.
#[inline(always)]
fn candidates(headers: &Headers, ports: u32, port: u16) -> (u16, u32) {
    let has_ports = matches!(headers.key.protocol as u8, protocol::TCP | protocol::UDP);
    if ports != 0 && (has_ports || headers.icmp as u8 == Icmp::Request as u8) {
        let (first, last) = (ports as u16, (ports >> 16) as u16);
        return (
            first,
            (last as u32).wrapping_sub(first as u32).wrapping_add(1),
        );
    }
    if headers.icmp as u8 == Icmp::Request as u8 {
        return (0, 65_536);
    }
    if !has_ports {
        // Nothing but the address can be changed: one try.
        return (port, 1);
    }
    // Privileged ports stay privileged (RFC 4787 REQ-3, RFC 6056 3.2).
    match port {
        0..512 => (1, 511),
        512..1024 => (600, 424),
        1024.. => (1024, 64_512),
    }
}

#[inline(always)]
fn in_range(ports: u32, port: u16) -> bool {
    port >= ports as u16 && port <= (ports >> 16) as u16
}

struct Search<'a, T: Tables> {
    tables: &'a T,
    headers: &'a Headers,
    draft: &'a mut Draft,
    address: Addr,
    low: u16,
    count: u32,
    /// Offset of the next candidate in the range, from a random place.
    offset: u32,
    port: u16,
    own_port: u16,
    /// The original port is tried before the range.
    own_first: bool,
    /// The address stays the packet's own: only the port changes.
    stays: bool,
    found: bool,
}

impl<T: Tables> Step for Search<'_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let own = self.own_first && turn == 0;
        if turn > self.count {
            return ControlFlow::Break(());
        }
        let mut port = self.own_port;
        if !own && self.count != 0 {
            let place = self.offset % self.count;
            self.offset = place.wrapping_add(1);
            port = self.low.wrapping_add(place as u16);
        }
        if self.reserve(port) {
            self.port = port;
            self.found = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

impl<T: Tables> Search<'_, T> {
    /// Takes the port if no other flow to the same place has it.
    #[inline(always)]
    fn reserve(&mut self, port: u16) -> bool {
        if self.stays && port == self.own_port {
            return false;
        }
        let outside = Tuple {
            source: self.address,
            destination: self.headers.key.destination,
            ports: (port as u32) << 16 | self.headers.flow_ports & 0xffff,
            protocol: self.headers.key.protocol as u8,
            family: self.headers.family,
        };
        let (mut key, from_low) = outside.key(FlowKey::ALIAS);
        self.draft
            .flow
            .status
            .set(if from_low { Flow::LOW_OPENED } else { 0 });
        self.draft.alias = key;
        if self
            .tables
            .insert_flow(&self.draft.alias, &self.draft.flow, Tier::Confirmed)
            .is_err()
        {
            return false;
        }
        // A flow of this host's own may have the port already. It looks for our alias after it
        // stored itself, as we look for it after we stored ours: one of the two sees the other.
        key.kind = FlowKey::PRIMARY;
        if let Some(flow) = self.tables.flow(&key) {
            if flow.expires.get() >= self.tables.now() {
                self.tables.remove_flow(&self.draft.alias);
                return false;
            }
        }
        true
    }
}
