//! Bitmaps that say which tables of a chain can hold a packet's rules.

use fw_common::abi::Addr;
use fw_common::abi::blob::{Cell, Prune, PruneFields, RuleFields, prune};

use super::masked::leading_ones;
use crate::policy::model::Family;

/// Chains of fewer tables than this are searched through sooner than bitmaps are looked up.
const FROM_TABLES: usize = 6;
/// A rule whose prefix lacks up to so many of the leading bits is in the entries of all that it
/// covers; one that lacks more is in the bitmap of those that are everywhere.
const MOST_MISSING: u32 = 8;

/// How many rules have a prefix of each length, for each bit of a bitmap.
type Lengths = Vec<[u32; 129]>;

/// The rules of a chain by the lengths of their sources and destinations, which say how many leading
/// bits its bitmaps go by.
pub(super) struct Survey {
    family: Family,
    entries: usize,
    lengths: [Lengths; 2],
}

impl Survey {
    /// One of no rules yet, if so many tables are worth it. The more rules, the more entries.
    pub fn for_tables(tables: usize, rules: usize, family: Family) -> Option<Self> {
        const MOST: usize = 1 << 13;
        let bits = tables.min(u64::BITS as usize);
        (tables >= FROM_TABLES).then(|| Self {
            family,
            entries: rules.next_power_of_two().clamp(64, MOST),
            lengths: [vec![[0; 129]; bits], vec![[0; 129]; bits]],
        })
    }

    /// A rule of the table with this number.
    pub fn add(&mut self, table: usize, rule: &RuleFields) {
        let bit = prune::table_bit(table as u32) as usize;
        for (lengths, mask) in self
            .lengths
            .iter_mut()
            .zip([rule.source_mask, rule.destination_mask])
        {
            lengths[bit][leading_ones(mask, self.family) as usize] += 1;
        }
    }

    /// Empty bitmaps, to which the same rules are to be added.
    pub fn bitmaps(&self) -> Bitmaps {
        let leading = [0, 1].map(|dimension| self.leading(dimension));
        Bitmaps {
            fields: PruneFields {
                shift: 32 - self.entries.ilog2(),
                leading: leading.map(|bits| u64::MAX << (u64::BITS - bits)),
                ..PruneFields::default()
            },
            family: self.family,
            leading,
            entries: [
                vec![0; self.entries],
                vec![0; self.entries],
                vec![0; Prune::PORTS as usize],
            ],
        }
    }

    /// So many leading bits that few tables are looked into: with few bits, rules share entries; with many,
    /// those whose prefixes are short are everywhere. Of numbers that are about as good, the greatest: addresses
    /// are not spread evenly, and more bits tell more neighbours apart.
    fn leading(&self, dimension: usize) -> u32 {
        /// Tables more that a packet is looked for in.
        const AS_GOOD: f64 = 0.25;
        let most = match self.family {
            Family::Ipv4 => 32,
            Family::Ipv6 => 64,
        };
        let looks = |leading: u32| -> f64 {
            let space = self.entries.min(1 << leading.min(16)) as f64;
            let look = |lengths: &[u32; 129]| taken(lengths, leading, space);
            self.lengths[dimension].iter().map(look).sum()
        };
        let choices: Vec<(u32, f64)> = (8..=most)
            .rev()
            .step_by(4)
            .map(|leading| (leading, looks(leading)))
            .collect();
        let fewest = choices
            .iter()
            .fold(f64::INFINITY, |fewest, (_, looks)| fewest.min(*looks));
        choices
            .iter()
            .find(|(_, looks)| *looks <= fewest + AS_GOOD)
            .map_or(most, |(leading, _)| *leading)
    }
}

/// The share of the entries in which rules of these lengths have their bit, if they fall anywhere.
fn taken(lengths: &[u32; 129], leading: u32, entries: f64) -> f64 {
    let mut bits = 0.0;
    for (length, rules) in (0..).zip(lengths).filter(|(_, rules)| **rules > 0) {
        match covered(length, leading) {
            Some(covered) => bits += f64::from(*rules) * f64::from(covered),
            None => return 1.0,
        }
    }
    1.0 - (-bits / entries).exp()
}

/// How many values of so many leading bits a prefix covers; nothing if it is to be everywhere.
fn covered(length: u32, leading: u32) -> Option<u32> {
    let missing = leading.saturating_sub(length);
    (length > 0 && missing <= MOST_MISSING).then(|| 1 << missing)
}

/// The bitmaps of a chain while they are filled.
pub(super) struct Bitmaps {
    fields: PruneFields,
    family: Family,
    /// How many leading bits of a source, and of a destination, its entry is found by.
    leading: [u32; 2],
    /// By source, by destination, by destination port.
    entries: [Vec<u64>; 3],
}

impl Bitmaps {
    /// A rule of the table with this number.
    pub fn add(&mut self, table: usize, rule: &RuleFields) {
        let bit = 1 << prune::table_bit(table as u32);
        self.add_address(0, rule.source, rule.source_mask, bit);
        self.add_address(1, rule.destination, rule.destination_mask, bit);
        let [first, last] = [rule.destination_ports.0, rule.destination_ports.1]
            .map(|port| Prune::port_entry(port.into()) as usize);
        if last - first >= Prune::PORTS as usize / 4 {
            self.fields.always[2] |= bit;
            return;
        }
        for entry in &mut self.entries[2][first..=last] {
            *entry |= bit;
        }
    }

