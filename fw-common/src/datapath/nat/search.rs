//! Trying ports, and taking the first that is free.

use core::ops::ControlFlow;

use super::{Draft, clear, has_port};
use crate::abi::Addr;
use crate::abi::flow::{Flow, FlowKey, Hint};
use crate::datapath::header::{Headers, Icmp, protocol};
use crate::datapath::tables::{Step, Tables, Tier};
use crate::datapath::tcp::{self, state};
use crate::datapath::tuple::Lookup;

/// How many ports of a range are tried, from a random place on: all of a small one, else so many,
/// and then half as many from another place, again and again (`nf_nat_l4proto_unique_tuple`).
pub(super) const ROUND: u32 = 128;

/// A smaller round is the last one.
const SMALLEST_ROUND: u32 = 16;

/// The sum of all rounds.
pub(super) const ATTEMPTS: u32 = 128 + 64 + 32 + 16 + 8;

/// For so many ports at a round's end, a TCP flow that is over makes way
/// (`NF_NAT_HARDER_THRESH`).
pub(in crate::datapath) const PUSHED: u32 = 32;

/// The ports that are tried before those of the range: the source's, and the packet's own.
pub(super) const SPECIAL: u32 = 2;

/// Choosing a port.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Choice {
    /// How many candidates there are, and the first.
    pub(super) count: u32,
    pub(super) low: u16,
    pub(super) port: u16,
    /// Offset of the next candidate in the range, from a random place.
    pub(super) offset: u32,
    /// An address and a port that are tried before all: the packet's own, or those of another flow
    /// of this source. They wait here and in `port`.
    pub(super) address: Addr,
    pub(super) at_once: bool,
    /// The packet's own.
    pub(super) own_address: Addr,
    pub(super) own_port: u16,
    /// The one to keep if it is free: the packet's own, or the identifier that an echo got with its
    /// destination.
    pub(super) kept_port: u16,
    /// Ports left in this round of tries, and in all of it.
    pub(super) left: u32,
    pub(super) round: u32,
    /// A TCP flow that is over makes way.
    pub(super) pushes: bool,
    /// The original port is tried before the range.
    pub(super) own_first: bool,
    /// [`Flow::LOW_OPENED`] or 0: the flow's.
    pub(super) opened: u32,
    /// Which of its names the flow bears, unless its alias needs that.
    pub(super) kind: u8,
    /// A flow that goes the other way bears one of them, so that the reply needs another.
    pub(super) taken: bool,
    /// The source may stay what it is, as the destination is translated.
    pub(super) may_stay: bool,
    pub(super) found: bool,
    /// The source becomes another.
    pub(super) changes: bool,
}

impl Choice {
    #[inline(always)]
    pub(super) fn set_candidates(&mut self, headers: &Headers, ports: u32, port: u16) {
        let query = headers.icmp as u8 == Icmp::Request as u8;
        (self.low, self.count) = if !has_port(headers) {
            // Nothing but the address can be changed: one try.
            (port, 1)
        } else if ports != 0 {
            let (first, last) = (ports as u16, (ports >> 16) as u16);
            (
                first,
                (last as u32).wrapping_sub(first as u32).wrapping_add(1),
            )
        } else if query {
            (0, 65_536)
        } else {
            // Privileged ports stay privileged (RFC 4787 REQ-3, RFC 6056 3.2).
            match port {
                0..512 => (1, 511),
                512..1024 => (600, 424),
                1024.. => (1024, 64_512),
            }
        };
    }
}

#[inline(always)]
pub(super) fn in_range(ports: u32, port: u16) -> bool {
    port >= ports as u16 && port <= (ports >> 16) as u16
}

/// The search; each candidate's name is stored to try it.
pub(super) struct Search<'a, T: Tables> {
    pub(super) tables: &'a T,
    pub(super) lookup: &'a mut Lookup,
    pub(super) draft: &'a mut Draft,
}

