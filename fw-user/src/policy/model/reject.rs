//! REJECT.

use serde::{Deserialize, Serialize};

use super::Family;

/// How a refused packet is answered: `-j REJECT --reject-with`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reject {
    /// `tcp-reset`.
    TcpReset,
    /// "Destination unreachable" with this code: ICMP's type 3, ICMPv6's type 1.
    Unreachable(u8),
}

/// The answers of an IP version: iptables' name, its short name, and what it means.
type Name = (&'static str, &'static str, Reject);

/// The order matters: what is written is the first name that begins with it
/// (extensions/libipt_REJECT.c).
const IPV4: &[Name] = &[
    (
        "icmp-net-unreachable",
        "net-unreach",
        Reject::Unreachable(0),
    ),
    (
        "icmp-host-unreachable",
        "host-unreach",
        Reject::Unreachable(1),
    ),
    (
        "icmp-proto-unreachable",
        "proto-unreach",
        Reject::Unreachable(2),
    ),
    (
        "icmp-port-unreachable",
        "port-unreach",
        Reject::Unreachable(3),
    ),
    ("icmp-net-prohibited", "net-prohib", Reject::Unreachable(9)),
    (
        "icmp-host-prohibited",
        "host-prohib",
        Reject::Unreachable(10),
    ),
    ("tcp-reset", "tcp-rst", Reject::TcpReset),
    (
        "icmp-admin-prohibited",
        "admin-prohib",
        Reject::Unreachable(13),
    ),
];

/// See [`IPV4`] (extensions/libip6t_REJECT.c).
const IPV6: &[Name] = &[
    ("icmp6-no-route", "no-route", Reject::Unreachable(0)),
    (
        "icmp6-adm-prohibited",
        "adm-prohibited",
        Reject::Unreachable(1),
    ),
    (
        "icmp6-addr-unreachable",
        "addr-unreach",
        Reject::Unreachable(3),
    ),
    (
        "icmp6-port-unreachable",
        "port-unreach",
        Reject::Unreachable(4),
    ),
    ("tcp-reset", "tcp-reset", Reject::TcpReset),
    ("icmp6-policy-fail", "policy-fail", Reject::Unreachable(5)),
    ("icmp6-reject-route", "reject-route", Reject::Unreachable(6)),
];

impl Reject {
    /// What a rule without `--reject-with` answers: "port unreachable".
    pub const fn default_of(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Unreachable(3),
            Family::Ipv6 => Self::Unreachable(4),
        }
    }

    /// The answers of an IP version.
    pub fn all(family: Family) -> impl Iterator<Item = Self> {
        names(family).iter().map(|(_, _, answer)| *answer)
    }

    /// Their names.
    pub fn names(family: Family) -> impl Iterator<Item = &'static str> {
        names(family).iter().map(|(name, ..)| *name)
    }

    /// The name that iptables-save prints.
    pub fn name(self, family: Family) -> &'static str {
        let found = names(family).iter().find(|(_, _, answer)| *answer == self);
        found.map_or("", |(name, ..)| name)
    }

    /// What a name stands for; iptables takes any beginning of one, in any case.
    pub fn from_name(text: &str, family: Family) -> Option<Self> {
        let begins = |name: &str| {
            let beginning = name.get(..text.len());
            beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(text))
        };
        let mut names = names(family).iter();
        names
            .find(|(name, short, _)| begins(name) || begins(short))
            .map(|(_, _, answer)| *answer)
    }
}

fn names(family: Family) -> &'static [Name] {
    match family {
        Family::Ipv4 => IPV4,
        Family::Ipv6 => IPV6,
    }
}
