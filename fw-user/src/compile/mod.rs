//! From the typed model to the exact contents of the policy map. Pure: no system, no clock.
//!
//! `compile` -> [`TableSet`], laid out as `fw_common::abi::blob` says; `lower` turns one rule into
//! a record, `masked` groups the rules of a long chain into masked-hash tables, and `prune` says which
//! of many tables a packet has to be looked for in.

mod blocks;
mod chains;
mod connection;
mod cost;
mod dump;
mod limits;
mod lists;
mod lower;
mod masked;
mod meta;
mod nat;
mod packet;
mod patterns;
mod ports;
mod prune;
mod scope;
mod sets;
mod settings;
mod slots;
mod table_set;
mod zones;

pub use limits::{Limits, Place};
pub use meta::{Known, Meta, MetaError};
pub use sets::{contents, set_entry, set_lengths};
pub use settings::Settings;
pub use slots::{Slots, Taken};
pub use table_set::{BlobError, TableSet, decode_meta, meta_bytes};

use fw_common::abi::Family as AbiFamily;
use fw_common::abi::blob::{
    ANSWERS, AnswerFields, BaseChain, Cell, Chain as ChainView, ChainFields, Condition, DIRECTORY,
    EMPTY_NAT, EffectFields, Filter, GATES, HeaderFields, LINEAR_MAX, PAGE_CELLS, PredicateFields,
    Rule as RuleView, RuleFields, TIMEOUTS, TextFields, ZONES, chain_kind, gate,
};
use fw_common::abi::maps::COUNTER_SLOTS_MAX;

use crate::policy::ids::TableName;
use crate::policy::model::{Family, Policy, Rule, Ruleset, Target};
use chains::{Layout, PlacedChain, Walk};
use lower::Lowered;
use masked::Groups;
use patterns::Patterns;
pub use patterns::{Pattern, pattern_bits};
use scope::Scope;
use zones::Zones;

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
    slots.check(COUNTER_SLOTS_MAX)?;
    Ok(Draft::of(policy)?.finish(slots, generation, || meta))
}

/// A policy that is known to stay within the limits, compiled as far as this goes before its
/// counters have slots.
pub struct Draft {
    chains: Vec<ReadyChain>,
    /// The header's place, the timeouts', the zones, the directory's place, and all predicates.
    cells: Vec<Cell>,
    directory_len: usize,
    features: u32,
    patterns: Patterns,
    walks: Vec<Walk>,
    settings: Settings,
    answers: AnswerFields,
}

impl Draft {
    /// Compiles what does not depend on slots, or says which limit the policy exceeds.
    pub fn of(policy: &Policy) -> Result<Self, Limits> {
        let layout = Layout::of(policy)?;
        let patterns = Patterns::of(policy)?;
        let directory_len = layout.directory_len();
        let mut cells = vec![Cell::default(); DIRECTORY as usize + directory_len];
        let chains = lower_chains(policy, &layout, &patterns, &mut cells)?;
        Ok(Self {
            chains,
            cells,
            directory_len,
            features: features(policy),
            patterns,
            walks: layout.walks(),
            settings: Settings::of(&policy.tracking, |_| None),
            answers: AnswerFields::default(),
        })
    }

