//! The replacement of one policy by the next.
//!
//! Everything that the next generation needs is written beside what the running one uses: counter
//! slots that no running rule has, the idle word of each interface's pattern set, a new array of
//! cells in a place of its own. The flip is then the write of one word. A process that dies before
//! it has changed nothing that a packet could notice; the kernel frees the half-filled array with
//! the process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{IterableMap, MapError};
use aya::util::nr_cpus;
use fw_common::abi::blob::{Cell, NEAR_PAGES, PAGE_CELLS, Page};
use fw_common::abi::device::{Device, address_kind};
use fw_common::abi::maps::{NEAR_DEVICES_MAX, POLICY_PLACES, next_active, place_of};

use super::flip::{Helpers, flip};
use super::load::Maps;
use super::state::Settled;
use super::sys;
use crate::addr;
use crate::compile::{Pattern, pattern_bits};
use crate::host::{Host, Interface, LocalRoute};

/// What the flip puts in place.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The generation's number; its parity says which words are idle.
    pub generation: u32,
    /// The compiled policy.
    pub cells: &'a [Cell],
    /// The interface patterns; the bit of pattern `i` is `i + 1`.
    pub patterns: &'a [Pattern],
}

/// Stores a policy in an array of its own, which nobody looks at yet.
pub fn store(cells: &[Cell]) -> Result<OwnedFd> {
    let (pages, rest) = cells.as_chunks::<PAGE_CELLS>();
    if !rest.is_empty() {
        bail!("the policy's last page is not full: it was not made by `compile`");
    }
    let length = u32::try_from(pages.len()).context("the policy has too many cells")?;
    let policy = sys::create_policy(length)
        .with_context(|| format!("cannot create an array of {length} pages for the policy"))?;
    let wrong = sys::Pages::fill(policy.as_fd(), pages).context("cannot write the policy")?;
    if let Some(number) = wrong {
        bail!("page {number} of the policy was not stored as written; nothing was changed");
    }
    Ok(policy)
}

/// Writes all else that belongs to the next generation, of which `policy` is what was [`store`]d, and flips
/// to it.
///
/// `settled` says that no program runs under the policy before the running one, whose words are
/// about to be used again.
///
/// [`set_counters`] comes before.
pub fn replace(
    maps: &mut Maps,
    host: &Host,
    next: &Next<'_>,
    policy: OwnedFd,
    settled: &Settled,
    helpers: Helpers,
) -> Result<()> {
    write_devices(maps, host, next.generation, next.patterns)?;
    write_local(maps, host)?;
    let place = next.generation % POLICY_PLACES;
    write_near_pages(maps, place, next.cells.as_chunks::<PAGE_CELLS>().0)?;
    flip(maps, place, policy.as_fd(), settled, helpers).context("cannot switch to the new policy")
}

/// Writes the copy of the first pages that programs read, and looks at it anew.
fn write_near_pages(maps: &mut Maps, place: u32, pages: &[Page]) -> Result<()> {
    let mut near = Box::new([[Cell::default(); PAGE_CELLS]; NEAR_PAGES]);
    for (to, from) in near.iter_mut().zip(pages) {
        *to = *from;
    }
    maps.near_pages
        .set(place, near.as_ref(), 0)
        .context("cannot write the policy's first pages")?;
    let written = maps.near_pages.get(&place, 0);
    if written.context("cannot read the policy's first pages back")? != *near {
        bail!("the policy's first pages were not stored as written; nothing was changed");
    }
    Ok(())
}

/// Makes every cached verdict void.
pub fn touch(maps: &mut Maps) -> Result<()> {
    let word = maps
        .active
        .get(&0, 0)
        .context("cannot read which policy runs")?;
    maps.active
        .set(0, next_active(word, place_of(word)), 0)
        .context("cannot say that verdicts may have changed")
}

