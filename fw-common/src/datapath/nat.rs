//! Planning source translation: which address and port a new flow gets.
//!
//! Port choice follows netfilter's `nf_nat_l4proto_unique_tuple` (net/netfilter/nf_nat_core.c).
//! The reservation is the insertion of the alias itself, so there is nothing between checking a
//! port and taking it.

use core::ops::ControlFlow;

use super::conntrack::{draft_flow, end_flow};
use super::header::{Headers, Icmp, protocol};
use super::packet::Packet;
use super::scratch::Scratch;
use super::sources::{link, look_for_source};
use super::stage::{Name, Stage};
use super::tables::{InsertError, Step, Tables, Tier};
use super::tcp::{self, state};
use super::transit::{SettleName, set_original};
use super::tuple::Lookup;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;
use crate::abi::{Addr, ct};

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
    /// The choice of a port.
    pub choice: Choice,
}

/// What the rules ask for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Wish {
    /// The address to take; the packet's own if no rule asked for another.
    pub address: Addr,
    /// The first of the addresses that would do as well, if the source has one of them.
    pub first: Addr,
    /// The last of them.
    pub last: Addr,
    /// Range of ports, packed; 0 for any.
    pub ports: u32,
    /// Interface whose address masquerades the flow, or 0.
    pub device: u32,
    /// Do not try the original port first.
    pub random: bool,
    /// The family has a nat table: reply tuples must be unique.
    pub nat: bool,
    /// An outsider opened the flow: it starts in the embryonic tier.
    pub embryo: bool,
}

impl Wish {
    /// Starts over, for a packet that has this source: it is to stay what it is. (Not inlined, and word
    /// by word: the stack of a hook's program is under all others.)
    #[inline(never)]
    pub fn begin(&mut self, source: &Addr, nat: bool, embryo: bool) {
        self.set_address(source);
        self.ports = 0;
        self.device = 0;
        self.random = false;
        self.nat = nat;
        self.embryo = embryo;
    }

    /// Takes this address and no other.
    #[inline(always)]
    pub fn set_address(&mut self, address: &Addr) {
        let [a, b, c, d] = *address;
        for place in [&mut self.address, &mut self.first, &mut self.last] {
            place[0] = a;
            place[1] = b;
            place[2] = c;
            place[3] = d;
        }
    }

    /// Whether there is no choice of addresses.
    #[inline(always)]
    pub fn has_one_address(&self) -> bool {
        self.first == self.last
    }

    /// Whether an address is among those that would do.
    #[inline(always)]
    pub fn takes_address(&self, address: &Addr) -> bool {
        !is_below(address, &self.first) && !is_below(&self.last, address)
    }

    /// Whether a port is in the range that is asked for.
    #[inline(always)]
    pub fn takes_port(&self, port: u16) -> bool {
        self.ports == 0 || in_range(self.ports, port)
    }
}

#[inline(always)]
fn is_below(one: &Addr, other: &Addr) -> bool {
    let mut word = 0;
    while word < 4 {
        if one[word] != other[word] {
            return one[word] < other[word];
        }
        word += 1;
    }
    false
}

/// Stores the flow that a packet opens, with its translation if it has one. Whether the packet is
/// being forwarded.
#[inline(always)]
pub fn open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    forwarded: bool,
) -> Result<(), Stat> {
    if packet.call::<Open, T>(tables, scratch, 0) == 0 {
        return Err(scratch.reason);
    }
    if forwarded
        && scratch.tracked.ct & ct::DNAT != 0
        && packet.call::<SettleName, T>(tables, scratch, 0) == 0
    {
        return Err(Stat::NoTransitName);
    }
    Ok(())
}

/// The stage of [`open`]: its result is 0 if [`Scratch::reason`] forbids it.
pub struct Open;

impl Stage for Open {
    const NAME: Name = Name::Open;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, _: u32) -> u32 {
        match prepare(packet, tables, scratch) {
            SEARCH => {}
            result => return result,
        }
        let (lookup, draft) = (&mut scratch.lookup, &mut scratch.draft);
        tables.run(
            SPECIAL + ATTEMPTS,
            &mut Search {
                tables,
                lookup,
                draft,
            },
        );
        store(tables, scratch)
    }
}

