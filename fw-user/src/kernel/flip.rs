//! The flip, and the waiting that belongs to it.
//!
//! Three policies are told apart by their place in `POLICY`: the next one, the running one, and the
//! one before it, which packets that are under way may still be judged by. Nothing of the latter
//! may be used again before the last such packet is through. The kernel can wait for that, for two
//! or three ticks of its clock, in which there is nothing to do: children of ours do it, and whoever
//! loads next waits for them in [`StateDir::settled`](super::state::StateDir::settled).

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::IterableMap;
use fw_common::abi::maps::{POLICY_PLACES, next_active, place_of};
use rustix::process::{getpid, getppid};
use rustix::thread::{MembarrierCommand, membarrier};

use super::load::Maps;
use super::state::Settled;
use super::sys;

/// Puts a policy into its place and in force.
pub fn flip(maps: &mut Maps, place: u32, policy: BorrowedFd<'_>, settled: &Settled) -> Result<()> {
    let places = maps.policy.as_fd();
    put(places, place, policy).context("cannot put it beside the running one")?;
    let active = IterableMap::map(&maps.active).fd().as_fd();
    // Before the flip, so that it is waited for whatever becomes of this process.
    settle(places, active, place, settled).context("cannot start a process")?;
    let word = maps.active.get(&0, 0)?;
    maps.active.set(0, next_active(word, place), 0)?;
    Ok(())
}

/// How often a process looks whether the other has come so far.
const LOOK: Duration = Duration::from_micros(20);

/// Puts a policy into its place, which nobody looks at yet. The kernel waits nevertheless, so a
/// child does it.
fn put(places: BorrowedFd<'_>, place: u32, policy: BorrowedFd<'_>) -> io::Result<()> {
    let wanted = Some(sys::map_id(policy)?);
    let child = sys::in_child([places, policy], |[places, policy]| {
        sys::put(places, place, policy)
    })?;
    while sys::word(places, place)? != wanted {
        if let Some(ended) = child.ended() {
            ended?;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Has a child wait, once `place` is active, for the last packet that began before. It keeps the
/// lock for so long. The policy before the running one, which no packet has met since the last
/// flip, goes meanwhile: taking it out has the kernel wait.
fn settle(
    places: BorrowedFd<'_>,
    active: BorrowedFd<'_>,
    place: u32,
    settled: &Settled,
) -> io::Result<()> {
    let parent = getpid();
    let unused = (place + 1) % POLICY_PLACES;
    let kept = [places, active, settled.as_fd()];
    sys::in_child(kept, move |[places, active, _settled]| {
        while getppid() == Some(parent) && sys::word(active, 0)?.map(place_of) != Some(place) {
            std::thread::sleep(LOOK);
        }
        if sys::take_out(places, unused).is_err() {
            // It was empty: so far there were only one or two.
            membarrier(MembarrierCommand::Global)?;
        }
        Ok(())
    })?;
    Ok(())
}
