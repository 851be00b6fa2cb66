//! What every hook begins with: the policy, the interface, the headers.

use super::Verdict;
use super::header::{Parsed, parse};
use super::packet::Packet;
use super::port;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use crate::abi::blob::{HEADER, Header};
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// Whether there is anything to judge.
pub enum Start {
    /// A packet to be judged: headers, device and features are in the scratch space.
    Judge,
    /// Not IP, or nothing that the stack would take.
    NotOurs,
    /// The verdict, without one.
    Over(Verdict),
}

/// Finds the running policy and the interface's record, and parses the packet.
#[inline(always)]
pub fn start<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Start {
    match packet.call::<Begin, T>(tables, scratch, 0) {
        JUDGE => Start::Judge,
        NOT_OURS => Start::NotOurs,
        NO_POLICY => Start::Over(Verdict::Pass),
        _ => Start::Over(Verdict::Drop(scratch.reason)),
    }
}

/// The stage of [`start`].
pub struct Begin;

const JUDGE: u32 = 1;
const NOT_OURS: u32 = 2;
const NO_POLICY: u32 = 3;
/// [`Scratch::reason`] says why.
const REFUSED: u32 = 0;

impl Stage for Begin {
    const NAME: Name = Name::Begin;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, _: u32) -> u32 {
        scratch.active = tables.active();
        let Some(front) = tables.front(scratch.place()) else {
            return NO_POLICY;
        };
        scratch.begin(Header(&front[HEADER as usize]));
        scratch.untracked = false;
        scratch.headers.zone = 0;
        scratch.outcomes.forget();
        if !take_device(tables, packet.device(), &mut scratch.device) {
            scratch.device.flags = 0;
            scratch.reason = Stat::UnknownDevice;
            return REFUSED;
        }
        match parse(packet, tables, scratch.device.l2_len, &mut scratch.headers) {
            Parsed::Headers => JUDGE,
            Parsed::NotOurs => NOT_OURS,
            Parsed::Malformed => {
                scratch.reason = Stat::Malformed;
                REFUSED
            }
        }
    }
}

/// Copies an interface's record. There are two maps of them, and the verifier would explore all
/// that follows once for each map that a reference may lead to.
#[inline(never)]
fn take_device<T: Tables>(tables: &T, index: u32, device: &mut Device) -> bool {
    match tables.device(index) {
        Some(record) => {
            *device = *record;
            true
        }
        None => false,
    }
}

/// The patterns that the interface fits by which a packet arrived; of one without a record, only
/// "any".
#[inline(never)]
pub fn patterns_of_arrival<T: Tables>(tables: &T, index: u32, scratch: &mut Scratch) -> u64 {
    if index == 0 {
        // This host's own packets came by none, and looking for that takes as long as for any.
        scratch.arrival_flags = 0;
        return 1;
    }
    match tables.device(index) {
        Some(device) => {
            scratch.arrival_flags = device.flags;
            if device.flags & Device::BRIDGE != 0
                && let Some(port) = tables.device(port::of_transit(scratch))
                && port.master == index
            {
                return scratch.patterns(port);
            }
            scratch.patterns(device)
        }
        None => {
            scratch.arrival_flags = 0;
            1
        }
    }
}