/// Results of [`Open`]: the flow is not stored, and [`Scratch::reason`] says why.
const REFUSED: u32 = 0;
/// It is.
const STORED: u32 = 1;
/// Its name for the far side must be searched for.
const SEARCH: u32 = 2;

/// Stores a flow that nothing translates, or prepares the search for what it becomes. (The search
/// ends at the bottom of the stack, so that what is before it has a function of its own.)
///
/// Even a flow that no rule translates may need another port: its reply tuple may be in use by a
/// translated flow, as either of that flow's names (netfilter's null binding,
/// `nf_nat_alloc_null_binding`).
#[inline(never)]
fn prepare<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> u32 {
    draft_flow(packet, tables, scratch);
    let (headers, lookup, draft) = (&scratch.headers, &mut scratch.lookup, &mut scratch.draft);
    let redirected = scratch.tracked.ct & ct::DNAT != 0;
    if redirected {
        set_original(&mut lookup.tuple, headers, &scratch.tracked);
    } else {
        lookup.tuple.set(headers);
    }
    let from_low = lookup.tuple.write_key(FlowKey::FIRST, &mut draft.key);
    let opened = if from_low { Flow::LOW_OPENED } else { 0 };
    let second = draft.wish.nat && is_taken(tables, &draft.key, opened);
    if second {
        draft.key.kind = FlowKey::SECOND;
        // Whoever bears that name, too, is over: alive, the packet would be its.
        clear_name(tables, &draft.key);
    }

    let own_port = (headers.flow_ports >> 16) as u16;
    let renamed = scratch.tracked.ct & ct::RENAMED != 0;
    let port = if renamed {
        scratch.tracked.identifier
    } else {
        own_port
    };
    let keep_port = !has_port(headers) || !draft.wish.random && draft.wish.takes_port(port);
    let stays = keep_port && draft.wish.takes_address(&headers.key.source);
    if stays && !second && !redirected {
        let (status, tier) = if draft.wish.embryo {
            (opened | Flow::EMBRYO, Tier::Embryo)
        } else {
            (opened, Tier::Confirmed)
        };
        draft.flow.status.set(status);
        return match insert(tables, draft, tier) {
            Ok(()) | Err(InsertError::Exists) => STORED,
            Err(InsertError::Full) => {
                scratch.reason = Stat::NoFlowEntry;
                REFUSED
            }
        };
    }
    if !is_translatable(headers) {
        scratch.reason = Stat::Rewrite;
        return REFUSED;
    }

    // Where the packet's own address and port would do, there is nothing to choose
    // (`get_unique_tuple` asks for the source's other flows only if not).
    let sources = &mut scratch.sources;
    let wanted = !(draft.wish.random || stays || renamed);
    look_for_source(tables, headers, draft, sources, wanted);
    let choice = &mut draft.choice;
    choice.set_candidates(headers, draft.wish.ports, port);
    choice.offset = tables.random();
    choice.round = choice.count.min(ROUND);
    choice.left = choice.round;
    choice.pushes = false;
    choice.at_once = stays || sources.found;
    choice.address = if stays {
        headers.key.source
    } else {
        sources.address
    };
    choice.port = if stays { port } else { sources.port };
    choice.own_address = headers.key.source;
    choice.own_port = own_port;
    choice.kept_port = port;
    choice.own_first = keep_port;
    choice.may_stay = redirected;
    choice.found = false;
    choice.opened = opened;
    draft.flow.other = draft.key;
    // What the far side will see; each candidate fills in its source.
    lookup.tuple.destination = headers.key.destination;
    lookup.tuple.ports = headers.flow_ports;
    SEARCH
}

