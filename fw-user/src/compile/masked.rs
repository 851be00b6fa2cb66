//! Masked-hash tables for long chains, after TupleMerge (Daly et al., IEEE/ACM ToN 2019): rules
//! whose prefixes have similar lengths share a table, and the table hashes what they have in
//! common.
//!
//! Which table a rule lands in decides how fast it is found, never whether: a rule's list is the
//! one that every packet it matches hashes to, because a table only looks at bits that the rule
//! fixes, and lists may be of any length.

use fw_common::abi::Addr;
use fw_common::abi::blob::{Bucket, Cell, HashKey, RuleFields, Table, TableFields};
use indexmap::IndexMap;
use indexmap::map::Entry;
use rustc_hash::FxBuildHasher;

use super::blocks;
use super::prune::Survey;
use super::stride;
use super::table_set::align;
use crate::policy::model::Family;

/// Appends the chain's table cells, buckets and rules, and bitmaps if there are many tables. Returns
/// the number of tables, and the cell that leads to the bitmaps, or 0.
pub(super) fn place(
    rules: &[RuleFields],
    groups: &Groups,
    family: Family,
    cells: &mut Vec<Cell>,
) -> (u32, u32) {
    let Groups { tables, next } = groups;
    let chain = Chain {
        rules,
        next,
        family,
    };
    let first = cells.len();
    cells.resize(first + tables.len(), Cell::default());
    for (number, table) in tables.iter().enumerate() {
        cells[first + number] = table.place(&chain, cells).encode();
    }
    let Some(mut survey) = Survey::for_tables(tables.len(), rules.len(), family) else {
        return (tables.len() as u32, 0);
    };
    groups.each_rule(|table, index| survey.add(table, &rules[index as usize]));
    let mut bitmaps = survey.bitmaps();
    groups.each_rule(|table, index| bitmaps.add(table, &rules[index as usize]));
    (tables.len() as u32, bitmaps.place(cells))
}

/// Lists are kept shorter than this where another table can help it.
const LIST_MAX: u32 = 8;

/// The rules of a chain, and for each the next one of its list.
struct Chain<'a> {
    rules: &'a [RuleFields],
    next: &'a [u32],
    family: Family,
}

impl Chain<'_> {
    /// A list's rules.
    fn list(&self, list: &List) -> impl Iterator<Item = RuleFields> {
        let mut index = list.first;
        std::iter::from_fn(move || {
            let rule = *self.rules.get(index as usize)?;
            index = self.next[index as usize];
            Some(rule)
        })
    }
}

/// The end of a list.
const END: u32 = u32::MAX;

/// The rules of a chain, distributed over tables.
pub(super) struct Groups {
    /// Ascending by smallest rule index.
    tables: Vec<MaskedTable>,
    /// The next rule of the same list, by rule.
    next: Vec<u32>,
}

impl Groups {
    /// Puts every rule into the first table that can hold it and has room in its list, else into a
    /// new table of a tuple a little wider than the rule's own, so that similar rules will fit as
    /// well.
    pub fn of(rules: &[RuleFields], family: Family) -> Self {
        let mut groups = Self {
            tables: Vec::new(),
            next: vec![END; rules.len()],
        };
        for rule in rules {
            groups.put(rule, family);
        }
        groups.tables.sort_by_key(MaskedTable::min_index);
        groups
    }

    /// Calls with the number of each rule's table and the rule's index.
    fn each_rule(&self, mut call: impl FnMut(usize, u32)) {
        for (number, table) in self.tables.iter().enumerate() {
            for list in table.lists.values() {
                let mut index = list.first;
                while index != END {
                    call(number, index);
                    index = self.next[index as usize];
                }
            }
        }
    }

    /// The number of tables, each of which every packet may have to be looked for in.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// The length of the longest list, with each of whose rules a packet may have to be compared.
    pub fn longest(&self) -> u32 {
        let tables = self.tables.iter();
        tables.map(|table| table.longest).max().unwrap_or(0)
    }

    /// The index of the longest list's first rule; this looks at all lists.
    pub fn first_of_longest(&self) -> u32 {
        let lists = self.tables.iter().flat_map(|table| table.lists.values());
        let longest = lists.max_by_key(|list| list.length);
        longest.map_or(0, |list| list.first)
    }

    fn put(&mut self, rule: &RuleFields, family: Family) {
        let own = Tuple::of(rule, family);
        let Self { tables, next } = self;
        let roomy = tables.iter_mut().any(|table| {
            let fits = table.tuple.covers(&own);
            fits && table.append(rule, LIST_MAX, next)
        });
        if roomy {
            return;
        }
        let wide = own.relaxed(family);
        let tuple = if tables.iter().any(|table| table.tuple == wide) {
            own
        } else {
            wide
        };
        let place = tables.iter().position(|table| table.tuple == tuple);
        let table = match place {
            // Even the rule's own tuple has a full list: these rules are alike in all that can be
            // hashed, and nothing but a longer list is left.
            Some(place) => &mut tables[place],
            None => {
                // Room for all at once, where there may be many: the first tables hold most of them.
                let expected = next.len() >> (2 * tables.len()).min(16);
                tables.push_mut(MaskedTable::new(tuple, family, expected))
            }
        };
        table.append(rule, u32::MAX, next);
    }
}

