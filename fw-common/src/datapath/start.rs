//! What every hook begins with: the policy, the interface, the headers.

use super::Verdict;
use super::header::{Parsed, parse};
use super::packet::Packet;
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::blob::{HEADER, Header};
use crate::abi::device::Device;
use crate::abi::stat::Stat;

/// Whether there is anything to judge.
pub enum Start<G> {
    /// The policy that judges the packet; headers, device and features are in the scratch space.
    Judge(G),
    /// Not IP, or nothing that the stack would take.
    NotOurs,
    /// The verdict, without one.
    Over(Verdict),
}

/// Finds the running policy and the interface's record, and parses the packet.
#[inline(always)]
pub fn start<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> Start<T::Generation> {
    let Some(generation) = tables.generation() else {
        return Start::Over(Verdict::Pass);
    };
    let Some(header) = tables.cell(generation, HEADER) else {
        return Start::Over(Verdict::Pass);
    };
    scratch.begin(Header(header));
    if !take_device(tables, packet.device(), &mut scratch.device) {
        return Start::Over(Verdict::Drop(Stat::UnknownDevice));
    }
    match parse(packet, tables, scratch.device.l2_len, &mut scratch.headers) {
        Parsed::Headers => Start::Judge(generation),
        Parsed::NotOurs => Start::NotOurs,
        Parsed::Malformed => Start::Over(Verdict::Drop(Stat::Malformed)),
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

/// The patterns that an interface fits; of one without a record, only "any".
#[inline(never)]
pub fn patterns_of<T: Tables>(tables: &T, index: u32, scratch: &Scratch) -> u64 {
    match tables.device(index) {
        Some(device) => scratch.patterns(device),
        None => 1,
    }
}
