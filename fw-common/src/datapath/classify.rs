//! Classification: a chain interpreter over masked-hash tables. It finds "the next match with an
//! index at or after the cursor", counts it, and does what its target says, until a verdict.

use core::ops::ControlFlow;

use super::header::Headers;
use super::tables::{Step, Tables};
use crate::abi::blob::{
    Bucket, Chain, DIRECTORY, MAX_DEPTH, Predicate, Rule, Table, chain_kind, condition, target,
};
use crate::abi::stat::Stat;

/// What a chain is asked about a packet.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The packet's headers.
    pub headers: &'a Headers,
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
}

/// How a base chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Decision {
    /// ACCEPT.
    Accept,
    /// Dropped, and why.
    Drop(Stat),
    /// MASQUERADE, with a range of ports ([`crate::abi::blob::pack_range`]; 0 for any).
    Masquerade {
        /// The range.
        ports: u32,
        /// Do not try the original port first.
        random: bool,
    },
}

/// Longest evaluation: rules that matched without deciding, plus chain ends. `bpf_loop` allows 2^23.
const MAX_STEPS: u32 = 1 << 20;

/// Sends a packet through a base chain. An absent chain accepts.
#[inline(never)]
pub fn traverse<T: Tables>(
    tables: &T,
    generation: T::Generation,
    base: u32,
    query: &Query<'_>,
) -> Decision {
    let mut walk = Walk {
        tables,
        generation,
        query,
        base,
        chain: base,
        cursor: 0,
        depth: 0,
        code: CODE_UNBOUNDED,
        argument: 0,
    };
    tables.run(MAX_STEPS, &mut walk);
    match walk.code {
        target::ACCEPT => Decision::Accept,
        target::DROP => Decision::Drop(Stat::Policy),
        target::MASQUERADE => Decision::Masquerade {
            ports: walk.argument,
            random: false,
        },
        target::MASQUERADE_RANDOM => Decision::Masquerade {
            ports: walk.argument,
            random: true,
        },
        _ => Decision::Drop(Stat::Unbounded),
    }
}

/// No target has this number: the walk has not ended.
const CODE_UNBOUNDED: u32 = u32::MAX;

struct Walk<'a, T: Tables> {
    tables: &'a T,
    generation: T::Generation,
    query: &'a Query<'a>,
    base: u32,
    chain: u32,
    cursor: u32,
    depth: u32,
    code: u32,
    argument: u32,
}

impl<T: Tables> Step for Walk<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let Some(chain) = self
            .tables
            .cell(self.generation, DIRECTORY.wrapping_add(self.chain))
        else {
            return ControlFlow::Break(());
        };
        let found = next_match(
            self.tables,
            self.generation,
            Chain(chain),
            self.cursor,
            self.query,
        );
        if found == 0 {
            return self.leave_chain();
        }
        let Some(rule) = self.tables.cell(self.generation, found) else {
            return ControlFlow::Break(());
        };
        let rule = Rule(rule);
        self.count(rule.slot());
        self.cursor = rule.index().wrapping_add(1);
        match rule.target() {
            target::CONTINUE => ControlFlow::Continue(()),
            target::RETURN => self.leave_chain(),
            target::JUMP => {
                let Some(frame) = self.tables.frame(self.depth) else {
                    return ControlFlow::Break(());
                };
                frame.set(pack_frame(self.chain, self.cursor, self.depth.wrapping_add(1)));
                // Read back, so that the depth is an unknown number to the verifier: it would
                // explore a constant for every depth of its own.
                self.depth = frame_depth(frame.get());
                self.enter_chain(rule.argument())
            }
            target::GOTO => self.enter_chain(rule.argument()),
            verdict => {
                self.code = verdict;
                self.argument = rule.argument();
                ControlFlow::Break(())
            }
        }
    }
}

