//! The datapath's state as XDP sees it: what a packet counts is held back until its fate is known.

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
use fw_common::datapath::limit;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::sctp::Chunks;
use fw_common::datapath::shortcut::Shortcuts;
use fw_common::datapath::tables::{InsertError, Step, Tables, Tier};
use fw_common::datapath::tcp::Segment;
use fw_common::datapath::tuple::Lookup;

use crate::maps::{FRAMES, PATH_SLOTS, SET_INFO, path};
use crate::stages::call_xdp_deferred;
use crate::tables::{BpfTables, Generation};

/// The same maps, with counts held back.
#[derive(Clone, Copy)]
pub struct RecordingTables;

impl Recorder for RecordingTables {
    #[inline(always)]
    fn begin(&self) {
        if let Some(path) = path() {
            path.count.set(0);
        }
    }

    #[inline(always)]
    fn commit(&self) -> bool {
        let Some(path) = path() else {
            return false;
        };
        let count = path.count.get();
        if count as usize > PATH_SLOTS {
            return false;
        }
        // Few rules, as a rule: those need no loop.
        if count > 2 {
            self.run(count, &mut Commit);
            return true;
        }
        if count > 0 {
            BpfTables.hit(path.slots[0].get(), 1, path.bytes.get());
        }
        if count > 1 {
            BpfTables.hit(path.slots[1].get(), 1, path.bytes.get());
        }
        true
    }
}

struct Commit;

impl Step for Commit {
    #[inline(always)]
    fn step(&mut self, turn: u32) -> core::ops::ControlFlow<()> {
        if let Some(path) = path() {
            if let Some(slot) = path.slots.get(turn as usize) {
                BpfTables.hit(slot.get(), 1, path.bytes.get());
            }
        }
        core::ops::ControlFlow::Continue(())
    }
}

impl Shortcuts for RecordingTables {
    #[inline(always)]
    fn shortcut(&self, number: u32) -> Option<&Shortcut> {
        const MAPS: &BpfTables = &BpfTables;
        MAPS.shortcut(number)
    }

    #[inline(always)]
    fn swap_owner(&self, shortcut: &Shortcut, old: u64, new: u64) -> bool {
        BpfTables.swap_owner(shortcut, old, new)
    }
}

impl Tables for RecordingTables {
    type Generation = Generation;

    #[inline(always)]
    fn active(&self) -> u32 {
        BpfTables.active()
    }
    #[inline(always)]
    fn generation(&self, place: u32) -> Option<Generation> {
        BpfTables.generation(place)
    }
    #[inline(always)]
    fn front(&self, place: u32) -> Option<&Page> {
        const MAPS: &BpfTables = &BpfTables;
        MAPS.front(place)
    }
    #[inline(always)]
    fn page(&self, generation: Generation, number: u32) -> Option<&Page> {
        const MAPS: &BpfTables = &BpfTables;
        MAPS.page(generation, number)
    }
    #[inline(always)]
    fn hit(&self, slot: u32, _packets: u32, bytes: u32) {
        if let Some(path) = path() {
            let count = path.count.get();
            path.count.set(count.wrapping_add(1));
            path.bytes.set(bytes);
            if let Some(place) = path.slots.get(count as usize) {
                place.set(slot);
            }
        }
    }
    #[inline(always)]
    fn count(&self, stat: Stat) {
        BpfTables.count(stat);
    }
    #[inline(always)]
    fn device(&self, index: u32) -> Option<&Device> {
        BpfTables.device(index)
    }
    #[inline(always)]
    fn is_local(&self, family: Family, address: &Addr) -> bool {
        BpfTables.is_local(family, address)
    }
    #[inline(always)]
    fn local_kind(&self, family: Family, address: &Addr) -> u32 {
        BpfTables.local_kind(family, address)
    }
    #[inline(always)]
    fn local_device(&self, family: Family, address: &Addr) -> u32 {
        BpfTables.local_device(family, address)
    }

    #[inline(always)]
    fn spent(&self, peer: &Addr) -> u64 {
        BpfTables.spent(peer)
    }