/// How many leading bits of each field a table looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: u32,
    destination: u32,
    source_port: u32,
    destination_port: u32,
    protocol: bool,
}

impl Tuple {
    /// The bits that are the same in all packets that the rule matches. Of a mask with holes, only
    /// the leading ones are used.
    fn of(rule: &RuleFields, family: Family) -> Self {
        Self {
            source: leading_ones(rule.source_mask, family),
            destination: leading_ones(rule.destination_mask, family),
            source_port: common_bits(rule.source_ports),
            destination_port: common_bits(rule.destination_ports),
            protocol: rule.protocol.is_some(),
        }
    }

    /// Whether a table of this tuple can hold a rule of the other: it must not look at more bits
    /// than the rule fixes.
    fn covers(&self, rule: &Self) -> bool {
        self.source <= rule.source
            && self.destination <= rule.destination
            && self.source_port <= rule.source_port
            && self.destination_port <= rule.destination_port
            && self.protocol <= rule.protocol
    }

    /// A wider tuple: prefixes rounded down to few lengths, ports exact or not at all, and fields
    /// left out that tell little once others are looked at.
    fn relaxed(&self, family: Family) -> Self {
        let (steps, long): (&[u32], u32) = match family {
            Family::Ipv4 => (&[28, 24, 16, 8], 24),
            Family::Ipv6 => (&[120, 64, 56, 48, 32, 16], 48),
        };
        let round = |length: u32| {
            // A full address keeps a few bits less, so that neighbours share a list.
            let below = steps.iter().copied().find(|step| *step <= length);
            below.unwrap_or(0)
        };
        let exact = |bits: u32| if bits == 16 { 16 } else { 0 };
        let narrow = self.source >= long || self.destination >= long;
        let destination_port = exact(self.destination_port);
        Self {
            source: round(self.source),
            destination: round(self.destination),
            source_port: if narrow { 0 } else { exact(self.source_port) },
            destination_port,
            protocol: self.protocol && !narrow && destination_port == 0,
        }
    }

    fn fields(&self, family: Family) -> TableFields {
        TableFields {
            source_mask: prefix_mask(self.source, family),
            destination_mask: prefix_mask(self.destination, family),
            ports_mask: port_mask(self.source_port) << 16 | port_mask(self.destination_port),
            protocol_mask: if self.protocol { 0xff } else { 0 },
            ..TableFields::default()
        }
    }
}

/// One table while it fills.
struct MaskedTable {
    tuple: Tuple,
    fields: TableFields,
    /// Lists of rules by masked key, in the order of their first rule.
    lists: IndexMap<HashKey, List, FxBuildHasher>,
    /// The length of the longest list.
    longest: u32,
}

/// The rules of a list ascend, as they come in order; each leads to the next ([`Groups::next`]).
struct List {
    first: u32,
    last: u32,
    length: u32,
}

impl MaskedTable {
    fn new(tuple: Tuple, family: Family, expected: usize) -> Self {
        Self {
            tuple,
            fields: tuple.fields(family),
            lists: IndexMap::with_capacity_and_hasher(expected, FxBuildHasher),
            longest: 0,
        }
    }

