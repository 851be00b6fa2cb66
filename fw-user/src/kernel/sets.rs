//! Sets in the kernel: filled beside those in use, and changed while they are.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, IterableMap, Map, MapData, MapError};
use fw_common::abi::maps::SETS_MAX;
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use rustix::thread::{MembarrierCommand, membarrier};

use super::flows::monotonic_now;
use super::load::Maps;
use super::sys;
use crate::compile::{contents, set_entry, set_lengths};
use crate::policy::set::{SetDefinition, SetElement};

/// A set's elements in the kernel.
pub type SetMap = HashMap<MapData, SetKey, SetEntry>;

/// Gives each set that is new a place which the running policy does not use.
pub fn place(sets: &mut [SetDefinition], running: &[SetDefinition]) {
    let taken = |place: &u32| running.iter().any(|set| set.place == *place);
    let mut free = (0..SETS_MAX).filter(|place| !taken(place));
    for set in sets.iter_mut().filter(|set| set.elements.is_some()) {
        // A policy has at most half as many sets as there are places.
        set.place = free.next().unwrap_or(u32::MAX);
    }
}

/// Makes and fills the sets that are new. No program looks at their places yet.
pub fn fill(maps: &mut Maps, sets: &[SetDefinition]) -> Result<()> {
    let now = monotonic_now();
    for set in sets {
        if let Some(elements) = &set.elements {
            let (info, entries) = contents(set, elements, now);
            fill_one(maps, set, &info, &entries)
                .with_context(|| format!("cannot make the set {}", set.name))?;
        }
    }
    Ok(())
}

fn fill_one(
    maps: &mut Maps,
    set: &SetDefinition,
    info: &SetInfo,
    entries: &[(SetKey, SetEntry)],
) -> Result<()> {
    /// Elements that are written at once.
    const AT_ONCE: usize = 4096;
    let map = sys::create_set(set.capacity).context("cannot create its map")?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for piece in entries.chunks(AT_ONCE) {
        keys.clear();
        values.clear();
        keys.extend(piece.iter().map(|(key, _)| *key));
        values.extend(piece.iter().map(|(_, entry)| *entry));
        sys::insert_batch(map.as_fd(), &keys, &values).context("cannot write its elements")?;
    }
    maps.set_info
        .set(set.place, info, 0)
        .context("cannot write its lengths")?;
    sys::put(maps.sets.as_fd(), set.place, map.as_fd()).context("cannot put it in its place")
}

/// Takes out what stands in places that no set of the running policy has, once no packet is left
/// that may be asking there.
pub fn prune(maps: &Maps, running: &[SetDefinition]) -> Result<()> {
    let mut waited = false;
    for place in 0..SETS_MAX {
        let taken = running.iter().any(|set| set.place == place);
        if taken || sys::word(maps.sets.as_fd(), place)?.is_none() {
            continue;
        }
        if !std::mem::replace(&mut waited, true) {
            membarrier(MembarrierCommand::Global).context("cannot wait for packets")?;
        }
        sys::take_out(maps.sets.as_fd(), place).context("cannot take out a set")?;
    }
    Ok(())
}

/// A set of the running policy.
pub struct LiveSet<'m> {
    maps: &'m mut Maps,
    /// What it is.
    pub set: SetDefinition,
    map: SetMap,
}

