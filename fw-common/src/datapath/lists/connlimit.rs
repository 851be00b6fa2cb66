//! `connlimit`: how many connections of an address are open. Each rule keeps a list of its own, as
//! net/netfilter/nf_conncount.c does: by address, the names of the flows that the rule saw open. Whoever
//! asks for an address has those forgotten that are gone or closed, so that nothing need be told when
//! a flow ends.
//!
//! A packet's flow is added unless it is in the list already, or assured: those who use the list for packets
//! that open nothing would have it grow (`__nf_conncount_add` of 2026's kernels, stable series included).
//! A packet of an assured flow that finds none left for its address is dropped there as here (`connlimit_mt`
//! takes a count of zero for want of memory).

use core::ops::ControlFlow;

use super::{Asked, DROP, FAIL, HOLD, List};
use crate::MapCell;
use crate::abi::ct::status;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::list::{connlimit, entry, head};
use crate::datapath::conntrack::NO_FLOW;
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::{Step, Tables};
use crate::datapath::tcp::state;
use crate::datapath::tuple::Tuple;

/// Connections that an address may have: more are not looked at.
const CONNECTIONS: u32 = 1 << 16;

/// What is being counted.
#[derive(Clone, Debug, Default)]
pub struct Counting {
    /// What the opener of the packet's flow sends, the flow's name, and [`connlimit::FROM_LOW`] if the opener is
    /// its lower endpoint.
    tuple: Tuple,
    own: FlowKey,
    from_low: u32,
    /// The flow that is looked up, [`connlimit::FROM_LOW`] if its lower endpoint sends what is asked for,
    /// the one that it leads to if it is an alias, and what of it was found.
    other: FlowKey,
    other_from_low: u32,
    behind: FlowKey,
    found: MapCell<u32>,
    /// The address's entry.
    address: u32,
    /// The packet's flow is in the list, and stored.
    present: bool,
    /// The packet's flow, or the one whose name it bears though it does not belong to it, is assured.
    assured: bool,
}

/// Whether more connections are open than a rule says.
#[inline(always)]
pub(super) fn ask<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    name_flow(tables, scratch);
    let headers = &scratch.headers;
    let asked = &mut scratch.list;
    let address = if asked.flags & connlimit::DESTINATION != 0 {
        headers.key.destination
    } else {
        headers.key.source
    };
    let mut list = List { tables, asked };
    list.name(
        &address,
        headers.family as u32 | (headers.zone as u32) << 16,
    );
    list.find();
    let mut at = list.asked.found;
    list.asked.counting.present = false;
    list.asked.before = 0;
    let fresh = at == 0;
    if fresh {
        at = list.insert();
        if at == 0 {
            list.reclaim_connections();
            list.find();
            at = list.insert();
        }
        if at == 0 {
            return DROP;
        }
        list.set(at, connlimit::FIRST, 0);
        list.set(at, connlimit::COUNT, 0);
        list.asked.found = at;
        list.asked.before = 0;
    } else {
        list.touch(at);
        list.check_connections(at);
    }
    let counting = &list.asked.counting;
    let adds = fresh || !counting.assured && !counting.present;
    if adds && !list.add_connection(at) {
        return DROP;
    }
    let count = list.get(at, connlimit::COUNT);
    if count == 0 {
        return DROP;
    }
    let more = count > list.asked.hits;
    if more != list.asked.not { HOLD } else { FAIL }
}

/// Says what the flow of the packet is called; of one without, what the flow would be called that it opened
/// (`get_ct_or_tuple_from_skb`).
#[inline(never)]
fn name_flow<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let Scratch {
        headers,
        query,
        connection,
        list,
        ..
    } = scratch;
    let counting = &mut list.counting;
    let has_flow = query.direction < NO_FLOW && connection.is_known();
    if has_flow {
        connection.original(&mut counting.tuple);
        counting.tuple.family = headers.family;
        counting.tuple.zone = headers.zone;
        counting.assured = connection.status() & status::ASSURED != 0;
    } else {
        counting.tuple.set(headers);
    }
    let from_low = counting.tuple.fill_key(FlowKey::FIRST, &mut counting.own);
    counting.from_low = if from_low { connlimit::FROM_LOW } else { 0 };
    if !has_flow {
        counting.other.set(&counting.own);
        counting.other_from_low = counting.from_low;
        look(tables, list);
        list.counting.assured = list.counting.found.get() & ASSURED != 0;
    }
}

impl<T: Tables> List<'_, T> {
    /// Forgets an address's connections that are gone or closed. (Inlined, as eight calls may be nested.)
    #[inline(always)]
    fn check_connections(&mut self, at: u32) {
        let counting = &mut self.asked.counting;
        counting.address = at;
        self.asked.before = 0;
        self.asked.at = self.get(at, connlimit::FIRST);
        let tables = self.tables;
        tables.run(CONNECTIONS, &mut Check(self.again()));
    }

    /// Puts the packet's flow at the end of an address's list, behind the last one that was checked; false
    /// if there is no room.
    #[inline(always)]
    fn add_connection(&mut self, at: u32) -> bool {
        let mut node = self.take();
        if node == 0 {
            self.reclaim_connections();
            // Which one is the last.
            self.check_connections(at);
            node = self.take();
        }
        let last = self.asked.before;
        let (Some(cell), Some(address)) = (self.cell(node), self.cell(at)) else {
            return false;
        };
        if node == 0 {
            return false;
        }
        let own = &self.asked.counting.own;
        for word in 0..4 {
            cell[connlimit::LOW + word].set(own.low[word]);
            cell[connlimit::HIGH + word].set(own.high[word]);
        }
        cell[connlimit::PORTS].set((own.low_port() as u32) << 16 | own.high_port() as u32);
        let from_low = self.asked.counting.from_low;
        let rest = FlowKey::rest_of(own.protocol(), own.form() & FlowKey::V6, own.zone());
        cell[connlimit::REST].set(from_low | rest);
        cell[entry::STATE].set(0);
        cell[entry::NEXT].set(0);
        if last == 0 {
            address[connlimit::FIRST].set(node);
        } else {
            self.set(last, entry::NEXT, node);
        }
        address[connlimit::COUNT].set(address[connlimit::COUNT].get().wrapping_add(1));
        true
    }

    /// Looks at the address that was asked for longest ago, and forgets what is gone.
    #[inline(always)]
    fn reclaim_connections(&mut self) {
        let asked = self.asked.found;
        let oldest = self.get(0, head::OLDEST);
        if oldest == 0 {
            return;
        }
        self.check_connections(oldest);
        if oldest != asked && self.get(oldest, connlimit::FIRST) == 0 {
            self.remove(oldest);
        } else {
            self.touch(oldest);
        }
    }
}

