//! `connlimit`: how many connections of an address are open. Each rule keeps a list of its own, as
//! net/netfilter/nf_conncount.c does: by address, the names of the flows that the rule saw open. Whoever
//! asks for an address has those forgotten that are gone or closed, so that nothing need be told when
//! a flow ends.
//!
//! As Linux does since the end of 2025 (6.19, and kept up in stable series), only packets of flows that are
//! not stored yet are added, on loopback also others, or those that meet an address nobody has asked for. A
//! packet of another flow that finds none left for its address is dropped there as here (`connlimit_mt`
//! takes a count of zero for want of memory).

use core::ops::ControlFlow;

use super::{DROP, FAIL, HOLD, List};
use crate::abi::ct::status;
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::list::{connlimit, entry, head};
use crate::datapath::conntrack::NO_FLOW;
use crate::datapath::header::protocol;
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::{Step, Tables};
use crate::datapath::tcp::state;
use crate::datapath::tuple::Tuple;

/// Connections that an address may have: more are not looked at.
const CONNECTIONS: u32 = 1 << 16;
/// How many addresses are looked at for flows that are gone, where there is no room.
const RECLAIMED: u32 = 4;

/// What is being counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting {
    /// What the opener of the packet's flow sends, and the flow's name.
    tuple: Tuple,
    own: FlowKey,
    /// The flow that is looked up.
    other: FlowKey,
    /// The address's entry.
    address: u32,
    /// The packet's flow is in the list.
    present: bool,
    /// It is stored.
    stored: bool,
    /// The packet came by loopback, where flows are stored before INPUT sees their first packet.
    looping: bool,
}

/// Whether more connections are open than a rule says.
#[inline(always)]
pub(super) fn ask<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    name_flow(tables, scratch);
    let looping = scratch.device.flags & Device::LOOPBACK != 0 && !scratch.made_here;
    let headers = &scratch.headers;
    let asked = &mut scratch.list;
    asked.counting.looping = looping;
    let adds = looping || !asked.counting.stored;
    let address = if asked.flags & connlimit::DESTINATION != 0 {
        headers.key.destination
    } else {
        headers.key.source
    };
    let mut list = List { tables, asked };
    list.name(&address, headers.family as u32);
    list.find();
    let mut at = list.asked.found;
    let fresh = at == 0;
    list.asked.counting.present = false;
    list.asked.before = 0;
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
    if (fresh || adds) && !list.asked.counting.present && !list.add_connection(at) {
        return DROP;
    }
    let count = list.get(at, connlimit::COUNT);
    if count == 0 {
        return DROP;
    }
    let more = count > list.asked.hits;
    if more != list.asked.not { HOLD } else { FAIL }
}

/// Finds what the flow of the packet is called. A packet without one may bear another's name: it is
/// INVALID then (`get_ct_or_tuple_from_skb`).
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
        counting.stored = connection.status() & status::CONFIRMED != 0;
    } else {
        counting.tuple.set(headers);
    }
    counting.tuple.fill_key(FlowKey::SECOND, &mut counting.own);
    let second = !has_flow && tables.flow(&counting.own).is_some();
    counting.own.kind = FlowKey::FIRST;
    if !has_flow {
        counting.stored = second || tables.flow(&counting.own).is_some();
    }
}

impl<T: Tables> List<'_, T> {
    /// Forgets an address's connections that are gone or closed.
    #[inline(never)]
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
        cell[connlimit::PORTS].set((own.low_port as u32) << 16 | own.high_port as u32);
        cell[connlimit::REST].set((own.family as u32) << 8 | own.protocol as u32);
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

    /// Looks at the addresses that were asked for longest ago, and forgets what is gone.
    #[inline(always)]
    fn reclaim_connections(&mut self) {
        let asked = self.asked.found;
        for _ in 0..RECLAIMED {
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
        other.low_port = (ports >> 16) as u16;
        other.high_port = ports as u16;
        other.protocol = rest as u8;
        other.family = (rest >> 8) as u8;
        other.kind = FlowKey::FIRST;
        other.reserved = 0;
        let own = &counting.own;
        let same = other.low == own.low
            && other.high == own.high
            && other.low_port == own.low_port
            && other.high_port == own.high_port
            && other.protocol == own.protocol;
        if same && counting.looping && counting.stored {
            // The search ends: what is behind it is not checked this time.
            counting.present = true;
            return ControlFlow::Break(());
        }
        let mut stays = same && !counting.stored;
        if !stays {
            let (tables, now) = (list.tables, list.asked.now);
            stays = is_open(tables, &list.asked.counting.other, now);
            if !stays {
                list.asked.counting.other.kind = FlowKey::SECOND;
                stays = is_open(tables, &list.asked.counting.other, now);
            }
        }
        if stays {
            list.asked.counting.present |= same;
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

/// Whether a flow is there, and not closed (`already_closed`).
#[inline(always)]
fn is_open<T: Tables>(tables: &T, key: &FlowKey, now: u64) -> bool {
    let Some(flow) = tables.flow(key) else {
        return false;
    };
    let status = flow.status.get();
    if status & (Flow::ALIAS | Flow::DYING) != 0 || flow.expires.get() < now {
        return false;
    }
    let state = flow.tcp.get() as u8;
    key.protocol != protocol::TCP || state != state::TIME_WAIT && state != state::CLOSE
}
