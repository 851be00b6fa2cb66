//! The BPF object becomes pinned maps and programs, with typed handles.
//!
//! A second load reuses what is pinned: the maps always, the programs if they came from the same
//! object. A newer object's programs are loaded against the pinned maps, so flows and counters
//! survive an upgrade.
//!
//! A process can die at any moment, so the directory says at each moment what is there. `POLICY` is
//! the last map to be pinned and the first pin to go: where it is, all maps are, and where it is not,
//! nothing is loaded, whatever else a load or `unload` has left. A first load leaves, if it dies
//!
//! - before that: facts and some of the maps. No program is attached;
//! - before the flip: all maps, perhaps the programs, and attachments. No policy runs in `ACTIVE`'s
//!   place, so programs let everything pass;
//! - after it: the firewall, in force on every interface, without what its last facts say.
//!
//! In the first two cases the next load removes what it finds, and begins from nothing.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{
    Array, DevMapHash, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf,
};
use aya::programs::{Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use aya_obj::programs::XdpAttachType;
use fw_common::abi::blob::{NEAR_PAGES, Page};
use fw_common::abi::device::Device;
use fw_common::abi::flow::{FLOW_WORDS, FlowKey, FlowKey4, Fragment, FragmentKey};
use fw_common::abi::maps;
use fw_common::abi::set::SetInfo;

use super::probe;
use super::state::{Fact, Lock, StateDir, current_netns, remove_if_present};
use super::sys;

/// The BPF object that this binary carries; empty when it was built without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FWBPF_OBJECT_FILE"));
/// Its SHA-256.
const OBJECT_HASH: &str = env!("FWBPF_OBJECT_HASH");

const MAPS: [&str; 22] = [
    maps::LISTS,
    maps::SETS,
    maps::SET_INFO,
    maps::HINTS,
    maps::HINTED,
    maps::SHORTCUTS,
    maps::NEAR_PAGES,
    maps::ACTIVE,
    maps::XDP_DEVICES,
    maps::POLICY,
    maps::COUNTERS,
    maps::DEVICES,
    maps::NEAR_DEVICES,
    maps::LOCAL,
    maps::FLOWS4,
    maps::FLOWS6,
    maps::EMBRYOS4,
    maps::EMBRYOS6,
    maps::ANSWERED,
    maps::FRAGMENTS,
    maps::STATS,
    maps::EVENTS,
];

const PROGRAMS: [&str; 4] = [
    maps::PROGRAM_INGRESS,
    maps::PROGRAM_EGRESS,
    maps::PROGRAM_XDP,
    maps::PROGRAM_SWEEP,
];

/// One generation of the policy, as the kernel holds it.
pub type Blob = Array<MapData, Page>;
/// The value of a flow map: [`fw_common::abi::flow::Flow`] as words.
pub type FlowWords = [u64; FLOW_WORDS];

/// Typed handles of all maps.
pub struct Maps {
    /// Places, by place.
    pub policy: Places,
    /// Their first pages.
    pub near_pages: Array<MapData, [Page; NEAR_PAGES]>,
    /// The place of the running one.
    pub active: Array<MapData, u32>,
    /// Packets and bytes by counter slot.
    pub counters: PerCpuArray<MapData, [u64; 2]>,
    /// Interfaces by index.
    pub devices: HashMap<MapData, u32, Device>,
    /// The same for small indexes.
    pub near_devices: Array<MapData, Device>,
    /// Interfaces that XDP may send frames out of.
    pub xdp_devices: Targets,
    /// Addresses of this host.
    pub local: LpmTrie<MapData, [u8; 16], u32>,
    /// Confirmed flows, IPv4.
    pub flows4: HashMap<MapData, FlowKey4, FlowWords>,
    /// Confirmed flows, IPv6.
    pub flows6: HashMap<MapData, FlowKey, FlowWords>,
    /// Embryonic flows, IPv4.
    pub embryos4: HashMap<MapData, FlowKey4, FlowWords>,
    /// Embryonic flows, IPv6.
    pub embryos6: HashMap<MapData, FlowKey, FlowWords>,
    /// Where the flow tables could have anything ([`fw_common::abi::flow::Hint`]).
    pub hints: Array<MapData, u64>,
    /// Which hints may say anything.
    pub hinted: Array<MapData, u64>,
    /// First fragments.
    pub fragments: HashMap<MapData, FragmentKey, Fragment>,
    /// Sets, by place.
    pub sets: Places,
    /// What is known of them.
    pub set_info: Array<MapData, SetInfo>,
    /// Lists, by place.
    pub lists: Places,
    /// Events by [`fw_common::abi::stat::Stat`].
    pub stats: PerCpuArray<MapData, u64>,
}

/// Maps in a map: generations of the policy, sets, or lists, by place.
#[derive(Debug)]
pub struct Places(MapData);

impl TryFrom<Map> for Places {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        match map {
            Map::ArrayOfMaps(data) => Ok(Self(data)),
            _ => Err(MapError::InvalidMapType { map_type: 0 }),
        }
    }
}

