//! Packets on their way from ingress to egress with a translated destination.
//!
//! Routing sees such a packet from its own source to the translated destination, and egress finds it
//! so: neither under its flow's key nor, if the source is translated too, under the alias. netfilter
//! keeps the connection with the packet (`skb->nfct`); all that stays with it here is a note of
//! sixteen bits. So the packet's flow gets one more name for the way, made of the endpoints that the
//! packet has there. The note holds the name's number: flows of one source to two addresses, both
//! translated to the same destination, are told apart by it.
//!
//! Before the flow is stored, the name is tentative: it says where the packet was sent to. Most flows
//! keep their source; then the alias is the same as the name, which is given up.

use super::conntrack::{NOTE_OPENS, NOTE_TRANSIT, Tracked, end_flow, mirror};
use super::header::{Headers, Part};
use super::nat::Draft;
use super::packet::Packet;
use super::scratch::Scratch;
use super::sources::Sources;
use super::stage::{Name, Stage};
use super::tables::{Tables, Tier};
use super::tuple::Tuple;
use crate::abi::ct;
use crate::abi::flow::{Flow, FlowKey};

/// How long a packet that opens a flow may be on its way: it may have to wait for a neighbour to
/// answer (three times a second, net.ipv4.neigh.default.mcast_solicit).
const GRACE: u64 = 5_000_000_000;

/// Takes a name for the packet that opens a flow, and has [`Tracked::transit`] say which. Its result
/// is 0 if there is none left.
pub struct TakeName;

impl Stage for TakeName {
    const NAME: Name = Name::TakeName;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        _: u32,
    ) -> u32 {
        let Scratch {
            headers,
            tracked,
            draft,
            lookup,
            ..
        } = scratch;
        draft.flow = Flow::default();
        set_original(&mut lookup.tuple, headers, tracked);
        let opened = lookup.write_key_to(FlowKey::FIRST, &mut draft.key);
        draft
            .flow
            .status
            .set(Flow::ALIAS | Flow::TENTATIVE | opened);
        draft.flow.other.set(&draft.key);
        draft.flow.expires.set(tables.now().wrapping_add(GRACE));
        draft.flow.mark.set(tracked.identifier as u32);
        lookup.tuple.set(headers);
        lookup.write_key_to(FlowKey::TRANSIT, &mut draft.alias);
        for number in 0..FlowKey::TRANSITS {
            if take(tables, draft, number) {
                tracked.transit = number;
                return 1;
            }
        }
        0
    }
}

/// The packet's tuple as its sender has it.
#[inline(always)]
pub(super) fn set_original(tuple: &mut Tuple, headers: &Headers, tracked: &Tracked) {
    tuple.set(headers);
    tuple.destination = tracked.original.address;
    tuple.ports = tuple.ports & 0xffff_0000 | tracked.original.port as u32;
}

/// Takes the name of that number if it is free, or was taken for the same flow.
#[inline(never)]
fn take<T: Tables>(tables: &T, draft: &mut Draft, number: u8) -> bool {
    draft.alias.set_kind(FlowKey::TRANSIT.wrapping_add(number));
    if let Some(old) = tables.flow(&draft.alias) {
        let same = old.other.is_between_those_of(&draft.key)
            && (old.status.get() ^ draft.flow.status.get()) & Flow::LOW_OPENED == 0;
        if old.status.get() & Flow::TENTATIVE != 0 {
            if same {
                old.expires.set(draft.flow.expires.get());
                tables.expect_embryo(&draft.alias, draft.flow.expires.get());
                return true;
            }
            if old.expires.get() >= tables.now() {
                return false;
            }
        } else if is_alive(tables, old) {
            return same;
        }
        tables.remove_flow(&draft.alias);
    }
    tables
        .insert_flow(&draft.alias, &draft.flow, Tier::Embryo)
        .is_ok()
}

/// Whether there is a flow behind an alias.
#[inline(always)]
pub(super) fn is_alive<T: Tables>(tables: &T, alias: &Flow) -> bool {
    tables.flow(&alias.other).is_some_and(|flow| {
        flow.status.get() & Flow::DYING == 0 && flow.expires.get() >= tables.now()
    })
}

