//! Random policies and packets. Values come from small pools, so that rules and packets meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_user::policy::TableName;
use fw_user::policy::model::{
    Chain, ChainPolicy, Conntrack, CtDirection, CtStates, Family, IcmpType, InterfacePattern, Log,
    Masquerade, Match, Multiport, Negatable, Nflog, Origin, Policy, PortRange, Ports, Prefix,
    Redirect, Reject, Rule, Ruleset, Table, Target, Tcp, TcpFlags, Translation, WhichPort,
};
use proptest::collection::vec;
use proptest::option::{self, of};
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::Seen;

/// The interfaces of the simulated host.
pub const INTERFACES: [&str; 5] = ["lo", "eth0", "eth1", "docker0", "e"];

const PATTERNS: [&str; 8] = ["lo", "eth0", "eth1", "docker0", "eth+", "e+", "+", "wlan0"];
const PORTS: [u16; 11] = [0, 1, 7, 8, 22, 80, 81, 443, 1023, 1024, 65535];
const ICMP_NUMBERS: [u8; 6] = [0, 3, 8, 128, 135, 255];
const PROTOCOLS: [u8; 9] = [1, 6, 17, 33, 47, 58, 132, 136, 255];
/// Protocols whose ports multiport reads although they have no match of their own.
const PORT_PROTOCOLS: [u8; 3] = [33, 132, 136];

/// A policy of any shape: families and tables present or not.
pub fn policy() -> impl Strategy<Value = Policy> {
    (
        of_mostly(ruleset(Family::Ipv4)),
        of_mostly(ruleset(Family::Ipv6)),
    )
        .prop_map(|(ipv4, ipv6)| Policy {
            ipv4,
            ipv6,
            files: vec!["generated".into()],
            toml: None,
            sets: Vec::new(),
            lists: Vec::new(),
            tracking: Default::default(),
        })
}

fn of_mostly<S: Strategy>(strategy: S) -> impl Strategy<Value = Option<S::Value>> {
    option::weighted(0.9, strategy)
}

fn ruleset(family: Family) -> impl Strategy<Value = Ruleset> {
    (
        of_mostly(table(family, TableName::Filter)),
        of_mostly(table(family, TableName::Nat)),
    )
        .prop_map(|(filter, nat)| Ruleset {
            filter,
            nat,
            ..Ruleset::default()
        })
}

/// User chains jump to later ones only, so that there are no loops.
fn table(family: Family, name: TableName) -> impl Strategy<Value = Table> {
    (0..4usize).prop_flat_map(move |user_chains| {
        let base = name.builtin_chains().iter().map(move |base| {
            (any::<bool>(), rules(family, 0..user_chains))
                .prop_map(|(accept, rules)| Chain {
                    name: (*base).to_owned(),
                    policy: Some(ChainPolicy {
                        accept,
                        counters: None,
                        origin: None,
                    }),
                    rules,
                })
                .boxed()
        });
        let user = (0..user_chains).map(move |number| {
            rules(family, number + 1..user_chains)
                .prop_map(move |rules| Chain {
                    name: chain_name(number),
                    policy: None,
                    rules,
                })
                .boxed()
        });
        let chains: Vec<_> = base.chain(user).collect();
        chains.prop_map(move |mut chains| {
            if name == TableName::Nat {
                chains.iter_mut().for_each(fit_into_nat);
            }
            Table { chains }
        })
    })
}

/// The nat table takes no REJECT, each of its chains translates one end only, and ports are for protocols
/// that have them.
fn fit_into_nat(chain: &mut Chain) {
    for rule in &mut chain.rules {
        let own = rule.target.nat_chains();
        let fits = own.is_none_or(|(_, chains)| chains.contains(&chain.name.as_str()));
        let has_ports = matches!(
            &rule.protocol,
            Some(Negatable {
                not: false,
                value: 6 | 17 | 132
            })
        );
        match &mut rule.target {
            Target::Reject(_) => rule.target = Target::Drop,
            target if !fits => {
                let destination = matches!(chain.name.as_str(), "PREROUTING" | "OUTPUT");
                *target = match target {
                    Target::Snat(to) if destination => Target::Dnat(*to),
                    Target::Dnat(to) if chain.policy.is_some() => Target::Snat(*to),
                    _ => Target::Accept,
                };
            }
            _ => {}
        }
        match &mut rule.target {
            Target::Dnat(to) | Target::Snat(to) if !has_ports => to.ports = None,
            Target::Redirect(to) if !has_ports => to.ports = None,
            _ => {}
        }
    }
}

