//! Which chain gets which id, and whether jumps come to an end.

use std::collections::BTreeMap;

use fw_common::abi::Family as AbiFamily;
use fw_common::abi::blob::{BASE_CHAINS, BaseChain, FIRST_USER_CHAIN, MAX_DEPTH};

use super::{Limits, Place};
use crate::policy::ids::TableName;
use crate::policy::model::{Chain, Family, Policy, Rule, Table, Target};

/// The policy's tables in the order of its counters.
pub(super) fn tables(policy: &Policy) -> impl Iterator<Item = (Family, TableName, &Table)> {
    policy.rulesets().flat_map(|(family, ruleset)| {
        ruleset
            .tables()
            .map(move |(name, table)| (family, name, table))
    })
}

/// The family as map records name it.
pub(super) const fn abi_family(family: Family) -> AbiFamily {
    match family {
        Family::Ipv4 => AbiFamily::V4,
        Family::Ipv6 => AbiFamily::V6,
    }
}

/// Every chain's place in the directory.
pub(super) struct Layout<'a> {
    tables: Vec<PlacedTable<'a>>,
    walks: Vec<Walk>,
    directory_len: usize,
}

/// The longest way that a packet might take from a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    pub family: Family,
    pub table: TableName,
    pub chain: String,
    /// Rules on it that match without deciding: they jump, or only count.
    pub steps: u64,
}

struct PlacedTable<'a> {
    family: Family,
    table: &'a Table,
    ids: BTreeMap<&'a str, u32>,
}

/// A chain and its id.
pub(super) struct PlacedChain<'l, 'a> {
    pub id: u32,
    pub family: Family,
    pub chain: &'a Chain,
    /// The ids of all chains of its table.
    pub ids: &'l BTreeMap<&'a str, u32>,
}

impl<'a> Layout<'a> {
    /// Gives ids, and refuses jumps that lead nowhere, in circles, or too deep.
    pub fn of(policy: &'a Policy) -> Result<Self, Limits> {
        let mut next = FIRST_USER_CHAIN;
        let mut placed = Vec::new();
        let mut walks = Vec::new();
        for (family, name, table) in tables(policy) {
            let mut ids = BTreeMap::new();
            for chain in &table.chains {
                let base = base_chain(name, chain).map(|base| base.id(abi_family(family)));
                let id = base.unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                ids.insert(chain.name.as_str(), id);
            }
            let nest = Nest { policy, table };
            for (chain, steps) in nest.check()? {
                walks.push(Walk {
                    family,
                    table: name,
                    chain: chain.to_owned(),
                    steps,
                });
            }
            placed.push(PlacedTable { family, table, ids });
        }
        Ok(Self {
            tables: placed,
            walks,
            directory_len: next as usize,
        })
    }

    /// Every chain, in the order of the policy's counters.
    pub fn chains(&self) -> impl Iterator<Item = PlacedChain<'_, 'a>> {
        self.tables.iter().flat_map(|placed| {
            placed.table.chains.iter().map(|chain| PlacedChain {
                id: placed.ids[chain.name.as_str()],
                family: placed.family,
                chain,
                ids: &placed.ids,
            })
        })
    }

    /// How far packets may have to go, by base chain.
    pub fn walks(&self) -> Vec<Walk> {
        self.walks.clone()
    }

    /// Chain cells.
    pub fn directory_len(&self) -> usize {
        self.directory_len
    }
}

fn base_chain(table: TableName, chain: &Chain) -> Option<BaseChain> {
    chain.policy.as_ref()?;
    match (table, chain.name.as_str()) {
        (TableName::Filter, "INPUT") => Some(BaseChain::FilterInput),
        (TableName::Filter, "FORWARD") => Some(BaseChain::FilterForward),
        (TableName::Filter, "OUTPUT") => Some(BaseChain::FilterOutput),
        (TableName::Nat, "PREROUTING") => Some(BaseChain::NatPrerouting),
        (TableName::Nat, "INPUT") => Some(BaseChain::NatInput),
        (TableName::Nat, "OUTPUT") => Some(BaseChain::NatOutput),
        (TableName::Nat, "POSTROUTING") => Some(BaseChain::NatPostrouting),
        (TableName::Raw, "PREROUTING") => Some(BaseChain::RawPrerouting),
        (TableName::Raw, "OUTPUT") => Some(BaseChain::RawOutput),
        (TableName::Mangle, "PREROUTING") => Some(BaseChain::ManglePrerouting),
        (TableName::Mangle, "INPUT") => Some(BaseChain::MangleInput),
        (TableName::Mangle, "FORWARD") => Some(BaseChain::MangleForward),
        (TableName::Mangle, "OUTPUT") => Some(BaseChain::MangleOutput),
        (TableName::Mangle, "POSTROUTING") => Some(BaseChain::ManglePostrouting),
        (TableName::Security, "INPUT") => Some(BaseChain::SecurityInput),
        (TableName::Security, "FORWARD") => Some(BaseChain::SecurityForward),
        (TableName::Security, "OUTPUT") => Some(BaseChain::SecurityOutput),
        _ => None,
    }
}

