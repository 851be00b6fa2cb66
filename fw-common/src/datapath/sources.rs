//! Which translations a source has: a new flow of it takes one of those that its other flows have,
//! the newest first (`find_appropriate_src`, net/netfilter/nf_nat_core.c).
//!
//! As long as every flow of a source kept its port, trying the own port first comes to the same. So
//! a source's list begins with the first flow that got another port; each later one is put in
//! front, and [`super::conntrack::end_flow`] takes it out.
//!
//! The list lies in the flow tables. A record under the source's name ([`FlowKey::SOURCE`]) leads to
//! the newest flow; the alias of each flow holds links to the next older and the next newer one.
//! Nothing is locked: two flows of one source that begin or end at the same moment on two CPUs may
//! cost the list some of its members, never more. Every link is checked when it is followed.

use core::ops::ControlFlow;

use super::header::Headers;
use super::nat::{Draft, Wish};
use super::tables::{Step, Tables, Tier};
use super::transit;
use super::tuple::Tuple;
use crate::MapCell;
use crate::abi::Addr;
use crate::abi::flow::{Flow, FlowKey, Sent};

/// A flow of a source that is known: where the flow goes.
///
/// Aligned, as LLVM zeroes it by words of eight bytes even where the stack aligns it by four, which
/// the verifier refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Link {
    destination: Addr,
    /// The destination's port, the kind of the flow's key above it, and [`Link::PRESENT`]; zero for
    /// no flow.
    word: u32,
}

impl Link {
    const PRESENT: u32 = 1 << 31;

    #[inline(always)]
    fn clear(&mut self) {
        self.destination = zeroes();
        self.word = self.destination[0];
    }

    #[inline(always)]
    fn is_some(&self) -> bool {
        self.word & Self::PRESENT != 0
    }

    #[inline(always)]
    fn set(&mut self, destination: &Addr, port: u16, kind: u8) {
        self.destination = *destination;
        self.word = Self::word(port, kind);
    }

    #[inline(always)]
    fn word(port: u16, kind: u8) -> u32 {
        Self::PRESENT | (kind as u32) << 16 | port as u32
    }

    #[inline(always)]
    fn take(&mut self, cells: &Sent) {
        self.destination = [
            cells.end.get(),
            cells.max_end.get(),
            cells.max_window.get(),
            cells.max_ack.get(),
        ];
        self.word = cells.flags.get();
    }

    #[inline(always)]
    fn put(&self, cells: &Sent) {
        cells.end.set(self.destination[0]);
        cells.max_end.set(self.destination[1]);
        cells.max_window.set(self.destination[2]);
        cells.max_ack.set(self.destination[3]);
        cells.flags.set(self.word);
    }
}

/// Zeroes that LLVM does not know for such: it would call `memset`, which the verifier follows byte
/// by byte.
#[inline(always)]
fn zeroes() -> Addr {
    let zero = MapCell::new(0).get();
    [zero, zero, zero, zero]
}

/// In the record of a source, [`Flow::sent`]: its newest flow. In an alias: the next older flow.
const OLDER: usize = 0;
/// In an alias: the next newer flow.
const NEWER: usize = 1;

/// A flow of a source.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Place {
    /// The source, and the flow's destination.
    tuple: Tuple,
    /// The flow's key, or the source's name.
    key: FlowKey,
    /// The flow's alias.
    alias: FlowKey,
}

impl Place {
    /// Sets the key to the source's name: it is the lower endpoint, whatever the addresses.
    #[inline(always)]
    fn name_source(&mut self) {
        self.key = FlowKey {
            low: self.tuple.source,
            high: zeroes(),
            ports: FlowKey::ports_of((self.tuple.ports >> 16) as u16, 0),
            rest: FlowKey::rest_of(
                self.tuple.protocol,
                FlowKey::form_of(FlowKey::SOURCE, self.tuple.family),
                self.tuple.zone,
            ),
        };
    }
}

/// Room for a source's list.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Sources {
    place: Place,
    /// The source's newest flow.
    newest: Link,
    /// The flow in hand.
    at: Link,
    /// No flow.
    none: Link,
    /// The translated source of the flow that was found.
    pub address: Addr,
    /// See `address`.
    pub port: u16,
    /// Such a flow was found.
    pub found: bool,
}

