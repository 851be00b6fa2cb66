//! XDP's early drop: what INPUT would drop anyway never becomes an skb.

use super::Verdict;
use super::classify::{Decision, traverse};
use super::conntrack::{Tuple, track};
use super::header::{Headers, Parsed, Part, parse};
use super::nat::Scratch;
use super::ingress::{has_nat, is_for_this_host, patterns, query};
use super::packet::Packet;
use super::tables::Tables;
use crate::abi::blob::{BaseChain, HEADER, Header};
use crate::abi::ct;
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
pub fn early<P: Packet, T: Recorder>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
) -> Verdict {
    let Some(generation) = tables.generation() else {
        return Verdict::Pass;
    };
    let Some(device) = tables.device(packet.device()) else {
        return Verdict::Pass;
    };
    let headers = &mut scratch.headers;
    if parse(packet, tables, device.l2_len, headers) != Parsed::Headers {
        return Verdict::Pass;
    }
    if headers.part as u8 != Part::Whole as u8 {
        return Verdict::Pass;
    }
    let Some(policy) = tables.cell(generation, HEADER) else {
        return Verdict::Pass;
    };
    let policy = Header(policy);
    let nat = policy.has_nat(headers.family);
    if belongs_to_flow(tables, headers, nat) || !is_for_this_host(packet, tables, headers) {
        return Verdict::Pass;
    }
    place(packet, tables, generation, scratch);
    let headers = &scratch.headers;
    let tracked = scratch.tracked;
    if tracked.ct & (ct::NEW | ct::INVALID | ct::UNTRACKED) == 0 {
        return Verdict::Pass;
    }
    tables.begin();
    let patterns = patterns(device, policy.generation());
    let query = query(headers, patterns, 1, &tracked);
    if tracked.opens && nat {
        let chain = BaseChain::NatPrerouting.id(headers.family);
        if traverse(tables, generation, chain, &query) != Decision::Accept {
            return Verdict::Pass;
        }
    }
    let chain = BaseChain::FilterInput.id(headers.family);
    match traverse(tables, generation, chain, &query) {
        Decision::Drop(Stat::Policy) if tables.commit() => {
            tables.count(Stat::XdpDrop);
            Verdict::Drop(Stat::Policy)
        }
        _ => Verdict::Pass,
    }
}

#[inline(never)]
fn place<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    generation: T::Generation,
    scratch: &mut Scratch,
) {
    let aliases = has_nat(tables, generation, scratch.headers.family);
    scratch.tracked = track(packet, tables, generation, &scratch.headers, aliases);
}

#[inline(always)]
fn belongs_to_flow<T: Tables>(tables: &T, headers: &Headers, nat: bool) -> bool {
    let tuple = Tuple::of(headers);
    tables.flow(&tuple.key(FlowKey::PRIMARY).0).is_some()
        || (nat && tables.flow(&tuple.key(FlowKey::ALIAS).0).is_some())
}
