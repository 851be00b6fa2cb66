//! Connection tracking's records.

mod key;

pub use key::{FlowKey, FlowKey4};

use core::mem::offset_of;

use super::Addr;
use super::pod::{pod, pod_words};
use crate::MapCell;

/// A tracked flow, or ([`Flow::ALIAS`]) the name that replies to a translated flow bear.
///
/// What any packet needs comes first, the fast path included: behind the kernel's 48 bytes and an IPv4 key's 16,
/// an entry of `FLOWS4` has two more lines of a cache, of which the second is TCP's and what is rare.
///
/// Every mutable word is a [`MapCell`]: two CPUs that see packets of one flow at the same moment
/// may each lose the other's transition, as if one packet had been missed.
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// When the flow ends unless another packet comes.
    pub expires: MapCell<u64>,
    /// [`Flow::LOW_OPENED`] and its siblings.
    pub status: MapCell<u32>,
    /// The mark that rules give the flow and ask for. Of a [`Flow::TENTATIVE`] alias: what the identifier of an
    /// echo was before.
    pub mark: MapCell<u32>,
    /// [`Numbers`] of the [`Shortcut`]s that its packets take.
    pub shortcuts: MapCell<u64>,
    /// A primary's alias, an alias's primary; unused in a flow that is not translated. The
    /// alias's endpoints are those of the reply: the translated source and destination.
    pub other: FlowKey,
    /// TCP: state; kind of the last segment, and its direction; retransmissions; what an ignored SYN
    /// offered. One byte each from the lowest.
    pub tcp: MapCell<u32>,
    /// Interface whose address masquerades the flow, which ends with the address; or 0.
    pub nat_device: u32,
    /// TCP: sequence number of the last packet noted. UDP: see [`Flow::opened_at`].
    pub last_seq: MapCell<u32>,
    /// TCP: sequence number after the last packet noted. UDP: see [`Flow::opened_at`].
    pub last_end: MapCell<u32>,
    /// TCP: acknowledgement of the last packet noted.
    pub last_ack: MapCell<u32>,
    /// TCP: window of the last packet noted (low half), window scale of the last SYN that was ignored
    /// (high half).
    pub last_window: MapCell<u32>,
    /// What each side has sent: original direction, then reply. In an alias, and in the record of a
    /// source: links of the source's list (`datapath::sources`).
    pub sent: [Sent; 2],
}

/// Which shortcuts a flow's packets take: from the lowest bit, the word in `ACTIVE` under which they were noted, and
/// the number of each direction's, original direction first; or 0. One word, so that numbers noted under different
/// words in `ACTIVE` are never taken for each other's, whoever writes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The word in `ACTIVE`.
    #[inline(always)]
    pub const fn active(self) -> u32 {
        self.0 as u32
    }

    /// The number of a direction's shortcut, or 0.
    #[inline(always)]
    pub const fn of(self, reply: bool) -> u32 {
        (self.0 >> Self::shift(reply)) as u32 & 0xffff
    }

    /// The same under this word in `ACTIVE`, and with this number; the other direction's is forgotten if it was
    /// noted under another one.
    #[inline(always)]
    pub const fn with(self, active: u32, reply: bool, number: u32) -> Self {
        let kept = if self.active() == active {
            self.0 & !(0xffff << Self::shift(reply))
        } else {
            active as u64
        };
        Self(kept | (number as u64) << Self::shift(reply))
    }

    #[inline(always)]
    const fn shift(reply: bool) -> u32 {
        if reply { 48 } else { 32 }
    }
}

/// How packets in one direction of established flows come through FORWARD: what the next one needs to be sent
/// on without asking the chains. Flows share them, as there are few ways through a policy and many flows.
///
/// One is written once under a word in `ACTIVE`, and not again before that word has changed (`datapath::shortcut`).
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Shortcut {
    /// The word in `ACTIVE` under which it holds, or [`Shortcut::CLAIMED`] beside that while it is written.
    pub owner: MapCell<u64>,
    /// The interface that packets come in by.
    pub arrival: MapCell<u32>,
    /// The interface that they leave by.
    pub departure: MapCell<u32>,
    /// What [`Shortcut::pack`] packs.
    pub facts: MapCell<u32>,
    /// The counters that they are counted on.
    pub slots: [MapCell<u32>; SHORTCUT_SLOTS],
}