/// Sets counters that the running generation does not use to their first packets and bytes: all of
/// each on the first CPU.
pub fn set_counters(maps: &Maps, starts: &[(u32, [u64; 2])]) -> Result<()> {
    /// What is written at once, on big machines.
    const BYTES: usize = 1 << 20;
    let cpus = nr_cpus().map_err(|(path, error)| {
        anyhow::Error::new(error).context(format!("cannot read the number of CPUs from {path}"))
    })?;
    let at_once = (BYTES / (cpus * size_of::<[u64; 2]>())).max(1);
    let mut values = Vec::new();
    let mut slots = Vec::new();
    for piece in starts.chunks(at_once) {
        slots.clear();
        slots.extend(piece.iter().map(|(slot, _)| *slot));
        values.clear();
        values.resize(piece.len() * cpus, [0u64; 2]);
        for (of_cpus, (_, start)) in values.chunks_mut(cpus).zip(piece) {
            of_cpus[0] = *start;
        }
        let map = IterableMap::map(&maps.counters).fd();
        sys::update_batch(map.as_fd(), cpus, &slots, &values).context("cannot set counters")?;
    }
    Ok(())
}

/// Brings the interfaces' records up to date: the pattern word of this generation's parity, and
/// the facts that do not depend on the policy. The other word stays as it is, because the running
/// generation may be using it.
pub fn write_devices(
    maps: &mut Maps,
    host: &Host,
    generation: u32,
    patterns: &[Pattern],
) -> Result<()> {
    let mut changed = false;
    let layer3 = host.layer3().map(|interface| (interface, None));
    let ports = host.ports().map(|(port, bridge)| (bridge, Some(port)));
    for (interface, port) in layer3.chain(ports) {
        let Some(l2_len) = interface.l2_len() else {
            continue;
        };
        // A port's record is its bridge's, but for what makes it one.
        let guarded = port.unwrap_or(interface);
        let old = match maps.devices.get(&guarded.index, 0) {
            Ok(old) => Some(old),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read the record of {}", guarded.name));
            }
        };
        let name = port.map(|port| port.name.as_str());
        let bits = pattern_bits(patterns, &interface.name, name);
        let mut device = record(host, interface, l2_len, old.as_ref(), generation, bits);
        if port.is_some() {
            device.master = interface.index;
            device.flags = Device::PRESENT | port_flags(interface.hands_over);
            if port.is_some_and(|port| port.hairpin) {
                device.flags |= Device::HAIRPIN;
            }
        }
        if old != Some(device) {
            changed = true;
            maps.devices
                .insert(guarded.index, device, 0)
                .with_context(|| format!("cannot write the record of {}", guarded.name))?;
        }
        write_near(maps, guarded.index, &device)
            .with_context(|| format!("cannot write the near record of {}", guarded.name))?;
    }
    if changed {
        touch(maps)?;
    }
    Ok(())
}

/// Forgets interfaces that are gone.
pub fn prune_devices(maps: &mut Maps, host: &Host) -> Result<()> {
    let known: Vec<u32> = maps
        .devices
        .keys()
        .collect::<Result<_, _>>()
        .context("cannot list the interfaces' records")?;
    for index in known {
        if !host.guarded().any(|interface| interface.index == index) {
            write_near(maps, index, &Device::default())
                .context("cannot clear the near record of an interface")?;
            match maps.devices.remove(&index) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => {
                    return Err(error).context("cannot remove the record of an interface");
                }
            }
        }
    }
    Ok(())
}

/// The copy of a record that programs find first, if the interface's index is small enough.
pub fn write_near(maps: &mut Maps, index: u32, device: &Device) -> Result<(), MapError> {
    if index < NEAR_DEVICES_MAX && maps.near_devices.get(&index, 0)? != *device {
        maps.near_devices.set(index, device, 0)?;
    }
    Ok(())
}

