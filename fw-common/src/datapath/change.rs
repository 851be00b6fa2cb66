//! Effects that change a packet, or how it is tracked.
//!
//! What rules behind them see of it is what has become of it.

use super::conntrack::NOTE_ABOUT_UNTRACKED;
use super::flow_mark;
use super::packet::Packet;
use super::scratch::Scratch;
use crate::abi::blob::{Cell, effect_kind, fact};
use crate::abi::ct;

/// Does what an effect cell of these kinds says; false if it is of another kind.
#[inline(never)]
pub fn change<P: Packet>(packet: &mut P, scratch: &mut Scratch, cell: &Cell, kind: u32) -> bool {
    let (a, b) = (cell.w[1], cell.w[2]);
    match kind {
        effect_kind::MARK => {
            let mark = (packet.mark() & !b) ^ a;
            packet.set_mark(mark);
            scratch.facts.set(fact::MARK, mark);
        }
        effect_kind::SERVICE => {
            let old = scratch.headers.tos;
            let new = (old & !(b as u8)) ^ a as u8;
            if new != old && set_service(packet, scratch, new).is_some() {
                scratch.headers.tos = new;
                scratch.facts.set(fact::TOS, new as u32);
            }
        }
        effect_kind::HOPS => {
            let _ = set_hops(packet, scratch, a, b);
        }
        effect_kind::UNTRACKED if carries_nothing(scratch) => {
            scratch.untracked = true;
            scratch.tracked.ct = ct::UNTRACKED;
            scratch.query.ct = ct::UNTRACKED;
        }
        // To the rules behind it, the packet belongs to a flow that it opens: a template is all that
        // netfilter has of one yet. As above, the first word counts.
        effect_kind::ZONE if carries_nothing(scratch) => {
            scratch.headers.zone = a as u16;
            scratch.zone_place = b;
            scratch.tracked.ct = ct::NEW;
            scratch.query.ct = ct::NEW;
        }
        effect_kind::UNTRACKED | effect_kind::ZONE => {}
        effect_kind::FLOW_MARK => flow_mark::change(packet, scratch, &cell.w),
        _ => return false,
    }
    true
}

/// Whether table raw has a say in the packet's tracking: not if it has a flow, or was said to have none, or answers
/// such a one (`notrack_tg`, net/netfilter/xt_CT.c; `nf_ct_attach`, net/netfilter/core.c).
#[inline(always)]
fn carries_nothing(scratch: &Scratch) -> bool {
    let note = scratch.note as u16;
    scratch.tracked.ct == ct::INVALID
        && note as u8 != ct::UNTRACKED
        && note & NOTE_ABOUT_UNTRACKED != NOTE_ABOUT_UNTRACKED
}

#[inline(always)]
fn set_service<P: Packet>(packet: &mut P, scratch: &Scratch, new: u8) -> Option<()> {
    let l3 = scratch.headers.l3 as u32;
    let old: [u8; 4] = packet.load(l3)?;
    if scratch.headers.is_v6() {
        packet.store(l3, [old[0] & 0xf0 | new >> 4, old[1] & 0x0f | new << 4])
    } else {
        let changed = [old[0], new, old[2], old[3]];
        packet.store(l3 + 1, [new])?;
        packet.replace_l3_sum(
            l3 + SUM,
            u32::from_ne_bytes(old),
            u32::from_ne_bytes(changed),
        )
    }
}

/// Where the checksum is in IPv4's header.
const SUM: u32 = 10;

/// Sets, lowers or raises the hop count, not below zero nor above 255 (`ttl_tg`, `hl_tg6`,
/// net/netfilter/xt_HL.c).
#[inline(always)]
fn set_hops<P: Packet>(packet: &mut P, scratch: &mut Scratch, mode: u32, value: u32) -> Option<()> {
    let v6 = scratch.headers.is_v6();
    let at = scratch.headers.l3 as u32 + if v6 { 7 } else { 8 };
    let [old, next]: [u8; 2] = packet.load(at)?;
    let new = match mode {
        HOPS_SET => value as u8,
        HOPS_LESS => (old as u32).saturating_sub(value) as u8,
        _ => {
            let sum = old as u32 + value;
            if sum > 255 { 255 } else { sum as u8 }
        }
    };
    if new != old {
        packet.store(at, [new])?;
        if !v6 {
            // The rest of the word is the checksum itself.
            let word = |hops: u8| u32::from_ne_bytes([hops, next, 0, 0]);
            packet.replace_l3_sum(scratch.headers.l3 as u32 + SUM, word(old), word(new))?;
        }
    }
    scratch.facts.set(fact::HOPS, new as u32);
    Some(())
}

/// The first word of [`effect_kind::HOPS`]: the value is the hop count.
pub const HOPS_SET: u32 = 0;
/// The value is taken from it.
pub const HOPS_LESS: u32 = 1;
/// The value is added to it.
pub const HOPS_MORE: u32 = 2;
