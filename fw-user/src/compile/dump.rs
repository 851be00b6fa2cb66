//! A compiled policy for people: what `{:?}` of a [`TableSet`] prints.

use std::fmt::{Formatter, Result, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use fw_common::abi::blob::{
    BASE_CHAINS, Cell, Chain, DIRECTORY, FIRST_USER_CHAIN, Predicate, RESET, Rule, SET_PLACE,
    WITHOUT_FLOW, chain_kind, condition, target,
};

use super::{TableSet, blocks};
use crate::policy::model::Family;

/// Writes the whole set, one line a record. Cells that are referred to but absent are said to be so.
pub(super) fn write(set: &TableSet, f: &mut Formatter<'_>) -> Result {
    let Some(header) = set.header() else {
        return write!(f, "no policy ({} cells without a header)", set.cells.len());
    };
    writeln!(
        f,
        "generation {}: {} cells, {} chains, features {:#x}, meta {} bytes at {}",
        header.generation,
        set.cells.len(),
        header.chains,
        header.features,
        header.meta_bytes,
        header.meta
    )?;
    for (index, pattern) in set.patterns.iter().enumerate() {
        let of = if pattern.of_ports { "port " } else { "" };
        writeln!(f, "pattern bit {}: {of}{}", index + 1, pattern.name.0)?;
    }
    for id in 0..header.chains {
        if let Some(cell) = set.cells.get((DIRECTORY + id) as usize) {
            Dump { set, v6: false }.chain(id, Chain(cell), f)?;
        }
    }
    Ok(())
}

const BASE_NAMES: [&str; BASE_CHAINS as usize] = [
    "filter INPUT",
    "filter FORWARD",
    "filter OUTPUT",
    "nat PREROUTING",
    "nat INPUT",
    "nat OUTPUT",
    "nat POSTROUTING",
    "raw PREROUTING",
    "raw OUTPUT",
    "mangle PREROUTING",
    "mangle INPUT",
    "mangle FORWARD",
    "mangle OUTPUT",
    "mangle POSTROUTING",
    "security INPUT",
    "security FORWARD",
    "security OUTPUT",
];

struct Dump<'a> {
    set: &'a TableSet,
    v6: bool,
}

