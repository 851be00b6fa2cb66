//! What `-m conntrack` may ask of connections, at random.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::option;
use proptest::prelude::*;

use super::Connection;
use crate::policy::arbitrary::{negatable, range};
use crate::policy::model::{Family, Prefix};

/// Anything but nothing.
pub(in crate::policy) fn connection(family: Family) -> impl Strategy<Value = Connection> {
    let address = || option::weighted(0.2, negatable(host(family)));
    let ports = || option::weighted(0.2, negatable(range()));
    let expires = any::<(u32, u32)>().prop_map(|(one, other)| (one.min(other), one.max(other)));
    (
        option::weighted(0.3, negatable(1..=255_u8)),
        [address(), address(), address(), address()],
        [ports(), ports(), ports(), ports()],
        option::weighted(0.3, negatable(0..16_u8)),
        option::weighted(0.3, negatable(expires)),
    )
        .prop_map(|(protocol, addresses, ports, status, expires)| Connection {
            protocol,
            addresses,
            ports,
            status,
            expires,
        })
        .prop_filter("says something", |connection| {
            *connection != Connection::default()
        })
}

/// An address under a prefix's mask, by which it need not be masked.
fn host(family: Family) -> impl Strategy<Value = Prefix> {
    (0..=128_u32, any::<u128>()).prop_map(move |(length, bits)| match family {
        Family::Ipv4 => Prefix {
            address: Ipv4Addr::from_bits(bits as u32).into(),
            mask: Ipv4Addr::from_bits(u32::MAX.checked_shl(length % 33).unwrap_or(0)).into(),
        },
        Family::Ipv6 => Prefix {
            address: Ipv6Addr::from_bits(bits).into(),
            mask: Ipv6Addr::from_bits(u128::MAX.checked_shl(length).unwrap_or(0)).into(),
        },
    })
}
