//! Hints: what the tables of flows may have, by a hash of the key, and a bit for each hint that says whether it says
//! anything ([`fw_common::abi::maps::HINTED`]).

use fw_common::MapCell;
use fw_common::abi::flow::{FlowKey, Hint};

use crate::maps::{HINTED, HINTS};
use crate::shared_words::{add_in_order, clear_bits, set_bits, set_place};

/// What a hint says; nothing where its bit is not set.
#[inline(always)]
pub fn word(number: u32) -> u64 {
    match hinted(number) {
        Some((word, bit)) if word.get() & bit != 0 => {}
        _ => return 0,
    }
    match HINTS.get(number) {
        Some(hint) => hint.word.get(),
        None => 0,
    }
}

/// Where a hint has its bit: the word, and the bit in it.
#[inline(always)]
fn hinted(number: u32) -> Option<(&'static MapCell<u64>, u64)> {
    let word = HINTED.get(number / u64::BITS)?;
    Some((word, 1 << (number % u64::BITS)))
}

/// Has a hint say more, before what it says comes true: nobody may miss a flow that is there.
///
/// A bit that is set is not set again, as that would take its line of the cache away from all other CPUs for each flow.
/// The hint is added to in full order before the bit is looked at, so that whoever clears that meanwhile sees the sum.
#[inline(always)]
pub fn raise(number: u32, hint: &Hint, term: u64) {
    add_in_order(hint, term);
    if let Some((word, bit)) = hinted(number)
        && word.get() & bit == 0
    {
        set_bits(word, bit);
    }
}

/// Clears the bit of a hint that says nothing any more. If one has come to say something meanwhile, either it sees
/// the cleared bit and sets it, or it is seen here: its flow is missed for the moment in between, at most, as by
/// packets that were looked up just before it was stored.
#[inline(always)]
pub fn forget_idle(number: u32, now: u64) {
    let (Some(hint), Some((word, bit))) = (HINTS.get(number), hinted(number)) else {
        return;
    };
    if word.get() & bit == 0 || !Hint::is_idle(hint.word.get(), now) {
        return;
    }
    clear_bits(word, bit);
    if !Hint::is_idle(hint.word.get(), now) {
        set_bits(word, bit);
    }
}

/// Takes the place in the confirmed tier that there is for an outsider's first flow of this key; whether
/// it was free.
#[inline(always)]
pub fn take_place(key: &FlowKey) -> bool {
    let Some(hint) = HINTS.get(key.place()) else {
        return false;
    };
    hint.word.get() & Hint::PLACE == 0 && set_place(hint) == 0
}