fn chain_name(number: usize) -> String {
    format!("c{number}")
}

type Callees = std::ops::Range<usize>;

/// Short chains are stored in order, long ones in tables.
fn rules(family: Family, callees: Callees) -> impl Strategy<Value = Vec<Rule>> {
    prop_oneof![
        3 => vec(rule(family, callees.clone()), 0..6),
        2 => vec(rule(family, callees.clone()), 15..40),
        // Alike in every hashed field: one long list.
        1 => vec(unhashed_rule(family, callees), 17..30),
    ]
}

fn rule(family: Family, callees: Callees) -> impl Strategy<Value = Rule> {
    let addresses = (
        option::weighted(0.4, negatable(prefix(family))),
        option::weighted(0.4, negatable(prefix(family))),
    );
    let interfaces = (
        option::weighted(0.2, negatable(pattern())),
        option::weighted(0.2, negatable(pattern())),
    );
    (
        addresses,
        interfaces,
        protocol_and_matches(family),
        vec(state_match(), 0..2),
        target(family, callees),
    )
        .prop_map(
            |(
                (source, destination),
                (in_interface, out_interface),
                (protocol, mut matches),
                states,
                target,
            )| {
                matches.extend(states);
                Rule {
                    source,
                    destination,
                    in_interface,
                    out_interface,
                    protocol,
                    matches,
                    target,
                    counters: None,
                    origin: Origin { file: 0, line: 1 },
                }
            },
        )
}

fn unhashed_rule(family: Family, callees: Callees) -> impl Strategy<Value = Rule> {
    (
        option::weighted(0.4, negatable(pattern())),
        vec(state_match(), 0..3),
        target(family, callees),
    )
        .prop_map(|(in_interface, matches, target)| Rule {
            source: None,
            destination: None,
            in_interface,
            out_interface: None,
            protocol: None,
            matches,
            target,
            counters: None,
            origin: Origin { file: 0, line: 1 },
        })
}

fn negatable<S: Strategy>(strategy: S) -> impl Strategy<Value = Negatable<S::Value>> {
    (proptest::bool::weighted(0.25), strategy).prop_map(|(not, value)| Negatable { not, value })
}

/// Few enough addresses that packets fall under prefixes of every length.
pub fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::Ipv4 => select(vec![
            [10, 0, 0, 1],
            [10, 0, 0, 2],
            [10, 0, 1, 1],
            [10, 1, 0, 1],
            [10, 255, 0, 1],
            [192, 0, 2, 1],
            [255, 255, 255, 255],
            [0, 0, 0, 0],
        ])
        .prop_map(|octets| Ipv4Addr::from(octets).into())
        .boxed(),
        Family::Ipv6 => select(vec![
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::1:0:0:1",
            "2001:db8:1::1",
            "fe80::1",
            "::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ])
        .prop_map(|text| text.parse::<Ipv6Addr>().expect(text).into())
        .boxed(),
    }
}

fn prefix(family: Family) -> impl Strategy<Value = Prefix> {
    let mask: BoxedStrategy<IpAddr> = match family {
        Family::Ipv4 => prop_oneof![
            select(vec![0u32, 1, 8, 9, 16, 24, 28, 31, 32])
                .prop_map(|length| u32::MAX.checked_shl(32 - length).unwrap_or(0)),
            select(vec![0xff00_00ff, 0x00ff_00ff, 0xffff_fffe, 0x0000_0001]),
        ]
        .prop_map(|mask: u32| Ipv4Addr::from_bits(mask).into())
        .boxed(),
        Family::Ipv6 => prop_oneof![
            select(vec![0u32, 1, 10, 32, 48, 63, 64, 65, 127, 128])
                .prop_map(|length| u128::MAX.checked_shl(128 - length).unwrap_or(0)),
            select(vec![1u128, 0xffff << 112 | 0xff, u128::MAX << 64 | 1]),
        ]
        .prop_map(|mask: u128| Ipv6Addr::from_bits(mask).into())
        .boxed(),
    };
    (address(family), mask).prop_map(|(address, mask)| {
        let address = match (address, mask) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => (address & mask).into(),
            (IpAddr::V6(address), IpAddr::V6(mask)) => (address & mask).into(),
            (address, _) => address,
        };
        Prefix { address, mask }
    })
}

