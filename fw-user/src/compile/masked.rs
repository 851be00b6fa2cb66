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

use super::stride;
use super::table_set::align;
use crate::policy::model::Family;

/// Appends the chain's table cells, buckets and rules. Returns the number of tables.
pub(super) fn place(rules: &[RuleFields], family: Family, cells: &mut Vec<Cell>) -> u32 {
    let mut tables = group(rules, family);
    tables.sort_by_key(MaskedTable::min_index);
    let first = cells.len();
    cells.resize(first + tables.len(), Cell::default());
    for (number, table) in tables.iter().enumerate() {
        cells[first + number] = table.place(rules, family, cells).encode();
    }
    tables.len() as u32
}

/// Lists are kept shorter than this where another table can help it.
const LIST_MAX: usize = 8;

/// Puts every rule into the first table that can hold it and has room in its list, else into a new
/// table of a tuple a little wider than the rule's own, so that similar rules will fit as well.
fn group(rules: &[RuleFields], family: Family) -> Vec<MaskedTable> {
    let mut tables: Vec<MaskedTable> = Vec::new();
    for rule in rules {
        let own = Tuple::of(rule, family);
        let roomy = tables.iter_mut().find_map(|table| {
            let list = table.tuple.covers(&own).then(|| table.list(rule))?;
            (list.len() < LIST_MAX).then_some(list)
        });
        if let Some(list) = roomy {
            list.push(rule.index);
            continue;
        }
        let wide = own.relaxed(family);
        let tuple = if tables.iter().any(|table| table.tuple == wide) {
            own
        } else {
            wide
        };
        let table = match tables.iter().position(|table| table.tuple == tuple) {
            // Even the rule's own tuple has a full list: these rules are alike in all that can be
            // hashed, and nothing but a longer list is left.
            Some(place) => &mut tables[place],
            None => {
                tables.push(MaskedTable::new(tuple, family));
                // Just pushed.
                let last = tables.len() - 1;
                &mut tables[last]
            }
        };
        table.list(rule).push(rule.index);
    }
    tables
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
    /// Rule indices by masked key, in the order of their first rule.
    lists: IndexMap<HashKey, Vec<u32>>,
}

impl MaskedTable {
    fn new(tuple: Tuple, family: Family) -> Self {
        Self {
            tuple,
            fields: tuple.fields(family),
            lists: IndexMap::new(),
        }
    }

    /// The list for a rule, ascending, as rules come in order.
    fn list(&mut self, rule: &RuleFields) -> &mut Vec<u32> {
        let fields = &self.fields;
        let key = HashKey {
            source: and(rule.source, fields.source_mask),
            destination: and(rule.destination, fields.destination_mask),
            ports: ((rule.source_ports.0 as u32) << 16 | rule.destination_ports.0 as u32)
                & fields.ports_mask,
            protocol: rule.protocol.unwrap_or(0) as u32 & fields.protocol_mask,
        };
        self.lists.entry(key).or_default()
    }

    fn min_index(&self) -> u32 {
        let first_of = |list: &Vec<u32>| list.first().copied();
        self.lists.values().filter_map(first_of).min().unwrap_or(0)
    }

    /// Appends the buckets and then the rules, list by list.
    fn place(&self, rules: &[RuleFields], family: Family, cells: &mut Vec<Cell>) -> TableFields {
        let Placement { seed, buckets } = Placement::find(&self.lists, family);
        let fields = TableFields {
            buckets: cells.len() as u32,
            bucket_mask: buckets.len() as u32 - 1,
            seed,
            min_index: self.min_index(),
            ..self.fields
        };
        let start = cells.len();
        cells.resize(start + buckets.len(), Cell::default());
        let firsts = self.place_lists(rules, family, cells);
        for (bucket, ways) in buckets.iter().enumerate() {
            for (way, (tag, list)) in ways.iter().enumerate() {
                cells[start + bucket].w[way] = *tag;
                cells[start + bucket].w[Bucket::WAYS + way] = firsts[*list];
            }
        }
        fields
    }

    /// Appends the rules. Returns the first cell of each list.
    fn place_lists(&self, rules: &[RuleFields], family: Family, cells: &mut Vec<Cell>) -> Vec<u32> {
        let stride = stride(family);
        align(cells, family);
        let place_list = |list: &Vec<u32>| {
            let first = cells.len() as u32;
            for (place, index) in list.iter().enumerate() {
                let is_last = place + 1 == list.len();
                let rule = RuleFields {
                    next: if is_last {
                        0
                    } else {
                        cells.len() as u32 + stride
                    },
                    ..rules[*index as usize]
                };
                cells.extend(&rule.encode()[..stride as usize]);
            }
            first
        };
        self.lists.values().map(place_list).collect()
    }
}

/// A seed with which every key has a way in its bucket, and the ways: tag and list number.
struct Placement {
    seed: u32,
    buckets: Vec<Vec<(u32, usize)>>,
}

impl Placement {
    /// Tries seeds, and after a few of them twice the buckets, until no bucket overflows and the
    /// tags within each differ. Ends: any two keys part under almost every seed.
    fn find(lists: &IndexMap<HashKey, Vec<u32>>, family: Family) -> Self {
        const SEEDS_PER_SIZE: u32 = 4;
        const KEYS_PER_BUCKET: usize = 4;
        let mut size = lists.len().div_ceil(KEYS_PER_BUCKET).next_power_of_two();
        let mut seed = 1;
        loop {
            if let Some(buckets) = Self::try_seed(lists, family, size, seed) {
                return Self { seed, buckets };
            }
            if seed % SEEDS_PER_SIZE == 0 {
                size *= 2;
            }
            seed += 1;
        }
    }

    fn try_seed(
        lists: &IndexMap<HashKey, Vec<u32>>,
        family: Family,
        size: usize,
        seed: u32,
    ) -> Option<Vec<Vec<(u32, usize)>>> {
        let mut buckets = vec![Vec::new(); size];
        let probe = TableFields {
            source_mask: [u32::MAX; 4],
            destination_mask: [u32::MAX; 4],
            ports_mask: u32::MAX,
            protocol_mask: u32::MAX,
            bucket_mask: size as u32 - 1,
            seed,
            ..TableFields::default()
        }
        .encode();
        for (list, key) in lists.keys().enumerate() {
            // The datapath's own look-up, on keys that are masked already.
            let (bucket, tag) = Table(&probe).locate(key, family == Family::Ipv6);
            let ways: &mut Vec<(u32, usize)> = &mut buckets[bucket as usize];
            if ways.len() == Bucket::WAYS || ways.iter().any(|(taken, _)| *taken == tag) {
                return None;
            }
            ways.push((tag, list));
        }
        Some(buckets)
    }
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

fn leading_ones(mask: Addr, family: Family) -> u32 {
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
