//! These matches at random.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{
    AddressType, Algorithm, Ecn, Frag, Hops, Owner, PacketMatch, Physdev, Routing, Statistic, Text,
    Time,
};
use crate::policy::model::{Family, InterfacePattern, Match, Negatable};

/// A match for packets of any protocol, where no hook is asked for.
pub(crate) fn packet_match(family: Family) -> impl Strategy<Value = Match> {
    let plain = prop_oneof![
        2 => ranges(family),
        1 => text().prop_map(PacketMatch::Text),
        1 => physdev().prop_map(PacketMatch::Physdev),
        1 => negatable(ordered(any::<u16>())).prop_map(PacketMatch::Length),
        1 => hops().prop_map(PacketMatch::Hops),
        1 => negatable(0..=0x3f_u8).prop_map(PacketMatch::Dscp),
        1 => negatable(any::<(u8, u8)>()).prop_map(PacketMatch::Tos),
        1 => negatable(0..=3_u8).prop_map(|value| PacketMatch::Ecn(Ecn {
            transport: Some(value),
            ..Ecn::default()
        })),
        1 => negatable(0..=2_u8).prop_map(PacketMatch::PacketType),
        1 => negatable(marked()).prop_map(PacketMatch::Mark),
        1 => negatable(marked()).prop_map(PacketMatch::FlowMark),
        1 => negatable(any::<u32>()).prop_map(PacketMatch::Cpu),
        2 => address_type(family),
        2 => negatable(statistic()).prop_map(PacketMatch::Statistic),
        2 => time().prop_map(PacketMatch::Time),
    ];
    let plain = match family {
        Family::Ipv4 => plain.boxed(),
        Family::Ipv6 => {
            prop_oneof![20 => plain, 1 => routing(), 1 => frag().prop_map(PacketMatch::Frag)]
                .boxed()
        }
    };
    plain.prop_map(Match::Packet)
}

/// A match that the hook allows, if it is one of those that have their own.
pub(crate) fn at_hook(chain: &str) -> Option<BoxedStrategy<Match>> {
    let strategy = match chain {
        "INPUT" | "FORWARD" | "PREROUTING" => prop_oneof![
            4 => negatable(any::<[u8; 6]>()).prop_map(PacketMatch::LinkSource),
            1 => Just(PacketMatch::WithoutIpsec { out: false }),
        ]
        .boxed(),
        "OUTPUT" | "POSTROUTING" => prop_oneof![
            4 => owner().prop_map(PacketMatch::Owner),
            1 => Just(PacketMatch::WithoutIpsec { out: true }),
        ]
        .boxed(),
        _ => return None,
    };
    Some(strategy.prop_map(Match::Packet).boxed())
}

/// A protocol that has a match of its own here, with that match or not.
pub(crate) fn with_protocol(family: Family) -> impl Strategy<Value = (u8, Vec<Match>)> {
    let spi = || {
        option::of(negatable(ordered(any::<u32>())))
            .prop_map(|spi| spi.filter(|range| range.not || range.value != (0, u32::MAX)))
    };
    let ports = crate::policy::arbitrary::any_ports;
    let types = || option::of(negatable(1..0x800_u16));
    let esp = spi().prop_map(|spi| (50, PacketMatch::Esp(spi)));
    let ah = spi().prop_map(move |spi| match family {
        Family::Ipv4 => (51, PacketMatch::Ah(spi)),
        Family::Ipv6 => (50, PacketMatch::Esp(spi)),
    });
    let sctp = ports().prop_map(|ports| (132, PacketMatch::Sctp(ports)));
    let dccp = (ports(), types()).prop_map(|(ports, types)| (33, PacketMatch::Dccp(ports, types)));
    prop_oneof![esp, ah, sctp, dccp]
        .prop_map(|(protocol, packet)| (protocol, vec![Match::Packet(packet)]))
}

/// What only TCP has.
pub(crate) fn of_tcp() -> impl Strategy<Value = Match> {
    let ecn = (option::of(any::<bool>()), any::<bool>()).prop_map(|(echo, reduced)| Ecn {
        echo,
        reduced: Some(reduced),
        transport: None,
    });
    let sizes = negatable(ordered(any::<u16>()));
    prop_oneof![
        ecn.prop_map(PacketMatch::Ecn),
        sizes.prop_map(PacketMatch::Segment)
    ]
    .prop_map(Match::Packet)
}

/// `-f`, which stands before other matches.
pub(crate) fn fragment(family: Family) -> impl Strategy<Value = Option<Match>> {
    option::weighted(0.1, any::<bool>()).prop_map(move |not| {
        let not = not.filter(|_| family == Family::Ipv4)?;
        Some(Match::Packet(PacketMatch::Fragment { not }))
    })
}

fn negatable<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Negatable<T>> {
    (prop::bool::weighted(0.2), value).prop_map(|(not, value)| Negatable { not, value })
}

fn ordered<T: Ord + Copy + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = (T, T)> {
    vec(value, 2).prop_map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])))
}

fn ranges(family: Family) -> impl Strategy<Value = PacketMatch> {
    let address = move || {
        any::<u128>().prop_map(move |bits| match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        })
    };
    let range = move || negatable(ordered(address()));
    prop_oneof![
        range().prop_map(|source| (Some(source), None)),
        range().prop_map(|destination| (None, Some(destination))),
        (range(), range()).prop_map(|(source, destination)| (Some(source), Some(destination))),
    ]
    .prop_map(|(source, destination)| PacketMatch::Range {
        source,
        destination,
    })
}

