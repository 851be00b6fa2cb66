//! The datapath's state, in BPF maps.
#![allow(
    unsafe_code,
    reason = "map values are reached through the pointers that helpers return"
)]

use core::ffi::c_void;
use core::hint::black_box;
use core::intrinsics::AtomicOrdering;

use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::helpers::{
    bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns, bpf_ktime_get_tai_ns,
    bpf_loop,
};
use fw_common::MapCell;
use fw_common::abi::blob::{
    self, MAGIC, MAX_DEPTH, NEAR_PAGES as NEAR_PAGES_LEN, PAGE_CELLS, Page,
};
use fw_common::abi::device::{Device, address_kind};
use fw_common::abi::event::Event;
use fw_common::abi::flow::{Flow, FlowKey, FlowKey4, Fragment, FragmentKey, Hint, Shortcut};
use fw_common::abi::list::{ListCell, ListPage};
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use fw_common::abi::stat::Stat;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::sctp::Chunks;
use fw_common::datapath::shortcut::Shortcuts;
use fw_common::datapath::tables::{InsertError, Step, Tables, Tier};
use fw_common::datapath::tcp::Segment;
use fw_common::datapath::tuple::Lookup;

use crate::hints;
use crate::local::{is_multicast, local_key};
use crate::maps::{
    ACTIVE, ANSWERED, COUNTERS, DEVICES, EMBRYOS4, EMBRYOS6, EVENTS, FLOWS4, FLOWS6, FRAGMENTS,
    FRAMES, HINTS, LISTS, LOCAL, NEAR_DEVICES, NEAR_PAGES, POLICY, SET_INFO, SETS, SHORTCUTS,
    STATS,
};
use crate::shared_words::{add, clear_place, limit_state, say_second, swap_lock, swap_word};
use crate::stages::{
    call_deferred, call_list, call_name_is_taken, call_second, fwbpf_advance_sctp,
    fwbpf_advance_tcp, fwbpf_take_chunk, fwbpf_unlink,
};

/// One generation: its place. User space leaves a place alone while a program may be running that
/// has found it active.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Generation(u32);

/// The maps. Of size zero: there is one set of maps.
#[derive(Clone, Copy)]
pub struct BpfTables;

impl BpfTables {
    /// The flow under a key as it is stored, asking no hint: an embryo that is past its time is
    /// found here, and nowhere else.
    #[inline(always)]
    pub fn stored_flow(&self, key: &FlowKey) -> Option<&Flow> {
        // SAFETY: as in `confirmed`.
        unsafe {
            if key.is_v4() {
                let key = &FlowKey4::from(key);
                FLOWS4.get(key).or_else(|| EMBRYOS4.get(key))
            } else {
                FLOWS6.get(key).or_else(|| EMBRYOS6.get(key))
            }
        }
    }
}

/// A flow or an alias of the confirmed tier.
#[inline(always)]
fn confirmed(key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: only `MapCell`s of a flow change after its insertion. An element that is deleted and used
    // again while we look at it shows another flow's words for one packet.
    unsafe {
        if key.is_v4() {
            FLOWS4.get(FlowKey4::from(key))
        } else {
            FLOWS6.get(key)
        }
    }
}

/// A flow or an alias of the embryonic tier.
#[inline(always)]
fn embryo(key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: as in `confirmed`.
    unsafe {
        if key.is_v4() {
            EMBRYOS4.get(FlowKey4::from(key))
        } else {
            EMBRYOS6.get(key)
        }
    }
}

/// Puts a flow or an alias into the confirmed tier.
#[inline(always)]
fn put(key: &FlowKey, flow: &Flow, flags: u32) -> Result<(), i32> {
    if key.is_v4() {
        FLOWS4.insert(FlowKey4::from(key), flow, flags as u64)
    } else {
        FLOWS6.insert(key, flow, flags as u64)
    }
}

impl Shortcuts for BpfTables {
    #[inline(always)]
    fn shortcut(&self, number: u32) -> Option<&Shortcut> {
        SHORTCUTS.get(number)
    }

    #[inline(always)]
    fn swap_owner(&self, shortcut: &Shortcut, old: u64, new: u64) -> bool {
        swap_word(&shortcut.owner, old, new)
    }
}

impl Tables for BpfTables {
    type Generation = Generation;

