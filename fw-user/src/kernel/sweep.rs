//! Deleting flows, through the program that looks at each once more, and changing lists.

use std::net::IpAddr;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use fw_common::abi::Family;
use fw_common::abi::flow::FlowKey;
use fw_common::abi::maps;

use super::flows::{FlowTable, Slices};
use super::state::StateDir;
use crate::addr;

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
        self.run(key, maps::SWEEP_EXPIRED)
    }

    /// Deletes a flow, whatever its time.
    pub fn end(&self, key: &FlowKey) -> Result<bool> {
        self.run(key, maps::SWEEP_ANY)
    }

    /// Cuts a flow ([`fw_common::abi::flow::Flow::REVOKED`]); whether it lived.
    pub fn revoke(&self, key: &FlowKey) -> Result<bool> {
        self.run(key, maps::SWEEP_REVOKE)
    }

    /// Has a flow go on that was cut, if nothing has taken its place.
    pub fn restore(&self, key: &FlowKey) -> Result<bool> {
        self.run(key, maps::SWEEP_RESTORE)
    }

    /// Changes a list of recent addresses: 1 if the address was there, 0 if not, something else if
    /// the list cannot be changed.
    pub fn change_list(&self, place: u32, question: u32, address: IpAddr) -> Result<u32> {
        let family = match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let mut frame = [0; 128];
        let asked = [place, question, family as u32];
        let words = addr::to_abi(address).into_iter().chain(asked);
        for (place, word) in frame.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        self.test(&frame, maps::SWEEP_LISTS)
    }

    /// Has packets without a flow find out so sooner, where flows have ended.
    pub fn forget_hints(&self) -> Result<()> {
        self.test(&[0; 128], maps::SWEEP_HINTS)?;
        Ok(())
    }

    fn run(&self, key: &FlowKey, what: u8) -> Result<bool> {
        Ok(self.test(&frame(key, what), 0)? == 1)
    }

    fn test(&self, frame: &[u8], mark: u32) -> Result<u32> {
        // The beginning of `struct __sk_buff`: length, packet type, mark.
        let context: Vec<u8> = [0, 0, mark]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let result = self
            .program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("cannot run the program {}", maps::PROGRAM_SWEEP))?;
        Ok(result.return_value)
    }
}

/// The frame that `fwbpf_sweep` expects: the key as it lies in memory, then what to do with the flow;
/// padded to what the kernel takes for a frame.
fn frame(key: &FlowKey, what: u8) -> [u8; 128] {
    let mut frame = [0; 128];
    let words = key.low.iter().chain(&key.high);
    let words = words.chain([&key.ports, &key.rest]);
    for (place, word) in frame.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    frame[40] = what;
    frame
}

/// Deletes every flow; returns how many there were.
pub fn flush(state: &StateDir) -> Result<usize> {
    let sweeper = Sweeper::open(state)?;
    let mut ended = 0;
    for table in FlowTable::ALL {
        // Deleting while walking would skip neighbours: the keys first, then the deletions. An
        // alias goes with its flow; alone it is a leftover.
        let (mut flows, mut aliases) = (Vec::new(), Vec::new());
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            for (key, flow) in slice {
                let keys = if flow.is_alias() {
                    &mut aliases
                } else {
                    &mut flows
                };
                keys.push(key);
            }
        }
        for key in &flows {
            ended += usize::from(sweeper.end(key)?);
        }
        for key in &aliases {
            sweeper.end(key)?;
        }
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_the_key_as_it_lies_in_memory() {
        let key = FlowKey {
            low: [1, 2, 3, 4],
            high: [5, 6, 7, 0x0102_0304],
            ports: FlowKey::ports_of(0x1122, 0x3344),
            rest: FlowKey::rest_of(6, FlowKey::V6 | FlowKey::SECOND, 0x5566),
        };
        let frame = frame(&key, maps::SWEEP_ANY);
        assert_eq!(frame[28..32], 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(frame[32..34], 0x1122_u16.to_ne_bytes());
        assert_eq!(frame[36..38], [6, 0x81]);
        assert_eq!(frame[38..40], 0x5566_u16.to_ne_bytes());
        assert_eq!(frame[40], 1);
    }
}