impl<'m> LiveSet<'m> {
    /// Opens a set.
    pub fn open(maps: &'m mut Maps, set: &SetDefinition) -> Result<Self> {
        let id = sys::word(maps.sets.as_fd(), set.place)?
            .with_context(|| format!("the set {} is not in its place", set.name))?;
        let map = MapData::from_id(id)
            .and_then(Map::from_map_data)
            .and_then(SetMap::try_from)
            .with_context(|| format!("cannot open the set {}", set.name))?;
        Ok(Self {
            maps,
            set: set.clone(),
            map,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        IterableMap::map(&self.map).fd().as_fd()
    }

    /// Its lengths and times.
    pub fn info(&self) -> Result<SetInfo> {
        Ok(self.maps.set_info.get(&self.set.place, 0)?)
    }

    /// Its elements, but for those whose time is over.
    pub fn elements(&self) -> Result<Vec<(SetKey, SetEntry)>> {
        let now = monotonic_now();
        let mut all = self.all()?;
        all.retain(|(_, entry)| !entry.is_over(now));
        Ok(all)
    }

    /// The set as if a file had given it: with the times that its elements have left.
    pub fn with_elements(&self) -> Result<SetDefinition> {
        let now = monotonic_now();
        let element = |(key, entry): (SetKey, SetEntry)| SetElement {
            key,
            timeout: self.set.timeout.map(|_| match entry.expires {
                0 => 0,
                expires => (expires.saturating_sub(now) / 1_000_000_000).max(1) as u32,
            }),
            nomatch: entry.flags & SetEntry::NOMATCH != 0,
        };
        let elements = self.elements()?.into_iter().map(element).collect();
        Ok(SetDefinition {
            elements: Some(std::sync::Arc::new(elements)),
            ..self.set.clone()
        })
    }

    fn all(&self) -> Result<Vec<(SetKey, SetEntry)>> {
        let mut found = Vec::new();
        let mut length = 4096;
        let mut cursor = None;
        loop {
            let mut keys = vec![SetKey::default(); length];
            let mut values = vec![SetEntry::default(); length];
            match sys::lookup_batch(self.fd(), cursor, &mut keys, &mut values) {
                Ok((count, next)) => {
                    found.extend(keys.into_iter().zip(values).take(count));
                    match next {
                        Some(next) => cursor = Some(next),
                        None => return Ok(found),
                    }
                }
                // A bucket that is longer than the slices.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => length *= 2,
                Err(error) => return Err(error).context("cannot read the set"),
            }
        }
    }

    /// What is known of an element, if it is there.
    pub fn get(&self, key: &SetKey) -> Result<Option<SetEntry>> {
        match self.map.get(key, 0) {
            Ok(entry) => Ok((!entry.is_over(monotonic_now())).then_some(entry)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("cannot read the set"),
        }
    }

    /// Adds an element, or gives it a new time.
    pub fn add(&mut self, element: &SetElement) -> Result<()> {
        let mut info = self.info()?;
        let before = info;
        set_lengths(&mut info, &self.set, &element.key);
        if info != before {
            // First the lengths: an element of another length would not be found.
            self.maps.set_info.set(self.set.place, info, 0)?;
        }
        let entry = set_entry(&self.set, element, monotonic_now());
        if self.map.insert(element.key, entry, 0).is_ok() {
            return Ok(());
        }
        // What is over makes room.
        self.sweep()?;
        match self.map.insert(element.key, entry, 0) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                bail!(
                    "the set {} is full: it has room for {} elements; write a larger `maxelem` \
                     into the line that makes it, and load again",
                    self.set.name,
                    self.set.capacity
                )
            }
            other => other.context("cannot add to the set"),
        }
    }

    /// Deletes an element; false if it was not there.
    pub fn delete(&mut self, key: &SetKey) -> Result<bool> {
        let was_there = self.get(key)?.is_some();
        self.remove(key)?;
        Ok(was_there)
    }

    /// Deletes the elements whose time is over, and says how many they were.
    pub fn sweep(&mut self) -> Result<usize> {
        if self.set.timeout.is_none() {
            return Ok(0);
        }
        let now = monotonic_now();
        let over: Vec<SetKey> = self
            .all()?
            .into_iter()
            .filter(|(_, entry)| entry.is_over(now))
            .map(|(key, _)| key)
            .collect();
        for key in &over {
            // It may have been added anew meanwhile; then this look finds it alive.
            if self.get(key)?.is_none() {
                self.remove(key)?;
            }
        }
        Ok(over.len())
    }

    /// Deletes everything.
    pub fn flush(&mut self) -> Result<usize> {
        let all = self.all()?;
        for (key, _) in &all {
            self.remove(key)?;
        }
        Ok(all.len())
    }

    /// Deletes an element that may be gone already.
    fn remove(&mut self, key: &SetKey) -> Result<()> {
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(error).context("cannot delete from the set"),
        }
    }
}