/// How many flows of a source are looked at for a translation that fits; netfilter looks at all.
const WALK: u32 = 64;

/// Reads where the list of the packet's source begins; if wanted, looks for the newest flow in it
/// whose translation is what the draft wishes.
#[inline(never)]
pub fn look_for_source<T: Tables>(
    tables: &T,
    headers: &Headers,
    draft: &Draft,
    sources: &mut Sources,
    wanted: bool,
) {
    sources.found = false;
    sources.place.tuple.set(headers);
    sources.place.name_source();
    read_link(tables, &sources.place.key, OLDER, &mut sources.newest);
    if !wanted || !sources.newest.is_some() {
        return;
    }
    sources.at = sources.newest;
    tables.run(
        WALK,
        &mut Walk {
            tables,
            sources,
            wish: &draft.wish,
        },
    );
}

impl Sources {
    /// Room for a tuple, and its name.
    #[inline(always)]
    pub(super) fn tuple_and_name(&mut self) -> (&mut Tuple, &mut FlowKey) {
        (&mut self.place.tuple, &mut self.place.key)
    }

    /// Whether the source has a list.
    #[inline(always)]
    pub fn has_list(&self) -> bool {
        self.newest.is_some()
    }
}

struct Walk<'a, T: Tables> {
    tables: &'a T,
    sources: &'a mut Sources,
    wish: &'a Wish,
}

impl<T: Tables> Step for Walk<'_, T> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> ControlFlow<()> {
        if visit(self.tables, self.sources, self.wish) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

/// Looks at the flow in hand and goes on to the next older one; false if it was the last.
#[inline(never)]
fn visit<T: Tables>(tables: &T, sources: &mut Sources, wish: &Wish) -> bool {
    let Sources { place, at, .. } = sources;
    let Some(flow) = listed(tables, place, at) else {
        return false;
    };
    let (address, port) = flow.translated_source();
    let fits = wish.takes_address(address) && wish.takes_port(port);
    if fits && flow.status.get() & Flow::DYING == 0 {
        sources.address = *address;
        sources.port = port;
        sources.found = true;
        return false;
    }
    read_link(tables, &flow.other, OLDER, &mut sources.at);
    sources.at.is_some()
}

/// Puts the flow that was just stored, and is drafted still, in front of its source's list. Where that begins
/// is read anew: what made way for the flow, or for its translation, may have been the newest.
#[inline(never)]
pub fn link<T: Tables>(tables: &T, draft: &mut Draft, sources: &mut Sources) {
    let opened_from_low = draft.flow.status.get() & Flow::LOW_OPENED != 0;
    sources.place.tuple.set_key(&draft.key, opened_from_low);
    let tuple = &sources.place.tuple;
    sources
        .at
        .set(&tuple.destination, tuple.ports as u16, draft.key.kind());
    sources.place.name_source();
    read_link(tables, &sources.place.key, OLDER, &mut sources.newest);
    write_link(tables, &draft.alias, OLDER, &sources.newest);
    write_link(tables, &draft.alias, NEWER, &sources.none);
    if write_link(tables, &sources.place.key, OLDER, &sources.at) {
        write_link_of(
            tables,
            &mut sources.place,
            &sources.newest,
            NEWER,
            &sources.at,
        );
        return;
    }
    // The first of its source. The draft is stored already; its status is still wanted.
    let status = draft.flow.status.get();
    draft.flow.status.set(Flow::ALIAS);
    sources.at.put(&draft.flow.sent[OLDER]);
    sources.none.put(&draft.flow.sent[NEWER]);
    // If there is no room, the source has no list.
    let _ = tables.insert_flow(&sources.place.key, &draft.flow, Tier::Confirmed);
    draft.flow.status.set(status);
}

