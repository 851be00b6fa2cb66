//! Chains: how each is stored, and its policy.

use super::{Cell, RuleFields};
use crate::abi::ct;

/// How a chain is stored.
pub mod chain_kind {
    /// No such chain: its table is not loaded, and the hook lets the packet go on.
    pub const ABSENT: u32 = 0;
    /// Rules in order, [`super::ChainFields::stride`] cells each.
    pub const LINEAR: u32 = 1;
    /// Masked-hash tables, ascending by smallest rule index.
    pub const TABLES: u32 = 2;
}

/// A chain's directory cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainFields {
    /// One of [`chain_kind`].
    pub kind: u32,
    /// First rule cell, or first table cell.
    pub first: u32,
    /// Number of rules (linear) or of tables.
    pub count: u32,
    /// Cells from one rule to the next, when linear: 1 for IPv4, 2 for IPv6.
    pub stride: u32,
    /// Base chains: [`Chain::ACCEPT`] or [`Chain::DROP`]; user chains: 0.
    pub policy: u32,
    /// Counter slot of the policy.
    pub policy_slot: u32,
    /// Linear: which rules can match which packets.
    pub filter: Filter,
    /// Tables: the cell that leads to bitmaps over them; 0 for none.
    pub prune: u32,
}

impl ChainFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        cell.w[..6].copy_from_slice(&[
            self.kind,
            self.first,
            self.count,
            self.stride,
            self.policy,
            self.policy_slot,
        ]);
        self.filter.put(&mut cell);
        if self.kind == chain_kind::TABLES {
            cell.w[6] = self.prune;
        }
        cell
    }
}

/// View of a chain's directory cell.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a Cell);

impl Chain<'_> {
    /// The policy ACCEPT.
    pub const ACCEPT: u32 = 1;
    /// The policy DROP.
    pub const DROP: u32 = 2;

    /// One of [`chain_kind`].
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        self.0.w[0]
    }
    /// See [`ChainFields::first`].
    #[inline(always)]
    pub fn first(&self) -> u32 {
        self.0.w[1]
    }
    /// See [`ChainFields::count`].
    #[inline(always)]
    pub fn count(&self) -> u32 {
        self.0.w[2]
    }
    /// See [`ChainFields::stride`].
    #[inline(always)]
    pub fn stride(&self) -> u32 {
        self.0.w[3]
    }
    /// See [`ChainFields::policy`].
    #[inline(always)]
    pub fn policy(&self) -> u32 {
        self.0.w[4]
    }
    /// See [`ChainFields::policy_slot`].
    #[inline(always)]
    pub fn policy_slot(&self) -> u32 {
        self.0.w[5]
    }

    /// See [`ChainFields::prune`].
    #[inline(always)]
    pub fn prune(&self) -> u32 {
        self.0.w[6]
    }

    /// The rules of a linear chain that the packet may match, a bit each: the others differ from it
    /// in protocol, state, destination port or input interface.
    #[inline(always)]
    pub fn candidates(&self, class: u8, ct: u8, destination_port: u32, in_patterns: u64) -> u32 {
        candidates(self.0, class, ct, destination_port, in_patterns)
    }
}

/// What a cell's [`Filter`] leaves over.
///
/// Without branches, as BPF compares by branching and the verifier explores every branch.
#[inline(always)]
pub(super) fn candidates(
    cell: &Cell,
    class: u8,
    ct: u8,
    destination_port: u32,
    in_patterns: u64,
) -> u32 {
    let w = &cell.w;
    let by_class = w[6 + (class as usize >> 1 & 1)] >> ((class & 1) * 16);
    let new = w[8] & (ct as u32 & 1).wrapping_neg();
    let has_other = ((ct as u32 >> 1) + 0x7f) >> 7;
    let other = (w[8] >> 16) & has_other.wrapping_neg();
    let by_port = w[9 + (destination_port as usize >> 1 & 3)] >> ((destination_port & 1) * 16);
    // Bit 0 of the patterns is "any".
    let misses = !(in_patterns as u32);
    let elsewhere = (w[13] & (misses >> 1 & 1).wrapping_neg())
        | (w[13] >> 16 & (misses >> 2 & 1).wrapping_neg())
        | (w[14] & (misses >> 3 & 1).wrapping_neg())
        | (w[14] >> 16 & (misses >> 4 & 1).wrapping_neg());
    by_class & (new | other) & by_port & !elsewhere & 0xffff
}

/// Bitmaps over the rules of a linear chain or of a block, two to a word: by protocol (TCP, UDP, ICMP of either
/// version, others), by state (NEW, others), by the low three bits of the destination port, and, of
/// those that ask for one of the policy's first four interface patterns at the input, by that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter([u32; 10]);

impl Filter {
    /// The class of a protocol.
    #[inline(always)]
    pub const fn class_of(protocol: u8) -> u8 {
        match protocol {
            6 => 0,
            17 => 1,
            1 | 58 => 2,
            _ => 3,
        }
    }

    /// Puts the bitmaps into the last words of a cell.
    pub(super) fn put(&self, cell: &mut Cell) {
        cell.w[6..].copy_from_slice(&self.0);
    }

    /// The bitmaps of these rules, of which there are at most [`super::LINEAR_MAX`].
    pub fn of(rules: &[RuleFields]) -> Self {
        let mut filter = Self::default();
        for (bit, rule) in rules.iter().enumerate() {
            let mut set = |bitmap: usize| filter.0[bitmap / 2] |= 1 << (bit + bitmap % 2 * 16);
            match rule.protocol {
                None => (0..4).for_each(&mut set),
                Some(protocol) => set(Self::class_of(protocol).into()),
            }
            if rule.ct_mask & ct::NEW != 0 {
                set(4);
            }
            if rule.ct_mask & !ct::NEW != 0 {
                set(5);
            }
            if let pattern @ 1..=4 = rule.in_pattern {
                set(13 + usize::from(pattern));
            }
            let (first, last) = rule.destination_ports;
            for residue in 0..8 {
                // The first port of the range that has these low bits.
                let port = u32::from(first) + (residue + 8 - u32::from(first) % 8) % 8;
                if port <= u32::from(last) {
                    set(6 + residue as usize);
                }
            }
        }
        filter
    }
}
