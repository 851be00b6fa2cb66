//! Classification: a chain interpreter over masked-hash tables. It finds "the next match with an
//! index at or after the cursor", counts it, and does what its target says, until a verdict.

use core::ops::ControlFlow;

use super::effect::{ACTED, Act, DROPPED};
use super::limit;
use super::lists;
use super::packet::Packet;
use super::rule_search::{InTables, Search, fields_match, index_of, wanted};
use super::scratch::Scratch;
use super::search::Find;
use super::stage::{Name, Stage};
use super::tables::{Step, Tables};
use crate::abi::Family;
use crate::abi::blob::{
    BaseChain, Chain, DIRECTORY, HEADER, Header, Rule, chain_kind, place, target,
};
use crate::abi::flow::SHORTCUT_SLOTS;
use crate::abi::stat::Stat;

/// What a chain is asked about a packet, besides its headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// Interface patterns that the input interface fits.
    pub in_patterns: u64,
    /// Interface patterns that the output interface fits.
    pub out_patterns: u64,
    /// Connection state, bits of [`crate::abi::ct`].
    pub ct: u8,
    /// 0 original, 1 reply, 2 no flow.
    pub direction: u8,
    /// Packets to count: none for a later fragment.
    pub packets: u8,
    /// The class of the packet's protocol, see [`crate::abi::blob::Filter::class_of`].
    pub class: u8,
}

/// Where a walk through the chains is.
///
/// It lives in the scratch space and not on the stack: the verifier keeps track of every number on
/// the stack, and explores a loop body once for each combination that it meets there. What is in a
/// map's value it does not track, so that each loop body is explored once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// The base chain that it began in.
    pub base: u32,
    pub(super) chain: u32,
    pub(super) cursor: u32,
    pub(super) depth: u32,
    pub(super) code: u32,
    /// What its rule says besides the target.
    pub argument: u32,
    /// The search in the present chain: its first table cell.
    pub(super) first: u32,
    /// Tables that can hold a rule which the packet matches ([`prune`]).
    pub(super) wanted: u64,
    /// The table that is next, and how many there are.
    pub(super) table: u32,
    pub(super) tables: u32,
    /// Smallest index that matched so far.
    pub(super) best: u32,
    /// Its cell; 0 for none.
    pub(super) found: u32,
    /// The list cell to be looked at, and of a block whose rules are: the first one, and those that are
    /// still to be looked at, a bit each.
    pub(super) at: u32,
    pub(super) block: u32,
    pub(super) candidates: u32,
    /// First predicate of the rule at hand, and whether all held so far.
    pub(super) predicates: u32,
    pub(super) hold: u32,
    /// How many of the rule's predicates were put off.
    pub(super) deferred: u32,
    /// How many of them hold already: those up to a list that was asked in the turn before.
    pub(super) asked: u32,
    /// The counter of the rule whose effect is at hand.
    pub slot: u32,
    /// How many rules and policies were counted, and the first of them.
    pub hits: u32,
    /// See `hits`; the last word is never read.
    pub slots: [u32; SHORTCUT_SLOTS + 1],
    /// The result depends on more than the packet's flow, interfaces and TCP flags.
    pub uncacheable: bool,
}

/// How a base chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Decision {
    /// ACCEPT.
    Accept,
    /// Dropped, and why.
    Drop(Stat),
    /// REJECT; [`Walk::argument`] says with what.
    Reject,
    /// MASQUERADE, with a range of ports ([`crate::abi::blob::pack_range`]; 0 for any).
    Masquerade {
        /// The range.
        ports: u32,
        /// Do not try the original port first.
        random: bool,
    },
    /// DNAT, SNAT, REDIRECT or NETMAP, as [`super::translation`] goes on.
    Translate,
}

/// Longest evaluation: rules that matched without deciding, plus chain ends. `bpf_loop` allows 2^23.
const MAX_STEPS: u32 = 1 << 20;