fn pattern() -> impl Strategy<Value = InterfacePattern> {
    select(&PATTERNS[..]).prop_map(|text| InterfacePattern(text.to_owned()))
}

fn protocol_and_matches(family: Family) -> BoxedStrategy<(Option<Negatable<u8>>, Vec<Match>)> {
    let icmp_number = match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 58,
    };
    let with = |number: u8, matches: BoxedStrategy<Vec<Match>>| {
        let protocol = Negatable {
            not: false,
            value: number,
        };
        matches.prop_map(move |matches| (Some(protocol), matches))
    };
    let ports_or_list =
        |own: BoxedStrategy<Match>| vec(prop_oneof![2 => own, 1 => multiport()], 0..3).boxed();
    let tcp = ports_or_list(tcp().prop_map(Match::Tcp).boxed());
    let udp = ports_or_list(ports().prop_map(Match::Udp).boxed());
    let icmp = vec(of(negatable(icmp_type())).prop_map(Match::Icmp), 0..2).boxed();
    let listed = select(&PORT_PROTOCOLS[..]).prop_flat_map(|number| {
        let protocol = Negatable {
            not: false,
            value: number,
        };
        vec(multiport(), 0..2).prop_map(move |matches| (Some(protocol), matches))
    });
    prop_oneof![
        2 => Just((None, Vec::new())),
        3 => with(6, tcp),
        2 => with(17, udp),
        1 => with(icmp_number, icmp),
        1 => listed,
        1 => negatable(select(&PROTOCOLS[..])).prop_map(|protocol| (Some(protocol), Vec::new())),
    ]
    .boxed()
}

fn port_range() -> impl Strategy<Value = PortRange> {
    prop_oneof![
        2 => select(&PORTS[..]).prop_map(|port| (port, port)),
        // Ranges that contain each other and cross powers of two.
        1 => (select(&PORTS[..]), select(&PORTS[..])),
    ]
    .prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    (
        option::weighted(0.3, negatable(port_range())),
        option::weighted(0.7, negatable(port_range())),
    )
        .prop_map(|(source, destination)| Ports {
            source,
            destination,
        })
}

fn tcp() -> impl Strategy<Value = Tcp> {
    let flags = (0..64u8, 0..64u8).prop_map(|(mask, set)| TcpFlags { mask, set });
    (ports(), option::weighted(0.3, negatable(flags))).prop_map(|(ports, flags)| Tcp {
        ports,
        flags,
        option: None,
    })
}

fn multiport() -> impl Strategy<Value = Match> {
    let which = select(vec![
        WhichPort::Source,
        WhichPort::Destination,
        WhichPort::Either,
    ]);
    (which, negatable(vec(port_range(), 1..6)))
        .prop_map(|(which, ports)| Match::Multiport(Multiport { which, ports }))
}

fn icmp_type() -> impl Strategy<Value = IcmpType> {
    let codes = prop_oneof![
        Just((0, 255)),
        select(&ICMP_NUMBERS[..]).prop_map(|code| (code, code))
    ];
    (of(select(&ICMP_NUMBERS[..])), codes).prop_map(|(kind, codes)| IcmpType { kind, codes })
}

fn state_match() -> impl Strategy<Value = Match> {
    let states = || negatable((1..128u8).prop_map(CtStates));
    let direction = select(vec![CtDirection::Original, CtDirection::Reply]);
    prop_oneof![
        states().prop_map(Match::State),
        of(states()).prop_flat_map(move |states| {
            let direction = match states {
                Some(_) => of(direction.clone()).boxed(),
                None => direction.clone().prop_map(Some).boxed(),
            };
            direction.prop_map(move |direction| {
                Match::Conntrack(Conntrack {
                    states,
                    direction,
                    connection: None,
                })
            })
        }),
        Just(Match::Comment("a comment".into())),
    ]
}

