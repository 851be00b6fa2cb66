//! Planning source translation: which address and port a new flow gets.
//!
//! Port choice follows netfilter's `nf_nat_l4proto_unique_tuple` (net/netfilter/nf_nat_core.c).
//! The reservation is the insertion of the alias itself, so there is nothing between checking a
//! port and taking it.

mod search;

pub use search::Choice;
pub(super) use search::PUSHED;
use search::{ATTEMPTS, ROUND, SPECIAL, Search, in_range};

use super::conntrack::{draft_flow, end_flow};
use super::header::{Headers, Icmp, protocol};
use super::packet::Packet;
use super::rewrite::is_piece_of_sctp;
use super::scratch::Scratch;
use super::sources::{link, look_for_source};
use super::stage::{Name, Stage};
use super::tables::{InsertError, Tables, Tier};
use super::transit::{SettleName, set_original};
use crate::abi::flow::{Flow, FlowKey, Hint};
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
        name(tables, scratch);
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

/// Gives the flow that the packet opens its name: the second one, if one that goes the other way bears the
/// first; and says whether one does. (It has a function of its own for the same reason as [`prepare`].)
#[inline(never)]
fn name<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let (headers, lookup, draft) = (&scratch.headers, &mut scratch.lookup, &mut scratch.draft);
    if scratch.tracked.ct & ct::DNAT != 0 {
        set_original(&mut lookup.tuple, headers, &scratch.tracked);
    } else {
        lookup.tuple.set(headers);
    }
    let opened = lookup.write_key_to(FlowKey::FIRST, &mut draft.key);
    draft.choice.opened = opened;
    draft.choice.taken = false;
    if !draft.wish.nat {
        return;
    }
    if is_taken(tables, &draft.key, &mut lookup.key, opened) {
        draft.choice.taken = true;
        draft.key.set_kind(FlowKey::SECOND);
        // Whoever bears that name, too, is over: alive, the packet would be its.
        clear_name(tables, &draft.key, &mut lookup.key);
    } else if Hint::may_have_kind(tables.hint(&draft.key), FlowKey::SECOND) {
        // Whoever had the first one when that one came may be gone.
        draft.key.set_kind(FlowKey::SECOND);
        draft.choice.taken = is_taken(tables, &draft.key, &mut lookup.key, opened);
        draft.key.set_kind(FlowKey::FIRST);
    }
}

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
    let opened = draft.choice.opened;
    let taken = draft.choice.taken;

    let own_port = (headers.flow_ports >> 16) as u16;
    let renamed = scratch.tracked.ct & ct::RENAMED != 0;
    let port = if renamed {
        scratch.tracked.identifier
    } else {
        own_port
    };
    // Of one port, none other can be drawn.
    let only = draft.wish.ports == (port as u32) << 16 | port as u32;
    let port_would_do = (!draft.wish.random || only) && draft.wish.takes_port(port);
    let keep_port = !has_port(headers) || port_would_do;
    let stays = keep_port && draft.wish.takes_address(&headers.key.source);
    if stays && !taken && !redirected {
        let (status, tier) = if draft.wish.embryo {
            (opened | Flow::EMBRYO, Tier::Early)
        } else {
            (opened, Tier::Confirmed)
        };
        draft.flow.status.set(status);
        return match begin(tables, draft, tier) {
            Ok(()) | Err(InsertError::Exists) => STORED,
            Err(InsertError::Full) => {
                scratch.reason = Stat::NoFlowEntry;
                REFUSED
            }
        };
    }
    let piece = is_piece_of_sctp(headers);
    if !is_translatable(headers) || piece && !port_would_do {
        scratch.reason = Stat::Rewrite;
        return REFUSED;
    }

    // Where the packet's own address and port would do, there is nothing to choose
    // (`get_unique_tuple` asks for the source's other flows only if not).
    let sources = &mut scratch.sources;
    let wanted = !(draft.wish.random || stays || renamed || piece);
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
    choice.kind = draft.key.kind();
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
    status |= Flow::transit_status(scratch.tracked.transit);
    draft.flow.status.set(status);
    draft.flow.nat_device = draft.wish.device;
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
fn is_taken<T: Tables>(tables: &T, key: &FlowKey, own: &mut FlowKey, opened: u32) -> bool {
    let Some(other) = tables.flow(key) else {
        return false;
    };
    let status = other.status.get();
    if status & Flow::ALIAS != 0 {
        return !clear_name(tables, key, own);
    }
    status & Flow::TRANSLATED != 0
        && status & Flow::DYING == 0
        && status & Flow::LOW_OPENED != opened
}

