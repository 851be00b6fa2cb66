//! What runs now: counters, events, the policy itself.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{IterableMap, MapData, PerCpuArray};
use fw_common::abi::blob::Cell;
use fw_common::abi::stat::Stat;

use super::load::{Blob, Maps};
pub use super::sys::Pages;

/// Packets and bytes of one counter slot, all CPUs together.
pub fn counter(maps: &Maps, slot: u32) -> Result<[u64; 2]> {
    sum(&maps.counters, slot, [0; 2], |total, cpu| {
        [total[0].wrapping_add(cpu[0]), total[1].wrapping_add(cpu[1])]
    })
    .with_context(|| format!("cannot read counter {slot}"))
}

/// How often each event happened.
pub fn stats(maps: &Maps) -> Result<Vec<(Stat, u64)>> {
    Stat::ALL
        .iter()
        .map(|stat| {
            let count = sum(&maps.stats, *stat as u32, 0, |total: u64, cpu| {
                total.wrapping_add(cpu)
            })
            .with_context(|| format!("cannot read the event counter {}", stat.name()))?;
            Ok((*stat, count))
        })
        .collect()
}

/// The pages of a policy.
pub fn pages(blob: &Blob) -> Result<Pages> {
    let map = IterableMap::map(blob).fd();
    Pages::of(map.as_fd(), blob.len() as usize).context("cannot read the running policy")
}

/// All cells of a policy.
pub fn cells(blob: &Blob) -> Result<Vec<Cell>> {
    Ok(pages(blob)?.as_flattened().to_vec())
}

fn sum<V: Pod>(
    map: &PerCpuArray<MapData, V>,
    index: u32,
    zero: V,
    add: impl Fn(V, V) -> V,
) -> Result<V> {
    let values = map.get(&index, 0)?;
    Ok(values.iter().fold(zero, |total, value| add(total, *value)))
}