/// An address, several, or a network mapped onto another; ports as well, or alone.
fn translation(family: Family) -> impl Strategy<Value = Target> {
    let addresses = (address(family), address(family)).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let one = address(family).prop_map(|address| (address, address));
    let to = (
        option::weighted(0.9, prop_oneof![3 => one, 1 => addresses]),
        of(port_range()),
        any::<bool>(),
    )
        .prop_map(|(addresses, ports, random)| Translation {
            addresses,
            ports: ports.filter(|range| range.first != 0),
            random,
            ..Translation::default()
        });
    let redirect = (of(port_range()), any::<bool>()).prop_map(|(ports, random)| Redirect {
        ports: ports.filter(|range| range.first != 0),
        random,
    });
    prop_oneof![
        3 => to.prop_map(Target::Dnat),
        2 => redirect.prop_map(Target::Redirect),
        1 => prefix(family).prop_map(Target::Netmap),
    ]
}

fn target(family: Family, callees: Callees) -> BoxedStrategy<Target> {
    let masquerade = (of(port_range()), any::<bool>(), any::<bool>()).prop_map(
        |(ports, random, random_fully)| {
            Target::Masquerade(Masquerade {
                // Port 0 cannot be asked for.
                ports: ports.filter(|range| range.first != 0),
                random,
                random_fully,
            })
        },
    );
    let simple = prop_oneof![
        6 => Just(Target::Continue),
        2 => Just(Target::Accept),
        2 => Just(Target::Drop),
        2 => Just(Target::Return),
        1 => masquerade,
        1 => Just(Target::Reject(Reject::Unreachable(1))),
        1 => Just(Target::Log(Log::PLAIN)),
        1 => Just(Target::Nflog(Nflog::PLAIN)),
        2 => translation(family),
    ];
    if callees.is_empty() {
        return simple.boxed();
    }
    let callee = callees.prop_map(chain_name);
    prop_oneof![
        3 => simple,
        2 => callee.clone().prop_map(Target::Jump),
        1 => callee.prop_map(Target::Goto),
    ]
    .boxed()
}

/// A packet as rules see it, at any hook.
pub fn seen() -> impl Strategy<Value = Seen> {
    let family = select(vec![Family::Ipv4, Family::Ipv6]);
    family.prop_flat_map(|family| {
        (
            (address(family), address(family)),
            protocol_and_ports(),
            0..64u8,
            (of_mostly(interface()), of_mostly(interface())),
            connection(),
        )
            .prop_map(
                move |(
                    (source, destination),
                    (protocol, ports),
                    flags,
                    (in_interface, out_interface),
                    (states, direction),
                )| Seen {
                    family,
                    source,
                    destination,
                    protocol,
                    ports,
                    tcp_flags: if protocol == 6 { flags } else { 0 },
                    in_interface,
                    out_interface,
                    states,
                    direction,
                },
            )
    })
}

fn interface() -> impl Strategy<Value = String> {
    select(&INTERFACES[..]).prop_map(str::to_owned)
}

fn protocol_and_ports() -> impl Strategy<Value = (u8, (u16, u16))> {
    let protocol = prop_oneof![3 => Just(6), 2 => Just(17), 3 => select(&PROTOCOLS[..])];
    protocol.prop_flat_map(|protocol| {
        let ports: BoxedStrategy<(u16, u16)> = match protocol {
            1 | 58 => (select(&ICMP_NUMBERS[..]), select(&ICMP_NUMBERS[..]))
                .prop_map(|(kind, code)| (kind.into(), code.into()))
                .boxed(),
            6 | 17 | 33 | 132 | 136 => (select(&PORTS[..]), select(&PORTS[..])).boxed(),
            _ => Just((0, 0)).boxed(),
        };
        ports.prop_map(move |ports| (protocol, ports))
    })
}

fn connection() -> impl Strategy<Value = (CtStates, Option<CtDirection>)> {
    let tracked = (
        select(vec![
            CtStates::NEW,
            CtStates::ESTABLISHED,
            CtStates::RELATED,
        ]),
        any::<bool>(),
        select(vec![CtDirection::Original, CtDirection::Reply]),
    )
        .prop_map(|(state, translated, direction)| {
            let extra = if translated { CtStates::SNAT.0 } else { 0 };
            (CtStates(state.0 | extra), Some(direction))
        });
    let untracked =
        select(vec![CtStates::INVALID, CtStates::UNTRACKED]).prop_map(|state| (state, None));
    prop_oneof![3 => tracked, 1 => untracked]
}
