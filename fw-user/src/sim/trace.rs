//! Watching the datapath decide.

use std::cell::RefCell;
use std::net::IpAddr;

use fw_common::MapCell;
use fw_common::abi::blob::Page;
use fw_common::abi::device::Device;
use fw_common::abi::event;
use fw_common::abi::flow::{Flow, FlowKey, Fragment, FragmentKey};
use fw_common::abi::list::ListCell;
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use fw_common::abi::stat::Stat;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::shortcut::Shortcuts;
use fw_common::datapath::tables::{InsertError, Step, Tables, Tier};

use crate::addr;

/// An answer that the datapath got, or a change that it made, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A rule matched, or a chain's policy decided: its counter slot.
    Hit {
        /// The slot.
        slot: u32,
        /// Packets counted: 0 for a later fragment.
        packets: u32,
        /// Bytes counted.
        bytes: u32,
    },
    /// Something was counted.
    Count(Stat),
    /// Whether an address is this host's was asked for.
    Local {
        /// The address.
        address: IpAddr,
        /// The answer.
        local: bool,
    },
    /// A flow was looked up.
    Flow {
        /// Under this key.
        key: FlowKey,
        /// What it was at that moment.
        found: Option<Flow>,
    },
    /// A flow was to be stored.
    Insert {
        /// Under this key.
        key: FlowKey,
        /// The record.
        flow: Flow,
        /// In this tier.
        tier: Tier,
        /// Whether it was.
        result: Result<(), InsertError>,
    },
    /// A flow was to move to the confirmed tier.
    Promote {
        /// The flow.
        key: FlowKey,
        /// Whether it did.
        result: Result<(), InsertError>,
    },
    /// A flow was removed.
    Remove(FlowKey),
    /// A later fragment asked for its first.
    Fragment {
        /// Under this key.
        key: FragmentKey,
        /// Whether it was seen.
        found: bool,
    },
    /// A first fragment was noted.
    InsertFragment(FragmentKey),
}

/// Tables that keep a record of what happens.
pub struct Traced<'t, T> {
    tables: &'t T,
    events: RefCell<Vec<Event>>,
}

impl<'t, T> Traced<'t, T> {
    /// Watches these tables.
    pub fn new(tables: &'t T) -> Self {
        Self {
            tables,
            events: RefCell::default(),
        }
    }

    /// What happened since the last call.
    pub fn take(&self) -> Vec<Event> {
        self.events.take()
    }

    fn note(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }
}

impl<T: Tables> Shortcuts for Traced<'_, T> {}

impl<T: Tables> Tables for Traced<'_, T> {
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
        self.note(Event::Hit {
            slot,
            packets,
            bytes,
        });
        self.tables.hit(slot, packets, bytes);
    }

    fn count(&self, stat: Stat) {
        self.note(Event::Count(stat));
        self.tables.count(stat);
    }

    fn device(&self, index: u32) -> Option<&Device> {
        self.tables.device(index)
    }

    fn is_local(&self, family: Family, address: &Addr) -> bool {
        let local = self.tables.is_local(family, address);
        self.note(Event::Local {
            address: addr::from_abi(family, *address),
            local,
        });
        local
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
        let found = self.tables.flow(key);
        self.note(Event::Flow {
            key: *key,
            found: found.cloned(),
        });
        found
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow, tier: Tier) -> Result<(), InsertError> {
        let result = self.tables.insert_flow(key, flow, tier);
        self.note(Event::Insert {
            key: *key,
            flow: flow.clone(),
            tier,
            result,
        });
        result
    }

    fn promote_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        let result = self.tables.promote_flow(key, flow);
        self.note(Event::Promote { key: *key, result });
        result
    }

    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        let result = self.tables.replace_flow(key, flow);
        self.note(Event::Insert {
            key: *key,
            flow: flow.clone(),
            tier: Tier::Confirmed,
            result,
        });
        result
    }

    fn free_place(&self, key: &FlowKey) {
        self.tables.free_place(key);
    }

    fn remove_flow(&self, key: &FlowKey) -> bool {
        self.note(Event::Remove(*key));
        self.tables.remove_flow(key)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        let found = self.tables.fragment(key);
        self.note(Event::Fragment {
            key: *key,
            found: found.is_some(),
        });
        found
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.note(Event::InsertFragment(*key));
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

    fn deferred_hold(&self, scratch: &mut Scratch) -> u32 {
        // Not through this, which would lead nowhere else.
        self.tables.deferred_hold(scratch)
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
        self.tables.holds_back()
    }

    fn emit(&self, event: &event::Event) -> bool {
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
