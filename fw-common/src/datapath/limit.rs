//! The match `limit`: a token bucket for each rule, shared by all CPUs.
//!
//! The arithmetic is `limit_mt`'s (net/netfilter/xt_limit.c): credit grows by [`PER_MILLISECOND`], up
//! to a cap, and a packet that finds its cost there takes it. The clock ticks with the kernel's
//! jiffies, since it is the coarse one.
//!
//! The state is in the predicate's own cell, so that it begins anew with each generation, as with
//! each `iptables-restore`: the time of the last packet in the high half, in milliseconds, and in the
//! low half how much credit is missing. A fresh cell is zero: full.

use core::ops::ControlFlow;

use super::connection;
use super::facts;
use super::fragment::note_outcome;
use super::header::Part;
use super::predicate::holds;
use super::scratch::Scratch;
use super::sets::in_set;
use super::tables::{Step, Tables};
use crate::abi::blob::{Predicate, SET_PLACE, condition, fact};
use crate::abi::set::shape;

/// All of a rule's deferred predicates hold.
pub const HOLD: u32 = 1;
/// One does not.
pub const FAIL: u32 = 0;
/// They must not be asked here, or cannot.
pub const LATER: u32 = 2;
/// A list is to be asked ([`super::lists`]), and then those behind it.
pub const LIST: u32 = 3;

/// Credit that comes with time: `CREDITS_PER_JIFFY` for 1000 jiffies a second, and a quarter of it for
/// 250, which are 32,000 a second both.
pub const PER_MILLISECOND: u32 = 32;

/// Credit of a second.
pub const PER_SECOND: u32 = 1000 * PER_MILLISECOND;

/// How often the state is tried to be replaced before other CPUs. A packet that comes off so badly
/// meets the limit; without contention, the first try succeeds.
const TRIES: u32 = 64;

/// Asks the predicates that [`super::classify`] put off, in the order of the rule, until one fails or
/// asks a list.
#[inline(always)]
pub fn deferred_hold<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    let Some(generation) = tables.generation(scratch.place()) else {
        return LATER;
    };
    scratch.walk.hold = HOLD;
    let count = scratch.walk.deferred;
    tables.run(
        count,
        &mut All {
            tables,
            generation,
            scratch,
        },
    );
    scratch.walk.hold
}

struct All<'a, T: Tables> {
    tables: &'a T,
    generation: T::Generation,
    scratch: &'a mut Scratch,
}

impl<T: Tables> Step for All<'_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let walk = &mut self.scratch.walk;
        let at = walk.predicates.wrapping_add(turn);
        let hold = match self.tables.cell(self.generation, at) {
            Some(cell) => {
                let predicate = Predicate(cell);
                let kind = predicate.kind();
                // What is not the same for the next packet of the flow, or changes when it is asked.
                let of_lists = (condition::RECENT..=condition::LAST_LIST).contains(&kind);
                if kind == condition::LIMIT
                    || of_lists
                    || (condition::FACT..=condition::TCP_OPTION).contains(&kind)
                {
                    if self.tables.holds_back() {
                        self.scratch.walk.hold = LATER;
                        return ControlFlow::Break(());
                    }
                    self.scratch.walk.uncacheable = true;
                }
                let of_connection = kind == condition::CT_ADDRESS || kind == condition::CT_VALUE;
                if of_connection {
                    if self.tables.holds_back() {
                        self.scratch.walk.hold = LATER;
                        return ControlFlow::Break(());
                    }
                    self.scratch.walk.uncacheable |= !connection::is_lasting(predicate);
                }
                if of_lists {
                    let scratch = &mut self.scratch;
                    scratch.list.take(predicate);
                    scratch.walk.asked = scratch.walk.asked.wrapping_add(turn).wrapping_add(1);
                    scratch.walk.hold = LIST;
                    return ControlFlow::Break(());
                }
                match kind {
                    condition::IN_SET => {
                        let (place, bits) = (cell.w[SET_PLACE], cell.w[4]);
                        self.scratch.walk.uncacheable |= bits & shape::VOLATILE != 0;
                        in_set(self.tables, self.scratch, place, bits) != predicate.not()
                    }
                    condition::LIMIT => {
                        let asked = &mut self.scratch.limit;
                        asked.cell = at;
                        asked.cost = cell.w[2];
                        asked.cap = cell.w[4];
                        self.take()
                    }
                    condition::NTH | condition::CHANCE => self.draw(predicate, at),
                    condition::FACT..=condition::TCP_OPTION => self.ask_fact(predicate),
                    condition::CT_ADDRESS | condition::CT_VALUE => self.ask_connection(predicate),
                    _ => holds(predicate, self.scratch) != predicate.not(),
                }
            }
            None => false,
        };
        if hold {
            return ControlFlow::Continue(());
        }
        self.scratch.walk.hold = FAIL;
        ControlFlow::Break(())
    }
}