impl<T: Tables> Walk<'_, T> {
    #[inline(always)]
    fn enter_chain(&mut self, chain: u32) -> ControlFlow<()> {
        self.chain = chain;
        self.cursor = 0;
        ControlFlow::Continue(())
    }

    /// RETURN, or the end of a chain: back to the caller, or to the base chain's policy. After a
    /// goto from the base chain there is no caller either, and the same policy applies
    /// (`ipt_do_table` in net/ipv4/netfilter/ip_tables.c).
    #[inline(always)]
    fn leave_chain(&mut self) -> ControlFlow<()> {
        if self.depth == 0 {
            let Some(base) = self
                .tables
                .cell(self.generation, DIRECTORY.wrapping_add(self.base))
            else {
                return ControlFlow::Break(());
            };
            let base = Chain(base);
            self.code = target::ACCEPT;
            if base.kind() != chain_kind::ABSENT {
                self.count(base.policy_slot());
                if base.policy() == Chain::DROP {
                    self.code = target::DROP;
                }
            }
            return ControlFlow::Break(());
        }
        let Some(frame) = self.tables.frame(self.depth.wrapping_sub(1)) else {
            return ControlFlow::Break(());
        };
        let caller = frame.get();
        self.chain = (caller >> 40) as u32;
        self.cursor = (caller >> 8) as u32;
        self.depth = frame_depth(caller).wrapping_sub(1);
        ControlFlow::Continue(())
    }

    #[inline(always)]
    fn count(&self, slot: u32) {
        let query = self.query;
        self.tables
            .hit(slot, query.packets as u32, query.headers.bytes);
    }
}

/// A return address: the chain (24 bits), the rule to go on with, and the depth after the jump.
#[inline(always)]
fn pack_frame(chain: u32, cursor: u32, depth: u32) -> u64 {
    (chain as u64) << 40 | (cursor as u64) << 8 | depth as u64
}

#[inline(always)]
fn frame_depth(frame: u64) -> u32 {
    frame as u32 & 0xff
}

const _: () = assert!(MAX_DEPTH <= 0xff);

/// The first rule of a chain at or after `cursor` that matches, as its cell's index; 0 for none.
#[inline(always)]
fn next_match<T: Tables>(
    tables: &T,
    generation: T::Generation,
    chain: Chain<'_>,
    cursor: u32,
    query: &Query<'_>,
) -> u32 {
    let mut search = Search {
        tables,
        generation,
        query,
        first: chain.first(),
        stride: chain.stride(),
        cursor,
        best: u32::MAX,
        found: 0,
        at: 0,
    };
    match chain.kind() {
        chain_kind::LINEAR => {
            let left = chain.count().saturating_sub(cursor);
            tables.run(left, &mut InOrder(&mut search));
        }
        chain_kind::TABLES => tables.run(chain.count(), &mut InTables(&mut search)),
        _ => {}
    }
    search.found
}

struct Search<'a, T: Tables> {
    tables: &'a T,
    generation: T::Generation,
    query: &'a Query<'a>,
    /// First rule cell, or first table cell.
    first: u32,
    stride: u32,
    cursor: u32,
    /// Smallest index that matched so far.
    best: u32,
    /// Its cell.
    found: u32,
    /// The list cell to be looked at.
    at: u32,
}

struct InOrder<'s, 'a, T: Tables>(&'s mut Search<'a, T>);

impl<T: Tables> Step for InOrder<'_, '_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let search = &mut *self.0;
        let place = search.cursor.wrapping_add(turn);
        let at = search.first.wrapping_add(place.wrapping_mul(search.stride));
        if search.matches(at) {
            search.found = at;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

struct InTables<'s, 'a, T: Tables>(&'s mut Search<'a, T>);

impl<T: Tables> Step for InTables<'_, '_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        let search = &mut *self.0;
        let Some(table) = search
            .tables
            .cell(search.generation, search.first.wrapping_add(turn))
        else {
            return ControlFlow::Break(());
        };
        let table = Table(table);
        if table.min_index() >= search.best {
            // Tables ascend by their smallest index: no later one can do better.
            return ControlFlow::Break(());
        }
        let headers = search.query.headers;
        let (bucket, tag) = table.locate(&headers.key, headers.is_v6());
        let Some(bucket) = search.tables.cell(search.generation, bucket) else {
            return ControlFlow::Break(());
        };
        search.at = Bucket(bucket).find(tag);
        if search.at != 0 {
            let tables = search.tables;
            tables.run(MAX_LIST, &mut InList(search));
        }
        ControlFlow::Continue(())
    }
}

/// Longest bucket list; the builder keeps lists far shorter unless rules are alike in every hashed
/// field.
const MAX_LIST: u32 = 1 << 22;

struct InList<'s, 'a, T: Tables>(&'s mut Search<'a, T>);