    #[inline(always)]
    fn spend(&self, peer: &Addr, time: u64) {
        BpfTables.spend(peer, time);
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        const MAPS: &BpfTables = &BpfTables;
        MAPS.flow(key)
    }
    #[inline(always)]
    fn hint(&self, key: &FlowKey) -> u64 {
        BpfTables.hint(key)
    }
    #[inline(always)]
    fn hinted_flow(&self, key: &FlowKey, hint: u64) -> Option<&Flow> {
        const MAPS: &BpfTables = &BpfTables;
        MAPS.hinted_flow(key, hint)
    }
    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, flow: &Flow, tier: Tier) -> Result<(), InsertError> {
        BpfTables.insert_flow(key, flow, tier)
    }
    #[inline(always)]
    fn promote_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        BpfTables.promote_flow(key, flow)
    }
    #[inline(always)]
    fn expect_embryo(&self, key: &FlowKey, expires: u64) {
        BpfTables.expect_embryo(key, expires);
    }
    #[inline(always)]
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        BpfTables.replace_flow(key, flow)
    }
    #[inline(always)]
    fn free_place(&self, key: &FlowKey) {
        BpfTables.free_place(key);
    }
    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) -> bool {
        BpfTables.remove_flow(key)
    }
    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        BpfTables.fragment(key)
    }
    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        BpfTables.insert_fragment(key, fragment);
    }
    #[inline(always)]
    fn frame(&self, depth: u32) -> Option<&MapCell<u64>> {
        FRAMES.get(depth)
    }
    #[inline(always)]
    fn limit(&self, generation: Generation, cell: u32) -> u64 {
        BpfTables.limit(generation, cell)
    }
    #[inline(always)]
    fn replace_limit(&self, _: Generation, _: u32, _: u64, _: u64) -> bool {
        false
    }
    #[inline(always)]
    fn set_info(&self, place: u32) -> Option<&SetInfo> {
        SET_INFO.get(place)
    }
    #[inline(always)]
    fn set_entry(&self, place: u32, key: &SetKey) -> Option<SetEntry> {
        BpfTables.set_entry(place, key)
    }
    /// Effects wait for the tc programs.
    #[inline(always)]
    fn put_set_entry(&self, _: u32, _: &SetKey, _: &SetEntry) {}
    #[inline(always)]
    fn remove_set_entry(&self, _: u32, _: &SetKey) {}
    /// Nobody asks here: see `holds_back`.
    #[inline(always)]
    fn list_cell(&self, _: u32, _: u32) -> Option<&ListCell> {
        None
    }
    #[inline(always)]
    fn lock_list(&self, _: u32) -> bool {
        false
    }
    #[inline(always)]
    fn unlock_list(&self, _: u32) {}
    #[inline(always)]
    fn ask_list(&self, _: &mut Scratch) -> u32 {
        limit::LATER
    }
    #[inline(always)]
    fn deferred_hold(&self, scratch: &mut Scratch) -> u32 {
        call_xdp_deferred(scratch)
    }
    #[inline(always)]
    fn holds_back(&self) -> bool {
        true
    }
    #[inline(always)]
    fn emit(&self, event: &Event) -> bool {
        BpfTables.emit(event)
    }
    #[inline(always)]
    fn now(&self) -> u64 {
        BpfTables.now()
    }
    #[inline(always)]
    fn tai(&self) -> u64 {
        BpfTables.tai()
    }
    #[inline(always)]
    fn cpu(&self) -> u32 {
        BpfTables.cpu()
    }
    #[inline(always)]
    fn random(&self) -> u32 {
        BpfTables.random()
    }
    #[inline(always)]
    fn advance_tcp(&self, flow: &Flow, segment: &Segment, reply: bool) -> u32 {
        BpfTables.advance_tcp(flow, segment, reply)
    }

    #[inline(always)]
    fn advance_sctp(&self, flow: &Flow, chunks: &Chunks, direction: u32) -> u32 {
        BpfTables.advance_sctp(flow, chunks, direction)
    }
    #[inline(always)]
    fn find_second(&self, lookup: &mut Lookup, aliases: bool, opened: u32, now: u64) -> u32 {
        BpfTables.find_second(lookup, aliases, opened, now)
    }
    /// Nobody chooses ports here.
    #[inline(always)]
    fn name_is_taken(&self, _: &mut Lookup, _: u32) -> bool {
        true
    }
    #[inline(always)]
    fn unlink(&self, key: &FlowKey, flow: &Flow) {
        BpfTables.unlink(key, flow);
    }
    #[inline(always)]
    fn run<S: Step>(&self, count: u32, step: &mut S) {
        BpfTables.run(count, step);
    }
}
