//! The datapath's state on the host.

mod datapath;

use std::cell::{Cell as StdCell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use elsa::FrozenVec;
use fw_common::MapCell;
use fw_common::abi::Addr;
use fw_common::abi::blob::{Cell, MAX_DEPTH, PAGE_CELLS};
use fw_common::abi::device::Device;
use fw_common::abi::event::Event;
use fw_common::abi::flow::{Flow, FlowKey, Fragment, FragmentKey, Shortcut};
use fw_common::abi::list::{ListCell, ListShape, head};
use fw_common::abi::maps;
use fw_common::abi::set::{SetEntry, SetInfo, SetKey};
use fw_common::abi::stat::Stat;
use lru::LruCache;

use super::host::Host;
use super::state::{FlowState, State};
use crate::addr;
use crate::compile::{TableSet, contents, pattern_bits};
use crate::policy::model::Policy;

/// How much each table holds; by default as much as the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Confirmed IPv4 flows.
    pub flows4: usize,
    /// Confirmed IPv6 flows.
    pub flows6: usize,
    /// Embryonic flows, of each IP version.
    pub embryos: usize,
    /// Datagrams under reassembly.
    pub fragments: usize,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            flows4: maps::FLOWS4_MAX as usize,
            flows6: maps::FLOWS6_MAX as usize,
            embryos: maps::EMBRYOS_MAX as usize,
            fragments: maps::FRAGMENTS_MAX as usize,
        }
    }
}

/// The datapath's state in collections.
///
/// Like the maps, it changes through shared references; unlike them, it is for one thread. Flows
/// live in an arena that only grows, so that a flow found stays readable after its removal, as it
/// does in the kernel until the program ends.
pub struct HostTables {
    host: Host,
    policy: Option<TableSet>,
    devices: BTreeMap<u32, Device>,
    /// Made when the first one is asked for.
    shortcuts: OnceCell<Box<[Shortcut]>>,
    arena: FrozenVec<Box<Flow>>,
    /// By IP version.
    tiers: [Tiers; 2],
    /// Which of the confirmed tier's places for outsiders' first flows are taken.
    places: RefCell<HashSet<u32>>,
    fragments: RefCell<LruCache<FragmentKey, Fragment>>,
    fragments_max: usize,
    frames: Vec<MapCell<u64>>,
    /// By place.
    sets: BTreeMap<u32, HostSet>,
    /// By place.
    lists: BTreeMap<u32, Vec<ListCell>>,
    /// States of limits by cell, where packets have changed them.
    limits: RefCell<BTreeMap<u32, u64>>,
    /// Shares of ICMP errors, by peer.
    spent: RefCell<HashMap<Addr, u64>>,
    events: RefCell<Vec<Event>>,
    counters: RefCell<BTreeMap<u32, [u64; 2]>>,
    stats: RefCell<BTreeMap<u32, u64>>,
    now: StdCell<u64>,
    tai: StdCell<u64>,
    random: StdCell<u64>,
    drawn: StdCell<Option<u32>>,
}

/// A set as the kernel holds it.
#[derive(Clone, Debug, Default)]
pub struct HostSet {
    /// Its lengths and times.
    pub info: SetInfo,
    /// Its elements.
    pub entries: RefCell<HashMap<SetKey, SetEntry>>,
}

impl HostSet {
    /// A set with these elements.
    pub fn new(info: SetInfo, entries: impl IntoIterator<Item = (SetKey, SetEntry)>) -> Self {
        Self {
            info,
            entries: RefCell::new(entries.into_iter().collect()),
        }
    }
}

/// The flow tables of one IP version; values are places in the arena.
struct Tiers {
    confirmed: RefCell<HashMap<FlowKey, usize>>,
    confirmed_max: usize,
    embryos: RefCell<LruCache<FlowKey, usize>>,
    embryos_max: usize,
}

impl HostTables {
    /// A machine without a policy.
    pub fn new(host: Host) -> Self {
        Self::with_capacities(host, Capacities::default())
    }