impl AsFd for Places {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd().as_fd()
    }
}

impl Places {
    /// The policy or list in a place, if there is one.
    pub fn get(&self, place: u32) -> Result<Option<Blob>> {
        let Some(id) = sys::word(self.as_fd(), place)? else {
            return Ok(None);
        };
        let map = MapData::from_id(id).and_then(Map::from_map_data)?;
        Ok(Some(Blob::try_from(map)?))
    }
}

/// Interfaces that XDP may send frames out of. aya's type for such a map asks the kernel first what it can
/// do, by loading a dozen small programs, and most often there is nothing in the map and nothing to put
/// into it.
#[derive(Debug)]
pub struct Targets(MapData);

impl TryFrom<Map> for Targets {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        match map {
            Map::DevMapHash(data) => Ok(Self(data)),
            _ => Err(MapError::InvalidMapType { map_type: 0 }),
        }
    }
}

impl Targets {
    /// Whether there are none.
    pub fn is_empty(&self) -> Result<bool> {
        let first = sys::first_key(self.0.fd().as_fd()).context("cannot list XDP's targets")?;
        Ok(first.is_none())
    }

    /// The map.
    pub fn open(&self) -> Result<DevMapHash<MapData>> {
        let copy = self.0.fd().as_fd().try_clone_to_owned();
        let data = MapData::from_fd(copy.context("cannot copy a descriptor")?)?;
        let map = Map::from_map_data(data).and_then(DevMapHash::try_from);
        map.context("cannot open the table of XDP's targets")
    }
}

/// The programs, loaded and pinned.
#[derive(Debug)]
pub struct Programs {
    /// tcx or clsact ingress.
    pub ingress: Pinned<SchedClassifier>,
    /// tcx or clsact egress.
    pub egress: Pinned<SchedClassifier>,
    /// XDP.
    pub xdp: Pinned<Xdp>,
}

/// A program that is pinned. aya's type for it asks the kernel first what it can do, by loading small
/// programs, and most often there is nothing to attach anew.
#[derive(Debug)]
pub struct Pinned<P> {
    path: PathBuf,
    id: u32,
    from_pin: fn(&Path) -> Result<P, ProgramError>,
    program: Option<P>,
}

impl<P> Pinned<P> {
    fn find(path: PathBuf, from_pin: fn(&Path) -> Result<P, ProgramError>) -> Result<Self> {
        let id = sys::open_pin(&path).and_then(|program| sys::id(program.as_fd()));
        Ok(Self {
            id: id.with_context(|| cannot_open(&path))?,
            path,
            from_pin,
            program: None,
        })
    }

    /// The kernel's number of it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The program.
    pub fn open(&mut self) -> Result<&mut P> {
        let program = match self.program.take() {
            Some(program) => program,
            None => (self.from_pin)(&self.path).with_context(|| cannot_open(&self.path))?,
        };
        Ok(self.program.insert(program))
    }
}

fn cannot_open(program: &Path) -> String {
    format!("cannot open the program {}", program.display())
}

impl Maps {
    /// Has the programs that are about to be attached look at every hint: those before them may be of a version
    /// that did not set their bits. The daemon clears those that are not needed.
    fn raise_hints(&mut self) -> Result<()> {
        for place in 0..self.hinted.len() {
            self.hinted
                .set(place, u64::MAX, 0)
                .context("cannot write a hint")?;
        }
        Ok(())
    }

