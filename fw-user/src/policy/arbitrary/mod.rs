//! Policies at random, over everything that the rule format can say: for the property tests of
//! the parser and whoever else needs many different policies.

mod matches;
mod targets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) use matches::{any_ports, range};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use self::matches::{at_hook, protocol_and_matches};
use self::targets::{fitting, target};
use super::ids::TableName;
use super::model::{
    Chain, ChainPolicy, Counters, Family, InterfacePattern, Negatable, Origin, Policy, Prefix,
    Rule, Ruleset, Table,
};
use super::packet_match::arbitrary as packet;

/// A policy that the loader would accept: for one IP version or both, with and without nat, with
/// chains that call one another without loops.
pub fn policy() -> impl Strategy<Value = Policy> {
    let ruleset = |family: Family| {
        let filter = option::weighted(0.9, table(family, TableName::Filter));
        let nat = option::of(table(family, TableName::Nat));
        let mangle = option::weighted(0.3, table(family, TableName::Mangle));
        let raw = option::weighted(0.2, table(family, TableName::Raw));
        let security = option::weighted(0.1, table(family, TableName::Security));
        (filter, nat, mangle, raw, security).prop_map(|(filter, nat, mangle, raw, security)| {
            Ruleset {
                filter,
                nat,
                mangle,
                raw,
                security,
            }
        })
    };
    (
        option::of(ruleset(Family::Ipv4)),
        option::of(ruleset(Family::Ipv6)),
    )
        .prop_filter_map("lists have one mask", |(ipv4, ipv6)| {
            let mut policy = Policy {
                ipv4,
                ipv6,
                ..Policy::default()
            };
            policy.gather_lists().is_ok().then_some(policy)
        })
}

/// The names of the chains of one's own, each of which may call those after it.
const OWN_CHAINS: [&str; 3] = ["alpha", "beta-2", "gamma_x"];

fn table(family: Family, name: TableName) -> impl Strategy<Value = Table> {
    let builtin: Vec<_> = name
        .builtin_chains()
        .iter()
        .map(|chain| base_chain(family, name, chain).boxed())
        .collect();
    let own = OWN_CHAINS.iter().enumerate().map(|(index, chain)| {
        vec(rule(family, name, Place::Own(index)), 0..4)
            .prop_map(|rules| Chain {
                name: (*chain).into(),
                policy: None,
                rules,
            })
            .boxed()
    });
    let chains: Vec<_> = builtin.into_iter().chain(own).collect();
    chains.prop_map(|chains| Table { chains })
}

fn base_chain(
    family: Family,
    table: TableName,
    name: &'static str,
) -> impl Strategy<Value = Chain> {
    let rules = vec(rule(family, table, Place::Base(name)), 0..6);
    (rules, any::<bool>(), counters()).prop_map(move |(rules, accept, counters)| {
        let policy = ChainPolicy {
            accept,
            counters: Some(counters),
            origin: None,
        };
        Chain {
            name: name.into(),
            policy: Some(policy),
            rules,
        }
    })
}

fn counters() -> impl Strategy<Value = Counters> {
    prop_oneof![Just((0, 0)), any::<(u64, u64)>()]
        .prop_map(|(packets, bytes)| Counters { packets, bytes })
}

/// Where a rule stands, which decides what it may say.
#[derive(Clone, Copy)]
enum Place {
    Base(&'static str),
    Own(usize),
}

/// A rule for a place.
fn rule(family: Family, table: TableName, place: Place) -> impl Strategy<Value = Rule> {
    let chain = match place {
        Place::Base(name) => name,
        Place::Own(_) => "",
    };
    let has_in = !matches!(chain, "OUTPUT" | "POSTROUTING");
    let has_out = !matches!(chain, "INPUT" | "PREROUTING");
    let interface = |may: bool| {
        option::weighted(0.3, negatable(interface()))
            .prop_map(move |pattern| pattern.filter(|_| may))
    };
    let address = || option::weighted(0.3, negatable(prefix(family)));
    let parts = (
        address(),
        address(),
        interface(has_in),
        interface(has_out),
        (
            packet::fragment(family),
            protocol_and_matches(family),
            at_hook(chain),
        ),
        target(family, table, place),
        counters(),
    );
    parts.prop_map(
        move |(
            source,
            destination,
            in_interface,
            out_interface,
            (fragment, (protocol, matches), own),
            target,
            counters,
        )| {
            let matches: Vec<_> = fragment.into_iter().chain(matches).chain(own).collect();
            Rule {
                // Masks and patterns that match everything are no matches.
                source: source.filter(|prefix| prefix.not || !prefix.value.mask.is_unspecified()),
                destination: destination
                    .filter(|prefix| prefix.not || !prefix.value.mask.is_unspecified()),
                in_interface: in_interface.filter(|pattern| pattern.not || pattern.value.0 != "+"),
                out_interface: out_interface
                    .filter(|pattern| pattern.not || pattern.value.0 != "+"),
                protocol,
                target: fitting(target, protocol, family, &matches),
                matches,
                counters: Some(counters),
                origin: Origin { file: 0, line: 0 },
            }
        },
    )
}

pub(crate) fn negatable<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Negatable<T>> {
    (prop::bool::weighted(0.2), value).prop_map(|(not, value)| Negatable { not, value })
}

fn interface() -> impl Strategy<Value = InterfacePattern> {
    prop_oneof![
        Just("lo".to_owned()),
        Just("eth0".to_owned()),
        Just("docker0".to_owned()),
        "[a-z][a-z0-9.:-]{0,13}\\+?",
        Just("+".to_owned()),
    ]
    .prop_map(InterfacePattern)
}

fn prefix(family: Family) -> BoxedStrategy<Prefix> {
    match family {
        Family::Ipv4 => {
            let length =
                (0..=32_u32).prop_map(|length| u32::MAX.checked_shl(32 - length).unwrap_or(0));
            let mask = prop_oneof![8 => length, 1 => any::<u32>()];
            (any::<u32>(), mask)
                .prop_map(|(address, mask)| Prefix {
                    address: IpAddr::V4(Ipv4Addr::from_bits(address & mask)),
                    mask: IpAddr::V4(Ipv4Addr::from_bits(mask)),
                })
                .boxed()
        }
        Family::Ipv6 => {
            let length =
                (0..=128_u32).prop_map(|length| u128::MAX.checked_shl(128 - length).unwrap_or(0));
            let mask = prop_oneof![8 => length, 1 => any::<u128>()];
            // Addresses with runs of zeros, which their text leaves out.
            let address = (any::<u128>(), any::<u8>(), any::<u8>())
                .prop_map(|(bits, left, right)| bits >> (left % 128) << (right % 128));
            (address, mask)
                .prop_map(|(address, mask)| Prefix {
                    address: IpAddr::V6(Ipv6Addr::from_bits(address & mask)),
                    mask: IpAddr::V6(Ipv6Addr::from_bits(mask)),
                })
                .boxed()
        }
    }
}
