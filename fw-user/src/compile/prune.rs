//! Bitmaps that say which tables of a chain can hold a packet's rules.

use fw_common::abi::blob::{Cell, Prune, PruneFields, RuleFields, prune};

use super::masked::leading_ones;
use crate::policy::model::Family;

/// Chains of fewer tables than this are searched through sooner than bitmaps are looked up.
const FROM_TABLES: usize = 6;

/// The bitmaps of a chain while they are filled.
pub(super) struct Bitmaps {
    fields: PruneFields,
    family: Family,
    /// By source, by destination, by destination port.
    entries: [Vec<u64>; 3],
}

impl Bitmaps {
    /// Empty ones, if so many tables are worth it. The more rules, the more entries.
    pub fn for_tables(tables: usize, rules: usize, family: Family) -> Option<Self> {
        const MOST: usize = 1 << 13;
        let entries = rules.next_power_of_two().clamp(64, MOST);
        (tables >= FROM_TABLES).then(|| Self {
            fields: PruneFields {
                shift: 32 - entries.ilog2(),
                ..PruneFields::default()
            },
            family,
            entries: [
                vec![0; entries],
                vec![0; entries],
                vec![0; Prune::PORTS as usize],
            ],
        })
    }

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

    fn add_address(&mut self, dimension: usize, address: [u32; 4], mask: [u32; 4], bit: u64) {
        let v6 = self.family == Family::Ipv6;
        let whole = if v6 { Prune::BITS_V6 } else { Prune::BITS_V4 };
        let length = leading_ones(mask, self.family);
        let missing = whole.saturating_sub(length);
        if missing > 0 && (v6 || missing > 8) {
            self.fields.always[dimension] |= bit;
            return;
        }
        let cell = self.fields.encode();
        let first = Prune::leading(&address, v6) >> missing << missing;
        for leading in first..=first | ((1 << missing) - 1) {
            let entry = Prune(&cell).entry(leading);
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