/// Sends the packet in the scratch space through a base chain. An absent chain accepts.
#[inline(always)]
pub fn traverse<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    base: u32,
    scratch: &mut Scratch,
) -> Decision {
    match packet.call::<Traverse, T>(tables, scratch, base) {
        target::ACCEPT => Decision::Accept,
        target::DROP => Decision::Drop(Stat::Policy),
        target::REJECT => Decision::Reject,
        target::MASQUERADE => Decision::Masquerade {
            ports: scratch.walk.argument,
            random: false,
        },
        target::MASQUERADE_RANDOM => Decision::Masquerade {
            ports: scratch.walk.argument,
            random: true,
        },
        CODE_LIST => Decision::Drop(Stat::List),
        target::DNAT | target::SNAT | target::REDIRECT | target::NETMAP => Decision::Translate,
        _ => Decision::Drop(Stat::Unbounded),
    }
}

/// [`traverse`] for a nat chain, most of which have no rules.
#[inline(always)]
pub fn traverse_nat<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    base: BaseChain,
    scratch: &mut Scratch,
) -> Decision {
    let counter = match tables.front(scratch.place()) {
        Some(front) => {
            let header = Header(&front[HEADER as usize]);
            // Both places are constants: the verifier would ask for the bound of a number.
            if scratch.headers.is_v6() {
                header.empty_nat(base.nat_place(Family::V6))
            } else {
                header.empty_nat(base.nat_place(Family::V4))
            }
        }
        None => 0,
    };
    if counter == 0 {
        return traverse(packet, tables, base.id(scratch.headers.family), scratch);
    }
    let packets = scratch.query.packets as u32;
    tables.hit(counter.wrapping_sub(1), packets, scratch.headers.bytes);
    Decision::Accept
}

/// The stage of [`traverse`]: its argument is the base chain, its result a number of [`target`].
pub struct Traverse;

impl Stage for Traverse {
    const NAME: Name = Name::Traverse;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        base: u32,
    ) -> u32 {
        let Some(generation) = tables.generation(scratch.place()) else {
            return CODE_UNBOUNDED;
        };
        scratch.walk.hits = 0;
        scratch.walk.uncacheable = false;
        scratch.flags_asked.set(0);
        let mut steps = Steps {
            packet,
            tables,
            generation,
            scratch,
        };
        let Some(chain) = tables.cell(generation, DIRECTORY.wrapping_add(base)) else {
            return CODE_UNBOUNDED;
        };
        let chain = Chain(chain);
        if chain.count() == 0 {
            // Chains of the nat table are empty more often than not.
            return steps.end(chain);
        }
        let walk = &mut steps.scratch.walk;
        walk.base = base;
        walk.chain = base;
        walk.cursor = 0;
        walk.depth = 0;
        walk.asked = 0;
        walk.code = CODE_UNBOUNDED;
        // Most walks take one step, which need not be a loop's.
        if steps.turn().is_continue() {
            tables.run(MAX_STEPS, &mut steps);
        }
        steps.scratch.walk.code
    }
}

/// How many rules of a short chain one step looks at: the verifier explores each.
const CANDIDATES: u32 = 3;

/// No target has this number: the walk has not ended.
const CODE_UNBOUNDED: u32 = u32::MAX;
/// A list could not be asked: the packet is dropped.
const CODE_LIST: u32 = u32::MAX - 1;

struct Steps<'a, P: Packet, T: Tables> {
    packet: &'a mut P,
    tables: &'a T,
    generation: T::Generation,
    scratch: &'a mut Scratch,
}

impl<P: Packet, T: Tables> Step for Steps<'_, P, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        self.turn()
    }
}

