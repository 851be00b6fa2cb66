//! Marks of flows: what CONNMARK changes and `-m connmark` asks for (net/netfilter/xt_connmark.c).
//!
//! Rules read and change a copy. It is taken when the packet's place in its flow is found, and kept
//! when the hook's work ends, however that ends: netfilter's marks, too, outlive a packet that is
//! dropped. Of a flow that this packet opens there is no record yet: the mark goes into its draft, and
//! waits in between, if another hook stores the flow, in the table of fragments, as senders' link-layer
//! addresses do.

use super::connection;
use super::conntrack::{NO_FLOW, NOTE_SEEN, is_about_transit, mirror};
use super::fragment::mark_key;
use super::header::{Icmp, Part};
use super::packet::Packet;
use super::reject::NOTE_ANSWER;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use super::tuple::Lookup;
use crate::abi::blob::{HeaderFields, fact};
use crate::abi::ct;
use crate::abi::flow::{Flow, FlowKey, Fragment};

/// The mark of the flow that the packet in hand belongs to.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FlowMark {
    /// The mark, as rules have left it.
    pub value: u32,
    /// Rules have changed it.
    pub changed: u32,
    /// Where it is to be kept.
    place: u32,
    /// The mark of the packet before this one, which an answer of this host's may be about.
    before: u32,
    /// The name of the flow's record, or of its alias's.
    key: FlowKey,
}

/// [`FlowMark::place`]: there is no flow, or nobody asks.
const NOWHERE: u32 = 0;
/// In the record that [`FlowMark::key`] names.
const RECORD: u32 = 1;
/// In the draft, if this hook stores the flow; if not, for the hook that will.
const NOTE: u32 = 2;
/// In the draft, if this hook stores the flow.
const DRAFT: u32 = 3;

impl FlowMark {
    /// The name of the flow's record, or of its alias's, if it is stored.
    #[inline(always)]
    pub(super) fn name(&self) -> &FlowKey {
        &self.key
    }

    /// Gives the mark to the record that is drafted.
    #[inline(always)]
    pub fn draft(&mut self, flow: &Flow) {
        if self.place != NOWHERE {
            flow.mark.set(self.value);
            self.place = DRAFT;
        }
    }
}

/// Finds the mark of a packet that is not tracked yet, but has its label from egress, on loopback.
#[inline(always)]
pub fn find_early<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) {
    if scratch.features & HeaderFields::OF_FLOWS != 0 {
        packet.call::<FindMark, T>(tables, scratch, EARLY);
    }
}

/// Finds the mark of an answer of this host's, which carries the connection of what it answers into table raw.
#[inline(always)]
pub fn find_of_answer(scratch: &mut Scratch) {
    if answers_with_flow(scratch) && scratch.features & HeaderFields::OF_FLOWS != 0 {
        let value = scratch.mark.before;
        scratch.mark.value = value;
        scratch.mark.changed = 0;
        scratch.facts.set(fact::FLOW_MARK, value);
    }
}

/// Whether the packet in hand answers one that has a connection.
#[inline(always)]
fn answers_with_flow(scratch: &Scratch) -> bool {
    scratch.answer.in_hand & (scratch.note as u16 & NOTE_SEEN != 0)
}

/// Finds the mark of a packet whose place is found, at ingress or at egress.
#[inline(always)]
pub fn find<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    argument: u32,
) {
    if scratch.features & HeaderFields::OF_FLOWS != 0 {
        packet.call::<FindMark, T>(tables, scratch, argument);
    }
}

/// Keeps the mark; the packet's way through this hook has ended.
#[inline(always)]
pub fn keep<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) {
    if scratch.mark.place != NOWHERE {
        packet.call::<KeepMark, T>(tables, scratch, 0);
    }
}

/// Argument of [`FindMark`]: at egress.
pub const EGRESS: u32 = 0;
/// At ingress.
pub const INGRESS: u32 = 1;
/// At ingress, before tracking.
const EARLY: u32 = 2;

