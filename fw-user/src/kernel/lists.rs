//! Lists in the kernel: made beside those in use, and read and changed while they are.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData};
use fw_common::abi::Family;
use fw_common::abi::blob::{Cell, PAGE_CELLS, Page};
use fw_common::abi::list::{
    BUCKETS_IN_CELL, ENTRIES_MAX, FIRST_BUCKET, KEY_REST, ListShape, USED, entry, head, recent,
};
use fw_common::abi::maps::LISTS_MAX;
use rustix::thread::{MembarrierCommand, membarrier};

use super::load::{Blob, Maps};
use super::read;
use super::state::StateDir;
use super::sweep::Sweeper;
use super::sys;
use crate::addr;
use crate::policy::lists::{ListDefinition, Recent};

/// How many addresses a list of `recent` may have: what the kernel's own match was told, if it is
/// there (`ip_list_tot`, net/netfilter/xt_recent.c).
pub fn recent_entries() -> u32 {
    const SETTING: &str = "/sys/module/xt_recent/parameters/ip_list_tot";
    let setting = std::fs::read_to_string(SETTING).ok();
    let entries = setting.and_then(|text| text.trim().parse().ok());
    entries.unwrap_or(Recent::ENTRIES).clamp(1, ENTRIES_MAX)
}

/// Gives each list the place in which it goes on, or a new one that the running policy does not use.
pub fn place(lists: &mut [ListDefinition], running: &[ListDefinition]) {
    let taken = |place: &u32| running.iter().any(|list| list.place == *place);
    let mut free = (0..LISTS_MAX).filter(|place| !taken(place));
    for list in lists {
        list.kept = running.iter().any(|before| list.go_on(before));
        if !list.kept {
            // A policy has at most half as many lists as there are places.
            list.place = free.next().unwrap_or(u32::MAX);
        }
    }
}

/// Makes the lists that are new. No program looks at their places yet.
pub fn fill(maps: &Maps, lists: &[ListDefinition]) -> Result<()> {
    for list in lists.iter().filter(|list| !list.kept) {
        make(maps, list.place, &list.shape())
            .with_context(|| format!("cannot make the list {}", list.name))?;
    }
    Ok(())
}

fn make(maps: &Maps, place: u32, shape: &ListShape) -> Result<()> {
    let map = sys::create_policy(shape.pages()).context("cannot create its map")?;
    let mut page: Page = [Cell::default(); PAGE_CELLS];
    // A number that nobody outside knows.
    let seed = RandomState::new().build_hasher().finish() as u32;
    page[..2].copy_from_slice(&shape.head(seed));
    let id = sys::id(map.as_fd())?;
    let mut pages = Blob::try_from(Map::from_map_data(MapData::from_id(id)?)?)?;
    pages.set(0, page, 0).context("cannot write its head")?;
    sys::put(maps.lists.as_fd(), place, map.as_fd()).context("cannot put it in its place")
}

/// Takes out what stands in places that no list of the running policy has, once no packet is left
/// that may be asking there.
pub fn prune(maps: &Maps, running: &[ListDefinition]) -> Result<()> {
    let mut waited = false;
    for place in 0..LISTS_MAX {
        let taken = running.iter().any(|list| list.place == place);
        if taken || sys::word(maps.lists.as_fd(), place)?.is_none() {
            continue;
        }
        if !std::mem::replace(&mut waited, true) {
            membarrier(MembarrierCommand::Global).context("cannot wait for packets")?;
        }
        sys::take_out(maps.lists.as_fd(), place).context("cannot take out a list")?;
    }
    Ok(())
}

/// An address in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The address, masked.
    pub address: IpAddr,
    /// The hop limit of its last packet, 0 if it is not known.
    pub hops: u8,
    /// When its packets came, by the coarse monotonic clock, the oldest first.
    pub times: Vec<u64>,
}

/// A list of the running policy.
pub struct LiveList<'m> {
    list: &'m ListDefinition,
    pages: Blob,
    sweeper: Sweeper,
}

impl<'m> LiveList<'m> {
    /// Opens a list.
    pub fn open(state: &StateDir, maps: &Maps, list: &'m ListDefinition) -> Result<Self> {
        let pages = maps
            .lists
            .get(list.place)?
            .with_context(|| format!("the list {} is not in its place", list.name))?;
        Ok(Self {
            list,
            pages,
            sweeper: Sweeper::open(state)?,
        })
    }

    /// Its cells. Packets may change them meanwhile.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        read::cells(&self.pages).with_context(|| format!("cannot read the list {}", self.list.name))
    }

    /// The addresses in it, the one used last at the end.
    pub fn entries(&self) -> Result<Vec<ListEntry>> {
        Ok(entries(&self.cells()?))
    }

    /// Adds an address, or notes that it came again; whether it was there.
    pub fn add(&self, address: IpAddr) -> Result<bool> {
        self.change(recent::SET, address)
    }

    /// Takes an address out; whether it was there.
    pub fn delete(&self, address: IpAddr) -> Result<bool> {
        self.change(recent::REMOVE, address)
    }

    fn change(&self, question: u32, address: IpAddr) -> Result<bool> {
        match self
            .sweeper
            .change_list(self.list.place, question, address)?
        {
            0 => Ok(false),
            1 => Ok(true),
            _ => bail!("the list {} cannot be locked", self.list.name),
        }
    }
}

/// The addresses in a list of `recent`, the one used last at the end.
pub fn entries(cells: &[Cell]) -> Vec<ListEntry> {
    let Some(head) = cells.first() else {
        return Vec::new();
    };
    let stride = head.w[head::STRIDE].max(1) as usize;
    let buckets = (head.w[head::BUCKETS] as usize + 1).div_ceil(BUCKETS_IN_CELL as usize);
    let first = FIRST_BUCKET as usize + buckets;
    let fresh = (head.w[head::FRESH] as usize).min(cells.len());
    let used = cells.get(first..fresh).unwrap_or_default();
    let mut entries: Vec<ListEntry> = used.chunks_exact(stride).filter_map(read_entry).collect();
    entries.sort_by_key(|entry| entry.times.last().copied());
    entries
}

fn read_entry(cells: &[Cell]) -> Option<ListEntry> {
    let (first, times) = cells.split_first()?;
    let state = first.w[entry::STATE];
    if state & USED == 0 {
        return None;
    }
    let key = &first.w[entry::KEY..];
    let family = if key[KEY_REST] == Family::V6 as u32 {
        Family::V6
    } else {
        Family::V4
    };
    let times: Vec<u64> = times
        .iter()
        .flat_map(|cell| cell.w.as_chunks::<2>().0)
        .map(|[low, high]| u64::from(*high) << 32 | u64::from(*low))
        .take(first.w[recent::COUNT] as usize)
        .collect();
    // The next to be overwritten is the oldest.
    let oldest = (state >> 16) as usize % times.len().max(1);
    let (last, before) = times.split_at(oldest);
    Some(ListEntry {
        address: addr::from_abi(family, [key[0], key[1], key[2], key[3]]),
        hops: (state >> 8) as u8,
        times: [before, last].concat(),
    })
}
