//! The firewall that runs, opened for reading.

use anyhow::Context as _;
use fw_common::abi::blob::HeaderFields;

use super::Failure;
use crate::compile::{Known, Meta, TableSet, meta_bytes};
pub use crate::kernel::load::running_id;
use crate::kernel::load::{Blob, Maps, blob_id};
use crate::kernel::read;
use crate::kernel::state::StateDir;
use crate::policy::ids::CounterId;
use crate::policy::model::Counters;

/// A running firewall.
pub struct Running {
    /// The maps.
    pub maps: Maps,
    /// The header of the running policy.
    pub header: HeaderFields,
    /// What the policy says of itself.
    pub meta: Meta,
    /// The policy, as the kernel holds it.
    pub tables: TableSet,
}

impl Running {
    /// Opens the firewall of a state directory.
    pub fn open(state: &StateDir) -> Result<Self, Failure> {
        Self::find(state)?.ok_or_else(|| Failure::NotLoaded(state.clone()))
    }

    /// [`Running::open`], where it is no failure that there is none.
    pub fn find(state: &StateDir) -> anyhow::Result<Option<Self>> {
        let Some(maps) = Maps::open(state)? else {
            return Ok(None);
        };
        let Some(blob) = maps.running()? else {
            return Ok(None);
        };
        let (header, meta, tables) = decode(&blob)?;
        Ok(Some(Self {
            maps,
            header,
            meta,
            tables,
        }))
    }

    /// Every counter with its value, in the order of [`crate::policy::model::Policy::counter_ids`].
    pub fn counters(&self) -> anyhow::Result<Vec<(CounterId, Counters)>> {
        self.meta
            .policy
            .counter_ids()
            .zip(&self.meta.slots.of)
            .map(|(id, slot)| {
                let [packets, bytes] = read::counter(&self.maps, *slot)?;
                Ok((id, Counters { packets, bytes }))
            })
            .collect()
    }
}

/// What a policy's replacement takes to know of it.
pub struct Predecessor {
    /// The maps.
    pub maps: Maps,
    /// The kernel's number of its map, which no other map has.
    pub id: u32,
    /// The number of its generation.
    pub generation: u32,
    /// Its counters.
    pub known: Known,
    /// How many counter slots there are.
    pub slots: u32,
}

impl Predecessor {
    /// Reads it from the running firewall, if there is one.
    pub fn find(state: &StateDir) -> anyhow::Result<Option<Self>> {
        let Some(maps) = Maps::open(state)? else {
            return Ok(None);
        };
        let Some(blob) = maps.running()? else {
            return Ok(None);
        };
        let pages = read::pages(&blob)?;
        let header = pages
            .as_flattened()
            .first()
            .and_then(HeaderFields::decode)
            .context("the running policy has no header; load the policy again")?;
        Ok(Some(Self {
            id: blob_id(&blob)?,
            generation: header.generation,
            known: Known::decode(meta_bytes(pages.bytes(), &header)?)?,
            slots: maps.counters.len(),
            maps,
        }))
    }
}

fn decode(blob: &Blob) -> anyhow::Result<(HeaderFields, Meta, TableSet)> {
    let (tables, meta) = TableSet::read(read::cells(blob)?)?;
    let header = tables
        .header()
        .context("the running policy has no header; load the policy again")?;
    Ok((header, meta, tables))
}
