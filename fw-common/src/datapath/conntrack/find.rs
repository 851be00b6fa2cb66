//! Looking for the flow that a tuple belongs to.

use super::{NO_FLOW, has_links, remove};
use crate::abi::flow::{Flow, FlowKey, Hint};
use crate::abi::stat::Stat;
use crate::datapath::tables::Tables;
use crate::datapath::tuple::Lookup;

/// What [`find`] found. The flow's own key is [`Lookup::key`].
///
/// Its only niche is the reference at offset 0 (so it has no `bool`): the kernel refuses BTF in which the discriminant of
/// an `Option` lies anywhere else ("Invalid member bits_offset"). So are the other types that
/// functions of their own pass in an `Option`.
#[repr(C)]
pub struct Found<'t> {
    /// The flow.
    pub flow: &'t Flow,
    /// [`Found::BACK`] and [`Found::ALIAS`]: one word, which is copied at once.
    way: u64,
}

impl Found<'_> {
    /// The packet goes against the direction of the one that opened the flow.
    const BACK: u64 = 1;
    /// It bears the flow's alias.
    const ALIAS: u64 = 4;

    /// Whether the packet goes against the direction of the one that opened the flow.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.way & Self::BACK != 0
    }

    /// Whether the packet bears the flow's alias.
    #[inline(always)]
    pub fn is_under_alias(&self) -> bool {
        self.way & Self::ALIAS != 0
    }

    /// The packet's direction, as [`super::Tracked::direction`] has it.
    #[inline(always)]
    pub(super) fn direction(&self) -> u8 {
        (self.way & Self::BACK) as u8
    }
}

/// Whether names of translated flows are looked up: only where they can occur, at ingress, and
/// only if the family has a nat table.
pub type Aliases = bool;

/// The live flow that a tuple belongs to, whose own key the look-up has then.
///
/// A pointer to a flow is one of four to the verifier, by the table that the flow is in. A pointer to
/// an alias that lives on beside it would make it sixteen.
#[inline(never)]
pub fn find<'t, T: Tables>(
    tables: &'t T,
    lookup: &mut Lookup,
    aliases: Aliases,
    now: u64,
) -> Option<Found<'t>> {
    let opened = lookup.write_key(FlowKey::FIRST);
    let expected = lookup.expects_flow();
    let mut hint = if expected {
        Hint::CONFIRMED
    } else {
        tables.hint(&lookup.key)
    };
    let mut first = tables.hinted_flow(&lookup.key, hint);
    if expected && first.is_none() {
        hint = tables.hint(&lookup.key);
        first = tables.hinted_flow(&lookup.key, hint);
    }
    lookup.note_found(first.is_some());
    if let Some(flow) = first {
        if !flow.is_alias() {
            let direction = direction(tables, lookup, flow, opened, now);
            // Replies to a translated flow bear its alias. Under the opener's own address they are
            // another flow's, except after the translation, where aliases are not looked up.
            let other = aliases && direction == 1 && flow.status.get() & Flow::TRANSLATED != 0;
            // The second may outlive the first, which is over but waits for its last packet to leave.
            if !other && direction != NO_FLOW {
                return Some(Found {
                    flow,
                    way: direction as u64,
                });
            }
            if other {
                lookup.met = Lookup::OTHERS;
            }
        } else if aliases && goes_back(&lookup.key, flow, opened) {
            return Some(Found {
                flow: replying(tables, lookup, flow, now)?,
                way: Found::BACK | Found::ALIAS,
            });
        } else {
            lookup.met = Lookup::OTHERS;
        }
    }
    // The second may outlive the first. It is rare.
    if expected {
        hint = tables.hint(&lookup.key);
    }
    if !Hint::may_have_kind(hint, FlowKey::SECOND) {
        return None;
    }
    let place = tables.find_second(lookup, aliases, opened, now);
    found_second(tables, lookup, place)
}

/// What [`second`] found.
#[inline(always)]
pub(super) fn found_second<'t, T: Tables>(
    tables: &'t T,
    lookup: &Lookup,
    place: u32,
) -> Option<Found<'t>> {
    if place & NO_FLOW as u32 != 0 {
        return None;
    }
    Some(Found {
        flow: tables.flow(&lookup.key)?,
        way: place as u64 & (Found::BACK | Found::ALIAS),
    })
}

/// Whether a packet of this host's own, which belongs to no flow, shows that netfilter does not translate
/// a flow any more that was taken over from it: this host answers in the stead of that flow's other end,
/// or sends what netfilter had that end send. From now on it is translated here.
#[inline(never)]
pub(super) fn stands_in<T: Tables>(tables: &T, lookup: &mut Lookup) -> bool {
    lookup.write_key(FlowKey::FIRST);
    let Some(mut flow) = tables.flow(&lookup.key) else {
        return false;
    };
    if flow.is_alias() {
        flow = match tables.flow(&flow.other) {
            Some(flow) => flow,
            None => return false,
        };
    }
    let status = flow.status.get();
    if status & (Flow::FOREIGN | Flow::DYING) != Flow::FOREIGN {
        return false;
    }
    flow.status.set(status & !Flow::FOREIGN);
    true
}

