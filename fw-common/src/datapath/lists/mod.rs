//! Matches that remember addresses: lists, as [`crate::abi::list`] lays them out.
//!
//! Such a match is asked in its place among the matches of its rule, once all before it hold, since
//! asking changes the list ([`super::classify`] calls it between two turns, where the chain of calls is
//! short). A datagram in fragments asks once. XDP leaves packets that meet one to the tc programs, and
//! the fast path caches no way that leads past one.
//!
//! One packet at a time changes a list: netfilter has a spin lock, and so has this. Nothing interrupts
//! a program that holds it but interrupts, and these do not come here.

mod connlimit;
mod hashlimit;
mod recent;

use core::ops::ControlFlow;

use super::fragment::note_outcome;
use super::header::Part;
use super::limit::{FAIL, HOLD};
use super::scratch::Scratch;
use super::tables::{Step, Tables};
use crate::abi::Addr;
use crate::abi::blob::{Predicate, SET_PLACE, condition};
use crate::abi::list::{
    BUCKETS_IN_CELL, ENTRIES_MAX, FIRST_BUCKET, KEY_REST, KEY_WORDS, ListCell, USED, entry, head,
};

/// The packet is dropped, as netfilter drops what it cannot remember (`hotdrop`).
pub const DROP: u32 = 4;

/// How often the lock is tried for. Whoever holds it has some hundred instructions to go, unless the
/// machine under this one stops the CPU meanwhile.
const TRIES: u32 = 1 << 18;

/// What a rule asks a list, and where the answer has got to.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    kind: u32,
    not: bool,
    place: u32,
    flags: u32,
    seconds: u32,
    hits: u32,
    now: u64,
    locked: u32,
    key: [u32; KEY_WORDS],
    bucket: u32,
    /// The entry that was found.
    found: u32,
    /// The entry to be looked at, and the one that leads to it.
    at: u32,
    before: u32,
    /// The entry that is looked for, by its number.
    wanted: u32,
    counted: u32,
    counting: connlimit::Counting,
}

impl Asked {
    /// Takes the question from a predicate.
    #[inline(always)]
    pub fn take(&mut self, predicate: Predicate<'_>) {
        let w = &predicate.0.w;
        self.kind = predicate.kind();
        self.not = predicate.not();
        self.place = w[SET_PLACE];
        self.flags = w[4];
        self.seconds = w[6];
        self.hits = w[8];
    }

    /// Whether it is a text that is asked for, and no list.
    #[inline(always)]
    pub fn is_text(&self) -> bool {
        self.kind == condition::TEXT
    }

    /// Whether the answer is inverted.
    #[inline(always)]
    pub fn is_not(&self) -> bool {
        self.not
    }

    /// The text that is asked for: its first cell, its flags, and from where to where.
    #[inline(always)]
    pub fn text(&self) -> (u32, u32, u32, u32) {
        (self.place, self.flags, self.seconds, self.hits)
    }
}

/// Asks the list that a rule names: [`HOLD`], [`FAIL`] or [`DROP`].
#[inline(always)]
pub fn ask<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    if scratch.headers.part as u8 == Part::Later as u8 {
        // What the datagram's first fragment got: two answers, of which the second may be missing.
        let dropped = scratch.outcomes.next();
        return match (dropped, !dropped && scratch.outcomes.next()) {
            (true, _) => DROP,
            (false, true) => HOLD,
            (false, false) => FAIL,
        };
    }
    let mut answer = DROP;
    if lock(tables, scratch) {
        scratch.list.now = tables.now();
        answer = match scratch.list.kind {
            condition::RECENT => recent::ask(tables, scratch),
            condition::CONNLIMIT => connlimit::ask(tables, scratch),
            condition::HASHLIMIT => hashlimit::ask(tables, scratch),
            _ => DROP,
        };
        tables.unlock_list(scratch.list.place);
    }
    // The verifier would explore the rest once for each answer.
    let answer = scratch.forget(answer);
    note_outcome(tables, scratch, answer == DROP);
    if answer != DROP {
        note_outcome(tables, scratch, answer == HOLD);
    }
    answer
}