/// [`clear`] for a name that nothing may be pushed out of.
#[inline(never)]
fn clear_name<T: Tables>(tables: &T, key: &FlowKey, own: &mut FlowKey) -> bool {
    clear(tables, key, own, |_, _| false)
}

/// Removes what bears a name, if it is over, though nothing has removed it yet: a flow that a reset
/// has ended waits for that to leave, and its alias with it. `yields` says whether an alias of that
/// status, whose flow comes second, makes way though its flow is not over. `own` is room for the flow's
/// own key: a pointer to that in the alias would be another to the verifier for each table.
#[inline(always)]
fn clear<T: Tables>(
    tables: &T,
    key: &FlowKey,
    own: &mut FlowKey,
    yields: impl FnOnce(u32, &Flow) -> bool,
) -> bool {
    let Some(mut flow) = tables.flow(key) else {
        return true;
    };
    let status = flow.status.get();
    if status & Flow::ALIAS == 0 {
        own.set(key);
    } else {
        own.set(&flow.other);
        flow = match tables.flow(own) {
            Some(flow) => flow,
            None => {
                tables.remove_flow(key);
                return true;
            }
        };
    }
    let over = flow.status.get() & Flow::DYING != 0
        || flow.expires.get() < tables.now()
        || status & Flow::ALIAS != 0 && yields(status, flow);
    if over {
        end_flow(tables, own, flow);
    }
    over
}

/// Whether there is a port, or the identifier of a query, that could be another. Of other
/// protocols only the address changes, whatever the rule asks (`get_unique_tuple`).
#[inline(always)]
fn has_port(headers: &Headers) -> bool {
    let query = headers.icmp as u8 == Icmp::Request as u8;
    let has_ports = protocol::has_ports(headers.key.protocol as u8) && !is_piece_of_sctp(headers);
    query || has_ports || !is_translatable(headers)
}

/// Whether the packet is of a protocol that is translated.
#[inline(always)]
pub(super) fn is_translatable(headers: &Headers) -> bool {
    protocol::is_translatable(headers.key.protocol as u8)
}

/// Stores the draft of a flow that nothing translates: in the stead of a dying one under its key, if that
/// can be.
#[inline(always)]
fn begin<T: Tables>(tables: &T, draft: &Draft, tier: Tier) -> Result<(), InsertError> {
    let result = tables.insert_flow(&draft.key, &draft.flow, tier);
    if result == Err(InsertError::Exists)
        && let Some(old) = tables.flow(&draft.key)
        && old.status.get() & Flow::DYING != 0
    {
        if succeed(tables, draft, old.status.get(), tier) {
            return Ok(());
        }
        end_flow(tables, &draft.key, old);
        return tables.insert_flow(&draft.key, &draft.flow, tier);
    }
    result
}

/// Stores the draft in the stead of a dying flow of the confirmed tier, whose status that is, and as what
/// that was: an outsider's flow has no place there that no answered one had, but for the early ones.
#[inline(always)]
fn succeed<T: Tables>(tables: &T, draft: &Draft, old: u32, tier: Tier) -> bool {
    const UNLIKE: u32 = Flow::ALIAS | Flow::LISTED | Flow::TRANSLATED;
    const TIER: u32 = Flow::EMBRYO | Flow::EARLY;
    let new = draft.flow.status.get();
    if old & UNLIKE != 0 || old & TIER == Flow::EMBRYO {
        return false;
    }
    let stranger = matches!(tier, Tier::Early);
    let place = if stranger { old & TIER } else { 0 };
    draft.flow.status.set(new & !TIER | place);
    if tables.replace_flow(&draft.key, &draft.flow).is_err() {
        draft.flow.status.set(new);
        return false;
    }
    if old & Flow::EARLY != 0 && !stranger {
        tables.free_place(&draft.key);
    }
    true
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