/// Walks along an address's connections.
struct Check<'a, T: Tables>(List<'a, T>);

impl<T: Tables> Step for Check<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let list = &mut self.0;
        let at = list.asked.at;
        if at == 0 {
            return ControlFlow::Break(());
        }
        let Some(cell) = list.cell(at) else {
            return ControlFlow::Break(());
        };
        let next = cell[entry::NEXT].get();
        list.asked.at = next;
        let counting = &mut list.asked.counting;
        let other = &mut counting.other;
        for word in 0..4 {
            other.low[word] = cell[connlimit::LOW + word].get();
            other.high[word] = cell[connlimit::HIGH + word].get();
        }
        let ports = cell[connlimit::PORTS].get();
        let rest = cell[connlimit::REST].get();
        other.ports = FlowKey::ports_of((ports >> 16) as u16, ports as u16);
        let form = (rest >> 8) as u8 & FlowKey::V6;
        other.rest = FlowKey::rest_of(rest as u8, form, (rest >> 16) as u16);
        counting.other_from_low = rest & connlimit::FROM_LOW;
        let own = &counting.own;
        let same = other.low == own.low
            && other.high == own.high
            && other.ports == own.ports
            && other.protocol() == own.protocol()
            && rest & connlimit::FROM_LOW == counting.from_low;
        look(list.tables, list.asked);
        let counting = &mut list.asked.counting;
        let found = counting.found.get();
        if found != 0 && same && !counting.assured {
            // The search ends: what is behind it is not checked this time.
            counting.present = true;
            return ControlFlow::Break(());
        }
        if found & OPEN != 0 {
            list.asked.before = at;
            return ControlFlow::Continue(());
        }
        let (before, address) = (list.asked.before, list.asked.counting.address);
        if before == 0 {
            list.set(address, connlimit::FIRST, next);
        } else {
            list.set(before, entry::NEXT, next);
        }
        let count = list.get(address, connlimit::COUNT);
        list.set(address, connlimit::COUNT, count.wrapping_sub(1));
        list.give(at);
        ControlFlow::Continue(())
    }
}

/// A flow is there, and open.
const OPEN: u32 = 1;
/// It is there, and closed.
const CLOSED: u32 = 2;
/// It is assured.
const ASSURED: u32 = 4;

/// It is the alias of another.
const ALIAS: u32 = 8;

/// Notes what there is under a name: [`OPEN`] or [`CLOSED`] (`already_closed`), [`ASSURED`].
///
/// The answers go through memory, so that the verifier need not explore what follows once for each.
#[inline(never)]
fn look<T: Tables>(tables: &T, asked: &mut Asked) {
    let (counting, now) = (&mut asked.counting, asked.now);
    counting.found.set(0);
    look_for(tables, counting, FlowKey::FIRST, now);
    if counting.found.get() & OPEN == 0 {
        look_for(tables, counting, FlowKey::SECOND, now);
    }
}

#[inline(always)]
fn look_for<T: Tables>(tables: &T, counting: &mut Counting, kind: u8, now: u64) {
    counting.other.set_kind(kind);
    let from_low = counting.other_from_low != 0;
    let same_way = |flow: &Flow| (flow.status.get() & Flow::LOW_OPENED != 0) == from_low;
    if let Some(flow) = tables.flow(&counting.other) {
        // netfilter finds tuples, of which a translated connection has one under each name: its opener's
        // under its own, and its answers' under the alias.
        let to_itself = counting.other.is_to_itself();
        if flow.is_alias() {
            if same_way(flow) && !to_itself {
                return;
            }
            counting.behind.set(&flow.other);
            counting.found.set(counting.found.get() | ALIAS);
        } else if flow.status.get() & Flow::TRANSLATED == 0 || same_way(flow) || to_itself {
            let found = state_of(flow, now);
            counting.found.set(counting.found.get() | found);
        }
    }
    if counting.found.get() & ALIAS != 0 {
        let mut found = counting.found.get() & !ALIAS;
        if let Some(flow) = tables.flow(&counting.behind) {
            found |= state_of(flow, now);
        }
        counting.found.set(found);
    }
}

#[inline(always)]
fn state_of(flow: &Flow, now: u64) -> u32 {
    let bits = flow.status.get();
    if bits & (Flow::ALIAS | Flow::DYING) != 0 || flow.expires.get() < now {
        return 0;
    }
    let assured = if bits & Flow::ASSURED != 0 {
        ASSURED
    } else {
        0
    };
    // Other protocols have no such states.
    let state = flow.tcp.get() as u8;
    if state == state::TIME_WAIT || state == state::CLOSE {
        return assured | CLOSED;
    }
    assured | OPEN
}
