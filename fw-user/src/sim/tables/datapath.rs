//! What the datapath asks of the host's tables.

use std::ops::ControlFlow;

use fw_common::MapCell;
use fw_common::abi::blob::{Cell, Page};
use fw_common::abi::device::Device;
use fw_common::abi::event::Event;
use fw_common::abi::flow::{Flow, FlowKey, Fragment, FragmentKey, Shortcut};
use fw_common::abi::list::{ListCell, head};
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use fw_common::abi::stat::Stat;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::shortcut::Shortcuts;
use fw_common::datapath::tables::{InsertError, Step, Tables, Tier};

use super::{HostTables, put_bounded};
use crate::addr;

impl Shortcuts for HostTables {
    fn shortcut(&self, number: u32) -> Option<&Shortcut> {
        self.shortcuts().get(number as usize)
    }

    fn swap_owner(&self, shortcut: &Shortcut, old: u64, new: u64) -> bool {
        let same = shortcut.owner.get() == old;
        if same {
            shortcut.owner.set(new);
        }
        same
    }
}

impl Tables for HostTables {
    /// There is one policy at a time, and no packet on its way while it is replaced.
    type Generation = ();

    /// Always the same word, and not 0, which is nobody's where shortcuts are.
    fn active(&self) -> u32 {
        1
    }

    fn generation(&self, _place: u32) -> Option<()> {
        self.policy.as_ref().map(|_| ())
    }

    fn page(&self, (): (), number: u32) -> Option<&Page> {
        let (pages, _) = self.policy.as_ref()?.cells.as_chunks();
        pages.get(number as usize)
    }

    fn hit(&self, slot: u32, packets: u32, bytes: u32) {
        let mut counters = self.counters.borrow_mut();
        let [all_packets, all_bytes] = counters.entry(slot).or_default();
        *all_packets += u64::from(packets);
        *all_bytes += u64::from(bytes);
    }

    fn count(&self, stat: Stat) {
        *self.stats.borrow_mut().entry(stat as u32).or_default() += 1;
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.devices.get(&index)
    }

    fn is_local(&self, family: Family, address: &Addr) -> bool {
        self.host.is_local(addr::from_abi(family, *address))
    }

    fn local_kind(&self, family: Family, address: &Addr) -> u32 {
        self.host.local_kind(addr::from_abi(family, *address))
    }

    /// On which interface an address is, the simulator does not know.
    fn local_device(&self, _family: Family, _address: &Addr) -> u32 {
        0
    }

    fn spent(&self, peer: &Addr) -> u64 {
        self.spent.borrow().get(peer).copied().unwrap_or_default()
    }

    fn spend(&self, peer: &Addr, time: u64) {
        self.spent.borrow_mut().insert(*peer, time);
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        let tiers = self.tiers(key);
        let confirmed = tiers.confirmed.borrow().get(key).copied();
        let place = confirmed.or_else(|| tiers.embryos.borrow_mut().get(key).copied())?;
        self.arena.get(place)
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow, tier: Tier) -> Result<(), InsertError> {
        let tiers = self.tiers(key);
        let mut confirmed = tiers.confirmed.borrow_mut();
        let mut embryos = tiers.embryos.borrow_mut();
        if confirmed.contains_key(key) || embryos.contains(key) {
            return Err(InsertError::Exists);
        }
        let early = tier == Tier::Early && self.places.borrow_mut().insert(key.place());
        if early || tier == Tier::Confirmed {
            if confirmed.len() < tiers.confirmed_max {
                if early {
                    flow.status.set(flow.status.get() | Flow::EARLY);
                }
                confirmed.insert(*key, self.store(flow));
                return Ok(());
            }
            if early {
                self.free_place(key);
            }
            self.count(Stat::FlowTableFull);
        }
        put_bounded(&mut embryos, *key, self.store(flow), tiers.embryos_max);
        Ok(())
    }

    fn promote_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        let tiers = self.tiers(key);
        let mut confirmed = tiers.confirmed.borrow_mut();
        if confirmed.contains_key(key) || confirmed.len() >= tiers.confirmed_max {
            self.count(Stat::FlowTableFull);
            return Err(InsertError::Full);
        }
        confirmed.insert(*key, self.store(flow));
        tiers.embryos.borrow_mut().pop(key);
        Ok(())
    }

    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        match self.tiers(key).confirmed.borrow_mut().get_mut(key) {
            Some(place) => {
                *place = self.store(flow);
                Ok(())
            }
            None => Err(InsertError::Full),
        }
    }

    fn free_place(&self, key: &FlowKey) {
        self.places.borrow_mut().remove(&key.place());
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        let tiers = self.tiers(key);
        let removed = tiers.confirmed.borrow_mut().remove(key).is_some();
        tiers.embryos.borrow_mut().pop(key);
        removed
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow_mut().get(key).copied()
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let mut fragments = self.fragments.borrow_mut();
        put_bounded(&mut fragments, *key, *fragment, self.fragments_max);
    }

    fn frame(&self, depth: u32) -> Option<&MapCell<u64>> {
        self.frames.get(depth as usize)
    }

    fn limit(&self, (): (), cell: u32) -> u64 {
        let written = || {
            let cell = Tables::cell(self, (), cell)?;
            Some(limit_state(cell))
        };
        let changed = self.limits.borrow().get(&cell).copied();
        changed.or_else(written).unwrap_or_default()
    }

    fn replace_limit(&self, (): (), cell: u32, old: u64, new: u64) -> bool {
        if self.limit((), cell) != old {
            return false;
        }
        self.limits.borrow_mut().insert(cell, new);
        true
    }

    fn emit(&self, event: &Event) -> bool {
        self.events.borrow_mut().push(*event);
        true
    }

    fn set_info(&self, place: u32) -> Option<&SetInfo> {
        self.sets.get(&place).map(|set| &set.info)
    }

    fn set_entry(&self, place: u32, key: &SetKey) -> Option<SetEntry> {
        self.sets.get(&place)?.entries.borrow().get(key).copied()
    }

    fn put_set_entry(&self, place: u32, key: &SetKey, entry: &SetEntry) {
        if let Some(set) = self.sets.get(&place) {
            set.entries.borrow_mut().insert(*key, *entry);
        }
    }

    fn remove_set_entry(&self, place: u32, key: &SetKey) {
        if let Some(set) = self.sets.get(&place) {
            set.entries.borrow_mut().remove(key);
        }
    }

    fn list_cell(&self, place: u32, cell: u32) -> Option<&ListCell> {
        self.lists.get(&place)?.get(cell as usize)
    }

    fn lock_list(&self, place: u32) -> bool {
        self.list_cell(place, 0)
            .is_some_and(|cell| cell[head::LOCK].get() == 0)
    }

    /// There is one thread.
    fn unlock_list(&self, _place: u32) {}

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn tai(&self) -> u64 {
        self.tai.get()
    }

    /// The simulator has one.
    fn cpu(&self) -> u32 {
        0
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&self) -> u32 {
        if let Some(number) = self.drawn.get() {
            return number;
        }
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed >> 32) as u32
    }

    fn run<S: Step>(&self, count: u32, step: &mut S) {
        for turn in 0..count {
            if let ControlFlow::Break(()) = step.step(turn) {
                return;
            }
        }
    }
}

/// The state of a limit as its cell holds it: the last two words.
fn limit_state(cell: &Cell) -> u64 {
    u64::from(cell.w[15]) << 32 | u64::from(cell.w[14])
}
