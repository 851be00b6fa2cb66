//! Fragments: later ones borrow the transport header of the first.
//!
//! netfilter reassembles before it tracks (net/ipv4/netfilter/nf_defrag_ipv4.c), and counts the
//! whole datagram as one packet. BPF cannot reassemble. The first fragment is judged as the
//! datagram, and what it showed is kept; later ones are judged with it, add their bytes to the
//! same rules but no packet, and so end as the first did.

use super::conntrack::Tracked;
use super::header::{Headers, Part};
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
    /// The first fragment opened its flow. First, for the reason given at `conntrack::Found`.
    pub opened: bool,
    /// Connection state of the first fragment.
    pub ct: u8,
    /// Direction of the first fragment.
    pub direction: u8,
}

/// Completes a later fragment's headers from the first's; nothing if that was not seen.
#[inline(never)]
pub fn borrow<T: Tables>(tables: &T, headers: &mut Headers, side: Side) -> Option<Borrowed> {
    let fragment = tables.fragment(&key(headers, side))?;
    if fragment.expires < tables.now() {
        return None;
    }
    headers.key.ports = fragment.ports;
    headers.flow_ports = fragment.flow_ports;
    headers.tcp_flags = fragment.tcp_flags;
    Some(Borrowed {
        ct: fragment.ct,
        direction: fragment.direction,
        opened: fragment.flags & OPENED != 0,
    })
}

/// Keeps what later fragments will need, if the packet is a first fragment.
#[inline(always)]
pub fn lend<T: Tables>(tables: &T, headers: &Headers, side: Side, tracked: &Tracked) {
    if headers.part as u8 == Part::First as u8 {
        store(tables, headers, side, tracked);
    }
}

#[inline(never)]
fn store<T: Tables>(tables: &T, headers: &Headers, side: Side, tracked: &Tracked) {
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