/// Counters that a shortcut through the chains may have.
pub const SHORTCUT_SLOTS: usize = 3;

impl Shortcut {
    /// In [`Shortcut::owner`]: somebody is writing it.
    pub const CLAIMED: u64 = 1 << 32;

    /// Packs the number of counters, the TCP flags that rules asked about, and their values.
    #[inline(always)]
    pub fn pack(count: u32, asked: u32, flags: u8) -> u32 {
        (asked & 0xff) | (flags as u32 & asked & 0xff) << 8 | count << 16
    }

    /// Whether the chains might see other TCP flags.
    #[inline(always)]
    pub fn differs(facts: u32, flags: u8) -> bool {
        (flags as u32 ^ facts >> 8) & facts & 0xff != 0
    }

    /// The number of counters.
    #[inline(always)]
    pub fn count(facts: u32) -> u32 {
        facts >> 16
    }
}

/// One direction of a TCP flow, in the terms of netfilter's `ip_ct_tcp_state`.
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sent {
    /// Highest sequence number sent, plus one.
    pub end: MapCell<u32>,
    /// Highest sequence number that the other side's window allows.
    pub max_end: MapCell<u32>,
    /// Largest window offered, in bytes; 0 before the first segment.
    pub max_window: MapCell<u32>,
    /// Highest acknowledgement sent.
    pub max_ack: MapCell<u32>,
    /// Window scale in the low byte, `datapath::window::option` above.
    pub flags: MapCell<u32>,
}

impl Flow {
    /// The key's lower endpoint opened the flow.
    pub const LOW_OPENED: u32 = 1;
    /// A packet came back.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Traffic both ways is proven: the flow is worth keeping.
    pub const ASSURED: u32 = 1 << 2;
    /// The source is translated.
    pub const SNAT: u32 = 1 << 3;
    /// Being deleted: a packet that still finds it takes it for absent.
    pub const DYING: u32 = 1 << 4;
    /// Both sides have not confirmed it: in the embryonic tier, or early in the confirmed one ([`Flow::EARLY`]).
    pub const EMBRYO: u32 = 1 << 5;
    /// Not a flow: the other name of the translated one in [`Flow::other`], whose replies bear it.
    /// `LOW_OPENED` says which endpoint the translated source is.
    pub const ALIAS: u32 = 1 << 6;
    /// In the list of its source's translated flows (`datapath::sources`).
    pub const LISTED: u32 = 1 << 7;
    /// Taken over from netfilter, which still translates it: a packet came that it had translated, or its
    /// destination is, and none since that it had not. Packets must reach it as they came.
    pub const FOREIGN: u32 = 1 << 16;
    /// The destination is translated.
    pub const DNAT: u32 = 1 << 8;
    /// The translated source is the lower endpoint of [`Flow::other`].
    pub const OTHER_LOW: u32 = 1 << 9;
    /// An alias of no flow yet: what a packet on its way was translated to
    /// (`datapath::transit`).
    pub const TENTATIVE: u32 = 1 << 10;
    /// A policy would not let it begin, and has cut it: beside [`Flow::DYING`], so that it is absent; but
    /// until its time is over, answers that still come belong to no flow and open none, and no segment
    /// picks it up in the middle.
    pub const REVOKED: u32 = 1 << 11;
    /// Beside [`Flow::SNAT`] and [`Flow::DNAT`]: all that changes of the source is the identifier of an
    /// echo, which was taken. netfilter changes it together with the destination, and takes the source for
    /// untranslated (`nf_nat_l4proto_unique_tuple`, net/netfilter/nf_nat_core.c).
    pub const RENAMED: u32 = 1 << 12;
    /// In one of the few places of the confirmed tier that are for outsiders' first flows
    /// ([`Hint::PLACE`]); [`Flow::EMBRYO`] goes with it.
    pub const EARLY: u32 = 1 << 13;
    /// Where two bits hold [`Flow::transit`].
    const TRANSIT_SHIFT: u32 = 20;
    /// Either end is translated, so that there is an alias.
    pub const TRANSLATED: u32 = Self::SNAT | Self::DNAT;

