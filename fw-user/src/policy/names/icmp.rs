//! Names of ICMP and ICMPv6 types, as iptables knows them.

use crate::policy::model::{Family, IcmpType};

/// What a name of an ICMP type stands for.
pub enum Named {
    /// A type, with or without a code.
    Type(IcmpType),
    /// The beginning of several names: the first two of them.
    Ambiguous(&'static str, &'static str),
    /// No such name.
    Unknown,
}

/// Looks a name up. As in iptables, case does not matter and the beginning of a name will do.
pub fn icmp_type(name: &str, family: Family) -> Named {
    let mut rows = table(family).iter().filter(|row| {
        row.0
            .get(..name.len())
            .is_some_and(|beginning| beginning.eq_ignore_ascii_case(name))
    });
    match (rows.next(), rows.next()) {
        (Some(row), None) => Named::Type(row_type(row)),
        (Some(first), Some(second)) => Named::Ambiguous(first.0, second.0),
        (None, _) => Named::Unknown,
    }
}

/// What a whole name stands for in an IP version.
pub fn named_icmp_type(name: &str, family: Family) -> Option<IcmpType> {
    let mut rows = table(family).iter();
    rows.find(|row| row.0.eq_ignore_ascii_case(name))
        .map(row_type)
}

/// The first name of a type.
pub fn icmp_type_name(kind: IcmpType, family: Family) -> Option<&'static str> {
    let mut rows = table(family).iter();
    rows.find(|row| row_type(row) == kind).map(|row| row.0)
}

/// All names of an IP version's ICMP types, for suggestions.
pub fn icmp_names(family: Family) -> impl Iterator<Item = &'static str> {
    table(family).iter().map(|row| row.0)
}

/// Name, type, code; no code means every code.
type Row = (&'static str, u8, Option<u8>);

/// IPv4's type 255 is iptables' way to say "any type" (and any code).
pub(crate) const ANY_V4: u8 = 255;

fn row_type(row: &Row) -> IcmpType {
    let kind = (row.1 != ANY_V4).then_some(row.1);
    IcmpType {
        kind,
        codes: row.2.map_or((0, u8::MAX), |code| (code, code)),
    }
}

fn table(family: Family) -> &'static [Row] {
    match family {
        Family::Ipv4 => ICMP,
        Family::Ipv6 => ICMPV6,
    }
}

#[rustfmt::skip]
const ICMP: &[Row] = &[
    ("any", ANY_V4, None),
    ("echo-reply", 0, None), ("pong", 0, None),
    ("destination-unreachable", 3, None),
    ("network-unreachable", 3, Some(0)), ("host-unreachable", 3, Some(1)),
    ("protocol-unreachable", 3, Some(2)), ("port-unreachable", 3, Some(3)),
    ("fragmentation-needed", 3, Some(4)), ("source-route-failed", 3, Some(5)),
    ("network-unknown", 3, Some(6)), ("host-unknown", 3, Some(7)),
    ("network-prohibited", 3, Some(9)), ("host-prohibited", 3, Some(10)),
    ("TOS-network-unreachable", 3, Some(11)), ("TOS-host-unreachable", 3, Some(12)),
    ("communication-prohibited", 3, Some(13)), ("host-precedence-violation", 3, Some(14)),
    ("precedence-cutoff", 3, Some(15)),
    ("source-quench", 4, None),
    ("redirect", 5, None),
    ("network-redirect", 5, Some(0)), ("host-redirect", 5, Some(1)),
    ("TOS-network-redirect", 5, Some(2)), ("TOS-host-redirect", 5, Some(3)),
    ("echo-request", 8, None), ("ping", 8, None),
    ("router-advertisement", 9, None), ("router-solicitation", 10, None),
    ("time-exceeded", 11, None), ("ttl-exceeded", 11, None),
    ("ttl-zero-during-transit", 11, Some(0)), ("ttl-zero-during-reassembly", 11, Some(1)),
    ("parameter-problem", 12, None),
    ("ip-header-bad", 12, Some(0)), ("required-option-missing", 12, Some(1)),
    ("timestamp-request", 13, None), ("timestamp-reply", 14, None),
    ("address-mask-request", 17, None), ("address-mask-reply", 18, None),
];

#[rustfmt::skip]
const ICMPV6: &[Row] = &[
    ("destination-unreachable", 1, None),
    ("no-route", 1, Some(0)), ("communication-prohibited", 1, Some(1)),
    ("beyond-scope", 1, Some(2)), ("address-unreachable", 1, Some(3)),
    ("port-unreachable", 1, Some(4)), ("failed-policy", 1, Some(5)),
    ("reject-route", 1, Some(6)),
    ("packet-too-big", 2, None),
    ("time-exceeded", 3, None), ("ttl-exceeded", 3, None),
    ("ttl-zero-during-transit", 3, Some(0)), ("ttl-zero-during-reassembly", 3, Some(1)),
    ("parameter-problem", 4, None),
    ("bad-header", 4, Some(0)), ("unknown-header-type", 4, Some(1)),
    ("unknown-option", 4, Some(2)),
    ("echo-request", 128, None), ("ping", 128, None),
    ("echo-reply", 129, None), ("pong", 129, None),
    ("router-solicitation", 133, None), ("router-advertisement", 134, None),
    ("neighbour-solicitation", 135, None), ("neighbor-solicitation", 135, None),
    ("neighbour-advertisement", 136, None), ("neighbor-advertisement", 136, None),
    ("redirect", 137, None),
];