impl Dump<'_> {
    fn chain(&mut self, id: u32, chain: Chain<'_>, f: &mut Formatter<'_>) -> Result {
        if chain.kind() == chain_kind::ABSENT {
            return Ok(());
        }
        self.v6 = chain.stride() == 2;
        let version = if self.v6 { "IPv6" } else { "IPv4" };
        write!(f, "chain {id} ({version}")?;
        if id < FIRST_USER_CHAIN {
            write!(f, " {}", BASE_NAMES[(id % BASE_CHAINS) as usize])?;
        }
        f.write_char(')')?;
        match chain.policy() {
            Chain::ACCEPT => write!(f, " policy ACCEPT slot {}", chain.policy_slot())?,
            Chain::DROP => write!(f, " policy DROP slot {}", chain.policy_slot())?,
            _ => {}
        }
        match chain.kind() {
            chain_kind::LINEAR => {
                writeln!(f, ": {} rules in order", chain.count())?;
                for place in 0..chain.count() {
                    self.rule(chain.first() + place * chain.stride(), f)?;
                }
            }
            chain_kind::TABLES => {
                write!(f, ": {} tables", chain.count())?;
                if chain.prune() != 0 {
                    write!(f, ", bitmaps at {}", chain.prune())?;
                }
                writeln!(f)?;
                for place in 0..chain.count() {
                    self.table(chain.first() + place, f)?;
                }
            }
            other => writeln!(f, ": unknown kind {other}")?,
        }
        Ok(())
    }

    fn table(&self, at: u32, f: &mut Formatter<'_>) -> Result {
        let Some(cell) = self.cell(at) else {
            return writeln!(f, "  table at {at}: beyond the end");
        };
        let w = &cell.w;
        writeln!(
            f,
            "  table at {at}: source/{} destination/{} ports {:#010x} protocol {:#x}, {} buckets at {}, seed {}, from rule {}",
            ones(&w[0..4]),
            ones(&w[4..8]),
            w[8],
            w[9],
            u64::from(w[11]) + 1,
            w[10],
            w[12],
            w[13]
        )?;
        for bucket in w[10]..=w[10].saturating_add(w[11]) {
            let Some(cell) = self.cell(bucket) else {
                return writeln!(f, "    bucket at {bucket}: beyond the end");
            };
            for way in 0..8 {
                let (tag, first) = (cell.w[way], cell.w[8 + way]);
                if first != 0 {
                    writeln!(f, "    bucket {} tag {tag:#010x}", bucket - w[10])?;
                }
                let family = if self.v6 { Family::Ipv6 } else { Family::Ipv4 };
                for rule in blocks::rules(&self.set.cells, first, family) {
                    self.rule(rule, f)?;
                }
            }
        }
        Ok(())
    }

    fn rule(&self, at: u32, f: &mut Formatter<'_>) -> Result {
        let Some(cell) = self.cell(at) else {
            return writeln!(f, "    rule at {at}: beyond the end");
        };
        let (rule, w) = (Rule(cell), &cell.w);
        let more = self.cell(at + 1).filter(|_| self.v6).map(|cell| cell.w);
        write!(f, "    rule {} at {at}:", rule.index())?;
        let word = |first: u32, rest: usize| match more {
            Some(more) => [first, more[rest], more[rest + 1], more[rest + 2]],
            None => [first, 0, 0, 0],
        };
        for (name, address, mask) in [
            ("source", word(w[0], 0), word(w[1], 3)),
            ("destination", word(w[2], 6), word(w[3], 9)),
        ] {
            if mask != [0; 4] {
                write!(
                    f,
                    " {name} {}/{}",
                    self.address(address),
                    self.address(mask)
                )?;
            }
        }
        for (name, range) in [("sports", w[4]), ("dports", w[5])] {
            if range != 0xffff_0000 {
                write!(f, " {name} {}", Range(range))?;
            }
        }
        if w[6] & 0xff00 != 0 {
            write!(f, " protocol {}", w[6] & 0xff)?;
        }
        if w[6] >> 16 != 0xff {
            write!(f, " ct {:#04x}", w[6] >> 16)?;
        }
        let [tcp_mask, tcp_set, in_pattern, out_pattern] = w[7].to_le_bytes();
        if tcp_mask != 0 {
            write!(f, " tcp {tcp_mask:#04x}/{tcp_set:#04x}")?;
        }
        for (name, bit) in [("in", in_pattern), ("out", out_pattern)] {
            if bit != 0 {
                write!(f, " {name} bit {bit}")?;
            }
        }
        for place in 0..rule.predicate_count() + rule.deferred_count() {
            match self.cell(rule.predicates() + place) {
                Some(cell) => self.predicate(cell, f)?,
                None => write!(f, " [predicate beyond the end]")?,
            }
        }
        match rule.target() {
            target::CONTINUE => write!(f, " -> continue")?,
            target::ACCEPT => write!(f, " -> ACCEPT")?,
            target::DROP => write!(f, " -> DROP")?,
            target::RETURN => write!(f, " -> RETURN")?,
            target::JUMP => write!(f, " -> jump to {}", rule.argument())?,
            target::GOTO => write!(f, " -> go to {}", rule.argument())?,
            target::MASQUERADE => write!(f, " -> MASQUERADE {}", Range(rule.argument()))?,
            target::MASQUERADE_RANDOM => {
                write!(f, " -> MASQUERADE random {}", Range(rule.argument()))?;
            }
            target::REJECT if rule.argument() == RESET => write!(f, " -> REJECT with reset")?,
            target::REJECT => write!(f, " -> REJECT with code {}", rule.argument())?,
            target::EFFECT => write!(f, " -> effect in cell {}", rule.argument())?,
            code @ (target::DNAT | target::SNAT | target::REDIRECT | target::NETMAP) => {
                let name = match code {
                    target::DNAT => "DNAT",
                    target::SNAT => "SNAT",
                    target::REDIRECT => "REDIRECT",
                    _ => "NETMAP",
                };
                write!(f, " -> {name} by cell {}", rule.argument())?;
            }
            other => write!(f, " -> unknown target {other}")?,
        }
        writeln!(f, ", slot {}", rule.slot())
    }

    fn predicate(&self, cell: &Cell, f: &mut Formatter<'_>) -> Result {
        let (predicate, w) = (Predicate(cell), &cell.w);
        f.write_str(if predicate.not() { " [not " } else { " [" })?;
        let quad = |at: usize| self.address([w[at], w[at + 1], w[at + 2], w[at + 3]]);
        match predicate.kind() {
            condition::PORTS => {
                write!(f, "ports of side {}", w[0] >> 16)?;
                for range in w[1..].iter().filter(|range| **range != 1) {
                    write!(f, " {}", Range(*range))?;
                }
            }
            condition::SOURCE => write!(f, "source {}/{}", quad(1), quad(5))?,
            condition::DESTINATION => write!(f, "destination {}/{}", quad(1), quad(5))?,
            condition::IN_INTERFACE => write!(f, "in bit {}", w[1])?,
            condition::OUT_INTERFACE => write!(f, "out bit {}", w[1])?,
            condition::PROTOCOL => write!(f, "protocol {}", w[1])?,
            condition::TCP_FLAGS => write!(f, "tcp {:#04x}/{:#04x}", w[1], w[2])?,
            condition::CT_STATE => write!(f, "ct {:#04x}", w[1])?,
            condition::CT_DIRECTION => write!(f, "direction {} without flow {}", w[1], w[2])?,
            condition::ICMP => write!(f, "icmp {} codes {}-{}", w[1], w[2], w[3])?,
            condition::SOURCE_RANGE => write!(f, "source {}-{}", quad(1), quad(5))?,
            condition::DESTINATION_RANGE => write!(f, "destination {}-{}", quad(1), quad(5))?,
            condition::FACT => write!(
                f,
                "fact {} & {:#x} from {:#x} to {:#x}, absent {}",
                w[1], w[2], w[3], w[4], w[5]
            )?,
            condition::LINK_SOURCE => write!(f, "link source {:08x}{:04x}", w[1], w[2])?,
            condition::NTH => write!(f, "one of {}, {} counted", u64::from(w[1]) + 1, w[14])?,
            condition::CHANCE => write!(f, "chance {} of 2^31", w[1])?,
            condition::TIME => write!(f, "time {:x?}", &w[1..8])?,
            condition::TCP_OPTION => write!(f, "tcp option {}", w[1])?,
            condition::LIMIT => write!(f, "limit cost {} cap {}", w[2], w[4])?,
            condition::IN_SET => write!(f, "in set {} shape {:#x}", w[SET_PLACE], w[4])?,
            condition::RECENT => write!(
                f,
                "recent {} flags {:#x} seconds {} hits {}",
                w[SET_PLACE], w[4], w[6], w[8]
            )?,
            condition::TEXT => write!(
                f,
                "text in cell {} flags {:#x} from {} to {}",
                w[SET_PLACE], w[4], w[6], w[8]
            )?,
            condition::CONNLIMIT => write!(
                f,
                "connlimit {} flags {:#x} limit {}",
                w[SET_PLACE], w[4], w[8]
            )?,
            condition::HASHLIMIT => write!(f, "hashlimit {} flags {:#x}", w[SET_PLACE], w[4])?,
            condition::CT_ADDRESS => write!(
                f,
                "connection's end {} {}/{}, without flow {}",
                w[10],
                quad(1),
                quad(5),
                w[WITHOUT_FLOW]
            )?,
            condition::CT_VALUE => write!(
                f,
                "connection's value {} & {:#x} from {} to {}, without flow {}",
                w[1], w[2], w[3], w[4], w[WITHOUT_FLOW]
            )?,
            other => write!(f, "unknown condition {other}")?,
        }
        f.write_char(']')
    }

    fn cell(&self, at: u32) -> Option<&Cell> {
        self.set.cells.get(at as usize)
    }

    fn address(&self, words: [u32; 4]) -> String {
        if self.v6 {
            let bits = words
                .into_iter()
                .fold(0, |bits, word| bits << 32 | u128::from(word));
            Ipv6Addr::from_bits(bits).to_string()
        } else {
            Ipv4Addr::from_bits(words[0]).to_string()
        }
    }
}

/// A range as `pack_range` packs it.
struct Range(u32);

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}-{}", self.0 & 0xffff, self.0 >> 16)
    }
}

fn ones(words: &[u32]) -> u32 {
    words.iter().map(|word| word.count_ones()).sum()
}
