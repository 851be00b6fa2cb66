//! `recent`: addresses that were seen, and when. What is asked and what it changes is `recent_mt`'s
//! (net/netfilter/xt_recent.c); times are the coarse clock's, which ticks with the kernel's jiffies.

use core::ops::ControlFlow;

use super::{Asked, FAIL, HOLD, List, lock};
use crate::abi::Addr;
use crate::abi::blob::{BaseChain, fact};
use crate::abi::list::{USED, entry, head, recent};
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::{Step, Tables};

/// Answers a rule's question, and remembers what it says to remember.
#[inline(always)]
pub(super) fn ask<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    let hops = hops(scratch);
    let headers = &scratch.headers;
    let asked = &mut scratch.list;
    let flags = asked.flags;
    let address = if flags & recent::DESTINATION != 0 {
        headers.key.destination
    } else {
        headers.key.source
    };
    let family = headers.family as u32;
    let mut list = List { tables, asked };
    list.name(&address, family);
    list.find();
    if flags & recent::HOPS != 0 && !list.has_hops(hops) {
        list.asked.found = 0;
    }
    let (not, question) = (list.asked.not, flags & recent::QUESTION);
    let found = list.asked.found;
    if found == 0 {
        if question == recent::SET {
            list.remember(hops);
        }
        return says((question == recent::SET) != not);
    }
    let mut answer = not;
    match question {
        recent::SET => answer = !not,
        recent::REMOVE => {
            list.remove(found);
            answer = !not;
        }
        _ => {
            list.count_times(found);
            // No count to be reached is one that one reaches.
            let enough = list.asked.hits.max(1);
            if list.asked.counted >= enough {
                answer = !not;
            }
            if flags & recent::REAP != 0 {
                list.reap(question == recent::UPDATE && answer);
            }
        }
    }
    if question == recent::SET || question == recent::UPDATE && answer {
        list.come_again(found, hops);
    }
    says(answer)
}

#[inline(always)]
fn says(answer: bool) -> u32 {
    if answer { HOLD } else { FAIL }
}

/// The hop limit as it was before this host forwarded the packet; a policy that has lists of `recent`
/// gathers facts. To `recent_mt` (net/netfilter/xt_recent.c), what leaves and has no socket was
/// forwarded: resets of REJECT and, in IPv6, of the kernel.
#[inline(always)]
fn hops(scratch: &Scratch) -> u32 {
    let facts = &scratch.facts;
    if facts.known >> fact::HOPS & 1 == 0 {
        return 0;
    }
    let hops = facts.values[fact::HOPS as usize];
    let first = BaseChain::FilterInput.id(scratch.headers.family);
    let chain = scratch.walk.base.wrapping_sub(first) & 31;
    let forwarded = BEHIND_ROUTING >> chain & 1 != 0 && !scratch.made_here;
    if forwarded || facts.has_no_socket != 0 {
        hops.wrapping_add(1) & 0xff
    } else {
        hops
    }
}

/// Chains, as bits, that see a packet which this host forwards after its hop limit was lowered.
const BEHIND_ROUTING: u32 = 1 << BaseChain::FilterForward as u32
    | 1 << BaseChain::MangleForward as u32
    | 1 << BaseChain::SecurityForward as u32
    | 1 << BaseChain::ManglePostrouting as u32
    | 1 << BaseChain::NatPostrouting as u32;