impl<P: Packet, T: Tables> Steps<'_, P, T> {
    /// The next rule that matches, and what it says.
    #[inline(never)]
    fn turn(&mut self) -> ControlFlow<()> {
        let chain = DIRECTORY.wrapping_add(self.scratch.walk.chain);
        let Some(chain) = self.tables.cell(self.generation, chain) else {
            return ControlFlow::Break(());
        };
        let chain = Chain(chain);
        match chain.kind() {
            chain_kind::LINEAR => {
                if !self.next_in_order(chain) {
                    return ControlFlow::Continue(());
                }
            }
            chain_kind::TABLES => self.next_in_tables(chain),
            _ => self.scratch.walk.found = 0,
        }
        let found = self.scratch.walk.found;
        if found == 0 {
            return self.leave_chain();
        }
        let Some(rule) = self.tables.cell(self.generation, found) else {
            return ControlFlow::Break(());
        };
        let rule = Rule(rule);
        self.scratch.walk.cursor = rule.index().wrapping_add(1);
        if chain.kind() == chain_kind::LINEAR && !self.search().predicates_hold(rule) {
            return ControlFlow::Continue(());
        }
        if rule.deferred_count() != 0 {
            match self.deferred_hold(rule) {
                limit::HOLD => {}
                limit::FAIL => return ControlFlow::Continue(()),
                limit::LIST => return self.ask_list(rule),
                _ => return ControlFlow::Break(()),
            }
        }
        self.count(rule.slot());
        let walk = &mut self.scratch.walk;
        match rule.target() {
            target::CONTINUE => ControlFlow::Continue(()),
            target::RETURN => self.leave_chain(),
            target::JUMP => {
                let Some(frame) = self.tables.frame(walk.depth) else {
                    return ControlFlow::Break(());
                };
                frame.set((walk.chain as u64) << 32 | walk.cursor as u64);
                walk.depth = walk.depth.wrapping_add(1);
                self.enter_chain(rule.argument())
            }
            target::GOTO => self.enter_chain(rule.argument()),
            target::EFFECT => self.act(rule),
            verdict => {
                walk.code = verdict;
                walk.argument = rule.argument();
                ControlFlow::Break(())
            }
        }
    }
}

