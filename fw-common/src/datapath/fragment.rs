//! Fragments: later ones borrow the transport header of the first.
//!
//! netfilter reassembles before it tracks (net/ipv4/netfilter/nf_defrag_ipv4.c), and counts the
//! whole datagram as one packet. BPF cannot reassemble. The first fragment is judged as the
//! datagram, and what it showed is kept; later ones are judged with it, add their bytes to the
//! same rules but no packet, and so end as the first did. Of those that come before it to this host, whose
//! stack puts the datagram together, the first counts the bytes.

use super::header::{Headers, Part};
use super::rewrite::Endpoint;
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

/// [`Fragment::flags`]: the first fragment opened its flow, and its destination was translated.
const TRANSLATED: u8 = 2;

/// [`Fragment::flags`]: the first fragment was dropped as its flow could not be stored.
const REFUSED: u8 = 4;

/// [`Fragment::flags`]: the first fragment has not come yet; there is nothing but [`Fragment::ahead`].
const AHEAD: u8 = 8;

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

/// The name under which the link-layer address of a sender is kept, in the same table:
/// [`super::facts::keep_link`].
#[inline(always)]
pub fn link_key(headers: &Headers, device: u32) -> FragmentKey {
    FragmentKey {
        source: headers.key.source,
        destination: [0; 4],
        id: device,
        protocol: 0,
        hook: FragmentKey::LINK,
        family: headers.family as u8,
        reserved: 0,
    }
}

/// The name under which the mark of a flow waits that a packet opens, in the same table:
/// [`super::flow_mark`].
#[inline(always)]
pub fn mark_key(headers: &Headers) -> FragmentKey {
    FragmentKey {
        source: headers.key.source,
        destination: headers.key.destination,
        id: headers.flow_ports,
        protocol: headers.key.protocol as u8,
        // A zone has sixteen bits, for which there is room here and there.
        hook: FragmentKey::MARK | ((headers.zone >> 15) as u8) << 7,
        family: headers.family as u8 | ((headers.zone >> 8) as u8) << 1,
        reserved: headers.zone as u8,
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
    /// Its destination was translated, to [`Outcomes::destination`].
    pub translated: bool,
    /// It was dropped, as its flow could not be stored.
    pub refused: bool,
    /// Connection state of the first fragment.
    pub ct: u8,
    /// Direction of the first fragment.
    pub direction: u8,
}

/// Completes a later fragment's headers from the first's.
#[inline(never)]
pub fn borrow<T: Tables>(
    tables: &T,
    headers: &mut Headers,
    limits: &mut Outcomes,
    side: Side,
) -> Borrowed {
    let mut borrowed = Borrowed {
        found: false,
        opened: false,
        translated: false,
        refused: false,
        ct: 0,
        direction: 0,
    };
    if let Some(fragment) = tables.fragment(&key(headers, side))
        && fragment.flags & AHEAD == 0
        && fragment.expires >= tables.now()
    {
        headers.key.ports = fragment.ports;
        headers.flow_ports = fragment.flow_ports;
        headers.tcp_flags = fragment.tcp_flags;
        limits.begin();
        limits.word = fragment.limits;
        borrowed.found = true;
        borrowed.opened = fragment.flags & OPENED != 0;
        borrowed.translated = fragment.flags & TRANSLATED != 0;
        borrowed.refused = fragment.flags & REFUSED != 0;
        limits.destination.address = fragment.destination;
        limits.destination.port = fragment.destination_port;
        borrowed.ct = fragment.ct;
        borrowed.direction = fragment.direction;
    }
    borrowed
}

/// Keeps of a later fragment that came before the first what that one will count.
#[inline(never)]
pub fn note_ahead<T: Tables>(tables: &T, headers: &Headers, side: Side) {
    let key = key(headers, side);
    let now = tables.now();
    let note = Fragment {
        expires: now.wrapping_add(LIFETIME),
        flags: AHEAD,
        ahead: ahead(tables, &key, now).wrapping_add(headers.bytes),
        ..Fragment::default()
    };
    tables.insert_fragment(&key, &note);
}

/// The bytes of those that have come before their first one.
#[inline(always)]
fn ahead<T: Tables>(tables: &T, key: &FragmentKey, now: u64) -> u32 {
    match tables.fragment(key) {
        Some(note) if note.flags & AHEAD != 0 && note.expires >= now => note.ahead,
        _ => 0,
    }
}

/// Keeps what later fragments will need, if the packet is a first fragment, which counts those that came before it.
#[inline(always)]
pub fn lend<T: Tables>(tables: &T, scratch: &mut Scratch, side: Side) {
    if scratch.headers.part as u8 == Part::First as u8 {
        scratch.outcomes.begin();
        scratch.outcomes.key = key(&scratch.headers, side);
        store(tables, scratch);
    }
}

/// What limits said to a datagram's first fragment: its later ones get the same answers, for
/// netfilter asks once a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcomes {
    /// The answers, the first in the lowest bit.
    word: u32,
    /// How many there are, or were given again.
    count: u32,
    /// How many of them are the table raw's, which asks before the rest begins.
    early: u32,
    /// The first fragment as it came: it may be translated when limits are asked.
    key: FragmentKey,
    /// What the first fragment's destination became.
    pub destination: Endpoint,
}