/// Locks the list that is asked.
#[inline(always)]
pub fn lock<T: Tables>(tables: &T, scratch: &mut Scratch) -> bool {
    scratch.list.locked = 0;
    tables.run(TRIES, &mut Locking { tables, scratch });
    scratch.list.locked != 0
}

struct Locking<'a, T: Tables> {
    tables: &'a T,
    scratch: &'a mut Scratch,
}

impl<T: Tables> Step for Locking<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let asked = &mut self.scratch.list;
        if self.tables.lock_list(asked.place) {
            asked.locked = 1;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// A list whose lock is held.
struct List<'a, T: Tables> {
    tables: &'a T,
    asked: &'a mut Asked,
}

impl<'a, T: Tables> List<'a, T> {
    #[inline(always)]
    fn cell(&self, number: u32) -> Option<&'a ListCell> {
        self.tables.list_cell(self.asked.place, number)
    }

    /// A word of a cell.
    #[inline(always)]
    fn get(&self, cell: u32, word: usize) -> u32 {
        match self.cell(cell) {
            Some(cell) => cell[word].get(),
            None => 0,
        }
    }

    #[inline(always)]
    fn set(&self, cell: u32, word: usize, value: u32) {
        if let Some(cell) = self.cell(cell) {
            cell[word].set(value);
        }
    }

    /// The first entry of a bucket.
    #[inline(always)]
    fn first(&self, bucket: u32) -> u32 {
        let cell = FIRST_BUCKET.wrapping_add(bucket / BUCKETS_IN_CELL);
        self.get(cell, (bucket % BUCKETS_IN_CELL) as usize)
    }

    #[inline(always)]
    fn set_first(&self, bucket: u32, entry: u32) {
        let cell = FIRST_BUCKET.wrapping_add(bucket / BUCKETS_IN_CELL);
        self.set(cell, (bucket % BUCKETS_IN_CELL) as usize, entry);
    }

    /// Makes an address the key, as far as it counts.
    #[inline(always)]
    fn name(&mut self, address: &Addr, family: u32) {
        let Some(head) = self.cell(0) else {
            return;
        };
        let [a, b, c, d] = *address;
        let mask = |word: usize| head[head::MASK + word].get();
        self.asked.key = [0; KEY_REST + 1];
        self.asked.key[0] = a & mask(0);
        self.asked.key[1] = b & mask(1);
        self.asked.key[2] = c & mask(2);
        self.asked.key[3] = d & mask(3);
        self.asked.key[KEY_REST] = family;
    }

    /// Finds the entry of the key.
    #[inline(never)]
    fn find(&mut self) {
        self.asked.found = 0;
        let Some(head) = self.cell(0) else {
            return;
        };
        let mut hash = head[head::SEED].get() as u64;
        for word in self.asked.key {
            hash = (hash ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 32;
        }
        let bucket = hash as u32 & head[head::BUCKETS].get();
        self.asked.bucket = bucket;
        self.asked.at = self.first(bucket);
        let tables = self.tables;
        tables.run(ENTRIES_MAX, &mut ByKey(self.again()));
    }

    #[inline(always)]
    fn again(&mut self) -> List<'_, T> {
        List {
            tables: self.tables,
            asked: self.asked,
        }
    }

    /// Makes an entry of the key, which is in none, the one used last; 0 if there is no room.
    #[inline(never)]
    fn insert(&mut self) -> u32 {
        let at = self.take();
        if at == 0 {
            return 0;
        }
        let Some(head) = self.cell(0) else {
            return 0;
        };
        let bucket = self.asked.bucket;
        let Some(cell) = self.cell(at) else {
            return 0;
        };
        for (word, value) in self.asked.key.into_iter().enumerate() {
            cell[entry::KEY + word].set(value);
        }
        cell[entry::BUCKET].set(bucket);
        cell[entry::NEXT].set(self.first(bucket));
        cell[entry::STATE].set(USED);
        self.set_first(bucket, at);
        self.append(head, cell, at);
        at
    }

    /// Room for an entry; 0 if there is none.
    #[inline(always)]
    fn take(&self) -> u32 {
        let Some(head) = self.cell(0) else {
            return 0;
        };
        let count = head[head::COUNT].get();
        if count >= head[head::CAPACITY].get() {
            return 0;
        }
        let mut at = head[head::FREE].get();
        if at != 0 {
            head[head::FREE].set(self.get(at, entry::NEXT));
        } else {
            at = head[head::FRESH].get();
            head[head::FRESH].set(at.wrapping_add(head[head::STRIDE].get()));
        }
        head[head::COUNT].set(count.wrapping_add(1));
        at
    }

    /// Gives room back.
    #[inline(always)]
    fn give(&self, at: u32) {
        let (Some(head), Some(cell)) = (self.cell(0), self.cell(at)) else {
            return;
        };
        cell[entry::STATE].set(0);
        cell[entry::NEXT].set(head[head::FREE].get());
        head[head::FREE].set(at);
        head[head::COUNT].set(head[head::COUNT].get().wrapping_sub(1));
    }

    /// Takes an entry out.
    #[inline(never)]
    fn remove(&mut self, at: u32) {
        let (Some(head), Some(cell)) = (self.cell(0), self.cell(at)) else {
            return;
        };
        let bucket = cell[entry::BUCKET].get();
        self.asked.wanted = at;
        self.asked.before = 0;
        self.asked.at = self.first(bucket);
        let tables = self.tables;
        tables.run(ENTRIES_MAX, &mut ByNumber(self.again()));
        let next = cell[entry::NEXT].get();
        if self.asked.before == 0 {
            self.set_first(bucket, next);
        } else {
            self.set(self.asked.before, entry::NEXT, next);
        }
        self.detach(head, cell);
        self.give(at);
    }

    /// Makes an entry the one used last.
    #[inline(never)]
    fn touch(&mut self, at: u32) {
        let (Some(head), Some(cell)) = (self.cell(0), self.cell(at)) else {
            return;
        };
        self.detach(head, cell);
        self.append(head, cell, at);
    }

    /// Takes an entry out of the order of use.
    #[inline(always)]
    fn detach(&self, head: &ListCell, cell: &ListCell) {
        let (older, newer) = (cell[entry::OLDER].get(), cell[entry::NEWER].get());
        if older == 0 {
            head[head::OLDEST].set(newer);
        } else {
            self.set(older, entry::NEWER, newer);
        }
        if newer == 0 {
            head[head::NEWEST].set(older);
        } else {
            self.set(newer, entry::OLDER, older);
        }
    }

    /// Puts an entry at the end of the order of use.
    #[inline(always)]
    fn append(&self, head: &ListCell, cell: &ListCell, at: u32) {
        let newest = head[head::NEWEST].get();
        cell[entry::OLDER].set(newest);
        cell[entry::NEWER].set(0);
        if newest == 0 {
            head[head::OLDEST].set(at);
        } else {
            self.set(newest, entry::NEWER, at);
        }
        head[head::NEWEST].set(at);
    }
}

/// Walks along a bucket to the entry of the key.
struct ByKey<'a, T: Tables>(List<'a, T>);

impl<T: Tables> Step for ByKey<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let list = &mut self.0;
        let at = list.asked.at;
        if at == 0 {
            return ControlFlow::Break(());
        }
        let Some(cell) = list.cell(at) else {
            return ControlFlow::Break(());
        };
        let mut differs = 0;
        for (word, value) in list.asked.key.into_iter().enumerate() {
            differs |= cell[entry::KEY + word].get() ^ value;
        }
        if differs == 0 {
            list.asked.found = at;
            return ControlFlow::Break(());
        }
        list.asked.at = cell[entry::NEXT].get();
        ControlFlow::Continue(())
    }
}

/// Walks along a bucket to the entry before the wanted one.
struct ByNumber<'a, T: Tables>(List<'a, T>);

impl<T: Tables> Step for ByNumber<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let list = &mut self.0;
        let at = list.asked.at;
        if at == 0 || at == list.asked.wanted {
            return ControlFlow::Break(());
        }
        list.asked.before = at;
        list.asked.at = list.get(at, entry::NEXT);
        ControlFlow::Continue(())
    }
}

pub use recent::{Change, change};
