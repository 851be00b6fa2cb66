//! The lists of a table as they are stored: rules one after the other, each of which says where the
//! next one is, and of longer lists those next to each other in blocks, where this has a packet
//! compared with fewer of them.

use fw_common::abi::blob::{Block, BlockFields, Cell, Filter, Rule, RuleFields};

use super::stride;
use super::table_set::align;
use crate::policy::model::Family;

/// Lists of fewer rules than this are always stored without blocks.
pub(super) const FROM_RULES: u32 = 4;

/// Appends the rules of a list, which may be long. Returns where it begins.
pub(super) fn place(rules: &[RuleFields], family: Family, cells: &mut Vec<Cell>) -> u32 {
    align(cells, family);
    let stride = stride(family);
    let mut pieces = rules.chunks(Block::RULES).map(Piece::of).peekable();
    let first = pieces.peek().map_or(0, |piece| piece.begin(cells.len()));
    while let Some(piece) = pieces.next() {
        let end = cells.len() + piece.cells(stride) as usize;
        let rest = pieces.peek().map_or(0, |next| next.begin(end));
        piece.place(rest, family, cells);
    }
    first
}

/// So many rules as fit a block, and their bitmaps if these help.
struct Piece<'a> {
    rules: &'a [RuleFields],
    filter: Option<Filter>,
}

impl<'a> Piece<'a> {
    fn of(rules: &'a [RuleFields]) -> Self {
        // A look at the bitmaps takes as long as one at a rule or two.
        let filter = compared(rules) + 2.0 <= rules.len() as f64;
        Self {
            rules,
            filter: filter.then(|| Filter::of(rules)),
        }
    }

    /// What leads to the piece, if it is at this cell.
    fn begin(&self, at: usize) -> u32 {
        match self.filter {
            Some(_) => at as u32 | Block::HERE,
            None => at as u32,
        }
    }

    fn cells(&self, stride: u32) -> u32 {
        (self.rules.len() as u32 + u32::from(self.filter.is_some())) * stride
    }

    fn place(&self, rest: u32, family: Family, cells: &mut Vec<Cell>) {
        let stride = stride(family);
        if let Some(filter) = self.filter {
            let block = BlockFields {
                rest,
                count: self.rules.len() as u32,
                filter,
            };
            cells.push(block.encode());
            align(cells, family);
        }
        for (place, rule) in self.rules.iter().enumerate() {
            let last = place + 1 == self.rules.len();
            let rule = RuleFields {
                next: if last || self.filter.is_some() {
                    rest
                } else {
                    cells.len() as u32 + stride
                },
                ..*rule
            };
            cells.extend_from_slice(&rule.encode()[..stride as usize]);
        }
    }
}

/// With how many of a block's rules a packet is compared on average: half of all are TCP and half
/// UDP, half are new, and half of the interfaces that bitmaps know are the packet's.
fn compared(rules: &[RuleFields]) -> f64 {
    use fw_common::abi::ct::NEW;
    let share = |rule: &RuleFields| {
        let protocol = match rule.protocol {
            None => 1.0,
            Some(6 | 17) => 0.5,
            Some(_) => 0.0,
        };
        let both = rule.ct_mask & NEW != 0 && rule.ct_mask & !NEW != 0;
        let (first, last) = rule.destination_ports;
        let ports = (f64::from(last - first) + 1.0) / 8.0;
        let interface = matches!(rule.in_pattern, 1..=4);
        protocol * if both { 1.0 } else { 0.5 } * ports.min(1.0) * if interface { 0.5 } else { 1.0 }
    };
    rules.iter().map(share).sum()
}

/// The cells of a list's rules, in order. It ends where the list does, and in a damaged one at the
/// first cell that is not there or not behind the one before.
pub(super) fn rules(cells: &[Cell], at: u32, family: Family) -> Rules<'_> {
    Rules {
        cells,
        at,
        stride: stride(family),
        block: 0,
        last: 0,
    }
}

/// See [`rules`].
pub(super) struct Rules<'a> {
    cells: &'a [Cell],
    at: u32,
    stride: u32,
    /// Rules that are left of a block.
    block: u32,
    last: u32,
}