impl<P: Packet, T: Tables> Steps<'_, P, T> {
    #[inline(always)]
    fn search(&mut self) -> Search<'_, T> {
        Search {
            tables: self.tables,
            generation: self.generation,
            scratch: self.scratch,
        }
    }

    /// Asks the predicates that were put off.
    #[inline(never)]
    fn deferred_hold(&mut self, rule: Rule<'_>) -> u32 {
        let walk = &mut self.scratch.walk;
        let first = rule.predicates().wrapping_add(rule.predicate_count());
        walk.predicates = first.wrapping_add(walk.asked);
        walk.deferred = rule.deferred_count().wrapping_sub(walk.asked);
        let hold = self.tables.deferred_hold(self.scratch);
        if hold != limit::LIST {
            self.scratch.walk.asked = 0;
        }
        hold
    }

    /// Asks the list that a predicate names, or looks for its text. The next turn finds the same rule again,
    /// and goes on behind that predicate.
    #[inline(never)]
    fn ask_list(&mut self, rule: Rule<'_>) -> ControlFlow<()> {
        let index = rule.index();
        let answer = if self.scratch.list.is_text() {
            self.packet.call::<Find, T>(self.tables, self.scratch, 0)
        } else {
            self.tables.ask_list(self.scratch)
        };
        match answer {
            limit::HOLD => {
                self.scratch.walk.cursor = index;
                ControlFlow::Continue(())
            }
            limit::FAIL => {
                self.scratch.walk.asked = 0;
                ControlFlow::Continue(())
            }
            lists::DROP => {
                self.scratch.walk.code = CODE_LIST;
                ControlFlow::Break(())
            }
            _ => ControlFlow::Break(()),
        }
    }

    /// Does what a rule says besides counting; ends the walk where that must not happen yet.
    #[inline(never)]
    fn act(&mut self, rule: Rule<'_>) -> ControlFlow<()> {
        let walk = &mut self.scratch.walk;
        walk.uncacheable = true;
        walk.slot = rule.slot();
        match self
            .packet
            .call::<Act, T>(self.tables, self.scratch, rule.argument())
        {
            ACTED => ControlFlow::Continue(()),
            DROPPED => {
                self.scratch.walk.code = target::DROP;
                ControlFlow::Break(())
            }
            _ => ControlFlow::Break(()),
        }
    }

    /// Finds the first rule of a short chain, at or after the cursor, whose fields match. Whether
    /// its predicates hold is still to be seen.
    ///
    /// It looks at a few candidates only; false if there are more.
    #[inline(never)]
    fn next_in_order(&mut self, chain: Chain<'_>) -> bool {
        let walk = &mut self.scratch.walk;
        walk.found = 0;
        let (page, first) = place(chain.first());
        let Some(page) = self.tables.page(self.generation, page) else {
            return true;
        };
        let key = &self.scratch.headers.key;
        let query = &self.scratch.query;
        let mut candidates =
            chain.candidates(query.class, query.ct, key.ports & 0xffff, query.in_patterns);
        candidates &= u32::MAX.wrapping_shl(self.scratch.walk.cursor);
        if self.scratch.walk.cursor > 15 {
            return true;
        }
        for _ in 0..CANDIDATES {
            if candidates == 0 {
                return true;
            }
            let lowest = candidates & candidates.wrapping_neg();
            candidates ^= lowest;
            let index = index_of(lowest);
            let offset = chain.stride().wrapping_mul(index);
            if fields_match(page, first.wrapping_add(offset as usize), self.scratch) {
                self.scratch.walk.found = chain.first().wrapping_add(offset);
                return true;
            }
            self.scratch.walk.cursor = index.wrapping_add(1);
        }
        candidates == 0
    }

    /// Finds the first rule of a long chain, at or after the cursor, that matches.
    #[inline(always)]
    fn next_in_tables(&mut self, chain: Chain<'_>) {
        let walk = &mut self.scratch.walk;
        walk.first = chain.first();
        walk.best = u32::MAX;
        walk.found = 0;
        walk.wanted = u64::MAX;
        walk.table = 0;
        walk.tables = chain.count();
        let tables = self.tables;
        if chain.prune() != 0 {
            let wanted = wanted(
                tables,
                self.generation,
                chain.prune(),
                &self.scratch.headers,
            );
            self.scratch.walk.wanted = wanted;
        }
        tables.run(chain.count(), &mut InTables(self.search()));
    }

    #[inline(always)]
    fn enter_chain(&mut self, chain: u32) -> ControlFlow<()> {
        self.scratch.walk.chain = chain;
        self.scratch.walk.cursor = 0;
        ControlFlow::Continue(())
    }

    /// RETURN, or the end of a chain: back to the caller, or to the base chain's policy. After a
    /// goto from the base chain there is no caller either, and the same policy applies
    /// (`ipt_do_table` in net/ipv4/netfilter/ip_tables.c).
    #[inline(always)]
    fn leave_chain(&mut self) -> ControlFlow<()> {
        let walk = &mut self.scratch.walk;
        if walk.depth == 0 {
            let base = DIRECTORY.wrapping_add(walk.base);
            let Some(base) = self.tables.cell(self.generation, base) else {
                return ControlFlow::Break(());
            };
            self.scratch.walk.code = self.end(Chain(base));
            return ControlFlow::Break(());
        }
        walk.depth = walk.depth.wrapping_sub(1);
        let Some(frame) = self.tables.frame(walk.depth) else {
            return ControlFlow::Break(());
        };
        let caller = frame.get();
        walk.chain = (caller >> 32) as u32;
        walk.cursor = caller as u32;
        ControlFlow::Continue(())
    }

    /// The end of a base chain: its policy, or nothing where there is no such chain.
    #[inline(always)]
    fn end(&mut self, base: Chain<'_>) -> u32 {
        if base.kind() == chain_kind::ABSENT {
            return target::ACCEPT;
        }
        self.count(base.policy_slot());
        if base.policy() == Chain::DROP {
            target::DROP
        } else {
            target::ACCEPT
        }
    }

    #[inline(always)]
    fn count(&mut self, slot: u32) {
        let walk = &mut self.scratch.walk;
        let hit = walk.hits;
        // Without a comparison, whose outcome older verifiers forget where LLVM has copied the number
        // (a 32-bit copy is another number to them).
        const { assert!((SHORTCUT_SLOTS + 1).is_power_of_two()) };
        walk.slots[hit as usize % (SHORTCUT_SLOTS + 1)] = slot;
        walk.hits = hit.wrapping_add(1);
        let packets = self.scratch.query.packets as u32;
        self.tables.hit(slot, packets, self.scratch.headers.bytes);
    }
}
