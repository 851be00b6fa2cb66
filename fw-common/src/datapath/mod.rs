//! The packet's way: parse -> track -> classify -> plan -> rewrite -> verdict.
//!
//! The same code runs in the kernel (`fw-ebpf` implements [`Packet`] and [`Tables`] over skbs and
//! BPF maps) and in the simulator behind `fwbpf explain` and the tests (over byte slices and
//! collections). It knows no map, no helper and no target.

pub mod change;
pub mod checksum;
pub mod classify;
pub mod connection;
pub mod conntrack;
pub mod crc32c;
pub mod effect;
pub mod facts;
mod fill;
pub mod flow_mark;
pub mod forward;
pub mod frame;
pub mod header;
pub mod limit;
pub mod lists;
mod log;
pub mod nat;
pub mod packet;
pub mod place;
pub mod port;
mod predicate;
pub mod quoted;
pub mod reject;
mod reverse_path;
pub mod rewrite;
pub mod routing;
mod rule_search;
pub mod scratch;
pub mod sctp;
pub mod search;
pub mod segment_size;
pub mod sets;
pub mod shortcut;
pub mod sources;
pub mod stage;
pub mod tables;
pub mod tcp;
pub mod transit;
pub mod translation;
pub mod tuple;
pub mod window;
pub mod zone;

pub mod early;
pub mod egress;
mod fragment;
pub mod gates;
pub mod ingress;

pub mod start;

pub use early::{Recorder, early};
pub use egress::egress;
pub use ingress::ingress;

use crate::abi::stat::Stat;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On with it.
    Pass,
    /// Sent on by the fast path, to [`forward::Sending::route`].
    Redirect,
    /// Refused and counted; the answer is in its place, to be sent as [`reject::Answer`] says.
    Answer,
    /// Dropped, and why.
    Drop(Stat),
}