/// The stage of [`find`].
pub struct FindMark;

impl Stage for FindMark {
    const NAME: Name = Name::FindMark;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        argument: u32,
    ) -> u32 {
        let note = scratch.note as u16;
        let part = scratch.headers.part as u8;
        let has_label = argument != EGRESS && note != 0 && part != Part::Later as u8;
        if has_label {
            if argument != EARLY {
                return 0;
            }
            scratch.tracked.set_note(note);
        } else if argument == EARLY {
            scratch.mark.place = NOWHERE;
            return 0;
        }
        // What table raw has made of an answer's.
        let answers = argument == EGRESS && answers_with_flow(scratch);
        let changed = scratch.mark.changed & answers as u32;
        let early = scratch.mark.value;
        scratch.mark.place = NOWHERE;
        scratch.mark.changed = 0;
        scratch.mark.value = 0;
        scratch.facts.known &= !(1 << fact::FLOW_MARK);
        if scratch.tracked.direction == NO_FLOW {
            return 0;
        }
        scratch.mark.place = DRAFT;
        if argument == EGRESS && scratch.tracked.opens {
            // What ingress left, if it was there.
            if !scratch.made_here
                && let Some(note) = tables.fragment(&mark_key(&scratch.headers))
            {
                scratch.mark.value = note.ports;
            }
        } else if scratch.tracked.opens {
            scratch.mark.place = NOTE;
        } else if has_label && note & NOTE_ANSWER != 0 {
            // The flow that what it answers would have opened is not stored: whatever bears its names is another.
            scratch.mark.value = scratch.mark.before;
        } else if has_label || !scratch.tracked.stored {
            recall(packet, tables, scratch, argument);
        }
        if scratch.tracked.stored {
            let mark = &mut scratch.mark;
            mark.place = RECORD;
            mark.value = scratch.tracked.mark;
            mark.key.set(&scratch.lookup.key);
        }
        // Not by a branch, which would be twice as much to the verifier from here on.
        let mask = changed.wrapping_neg();
        let value = scratch.mark.value & !mask | early & mask;
        scratch.mark.value = value;
        scratch.mark.changed = changed;
        scratch.facts.set(fact::FLOW_MARK, value);
        if !(has_label && note & NOTE_ANSWER != 0) {
            connection::find(tables, scratch);
        }
        0
    }
}

/// Finds the flow of a packet that is only known by its label.
#[inline(never)]
fn recall<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, argument: u32) {
    // What answers a packet without a flow is tracked by itself.
    let answers = answers_with_flow(scratch);
    if scratch.headers.icmp as u8 == Icmp::Error as u8 {
        if scratch.made_here && (answers || is_about_transit(scratch)) {
            // The flow is not stored yet, or no more.
            scratch.mark.value = scratch.mark.before;
            return;
        }
        if !mirror(packet, tables, scratch) {
            return;
        }
    } else {
        if scratch.made_here && answers {
            scratch.mark.value = scratch.mark.before;
            return;
        }
        scratch.lookup.tuple.set(&scratch.headers);
    }
    let error = scratch.headers.icmp as u8 == Icmp::Error as u8;
    let direction = scratch.tracked.direction;
    let translated = scratch.tracked.ct & (ct::SNAT | ct::DNAT) != 0;
    let alias = if argument == EARLY {
        // Both ends have been translated by now.
        direction == 0 && translated
    } else if error {
        // What it quotes has become the sender's packet again.
        false
    } else if argument == EGRESS && !scratch.made_here {
        // Ingress has translated the destination, or restored it.
        scratch.tracked.ct & ct::DNAT != 0
    } else {
        direction != 0 && translated
    };
    if let Some(flow) = by_label(tables, &mut scratch.lookup, direction, alias) {
        scratch.tracked.stored = true;
        scratch.tracked.mark = flow.mark.get();
    }
}

