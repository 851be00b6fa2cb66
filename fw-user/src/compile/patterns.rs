//! Interface patterns: each distinct one is a bit in the word of every interface that fits it.

use fw_common::abi::blob::MAX_PATTERNS;

use super::{Limits, Place, chains};
use crate::policy::model::{InterfacePattern, Negatable, Policy};

/// The patterns of a policy, in the order of their first use. Pattern `i` is bit `i + 1`.
pub(super) struct Patterns(Vec<InterfacePattern>);

impl Patterns {
    /// Collects the patterns that need a bit. `+` alone fits whatever the packet has, even no
    /// interface at all, and so is no condition.
    pub fn of(policy: &Policy) -> Result<Self, Limits> {
        let mut list = Vec::new();
        for rule in chains::tables(policy)
            .flat_map(|(_, _, table)| &table.chains)
            .flat_map(|chain| &chain.rules)
        {
            for Negatable { value, .. } in rule.in_interface.iter().chain(&rule.out_interface) {
                if is_any(value) || list.contains(value) {
                    continue;
                }
                if list.len() == MAX_PATTERNS {
                    return Err(Limits::Patterns {
                        place: Place::of(policy, rule.origin),
                        pattern: value.0.clone(),
                    });
                }
                list.push(value.clone());
            }
        }
        Ok(Self(list))
    }

    /// The pattern's bit; `None` if it stands for every interface.
    pub fn bit(&self, pattern: &InterfacePattern) -> Option<u8> {
        self.0
            .iter()
            .position(|known| known == pattern)
            .map(|index| index as u8 + 1)
    }

    pub fn into_list(self) -> Vec<InterfacePattern> {
        self.0
    }
}

fn is_any(pattern: &InterfacePattern) -> bool {
    pattern.0 == "+"
}