    /// The source that a flow with [`Flow::SNAT`] has after translation, its port (of a query, the identifier)
    /// in the second place.
    #[inline(always)]
    pub fn translated_source(&self) -> (&Addr, u16) {
        if self.status.get() & Self::OTHER_LOW != 0 {
            (&self.other.low, self.other.low_port())
        } else {
            (&self.other.high, self.other.high_port())
        }
    }

    /// The destination that a flow with an alias has after translation.
    #[inline(always)]
    pub fn translated_destination(&self) -> (Addr, u16) {
        if self.status.get() & Self::OTHER_LOW != 0 {
            (self.other.high, self.other.high_port())
        } else {
            (self.other.low, self.other.low_port())
        }
    }

    /// See [`Flow::shortcuts`].
    #[inline(always)]
    pub fn numbers(&self) -> Numbers {
        Numbers(self.shortcuts.get())
    }

    /// Which of the names of [`FlowKey::TRANSIT`] its packets bear, if both ends are translated.
    #[inline(always)]
    pub fn transit(&self) -> u8 {
        (self.status.get() >> Self::TRANSIT_SHIFT) as u8 & (FlowKey::TRANSITS - 1)
    }

    /// [`Flow::transit`] in a status.
    #[inline(always)]
    pub fn transit_status(transit: u8) -> u32 {
        (transit as u32) << Self::TRANSIT_SHIFT
    }

    /// When a flow of UDP was opened, nanoseconds.
    #[inline(always)]
    pub fn opened_at(&self) -> u64 {
        (self.last_end.get() as u64) << 32 | self.last_seq.get() as u64
    }

    /// Sets [`Flow::opened_at`].
    #[inline(always)]
    pub fn set_opened_at(&self, time: u64) {
        self.last_seq.set(time as u32);
        self.last_end.set((time >> 32) as u32);
    }

    /// Whether the flow found under a name is another one's alias.
    #[inline(always)]
    pub fn is_alias(&self) -> bool {
        self.status.get() & Self::ALIAS != 0
    }
}

/// What the keys of one hash have in the flow tables. It may say too much, never too little.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Hint {
    /// Low half: how many flows and aliases the confirmed tier has. High half: when the last one of
    /// the embryonic tier ends, by the coarse clock, in units of 2^30 nanoseconds (a division would
    /// cost much), and above that [`Hint::PLACE`].
    pub word: MapCell<u64>,
}

impl Hint {
    /// In the first of four hints: an outsider's first flow has the one place in the confirmed tier that
    /// there is for the keys of all four. Who sets it has the place, and whoever removes the flow, or
    /// sees it answered, gives it back; so there are never more of such flows than places, whatever
    /// comes, and however rarely the tables are swept.
    pub const PLACE: u64 = 1 << 63;
    /// There may be a flow of the second name ([`FlowKey::SECOND`]). It stays: there are few of them.
    pub const SECOND: u64 = 1 << 62;

    /// The word of what is known to be in the confirmed tier, if it is anywhere.
    pub const CONFIRMED: u64 = 1;

    /// The time of a word.
    #[inline(always)]
    fn time(word: u64) -> u64 {
        (word & !(Self::PLACE | Self::SECOND)) >> 32
    }

    /// What it has to say besides of a flow of this kind of key.
    #[inline(always)]
    pub fn of_kind(kind: u8) -> u64 {
        if kind == FlowKey::SECOND {
            Self::SECOND
        } else {
            0
        }
    }

    /// Whether, by a hint's word, there may be a flow of this kind of key.
    #[inline(always)]
    pub fn may_have_kind(word: u64, kind: u8) -> bool {
        kind != FlowKey::SECOND || word & Self::SECOND != 0
    }

    /// Whether the confirmed tier may have one.
    #[inline(always)]
    pub fn may_have_confirmed(word: u64) -> bool {
        word as u32 != 0
    }

