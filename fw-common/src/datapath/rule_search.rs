//! Whether a rule matches: the search through a chain's tables and the lists in them, then the
//! rule's fields, then its predicates.

use core::ops::ControlFlow;

use super::header::Headers;
use super::predicate::holds;
use super::scratch::Scratch;
use super::tables::{Step, Tables};
use crate::abi::blob::{
    Block, Bucket, PAGE_CELLS, Page, Predicate, Prune, Rule, Table, place, prune,
};

/// A search, of which the scratch space's [`super::classify::Walk`] says for what and how far it is.
pub(super) struct Search<'a, T: Tables> {
    pub(super) tables: &'a T,
    pub(super) generation: T::Generation,
    pub(super) scratch: &'a mut Scratch,
}

/// Finds the first rule of a long chain: a step looks into one table, the next one that is wanted.
pub(super) struct InTables<'a, T: Tables>(pub(super) Search<'a, T>);

impl<T: Tables> Step for InTables<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let search = &mut self.0;
        let (tables, generation) = (search.tables, search.generation);
        let walk = &mut search.scratch.walk;
        let mut number = walk.table;
        let ahead = walk.wanted >> prune::table_bit(number);
        if ahead & 1 == 0 {
            // Where bitmaps say which tables are wanted, these are few.
            if ahead == 0 {
                return ControlFlow::Break(());
            }
            number = number.wrapping_add(ahead.trailing_zeros());
        }
        if number >= walk.tables {
            return ControlFlow::Break(());
        }
        walk.table = number.wrapping_add(1);
        let Some(table) = tables.cell(generation, walk.first.wrapping_add(number)) else {
            return ControlFlow::Break(());
        };
        let table = Table(table);
        if table.min_index() >= walk.best {
            // Tables ascend by their smallest index: no later one can do better.
            return ControlFlow::Break(());
        }
        let headers = &search.scratch.headers;
        let (bucket, tag) = table.locate(&headers.key, headers.is_v6());
        let Some(bucket) = tables.cell(generation, bucket) else {
            return ControlFlow::Break(());
        };
        let at = Bucket(bucket).find(tag);
        search.scratch.walk.at = at;
        search.scratch.walk.candidates = 0;
        if at != 0 {
            tables.run(
                MAX_LIST,
                &mut InList(Search {
                    tables,
                    generation,
                    scratch: search.scratch,
                }),
            );
        }
        ControlFlow::Continue(())
    }
}

/// The tables that can hold a rule which the packet matches, a bit each.
#[inline(never)]
pub(super) fn wanted<T: Tables>(
    tables: &T,
    generation: T::Generation,
    prune: u32,
    headers: &Headers,
) -> u64 {
    let Some(cell) = tables.cell(generation, prune) else {
        return u64::MAX;
    };
    let prune = Prune(cell);
    let source = prune.entry(0, &headers.key.source);
    let destination = prune.entry(1, &headers.key.destination);
    let port = Prune::port_entry(headers.key.ports & 0xffff);
    let mut wanted = u64::MAX;
    if let Some(cell) = tables.cell(generation, prune.cell(0, source)) {
        wanted &= prune.bits(0, source, cell);
    }
    if let Some(cell) = tables.cell(generation, prune.cell(1, destination)) {
        wanted &= prune.bits(1, destination, cell);
    }
    if let Some(cell) = tables.cell(generation, prune.cell(2, port)) {
        wanted &= prune.bits(2, port, cell);
    }
    wanted
}

/// Longest bucket list; the builder keeps lists far shorter unless rules are alike in every hashed
/// field.
const MAX_LIST: u32 = 1 << 22;

struct InList<'a, T: Tables>(Search<'a, T>);

impl<T: Tables> Step for InList<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let search = &mut self.0;
        let at = search.scratch.walk.at;
        if at & Block::HERE != 0 {
            search.open(at);
            return search.go_on();
        }
        let (number, here) = place(at);
        let Some(page) = search.tables.page(search.generation, number) else {
            return ControlFlow::Break(());
        };
        let rule = Rule(&page[here]);
        let (index, next) = (rule.index(), rule.next());
        if index >= search.scratch.walk.best {
            return ControlFlow::Break(());
        }
        // Most of a list differ in an address, so that one branch is foretold.
        if index >= search.scratch.walk.cursor
            && addresses_match(rule, &search.scratch.headers)
            && fields_match(page, here, search.scratch)
            && search.predicates_hold(rule)
        {
            search.scratch.walk.best = index;
            search.scratch.walk.found = at;
            return ControlFlow::Break(());
        }
        search.next_of_block(next);
        search.go_on()
    }
}

