//! What user space has done to flows and lists, one at a time: what it could not do by itself without
//! coming in between a packet and its state.
//!
//! Flows whose time is over are deleted.
//! User space walks the tables and finds candidates; a packet may refresh one before it is
//! deleted. So the deletion is done here, where looking again and deleting are a few instructions
//! apart, and a flow marked as dying is absent for every packet in between.

use core::ops::ControlFlow;

use fw_common::abi::flow::{Flow, FlowKey};
use fw_common::abi::maps::{HINTS_MAX, SWEEP_ANY, SWEEP_EXPIRED, SWEEP_RESTORE, SWEEP_REVOKE};
use fw_common::datapath::conntrack::{be_liberal, end_flow};
use fw_common::datapath::lists::{self, Change, change};
use fw_common::datapath::packet::Packet;
use fw_common::datapath::sources::leads_to_flow;
use fw_common::datapath::tables::{Step, Tables};

use crate::hints::forget_idle;
use crate::maps::{links, scratch};
use crate::tables::BpfTables;

/// What became of the candidate.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Swept {
    /// It lives on, or is gone already.
    Kept = 0,
    /// Deleted, or changed as was asked.
    Deleted = 1,
}

/// Deletes the flow whose key (a [`FlowKey`], as it lies in memory) is at the beginning of the
/// frame, if it is expired; byte 40 may ask for something else ([`SWEEP_ANY`] and its siblings).
#[inline(always)]
pub fn sweep<P: Packet>(packet: &P, tables: &BpfTables) -> Swept {
    let Some(key) = key(packet) else {
        return Swept::Kept;
    };
    let what = packet.load::<1>(40).map_or(SWEEP_EXPIRED, |byte| byte[0]);
    let forced = what == SWEEP_ANY;
    let Some(flow) = tables.stored_flow(&key) else {
        return Swept::Kept;
    };
    if what == SWEEP_REVOKE || what == SWEEP_RESTORE {
        return cut_or_restore(tables, flow, what == SWEEP_REVOKE);
    }
    if flow.is_alias() {
        // An alias goes with its flow, and a source's record with the last one of its list; alone
        // they are leftovers.
        let is_needed = if key.kind() == FlowKey::SOURCE {
            links().is_some_and(|room| leads_to_flow(tables, &key, room))
        } else {
            tables.flow(&flow.other).is_some()
                || flow.status.get() & Flow::TENTATIVE != 0
                    && !forced
                    && flow.expires.get() >= tables.now()
        };
        if is_needed {
            return Swept::Kept;
        }
        tables.remove_flow(&key);
        return Swept::Deleted;
    }
    if !forced && flow.expires.get() >= tables.now() {
        return Swept::Kept;
    }
    end_flow(tables, &key, flow);
    Swept::Deleted
}

/// Cuts a flow, or has it go on. What it missed meanwhile may have moved its windows: they are not held
/// against anybody.
#[inline(always)]
fn cut_or_restore(tables: &BpfTables, flow: &Flow, cut: bool) -> Swept {
    let status = flow.status.get();
    let before = if cut { 0 } else { Flow::DYING | Flow::REVOKED };
    let bits = Flow::DYING | Flow::REVOKED;
    if status & Flow::ALIAS != 0 || status & bits != before || flow.expires.get() < tables.now() {
        return Swept::Kept;
    }
    if !cut {
        be_liberal(flow);
    }
    flow.status.set(status ^ bits);
    Swept::Deleted
}

/// Changes a list of recent addresses: the frame holds the address, then a word each for the list's
/// place, what is wanted ([`fw_common::abi::list::recent`]) and the address's IP version.
#[inline(always)]
pub fn change_list<P: Packet, T: Tables>(packet: &P, tables: &T) -> u32 {
    match (change_asked(packet), scratch()) {
        (Some(asked), Some(scratch)) => change(tables, scratch, &asked),
        _ => lists::DROP,
    }
}

/// Clears the bits of all hints that say nothing any more, the oldest among which are those of flows that outsiders
/// opened and did not complete: nobody else sees these end.
#[inline(always)]
pub fn forget_hints(tables: &BpfTables) {
    let now = tables.now();
    tables.run(HINTS_MAX, &mut Forget { now });
}

struct Forget {
    now: u64,
}

impl Step for Forget {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        forget_idle(turn, self.now);
        ControlFlow::Continue(())
    }
}

#[inline(always)]
fn change_asked<P: Packet>(packet: &P) -> Option<Change> {
    let word = |offset: u32| packet.load::<4>(offset).map(u32::from_ne_bytes);
    Some(Change {
        address: [word(0)?, word(4)?, word(8)?, word(12)?],
        place: word(16)?,
        question: word(20)?,
        family: word(24)?,
    })
}

#[inline(always)]
fn key<P: Packet>(packet: &P) -> Option<FlowKey> {
    let word = |offset: u32| packet.load::<4>(offset).map(u32::from_ne_bytes);
    Some(FlowKey {
        low: [word(0)?, word(4)?, word(8)?, word(12)?],
        high: [word(16)?, word(20)?, word(24)?, word(28)?],
        ports: word(32)?,
        rest: word(36)?,
    })
}
