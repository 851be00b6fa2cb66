//! Words of maps that several CPUs change at once: hints, limits, locks of lists.
#![allow(
    unsafe_code,
    reason = "they are reached through pointers, and changed by instructions that Rust has no functions for"
)]

use core::arch::asm;
use core::intrinsics::AtomicOrdering;

use fw_common::MapCell;
use fw_common::abi::blob::{Cell, PAGE_CELLS, place};
use fw_common::abi::flow::Hint;
use fw_common::abi::list::{ListCell, head};

use crate::maps::POLICY;

/// Adds to a hint, all at once. Rust has no such function for this target.
#[inline(always)]
pub fn add(hint: &Hint, term: u64) {
    // SAFETY: the word is in a map's value, for as long as the program runs, and every CPU changes
    // it in this way only.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {term}",
            word = in(reg) hint.word.as_ptr(),
            term = in(reg) term,
        );
    }
}

/// [`add`], before all that is read after it: without a result, other processors than x86 order nothing.
#[inline(always)]
pub fn add_in_order(hint: &Hint, term: u64) {
    // SAFETY: as in `add`.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(
            hint.word.as_ptr().cast(),
            term,
        );
    }
}

/// Notes that a flow has the second name, before it is stored.
#[inline(always)]
pub fn say_second(hint: &Hint) {
    // SAFETY: as in `add`.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) |= {bit}",
            word = in(reg) hint.word.as_ptr(),
            bit = in(reg) Hint::SECOND,
        );
    }
}

/// Sets bits of a word in which each says that a hint may say something. Whoever clears one meanwhile sees what was
/// added to the hint before: both are ordered by this.
#[inline(always)]
pub fn set_bits(word: &MapCell<u64>, bits: u64) {
    // SAFETY: as in `add`.
    unsafe {
        core::intrinsics::atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(
            word.as_ptr().cast(),
            bits,
        );
    }
}

/// Clears bits of such a word.
#[inline(always)]
pub fn clear_bits(word: &MapCell<u64>, bits: u64) {
    // SAFETY: as in `add`.
    unsafe {
        core::intrinsics::atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(
            word.as_ptr().cast(),
            !bits,
        );
    }
}

/// Takes an outsider's place; what of its bit was set before.
#[inline(always)]
pub fn set_place(hint: &Hint) -> u64 {
    // SAFETY: as in `add`.
    let old = unsafe {
        core::intrinsics::atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(
            hint.word.as_ptr().cast(),
            Hint::PLACE,
        )
    };
    old & Hint::PLACE
}

/// Gives an outsider's place back.
#[inline(always)]
pub fn clear_place(hint: &Hint) {
    // SAFETY: as in `add`.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) &= {others}",
            word = in(reg) hint.word.as_ptr(),
            others = in(reg) !Hint::PLACE,
        );
    }
}

/// The state of a limit of the policy in a place: the last two words of its cell.
#[inline(always)]
pub fn limit_state(policy: u32, cell: u32) -> Option<*mut u64> {
    let (number, at) = place(cell);
    // There is one state, though there are two copies of the first pages.
    let page = POLICY.get(policy)?.get_ptr_mut(number)?;
    // SAFETY: `place` returns a place within a page.
    unsafe {
        let cell = page.cast::<Cell>().add(at % PAGE_CELLS);
        Some((&raw mut (*cell).w[14]).cast::<u64>())
    }
}

/// Replaces a word; whether it was what it was thought to be. All that is written before is seen by whoever
/// sees the new one.
#[inline(always)]
pub fn swap_word(word: &MapCell<u64>, old: u64, new: u64) -> bool {
    // SAFETY: the word is in a map's value, for as long as the program runs.
    unsafe {
        core::intrinsics::atomic_cxchg::<
            u64,
            { AtomicOrdering::SeqCst },
            { AtomicOrdering::SeqCst },
        >(word.as_ptr(), old, new)
        .1
    }
}

/// Replaces a list's lock; whether it was what it was thought to be. All that is written before is
/// seen by whoever sees the new one.
#[inline(always)]
pub fn swap_lock(cell: &ListCell, old: u64, new: u64) -> bool {
    let lock = cell[head::LOCK].as_ptr().cast::<u64>();
    // SAFETY: the lock is two words of a map's value, aligned since the cell is, which lives while
    // the program runs, and every program changes it in this way only.
    unsafe {
        core::intrinsics::atomic_cxchg::<
            u64,
            { AtomicOrdering::SeqCst },
            { AtomicOrdering::SeqCst },
        >(lock, old, new)
        .1
    }
}
