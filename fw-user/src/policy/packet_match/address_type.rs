//! `-m addrtype`: of what kind a packet's addresses are.

use serde::{Deserialize, Serialize};

use crate::policy::model::{Family, Negatable};

/// `-m addrtype`; at least one part is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressType {
    /// `--src-type`: a bit for each of [`AddressType::NAMES`].
    pub source: Option<Negatable<u16>>,
    /// `--dst-type`.
    pub destination: Option<Negatable<u16>>,
}

impl AddressType {
    /// The types by number (linux/rtnetlink.h), as iptables calls them.
    pub const NAMES: [&str; 12] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
        "THROW",
        "NAT",
        "XRESOLVE",
    ];
    /// One of this host's own.
    pub(crate) const LOCAL: u16 = 1 << 2;
    const ANYCAST: u16 = 1 << 4;

    /// The types as a list with commas.
    pub(crate) fn list(types: u16) -> String {
        let names = Self::NAMES.iter().enumerate();
        let names = names.filter(|(number, _)| types >> number & 1 != 0);
        let names: Vec<_> = names.map(|(_, name)| *name).collect();
        names.join(",")
    }

    /// Whether an address must be of all these types and not of any: an IPv6 address has more than
    /// one, and `match_type6` (net/netfilter/xt_addrtype.c) asks for them one after the other, but for
    /// what the way to it is in one question.
    pub(crate) fn asks_for_all(types: u16, family: Family) -> bool {
        family == Family::Ipv6 && types != Self::LOCAL | Self::ANYCAST
    }

    /// Whether types are asked for that make two questions, of which one has two answers: what IPv6's
    /// programs do not compare.
    pub(crate) fn is_two_questions(types: u16) -> bool {
        let ways = Self::LOCAL | Self::ANYCAST;
        types & ways == ways && types != ways
    }
}
