//! Deleting flows whose time is over.
//!
//! Packets treat such flows as absent, so this is only about room in the tables. The walk reads a
//! slice at a time and rests in between; the program `fwbpf_sweep` looks again at each candidate
//! and deletes it, because a packet may have refreshed it since.

use std::time::Duration;

use anyhow::Result;
use fw_common::abi::flow::Flow;
use fw_common::abi::maps;
use tokio::time::sleep;

use crate::command::running::Predecessor;
use crate::kernel::flows::{FlowTable, Slices, monotonic_now};
use crate::kernel::load::Maps;
use crate::kernel::sets::LiveSet;
use crate::kernel::state::StateDir;
use crate::kernel::sweep::Sweeper;

/// Between two walks.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two slices.
const REST: Duration = Duration::from_millis(10);
/// Every so many walks, aliases whose flow is gone are looked for as well.
const ALIASES_EVERY: u32 = 12;

/// Every so many walks, elements of sets are looked for whose time is over, and hints of flows that are gone.
const SETS_EVERY: u32 = 6;

/// Walks the tables again and again.
pub async fn run(state: StateDir) {
    let mut walk = 0_u32;
    loop {
        // A table that cannot be read now (the firewall is being unloaded, say) is read next time;
        // what is wrong for good, the other commands say better.
        let _ = sweep_all(&state, walk.is_multiple_of(ALIASES_EVERY)).await;
        if walk.is_multiple_of(SETS_EVERY) {
            let _ = sweep_sets(&state);
            let _ = Sweeper::open(&state).and_then(|sweeper| sweeper.forget_hints());
        }
        walk = walk.wrapping_add(1);
        sleep(PERIOD).await;
    }
}

async fn sweep_all(state: &StateDir, aliases: bool) -> Result<()> {
    if !state.program(maps::PROGRAM_SWEEP).exists() {
        return Ok(());
    }
    let sweeper = Sweeper::open(state)?;
    for table in FlowTable::ALL {
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            let now = monotonic_now();
            for (key, flow) in &slice {
                if is_candidate(flow, now, aliases) {
                    sweeper.sweep(key)?;
                }
            }
            sleep(REST).await;
        }
    }
    Ok(())
}

/// Deletes the elements of sets whose time is over. A set that a load replaces meanwhile is read and
/// written all the same, and is gone afterwards.
fn sweep_sets(state: &StateDir) -> Result<()> {
    let (Some(running), Some(mut maps)) = (Predecessor::find(state)?, Maps::open(state)?) else {
        return Ok(());
    };
    for set in &running.known.sets {
        if set.timeout.is_some() {
            LiveSet::open(&mut maps, set)?.sweep()?;
        }
    }
    Ok(())
}

fn is_candidate(flow: &Flow, now: u64, aliases: bool) -> bool {
    if flow.is_alias() {
        // An alias goes with its flow; only a leftover has to be looked for.
        aliases
    } else {
        flow.expires.get() < now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_candidates_only_when_asked_for() {
        let flow = Flow::default();
        assert!(is_candidate(&flow, 1, false));
        assert!(!is_candidate(&flow, 0, false));
        flow.status.set(Flow::ALIAS);
        assert!(!is_candidate(&flow, 1, false));
        assert!(is_candidate(&flow, 1, true));
    }
}
