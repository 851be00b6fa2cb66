//! Counter slots: which place of the counter map belongs to which rule.

use std::hash::Hash;

use fw_common::abi::maps::{COUNTER_SLOTS, COUNTER_SLOTS_MAX};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::Limits;
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

    /// Refuses slots beyond the end.
    pub fn check(&self, slots: u32) -> Result<(), Limits> {
        if self.of.iter().all(|slot| *slot < slots) {
            return Ok(());
        }
        let needed = self.of.len();
        Err(Limits::Counters { needed, slots })
    }

    /// How many slots to make for a policy that is loaded where nothing was: room for one that is
    /// as long and entirely different to replace it, and for rules to be added. A slot takes 16
    /// bytes on each CPU.
    pub fn to_make(needed: usize, cpus: usize) -> u32 {
        /// What is taken without need, at most.
        const BYTES: usize = 64 << 20;
        let by_memory = (BYTES / (16 * cpus.max(1))) as u32;
        let by_need = u32::try_from(needed.saturating_mul(2)).unwrap_or(u32::MAX);
        let roomy = by_memory.min(COUNTER_SLOTS);
        let slots = roomy.max(by_need).min(COUNTER_SLOTS_MAX);
        slots.next_power_of_two()
    }

    /// Gives each new counter its slot. A counter that the running policy has too keeps its slot,
    /// and with it its count. Others take slots that no counter of either policy has: the running
    /// policy counts on until the flip. (Where even the last slot is taken, numbers beyond the map
    /// come out, which `compile` refuses.)
    pub fn assign<I: Copy + Eq + Hash>(new: &[I], old: &[(I, u32)]) -> Self {
        // Should identities repeat, the first keeps the first's slot, and so on: each identity
        // leads to its first place in `old`, and each place to the next of the same identity.
        let mut first = FxHashMap::with_capacity_and_hasher(old.len(), FxBuildHasher);
        let mut next = vec![None; old.len()];
        for (place, (identity, _)) in old.iter().enumerate().rev() {
            next[place] = first.insert(*identity, place);
        }
        let mut free = Self::free(old.iter().map(|(_, slot)| *slot));
        let mut slot_of = |identity: &I| {
            let Some(place) = first.get(identity).copied() else {
                return free.next().unwrap_or(u32::MAX);
            };
            match next[place] {
                Some(twin) => first.insert(*identity, twin),
                None => first.remove(identity),
            };
            old[place].1
        };
        Self {
            of: new.iter().map(&mut slot_of).collect(),
        }
    }

    /// Gives every counter a slot that no counter of the running policy has.
    pub fn apart(count: usize, old: impl Iterator<Item = u32>) -> Self {
        Self {
            of: Self::free(old).take(count).collect(),
        }
    }

    /// The slots that are not taken, ascending.
    fn free(taken: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
        let taken = Taken::of(taken);
        (0..).filter(move |slot| !taken.has(*slot))
    }
}

/// The slots that a policy counts in.
pub struct Taken(Vec<bool>);

impl Taken {
    /// Notes these.
    pub fn of(slots: impl Iterator<Item = u32>) -> Self {
        let mut is_taken = Vec::new();
        for slot in slots {
            let slot = slot as usize;
            if slot >= is_taken.len() {
                is_taken.resize(slot + 1, false);
            }
            is_taken[slot] = true;
        }
        Self(is_taken)
    }

    /// Whether a slot is one of them.
    pub fn has(&self, slot: u32) -> bool {
        self.0.get(slot as usize) == Some(&true)
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
        assert_eq!(Slots::assign(&["a"], &old).of, [7]);
    }

    #[test]
    fn slots_are_made_by_need_and_by_memory() {
        assert_eq!(Slots::to_make(40, 2), 262_144);
        assert_eq!(Slots::to_make(200_000, 2), 524_288);
        // 64 MiB on 128 CPUs.
        assert_eq!(Slots::to_make(40, 128), 32_768);
        assert_eq!(Slots::to_make(40_000, 128), 131_072);
        assert_eq!(Slots::to_make(usize::MAX, 2), COUNTER_SLOTS_MAX);
    }

    #[test]
    fn apart_from_the_old_are_only_free_slots() {
        assert_eq!(Slots::apart(4, [1, 0, 4].into_iter()).of, [2, 3, 5, 6]);
        assert_eq!(Slots::apart(2, std::iter::empty()).of, [0, 1]);
    }
}