    fn add_address(&mut self, dimension: usize, address: Addr, mask: Addr, bit: u64) {
        let leading = self.leading[dimension];
        let length = leading_ones(mask, self.family);
        let Some(covered) = covered(length, leading) else {
            self.fields.always[dimension] |= bit;
            return;
        };
        let cell = self.fields.encode();
        // A mask may have holes, so that the address has bits behind the leading ones.
        let prefix = u64::MAX << (u64::BITS - length.min(leading));
        let first = (u64::from(address[0]) << 32 | u64::from(address[1])) & prefix;
        for beyond in 0..u64::from(covered) {
            let address = first | beyond << (u64::BITS - leading);
            let words = [(address >> 32) as u32, address as u32, 0, 0];
            let entry = Prune(&cell).entry(dimension, &words);
            self.entries[dimension][entry as usize] |= bit;
        }
    }

    /// Appends the cells; returns the one that leads to the others.
    pub fn place(mut self, cells: &mut Vec<Cell>) -> u32 {
        let at = cells.len();
        cells.push(Cell::default());
        for (first, entries) in self.fields.first.iter_mut().zip(&self.entries) {
            *first = cells.len() as u32;
            for bitmaps in entries.chunks(prune::ENTRIES as usize) {
                let mut cell = Cell::default();
                for (words, bits) in cell.w.chunks_exact_mut(2).zip(bitmaps) {
                    words[0] = *bits as u32;
                    words[1] = (*bits >> 32) as u32;
                }
                cells.push(cell);
            }
        }
        cells[at] = self.fields.encode();
        at as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A survey of two tables: rules with these lengths of sources, and with no destinations.
    fn survey(family: Family, rules: usize, lengths: [&[u32]; 2]) -> Survey {
        let mut survey = Survey::for_tables(FROM_TABLES, rules, family).expect("enough tables");
        for (table, lengths) in lengths.into_iter().enumerate() {
            for length in lengths {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                let rule = RuleFields {
                    source_mask: [96, 64, 32, 0].map(|shift| (mask >> shift) as u32),
                    ..RuleFields::default()
                };
                survey.add(table, &rule);
            }
        }
        survey
    }

    #[test]
    fn bitmaps_go_by_what_prefixes_have() {
        // Providers' prefixes of IPv6 are too short for so many bits as tell customers apart.
        let mixed = survey(Family::Ipv6, 1_000, [&[32, 36, 40], &[48, 64]]);
        assert_eq!(mixed.leading(0), 40);
        let customers = survey(Family::Ipv6, 1_000, [&[56, 60], &[64, 128]]);
        assert_eq!(customers.leading(0), 64);
        let hosts = survey(Family::Ipv4, 1_000, [&[32], &[32]]);
        assert_eq!(hosts.leading(0), 32);
        let networks = survey(Family::Ipv4, 1_000, [&[16, 24], &[12]]);
        assert_eq!(networks.leading(0), 20);
    }

    /// One prefix that is far shorter than the others has its table looked into for all: it must not make bits
    /// of the others useless.
    #[test]
    fn one_short_prefix_does_not_spoil_the_others() {
        let others = vec![24; 500];
        let survey = survey(Family::Ipv4, 1_000, [&others, &[1]]);
        let mut bitmaps = survey.bitmaps();
        assert!(bitmaps.leading[0] >= 20, "{}", bitmaps.leading[0]);
        bitmaps.add(
            1,
            &RuleFields {
                source_mask: [1 << 31, 0, 0, 0],
                ..RuleFields::default()
            },
        );
        assert_eq!(bitmaps.fields.always[0], 1 << prune::table_bit(1));
    }

    #[test]
    fn a_prefix_has_its_bit_in_the_entries_of_all_that_it_covers() {
        let survey = survey(Family::Ipv6, 1_000, [&[32, 40], &[30]]);
        let mut bitmaps = survey.bitmaps();
        let rule = RuleFields {
            source: [0x2001_0db8, 0, 0, 0],
            source_mask: [0xffff_fffc, 0, 0, 0],
            ..RuleFields::default()
        };
        bitmaps.add(1, &rule);
        let mut cells = Vec::new();
        let at = bitmaps.place(&mut cells);
        let view = Prune(&cells[at as usize]);
        let has = |address: Addr| {
            let entry = view.entry(0, &address);
            view.bits(0, entry, &cells[view.cell(0, entry) as usize]) & 2 != 0
        };
        for last in 0..4 {
            for second in [0, 0x1234_5678, u32::MAX] {
                assert!(has([0x2001_0db8 + last, second, 7, 7]));
            }
        }
        let strangers = (0..1_000_u32).filter(|number| has([0x2a00_0000 + number * 77, 0, 0, 0]));
        assert!(strangers.count() < 100);
    }
}