const _: () = assert!(BaseChain::SecurityOutput as u32 + 1 == BASE_CHAINS);

/// The jumps of one table.
struct Nest<'a> {
    policy: &'a Policy,
    table: &'a Table,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Unseen,
    /// On the way from a base chain to the chain looked at.
    Open,
    /// Left for good: return addresses that it needs on the stack, and rules that a packet might
    /// match in it and behind it without being decided on.
    Done(u32, u64),
}

/// A chain on the way, and how far its rules have been looked at.
struct Visit {
    chain: usize,
    rule: usize,
    /// Return addresses needed so far.
    depth: u32,
    /// Rules so far that may match without deciding, and what is behind them.
    steps: u64,
}

impl<'a> Nest<'a> {
    /// Follows every jump from the base chains, as the kernel does when it loads a table
    /// (`mark_source_chains`, net/ipv4/netfilter/ip_tables.c): chains that nothing reaches may
    /// loop. Without recursion, as a file may hold a chain of any number of gotos.
    ///
    /// Returns the base chains with the number of rules that a packet might have to pass.
    fn check(&self) -> Result<Vec<(&'a str, u64)>, Limits> {
        let names: BTreeMap<&str, usize> = self
            .table
            .chains
            .iter()
            .enumerate()
            .map(|(index, chain)| (chain.name.as_str(), index))
            .collect();
        for rule in self.table.chains.iter().flat_map(|chain| &chain.rules) {
            if let Some((name, _)) = jump(rule)
                && !names.contains_key(name)
            {
                return Err(Limits::UnknownChain {
                    place: self.place(rule),
                    chain: name.to_owned(),
                });
            }
        }
        let mut marks = vec![Mark::Unseen; self.table.chains.len()];
        let mut steps = Vec::new();
        for (base, chain) in self.table.chains.iter().enumerate() {
            if chain.policy.is_some() {
                self.visit(base, &names, &mut marks)?;
                if let Mark::Done(_, most) = marks[base] {
                    steps.push((chain.name.as_str(), most));
                }
            }
        }
        Ok(steps)
    }

    fn visit(
        &self,
        base: usize,
        names: &BTreeMap<&str, usize>,
        marks: &mut [Mark],
    ) -> Result<(), Limits> {
        let open = |chain| Visit {
            chain,
            rule: 0,
            depth: 0,
            steps: 0,
        };
        marks[base] = Mark::Open;
        let mut way = vec![open(base)];
        while let Some(here) = way.last_mut() {
            let Some(rule) = self.table.chains[here.chain].rules.get(here.rule) else {
                marks[here.chain] = Mark::Done(here.depth, here.steps);
                way.pop();
                continue;
            };
            let Some((name, frames)) = jump(rule) else {
                here.rule += 1;
                let goes_on = matches!(
                    rule.target,
                    Target::Continue
                        | Target::Log(_)
                        | Target::Nflog(_)
                        | Target::Set(_)
                        | Target::Change(_)
                );
                here.steps += u64::from(goes_on);
                continue;
            };
            match marks[names[name]] {
                Mark::Unseen => {
                    marks[names[name]] = Mark::Open;
                    way.push(open(names[name]));
                }
                Mark::Open => {
                    return Err(Limits::Loop {
                        place: self.place(rule),
                        chain: name.to_owned(),
                    });
                }
                Mark::Done(depth, steps) => {
                    here.steps = here.steps.saturating_add(steps).saturating_add(1);
                    here.depth = here.depth.max(depth + frames);
                    here.rule += 1;
                    if here.depth > MAX_DEPTH {
                        return Err(Limits::Depth {
                            place: self.place(rule),
                            chain: name.to_owned(),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn place(&self, rule: &Rule) -> Place {
        Place::of(self.policy, rule.origin)
    }
}

/// The chain that a rule leads to, and the return addresses that this takes.
fn jump(rule: &Rule) -> Option<(&str, u32)> {
    match &rule.target {
        Target::Jump(chain) => Some((chain, 1)),
        Target::Goto(chain) => Some((chain, 0)),
        Target::Continue
        | Target::Accept
        | Target::Drop
        | Target::Return
        | Target::Reject(_)
        | Target::Masquerade(_)
        | Target::Log(_)
        | Target::Change(_)
        | Target::Nflog(_)
        | Target::Set(_)
        | Target::Dnat(_)
        | Target::Snat(_)
        | Target::Redirect(_)
        | Target::Netmap(_) => None,
    }
}