/// Stores a flow whose alias is stored.
#[inline(never)]
fn store<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    let (lookup, draft) = (&mut scratch.lookup, &mut scratch.draft);
    if !draft.choice.found {
        scratch.reason = Stat::NoFreePort;
        return REFUSED;
    }
    draft.flow.other = draft.alias;
    let mut status = draft.choice.opened;
    if draft.flow.status.get() & Flow::LOW_OPENED != 0 {
        status |= Flow::OTHER_LOW;
    }
    if scratch.tracked.ct & ct::DNAT != 0 {
        status |= Flow::DNAT;
    }
    let mut tier = Tier::Confirmed;
    if draft.choice.changes {
        status |= Flow::SNAT;
        // What POSTROUTING changes besides is the source's.
        if scratch.tracked.ct & ct::RENAMED != 0
            && draft.choice.port == draft.choice.kept_port
            && lookup.tuple.source == draft.choice.own_address
        {
            status |= Flow::RENAMED;
        }
        let own = draft.choice.port == draft.choice.own_port && draft.wish.has_one_address();
        if !own || scratch.sources.has_list() {
            status |= Flow::LISTED;
        }
    } else if draft.wish.embryo {
        status |= Flow::EMBRYO;
        tier = Tier::Embryo;
    }
    draft.flow.status.set(status);
    draft.flow.nat_source = lookup.tuple.source;
    draft.flow.nat_port = draft.choice.port;
    draft.flow.nat_device = draft.wish.device;
    draft.flow.transit = scratch.tracked.transit as u16;
    match insert(tables, draft, tier) {
        Ok(()) => {
            if draft.flow.status.get() & Flow::LISTED != 0 {
                link(tables, draft, &mut scratch.sources);
            }
            STORED
        }
        Err(error) => {
            tables.remove_flow(&draft.alias);
            match error {
                // The flow's next packet was faster, on another CPU: it has a translation.
                InsertError::Exists => STORED,
                InsertError::Full => {
                    scratch.reason = Stat::NoFlowEntry;
                    REFUSED
                }
            }
        }
    }
}

/// Whether a flow that goes the other way bears the name: it is translated, or an alias. One that is
/// over makes way.
#[inline(always)]
fn is_taken<T: Tables>(tables: &T, key: &FlowKey, opened: u32) -> bool {
    let Some(other) = tables.flow(key) else {
        return false;
    };
    let status = other.status.get();
    if status & Flow::ALIAS != 0 {
        return !clear_name(tables, key);
    }
    status & Flow::TRANSLATED != 0
        && status & Flow::DYING == 0
        && status & Flow::LOW_OPENED != opened
}

/// [`clear`] for a name that nothing may be pushed out of.
#[inline(never)]
fn clear_name<T: Tables>(tables: &T, key: &FlowKey) -> bool {
    clear(tables, key, |_, _| false)
}

/// Removes what bears a name, if it is over, though nothing has removed it yet: a flow that a reset
/// has ended waits for that to leave, and its alias with it. `yields` says whether an alias, whose
/// flow comes second, makes way though its flow is not over.
#[inline(always)]
fn clear<T: Tables>(tables: &T, key: &FlowKey, yields: impl FnOnce(&Flow, &Flow) -> bool) -> bool {
    let Some(old) = tables.flow(key) else {
        return true;
    };
    let (key, flow) = if old.is_alias() {
        match tables.flow(&old.other) {
            Some(flow) => (&old.other, flow),
            None => {
                tables.remove_flow(key);
                return true;
            }
        }
    } else {
        (key, old)
    };
    let over = flow.status.get() & Flow::DYING != 0
        || flow.expires.get() < tables.now()
        || old.is_alias() && yields(old, flow);
    if over {
        end_flow(tables, key, flow);
    }
    over
}

/// Whether there is a port, or the identifier of a query, that could be another. Of other
/// protocols only the address changes, whatever the rule asks (`get_unique_tuple`).
#[inline(always)]
fn has_port(headers: &Headers) -> bool {
    let query = headers.icmp as u8 == Icmp::Request as u8;
    let has_ports = matches!(headers.key.protocol as u8, protocol::TCP | protocol::UDP);
    query || has_ports || !is_translatable(headers)
}

/// The checksums of these cover the addresses, and SCTP's is a CRC that no helper updates.
#[inline(always)]
pub(super) fn is_translatable(headers: &Headers) -> bool {
    !matches!(
        headers.key.protocol as u8,
        protocol::SCTP | protocol::DCCP | protocol::UDPLITE
    )
}