/// Finds the flow of the tuple in hand, which is that of a packet that ingress translated, at egress;
/// or whence it came, if it opens its flow. Its argument is the note, by which the label is known; its
/// result is 0 if there is nothing.
pub struct FindOnWay;

impl Stage for FindOnWay {
    const NAME: Name = Name::FindOnWay;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        note: u32,
    ) -> u32 {
        find(tables, scratch, note as u16) as u32
    }
}

#[inline(always)]
fn find<T: Tables>(tables: &T, scratch: &mut Scratch, note: u16) -> bool {
    let number = (note >> NOTE_TRANSIT) as u8 & 3;
    let later = scratch.headers.part as u8 == Part::Later as u8;
    let Scratch {
        tracked, lookup, ..
    } = scratch;
    let reply = tracked.direction != 0;
    tracked.transit = number;
    let opened = lookup.write_key(FlowKey::FIRST);
    let opener = opened ^ reply as u32;
    let opens = note & NOTE_OPENS != 0;
    let mut record = None;
    if opens {
        // The alias that resembles it may be another flow's, whose source makes way when this one is
        // stored.
        record = tentative(tables, &mut lookup.key, number);
    }
    // Where the alias is the name.
    let both = note as u8 & ct::DNAT != 0 && note as u8 & (ct::SNAT | ct::RENAMED) != 0;
    if record.is_none() && !both {
        lookup.key.set_kind(FlowKey::FIRST);
        record = alias(tables, &lookup.key, opener, opens);
        if record.is_none() {
            lookup.key.set_kind(FlowKey::SECOND);
            record = alias(tables, &lookup.key, opener, opens);
        }
    }
    // A packet that has ended its flow, of which only the destination was translated, is none of a flow's that
    // has such a name. (A fragment's label may be older than its flow's translation.)
    if record.is_none() && (both || opens || later) {
        lookup.key.set_kind(FlowKey::TRANSIT.wrapping_add(number));
        record = tables.flow(&lookup.key);
    }
    let Some(record) = record else {
        return find_foreign(tables, tracked, &mut lookup.key, opened);
    };
    let status = record.status.get();
    let key = &record.other;
    if status & Flow::TENTATIVE != 0 {
        let (address, port) = if status & Flow::LOW_OPENED != 0 {
            (key.high, key.high_port())
        } else {
            (key.low, key.low_port())
        };
        tracked.original.address = address;
        tracked.original.port = port;
        tracked.identifier = record.mark.get() as u16;
        tracked.opens = tracked.ct & ct::NEW != 0;
        if reply {
            // An answer in the stead of the packet that would have opened the flow.
            tracked.set_source(&address, port);
        }
        return true;
    }
    // A flow that has just ended still tells what its last packet becomes.
    let Some(flow) = tables.flow(key) else {
        return false;
    };
    let label = tracked.ct;
    tracked.stored = true;
    tracked.mark = flow.mark.get();
    if reply && flow.status.get() & Flow::FOREIGN != 0 {
        // It came out as it came in: netfilter translates no more.
        flow.status.set(flow.status.get() & !Flow::FOREIGN);
    }
    if reply {
        tracked.set_reply(flow.status.get(), key);
    } else {
        tracked.set_original(flow, flow.status.get());
    }
    // The destination was settled before routing.
    tracked.translates &= Tracked::SOURCE;
    tracked.ct = label;
    true
}

/// The flow of a packet that netfilter has translated on its way: one that goes the original way bears the
/// alias by now, a reply the opener's own name for it.
#[inline(never)]
fn find_foreign<T: Tables>(
    tables: &T,
    tracked: &mut Tracked,
    key: &mut FlowKey,
    opened: u32,
) -> bool {
    key.set_kind(FlowKey::FIRST);
    if take_foreign(tables, tracked, key, opened) {
        return true;
    }
    key.set_kind(FlowKey::SECOND);
    take_foreign(tables, tracked, key, opened)
}

#[inline(never)]
fn take_foreign<T: Tables>(tables: &T, tracked: &mut Tracked, key: &FlowKey, opened: u32) -> bool {
    let Some(record) = tables.flow(key) else {
        return false;
    };
    let reply = tracked.direction != 0;
    let same_way = (record.status.get() ^ opened) & Flow::LOW_OPENED == 0;
    if record.is_alias() == reply || same_way == reply {
        return false;
    }
    let flow = if reply {
        record
    } else {
        match tables.flow(&record.other) {
            Some(flow) => flow,
            None => return false,
        }
    };
    if flow.status.get() & Flow::FOREIGN == 0 {
        return false;
    }
    tracked.stored = true;
    tracked.mark = flow.mark.get();
    tracked.translates = Tracked::FOREIGN;
    true
}

