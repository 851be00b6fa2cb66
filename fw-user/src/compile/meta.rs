//! What the blob says of itself: enough to print, explain and replace the policy that runs.

use serde::{Deserialize, Serialize};

use super::Slots;
use crate::policy::model::Policy;

/// Stored at the end of the blob, so that it lives exactly as long as the cells it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Why meta data could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "the description inside the running policy is unreadable ({0}); it was loaded by another version of fwbpf: load the policy again"
)]
pub struct MetaError(#[from] postcard::Error);

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

    /// As bytes: postcard's format.
    pub fn encode(&self) -> Vec<u8> {
        // postcard fails on values whose length is unknown, which this struct has none of, and on
        // full buffers, which a Vec is never.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Ruleset, Table};

    #[test]
    fn what_is_written_is_read() {
        let policy = Policy {
            ipv6: Some(Ruleset {
                filter: Some(Table::default()),
                nat: None,
            }),
            files: vec!["rules.v6".into()],
            ..Policy::default()
        };
        let meta = Meta::new(
            policy,
            Slots {
                of: vec![3, 1, 70_000],
            },
            1_700_000_000,
        );
        assert_eq!(Meta::decode(&meta.encode()).expect("own bytes"), meta);
    }

    #[test]
    fn foreign_bytes_are_an_error() {
        assert!(Meta::decode(&[0xff; 7]).is_err());
        assert!(Meta::decode(&[]).is_err());
    }
}