impl<T: Tables> List<'_, T> {
    /// Whether the entry that was found has this hop limit, or one of both is not known.
    #[inline(always)]
    fn has_hops(&self, hops: u32) -> bool {
        let known = self.get(self.asked.found, entry::STATE) >> 8 & 0xff;
        hops == 0 || known == 0 || known == hops
    }

    /// A new entry, in place of the oldest if there is no room.
    #[inline(always)]
    fn remember(&mut self, hops: u32) {
        if self.get(0, head::COUNT) >= self.get(0, head::CAPACITY) {
            let oldest = self.get(0, head::OLDEST);
            self.remove(oldest);
        }
        let at = self.insert();
        self.set(at, recent::COUNT, 1);
        self.write_time(at, 0);
        self.set(at, entry::STATE, USED | hops << 8 | 1 << 16);
    }

    /// One time more in an entry, which is the one used last now.
    #[inline(never)]
    fn come_again(&mut self, at: u32, hops: u32) {
        let place = self.get(at, entry::STATE) >> 16 & self.get(0, head::DETAIL);
        self.write_time(at, place);
        // 65,536 is 0 (`struct recent_entry`).
        let next = place.wrapping_add(1) & 0xffff;
        if next > self.get(at, recent::COUNT) {
            self.set(at, recent::COUNT, next);
        }
        self.set(at, entry::STATE, USED | hops << 8 | next << 16);
        self.touch(at);
    }

    #[inline(always)]
    fn write_time(&self, at: u32, place: u32) {
        let (cell, word) = time_place(at, place);
        let now = self.asked.now;
        if let Some(cell) = self.cell(cell) {
            cell[word].set(now as u32);
            cell[word + 1].set((now >> 32) as u32);
        }
    }

    /// Counts an entry's times that are not too old.
    #[inline(always)]
    fn count_times(&mut self, at: u32) {
        self.asked.counted = 0;
        self.asked.at = at;
        let count = self.get(at, recent::COUNT);
        self.asked.wanted = count;
        let tables = self.tables;
        let cells = count.wrapping_add(recent::TIMES_IN_CELL - 1) / recent::TIMES_IN_CELL;
        tables.run(
            cells,
            &mut Times(List {
                tables,
                asked: self.asked,
            }),
        );
    }

    /// Takes out the entry that was used longest ago, if its last time is too old. The one at hand
    /// stays if it is used now.
    #[inline(always)]
    fn reap(&mut self, used: bool) {
        let oldest = self.get(0, head::OLDEST);
        if oldest == self.asked.found && used {
            return;
        }
        let next = self.get(oldest, entry::STATE) >> 16;
        let place = next.wrapping_sub(1) & self.get(0, head::DETAIL);
        let (cell, word) = time_place(oldest, place);
        let Some(cell) = self.cell(cell) else {
            return;
        };
        let time = cell[word].get() as u64 | (cell[word + 1].get() as u64) << 32;
        if too_old(self.asked, time) != 0 {
            self.remove(oldest);
        }
    }
}

/// Where a time of an entry is: its cell, and the first of its two words.
#[inline(always)]
fn time_place(at: u32, place: u32) -> (u32, usize) {
    let cell = at
        .wrapping_add(1)
        .wrapping_add(place / recent::TIMES_IN_CELL);
    (cell, (place % recent::TIMES_IN_CELL) as usize * 2)
}

/// 1 if a time is too old, else 0, without a branch.
#[inline(always)]
fn too_old(asked: &Asked, time: u64) -> u32 {
    const SECOND: u64 = 1_000_000_000;
    let most = if asked.seconds == 0 {
        i64::MAX as u64
    } else {
        asked.seconds as u64 * SECOND
    };
    (most.wrapping_sub(asked.now.wrapping_sub(time)) >> 63) as u32
}

/// Looks at the times of one cell.
struct Times<'a, T: Tables>(List<'a, T>);

impl<T: Tables> Step for Times<'_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let list = &mut self.0;
        let Some(cell) = list.cell(list.asked.at.wrapping_add(1).wrapping_add(turn)) else {
            return ControlFlow::Break(());
        };
        let last = list.asked.wanted.wrapping_sub(1);
        let mut counted = 0;
        for number in 0..recent::TIMES_IN_CELL {
            let word = number as usize * 2;
            let time = cell[word].get() as u64 | (cell[word + 1].get() as u64) << 32;
            let place = turn
                .wrapping_mul(recent::TIMES_IN_CELL)
                .wrapping_add(number);
            let beyond = last.wrapping_sub(place) >> 31;
            counted += (too_old(list.asked, time) | beyond) ^ 1;
        }
        list.asked.counted = list.asked.counted.wrapping_add(counted);
        ControlFlow::Continue(())
    }
}

/// What user space wants of a list.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The list's place.
    pub place: u32,
    /// [`recent::SET`] or [`recent::REMOVE`].
    pub question: u32,
    /// The address.
    pub address: Addr,
    /// Its IP version.
    pub family: u32,
}

/// Adds an address, or one time more, or takes it out, as a write to a file of /proc/net/xt_recent
/// does (`recent_mt_proc_write`). 1 if it was there, 0 if not.
#[inline(always)]
pub fn change<T: Tables>(tables: &T, scratch: &mut Scratch, change: &Change) -> u32 {
    scratch.list.place = change.place;
    if !lock(tables, scratch) {
        return super::DROP;
    }
    scratch.list.now = tables.now();
    let asked = &mut scratch.list;
    let mut list = List { tables, asked };
    list.name(&change.address, change.family);
    list.find();
    let found = list.asked.found;
    match (change.question, found) {
        (recent::SET, 0) => list.remember(0),
        (recent::SET, found) => {
            let hops = list.get(found, entry::STATE) >> 8 & 0xff;
            list.come_again(found, hops);
        }
        (_, 0) => {}
        (_, found) => list.remove(found),
    }
    tables.unlock_list(change.place);
    (found != 0) as u32
}