impl<T: Tables> Search<'_, T> {
    /// Begins with a block of a list's rules, whose cell this is.
    #[inline(always)]
    fn open(&mut self, at: u32) {
        let at = at & !Block::HERE;
        let Some(cell) = self.tables.cell(self.generation, at) else {
            self.scratch.walk.at = 0;
            return;
        };
        let (block, query) = (Block(cell), &self.scratch.query);
        let port = self.scratch.headers.key.ports & 0xffff;
        let candidates = block.candidates(query.class, query.ct, port, query.in_patterns);
        self.scratch.walk.candidates = candidates;
        self.scratch.walk.block = at.wrapping_add(self.stride());
        self.next_of_block(block.rest());
    }

    /// Goes to the next rule of the block that the packet may match; if there is none, or no block,
    /// to the rest of the list.
    #[inline(always)]
    fn next_of_block(&mut self, rest: u32) {
        let stride = self.stride();
        let walk = &mut self.scratch.walk;
        let candidates = walk.candidates;
        walk.at = rest;
        if candidates != 0 {
            let lowest = candidates & candidates.wrapping_neg();
            walk.candidates = candidates ^ lowest;
            let offset = stride.wrapping_mul(index_of(lowest));
            walk.at = walk.block.wrapping_add(offset);
        }
    }

    /// Whether the list goes on.
    #[inline(always)]
    fn go_on(&self) -> ControlFlow<()> {
        match self.scratch.walk.at {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Cells from one rule to the next.
    #[inline(always)]
    fn stride(&self) -> u32 {
        1 + u32::from(self.scratch.headers.is_v6())
    }

    /// Whether all of a rule's predicates hold.
    #[inline(always)]
    pub(super) fn predicates_hold(&mut self, rule: Rule<'_>) -> bool {
        let count = rule.predicate_count();
        if count == 0 {
            return true;
        }
        self.scratch.walk.predicates = rule.predicates();
        self.scratch.walk.hold = 1;
        let tables = self.tables;
        tables.run(
            count,
            &mut All(Search {
                tables,
                generation: self.generation,
                scratch: self.scratch,
            }),
        );
        self.scratch.walk.hold != 0
    }
}

/// The place of the one bit that is set among the low sixteen: a de Bruijn product finds the nibble
/// that holds it (Leiserson, Prokop, Randall 1998). BPF compares by branching, which would have the
/// verifier explore both ways of each bit.
#[inline(always)]
pub(super) fn index_of(bit: u32) -> u32 {
    let nibble = bit.wrapping_mul(0x09af) >> 12 & 15;
    (0xcd7ea84fb6935210_u64 >> (4 * nibble)) as u32 & 15
}

/// Whether the first words of a rule's addresses match the packet's.
#[inline(always)]
fn addresses_match(rule: Rule<'_>, headers: &Headers) -> bool {
    let (w, key) = (&rule.0.w, &headers.key);
    ((key.source[0] & w[1]) ^ w[0]) | ((key.destination[0] & w[3]) ^ w[2]) == 0
}

/// Whether a rule's fields match the packet. They are compared without branches: the verifier
/// explores every path through a loop body, and the processor mispredicts them.
#[inline(always)]
pub(super) fn fields_match(page: &Page, at: usize, scratch: &Scratch) -> bool {
    let w = &page[at % PAGE_CELLS].w;
    let query = &scratch.query;
    let headers = &scratch.headers;
    let key = &headers.key;
    let (source_port, destination_port) = (key.ports >> 16, key.ports & 0xffff);
    let out_of_range = source_port.wrapping_sub(w[4] & 0xffff)
        | (w[4] >> 16).wrapping_sub(source_port)
        | destination_port.wrapping_sub(w[5] & 0xffff)
        | (w[5] >> 16).wrapping_sub(destination_port);
    let state = query.ct as u32 & (w[6] >> 16);
    scratch.ask_flags(w[7]);
    let fits = (query.in_patterns >> ((w[7] >> 16) & 63))
        & (query.out_patterns >> ((w[7] >> 24) & 63))
        & 1;
    let differs = ((key.source[0] & w[1]) ^ w[0])
        | ((key.destination[0] & w[3]) ^ w[2])
        | (out_of_range >> 31)
        | ((key.protocol & (w[6] >> 8) & 0xff) ^ (w[6] & 0xff))
        | ((headers.tcp_flags as u32 & w[7] & 0xff) ^ ((w[7] >> 8) & 0xff))
        | (state.wrapping_sub(1) >> 31)
        | (fits as u32 ^ 1);
    if differs != 0 {
        return false;
    }
    if headers.is_v6() {
        // IPv6 rules begin at even cells, so that both of theirs are on one page.
        let (w, s, d) = (
            &page[(at + 1) % PAGE_CELLS].w,
            &key.source,
            &key.destination,
        );
        let differs = ((s[1] & w[3]) ^ w[0])
            | ((s[2] & w[4]) ^ w[1])
            | ((s[3] & w[5]) ^ w[2])
            | ((d[1] & w[9]) ^ w[6])
            | ((d[2] & w[10]) ^ w[7])
            | ((d[3] & w[11]) ^ w[8]);
        if differs != 0 {
            return false;
        }
    }
    true
}

struct All<'a, T: Tables>(Search<'a, T>);

impl<T: Tables> Step for All<'_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let search = &mut self.0;
        let at = search.scratch.walk.predicates.wrapping_add(turn);
        let hold = match search.tables.cell(search.generation, at) {
            Some(cell) => {
                let predicate = Predicate(cell);
                holds(predicate, search.scratch) != predicate.not()
            }
            None => false,
        };
        if hold {
            return ControlFlow::Continue(());
        }
        search.scratch.walk.hold = 0;
        ControlFlow::Break(())
    }
}