    /// Opens the pinned maps; nothing if there is no firewall in the directory.
    pub fn open(state: &StateDir) -> Result<Option<Self>> {
        let complete = || state.map(maps::POLICY).exists();
        if !complete() {
            return Ok(None);
        }
        match Self::open_all(state) {
            // It was removed meanwhile.
            Err(_) if !complete() => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_all(state: &StateDir) -> Result<Self> {
        Ok(Self {
            policy: typed(state, maps::POLICY)?,
            near_pages: typed(state, maps::NEAR_PAGES)?,
            active: typed(state, maps::ACTIVE)?,
            counters: typed(state, maps::COUNTERS)?,
            devices: typed(state, maps::DEVICES)?,
            near_devices: typed(state, maps::NEAR_DEVICES)?,
            xdp_devices: typed(state, maps::XDP_DEVICES)?,
            local: typed(state, maps::LOCAL)?,
            flows4: typed(state, maps::FLOWS4)?,
            flows6: typed(state, maps::FLOWS6)?,
            embryos4: typed(state, maps::EMBRYOS4)?,
            embryos6: typed(state, maps::EMBRYOS6)?,
            hints: typed(state, maps::HINTS)?,
            hinted: typed(state, maps::HINTED)?,
            fragments: typed(state, maps::FRAGMENTS)?,
            sets: typed(state, maps::SETS)?,
            set_info: typed(state, maps::SET_INFO)?,
            lists: typed(state, maps::LISTS)?,
            stats: typed(state, maps::STATS)?,
        })
    }

    /// The ring buffer of what LOG and NFLOG say; nothing while nothing is loaded.
    pub fn events(state: &StateDir) -> Result<Option<RingBuf<MapData>>> {
        if !state.map(maps::EVENTS).exists() {
            return Ok(None);
        }
        typed(state, maps::EVENTS).map(Some)
    }

    /// The running policy; nothing before the first flip.
    pub fn running(&self) -> Result<Option<Blob>> {
        let active = self
            .active
            .get(&0, 0)
            .context("cannot read which policy runs")?;
        let policy = self.policy.get(maps::place_of(active));
        policy.context("cannot open the running policy")
    }
}

/// The kernel's number of the map that the running policy is in: no other map has it, as long as the
/// kernel runs, so that two policies in turn do not have the same one. Nothing if no policy runs.
pub fn running_id(state: &StateDir) -> Result<Option<u32>> {
    if !state.map(maps::POLICY).exists() {
        return Ok(None);
    }
    let places: Places = typed(state, maps::POLICY)?;
    let active: Array<MapData, u32> = typed(state, maps::ACTIVE)?;
    let active = active.get(&0, 0).context("cannot read which policy runs")?;
    sys::word(places.as_fd(), maps::place_of(active)).context("cannot find the running policy")
}

/// [`running_id`] of a policy that is open.
pub fn blob_id(policy: &Blob) -> Result<u32> {
    let map = IterableMap::map(policy).fd();
    sys::id(map.as_fd()).context("cannot ask for a map's number")
}

impl Programs {
    /// Opens the pinned programs.
    pub fn open(state: &StateDir) -> Result<Self> {
        let classifier =
            |name| Pinned::find(state.program(name), |path| SchedClassifier::from_pin(path));
        Ok(Self {
            ingress: classifier(maps::PROGRAM_INGRESS)?,
            egress: classifier(maps::PROGRAM_EGRESS)?,
            xdp: Pinned::find(state.program(maps::PROGRAM_XDP), |path| {
                Xdp::from_pin(path, XdpAttachType::Interface)
            })?,
        })
    }
}

/// Makes sure that the maps and this binary's programs are in the kernel and pinned.
/// `counters` is how many counter slots to make if there are none yet; `open` is the maps, if they are open.
pub fn prepare(
    state: &StateDir,
    _lock: &Lock,
    counters: u32,
    open: Option<Maps>,
) -> Result<(Maps, Programs)> {
    if OBJECT.is_empty() {
        bail!(
            "this fwbpf was built without its BPF programs, so it can check and explain policies \
             but not load them; build it with `cargo xtask build`"
        );
    }
    state.create()?;
    check_owner(state)?;
    // What is pinned already must have the layout that this binary expects.
    let mut open = match open {
        Some(open) => Some(open),
        None => Maps::open(state)?,
    };

    let pinned = PROGRAMS.iter().all(|name| state.program(name).exists());
    if !pinned || state.fact(Fact::Object).as_deref() != Some(OBJECT_HASH) {
        probe::require()?;
        // While the pins are a mixture of two objects, no hash may vouch for them.
        state.forget_fact(Fact::Object)?;
        let again = open.is_some();
        load_object(state, counters)?;
        state.set_fact(Fact::Object, OBJECT_HASH)?;
        open = Maps::open(state)?;
        if let Some(maps) = open.as_mut().filter(|_| again) {
            maps.raise_hints()?;
        }
    }
    let maps = open.ok_or_else(|| {
        anyhow!(
            "the BPF object pins no map {}; rebuild it with `cargo xtask build`",
            maps::POLICY
        )
    })?;
    Ok((maps, Programs::open(state)?))
}

/// Refuses a directory that belongs to somebody else.
pub fn check_owner(state: &StateDir) -> Result<()> {
    let here = current_netns()?;
    match state.fact(Fact::Netns) {
        Some(owner) if owner != here => bail!(
            "{} holds the firewall of another network namespace ({owner}; this is {here}); \
             choose another --state-dir, or remove that firewall with `fwbpf --state-dir {} unload`",
            state.path().display(),
            state.path().display(),
        ),
        Some(_) => Ok(()),
        None => {
            let strangers = state.strangers()?;
            if !strangers.is_empty() {
                bail!(
                    "{} is not a directory of fwbpf's: it contains {}; choose another --state-dir",
                    state.path().display(),
                    strangers.join(", "),
                );
            }
            state.set_fact(Fact::Netns, &here)
        }
    }
}

fn load_object(state: &StateDir, counters: u32) -> Result<()> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(maps::COUNTERS, counters);
    // The loader pins in an order of its own; `POLICY` says that all are there. One that is pinned
    // already is used again.
    let complete = state.map(maps::POLICY).exists();
    for name in MAPS {
        if complete || name != maps::POLICY {
            loader.map_pin_path(name, state.map(name));
        }
    }
    if !probe::has_ipv6_sum() {
        loader.override_global(maps::GLOBAL_FLAG_IPV6_SUM, &0u64, true);
    }
    let (sockets, credentials) = probe::credentials().unwrap_or_default();
    loader.override_global(maps::GLOBAL_SOCKET_PLACES, &sockets, true);
    loader.override_global(maps::GLOBAL_CREDENTIAL_PLACES, &credentials, true);
    let mut object = loader
        .load(OBJECT)
        .context("cannot load the BPF object into the kernel")?;
    let present: Vec<String> = object.maps().map(|(name, _)| name.to_owned()).collect();
    if let Some(missing) = MAPS.iter().find(|name| !present.iter().any(|p| p == *name)) {
        bail!("the BPF object has no map {missing}; rebuild it with `cargo xtask build`");
    }
    if !complete && let Some(policy) = object.map(maps::POLICY) {
        let path = state.map(maps::POLICY);
        policy
            .pin(&path)
            .with_context(|| format!("cannot pin {}", path.display()))?;
    }
    // All must pass the verifier before the first one replaces its predecessor.
    load_programs(&mut object)?;
    for name in PROGRAMS {
        pin_program(&mut object, name, &state.program(name))?;
    }
    Ok(())
}

/// Side by side: the verifier takes most of a first load's time.
fn load_programs(object: &mut Ebpf) -> Result<()> {
    for name in PROGRAMS {
        program(object, name)?;
    }
    let ours = object
        .programs_mut()
        .filter(|(name, _)| PROGRAMS.contains(name));
    thread::scope(|scope| {
        let loads: Vec<_> = ours
            .map(|(name, program)| scope.spawn(move || load_program(program, name)))
            .collect();
        loads.into_iter().try_for_each(|load| {
            load.join()
                .map_err(|_| anyhow!("loading a program panicked"))?
        })
    })
}

fn load_program(program: &mut Program, name: &str) -> Result<()> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => bail!("the BPF object's program {name} is of an unexpected type"),
    };
    match loaded {
        Err(ProgramError::LoadError {
            io_error,
            verifier_log,
        }) => Err(io_error).with_context(|| {
            format!(
                "the kernel's verifier refused the program {name}; its log ends with:\n{}\n",
                last_lines(&verifier_log.to_string(), 12)
            )
        }),
        other => other.with_context(|| format!("cannot load the program {name}")),
    }
}

