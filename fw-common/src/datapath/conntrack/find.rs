//! Looking for the flow that a tuple belongs to.

use super::{NO_FLOW, has_links, remove};
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;
use crate::datapath::tables::Tables;
use crate::datapath::tuple::Lookup;

/// What [`find`] found.
///
/// Its only niche is the reference at offset 0: the kernel refuses BTF in which the discriminant of
/// an `Option` lies anywhere else ("Invalid member bits_offset"). So are the other types that
/// functions of their own pass in an `Option`.
#[repr(C)]
pub struct Found<'t> {
    /// The flow.
    pub flow: &'t Flow,
    /// Its own key, if the packet bears its alias.
    pub alias_of: Option<&'t FlowKey>,
    pub(super) direction: u8,
}

impl Found<'_> {
    /// Whether the packet goes against the direction of the one that opened the flow.
    #[inline(always)]
    pub fn is_reply(&self) -> bool {
        self.direction != 0
    }
}

/// Whether names of translated flows are looked up: only where they can occur, at ingress, and
/// only if the family has a nat table.
pub type Aliases = bool;

/// The live flow that a tuple belongs to.
#[inline(never)]
pub fn find<'t, T: Tables>(
    tables: &'t T,
    lookup: &mut Lookup,
    aliases: Aliases,
    now: u64,
) -> Option<Found<'t>> {
    let from_low = lookup.tuple.write_key(FlowKey::FIRST, &mut lookup.key);
    let Some(flow) = tables.flow(&lookup.key) else {
        // The second may outlive the first.
        return find_second(tables, lookup, from_low, aliases, now);
    };
    if !flow.is_alias() {
        let direction = direction(tables, lookup, flow, from_low, now);
        // Replies to a translated flow bear its alias. Under the opener's own address they are
        // another flow's, except after the translation, where aliases are not looked up.
        let other = aliases && direction == 1 && flow.status.get() & Flow::TRANSLATED != 0;
        // The second may outlive the first, which is over but waits for its last packet to leave.
        if !other && direction != NO_FLOW {
            return Some(Found {
                flow,
                alias_of: None,
                direction,
            });
        }
        if other {
            lookup.met = Lookup::OTHERS;
        }
    } else if aliases && goes_back(&lookup.key, flow, from_low) {
        return replying(tables, lookup, flow, now);
    } else {
        lookup.met = Lookup::OTHERS;
    }
    find_second(tables, lookup, from_low, aliases, now)
}

/// Whether a packet of this host's own, which belongs to no flow, shows that netfilter does not translate
/// a flow any more that was taken over from it: this host answers in the stead of that flow's other end,
/// or sends what netfilter had that end send. From now on it is translated here.
#[inline(never)]
pub(super) fn stands_in<T: Tables>(tables: &T, lookup: &mut Lookup) -> bool {
    let Lookup { tuple, key, .. } = lookup;
    tuple.write_key(FlowKey::FIRST, key);
    let Some(mut flow) = tables.flow(key) else {
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

/// The flow that an alias leads to, which the packet goes against.
#[inline(always)]
fn replying<'t, T: Tables>(
    tables: &'t T,
    lookup: &mut Lookup,
    alias: &'t Flow,
    now: u64,
) -> Option<Found<'t>> {
    let flow = tables.flow(&alias.other)?;
    let direction = live::<true, T>(tables, &alias.other, &mut lookup.met, flow, true, now);
    (direction != NO_FLOW).then_some(Found {
        flow,
        alias_of: Some(&alias.other),
        direction: 1,
    })
}

/// Whether a packet under an alias is a reply. One whose two endpoints are the same is: what the
/// alias's flow sends gets that name only after it was found.
#[inline(always)]
fn goes_back(key: &FlowKey, alias: &Flow, from_low: bool) -> bool {
    (alias.status.get() & Flow::LOW_OPENED != 0) != from_low || key.is_to_itself()
}

/// The flow of the second name: the first one's goes the other way, or is over.
#[inline(never)]
pub(super) fn find_second<'t, T: Tables>(
    tables: &'t T,
    lookup: &mut Lookup,
    from_low: bool,
    aliases: Aliases,
    now: u64,
) -> Option<Found<'t>> {
    lookup.key.kind = FlowKey::SECOND;
    let flow = tables.flow(&lookup.key)?;
    if flow.is_alias() {
        if !aliases || !goes_back(&lookup.key, flow, from_low) {
            return None;
        }
        return replying(tables, lookup, flow, now);
    }
    let direction = direction(tables, lookup, flow, from_low, now);
    // As under the first name: replies to a translated flow bear its alias.
    if aliases && direction == 1 && flow.status.get() & Flow::TRANSLATED != 0 {
        return None;
    }
    (direction != NO_FLOW).then_some(Found {
        flow,
        alias_of: None,
        direction,
    })
}

/// [`live`] for the flow under the key that was looked up.
#[inline(always)]
fn direction<T: Tables>(
    tables: &T,
    lookup: &mut Lookup,
    flow: &Flow,
    from_low: bool,
    now: u64,
) -> u8 {
    live::<false, T>(tables, &lookup.key, &mut lookup.met, flow, from_low, now)
}

/// 0 or 1: the packet's direction; [`NO_FLOW`] if the flow is past its time, which ends it, or is cut. `BACK`
/// says that the packet is an answer, whichever end opened the flow.
#[inline(always)]
fn live<const BACK: bool, T: Tables>(
    tables: &T,
    key: &FlowKey,
    met: &mut u32,
    flow: &Flow,
    from_low: bool,
    now: u64,
) -> u8 {
    let status = flow.status.get();
    if status & Flow::DYING != 0 {
        if status & Flow::REVOKED != 0 {
            *met = meet_revoked(
                flow,
                !BACK && (status & Flow::LOW_OPENED != 0) == from_low,
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
    ((status & Flow::LOW_OPENED != 0) != from_low) as u8
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
