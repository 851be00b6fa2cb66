//! What runs now: counters, events, the policy itself.

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapData;
use aya::maps::PerCpuArray;
use fw_common::abi::blob::{Cell, Page};
use fw_common::abi::stat::Stat;

use super::load::{Blob, Maps};

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

/// All cells of the running policy.
pub fn cells(blob: &Blob) -> Result<Vec<Cell>> {
    let pages: Vec<Page> = blob
        .iter()
        .collect::<Result<_, _>>()
        .context("cannot read the running policy")?;
    Ok(pages.into_flattened())
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