impl Outcomes {
    #[inline(always)]
    fn begin(&mut self) {
        if self.early == 0 {
            self.word = 0;
        }
        self.count = self.early;
    }

    /// What follows goes on behind table raw's.
    #[inline(always)]
    pub(super) fn keep(&mut self) {
        self.early = self.count;
    }

    /// Table raw has asked nothing.
    #[inline(always)]
    pub(super) fn forget(&mut self) {
        self.early = 0;
    }

    /// The next answer that the first fragment got. The word has room for 32: what is asked more
    /// often fails.
    #[inline(always)]
    pub fn next(&mut self) -> bool {
        let count = self.count;
        self.count = count.wrapping_add(1);
        count < 32 && self.word >> (count & 31) & 1 != 0
    }
}

/// Keeps an answer that the packet got, if it is a first fragment.
#[inline(always)]
pub fn note_outcome<T: Tables>(tables: &T, scratch: &mut Scratch, held: bool) {
    if scratch.headers.part as u8 != Part::First as u8 {
        return;
    }
    let outcomes = &mut scratch.outcomes;
    let count = outcomes.count;
    outcomes.count = count.wrapping_add(1);
    if !held || count >= 32 {
        return;
    }
    outcomes.word |= 1 << (count & 31);
    if let Some(mut fragment) = tables.fragment(&outcomes.key) {
        fragment.limits = outcomes.word;
        tables.insert_fragment(&outcomes.key, &fragment);
    }
}

/// Keeps what a packet's destination became, if it is a first fragment that opens its flow.
#[inline(always)]
pub fn note_destination<T: Tables>(tables: &T, scratch: &Scratch) {
    if scratch.headers.part as u8 != Part::First as u8 {
        return;
    }
    if let Some(mut fragment) = tables.fragment(&scratch.outcomes.key) {
        fragment.flags |= TRANSLATED;
        fragment.destination = scratch.tracked.destination.address;
        fragment.destination_port = scratch.tracked.destination.port;
        tables.insert_fragment(&scratch.outcomes.key, &fragment);
    }
}

/// Keeps that the packet is dropped as its flow cannot be stored, if it is a first fragment.
#[inline(never)]
pub fn note_refusal<T: Tables>(tables: &T, scratch: &Scratch) {
    if scratch.headers.part as u8 != Part::First as u8 {
        return;
    }
    if let Some(mut fragment) = tables.fragment(&scratch.outcomes.key) {
        fragment.flags |= REFUSED;
        tables.insert_fragment(&scratch.outcomes.key, &fragment);
    }
}

#[inline(never)]
fn store<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let now = tables.now();
    let ahead = ahead(tables, &scratch.outcomes.key, now);
    scratch.headers.bytes = scratch.headers.bytes.wrapping_add(ahead);
    let (headers, tracked) = (&scratch.headers, &scratch.tracked);
    let fragment = Fragment {
        expires: now.wrapping_add(LIFETIME),
        ports: headers.key.ports,
        flow_ports: headers.flow_ports,
        tcp_flags: headers.tcp_flags,
        ct: tracked.ct,
        direction: tracked.direction,
        flags: if tracked.opens { OPENED } else { 0 },
        limits: scratch.outcomes.word,
        destination: [0; 4],
        destination_port: 0,
        reserved: [0; 2],
        ahead: 0,
    };
    tables.insert_fragment(&scratch.outcomes.key, &fragment);
}