/// Makes the trie of local addresses what the kernel's local table is. Additions come first, so
/// that an address that moves between prefixes is never missing.
pub fn write_local(maps: &mut Maps, host: &Host) -> Result<()> {
    let values = host.local.iter().map(local_value);
    let wanted: BTreeMap<_, _> = host.local.iter().map(local_key).zip(values).collect();
    let mut present = BTreeMap::new();
    for entry in maps.local.iter() {
        let (key, value) = entry.context("cannot list the local addresses")?;
        present.insert((key.prefix_len(), key.data()), value);
    }
    let changed = wanted != present;
    for (key, value) in &wanted {
        if present.get(key) != Some(value) {
            let (prefix_len, address) = *key;
            maps.local
                .insert(&Key::new(prefix_len, address), *value, 0)
                .context("cannot add a local address")?;
        }
    }
    for (prefix_len, address) in present.keys().filter(|key| !wanted.contains_key(*key)) {
        match maps.local.remove(&Key::new(*prefix_len, *address)) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).context("cannot remove a local address"),
        }
    }
    if changed {
        touch(maps)?;
    }
    Ok(())
}

/// What a port of a bridge that hands over packets of these families has.
fn port_flags([v4, v6]: [bool; 2]) -> u32 {
    let flag = |on, flag| if on { flag } else { 0 };
    flag(v4, Device::PORT4) | flag(v6, Device::PORT6)
}

fn record(
    host: &Host,
    interface: &Interface,
    l2_len: u32,
    old: Option<&Device>,
    generation: u32,
    bits: u64,
) -> Device {
    // A new interface has no packets that the running generation judges, so both words may say
    // what the next one needs.
    let mut patterns = old.map_or([bits; 2], |old| old.patterns);
    patterns[(generation & 1) as usize] = bits;
    let addresses = || interface.addresses.iter().map(|address| address.address);
    Device {
        patterns,
        masquerade4: host.masquerade4(interface).map_or(0, u32::from),
        masquerade6: host
            .masquerade6(interface)
            .map_or([0; 4], |address| words(address.octets())),
        l2_len,
        flags: if interface.is_loopback() {
            Device::PRESENT | Device::LOOPBACK
        } else {
            // Where the fast path is on is `kernel::fast_path`'s business.
            let fast = Device::FAST | Device::FAST_XDP;
            let bridge = host
                .ports()
                .any(|(_, bridge)| bridge.index == interface.index);
            let bridge = if bridge { Device::BRIDGE } else { 0 };
            Device::PRESENT | bridge | old.map_or(0, |old| old.flags & fast)
        },
        link: interface.link.unwrap_or_default(),
        reserved: [0; 2],
        master: 0,
        own4: addr::first4(addresses()),
        own6: addr::first6(addresses()),
    }
}

/// Sixteen bytes as four words, the most significant first.
pub fn words(octets: [u8; 16]) -> [u32; 4] {
    let bits = u128::from_be_bytes(octets);
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

/// The kind of address, and above it the interface's index.
fn local_value(route: &LocalRoute) -> u32 {
    route.kind.number() | route.device << address_kind::BITS
}

fn local_key(route: &LocalRoute) -> (u32, [u8; 16]) {
    match route.address {
        IpAddr::V4(address) => (
            96 + u32::from(route.prefix_len),
            address.to_ipv6_mapped().octets(),
        ),
        IpAddr::V6(address) => (u32::from(route.prefix_len), address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::LocalKind;

    #[test]
    fn only_the_idle_word_changes() {
        let interface = Interface {
            index: 4,
            link_layer: 1,
            ..Interface::default()
        };
        let host = Host::default();
        let running = record(&host, &interface, 14, None, 1, 0b11);
        assert_eq!(running.patterns, [0b11; 2]);
        let next = record(&host, &interface, 14, Some(&running), 2, 0b101);
        assert_eq!(next.patterns, [0b101, 0b11]);
    }

    #[test]
    fn local_keys() {
        let key = |address: &str, prefix_len| {
            local_key(&LocalRoute {
                address: address.parse().unwrap(),
                prefix_len,
                device: 3,
                kind: LocalKind::Local,
            })
        };
        assert_eq!(
            key("127.0.0.0", 8),
            (
                104,
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 0]
            )
        );
        assert_eq!(key("::1", 128).0, 128);
        assert_eq!(
            words(key("1:2:3:4:5:6:7:8", 128).1),
            [0x1_0002, 0x3_0004, 0x5_0006, 0x7_0008]
        );
    }
}