impl Iterator for Rules<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.at & Block::HERE != 0 {
            let at = self.at & !Block::HERE;
            let block = Block(self.cells.get(at as usize)?);
            self.block = block.count();
            self.at = at + self.stride;
        }
        let at = self.at;
        if at <= self.last {
            return None;
        }
        let rule = Rule(self.cells.get(at as usize)?);
        self.last = at;
        self.block = self.block.saturating_sub(1);
        self.at = if self.block > 0 {
            at + self.stride
        } else {
            rule.next()
        };
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use fw_common::abi::ct::{ESTABLISHED, NEW};

    use super::*;

    /// Rules of one list, each about something else that bitmaps know.
    fn telling(count: u32) -> Vec<RuleFields> {
        (0..count)
            .map(|index| RuleFields {
                index,
                protocol: [Some(6), Some(17), None][index as usize % 3],
                ct_mask: [NEW, ESTABLISHED, 0xff][index as usize / 3 % 3],
                destination_ports: (index as u16, index as u16),
                in_pattern: (index % 6) as u8,
                ..RuleFields::default()
            })
            .collect()
    }

    fn indices(cells: &[Cell], at: u32, family: Family) -> Vec<u32> {
        rules(cells, at, family)
            .map(|at| Rule(&cells[at as usize]).index())
            .collect()
    }

    #[test]
    fn all_rules_are_there_in_order() {
        for family in [Family::Ipv4, Family::Ipv6] {
            for count in [1, 3, 4, 15, 16, 17, 32, 33, 100] {
                for list in [telling(count), alike(count)] {
                    let mut cells = vec![Cell::default()];
                    let first = place(&list, family, &mut cells);
                    let expected: Vec<u32> = (0..count).collect();
                    assert_eq!(indices(&cells, first, family), expected);
                }
            }
        }
    }

    /// Bitmaps tell nothing about them.
    fn alike(count: u32) -> Vec<RuleFields> {
        let rule = |index| RuleFields {
            index,
            source: [index, 0, 0, 0],
            source_mask: [u32::MAX, 0, 0, 0],
            ..RuleFields::default()
        };
        (0..count).map(rule).collect()
    }

    #[test]
    fn blocks_are_made_where_they_help() {
        let at = |list: &[RuleFields]| place(list, Family::Ipv4, &mut vec![Cell::default()]);
        assert_ne!(at(&telling(8)) & Block::HERE, 0);
        assert_eq!(at(&alike(8)) & Block::HERE, 0);
        // Some of each: the first sixteen need no block, the others have one.
        let mut list = alike(16);
        list.extend(telling(8).into_iter().map(|rule| RuleFields {
            index: rule.index + 16,
            ..rule
        }));
        let mut cells = vec![Cell::default()];
        let first = place(&list, Family::Ipv4, &mut cells);
        assert_eq!(first, 1);
        assert_eq!(Rule(&cells[16]).next(), 17 | Block::HERE);
        assert_eq!(indices(&cells, first, Family::Ipv4).len(), 24);
    }

    #[test]
    fn whatever_a_rule_matches_is_compared_with_it() {
        let list = telling(16);
        let mut cells = vec![Cell::default()];
        let first = place(&list, Family::Ipv4, &mut cells);
        let block = Block(&cells[(first & !Block::HERE) as usize]);
        let mut left_out = 0;
        for rule in &list {
            for (class, protocol) in [(0, 6), (1, 17), (3, 47)] {
                for ct in [NEW, ESTABLISHED] {
                    for port in 0..16 {
                        for patterns in [1, 0b10_0111, u64::MAX] {
                            let matches = rule.protocol.is_none_or(|own| own == protocol)
                                && rule.ct_mask & ct != 0
                                && rule.destination_ports.0 == port
                                && patterns >> rule.in_pattern & 1 != 0;
                            let candidates = block.candidates(class, ct, port.into(), patterns);
                            let is_one = candidates >> rule.index & 1 != 0;
                            assert!(
                                is_one || !matches,
                                "{rule:?} {class} {ct} {port} {patterns}"
                            );
                            left_out += u32::from(!is_one);
                        }
                    }
                }
            }
        }
        // Of 16 * 3 * 2 * 16 * 3 questions most need no look at the rule.
        assert!(left_out > 4_000, "{left_out}");
    }

    #[test]
    fn a_damaged_list_ends() {
        let mut cells = vec![Cell::default()];
        let first = place(&telling(20), Family::Ipv4, &mut cells);
        // Back to the block from which it came, and beyond all cells.
        for rest in [first, first & !Block::HERE, 99, 99 | Block::HERE] {
            let mut cells = cells.clone();
            let end = cells.len() - 1;
            cells[end].w[9] = rest;
            assert!(rules(&cells, first, Family::Ipv4).count() <= 40);
        }
    }
}