/// Stores the draft; a dying flow under its key makes way.
#[inline(always)]
fn insert<T: Tables>(tables: &T, draft: &Draft, tier: Tier) -> Result<(), InsertError> {
    let result = tables.insert_flow(&draft.key, &draft.flow, tier);
    if result == Err(InsertError::Exists)
        && let Some(old) = tables.flow(&draft.key)
        && old.status.get() & Flow::DYING != 0
    {
        end_flow(tables, &draft.key, old);
        return tables.insert_flow(&draft.key, &draft.flow, tier);
    }
    result
}

/// How many ports of a range are tried, from a random place on: all of a small one, else so many,
/// and then half as many from another place, again and again (`nf_nat_l4proto_unique_tuple`).
const ROUND: u32 = 128;

/// A smaller round is the last one.
const SMALLEST_ROUND: u32 = 16;

/// The sum of all rounds.
const ATTEMPTS: u32 = 128 + 64 + 32 + 16 + 8;

/// For so many ports at a round's end, a TCP flow that is over makes way
/// (`NF_NAT_HARDER_THRESH`).
pub(super) const PUSHED: u32 = 32;

/// The ports that are tried before those of the range: the source's, and the packet's own.
const SPECIAL: u32 = 2;

/// Choosing a port.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Choice {
    /// How many candidates there are, and the first.
    count: u32,
    low: u16,
    port: u16,
    /// Offset of the next candidate in the range, from a random place.
    offset: u32,
    /// An address and a port that are tried before all: the packet's own, or those of another flow
    /// of this source. They wait here and in `port`.
    address: Addr,
    at_once: bool,
    /// The packet's own.
    own_address: Addr,
    own_port: u16,
    /// The one to keep if it is free: the packet's own, or the identifier that an echo got with its
    /// destination.
    kept_port: u16,
    /// Ports left in this round of tries, and in all of it.
    left: u32,
    round: u32,
    /// A TCP flow that is over makes way.
    pushes: bool,
    /// The original port is tried before the range.
    own_first: bool,
    /// [`Flow::LOW_OPENED`] or 0: the flow's.
    opened: u32,
    /// The source may stay what it is, as the destination is translated.
    may_stay: bool,
    found: bool,
    /// The source becomes another.
    changes: bool,
}

impl Choice {
    #[inline(always)]
    fn set_candidates(&mut self, headers: &Headers, ports: u32, port: u16) {
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
fn in_range(ports: u32, port: u16) -> bool {
    port >= ports as u16 && port <= (ports >> 16) as u16
}

struct Search<'a, T: Tables> {
    tables: &'a T,
    lookup: &'a mut Lookup,
    draft: &'a mut Draft,
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
        if self.insert() || self.make_way() && self.insert() {
            return true;
        }
        // Who bears the name may do so in the other direction only.
        if !self.leaves_room() {
            return false;
        }
        self.draft.alias.kind = FlowKey::SECOND;
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
            return false;
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
    fn make_way(&self) -> bool {
        clear(self.tables, &self.draft.alias, |alias, flow| {
            self.pushes_out(alias, flow)
        })
    }

    /// Whether the new flow takes a port whose flow only waits for its time to end
    /// (`nf_nat_used_tuple_harder`).
    #[inline(always)]
    fn pushes_out(&self, alias: &Flow, flow: &Flow) -> bool {
        let new = &self.draft.flow;
        let same_way = (alias.status.get() ^ new.status.get()) & Flow::LOW_OPENED == 0;
        self.draft.choice.pushes
            && self.draft.key.protocol == protocol::TCP
            && tcp::state_of(new) == state::SYN_SENT
            && same_way
            && tcp::makes_way(flow, new.sent[0].end.get())
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
        let from_low = tuple.write_key(FlowKey::FIRST, &mut self.draft.alias);
        let opened = if from_low { Flow::LOW_OPENED } else { 0 };
        self.draft.flow.status.set(Flow::ALIAS | opened);
        // Flows of this host's own bear their names in the same tables: whichever comes first has
        // the port.
        self.insert_alias()
    }
}