impl<T: Tables> All<'_, T> {
    /// Asks for a fact. What only a datagram's first fragment shows, its later ones get from it.
    #[inline(always)]
    fn ask_fact(&mut self, predicate: Predicate<'_>) -> bool {
        let kind = predicate.kind();
        let of_datagram = kind == condition::TCP_OPTION
            || kind == condition::FACT && fact::is_of_datagram(predicate.0.w[1]);
        if !of_datagram {
            return facts::holds(predicate, self.scratch);
        }
        if self.scratch.headers.part as u8 == Part::Later as u8 {
            return self.scratch.outcomes.next();
        }
        let held = facts::holds(predicate, self.scratch);
        note_outcome(self.tables, self.scratch, held);
        held
    }

    /// Asks for the packet's connection. By the time a later fragment comes, it may have gone on.
    #[inline(always)]
    fn ask_connection(&mut self, predicate: Predicate<'_>) -> bool {
        if self.scratch.headers.part as u8 == Part::Later as u8 {
            return self.scratch.outcomes.next();
        }
        let held = connection::holds(self.tables, predicate, self.scratch);
        note_outcome(self.tables, self.scratch, held);
        held
    }

    /// Counts packets, or leaves it to chance (`statistic_mt`, net/netfilter/xt_statistic.c).
    #[inline(always)]
    fn draw(&mut self, predicate: Predicate<'_>, at: u32) -> bool {
        if self.scratch.headers.part as u8 == Part::Later as u8 {
            return self.scratch.outcomes.next();
        }
        let tables = self.tables;
        let is = if predicate.kind() == condition::CHANCE {
            tables.random() & 0x7fff_ffff < predicate.0.w[1]
        } else {
            let asked = &mut self.scratch.limit;
            asked.cell = at;
            asked.cap = predicate.0.w[1];
            asked.taken = 0;
            tables.run(
                TRIES,
                &mut Counting {
                    tables,
                    generation: self.generation,
                    scratch: self.scratch,
                },
            );
            self.scratch.limit.taken != 0
        };
        let held = is != predicate.not();
        note_outcome(tables, self.scratch, held);
        held
    }

    /// Takes what a packet costs, if it is there.
    #[inline(always)]
    fn take(&mut self) -> bool {
        if self.scratch.headers.part as u8 == Part::Later as u8 {
            return self.scratch.outcomes.next();
        }
        self.scratch.limit.now = (self.tables.now() / 1_000_000) as u32;
        self.scratch.limit.taken = 0;
        let tables = self.tables;
        tables.run(
            TRIES,
            &mut Taking {
                tables,
                generation: self.generation,
                scratch: self.scratch,
            },
        );
        let taken = self.scratch.limit.taken != 0;
        note_outcome(tables, self.scratch, taken);
        taken
    }
}

/// The limit being asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    cell: u32,
    cost: u32,
    cap: u32,
    now: u32,
    taken: u32,
}

struct Taking<'a, T: Tables> {
    tables: &'a T,
    generation: T::Generation,
    scratch: &'a mut Scratch,
}

impl<T: Tables> Step for Taking<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let asked = &mut self.scratch.limit;
        let old = self.tables.limit(self.generation, asked.cell);
        let credit = credit(old, asked.now, asked.cap);
        let enough = credit >= asked.cost;
        let left = if enough {
            credit.wrapping_sub(asked.cost)
        } else {
            credit
        };
        let new = (asked.now as u64) << 32 | asked.cap.wrapping_sub(left) as u64;
        if self
            .tables
            .replace_limit(self.generation, asked.cell, old, new)
        {
            asked.taken = enough as u32;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Counting to n and from 0 again.
struct Counting<'a, T: Tables> {
    tables: &'a T,
    generation: T::Generation,
    scratch: &'a mut Scratch,
}

impl<T: Tables> Step for Counting<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let asked = &mut self.scratch.limit;
        let old = self.tables.limit(self.generation, asked.cell);
        let new = if old == asked.cap as u64 {
            0
        } else {
            old.wrapping_add(1)
        };
        if self
            .tables
            .replace_limit(self.generation, asked.cell, old, new)
        {
            asked.taken = (new == 0) as u32;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// The credit at a time. Sums wrap as in the kernel: after 37 hours without a packet, an empty bucket
/// may be found less than full there as here. A full one stays full.
#[inline(always)]
fn credit(state: u64, now: u32, cap: u32) -> u32 {
    let missing = state as u32;
    if missing == 0 {
        return cap;
    }
    let passed = now.wrapping_sub((state >> 32) as u32);
    let grown = cap
        .wrapping_sub(missing)
        .wrapping_add(passed.wrapping_mul(PER_MILLISECOND));
    if grown > cap { cap } else { grown }
}