/// The name of that number, if it is tentative.
#[inline(never)]
fn tentative<'t, T: Tables>(tables: &'t T, key: &mut FlowKey, number: u8) -> Option<&'t Flow> {
    key.set_kind(FlowKey::TRANSIT.wrapping_add(number));
    let record = tables.flow(key)?;
    (record.status.get() & Flow::TENTATIVE != 0).then_some(record)
}

/// The alias under a key whose translated source is that endpoint, or either where both are the same; of
/// a flow that lives, if asked.
#[inline(always)]
fn alias<'t, T: Tables>(
    tables: &'t T,
    key: &FlowKey,
    opener: u32,
    alive: bool,
) -> Option<&'t Flow> {
    let record = tables.flow(key)?;
    let status = record.status.get();
    let same_way = (status ^ opener) & Flow::LOW_OPENED == 0 || key.is_to_itself();
    let is_alias = status & Flow::ALIAS != 0 && same_way;
    (is_alias && (!alive || is_alive(tables, record))).then_some(record)
}

/// [`FindOnWay`] for the packet in hand.
#[inline(always)]
pub fn find_on_way<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    note: u16,
) -> bool {
    scratch.lookup.tuple.set(&scratch.headers);
    packet.call::<FindOnWay, T>(tables, scratch, note as u32) != 0
}

/// An ICMP error about a packet of a translated flow, as it leaves: see [`FindOnWay`].
#[inline(always)]
pub fn find_error_on_way<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    note: u16,
) -> bool {
    if !mirror(packet, tables, scratch) {
        return false;
    }
    let found = packet.call::<FindOnWay, T>(tables, scratch, note as u32) != 0;
    scratch.tracked.opens = false;
    scratch.tracked.error = true;
    found
}

/// Settles the name of the flow that was just stored, as it is drafted: it is confirmed if the alias is
/// another, else given up. Its result is 0 if there is no room, and then no flow.
pub struct SettleName;

impl Stage for SettleName {
    const NAME: Name = Name::SettleName;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        _: u32,
    ) -> u32 {
        let Scratch {
            headers,
            tracked,
            draft,
            lookup,
            ..
        } = scratch;
        lookup.tuple.set(headers);
        let kind = FlowKey::TRANSIT.wrapping_add(tracked.transit);
        lookup.write_key(kind);
        tables.remove_flow(&lookup.key);
        let status = draft.flow.status.get();
        if status & Flow::TRANSLATED != Flow::TRANSLATED {
            return 1;
        }
        draft.flow.other.set(&draft.key);
        draft
            .flow
            .status
            .set(Flow::ALIAS | status & Flow::LOW_OPENED);
        let result = tables.insert_flow(&lookup.key, &draft.flow, Tier::Confirmed);
        draft.flow.other.set(&draft.alias);
        draft.flow.status.set(status);
        if result.is_ok() {
            return 1;
        }
        end_flow(tables, &draft.key, &draft.flow);
        0
    }
}

/// Removes the name that a flow's packets bear on their way, if both its ends are translated. (Not inlined,
/// so that its stack is not under that of what else unlinks the flow.)
#[inline(never)]
pub fn remove<T: Tables>(tables: &T, key: &FlowKey, flow: &Flow, room: &mut Sources) {
    let (tuple, name) = room.tuple_and_name();
    tuple.set_key(key, flow.status.get() & Flow::LOW_OPENED != 0);
    let (address, port) = flow.translated_destination();
    tuple.destination = address;
    tuple.ports = tuple.ports & 0xffff_0000 | port as u32;
    tuple.fill_key(FlowKey::TRANSIT.wrapping_add(flow.transit()), name);
    // A flow that has ended, and waited for its last packet to leave, may have lost its name to another.
    if let Some(record) = tables.flow(name)
        && record.other.is_between_those_of(key)
        && record.other.kind() == key.kind()
    {
        tables.remove_flow(name);
    }
}
