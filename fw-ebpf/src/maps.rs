//! Every map: name, type, size and who writes it. The names are `fw_common::abi::maps`'s.
#![allow(
    unsafe_code,
    reason = "lends out the per-CPU scratch values, which only the running program can reach"
)]

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use fw_common::MapCell;
use fw_common::abi::Addr;
use fw_common::abi::blob::{self, MAX_DEPTH, Page};
use fw_common::abi::device::Device;
use fw_common::abi::flow::{Flow, FlowKey, FlowKey4, Fragment, FragmentKey, Hint, Shortcut};
use fw_common::abi::maps::{
    ANSWERED_MAX, COUNTER_SLOTS, DEVICES_MAX, EMBRYOS_MAX, EVENTS_MAX, FLOWS4_MAX, FLOWS6_MAX,
    FRAGMENTS_MAX, HINTED_MAX, HINTS_MAX, LISTS_MAX, LOCAL_MAX, NEAR_DEVICES_MAX, POLICY_PLACES,
    SETS_MAX, SHORTCUTS_MAX, XDP_DEVICES_MAX,
};
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use fw_common::abi::stat::STATS_MAX;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::sources::Sources;

/// A policy: `BPF_F_INNER_MAP` lets each generation have its own size, `BPF_F_MMAPABLE` lets user
/// space fill it without a syscall for each page.
pub type Policy = btf_maps::Array<Page, 1, 0x1400>;

/// Policies: the one that judges packets, at [`ACTIVE`], and the ones before it. User space writes
/// the place that has been out of use for longest.
#[btf_map]
pub static POLICY: btf_maps::ArrayOfMaps<Policy, { POLICY_PLACES as usize }> =
    btf_maps::ArrayOfMaps::new();

/// The first pages of each policy once more. The look-up in an inner map is a call into the kernel
/// and an indirect one from there, in a plain array it is a few instructions. User space writes.
#[map]
pub static NEAR_PAGES: Array<[Page; blob::NEAR_PAGES]> = Array::with_max_entries(POLICY_PLACES, 0);

/// Which place of [`POLICY`] judges packets. User space writes it, which is the flip.
#[map]
pub static ACTIVE: Array<u32> = Array::with_max_entries(1, 0);

/// Packets and bytes by slot. Programs write; user space reads, and zeroes a slot before use.
#[map]
pub static COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// Interfaces. User space writes.
#[map]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(DEVICES_MAX, 0);

/// The records of interfaces of small index once more, where finding one costs next to nothing.
/// User space writes.
#[map]
pub static NEAR_DEVICES: Array<Device> = Array::with_max_entries(NEAR_DEVICES_MAX, 0);

/// Interfaces that XDP may send frames out of. User space writes.
#[map]
pub static XDP_DEVICES: DevMapHash = DevMapHash::with_max_entries(XDP_DEVICES_MAX, 0);

/// This host's addresses. User space writes.
#[map]
pub static LOCAL: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(LOCAL_MAX, BPF_F_NO_PREALLOC);

/// Confirmed flows. Programs write; user space deletes through [`crate::sweep`].
#[map]
pub static FLOWS4: HashMap<FlowKey4, Flow> = HashMap::with_max_entries(FLOWS4_MAX, 0);

/// See [`FLOWS4`].
#[map]
pub static FLOWS6: HashMap<FlowKey, Flow> = HashMap::with_max_entries(FLOWS6_MAX, 0);

/// Flows that outsiders opened and did not complete. Programs write.
#[map]
pub static EMBRYOS4: LruHashMap<FlowKey4, Flow> = LruHashMap::with_max_entries(EMBRYOS_MAX, 0);

/// See [`EMBRYOS4`].
#[map]
pub static EMBRYOS6: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(EMBRYOS_MAX, 0);

/// Where flows may be found. Programs write.
#[map]
pub static HINTS: Array<Hint> = Array::with_max_entries(HINTS_MAX, 0);

/// Which hints may say anything. Programs write.
#[map]
pub static HINTED: Array<MapCell<u64>> = Array::with_max_entries(HINTED_MAX, 0);

/// Ways through the chains. Programs write.
#[map]
pub static SHORTCUTS: Array<Shortcut> = Array::with_max_entries(SHORTCUTS_MAX, 0);

/// First fragments. Programs write.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> =
    LruHashMap::with_max_entries(FRAGMENTS_MAX, 0);

/// Up to when a peer's share of ICMP errors is spent; at zeroes, that of all. Programs write.
#[map]
pub static ANSWERED: LruHashMap<Addr, u64> = LruHashMap::with_max_entries(ANSWERED_MAX, 0);

/// A set: the flag is `BPF_F_NO_PREALLOC`, so that a set takes memory as it grows. Maps of any
/// capacity fit its place (`bpf_map_meta_equal`, kernel/bpf/map_in_map.c).
pub type Set = btf_maps::HashMap<SetKey, SetEntry, 1, { BPF_F_NO_PREALLOC as usize }>;

/// Sets. User space puts them in and fills them; programs add and delete elements.
#[btf_map]
pub static SETS: btf_maps::ArrayOfMaps<Set, { SETS_MAX as usize }> = btf_maps::ArrayOfMaps::new();

/// What is known of each. User space writes.
#[map]
pub static SET_INFO: Array<SetInfo> = Array::with_max_entries(SETS_MAX, 0);

/// Lists, which are pages of cells, as policies are. User space puts them in, empty; programs fill
/// them.
#[btf_map]
pub static LISTS: btf_maps::ArrayOfMaps<Policy, { LISTS_MAX as usize }> =
    btf_maps::ArrayOfMaps::new();

/// Events by `abi::stat::Stat`. Programs write.
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(STATS_MAX, 0);

/// Events of LOG and NFLOG. Programs write; the daemon reads.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_MAX, 0);

/// Return addresses of the chain interpreter. Scratch.
#[map]
pub static FRAMES: PerCpuArray<MapCell<u64>> = PerCpuArray::with_max_entries(MAX_DEPTH, 0);

/// A packet's headers and the flow that it opens: they would fill the BPF stack.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Room for taking a flow out of its source's list. Scratch.
#[map]
static LINKS: PerCpuArray<Sources> = PerCpuArray::with_max_entries(1, 0);

/// Rules that XDP matched but has not counted. Scratch.
#[map]
static PATH: PerCpuArray<Path> = PerCpuArray::with_max_entries(1, 0);

/// Counter slots held back until the packet's end is certain.
#[repr(C)]
pub struct Path {
    /// How many were matched; more than [`PATH_SLOTS`] do not fit.
    pub count: MapCell<u32>,
    /// Bytes of the packet.
    pub bytes: MapCell<u32>,
    /// The slots.
    pub slots: [MapCell<u32>; PATH_SLOTS],
}

/// Rules that one packet may match at XDP.
pub const PATH_SLOTS: usize = 64;

/// This CPU's scratch space.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the value is this CPU's, programs at these hooks run to their end before another
    // starts on the same CPU (they run with bottom halves off, and never in interrupts). Each program
    // asks for it once, and each global function that its caller lends it to (`stages::lend`). It
    // begins as zeroes, which are a value of every field, and is only written as a whole type since.
    Some(unsafe { &mut *scratch })
}

/// This CPU's room for links.
#[inline(always)]
pub fn links() -> Option<&'static mut Sources> {
    let links = LINKS.get_ptr_mut(0)?;
    // SAFETY: as for `scratch`: one function asks for it, which does not call itself.
    Some(unsafe { &mut *links })
}

/// This CPU's path.
#[inline(always)]
pub fn path() -> Option<&'static Path> {
    PATH.get(0)
}
