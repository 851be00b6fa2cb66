//! What the blob says of itself: enough to print, explain and replace the policy that runs.

use serde::{Deserialize, Serialize};

use super::Slots;
use crate::policy::lists::ListDefinition;
use crate::policy::model::Policy;
use crate::policy::set::SetDefinition;

/// Stored at the end of the blob, so that it lives exactly as long as the cells it describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The policy as it was loaded.
    pub policy: Policy,
    /// Its counters' slots.
    pub slots: Slots,
    /// When it was loaded: seconds since 1970.
    pub loaded_at: u64,
    /// The version of fwbpf that loaded it.
    pub version: String,
}

/// What replacing a policy takes to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its counters, by the hash of their identity ([`Policy::identity_hashes`]), with their slots.
    pub counters: Vec<(u128, u32)>,
    /// Its sets, with their places.
    pub sets: Vec<SetDefinition>,
    /// Its lists, with theirs.
    pub lists: Vec<ListDefinition>,
}

/// Why meta data could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "the description inside the running policy is unreadable ({0}); it was loaded by another version of fwbpf: load the policy again"
)]
pub struct MetaError(#[from] postcard::Error);

/// The description's beginning. Before it the counters, in fields of fixed width, the sets and the lists;
/// behind it the policy, so that [`Known`] can be read without either.
#[derive(Serialize, Deserialize)]
struct Rest<P> {
    loaded_at: u64,
    version: String,
    policy: P,
}

/// Bytes of a counter's hash and slot.
const HASH: usize = size_of::<u128>();
const SLOT: usize = size_of::<u32>();

impl Meta {
    /// Describes a policy that is loaded now by this version.
    pub fn new(policy: Policy, slots: Slots, loaded_at: u64) -> Self {
        Self {
            policy,
            slots,
            loaded_at,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// As bytes: the number of counters, hash and slot of each, then the sets and the rest in
    /// postcard's format.
    pub fn encode(&self) -> Vec<u8> {
        let hashes = self.policy.identity_hashes();
        let known = hashes.iter().copied().zip(self.slots.of.iter().copied());
        Self::encode_parts(&self.policy, known, self.loaded_at, &self.version)
    }

    /// What [`Meta::encode`] makes of the parts, where the hashes are known already.
    pub fn encode_parts(
        policy: &Policy,
        known: impl ExactSizeIterator<Item = (u128, u32)>,
        loaded_at: u64,
        version: &str,
    ) -> Vec<u8> {
        // Most rules take less than this; the vector grows where they do not.
        let mut bytes = Vec::with_capacity(known.len() * (HASH + SLOT + 40) + 1024);
        bytes.extend((known.len() as u32).to_le_bytes());
        for (hash, slot) in known {
            bytes.extend(hash.to_le_bytes());
            bytes.extend(slot.to_le_bytes());
        }
        let rest = Rest {
            loaded_at,
            version: version.to_owned(),
            policy,
        };
        // postcard fails on values whose length is unknown, which this struct has none of, and on
        // full buffers, which a Vec is never.
        let bytes = postcard::to_extend(&policy.sets, bytes).unwrap_or_default();
        let bytes = postcard::to_extend(&policy.lists, bytes).unwrap_or_default();
        postcard::to_extend(&rest, bytes).unwrap_or_default()
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        let (known, rest) = Known::split(bytes)?;
        let rest: Rest<Policy> = postcard::from_bytes(rest)?;
        Ok(Self {
            policy: rest.policy,
            slots: Slots {
                of: known.counters.into_iter().map(|(_, slot)| slot).collect(),
            },
            loaded_at: rest.loaded_at,
            version: rest.version,
        })
    }
}

impl Known {
    /// From the bytes of [`Meta::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        Ok(Self::split(bytes)?.0)
    }

    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), MetaError> {
        let (counters, rest) = counters(bytes)?;
        let known = counters.iter().map(|counter| {
            let (hash, slot) = counter.split_at(HASH);
            let hash = hash.try_into().map_or(0, u128::from_le_bytes);
            (hash, slot.try_into().map_or(0, u32::from_le_bytes))
        });
        Self::with(known.collect(), rest)
    }

    /// These counters, and what stands behind them.
    fn with(counters: Vec<(u128, u32)>, bytes: &[u8]) -> Result<(Self, &[u8]), MetaError> {
        let (sets, rest) = postcard::take_from_bytes(bytes)?;
        let (lists, rest) = postcard::take_from_bytes(rest)?;
        let known = Self {
            counters,
            sets,
            lists,
        };
        Ok((known, rest))
    }
}

/// Hash and slot of each counter, and what stands behind them.
fn counters(bytes: &[u8]) -> Result<(&[[u8; HASH + SLOT]], &[u8]), MetaError> {
    let short = || MetaError(postcard::Error::DeserializeUnexpectedEnd);
    let (count, bytes) = bytes.split_first_chunk().ok_or_else(short)?;
    let count = u32::from_le_bytes(*count) as usize;
    let (counters, rest) = count
        .checked_mul(HASH + SLOT)
        .and_then(|length| bytes.split_at_checked(length))
        .ok_or_else(short)?;
    Ok((counters.as_chunks().0, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Chain, ChainPolicy, Ruleset, Table};

    #[test]
    fn what_is_written_is_read() {
        let chain = |name: &str| Chain {
            name: name.into(),
            policy: Some(ChainPolicy {
                accept: true,
                counters: None,
                origin: None,
            }),
            rules: vec![],
        };
        let policy = Policy {
            ipv6: Some(Ruleset {
                filter: Some(Table {
                    chains: ["INPUT", "FORWARD", "OUTPUT"].map(chain).into(),
                }),
                nat: None,
                ..Ruleset::default()
            }),
            files: vec!["rules.v6".into()],
            ..Policy::default()
        };
        let slots = Slots {
            of: vec![3, 1, 70_000],
        };
        let hashes = policy.identity_hashes();
        let meta = Meta::new(policy, slots, 1_700_000_000);
        let bytes = meta.encode();
        let known = Known::decode(&bytes).expect("own bytes");
        assert_eq!(
            known.counters,
            [(hashes[0], 3), (hashes[1], 1), (hashes[2], 70_000)]
        );
        assert_eq!(Meta::decode(&bytes).expect("own bytes"), meta);
    }

    #[test]
    fn foreign_bytes_are_an_error() {
        assert!(Meta::decode(&[0xff; 7]).is_err());
        assert!(Meta::decode(&[]).is_err());
        assert!(Known::decode(&[1, 0, 0, 0, 7]).is_err());
    }
}