fn hops() -> impl Strategy<Value = Hops> {
    prop_oneof![
        negatable(any::<u8>()).prop_map(Hops::Equal),
        any::<u8>().prop_map(Hops::Less),
        any::<u8>().prop_map(Hops::Greater),
    ]
}

fn marked() -> impl Strategy<Value = (u32, u32)> {
    (any::<u32>(), prop_oneof![Just(u32::MAX), any::<u32>()])
}

fn frag() -> impl Strategy<Value = Frag> {
    let id = ordered(any::<u32>()).prop_filter("all is none", |id| *id != (0, u32::MAX));
    let parts = (
        option::of(negatable(id)),
        option::of(negatable(any::<u32>())),
    );
    (parts, any::<[bool; 4]>()).prop_map(|((id, length), [reserved, first, more, last])| Frag {
        id,
        length,
        reserved,
        first,
        more,
        last: last && !more,
    })
}

/// Of ports that a packet came in by, which every hook takes.
fn physdev() -> impl Strategy<Value = Physdev> {
    let port = negatable("[a-z]{1,5}[0-9+]?").prop_map(|Negatable { not, value }| Negatable {
        not,
        value: InterfacePattern(value),
    });
    let is = || option::of(any::<bool>());
    (is(), option::of(port), any::<bool>()).prop_map(|(is_in, input, bridged)| Physdev {
        is_in,
        input,
        bridged: Some(bridged),
        ..Physdev::default()
    })
}

/// Texts that can be printed, and others.
fn text() -> impl Strategy<Value = Text> {
    let bytes = prop_oneof![
        "[ -~]{1,128}".prop_map(String::into_bytes),
        // One byte less than the longest: iptables does not read the longest in hexadecimal again.
        proptest::collection::vec(any::<u8>(), 1..Text::LONGEST),
    ];
    (any::<[bool; 3]>(), bytes, ordered(any::<u16>())).prop_map(
        |([not, any_case, bm], bytes, (from, to))| Text {
            not,
            bytes,
            algorithm: if bm { Algorithm::Bm } else { Algorithm::Kmp },
            from,
            to,
            any_case,
        },
    )
}

fn owner() -> impl Strategy<Value = Owner> {
    let id = || option::of(negatable(ordered(0..u32::MAX)));
    (option::of(any::<bool>()), id(), id()).prop_map(|(socket, user, group)| {
        let socket = match (user, group) {
            (None, None) => socket.or(Some(false)),
            _ => socket,
        };
        Owner {
            socket,
            user,
            group,
        }
    })
}

fn routing() -> impl Strategy<Value = PacketMatch> {
    let part = || option::of(negatable(any::<u32>()));
    (
        option::of(negatable(any::<u8>())),
        option::of(negatable(ordered(any::<u32>()))),
        part(),
    )
        .prop_map(|(kind, left, length)| {
            // Everything is what is taken for granted.
            let left = left.filter(|left| left.not || left.value != (0, u32::MAX));
            PacketMatch::Routing(Routing { kind, left, length })
        })
}

fn statistic() -> impl Strategy<Value = Statistic> {
    let nth = (1..=u32::MAX, any::<u32>()).prop_map(|(every, packet)| Statistic::Nth {
        every,
        packet: packet % every,
    });
    prop_oneof![(0..=1u32 << 31).prop_map(Statistic::Random), nth]
}

fn time() -> impl Strategy<Value = Time> {
    let second = || 0..=Time::LAST_SECOND;
    let dates = prop_oneof![
        Just((0, Time::LAST_DATE)),
        (
            0..=Time::LAST_DATE,
            select(vec![Time::LAST_DATE, 1, 1_700_000_000])
        ),
    ];
    (
        dates,
        prop_oneof![Just((0, Time::LAST_SECOND)), (second(), second())],
        prop_oneof![
            Just(Time::WEEKDAYS),
            (1..=0x7f_u8).prop_map(|days| days << 1)
        ],
        prop_oneof![
            Just(Time::MONTHDAYS),
            (1..=0x7fff_ffff_u32).prop_map(|days| days << 1)
        ],
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(dates, daytime, weekdays, monthdays, kernel_zone, contiguous)| Time {
                dates,
                daytime,
                weekdays,
                monthdays,
                kernel_zone,
                contiguous: contiguous && daytime.0 >= daytime.1,
            },
        )
}

fn address_type(family: Family) -> impl Strategy<Value = PacketMatch> {
    let types = move || {
        let types = match family {
            Family::Ipv4 => (1..0x1000_u16).boxed(),
            // UNSPEC, UNICAST, LOCAL or ANYCAST, MULTICAST.
            Family::Ipv6 => select(vec![1, 2, 4, 6, 7, 16, 18, 20, 32, 33, 36]).boxed(),
        };
        negatable(types)
    };
    (types(), option::of(types()), any::<bool>()).prop_map(|(one, other, swapped)| {
        let (source, destination) = if swapped {
            (other, Some(one))
        } else {
            (Some(one), other)
        };
        PacketMatch::AddressType(AddressType {
            source,
            destination,
        })
    })
}
