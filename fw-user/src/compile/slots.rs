//! Counter slots: which place of the counter map belongs to which rule.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use crate::policy::model::Policy;

/// The counter slots of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slots {
    /// Slot by counter, in the order of [`Policy::counter_ids`].
    pub of: Vec<u32>,
}

impl Slots {
    /// How many counters a policy has.
    pub fn needed_by(policy: &Policy) -> usize {
        policy.counter_ids().count()
    }

    /// Slots 0, 1, 2, ..: for a policy that follows no other.
    pub fn fresh(policy: &Policy) -> Self {
        Self {
            of: (0..Self::needed_by(policy) as u32).collect(),
        }
    }

    /// Gives each new counter its slot. A counter that the running policy has too keeps its slot,
    /// and with it its count. Others take slots that no counter of either policy has: the running
    /// policy counts on until the flip. (Where even the last slot is taken, numbers beyond the map
    /// come out, which `compile` refuses.)
    pub fn assign<I: Eq + Hash>(new: &[I], old: &[(I, u32)]) -> Self {
        // Should identities repeat, the first keeps the first's slot, and so on.
        let mut known: HashMap<&I, VecDeque<u32>> = HashMap::new();
        for (identity, slot) in old {
            known.entry(identity).or_default().push_back(*slot);
        }
        let taken: BTreeSet<u32> = old.iter().map(|(_, slot)| *slot).collect();
        let mut free = (0..).filter(|slot| !taken.contains(slot));
        let mut slot_of = |identity: &I| {
            known
                .get_mut(identity)
                .and_then(VecDeque::pop_front)
                .or_else(|| free.next())
                .unwrap_or(u32::MAX)
        };
        Self {
            of: new.iter().map(&mut slot_of).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_identities_keep_their_slots_and_new_ones_avoid_all_old() {
        let old = [("policy", 0), ("ssh", 1), ("web", 3), ("web", 4)];
        let slots = Slots::assign(&["policy", "dns", "web", "ssh", "ntp"], &old);
        assert_eq!(slots.of, [0, 2, 3, 1, 5]);
    }

    #[test]
    fn repeated_identities_are_paired_in_order() {
        let old = [("a", 7), ("a", 2)];
        assert_eq!(Slots::assign(&["a", "a", "a"], &old).of, [7, 2, 0]);
    }
}