impl<T: Tables> Step for InList<'_, '_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let search = &mut *self.0;
        let at = search.at;
        let Some(rule) = search.tables.cell(search.generation, at) else {
            return ControlFlow::Break(());
        };
        let (index, next) = (Rule(rule).index(), Rule(rule).next());
        if index >= search.best {
            return ControlFlow::Break(());
        }
        if index >= search.cursor && search.matches(at) {
            search.best = index;
            search.found = at;
            return ControlFlow::Break(());
        }
        search.at = next;
        if next == 0 {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

impl<T: Tables> Search<'_, T> {
    /// Whether the rule at a cell matches. The fields are compared without branches: the verifier
    /// explores every path through a loop body, and the processor mispredicts them.
    #[inline(always)]
    fn matches(&self, at: u32) -> bool {
        let Some(cell) = self.tables.cell(self.generation, at) else {
            return false;
        };
        let w = &cell.w;
        let query = self.query;
        let headers = query.headers;
        let key = &headers.key;
        let (source_port, destination_port) = (key.ports >> 16, key.ports & 0xffff);
        let out_of_range = source_port.wrapping_sub(w[4] & 0xffff)
            | (w[4] >> 16).wrapping_sub(source_port)
            | destination_port.wrapping_sub(w[5] & 0xffff)
            | (w[5] >> 16).wrapping_sub(destination_port);
        let state = query.ct as u32 & (w[6] >> 16);
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
            let Some(second) = self.tables.cell(self.generation, at.wrapping_add(1)) else {
                return false;
            };
            let (w, s, d) = (&second.w, &key.source, &key.destination);
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
        let rule = Rule(cell);
        if rule.predicate_count() == 0 {
            return true;
        }
        let mut all = All {
            tables: self.tables,
            generation: self.generation,
            query,
            first: rule.predicates(),
            hold: true,
        };
        self.tables.run(rule.predicate_count(), &mut all);
        all.hold
    }
}

struct All<'a, T: Tables> {
    tables: &'a T,
    generation: T::Generation,
    query: &'a Query<'a>,
    first: u32,
    hold: bool,
}

impl<T: Tables> Step for All<'_, T> {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> ControlFlow<()> {
        self.hold = match self
            .tables
            .cell(self.generation, self.first.wrapping_add(turn))
        {
            Some(cell) => {
                let predicate = Predicate(cell);
                holds(predicate, self.query) != predicate.not()
            }
            None => false,
        };
        if self.hold {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }
}

#[inline(always)]
fn holds(predicate: Predicate<'_>, query: &Query<'_>) -> bool {
    let w = &predicate.0.w;
    let headers = query.headers;
    let key = &headers.key;
    match predicate.kind() {
        condition::PORTS => {
            let which = w[0] >> 16;
            let source = in_ranges(w, key.ports >> 16) & (which & 1);
            let destination = in_ranges(w, key.ports & 0xffff) & (which >> 1 & 1);
            source | destination != 0
        }
        condition::SOURCE => under_mask(&key.source, w),
        condition::DESTINATION => under_mask(&key.destination, w),
        condition::IN_INTERFACE => query.in_patterns >> (w[1] & 63) & 1 != 0,
        condition::OUT_INTERFACE => query.out_patterns >> (w[1] & 63) & 1 != 0,
        condition::PROTOCOL => key.protocol == w[1],
        condition::TCP_FLAGS => headers.tcp_flags as u32 & w[1] == w[2],
        condition::CT_STATE => query.ct as u32 & w[1] != 0,
        condition::CT_DIRECTION => {
            if query.direction >= 2 {
                w[2] != 0
            } else {
                query.direction as u32 == w[1]
            }
        }
        condition::ICMP => {
            let code = key.ports & 0xffff;
            key.ports >> 16 == w[1] && code >= w[2] && code <= w[3]
        }
        _ => false,
    }
}

/// 1 if the port is in any of the cell's 15 ranges.
#[inline(always)]
fn in_ranges(w: &[u32; 16], port: u32) -> u32 {
    let mut found = 0;
    let mut place = 1;
    while place < 16 {
        let outside = port.wrapping_sub(w[place] & 0xffff) | (w[place] >> 16).wrapping_sub(port);
        found |= (outside >> 31) ^ 1;
        place += 1;
    }
    found
}

#[inline(always)]
fn under_mask(address: &[u32; 4], w: &[u32; 16]) -> bool {
    ((address[0] & w[5]) ^ w[1])
        | ((address[1] & w[6]) ^ w[2])
        | ((address[2] & w[7]) ^ w[3])
        | ((address[3] & w[8]) ^ w[4])
        == 0
}