impl<T: Tables> Step for Search<'_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let choice = &mut self.draft.choice;
        let mut port = choice.kept_port;
        self.lookup.tuple.source = self.draft.wish.address;
        if turn == 0 {
            if !choice.at_once {
                return ControlFlow::Continue(());
            }
            self.lookup.tuple.source = choice.address;
            port = choice.port;
        } else if turn == 1 {
            if !choice.own_first {
                return ControlFlow::Continue(());
            }
        } else {
            if choice.left == 0 {
                if choice.round >= choice.count || choice.round < SMALLEST_ROUND {
                    return ControlFlow::Break(());
                }
                choice.round /= 2;
                choice.left = choice.round;
                choice.offset = self.tables.random();
            }
            choice.pushes = choice.left <= PUSHED;
            choice.left = choice.left.wrapping_sub(1);
            if choice.count == 0 {
                return ControlFlow::Break(());
            }
            let place = choice.offset % choice.count;
            choice.offset = place.wrapping_add(1);
            port = choice.low.wrapping_add(place as u16);
        }
        if self.reserve(port) {
            self.draft.choice.port = port;
            self.draft.choice.found = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

impl<T: Tables> Search<'_, T> {
    /// Stores the alias. A flow or an alias whose time is over, though nothing has removed it yet,
    /// makes way.
    #[inline(always)]
    fn insert_alias(&mut self) -> bool {
        let hint = self.tables.hint(&self.draft.alias);
        if Hint::may_have_kind(hint, FlowKey::SECOND) {
            self.draft.alias.set_kind(FlowKey::SECOND);
            // Whoever had the first name when that one came may be gone.
            if !self.leaves_room() && !self.make_way() {
                return false;
            }
            self.draft.alias.set_kind(FlowKey::FIRST);
        }
        if self.insert() || self.make_way() && self.insert() {
            return true;
        }
        // Who bears the name may do so in the other direction only.
        if !self.leaves_room() || self.draft.alias.is_between_those_of(&self.draft.key) {
            return false;
        }
        self.draft.alias.set_kind(FlowKey::SECOND);
        self.insert() || self.make_way() && self.insert()
    }

    /// Stores the alias, if its name is free. (Not inlined, so that its stack is not under that of what
    /// makes way, which is deep.)
    #[inline(never)]
    fn insert(&self) -> bool {
        let draft = &*self.draft;
        let tier = if draft.choice.changes || !draft.wish.embryo {
            Tier::Confirmed
        } else {
            Tier::Embryo
        };
        self.tables
            .insert_flow(&draft.alias, &draft.flow, tier)
            .is_ok()
    }

    /// Whether nothing that goes the alias's way belongs to what has its name.
    #[inline(never)]
    fn leaves_room(&self) -> bool {
        let Some(old) = self.tables.flow(&self.draft.alias) else {
            return true;
        };
        let (old, new) = (old.status.get(), self.draft.flow.status.get());
        let same_way = (old ^ new) & Flow::LOW_OPENED == 0;
        if old & Flow::ALIAS != 0 {
            !same_way
        } else {
            same_way && old & Flow::TRANSLATED != 0
        }
    }

    /// Removes what bears the alias's name, if it is over.
    #[inline(never)]
    fn make_way(&mut self) -> bool {
        let (draft, own) = (&*self.draft, &mut self.lookup.key);
        clear(self.tables, &draft.alias, own, |alias, flow| {
            pushes_out(draft, alias, flow)
        })
    }

    /// Takes the port if no other flow to the same place has it.
    #[inline(always)]
    fn reserve(&mut self, port: u16) -> bool {
        let choice = &mut self.draft.choice;
        let tuple = &mut self.lookup.tuple;
        choice.changes = port != choice.own_port || tuple.source != choice.own_address;
        if !choice.changes && !choice.may_stay {
            return false;
        }
        tuple.ports = (port as u32) << 16 | tuple.ports & 0xffff;
        let Draft {
            key,
            alias,
            flow,
            choice,
            ..
        } = &mut *self.draft;
        let opened = self.lookup.write_key_to(FlowKey::FIRST, alias);
        // Where both tuples of a flow are one, what comes after is an answer: netfilter finds the reply,
        // which it hashed last. So the alias comes first.
        let kind = if alias.is_between_those_of(key) {
            FlowKey::SECOND
        } else {
            choice.kind
        };
        key.set_kind(kind);
        flow.other.set_kind(kind);
        self.draft.flow.status.set(Flow::ALIAS | opened);
        // Flows of this host's own bear their names in the same tables: whichever comes first has
        // the port.
        self.insert_alias()
    }
}

/// Whether the new flow takes a port whose flow, under an alias of that status, only waits for its time
/// to end (`nf_nat_used_tuple_harder`).
#[inline(always)]
fn pushes_out(draft: &Draft, alias: u32, flow: &Flow) -> bool {
    let new = &draft.flow;
    let same_way = (alias ^ new.status.get()) & Flow::LOW_OPENED == 0;
    draft.choice.pushes
        && draft.key.protocol() == protocol::TCP
        && tcp::state_of(new) == state::SYN_SENT
        && same_way
        && tcp::makes_way(flow, new.sent[0].end.get())
}