/// Takes a flow that ends out of its source's list, and removes the name of its packets on their way.
#[inline(always)]
pub fn unlink<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow, room: &mut Sources) {
    let status = flow.status.get();
    if status & Flow::TRANSLATED == Flow::TRANSLATED {
        transit::remove(tables, key, flow, room);
    }
    if status & Flow::LISTED != 0 {
        unlist(tables, key, flow, room);
    }
}

#[inline(always)]
fn unlist<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow, room: &mut Sources) {
    let Sources {
        place,
        newest: newer,
        at: older,
        ..
    } = room;
    // A copy: what a global function got as an argument is no key to older verifiers.
    place.alias.set(&flow.other);
    read_link(tables, &place.alias, OLDER, older);
    read_link(tables, &place.alias, NEWER, newer);
    place
        .tuple
        .set_key(key, flow.status.get() & Flow::LOW_OPENED != 0);
    write_link_of(tables, place, older, NEWER, newer);
    if newer.is_some() {
        return write_link_of(tables, place, newer, OLDER, older);
    }
    place
        .tuple
        .set_key(key, flow.status.get() & Flow::LOW_OPENED != 0);
    place.name_source();
    let newest = newer;
    read_link(tables, &place.key, OLDER, newest);
    if newest.word != Link::word(place.tuple.ports as u16, key.kind())
        || newest.destination != place.tuple.destination
    {
        return;
    }
    if older.is_some() {
        write_link(tables, &place.key, OLDER, older);
    } else {
        tables.remove_flow(&place.key);
    }
}

/// Whether a source's record leads to a flow; one that does not is a leftover.
#[inline(never)]
pub fn leads_to_flow<T: Tables>(tables: &T, key: &FlowKey, room: &mut Sources) -> bool {
    let Sources { place, at, .. } = room;
    place.tuple.set_key(key, true);
    read_link(tables, key, OLDER, at);
    listed(tables, place, at).is_some()
}

/// The flow that a link leads to, if it is in the source's list.
#[inline(always)]
fn listed<'t, T: Tables>(tables: &'t T, place: &mut Place, link: &Link) -> Option<&'t Flow> {
    if !link.is_some() {
        return None;
    }
    let tuple = &mut place.tuple;
    tuple.destination = link.destination;
    tuple.ports = tuple.ports & 0xffff_0000 | link.word & 0xffff;
    let from_low = tuple.fill_key((link.word >> 16) as u8 & 1, &mut place.key);
    let flow = tables.flow(&place.key)?;
    const LISTED: u32 = Flow::SNAT | Flow::LISTED;
    let status = flow.status.get();
    let is_listed =
        status & (LISTED | Flow::ALIAS) == LISTED && (status & Flow::LOW_OPENED != 0) == from_low;
    is_listed.then_some(flow)
}

/// Writes a link of the alias of the flow that another link leads to. (The functions that it calls
/// are called one after the other: the stack is short.)
#[inline(always)]
fn write_link_of<T: Tables>(tables: &T, place: &mut Place, of: &Link, which: usize, link: &Link) {
    if find_alias(tables, place, of) {
        write_link(tables, &place.alias, which, link);
    }
}

#[inline(never)]
fn find_alias<T: Tables>(tables: &T, place: &mut Place, of: &Link) -> bool {
    match listed(tables, place, of) {
        Some(flow) => {
            place.alias.set(&flow.other);
            true
        }
        None => false,
    }
}

/// Reads a link of an alias or of a source's record.
#[inline(never)]
fn read_link<T: Tables>(tables: &T, key: &FlowKey, which: usize, link: &mut Link) {
    match tables.flow(key) {
        Some(flow) if flow.is_alias() => link.take(if which == OLDER {
            &flow.sent[OLDER]
        } else {
            &flow.sent[NEWER]
        }),
        _ => link.clear(),
    }
}

/// Writes a link of an alias or of a source's record; false if there is none.
#[inline(never)]
fn write_link<T: Tables>(tables: &T, key: &FlowKey, which: usize, link: &Link) -> bool {
    match tables.flow(key) {
        Some(flow) if flow.is_alias() => {
            link.put(if which == OLDER {
                &flow.sent[OLDER]
            } else {
                &flow.sent[NEWER]
            });
            true
        }
        _ => false,
    }
}