    #[inline(always)]
    fn active(&self) -> u32 {
        match ACTIVE.get_ptr(0) {
            // SAFETY: user space may write the word at any time; it is read once.
            Some(place) => unsafe { place.read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn generation(&self, place: u32) -> Option<Generation> {
        self.front(place).map(|_| Generation(place))
    }

    #[inline(always)]
    fn front(&self, place: u32) -> Option<&Page> {
        let [front, ..] = NEAR_PAGES.get(place)?;
        (front[0].w[0] == MAGIC).then_some(front)
    }

    #[inline(always)]
    fn page(&self, generation: Generation, number: u32) -> Option<&Page> {
        if number < NEAR_PAGES_LEN as u32 {
            let near = NEAR_PAGES.get(generation.0)?;
            // LLVM must not add the offset before the check of null.
            let number = black_box(number) as usize % NEAR_PAGES_LEN;
            return Some(&near[number]);
        }
        POLICY.get(generation.0)?.get(number)
    }

    #[inline(always)]
    fn hit(&self, slot: u32, packets: u32, bytes: u32) {
        if let Some(counter) = COUNTERS.get_ptr_mut(slot) {
            // SAFETY: the value is this CPU's own, and no other program runs on it meanwhile.
            unsafe {
                (*counter)[0] += packets as u64;
                (*counter)[1] += bytes as u64;
            }
        }
    }

    #[inline(always)]
    fn count(&self, stat: Stat) {
        if let Some(counter) = STATS.get_ptr_mut(stat as u32) {
            // SAFETY: as for `hit`.
            unsafe { *counter += 1 }
        }
    }

    #[inline(always)]
    fn device(&self, index: u32) -> Option<&Device> {
        // SAFETY: user space writes whole records and deletes one only with its interface; a
        // record replaced meanwhile is at worst read half old, half new, for one packet.
        match NEAR_DEVICES.get(index) {
            Some(device) if device.flags & Device::PRESENT != 0 => Some(device),
            _ => unsafe { DEVICES.get(index) },
        }
    }

    #[inline(always)]
    fn is_local(&self, family: Family, address: &Addr) -> bool {
        is_multicast(family, address) || self.local_kind(family, address) != 0
    }

    #[inline(always)]
    fn local_kind(&self, family: Family, address: &Addr) -> u32 {
        match LOCAL.get(local_key(family, address)) {
            Some(word) => *word & address_kind::MASK,
            None => 0,
        }
    }

    #[inline(always)]
    fn local_device(&self, family: Family, address: &Addr) -> u32 {
        match LOCAL.get(local_key(family, address)) {
            Some(word) => *word >> address_kind::BITS,
            None => 0,
        }
    }

    #[inline(always)]
    fn spent(&self, peer: &Addr) -> u64 {
        // SAFETY: copied out at once; a place used again meanwhile is another peer's, for one answer.
        unsafe { ANSWERED.get(peer) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn spend(&self, peer: &Addr, time: u64) {
        let _ = ANSWERED.insert(peer, time, BPF_ANY as u64);
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        // Who asks so has a name that a flow bears, most often: the bit would be one look more.
        let hint = HINTS.get(key.hint())?.word.get();
        if !Hint::may_have_kind(hint, key.kind()) {
            return None;
        }
        self.hinted_flow(key, hint)
    }

    #[inline(always)]
    fn hint(&self, key: &FlowKey) -> u64 {
        hints::word(key.hint())
    }

    #[inline(always)]
    fn hinted_flow(&self, key: &FlowKey, hint: u64) -> Option<&Flow> {
        // SAFETY: as in `confirmed`.
        unsafe {
            if key.is_v4() {
                let key = &FlowKey4::from(key);
                if Hint::may_have_confirmed(hint)
                    && let Some(flow) = FLOWS4.get(key)
                {
                    return Some(flow);
                }
                if Hint::may_have_embryo(hint, || self.now()) {
                    return EMBRYOS4.get(key);
                }
            } else {
                if Hint::may_have_confirmed(hint)
                    && let Some(flow) = FLOWS6.get(key)
                {
                    return Some(flow);
                }
                if Hint::may_have_embryo(hint, || self.now()) {
                    return EMBRYOS6.get(key);
                }
            }
        }
        None
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey, flow: &Flow, tier: Tier) -> Result<(), InsertError> {
        let number = key.hint();
        let Some(hint) = HINTS.get(number) else {
            return Err(InsertError::Full);
        };
        let embryos = Hint::may_have_embryo(hint.word.get(), || self.now());
        if key.kind() == FlowKey::SECOND {
            say_second(hint);
        }
        let early = matches!(tier, Tier::Early) && hints::take_place(key);
        // A key is in one tier only: a flow behind another of its name would come to light when
        // that one ends.
        if early || matches!(tier, Tier::Confirmed) {
            if embryos && embryo(key).is_some() {
                if early {
                    self.free_place(key);
                }
                return Err(InsertError::Exists);
            }
            let status = flow.status.get();
            if early {
                flow.status.set(status | Flow::EARLY);
            }
            hints::raise(number, hint, 1);
            let result = put(key, flow, BPF_NOEXIST);
            if result.is_ok() {
                return Ok(());
            }
            add(hint, u64::MAX);
            if early {
                flow.status.set(status);
                self.free_place(key);
            }
            match result {
                Err(EXISTS) => return Err(InsertError::Exists),
                _ => self.count(Stat::FlowTableFull),
            }
        } else if Hint::may_have_confirmed(hint.word.get()) && confirmed(key).is_some() {
            return Err(InsertError::Exists);
        }
        // One that is past its time, and so was not found, makes way.
        let flags = if embryos {
            BPF_NOEXIST as u64
        } else {
            BPF_ANY as u64
        };
        hints::raise(number, hint, hint.until(flow.expires.get()));
        let result = if key.is_v4() {
            EMBRYOS4.insert(FlowKey4::from(key), flow, flags)
        } else {
            EMBRYOS6.insert(key, flow, flags)
        };
        result.map_err(|error| match error {
            EXISTS => InsertError::Exists,
            _ => InsertError::Full,
        })
    }

    #[inline(always)]
    fn promote_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        let number = key.hint();
        let Some(hint) = HINTS.get(number) else {
            return Err(InsertError::Full);
        };
        hints::raise(number, hint, 1);
        if put(key, flow, BPF_NOEXIST).is_err() {
            add(hint, u64::MAX);
            self.count(Stat::FlowTableFull);
            return Err(InsertError::Full);
        }
        let _ = if key.is_v4() {
            EMBRYOS4.remove(FlowKey4::from(key))
        } else {
            EMBRYOS6.remove(key)
        };
        Ok(())
    }

    #[inline(always)]
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError> {
        put(key, flow, BPF_EXIST).map_err(|_| InsertError::Full)
    }

    #[inline(always)]
    fn free_place(&self, key: &FlowKey) {
        if let Some(hint) = HINTS.get(key.place()) {
            clear_place(hint);
        }
    }

    #[inline(always)]
    fn expect_embryo(&self, key: &FlowKey, expires: u64) {
        let number = key.hint();
        if let Some(hint) = HINTS.get(number) {
            hints::raise(number, hint, hint.until(expires));
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) -> bool {
        let removed = if key.is_v4() {
            FLOWS4.remove(FlowKey4::from(key)).is_ok()
        } else {
            FLOWS6.remove(key).is_ok()
        };
        if removed {
            if let Some(hint) = HINTS.get(key.hint()) {
                add(hint, u64::MAX);
            }
            return true;
        }
        let _ = if key.is_v4() {
            EMBRYOS4.remove(FlowKey4::from(key))
        } else {
            EMBRYOS6.remove(key)
        };
        false
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: copied out at once; a record recycled meanwhile belongs to another datagram,
        // and is 48 bytes of plain integers.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn frame(&self, depth: u32) -> Option<&MapCell<u64>> {
        FRAMES.get(depth)
    }

    #[inline(always)]
    fn limit(&self, generation: Generation, cell: u32) -> u64 {
        match limit_state(generation.0, cell) {
            // SAFETY: within the cell, and aligned; programs on other CPUs may write it at any time.
            Some(state) => unsafe { state.read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn replace_limit(&self, generation: Generation, cell: u32, old: u64, new: u64) -> bool {
        match limit_state(generation.0, cell) {
            // SAFETY: as in `limit`.
            Some(state) => unsafe {
                core::intrinsics::atomic_cxchg::<
                    u64,
                    { AtomicOrdering::SeqCst },
                    { AtomicOrdering::SeqCst },
                >(state, old, new)
                .1
            },
            None => false,
        }
    }

    #[inline(always)]
    fn set_info(&self, place: u32) -> Option<&SetInfo> {
        SET_INFO.get(place)
    }

    #[inline(always)]
    fn set_entry(&self, place: u32, key: &SetKey) -> Option<SetEntry> {
        // SAFETY: copied out at once. An element deleted meanwhile stays what it was until the
        // program ends, or becomes another one's for this look-up.
        unsafe { SETS.get(place)?.get(key) }.copied()
    }

    #[inline(always)]
    fn put_set_entry(&self, place: u32, key: &SetKey, entry: &SetEntry) {
        if let Some(set) = SETS.get(place) {
            let _ = set.insert(key, entry, BPF_ANY as u64);
        }
    }

    #[inline(always)]
    fn remove_set_entry(&self, place: u32, key: &SetKey) {
        if let Some(set) = SETS.get(place) {
            let _ = set.remove(key);
        }
    }

    #[inline(always)]
    fn list_cell(&self, place: u32, cell: u32) -> Option<&ListCell> {
        let (number, at) = blob::place(cell);
        let page = LISTS.get(place)?.get_ptr_mut(number)?;
        // SAFETY: a page of cells, and all that asks for a list's cells has words of its own to be
        // written by anybody (`MapCell`), which are laid out alike.
        let page = unsafe { &*page.cast::<ListPage>() };
        // LLVM must not add the offset before the check of null.
        Some(&page[black_box(at) % PAGE_CELLS])
    }

    #[inline(always)]
    fn lock_list(&self, place: u32) -> bool {
        match self.list_cell(place, 0) {
            Some(cell) => swap_lock(cell, 0, 1),
            None => false,
        }
    }

    #[inline(always)]
    fn unlock_list(&self, place: u32) {
        if let Some(cell) = self.list_cell(place, 0) {
            swap_lock(cell, 1, 0);
        }
    }

    #[inline(always)]
    fn ask_list(&self, scratch: &mut Scratch) -> u32 {
        call_list(scratch)
    }

    #[inline(always)]
    fn deferred_hold(&self, scratch: &mut Scratch) -> u32 {
        call_deferred(scratch)
    }

    #[inline(always)]
    fn emit(&self, event: &Event) -> bool {
        EVENTS.output::<Event>(event, 0).is_ok()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no argument, no side effect.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn tai(&self) -> u64 {
        // SAFETY: no argument, no side effect.
        unsafe { bpf_ktime_get_tai_ns() }
    }

    #[inline(always)]
    fn cpu(&self) -> u32 {
        // SAFETY: no argument, no side effect.
        unsafe { bpf_get_smp_processor_id() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no argument, no side effect.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn advance_tcp(&self, flow: &Flow, segment: &Segment, reply: bool) -> u32 {
        fwbpf_advance_tcp(flow, segment, reply as u32)
    }

    #[inline(always)]
    fn find_second(&self, lookup: &mut Lookup, aliases: bool, opened: u32, now: u64) -> u32 {
        call_second(lookup, aliases, opened, now)
    }

    #[inline(always)]
    fn name_is_taken(&self, lookup: &mut Lookup, opened: u32) -> bool {
        // LLVM knows that it is 0 or 1, and would return it from a loop's body. The verifier does not.
        black_box(call_name_is_taken(lookup, opened)) != 0
    }

    #[inline(always)]
    fn advance_sctp(&self, flow: &Flow, chunks: &Chunks, direction: u32) -> u32 {
        fwbpf_advance_sctp(flow, chunks, direction)
    }

    #[inline(always)]
    fn take_chunk(&self, flow: &Flow, chunks: &Chunks, argument: u32) -> u32 {
        fwbpf_take_chunk(flow, chunks, argument)
    }

    #[inline(always)]
    fn unlink(&self, key: &FlowKey, flow: &Flow) {
        fwbpf_unlink(key, flow);
    }

    #[inline(always)]
    fn run<S: Step>(&self, count: u32, step: &mut S) {
        unsafe extern "C" fn turn<S: Step>(index: u32, step: *mut c_void) -> i64 {
            // SAFETY: `step` is the pointer that `run` passed, to a value that nothing else uses
            // while the loop runs.
            unsafe { (*step.cast::<S>()).step(index).is_break() as i64 }
        }
        // SAFETY: the callback has the type that bpf_loop calls, and `step` outlives the call.
        unsafe {
            bpf_loop(
                count,
                turn::<S> as *mut c_void,
                (&raw mut *step).cast::<c_void>(),
                0,
            );
        }
    }
}

/// -EEXIST.
const EXISTS: i32 = -17;

const _: () = assert!(MAX_DEPTH.is_power_of_two());