    /// A machine whose tables are of other sizes.
    pub fn with_capacities(host: Host, capacities: Capacities) -> Self {
        // The caches are made unbounded, as bounded ones allocate all their room at once;
        // `put_bounded` keeps the bound.
        let tiers = |confirmed_max| Tiers {
            confirmed: RefCell::default(),
            confirmed_max,
            embryos: RefCell::new(LruCache::unbounded()),
            embryos_max: capacities.embryos,
        };
        let mut tables = Self {
            host,
            policy: None,
            devices: BTreeMap::new(),
            shortcuts: OnceCell::new(),
            arena: FrozenVec::new(),
            tiers: [tiers(capacities.flows4), tiers(capacities.flows6)],
            places: RefCell::default(),
            fragments: RefCell::new(LruCache::unbounded()),
            fragments_max: capacities.fragments,
            frames: (0..MAX_DEPTH).map(|_| MapCell::new(0)).collect(),
            sets: BTreeMap::new(),
            lists: BTreeMap::new(),
            limits: RefCell::default(),
            spent: RefCell::default(),
            events: RefCell::default(),
            counters: RefCell::default(),
            stats: RefCell::default(),
            now: StdCell::new(1_000_000_000),
            tai: StdCell::new(real_time()),
            random: StdCell::new(0),
            drawn: StdCell::new(None),
        };
        tables.devices = tables.device_records();
        tables
    }

    /// A machine that runs a policy.
    pub fn running(host: Host, policy: TableSet) -> Self {
        let mut tables = Self::new(host);
        tables.load(policy);
        tables
    }

    /// Replaces the policy; flows and counters stay.
    pub fn load(&mut self, policy: TableSet) {
        self.policy = Some(policy);
        self.limits.take();
        self.devices = self.device_records();
    }

    /// Puts a policy's sets, and its lists, which are empty, in their places.
    pub fn put_sets(&mut self, policy: &Policy) {
        for set in &policy.sets {
            let elements = set.elements.as_deref().map_or(&[][..], Vec::as_slice);
            let (info, entries) = contents(set, elements, self.now.get());
            self.put_set(set.place, HostSet::new(info, entries));
        }
        for list in &policy.lists {
            self.put_list(list.place, &list.shape());
        }
    }

    /// Puts an empty list in its place.
    pub fn put_list(&mut self, place: u32, shape: &ListShape) {
        let mut cells = vec![Cell::default(); shape.pages() as usize * PAGE_CELLS];
        cells[..2].copy_from_slice(&shape.head(0));
        self.put_list_cells(place, &cells);
    }

    /// Puts a list in its place as it is, for instance one read from the kernel.
    pub fn put_list_cells(&mut self, place: u32, cells: &[Cell]) {
        let cell = |cell: &Cell| cell.w.map(MapCell::new);
        let list: Vec<ListCell> = cells.iter().map(cell).collect();
        // It may have been in use when it was read.
        if let Some(head) = list.first() {
            head[head::LOCK].set(0);
            head[head::LOCK + 1].set(0);
        }
        self.lists.insert(place, list);
    }

    /// The cells of the list in a place.
    pub fn list_cells(&self, place: u32) -> Vec<Cell> {
        let words = |cell: &ListCell| Cell {
            w: cell.each_ref().map(MapCell::get),
        };
        let list = self.lists.get(&place).map_or(&[][..], Vec::as_slice);
        list.iter().map(words).collect()
    }

    /// Puts a set in its place.
    pub fn put_set(&mut self, place: u32, set: HostSet) {
        self.sets.insert(place, set);
    }

