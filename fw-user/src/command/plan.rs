//! How a policy follows the one that runs: its number, and which counters go on.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aya::util::nr_cpus;

use super::running::Predecessor;
use crate::compile::{Meta, Slots, Taken};
use crate::policy::model::Policy;

/// What counters start with. Packets and bytes, in the order of [`Policy::counter_ids`].
#[derive(Clone, Debug)]
pub enum Starts {
    /// Zero; those of rules that did not change go on.
    Zero,
    /// All of them with what the files say, like `iptables-restore -c`.
    Written(Vec<[u64; 2]>),
    /// Those of rules that the running policy does not have with this; the others go on.
    OfNew(Vec<[u64; 2]>),
}

/// The next generation's number and counters.
pub struct Plan {
    /// The number.
    pub generation: u32,
    identities: Vec<u128>,
    /// The counters' slots.
    pub slots: Slots,
    /// How many slots there are or are to be.
    pub places: u32,
    /// Slots that the running generation does not use, with their first packets and bytes.
    pub fresh_slots: Vec<(u32, [u64; 2])>,
}

impl Plan {
    /// Follows what runs, which `old` is.
    pub fn new(policy: &Policy, old: Option<&Predecessor>, starts: &Starts) -> Result<Self> {
        let identities = policy.identity_hashes();
        let known = old.map_or(&[][..], |old| &old.known.counters);
        let in_use = known.iter().map(|(_, slot)| *slot);
        let (slots, starts) = match starts {
            // In slots that the running policy does not count in.
            Starts::Written(starts) => {
                (Slots::apart(identities.len(), in_use.clone()), Some(starts))
            }
            Starts::OfNew(starts) => (Slots::assign(&identities, known), Some(starts)),
            Starts::Zero => (Slots::assign(&identities, known), None),
        };
        let places = old.map_or_else(
            || Slots::to_make(identities.len(), nr_cpus().unwrap_or(1)),
            |old| old.slots,
        );
        slots.check(places)?;
        let in_use = Taken::of(in_use);
        let fresh = |(place, slot): (usize, &u32)| {
            let start = starts.map_or([0; 2], |starts| starts[place]);
            (!in_use.has(*slot)).then_some((*slot, start))
        };
        let fresh_slots = slots.of.iter().enumerate().filter_map(fresh).collect();
        Ok(Self {
            generation: old.map_or(1, |old| old.generation.wrapping_add(1).max(1)),
            identities,
            slots,
            places,
            fresh_slots,
        })
    }

    /// What the policy will say of itself.
    pub fn describe(&self, policy: &Policy) -> Vec<u8> {
        let loaded_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        let identities = self.identities.iter().copied();
        let counters = identities.zip(self.slots.of.iter().copied());
        Meta::encode_parts(policy, counters, loaded_at, env!("CARGO_PKG_VERSION"))
    }
}

/// The counts that the files give, packets and bytes, in the order of [`Policy::counter_ids`].
pub fn starts(policy: &Policy) -> Vec<[u64; 2]> {
    let start = |id| {
        let written = match policy.rule(id) {
            Some(rule) => rule.counters,
            None => policy
                .chain(id)
                .and_then(|chain| chain.policy.as_ref())
                .and_then(|policy| policy.counters),
        };
        written.map_or([0; 2], |start| [start.packets, start.bytes])
    };
    policy.counter_ids().map(start).collect()
}
