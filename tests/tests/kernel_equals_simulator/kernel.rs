//! The kernel's side: the programs, loaded but attached nowhere, run by `BPF_PROG_TEST_RUN`.

use std::collections::BTreeSet;
use std::fs::File;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuValues};
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::util::nr_cpus;
use fw_common::abi::flow::{Flow, FlowKey, Hint};
use fw_common::abi::maps;
use fw_user::compile::TableSet;
use fw_user::host::{Host, Interface};
use fw_user::kernel::fast_path::{Place, Places};
use fw_user::kernel::flip::Helpers;
use fw_user::kernel::lists::{ListEntry, entries};
use fw_user::kernel::load::{FlowWords, Maps};
use fw_user::kernel::state::Settled;
use fw_user::kernel::{read, sync};
use fw_user::policy::lists::ListDefinition;
use fw_user::policy::set::SetDefinition;
use fw_user::sim::{FlowState, State};
use tempfile::NamedTempFile;

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP of an interface.
    Early,
    /// tc ingress.
    Ingress,
    /// tc egress.
    Egress,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it goes on.
    pub pass: bool,
    /// Whether it is sent from here: on by the fast path, or back as the answer to itself.
    pub sent: bool,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
}

/// The object in the kernel.
pub struct Kernel {
    object: Ebpf,
    maps: Maps,
    generation: u32,
    slots: u32,
    /// Locked from each flip until no packet is left that began before.
    flips: NamedTempFile,
}

const PROGRAMS: [&str; 4] = [
    maps::PROGRAM_INGRESS,
    maps::PROGRAM_EGRESS,
    maps::PROGRAM_XDP,
    maps::PROGRAM_SWEEP,
];

impl Kernel {
    /// Loads maps and programs; both are gone on drop.
    pub fn load(object: &[u8]) -> Result<Self> {
        let mut object = Ebpf::load(object).context("load the BPF object")?;
        for name in PROGRAMS {
            match object.program_mut(name) {
                Some(Program::SchedClassifier(program)) => program.load(),
                Some(Program::Xdp(program)) => program.load(),
                _ => bail!("the BPF object has no program {name}"),
            }
            .with_context(|| format!("load {name}"))?;
        }
        let maps = Maps {
            policy: take(&mut object, maps::POLICY)?,
            near_pages: take(&mut object, maps::NEAR_PAGES)?,
            hints: take(&mut object, maps::HINTS)?,
            hinted: take(&mut object, maps::HINTED)?,
            active: take(&mut object, maps::ACTIVE)?,
            counters: take(&mut object, maps::COUNTERS)?,
            devices: take(&mut object, maps::DEVICES)?,
            near_devices: take(&mut object, maps::NEAR_DEVICES)?,
            xdp_devices: take(&mut object, maps::XDP_DEVICES)?,
            local: take(&mut object, maps::LOCAL)?,
            flows4: take(&mut object, maps::FLOWS4)?,
            flows6: take(&mut object, maps::FLOWS6)?,
            embryos4: take(&mut object, maps::EMBRYOS4)?,
            embryos6: take(&mut object, maps::EMBRYOS6)?,
            fragments: take(&mut object, maps::FRAGMENTS)?,
            sets: take(&mut object, maps::SETS)?,
            set_info: take(&mut object, maps::SET_INFO)?,
            lists: take(&mut object, maps::LISTS)?,
            stats: take(&mut object, maps::STATS)?,
        };
        Ok(Self {
            object,
            maps,
            generation: 0,
            slots: 0,
            flips: NamedTempFile::new()?,
        })
    }

    /// How many instructions the verifier looked at, by program.
    pub fn verified(&self) -> Result<Vec<(&'static str, u32)>> {
        let count = |name| {
            let info = match self.object.program(name) {
                Some(Program::SchedClassifier(program)) => program.info(),
                Some(Program::Xdp(program)) => program.info(),
                _ => bail!("the BPF object has no program {name}"),
            };
            let count = info?
                .verified_instruction_count()
                .context("the kernel does not say how many instructions it verified")?;
            Ok((name, count))
        };
        PROGRAMS.into_iter().map(count).collect()
    }

    /// The generation that the next policy has to be compiled as.
    pub fn next_generation(&self) -> u32 {
        self.generation + 1
    }

    /// Makes and fills the sets of the policy that is to be run, and makes its lists.
    pub fn fill(&mut self, sets: &[SetDefinition], lists: &[ListDefinition]) -> Result<()> {
        fw_user::kernel::sets::fill(&mut self.maps, sets)?;
        fw_user::kernel::lists::fill(&self.maps, lists)
    }

    /// The addresses in a list.
    pub fn list(&self, list: &ListDefinition) -> Result<Vec<ListEntry>> {
        let pages = self.maps.lists.get(list.place)?;
        let pages = pages.context("the list is not in its place")?;
        Ok(entries(&read::cells(&pages)?))
    }

    /// Forgets what packets did, and runs this policy, which has so many counters.
    pub fn start(&mut self, host: &Host, policy: &TableSet, counters: u32) -> Result<()> {
        self.free_places()?;
        empty(&mut self.maps.flows4)?;
        empty(&mut self.maps.flows6)?;
        empty(&mut self.maps.embryos4)?;
        empty(&mut self.maps.embryos6)?;
        empty(&mut self.maps.fragments)?;
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        for index in 0..fw_common::abi::stat::STATS_MAX {
            let zero = PerCpuValues::try_from(vec![0u64; cpus])?;
            self.maps.stats.set(index, zero, 0)?;
        }
        self.generation += 1;
        self.slots = self.slots.max(counters);
        let fresh_slots: Vec<_> = (0..self.slots).map(|slot| (slot, [0; 2])).collect();
        let next = sync::Next {
            generation: self.generation,
            cells: &policy.cells,
            patterns: &policy.patterns,
        };
        // Another open file each time: a lock belongs to the opening.
        let file = File::open(self.flips.path())?;
        file.lock()?;
        sync::set_counters(&self.maps, &fresh_slots)?;
        sync::replace(
            &mut self.maps,
            host,
            &next,
            sync::store(next.cells)?,
            &Settled::by(file),
            Helpers::start()?,
        )
    }