    /// The policy that runs.
    pub fn policy(&self) -> Option<&TableSet> {
        self.policy.as_ref()
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The same, to be changed: addresses come and go.
    pub fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    /// Sets the clock, in nanoseconds.
    pub fn set_now(&self, now: u64) {
        self.now.set(now);
    }

    /// Sets what time of which day it is, in nanoseconds since 1970; else it is when this was made.
    pub fn set_time(&self, tai: u64) {
        self.tai.set(tai);
    }

    /// Makes the random numbers those that follow from a seed.
    pub fn set_seed(&self, seed: u64) {
        self.random.set(seed);
    }

    /// Makes random numbers this one: what somebody else drew. `None` takes that back. It is for all
    /// that a packet draws, since a rule with chances may draw before a port is chosen.
    pub fn set_draw(&self, number: Option<u32>) {
        self.drawn.set(number);
    }

    /// What a counter slot says: packets and bytes.
    pub fn counter(&self, slot: u32) -> [u64; 2] {
        self.counters
            .borrow()
            .get(&slot)
            .copied()
            .unwrap_or_default()
    }

    /// How often an event happened.
    pub fn stat(&self, stat: Stat) -> u64 {
        self.stats
            .borrow()
            .get(&(stat as u32))
            .copied()
            .unwrap_or_default()
    }

    /// What was said about packets since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Everything that packets changed.
    pub fn state(&self) -> State {
        let mut state = State {
            counters: self.counters.borrow().clone(),
            stats: self.stats.borrow().clone(),
            ..State::default()
        };
        for tiers in &self.tiers {
            let confirmed = tiers.confirmed.borrow();
            let embryos = tiers.embryos.borrow();
            let places = confirmed
                .iter()
                .map(|(key, place)| (key, place, false))
                .chain(embryos.iter().map(|(key, place)| (key, place, true)));
            for (key, place, embryo) in places {
                let flow = self.arena[*place].clone();
                state.flows.insert(*key, FlowState { embryo, flow });
            }
        }
        for (key, fragment) in self.fragments.borrow().iter() {
            state.fragments.push((*key, *fragment));
        }
        state.sort();
        state
    }

    /// Puts a flow in as it is, for instance one read from the kernel.
    pub fn put_flow(&self, key: &FlowKey, flow: &Flow, embryo: bool) {
        let tiers = self.tiers(key);
        let place = self.store(flow);
        if embryo {
            put_bounded(
                &mut tiers.embryos.borrow_mut(),
                *key,
                place,
                tiers.embryos_max,
            );
        } else {
            tiers.confirmed.borrow_mut().insert(*key, place);
            if flow.status.get() & Flow::EARLY != 0 {
                self.places.borrow_mut().insert(key.place());
            }
        }
    }

    /// Forgets what packets left: flows, fragments, what limits counted and what was said.
    pub fn forget_packets(&self) {
        for tiers in &self.tiers {
            tiers.confirmed.borrow_mut().clear();
            tiers.embryos.borrow_mut().clear();
        }
        self.fragments.borrow_mut().clear();
        self.limits.borrow_mut().clear();
        self.events.borrow_mut().clear();
    }

    /// The same machine with the same policy and flows, to try something out on.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut fork = Self::new(self.host.clone());
        if let Some(policy) = &self.policy {
            fork.load(policy.clone());
        }
        fork.limits.clone_from(&self.limits);
        fork.sets.clone_from(&self.sets);
        fork.lists.clone_from(&self.lists);
        fork.set_now(self.now.get());
        fork.set_time(self.tai.get());
        fork.set_seed(self.random.get());
        for (key, FlowState { embryo, flow }) in &self.state().flows {
            fork.put_flow(key, flow, *embryo);
        }
        fork
    }

    /// Has every interface but loopback send on by the fast path, at both hooks, until the next policy is loaded.
    /// Only packets that know next hops take it.
    pub fn switch_fast_path_on(&mut self) {
        let others = self.devices.values_mut();
        for device in others.filter(|device| device.flags & Device::LOOPBACK == 0) {
            device.flags |= Device::FAST | Device::FAST_XDP;
        }
    }

    fn shortcuts(&self) -> &[Shortcut] {
        let make = || (0..maps::SHORTCUTS_MAX).map(|_| Shortcut::default());
        self.shortcuts.get_or_init(|| make().collect())
    }

    fn device_records(&self) -> BTreeMap<u32, Device> {
        let record = |device: &super::HostDevice| {
            let word = |policy: &TableSet| pattern_bits(&policy.patterns, &device.name, None);
            // Both parities: nothing is being replaced while no packet is on its way.
            let patterns = [self.policy.as_ref().map_or(1, word); 2];
            Device {
                patterns,
                masquerade4: device.masquerade4.map_or(0, |address| address.to_bits()),
                masquerade6: device
                    .masquerade6
                    .map_or([0; 4], |address| addr::to_abi(address.into())),
                l2_len: device.l2_len,
                flags: if device.loopback { Device::LOOPBACK } else { 0 },
                link: device.link,
                own4: addr::first4(device.addresses.iter().copied()),
                own6: addr::first6(device.addresses.iter().copied()),
                ..Device::default()
            }
        };
        let devices = self.host.devices.iter();
        devices
            .map(|device| (device.index, record(device)))
            .collect()
    }

    fn tiers(&self, key: &FlowKey) -> &Tiers {
        &self.tiers[usize::from(!key.is_v4())]
    }

    fn store(&self, flow: &Flow) -> usize {
        self.arena.push(Box::new(flow.clone()));
        self.arena.len() - 1
    }
}

fn real_time() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Puts an entry in, and the least recently used one out if there is no room.
fn put_bounded<K: Hash + Eq, V>(cache: &mut LruCache<K, V>, key: K, value: V, max: usize) {
    cache.put(key, value);
    while cache.len() > max.max(1) {
        cache.pop_lru();
    }
}

#[cfg(test)]
mod tests;
