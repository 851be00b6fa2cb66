//! Tables for XDP's early drop: hits wait until the packet's end is certain.

use std::cell::RefCell;

use fw_common::MapCell;
use fw_common::abi::blob::Page;
use fw_common::abi::device::Device;
use fw_common::abi::event::Event;
use fw_common::abi::flow::{Flow, FlowKey, Fragment, FragmentKey, Shortcut};
use fw_common::abi::list::ListCell;
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use fw_common::abi::stat::Stat;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::Recorder;
use fw_common::datapath::shortcut::Shortcuts;
use fw_common::datapath::tables::{InsertError, Step, Tables, Tier};

/// Tables whose hits are held back.
pub struct Held<'t, T> {
    tables: &'t T,
    hits: RefCell<Vec<(u32, u32, u32)>>,
    room: usize,
}

impl<'t, T> Held<'t, T> {
    /// Holds back up to `room` hits of a packet, as the kernel's programs do.
    pub fn new(tables: &'t T, room: usize) -> Self {
        Self {
            tables,
            hits: RefCell::default(),
            room,
        }
    }
}

/// What is sent on is counted at once in the kernel, and here by [`Recorder::commit`], as nothing else was held back.
impl<T: Tables> Shortcuts for Held<'_, T> {
    fn shortcut(&self, number: u32) -> Option<&Shortcut> {
        self.tables.shortcut(number)
    }

    fn swap_owner(&self, shortcut: &Shortcut, old: u64, new: u64) -> bool {
        self.tables.swap_owner(shortcut, old, new)
    }
}

impl<T: Tables> Recorder for Held<'_, T> {
    fn begin(&self) {
        self.hits.borrow_mut().clear();
    }

    fn commit(&self) -> bool {
        let hits = self.hits.take();
        if hits.len() > self.room {
            return false;
        }
        for (slot, packets, bytes) in hits {
            self.tables.hit(slot, packets, bytes);
        }
        true
    }
}

impl<T: Tables> Tables for Held<'_, T> {
    type Generation = T::Generation;

    fn active(&self) -> u32 {
        self.tables.active()
    }

    fn generation(&self, place: u32) -> Option<Self::Generation> {
        self.tables.generation(place)
    }

    fn page(&self, generation: Self::Generation, number: u32) -> Option<&Page> {
        self.tables.page(generation, number)
    }

    fn hit(&self, slot: u32, packets: u32, bytes: u32) {
        self.hits.borrow_mut().push((slot, packets, bytes));
    }

    fn count(&self, stat: Stat) {
        self.tables.count(stat);
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.tables.device(index)
    }

    fn is_local(&self, family: Family, address: &Addr) -> bool {
        self.tables.is_local(family, address)
    }

    fn local_kind(&self, family: Family, address: &Addr) -> u32 {
        self.tables.local_kind(family, address)
    }

    fn local_device(&self, family: Family, address: &Addr) -> u32 {
        self.tables.local_device(family, address)
    }

    fn spent(&self, peer: &Addr) -> u64 {
        self.tables.spent(peer)
    }

    fn spend(&self, peer: &Addr, time: u64) {
        self.tables.spend(peer, time);
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.tables.flow(key)
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow, tier: Tier) -> Result<(), InsertError> {
        self.tables.insert_flow(key, flow, tier)
    }

    fn promote_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        self.tables.promote_flow(key, flow)
    }

    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        self.tables.replace_flow(key, flow)
    }

    fn free_place(&self, key: &FlowKey) {
        self.tables.free_place(key);
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        self.tables.remove_flow(key)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.tables.fragment(key)
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.tables.insert_fragment(key, fragment);
    }

    fn frame(&self, depth: u32) -> Option<&MapCell<u64>> {
        self.tables.frame(depth)
    }

    fn limit(&self, generation: Self::Generation, cell: u32) -> u64 {
        self.tables.limit(generation, cell)
    }

    fn replace_limit(&self, generation: Self::Generation, cell: u32, old: u64, new: u64) -> bool {
        self.tables.replace_limit(generation, cell, old, new)
    }

    fn set_info(&self, place: u32) -> Option<&SetInfo> {
        self.tables.set_info(place)
    }

    fn set_entry(&self, place: u32, key: &SetKey) -> Option<SetEntry> {
        self.tables.set_entry(place, key)
    }

    fn put_set_entry(&self, place: u32, key: &SetKey, entry: &SetEntry) {
        self.tables.put_set_entry(place, key, entry);
    }

    fn remove_set_entry(&self, place: u32, key: &SetKey) {
        self.tables.remove_set_entry(place, key);
    }

    fn list_cell(&self, place: u32, cell: u32) -> Option<&ListCell> {
        self.tables.list_cell(place, cell)
    }

    fn lock_list(&self, place: u32) -> bool {
        self.tables.lock_list(place)
    }

    fn unlock_list(&self, place: u32) {
        self.tables.unlock_list(place);
    }

    fn holds_back(&self) -> bool {
        true
    }

    fn emit(&self, event: &Event) -> bool {
        self.tables.emit(event)
    }

    fn now(&self) -> u64 {
        self.tables.now()
    }

    fn tai(&self) -> u64 {
        self.tables.tai()
    }

    fn cpu(&self) -> u32 {
        self.tables.cpu()
    }

    fn random(&self) -> u32 {
        self.tables.random()
    }

    fn run<S: Step>(&self, count: u32, step: &mut S) {
        self.tables.run(count, step);
    }
}