/// The verifier's reason is at the end of a log that can have a million lines.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn pin_program(object: &mut Ebpf, name: &str, path: &Path) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push("_new");
    let new = Path::new(&new);
    remove_if_present(new)?;
    program(object, name)?
        .pin(new)
        .with_context(|| format!("cannot pin {}", new.display()))?;
    std::fs::rename(new, path).with_context(|| format!("cannot pin {}", path.display()))
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    object.program_mut(name).ok_or_else(|| {
        anyhow!("the BPF object has no program {name}; rebuild it with `cargo xtask build`")
    })
}

/// A pinned map as its type. The one place where names, key sizes and value sizes are checked.
pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(state: &StateDir, name: &str) -> Result<T> {
    let path = state.map(name);
    if !path.exists() {
        bail!(
            "there is no map {}, which this version of fwbpf expects; the firewall was made by another \
             version: `fwbpf unload` with that one, then load again",
            path.display()
        );
    }
    let data = MapData::from_pin(&path)
        .with_context(|| format!("cannot open the map {}", path.display()))?;
    Map::from_map_data(data)
        .and_then(T::try_from)
        .with_context(|| {
            format!(
                "the map {} is not laid out as this version of fwbpf expects; \
             it was made by another version: `fwbpf unload` with that one, then load again",
                path.display()
            )
        })
}

// The records cross into the kernel as bytes.
const _: () = {
    const fn pod<T: Pod>() {}
    pod::<Page>();
    pod::<Device>();
    pod::<FlowWords>();
};
