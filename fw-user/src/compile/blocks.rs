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
