//! From the typed model to the exact contents of the policy map. Pure: no system, no clock.
//!
//! `compile` -> [`TableSet`], laid out as `fw_common::abi::blob` says; `lower` turns one rule into
//! a record, `masked` groups the rules of a long chain into masked-hash tables.

mod chains;
mod dump;
mod limits;
mod lower;
mod masked;
mod meta;
mod patterns;
mod ports;
mod slots;
mod table_set;

pub use limits::{Limits, Place};
pub use meta::{Meta, MetaError};
pub use slots::Slots;
pub use table_set::{BlobError, TableSet, decode_meta};

use fw_common::abi::blob::{
    Cell, Chain as ChainView, ChainFields, DEFAULT_TIMEOUTS, DIRECTORY, Filter, HeaderFields,
    LINEAR_MAX, PAGE_CELLS, PredicateFields, RuleFields, chain_kind,
};
use fw_common::abi::maps::COUNTER_SLOTS;

use crate::policy::model::{Family, Policy, Ruleset};
use chains::{Layout, PlacedChain};
use lower::{Lowered, Scope};
use patterns::Patterns;

/// Compiles a policy into the cells of one generation.
///
/// `slots` holds a counter slot for each of the policy's counters; `meta` is stored in the blob as
/// it is, and is what [`decode_meta`] gives back.
///
/// # Panics
///
/// If `slots` was made for another policy: its length must be [`Slots::needed_by`].
pub fn compile(
    policy: &Policy,
    slots: &Slots,
    generation: u32,
    meta: &[u8],
) -> Result<TableSet, Limits> {
    assert_eq!(
        slots.of.len(),
        Slots::needed_by(policy),
        "the slots belong to another policy"
    );
    if let Some(&slot) = slots.of.iter().find(|slot| **slot >= COUNTER_SLOTS) {
        return Err(Limits::Counters {
            needed: slots.of.len(),
            slot,
        });
    }
    let layout = Layout::of(policy)?;
    let patterns = Patterns::of(policy)?;
    let lowered = lower_chains(policy, &layout, &patterns, slots)?;

    let mut cells = vec![Cell::default(); DIRECTORY as usize + layout.directory_len()];
    let chains = place_predicates(lowered, &mut cells);
    for chain in chains {
        let place = DIRECTORY as usize + chain.id as usize;
        cells[place] = place_rules(&chain, &mut cells).encode();
    }
    let header = HeaderFields {
        generation,
        chains: layout.directory_len() as u32,
        features: features(policy),
        meta: cells.len() as u32,
        meta_bytes: meta.len() as u32,
    };
    cells[0] = header.encode();
    cells[1] = Cell {
        w: DEFAULT_TIMEOUTS,
    };
    table_set::append_bytes(&mut cells, meta);
    table_set::fill_page(&mut cells);
    Ok(TableSet {
        cells,
        patterns: patterns.into_list(),
    })
}

fn features(policy: &Policy) -> u32 {
    let has_nat =
        |ruleset: &Option<Ruleset>| ruleset.as_ref().is_some_and(|tables| tables.nat.is_some());
    let mut features = 0;
    if has_nat(&policy.ipv4) {
        features |= HeaderFields::NAT4;
    }
    if has_nat(&policy.ipv6) {
        features |= HeaderFields::NAT6;
    }
    features
}

/// A chain whose rules are lowered but not yet placed.
struct LoweredChain {
    id: u32,
    family: Family,
    policy: u32,
    policy_slot: u32,
    rules: Vec<Lowered>,
}

fn lower_chains(
    policy: &Policy,
    layout: &Layout<'_>,
    patterns: &Patterns,
    slots: &Slots,
) -> Result<Vec<LoweredChain>, Limits> {
    let mut next_slot = slots.of.iter().copied();
    // The length was compared with the number of counters: there is a slot for each.
    let mut slot = || next_slot.next().unwrap_or_default();
    let mut lowered = Vec::new();
    for PlacedChain {
        id,
        family,
        chain,
        ids,
        ..
    } in layout.chains()
    {
        let (verdict, policy_slot) = match &chain.policy {
            Some(policy) if policy.accept => (ChainView::ACCEPT, slot()),
            Some(_) => (ChainView::DROP, slot()),
            None => (0, 0),
        };
        let scope = Scope {
            policy,
            family,
            patterns,
            chains: ids,
        };
        let mut rules = Vec::with_capacity(chain.rules.len());
        for (index, rule) in chain.rules.iter().enumerate() {
            let mut record = lower::lower(rule, &scope)?;
            record.fields.index = index as u32;
            record.fields.slot = slot();
            rules.push(record);
        }
        lowered.push(LoweredChain {
            id,
            family,
            policy: verdict,
            policy_slot,
            rules,
        });
    }
    Ok(lowered)
}

/// A chain whose rules know where their predicates are.
struct ReadyChain {
    id: u32,
    family: Family,
    fields: ChainFields,
    rules: Vec<RuleFields>,
}

fn place_predicates(lowered: Vec<LoweredChain>, cells: &mut Vec<Cell>) -> Vec<ReadyChain> {
    let place = |chain: LoweredChain| ReadyChain {
        id: chain.id,
        family: chain.family,
        fields: ChainFields {
            policy: chain.policy,
            policy_slot: chain.policy_slot,
            stride: stride(chain.family),
            ..ChainFields::default()
        },
        rules: chain
            .rules
            .into_iter()
            .map(|mut rule| {
                rule.fields.predicates = cells.len() as u32;
                rule.fields.predicate_count = rule.predicates.len() as u32;
                cells.extend(rule.predicates.iter().map(PredicateFields::encode));
                rule.fields
            })
            .collect(),
    };
    lowered.into_iter().map(place).collect()
}

fn place_rules(chain: &ReadyChain, cells: &mut Vec<Cell>) -> ChainFields {
    if chain.rules.len() > LINEAR_MAX as usize {
        let first = cells.len() as u32;
        let count = masked::place(&chain.rules, chain.family, cells);
        return ChainFields {
            kind: chain_kind::TABLES,
            first,
            count,
            ..chain.fields
        };
    }
    table_set::align(cells, chain.family);
    let length = chain.rules.len() * stride(chain.family) as usize;
    if cells.len() % PAGE_CELLS + length > PAGE_CELLS {
        table_set::fill_page(cells);
    }
    let first = cells.len() as u32;
    for rule in &chain.rules {
        cells.extend(&rule.encode()[..stride(chain.family) as usize]);
    }
    ChainFields {
        kind: chain_kind::LINEAR,
        first,
        count: chain.rules.len() as u32,
        filter: Filter::of(&chain.rules),
        ..chain.fields
    }
}

/// Cells that a rule of this family takes.
const fn stride(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 2,
    }
}
