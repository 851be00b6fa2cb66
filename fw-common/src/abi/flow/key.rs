//! Names of flows, and where hints about them are.

use crate::abi::pod::pod;
use crate::abi::{Addr, Family};

/// Names a flow: its two endpoints, the lower one first, so that both directions have one key.
///
/// ICMP queries are tracked as if from port `identifier` to port `type << 8 | code` of the
/// request (netfilter's tuple holds the same three, net/netfilter/nf_conntrack_proto_icmp.c).
///
/// It is made of words, and aligned so that it is copied in the largest: what is written in pieces and read at once
/// a moment later has to leave the processor's store buffer first.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Address of the lower endpoint.
    pub low: Addr,
    /// Address of the higher endpoint.
    pub high: Addr,
    /// Both ports: [`FlowKey::ports_of`].
    pub ports: u32,
    /// Protocol, form and zone: [`FlowKey::rest_of`].
    pub rest: u32,
}

impl FlowKey {
    /// [`FlowKey::ports`] of the ports of the lower and of the higher endpoint.
    #[inline(always)]
    pub const fn ports_of(low: u16, high: u16) -> u32 {
        low as u32 | (high as u32) << 16
    }

    /// [`FlowKey::rest`] of a protocol number, of a [`FlowKey::form`], and of the zone that the flow is in: flows
    /// of two zones have nothing in common, whatever their endpoints (`nf_conntrack_zone`,
    /// include/net/netfilter/nf_conntrack_zones.h).
    #[inline(always)]
    pub const fn rest_of(protocol: u8, form: u8, zone: u16) -> u32 {
        protocol as u32 | (form as u32) << 8 | (zone as u32) << 16
    }

    /// Port of the lower endpoint.
    #[inline(always)]
    pub const fn low_port(&self) -> u16 {
        self.ports as u16
    }

    /// Port of the higher endpoint.
    #[inline(always)]
    pub const fn high_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// Protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.rest as u8
    }

    /// [`FlowKey::kind`], and [`FlowKey::V6`].
    #[inline(always)]
    pub const fn form(&self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// The zone that the flow is in.
    #[inline(always)]
    pub const fn zone(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// In [`FlowKey::form`]: the addresses are IPv6's.
    pub const V6: u8 = 1 << 7;
    /// The name that is looked up first.
    pub const FIRST: u8 = 0;
    /// A second name of the same two endpoints. A translated flow bears different names in its two
    /// directions, so that another flow may bear the same endpoints in the other direction.
    pub const SECOND: u8 = 1;
    /// Not a flow's, but a source's name: its endpoint is the lower one, the higher one is zero
    /// (`datapath::sources`).
    pub const SOURCE: u8 = 2;
    /// The first of [`FlowKey::TRANSITS`] names for the endpoints of a packet whose destination is
    /// translated, and whose source is still to be: what it bears while the stack forwards it
    /// (`datapath::transit`).
    pub const TRANSIT: u8 = 4;
    /// See [`FlowKey::TRANSIT`].
    pub const TRANSITS: u8 = 4;

    /// Where [`FlowKey::rest`] has the form.
    const FORM: u32 = 0xff << 8;

    /// Becomes another key. Word by word: for more at once, the compiler calls a function, whose
    /// stack may be the one too many.
    #[inline(always)]
    pub fn set(&mut self, other: &Self) {
        let ([a, b, c, d], [e, f, g, h]) = (other.low, other.high);
        self.low = [a, b, c, d];
        self.high = [e, f, g, h];
        self.ports = other.ports;
        self.rest = other.rest;
    }

    /// Becomes another key of the same family, protocol and zone, as a flow's and its alias's are.
    #[inline(always)]
    pub fn set_alike(&mut self, other: &Self) {
        (self.low[0], self.high[0]) = (other.low[0], other.high[0]);
        if !self.is_v4() {
            let ([_, a, b, c], [_, d, e, f]) = (other.low, other.high);
            self.low = [self.low[0], a, b, c];
            self.high = [self.high[0], d, e, f];
        }
        self.ports = other.ports;
        self.rest = other.rest;
    }

    /// Whether both endpoints are the same.
    #[inline(always)]
    pub fn is_to_itself(&self) -> bool {
        self.low[0] == self.high[0] && self.low_port() == self.high_port() && self.low == self.high
    }

    /// Whether the other key's endpoints are the same.
    #[inline(always)]
    pub fn is_between_those_of(&self, other: &Self) -> bool {
        self.ports == other.ports
            && self.protocol() == other.protocol()
            && self.low == other.low
            && self.high == other.high
    }

    /// Whether this is an IPv4 flow.
    pub const fn is_v4(&self) -> bool {
        self.form() & Self::V6 == 0
    }

    /// [`FlowKey::FIRST`] or one of its siblings.
    #[inline(always)]
    pub const fn kind(&self) -> u8 {
        self.form() & !Self::V6
    }

    /// Becomes a name of another kind.
    #[inline(always)]
    pub const fn set_kind(&mut self, kind: u8) {
        let form = self.form() & Self::V6 | kind;
        self.rest = self.rest & !Self::FORM | (form as u32) << 8;
    }

    /// [`FlowKey::form`] of a kind and a family.
    #[inline(always)]
    pub const fn form_of(kind: u8, family: Family) -> u8 {
        (family as u8) << 7 | kind
    }

    /// A hash of the key. It needs no secret: keys that collide only make a look-up necessary. Both
    /// names of the same endpoints have one, so that what says no to the first says so to both.
    #[inline(always)]
    pub fn hint(&self) -> u32 {
        const A: u64 = 0x9e37_79b9_7f4a_7c15;
        const B: u64 = 0xbf58_476d_1ce4_e5b9;
        let rest = (self.ports as u64) << 32 | (self.rest & !Self::FORM) as u64;
        let mut hash = ((self.low[0] as u64) << 32 | self.high[0] as u64).wrapping_mul(A) ^ rest;
        if !self.is_v4() {
            for word in 1..4 {
                let pair = (self.low[word] as u64) << 32 | self.high[word] as u64;
                hash = (hash ^ hash >> 29 ^ pair).wrapping_mul(A);
            }
        }
        hash = (hash ^ hash >> 32).wrapping_mul(B);
        (hash >> 48) as u32
    }

    /// The number of the hint that says whether the key's place is taken ([`super::Hint::PLACE`]). It is in the
    /// same line of a cache as the key's own.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        self.hint() & !3
    }
}

/// [`FlowKey`] without the words that IPv4 leaves zero: the key of the IPv4 maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey4 {
    /// First word of [`FlowKey::low`].
    pub low: u32,
    /// First word of [`FlowKey::high`].
    pub high: u32,
    /// As in [`FlowKey`].
    pub ports: u32,
    /// As in [`FlowKey`].
    pub rest: u32,
}

impl From<&FlowKey> for FlowKey4 {
    #[inline(always)]
    fn from(key: &FlowKey) -> Self {
        Self {
            low: key.low[0],
            high: key.high[0],
            ports: key.ports,
            rest: key.rest,
        }
    }
}

impl From<&FlowKey4> for FlowKey {
    fn from(key: &FlowKey4) -> Self {
        Self {
            low: [key.low, 0, 0, 0],
            high: [key.high, 0, 0, 0],
            ports: key.ports,
            rest: key.rest,
        }
    }
}

pod! {
    FlowKey { size: 40, fields: [Addr, Addr, u32, u32] }
    FlowKey4 { size: 16, fields: [u32, u32, u32, u32] }
}