/// The flow that an alias leads to, which the packet goes against: its key takes the alias's place.
#[inline(always)]
fn replying<'t, T: Tables>(
    tables: &'t T,
    lookup: &mut Lookup,
    alias: &'t Flow,
    now: u64,
) -> Option<&'t Flow> {
    let flow = tables.flow(&alias.other)?;
    let direction = live::<true, T>(tables, &alias.other, &mut lookup.met, flow, 0, now);
    if direction == NO_FLOW {
        return None;
    }
    lookup.key.set_alike(&alias.other);
    Some(flow)
}

/// Whether a packet under an alias is a reply. One whose two endpoints are the same is: what the
/// alias's flow sends gets that name only after it was found.
#[inline(always)]
fn goes_back(key: &FlowKey, alias: &Flow, opened: u32) -> bool {
    (alias.status.get() ^ opened) & Flow::LOW_OPENED != 0 || key.is_to_itself()
}

/// Looks for the flow of the second name: the first one's goes the other way, or is over. Its result is
/// [`Found::way`], or [`NO_FLOW`].
///
/// To the verifier, a function of its own; so the flow is looked up once more, which is rare.
#[inline(always)]
pub fn second<T: Tables>(
    tables: &T,
    lookup: &mut Lookup,
    aliases: Aliases,
    opened: u32,
    now: u64,
) -> u32 {
    lookup.key.set_kind(FlowKey::SECOND);
    let Some(flow) = tables.flow(&lookup.key) else {
        return NO_FLOW as u32;
    };
    if flow.is_alias() {
        let back = aliases && goes_back(&lookup.key, flow, opened);
        return if back && replying(tables, lookup, flow, now).is_some() {
            (Found::BACK | Found::ALIAS) as u32
        } else {
            NO_FLOW as u32
        };
    }
    let direction = direction(tables, lookup, flow, opened, now);
    // As under the first name: replies to a translated flow bear its alias.
    if aliases && direction == 1 && flow.status.get() & Flow::TRANSLATED != 0 {
        return NO_FLOW as u32;
    }
    direction as u32
}

/// [`live`] for the flow under the key that was looked up.
#[inline(always)]
fn direction<T: Tables>(tables: &T, lookup: &mut Lookup, flow: &Flow, opened: u32, now: u64) -> u8 {
    live::<false, T>(tables, &lookup.key, &mut lookup.met, flow, opened, now)
}

/// 0 or 1: the packet's direction; [`NO_FLOW`] if the flow is past its time, which ends it, or is cut. `BACK`
/// says that the packet is an answer, whichever end opened the flow.
#[inline(always)]
fn live<const BACK: bool, T: Tables>(
    tables: &T,
    key: &FlowKey,
    met: &mut u32,
    flow: &Flow,
    opened: u32,
    now: u64,
) -> u8 {
    let status = flow.status.get();
    if status & Flow::DYING != 0 {
        if status & Flow::REVOKED != 0 {
            *met = meet_revoked(
                flow,
                !BACK && (status ^ opened) & Flow::LOW_OPENED == 0,
                now,
            );
        }
        return NO_FLOW;
    }
    if flow.expires.get() < now {
        tables.count(Stat::Expired);
        flow.status.set(status | Flow::DYING);
        // Here is too little stack left to unlink it. Whoever needs its name
        // does that, or the sweep.
        if !has_links(status) {
            remove(tables, key, flow);
        }
        return NO_FLOW;
    }
    if key.is_to_itself() && status & Flow::TRANSLATED == 0 {
        // Both directions of a flow from an endpoint to itself look the same; netfilter finds the
        // reply, which it hashed last.
        return 1;
    }
    const { assert!(Flow::LOW_OPENED == 1) };
    ((status ^ opened) & Flow::LOW_OPENED) as u8
}

/// How long a flow that is cut is remembered after a packet of it.
const REVOKED_FOR: u64 = 300_000_000_000;

/// A packet of a flow that is cut: it is remembered for longer, as one of its ends has not given up.
#[inline(never)]
fn meet_revoked(flow: &Flow, forth: bool, now: u64) -> u32 {
    let expires = flow.expires.get();
    if expires < now {
        return 0;
    }
    let until = now.wrapping_add(REVOKED_FOR);
    if now != 0 && expires < until {
        flow.expires.set(until);
    }
    if forth { Lookup::FORTH } else { Lookup::BACK }
}