    /// Has every interface but loopback send on by the fast path, at both hooks, or none.
    pub fn switch_fast_path(&mut self, host: &Host, on: bool) -> Result<()> {
        let place = |interface: &Interface| Place {
            tc: on && !interface.is_loopback(),
            xdp: on && !interface.is_loopback(),
            why_not: None,
        };
        let interfaces = host.layer3();
        let places = Places {
            interfaces: interfaces.map(|each| (each.index, place(each))).collect(),
        };
        places.apply(&mut self.maps)
    }

    /// Has nobody hold a place that is an outsider's first flow's: the flows are deleted by hand.
    fn free_places(&mut self) -> Result<()> {
        let mut places = BTreeSet::new();
        for (key, state) in self.state()?.flows {
            if state.flow.status.get() & Flow::EARLY != 0 {
                places.insert(key.place());
            }
        }
        for place in places {
            let word = self.maps.hints.get(&place, 0)?;
            self.maps.hints.set(place, word & !Hint::PLACE, 0)?;
        }
        Ok(())
    }

    /// Sends a frame through a program. `arrival`: the interface that it came in by, or 0.
    pub fn run(&self, hook: Hook, frame: &[u8], device: u32, arrival: u32) -> Result<Outcome> {
        // An answer may be longer by the headers of an ICMPv6 error.
        let mut bytes = vec![0; frame.len() + 128];
        let context = match hook {
            Hook::Early => xdp_md(frame.len() as u32, device),
            Hook::Ingress | Hook::Egress => sk_buff(device, arrival),
        };
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let (result, pass, drop, redirect) = match hook {
            // XDP_PASS, XDP_DROP, XDP_REDIRECT.
            Hook::Early => {
                let program: &Xdp = self.program(maps::PROGRAM_XDP)?;
                (program.test_run(options), 2, 1, 4)
            }
            // TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT.
            Hook::Ingress | Hook::Egress => {
                let name = match hook {
                    Hook::Ingress => maps::PROGRAM_INGRESS,
                    _ => maps::PROGRAM_EGRESS,
                };
                let program: &SchedClassifier = self.program(name)?;
                (program.test_run(options), u32::MAX, 2, 7)
            }
        };
        let result = result.with_context(|| format!("run {hook:?} with {frame:02x?}"))?;
        bytes.truncate(result.data_size_out as usize);
        let (pass, sent) = match result.return_value {
            value if value == pass => (true, false),
            value if value == drop => (false, false),
            value if value == redirect => (false, true),
            value => bail!("{hook:?} returned {value}"),
        };
        Ok(Outcome { pass, sent, bytes })
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// A program by its name.
    pub fn program<'a, P>(&'a self, name: &str) -> Result<&'a P>
    where
        &'a P: TryFrom<&'a Program, Error = aya::programs::ProgramError>,
    {
        let program = self.object.program(name).context("a program is gone")?;
        Ok(program.try_into()?)
    }

    /// Everything that packets changed.
    pub fn state(&self) -> Result<State> {
        let mut state = State::default();
        let mut put = |key: FlowKey, words: FlowWords, embryo| {
            let flow = Flow::from(words);
            state.flows.insert(key, FlowState { embryo, flow });
        };
        for (map, embryo) in [(&self.maps.flows4, false), (&self.maps.embryos4, true)] {
            for entry in map.iter() {
                let (key, words) = entry?;
                put(FlowKey::from(&key), words, embryo);
            }
        }
        for (map, embryo) in [(&self.maps.flows6, false), (&self.maps.embryos6, true)] {
            for entry in map.iter() {
                let (key, words) = entry?;
                put(key, words, embryo);
            }
        }
        for entry in self.maps.fragments.iter() {
            state.fragments.push(entry?);
        }
        for slot in 0..self.slots {
            let counter = read::counter(&self.maps, slot)?;
            if counter != [0; 2] {
                state.counters.insert(slot, counter);
            }
        }
        for (stat, count) in read::stats(&self.maps)? {
            if count != 0 {
                state.stats.insert(stat as u32, count);
            }
        }
        state.sort();
        Ok(state)
    }

    /// Counters beyond those that any policy here had; nothing may ever be counted there.
    pub fn strays(&self) -> Result<Vec<u32>> {
        let mut strays = Vec::new();
        for slot in self.slots..self.maps.counters.len() {
            if read::counter(&self.maps, slot)? != [0; 2] {
                strays.push(slot);
            }
        }
        Ok(strays)
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &str) -> Result<T> {
    let map = object
        .take_map(name)
        .with_context(|| format!("the BPF object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is of another type"))
}

fn empty<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

/// The part of `struct __sk_buff` up to `ifindex`. Of this part the kernel takes no more than
/// mark, priority and the two interfaces (`convert___skb_to_skb`, net/bpf/test_run.c).
fn sk_buff(device: u32, arrival: u32) -> Vec<u8> {
    const INGRESS_IFINDEX: usize = 9;
    const IFINDEX: usize = 10;
    let mut words = [0u32; IFINDEX + 1];
    words[INGRESS_IFINDEX] = arrival;
    words[IFINDEX] = device;
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn xdp_md(length: u32, device: u32) -> Vec<u8> {
    let words = [0, length, 0, device, 0, 0];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}
