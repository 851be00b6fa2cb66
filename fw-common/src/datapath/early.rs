//! XDP's early drop: what INPUT would drop anyway never becomes an skb.

use super::Verdict;
use super::classify::{Decision, traverse, traverse_nat};
use super::conntrack::{about, find, read_segment, sack_permitted, track_stranger};
use super::forward::forward;
use super::header::{Icmp, Part, protocol};
use super::ingress::is_for_this_host;
use super::packet::Packet;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::start::{Start, start};
use super::tables::Tables;
use super::window::read_options;
use crate::abi::blob::{BaseChain, HeaderFields};
use crate::abi::ct;
use crate::abi::device::Device;
use crate::abi::flow::FlowKey;
use crate::abi::stat::Stat;

/// [`Tables`] that hold counts back until it is certain that the packet ends here.
pub trait Recorder: Tables {
    /// Forgets what was held back.
    fn begin(&self);
    /// Counts what was held back; false if there was too much to hold.
    fn commit(&self) -> bool;
}

/// Drops what opens no flow that INPUT would accept, and passes everything else on, uncounted.
///
/// It decides only about whole packets to this host that belong to no flow: for these, and only
/// these, tracking has no effect on any state, so that running the same chains here and counting
/// the same rules is exact.
#[inline(always)]
pub fn early<P: Packet, T: Recorder>(packet: &mut P, tables: &T, scratch: &mut Scratch) -> Verdict {
    let Start::Judge = start(packet, tables, scratch) else {
        return Verdict::Pass;
    };
    if scratch.headers.part as u8 != Part::Whole as u8 {
        return Verdict::Pass;
    }
    // Whether a packet of SCTP opens a flow, its chunks say.
    if scratch.headers.key.protocol as u8 == protocol::SCTP {
        return Verdict::Pass;
    }
    // The tables raw and mangle are the tc programs' business.
    if scratch.features & HeaderFields::GATES != 0 {
        return Verdict::Pass;
    }
    scratch.made_here = false;
    let family = scratch.headers.family;
    scratch.fast = scratch.device.flags & Device::FAST_XDP != 0;
    let in_flow = if scratch.fast && has_ports(scratch) {
        match packet.call::<SendOn, T>(tables, scratch, 0) {
            SENT_ON => return Verdict::Redirect,
            place => place == IN_FLOW,
        }
    } else {
        belongs_to_flow(tables, scratch)
    };
    if in_flow || !is_for_this_host(packet, tables, scratch) {
        return Verdict::Pass;
    }
    if scratch.headers.icmp as u8 == Icmp::Error as u8 {
        // It may be about a flow.
        let aliases = scratch.has_nat();
        scratch.lookup.met = 0;
        if scratch.headers.broken {
            scratch.tracked.set_without_flow(ct::INVALID);
        } else {
            about(packet, tables, scratch, aliases);
        }
        if scratch.tracked.ct & ct::INVALID == 0 {
            return Verdict::Pass;
        }
    } else {
        track_stranger(scratch);
    }
    tables.begin();
    scratch.ask(scratch.patterns(&scratch.device), 1);
    if scratch.meets_nat()
        && traverse_nat(packet, tables, BaseChain::NatPrerouting, scratch) != Decision::Accept
    {
        return Verdict::Pass;
    }
    let chain = BaseChain::FilterInput.id(family);
    match traverse(packet, tables, chain, scratch) {
        Decision::Drop(Stat::Policy) if tables.commit() => {
            tables.count(Stat::XdpDrop);
            Verdict::Drop(Stat::Policy)
        }
        _ => Verdict::Pass,
    }
}

/// Sends a packet on if the fast path can, and leaves all else to the tc programs.
pub struct SendOn;

/// Results of [`SendOn`]: the packet belongs to no flow.
const STRANGER: u32 = 0;
/// It belongs to one.
const IN_FLOW: u32 = 1;
/// The fast path has sent it on.
const SENT_ON: u32 = 2;

impl Stage for SendOn {
    const NAME: Name = Name::SendOn;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, _: u32) -> u32 {
        let aliases = scratch.has_nat();
        let is_tcp = scratch.headers.key.protocol as u8 == protocol::TCP;
        if is_tcp && !read_segment(packet, scratch) {
            return IN_FLOW;
        }
        scratch.lookup.tuple.set(&scratch.headers);
        scratch.lookup.met = 0;
        let now = tables.now();
        let Some(found) = find(tables, &mut scratch.lookup, aliases, now) else {
            // Of one that is cut, the tc programs know what to make.
            let cut = scratch.lookup.is_cut();
            return if cut { IN_FLOW } else { STRANGER };
        };
        if is_tcp {
            read_options(packet, tables, scratch, sack_permitted(&found));
        }
        if forward(packet, tables, scratch, &found, now) {
            SENT_ON
        } else {
            IN_FLOW
        }
    }
}

#[inline(always)]
fn has_ports(scratch: &Scratch) -> bool {
    matches!(
        scratch.headers.key.protocol as u8,
        protocol::TCP | protocol::UDP
    )
}

/// Whether there is a flow or an alias between these endpoints, be it over or another's.
#[inline(always)]
fn belongs_to_flow<T: Tables>(tables: &T, scratch: &mut Scratch) -> bool {
    scratch.lookup.tuple.set(&scratch.headers);
    let lookup = &mut scratch.lookup;
    lookup.write_key(FlowKey::FIRST);
    tables.flow(&lookup.key).is_some()
}