    /// Settings of tracking that the host knows of.
    pub fn track_as(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The kernel's settings of answers to refused packets.
    pub fn answer_as(&mut self, answers: AnswerFields) {
        self.answers = answers;
    }

    /// How many counters the policy has.
    pub fn counters(&self) -> usize {
        let of = |chain: &ReadyChain| chain.rules.len() + usize::from(chain.fields.policy != 0);
        self.chains.iter().map(of).sum()
    }

    /// The cells, for slots that are within the counters' map. The description is asked for last: it may
    /// be made meanwhile.
    ///
    /// # Panics
    ///
    /// If `slots` was made for another policy: its length must be [`Draft::counters`].
    pub fn finish<M: AsRef<[u8]>>(
        self,
        slots: &Slots,
        generation: u32,
        meta: impl FnOnce() -> M,
    ) -> TableSet {
        assert_eq!(
            slots.of.len(),
            self.counters(),
            "the slots belong to another policy"
        );
        let Self {
            chains,
            mut cells,
            directory_len,
            features,
            patterns,
            walks: _,
            settings,
            answers,
        } = self;
        // Nearly all that is still to come: a cell or two for each rule, buckets, and the meta, which takes
        // about as much as a cell for each. What is not needed is not touched.
        cells.reserve(slots.of.len() * 4);
        let mut slots = slots.of.as_slice();
        for mut chain in chains {
            chain.take_slots(&mut slots);
            let place = DIRECTORY as usize + chain.id as usize;
            cells[place] = place_rules(&chain, &mut cells).encode();
        }
        let meta = meta();
        let meta = meta.as_ref();
        let header = HeaderFields {
            generation,
            chains: directory_len as u32,
            features: features | settings.features,
            meta: cells.len() as u32,
            meta_bytes: meta.len() as u32,
            empty_nat: empty_nat(&cells),
            // The loader knows.
            clock: 0,
        };
        cells[0] = header.encode();
        let (timeouts, _) = settings.timeouts.as_chunks();
        for (number, timeouts) in timeouts.iter().enumerate() {
            cells[TIMEOUTS as usize + number] = Cell { w: *timeouts };
        }
        cells[ANSWERS as usize] = answers.encode();
        for (family, place) in [(AbiFamily::V4, GATES), (AbiFamily::V6, GATES + 1)] {
            cells[place as usize] = gates(&cells, family);
        }
        table_set::append_bytes(&mut cells, meta);
        table_set::fill_page(&mut cells);
        TableSet {
            cells,
            patterns: patterns.into_list(),
        }
    }
}

/// The counters of nat chains that have nothing else, for [`HeaderFields::empty_nat`].
fn empty_nat(cells: &[Cell]) -> [u32; EMPTY_NAT] {
    use BaseChain::{NatInput, NatOutput, NatPostrouting, NatPrerouting};
    let mut counters = [0; EMPTY_NAT];
    for family in [AbiFamily::V4, AbiFamily::V6] {
        for base in [NatPrerouting, NatInput, NatOutput, NatPostrouting] {
            let place = (DIRECTORY + base.id(family)) as usize;
            let chain = ChainView(&cells[place]);
            let accepts = chain.kind() != chain_kind::ABSENT && chain.policy() == ChainView::ACCEPT;
            if accepts && chain.count() == 0 {
                counters[base.nat_place(family)] = chain.policy_slot() + 1;
            }
        }
    }
    counters
}

/// What the chains of raw, mangle and security need.
fn gates(cells: &[Cell], family: AbiFamily) -> Cell {
    gate::encode(gate::CHAINS.map(|base| {
        let chain = ChainView(&cells[(DIRECTORY + base.id(family)) as usize]);
        if chain.kind() == chain_kind::ABSENT {
            gate::NONE
        } else if chain.policy() != ChainView::ACCEPT {
            gate::WALK
        } else if chain.count() == 0 {
            chain.policy_slot() + 1
        } else if asks_for_syn(cells, chain) {
            (chain.policy_slot() + 1) | gate::SYN
        } else {
            gate::WALK
        }
    }))
}

const _: () = assert!(COUNTER_SLOTS_MAX < gate::SYN);

/// Whether all rules of a chain are about TCP segments with SYN, as those with TCPMSS are.
fn asks_for_syn(cells: &[Cell], chain: ChainView<'_>) -> bool {
    const SYN: u32 = 2;
    let asks = |index| {
        let rule = RuleView(&cells[(chain.first() + index * chain.stride()) as usize]);
        rule.tcp_flags_set() & SYN != 0
    };
    chain.kind() == chain_kind::LINEAR && (0..chain.count()).all(asks)
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
    let gated = |name| !matches!(name, TableName::Filter | TableName::Nat);
    if chains::tables(policy).any(|(_, name, _)| gated(name)) {
        features |= HeaderFields::GATES;
    }
    let logs = |rule: &Rule| matches!(rule.target, Target::Log(_) | Target::Nflog(_));
    let chains = policy
        .rulesets()
        .flat_map(|(_, ruleset)| ruleset.tables())
        .flat_map(|(_, table)| &table.chains);
    if chains.flat_map(|chain| &chain.rules).any(logs) {
        features |= HeaderFields::LOGS;
    }
    features | packet::features(policy)
}

/// A chain whose rules are lowered but have neither slots nor places.
struct ReadyChain {
    id: u32,
    family: Family,
    fields: ChainFields,
    rules: Vec<RuleFields>,
    /// Of a chain that is not stored rule by rule.
    groups: Option<Groups>,
}

impl ReadyChain {
    /// Takes a slot for the policy and one for each rule.
    fn take_slots(&mut self, slots: &mut &[u32]) {
        // Their number was compared with the number of counters: there is a slot for each.
        let mut slot = || slots.split_off_first().copied().unwrap_or_default();
        if self.fields.policy != 0 {
            self.fields.policy_slot = slot();
        }
        for rule in &mut self.rules {
            rule.slot = slot();
        }
    }
}

/// Lowers all rules; their predicates go to the end of the cells.
fn lower_chains(
    policy: &Policy,
    layout: &Layout<'_>,
    patterns: &Patterns,
    cells: &mut Vec<Cell>,
) -> Result<Vec<ReadyChain>, Limits> {
    let mut lowered = Vec::new();
    let zones = Zones::of(policy)?;
    cells[ZONES as usize] = zones.encode();
    let changed = policy.rules().flat_map(Rule::changed_sets).collect();
    for PlacedChain {
        id,
        family,
        chain,
        ids,
        ..
    } in layout.chains()
    {
        let scope = Scope {
            policy,
            family,
            patterns,
            changed: &changed,
            zones: &zones,
            chains: ids,
        };
        let mut rules = Vec::with_capacity(chain.rules.len());
        for (index, rule) in chain.rules.iter().enumerate() {
            let Lowered {
                mut fields,
                mut predicates,
                effects,
                translation,
                texts,
            } = lower::lower(rule, &scope)?;
            if !effects.is_empty() {
                fields.argument = cells.len() as u32;
                cells.extend(effects.iter().map(EffectFields::encode));
            }
            if let Some(translation) = translation {
                fields.argument = cells.len() as u32;
                cells.push(translation.encode());
            }
            place_texts(&mut predicates, &texts, cells);
            rules.push(RuleFields {
                index: index as u32,
                predicates: cells.len() as u32,
                predicate_count: predicates.len() as u32 - fields.deferred_count,
                ..fields
            });
            cells.extend(predicates.iter().map(PredicateFields::encode));
        }
        let policy = match &chain.policy {
            Some(policy) if policy.accept => ChainView::ACCEPT,
            Some(_) => ChainView::DROP,
            None => 0,
        };
        lowered.push(ReadyChain {
            id,
            family,
            fields: ChainFields {
                policy,
                stride: stride(family),
                ..ChainFields::default()
            },
            groups: (rules.len() > LINEAR_MAX as usize).then(|| Groups::of(&rules, family)),
            rules,
        });
    }
    Ok(lowered)
}

/// Puts the texts that a rule looks for behind the cells, and has its predicates know where.
fn place_texts(predicates: &mut [PredicateFields], texts: &[TextFields], cells: &mut Vec<Cell>) {
    let mut texts = texts.iter();
    for predicate in predicates {
        if let Condition::Text { first, .. } = &mut predicate.condition
            && let Some(text) = texts.next()
        {
            *first = cells.len() as u32;
            cells.extend(text.encode());
        }
    }
}

fn place_rules(chain: &ReadyChain, cells: &mut Vec<Cell>) -> ChainFields {
    if let Some(groups) = &chain.groups {
        let first = cells.len() as u32;
        let (count, prune) = masked::place(&chain.rules, groups, chain.family, cells);
        return ChainFields {
            kind: chain_kind::TABLES,
            first,
            count,
            prune,
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
