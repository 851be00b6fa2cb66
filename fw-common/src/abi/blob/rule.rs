//! Compiled rules.

use super::Cell;
use crate::abi::Addr;

/// What a rule does.
pub mod target {
    /// Count and go on.
    pub const CONTINUE: u32 = 0;
    /// ACCEPT.
    pub const ACCEPT: u32 = 1;
    /// DROP.
    pub const DROP: u32 = 2;
    /// RETURN.
    pub const RETURN: u32 = 3;
    /// Jump to the chain in the argument.
    pub const JUMP: u32 = 4;
    /// Go to the chain in the argument: RETURN from there skips this chain.
    pub const GOTO: u32 = 5;
    /// MASQUERADE: the argument is the port range ([`super::pack_range`]) or 0 for any port.
    pub const MASQUERADE: u32 = 6;
    /// MASQUERADE with a random port, never the original one first.
    pub const MASQUERADE_RANDOM: u32 = 7;
    /// Do what the effect cell says whose place the argument is ([`super::super::EffectFields`]), and
    /// go on.
    pub const EFFECT: u32 = 8;
    /// REJECT: the argument is [`super::super::RESET`], or the code of "destination unreachable".
    pub const REJECT: u32 = 9;
    /// DNAT: the argument is the place of a [`super::TranslationFields`] cell, as for the next three.
    pub const DNAT: u32 = 10;
    /// SNAT.
    pub const SNAT: u32 = 11;
    /// REDIRECT.
    pub const REDIRECT: u32 = 12;
    /// NETMAP.
    pub const NETMAP: u32 = 13;
}

/// A compiled rule: one cell, and a second for IPv6's further address words. What does not fit the
/// fields is in predicate cells, looked at only after the fields match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleFields {
    /// Source address, masked.
    pub source: Addr,
    /// Source mask.
    pub source_mask: Addr,
    /// Destination address, masked.
    pub destination: Addr,
    /// Destination mask.
    pub destination_mask: Addr,
    /// Source ports (ICMP: types), inclusive.
    pub source_ports: (u16, u16),
    /// Destination ports (ICMP: codes), inclusive.
    pub destination_ports: (u16, u16),
    /// Protocol, or `None` for any.
    pub protocol: Option<u8>,
    /// Connection states that match (bits of [`super::ct`]); 0xff for any.
    pub ct_mask: u8,
    /// TCP flags examined.
    pub tcp_mask: u8,
    /// TCP flags that must be set.
    pub tcp_set: u8,
    /// Bit of the pattern that the input interface must fit; 0 for any.
    pub in_pattern: u8,
    /// Bit of the pattern that the output interface must fit; 0 for any.
    pub out_pattern: u8,
    /// Place in the chain, from 0.
    pub index: u32,
    /// Next rule cell of the bucket list, or 0. Ascending by index.
    pub next: u32,
    /// One of [`target`].
    pub target: u32,
    /// Chain id, port range or the place of an effect cell.
    pub argument: u32,
    /// Counter slot.
    pub slot: u32,
    /// First predicate cell.
    pub predicates: u32,
    /// Number of predicate cells that may be looked at in any order and number.
    pub predicate_count: u32,
    /// Number of predicate cells after these that are looked at once all else matches, and only for
    /// the first rule that does: sets; a limit, and what stands behind it in the rule.
    pub deferred_count: u32,
}

impl Default for RuleFields {
    /// Matches everything and does nothing.
    fn default() -> Self {
        Self {
            source: [0; 4],
            source_mask: [0; 4],
            destination: [0; 4],
            destination_mask: [0; 4],
            source_ports: (0, u16::MAX),
            destination_ports: (0, u16::MAX),
            protocol: None,
            ct_mask: 0xff,
            tcp_mask: 0,
            tcp_set: 0,
            in_pattern: 0,
            out_pattern: 0,
            index: 0,
            next: 0,
            target: target::CONTINUE,
            argument: 0,
            slot: 0,
            predicates: 0,
            predicate_count: 0,
            deferred_count: 0,
        }
    }
}

impl RuleFields {
    /// Writes the cell, and the second one that IPv6 rules have right after it.
    pub fn encode(&self) -> [Cell; 2] {
        let protocol = match self.protocol {
            Some(number) => number as u32 | 0xff00,
            None => 0,
        };
        let (s, sm, d, dm) = (
            self.source,
            self.source_mask,
            self.destination,
            self.destination_mask,
        );
        let first = Cell {
            w: [
                s[0],
                sm[0],
                d[0],
                dm[0],
                pack_range(self.source_ports),
                pack_range(self.destination_ports),
                protocol | (self.ct_mask as u32) << 16,
                self.tcp_mask as u32
                    | (self.tcp_set as u32) << 8
                    | (self.in_pattern as u32) << 16
                    | (self.out_pattern as u32) << 24,
                self.index,
                self.next,
                self.target,
                self.slot,
                self.predicates,
                self.predicate_count,
                self.argument,
                self.deferred_count,
            ],
        };
        let second = Cell {
            w: [
                s[1], s[2], s[3], sm[1], sm[2], sm[3], d[1], d[2], d[3], dm[1], dm[2], dm[3], 0, 0,
                0, 0,
            ],
        };
        [first, second]
    }
}

/// An inclusive range as one word: the first in the low half.
pub const fn pack_range((first, last): (u16, u16)) -> u32 {
    first as u32 | (last as u32) << 16
}

/// View of a rule's first cell. How it is compared is `datapath::classify`'s business.
#[derive(Clone, Copy)]
pub struct Rule<'a>(pub &'a Cell);

impl Rule<'_> {
    /// The TCP flags that must be set.
    #[inline(always)]
    pub fn tcp_flags_set(&self) -> u32 {
        self.0.w[7] >> 8 & 0xff
    }
    /// See [`RuleFields::index`].
    #[inline(always)]
    pub fn index(&self) -> u32 {
        self.0.w[8]
    }
    /// See [`RuleFields::next`].
    #[inline(always)]
    pub fn next(&self) -> u32 {
        self.0.w[9]
    }
    /// See [`RuleFields::target`].
    #[inline(always)]
    pub fn target(&self) -> u32 {
        self.0.w[10]
    }
    /// See [`RuleFields::slot`].
    #[inline(always)]
    pub fn slot(&self) -> u32 {
        self.0.w[11]
    }
    /// See [`RuleFields::predicates`].
    #[inline(always)]
    pub fn predicates(&self) -> u32 {
        self.0.w[12]
    }
    /// See [`RuleFields::predicate_count`].
    #[inline(always)]
    pub fn predicate_count(&self) -> u32 {
        self.0.w[13]
    }
    /// See [`RuleFields::deferred_count`].
    #[inline(always)]
    pub fn deferred_count(&self) -> u32 {
        self.0.w[15]
    }
    /// See [`RuleFields::argument`].
    #[inline(always)]
    pub fn argument(&self) -> u32 {
        self.0.w[14]
    }
}