    /// Whether the embryonic tier may have one that is alive.
    #[inline(always)]
    pub fn may_have_embryo(word: u64, now: impl FnOnce() -> u64) -> bool {
        let time = Self::time(word);
        // Most often there never was one, and nobody need look at the clock.
        time != 0 && time >= now() >> UNIT
    }

    /// Whether a word says that there is nothing.
    #[inline(always)]
    pub fn is_idle(word: u64, now: u64) -> bool {
        let time = Self::time(word);
        word as u32 == 0 && word & Self::SECOND == 0 && time < now >> UNIT
    }

    /// What is to be added to the word so that it says that an embryonic flow lives until then, in
    /// nanoseconds. When two CPUs do so at once, the sum is too late a time, and never too early.
    #[inline(always)]
    pub fn until(&self, expires: u64) -> u64 {
        let (until, old) = (expires >> UNIT, Self::time(self.word.get()));
        if old < until { (until - old) << 32 } else { 0 }
    }
}

/// About a second.
const UNIT: u32 = 30;

/// Names an IP datagram under reassembly as one hook sees it (RFC 791 3.2, RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// The datagram's identification.
    pub id: u32,
    /// Protocol number.
    pub protocol: u8,
    /// 0 at ingress, 1 at egress, or [`FragmentKey::LINK`].
    pub hook: u8,
    /// [`Family`] as a number.
    pub family: u8,
    /// Zero, but for [`FragmentKey::MARK`].
    pub reserved: u8,
}

impl FragmentKey {
    /// Not a datagram's, but a sender's name: its address, and in `id` the interface that it sends
    /// to. The record's ports are its link-layer address.
    pub const LINK: u8 = 2;
    /// Not a datagram's, but the name of a flow that is not stored yet: what its first packet bears, the
    /// ports in `id`, the zone in what the other bytes have room for. The record's ports are its mark.
    pub const MARK: u8 = 3;
}

/// What later fragments borrow from the first: the transport header that they lack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// When it is forgotten.
    pub expires: u64,
    /// Source port (ICMP: type) in the high half, destination port (ICMP: code) in the low.
    pub ports: u32,
    /// The flow's ports, as [`FlowKey`] has them.
    pub flow_ports: u32,
    /// TCP flags.
    pub tcp_flags: u8,
    /// The packet's ct bits.
    pub ct: u8,
    /// The packet's direction: 0 original, 1 reply, 2 none.
    pub direction: u8,
    /// Bit 0: the first fragment traversed the nat chains. Bit 1: its destination was translated. Bit 2: it was
    /// dropped, as its flow could not be stored. Bit 3: it has not come yet.
    pub flags: u8,
    /// What limits said to the first fragment, the first answer in the lowest bit.
    pub limits: u32,
    /// What the destination became before routing, if [`Fragment::flags`] says so.
    pub destination: Addr,
    /// The same for the port.
    pub destination_port: u16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Bytes of those fragments that came before the first one.
    pub ahead: u32,
}

pod! {
    FragmentKey { size: 40, fields: [Addr, Addr, u32, u8, u8, u8, u8] }
    Fragment { size: 48, fields: [u64, u32, u32, u8, u8, u8, u8, u32, Addr, u16, [u8; 2], u32] }
}

pod_words! {
    Flow {
        words: FLOW_WORDS,
        fields: [u64, u32, u32, u64, FlowKey, u32, u32, u32, u32, u32, u32, [u32; 5], [u32; 5]],
    }
}

pod_words! {
    Shortcut { words: SHORTCUT_WORDS, fields: [u64, u32, u32, u32, [u32; SHORTCUT_SLOTS]] }
}

const _: () = assert!(
    offset_of!(Flow, tcp) == 64 && size_of::<Flow>() == 128,
    "each of a flow's two parts is a line of a cache"
);

/// [`Flow`] as plain words: what user space reads from the flow maps.
pub const FLOW_WORDS: usize = 16;
/// [`Shortcut`] as plain words.
pub const SHORTCUT_WORDS: usize = 4;