    /// Appends a rule to its list, unless that has so many already.
    fn append(&mut self, rule: &RuleFields, most: u32, next: &mut [u32]) -> bool {
        let index = rule.index;
        let list = match self.lists.entry(self.key(rule)) {
            Entry::Vacant(entry) => {
                entry.insert(List {
                    first: index,
                    last: index,
                    length: 1,
                });
                self.longest = self.longest.max(1);
                return true;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        if list.length >= most {
            return false;
        }
        next[list.last as usize] = index;
        list.last = index;
        list.length += 1;
        self.longest = self.longest.max(list.length);
        true
    }

    fn key(&self, rule: &RuleFields) -> HashKey {
        let fields = &self.fields;
        HashKey {
            source: and(rule.source, fields.source_mask),
            destination: and(rule.destination, fields.destination_mask),
            ports: ((rule.source_ports.0 as u32) << 16 | rule.destination_ports.0 as u32)
                & fields.ports_mask,
            protocol: rule.protocol.unwrap_or(0) as u32 & fields.protocol_mask,
        }
    }

    fn min_index(&self) -> u32 {
        // Lists are in the order of their first rule.
        self.lists.values().next().map_or(0, |list| list.first)
    }

    /// Appends the buckets and then the rules, list by list.
    fn place(&self, chain: &Chain<'_>, cells: &mut Vec<Cell>) -> TableFields {
        let Placement { seed, buckets } = Placement::find(&self.lists, chain.family);
        let fields = TableFields {
            buckets: cells.len() as u32,
            bucket_mask: buckets.len() as u32 - 1,
            seed,
            min_index: self.min_index(),
            ..self.fields
        };
        let start = cells.len();
        cells.extend(buckets);
        let end = cells.len();
        let firsts = self.place_lists(chain, cells);
        for bucket in &mut cells[start..end] {
            let (tags, lists) = bucket.w.split_at_mut(Bucket::WAYS);
            for (_, list) in tags.iter().zip(lists).filter(|(tag, _)| **tag != 0) {
                *list = firsts[*list as usize];
            }
        }
        fields
    }

    /// Appends the rules. Returns where each list begins.
    fn place_lists(&self, chain: &Chain<'_>, cells: &mut Vec<Cell>) -> Vec<u32> {
        let stride = stride(chain.family);
        align(cells, chain.family);
        let mut long = Vec::new();
        let place_list = |list: &List| {
            if list.length >= blocks::FROM_RULES {
                long.clear();
                long.extend(chain.list(list));
                return blocks::place(&long, chain.family, cells);
            }
            let first = cells.len() as u32;
            for rule in chain.list(list) {
                let last = rule.index == list.last;
                let next = cells.len() as u32 + stride;
                let next = if last { 0 } else { next };
                let rule = RuleFields { next, ..rule };
                cells.extend_from_slice(&rule.encode()[..stride as usize]);
            }
            first
        };
        self.lists.values().map(place_list).collect()
    }
}

/// A seed with which every key has a way in its bucket, and the buckets, with the lists' numbers
/// where the lists' cells will be. Tags are odd: a way without one is free.
struct Placement {
    seed: u32,
    buckets: Vec<Cell>,
}

impl Placement {
    /// Tries seeds, and after a few of them twice the buckets, until no bucket overflows and the
    /// tags within each differ. Ends: any two keys part under almost every seed.
    fn find(lists: &IndexMap<HashKey, List, FxBuildHasher>, family: Family) -> Self {
        const SEEDS_PER_SIZE: u32 = 4;
        let mut buckets = vec![Cell::default(); enough_buckets(lists.len())];
        let mut seed = 1;
        while !Self::try_seed(lists, family, &mut buckets, seed) {
            buckets.fill(Cell::default());
            if seed % SEEDS_PER_SIZE == 0 {
                buckets.resize(buckets.len() * 2, Cell::default());
            }
            seed += 1;
        }
        Self { seed, buckets }
    }

    fn try_seed(
        lists: &IndexMap<HashKey, List, FxBuildHasher>,
        family: Family,
        buckets: &mut [Cell],
        seed: u32,
    ) -> bool {
        let probe = TableFields {
            source_mask: [u32::MAX; 4],
            destination_mask: [u32::MAX; 4],
            ports_mask: u32::MAX,
            protocol_mask: u32::MAX,
            bucket_mask: buckets.len() as u32 - 1,
            seed,
            ..TableFields::default()
        }
        .encode();
        for (list, key) in lists.keys().enumerate() {
            // The datapath's own look-up, on keys that are masked already.
            let (bucket, tag) = Table(&probe).locate(key, family == Family::Ipv6);
            let (tags, numbers) = buckets[bucket as usize].w.split_at_mut(Bucket::WAYS);
            let taken = |way: &u32| *way == tag || *way == 0;
            match tags.iter().position(taken) {
                Some(way) if tags[way] == 0 => {
                    tags[way] = tag;
                    numbers[way] = list as u32;
                }
                // Full, or the same tag twice.
                _ => return false,
            }
        }
        true
    }
}

/// So many that half of all seeds or so will do: keys fall into buckets like drops of rain, with
/// Poisson's probabilities.
fn enough_buckets(keys: usize) -> usize {
    let overflows = |buckets: usize| {
        let mean = keys as f64 / buckets as f64;
        let mut exactly = (-mean).exp();
        let mut fits = exactly;
        for ways in 1..=Bucket::WAYS {
            exactly *= mean / ways as f64;
            fits += exactly;
        }
        (1.0 - fits) * buckets as f64
    };
    let mut buckets = keys.div_ceil(Bucket::WAYS).next_power_of_two();
    while overflows(buckets) > 0.7 {
        buckets *= 2;
    }
    buckets
}

fn and(address: Addr, mask: Addr) -> Addr {
    std::array::from_fn(|word| address[word] & mask[word])
}

const fn bits(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    }
}

fn whole(address: Addr) -> u128 {
    address
        .into_iter()
        .fold(0, |bits, word| bits << 32 | u128::from(word))
}

pub(super) fn leading_ones(mask: Addr, family: Family) -> u32 {
    whole(mask).leading_ones().min(bits(family))
}

fn prefix_mask(length: u32, family: Family) -> Addr {
    let zeros = 128 - length.min(bits(family));
    let mask = u128::MAX.checked_shl(zeros).unwrap_or(0);
    [96, 64, 32, 0].map(|shift| (mask >> shift) as u32)
}

/// Leading bits that all numbers of a range share.
fn common_bits((first, last): (u16, u16)) -> u32 {
    (first ^ last).leading_zeros()
}

fn port_mask(length: u32) -> u32 {
    0xffff_0000_u32.checked_shr(length).unwrap_or(0) & 0xffff
}

#[cfg(test)]
#[path = "masked_tests.rs"]
mod tests;
