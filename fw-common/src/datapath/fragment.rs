//! Fragments: later ones borrow the transport header of the first.
//!
//! netfilter reassembles before it tracks (net/ipv4/netfilter/nf_defrag_ipv4.c), and counts the
//! whole datagram as one packet. BPF cannot reassemble. The first fragment is judged as the
//! datagram, and what it showed is kept; later ones are judged with it, add their bytes to the
//! same rules but no packet, and so end as the first did.

use super::header::{Headers, Part};
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::flow::{Fragment, FragmentKey};

/// The hook, as [`FragmentKey::hook`] says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Ingress.
    Ingress = 0,
    /// Egress.
    Egress = 1,
}

/// [`Fragment::flags`]: the first fragment opened its flow and so went through the nat chains.
const OPENED: u8 = 1;

/// The kernel's default for incomplete datagrams (net.ipv4.ipfrag_time).
const LIFETIME: u64 = 30_000_000_000;

#[inline(always)]
fn key(headers: &Headers, side: Side) -> FragmentKey {
    FragmentKey {
        source: headers.key.source,
        destination: headers.key.destination,
        id: headers.fragment_id,
        protocol: headers.key.protocol as u8,
        hook: side as u8,
        family: headers.family as u8,
        reserved: 0,
    }
}

/// What a later fragment takes over.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Borrowed {
    /// The first fragment was seen; otherwise the rest means nothing. (An `Option` would leave
    /// bytes of the return value unset, which the verifier takes for a read of nothing.)
    pub found: bool,
    /// The first fragment opened its flow.
    pub opened: bool,
    /// Connection state of the first fragment.
    pub ct: u8,
    /// Direction of the first fragment.
    pub direction: u8,
}

/// Completes a later fragment's headers from the first's.
#[inline(never)]
pub fn borrow<T: Tables>(tables: &T, headers: &mut Headers, side: Side) -> Borrowed {
    let mut borrowed = Borrowed {
        found: false,
        opened: false,
        ct: 0,
        direction: 0,
    };
    if let Some(fragment) = tables.fragment(&key(headers, side))
        && fragment.expires >= tables.now()
    {
        headers.key.ports = fragment.ports;
        headers.flow_ports = fragment.flow_ports;
        headers.tcp_flags = fragment.tcp_flags;
        borrowed.found = true;
        borrowed.opened = fragment.flags & OPENED != 0;
        borrowed.ct = fragment.ct;
        borrowed.direction = fragment.direction;
    }
    borrowed
}

/// Keeps what later fragments will need, if the packet is a first fragment.
#[inline(always)]
pub fn lend<T: Tables>(tables: &T, scratch: &Scratch, side: Side) {
    if scratch.headers.part as u8 == Part::First as u8 {
        store(tables, scratch, side);
    }
}

#[inline(never)]
fn store<T: Tables>(tables: &T, scratch: &Scratch, side: Side) {
    let (headers, tracked) = (&scratch.headers, &scratch.tracked);
    let fragment = Fragment {
        expires: tables.now().wrapping_add(LIFETIME),
        ports: headers.key.ports,
        flow_ports: headers.flow_ports,
        tcp_flags: headers.tcp_flags,
        ct: tracked.ct,
        direction: tracked.direction,
        flags: if tracked.opens { OPENED } else { 0 },
        reserved: 0,
    };
    tables.insert_fragment(&key(headers, side), &fragment);
}
