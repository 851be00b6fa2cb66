//! Deleting flows whose time is over.
//!
//! Packets treat such flows as absent, so this is only about room in the tables. The walk reads a
//! slice at a time and rests in between; the program `fwbpf_sweep` looks again at each candidate
//! and deletes it, because a packet may have refreshed it since.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use fw_common::abi::flow::{Flow, FlowKey};
use fw_common::abi::maps;
use tokio::time::sleep;

use crate::kernel::flows::{FlowTable, Slices, monotonic_now};
use crate::kernel::state::StateDir;

/// Between two walks.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two slices.
const REST: Duration = Duration::from_millis(10);
/// Every so many walks, aliases whose flow is gone are looked for as well.
const ALIASES_EVERY: u32 = 12;

/// Walks the tables again and again.
pub async fn run(state: StateDir) {
    let mut walk = 0_u32;
    loop {
        // A table that cannot be read now (the firewall is being unloaded, say) is read next time;
        // what is wrong for good, the other commands say better.
        let _ = sweep_all(&state, walk.is_multiple_of(ALIASES_EVERY)).await;
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
                if is_candidate(key, flow, now, aliases) {
                    sweeper.sweep(key)?;
                }
            }
            sleep(REST).await;
        }
    }
    Ok(())
}

fn is_candidate(key: &FlowKey, flow: &Flow, now: u64, aliases: bool) -> bool {
    if key.kind == FlowKey::ALIAS {
        // An alias goes with its flow; only a leftover has to be looked for.
        aliases
    } else {
        flow.expires.get() < now
    }
}

/// The program that deletes flows.
#[derive(Debug)]
pub struct Sweeper {
    program: SchedClassifier,
}

impl Sweeper {
    /// Opens the pinned program.
    pub fn open(state: &StateDir) -> Result<Self> {
        let program = SchedClassifier::from_pin(state.program(maps::PROGRAM_SWEEP))
            .with_context(|| format!("cannot open the program {}", maps::PROGRAM_SWEEP))?;
        Ok(Self { program })
    }

    /// Deletes a flow if it is past its time; whether it did.
    pub fn sweep(&self, key: &FlowKey) -> Result<bool> {
        self.run(key, false)
    }

    /// Deletes a flow, whatever its time.
    pub fn end(&self, key: &FlowKey) -> Result<bool> {
        self.run(key, true)
    }

    fn run(&self, key: &FlowKey, forced: bool) -> Result<bool> {
        let frame = frame(key, forced);
        let result = self
            .program
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("cannot run the program {}", maps::PROGRAM_SWEEP))?;
        Ok(result.return_value == 1)
    }
}

/// The frame that `fwbpf_sweep` expects: the key as it lies in memory, then whether to delete the
/// flow although its time has not come; padded to what the kernel takes for a frame.
fn frame(key: &FlowKey, forced: bool) -> [u8; 128] {
    let mut frame = [0; 128];
    let words = key.low.iter().chain(&key.high).copied();
    for (place, word) in frame.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    frame[32..34].copy_from_slice(&key.low_port.to_ne_bytes());
    frame[34..36].copy_from_slice(&key.high_port.to_ne_bytes());
    frame[36..40].copy_from_slice(&[key.protocol, key.kind, key.family, 0]);
    frame[40] = u8::from(forced);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_the_key_as_it_lies_in_memory() {
        let key = FlowKey {
            low: [1, 2, 3, 4],
            high: [5, 6, 7, 0x0102_0304],
            low_port: 0x1122,
            high_port: 0x3344,
            protocol: 6,
            kind: 1,
            family: 1,
            reserved: 0,
        };
        let frame = frame(&key, true);
        assert_eq!(frame[28..32], 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(frame[32..34], 0x1122_u16.to_ne_bytes());
        assert_eq!(frame[36..41], [6, 1, 1, 0, 1]);
    }

    #[test]
    fn aliases_are_candidates_only_when_asked_for() {
        let alias = FlowKey {
            kind: FlowKey::ALIAS,
            ..FlowKey::default()
        };
        let flow = Flow::default();
        assert!(!is_candidate(&alias, &flow, 1, false));
        assert!(is_candidate(&alias, &flow, 1, true));
        assert!(is_candidate(&FlowKey::default(), &flow, 1, false));
        assert!(!is_candidate(&FlowKey::default(), &flow, 0, false));
    }
}