/// The flow that a packet belongs to which goes in this direction and bears the flow's own name or its
/// alias; if there is none, that of another name.
#[inline(never)]
fn by_label<'t, T: Tables>(
    tables: &'t T,
    lookup: &mut Lookup,
    direction: u8,
    alias: bool,
) -> Option<&'t Flow> {
    let opened = lookup.write_key(FlowKey::FIRST);
    let mut fits = 0;
    if let Some(flow) = tables.flow(&lookup.key) {
        // An alias says which endpoint the translated source is: the one that opened the flow.
        let way = (flow.status.get() ^ opened) & Flow::LOW_OPENED;
        if way == direction as u32 || lookup.key.is_to_itself() {
            if flow.is_alias() == alias {
                return own(tables, flow);
            }
            fits = 1;
        }
    }
    lookup.key.set_kind(FlowKey::SECOND);
    if let Some(flow) = tables.flow(&lookup.key) {
        return own(tables, flow);
    }
    if fits == 0 {
        return None;
    }
    lookup.key.set_kind(FlowKey::FIRST);
    own(tables, tables.flow(&lookup.key)?)
}

/// The flow itself, if this is its alias.
#[inline(always)]
fn own<'t, T: Tables>(tables: &'t T, flow: &'t Flow) -> Option<&'t Flow> {
    if flow.is_alias() {
        tables.flow(&flow.other)
    } else {
        Some(flow)
    }
}

/// The stage of [`keep`].
pub struct KeepMark;

impl Stage for KeepMark {
    const NAME: Name = Name::KeepMark;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        _argument: u32,
    ) -> u32 {
        let mark = &mut scratch.mark;
        let (place, value) = (mark.place, mark.value);
        mark.place = NOWHERE;
        mark.before = value;
        if place == NOTE {
            leave_note(tables, scratch);
        } else if place == RECORD && mark.changed != 0 {
            store(tables, scratch);
        }
        0
    }
}

#[inline(never)]
fn store<T: Tables>(tables: &T, scratch: &Scratch) {
    let named = tables.flow(&scratch.mark.key);
    if let Some(flow) = named.and_then(|flow| own(tables, flow)) {
        flow.mark.set(scratch.mark.value);
    }
}

/// Leaves the mark for the hook that stores the flow. One that is left from a packet before must not
/// be found.
#[inline(never)]
fn leave_note<T: Tables>(tables: &T, scratch: &Scratch) {
    let key = mark_key(&scratch.headers);
    let value = scratch.mark.value;
    let left = match tables.fragment(&key) {
        Some(note) => note.ports,
        None => 0,
    };
    if left != value {
        let note = Fragment {
            ports: value,
            ..Fragment::default()
        };
        tables.insert_fragment(&key, &note);
    }
}

/// Does what CONNMARK says (`connmark_tg_shift`).
#[inline(always)]
pub fn change<P: Packet>(packet: &mut P, scratch: &mut Scratch, w: &[u32; 16]) {
    if scratch.facts.known >> fact::FLOW_MARK & 1 == 0 {
        return;
    }
    let (mode, bits) = (w[1], w[6] & 31);
    let shifted = |mark: u32| {
        if w[5] != 0 {
            mark >> bits
        } else {
            mark << bits
        }
    };
    let old = scratch.mark.value;
    let new = match mode {
        RESTORE => {
            let mark = (packet.mark() & !w[3]) ^ shifted(old & w[4]);
            packet.set_mark(mark);
            scratch.facts.set(fact::MARK, mark);
            return;
        }
        SAVE => (old & !w[4]) ^ shifted(packet.mark() & w[3]),
        _ => shifted((old & !w[4]) ^ w[3]),
    };
    scratch.mark.value = new;
    scratch.mark.changed = 1;
    scratch.facts.set(fact::FLOW_MARK, new);
}

/// The flow's mark becomes the value, under the mask.
pub const SET: u32 = 0;
/// The flow's mark becomes the packet's.
pub const SAVE: u32 = 1;
/// The packet's mark becomes the flow's.
pub const RESTORE: u32 = 2;
