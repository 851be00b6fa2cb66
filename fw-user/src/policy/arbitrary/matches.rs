//! Matches at random.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::negatable;
use crate::policy::connection::arbitrary as connection;
use crate::policy::lists::arbitrary as lists;
use crate::policy::model::{
    Conntrack, CtDirection, CtStates, Family, IcmpType, Limit, Match, Multiport, Negatable,
    PortRange, Ports, Tcp, TcpFlags, WhichPort,
};
use crate::policy::names::{TCP, UDP};
use crate::policy::packet_match::arbitrary as packet;
use crate::policy::save::{Word, values::rate};
use crate::policy::source::Span;

pub(super) type ProtocolAndMatches = (Option<Negatable<u8>>, Vec<Match>);

/// A protocol and matches that fit it.
pub(super) fn protocol_and_matches(family: Family) -> impl Strategy<Value = ProtocolAndMatches> {
    let yes = |value| Some(Negatable { not: false, value });
    let of_transport = prop_oneof![
        (
            Just(yes(TCP)),
            vec(
                prop_oneof![3 => tcp(), 1 => multiport(), 1 => packet::of_tcp()],
                0..3
            )
        ),
        (
            Just(yes(UDP)),
            vec(prop_oneof![3 => udp(), 1 => multiport()], 0..3)
        ),
    ];
    let of_icmp = (Just(yes(family.icmp())), vec(icmp(family), 0..2));
    let other = (option::of(negatable(1..=255_u8)), Just(Vec::new()));
    let of_packet =
        packet::with_protocol(family).prop_map(move |(protocol, matches)| (yes(protocol), matches));
    let own = prop_oneof![4 => of_transport, 1 => of_icmp, 2 => other, 1 => of_packet];
    (own, vec(general_match(family), 0..3)).prop_map(|((protocol, mut matches), general)| {
        matches.extend(general);
        (protocol, matches)
    })
}

fn general_match(family: Family) -> impl Strategy<Value = Match> {
    let direction = prop_oneof![Just(CtDirection::Original), Just(CtDirection::Reply)];
    let conntrack = (
        option::weighted(0.8, negatable(states(0x7f))),
        option::weighted(0.2, direction),
        option::weighted(0.3, connection::connection(family).prop_map(Box::new)),
    );
    prop_oneof![
        negatable(states(0x1f)).prop_map(Match::State),
        conntrack.prop_filter_map("says something", |(states, direction, connection)| {
            let conntrack = Conntrack {
                states,
                direction,
                connection,
            };
            (conntrack != Conntrack::default()).then_some(Match::Conntrack(conntrack))
        }),
        comment().prop_map(Match::Comment),
        limit().prop_map(Match::Limit),
        packet::packet_match(family),
        packet::packet_match(family),
        lists::list_match(family),
    ]
}

/// Now and then a match that only some hooks allow.
pub(super) fn at_hook(chain: &str) -> BoxedStrategy<Option<Match>> {
    match packet::at_hook(chain) {
        Some(own) => option::weighted(0.2, own).boxed(),
        None => Just(None).boxed(),
    }
}

/// Any text on one line, of which quotes, backslashes and blanks are the hard part.
pub(super) fn comment() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9_-]{1,20}",
        "[ -~]{0,40}",
        "[\"'\\\\ #!-]{0,8}",
        "\\PC{0,20}"
    ]
}

/// Rates as iptables reads them; what it prints is read back as the same.
fn limit() -> impl Strategy<Value = Limit> {
    let unit = prop_oneof![Just(1), Just(60), Just(3_600), Just(86_400_u32)];
    let burst = prop_oneof![Just(Limit::BURST), 1..=10_000_u32];
    (unit, 1..=10_000_u32, burst).prop_filter_map("the kernel takes it", |(unit, count, burst)| {
        let period = Limit::SECOND * unit / count;
        let limit = Limit { period, burst };
        // iptables-save rounds a few odd rates (2409/minute becomes 40/sec), as fwbpf does then.
        let word = Word {
            text: limit.to_string().into(),
            span: Span::default(),
        };
        let kept = rate(&word).is_ok_and(|again| again == period);
        limit.credits().filter(|_| kept).map(|_| limit)
    })
}

fn states(of: u8) -> impl Strategy<Value = CtStates> {
    (1..=of).prop_map(CtStates)
}

pub(crate) fn range() -> impl Strategy<Value = PortRange> {
    let any_range = any::<(u16, u16)>().prop_map(|(one, other)| PortRange {
        first: one.min(other),
        last: one.max(other),
    });
    let single = any::<u16>().prop_map(|port| PortRange {
        first: port,
        last: port,
    });
    prop_oneof![single, any_range]
}

/// Ports of a protocol whose match keeps all that is written.
pub(crate) fn any_ports() -> impl Strategy<Value = Ports> {
    let port = || option::weighted(0.4, negatable(range()));
    (port(), port()).prop_map(|(source, destination)| Ports {
        source,
        destination,
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    let port = || {
        option::weighted(0.4, negatable(range())).prop_map(|port| {
            port.filter(|range| range.not || (range.value.first, range.value.last) != (0, u16::MAX))
        })
    };
    (port(), port()).prop_map(|(source, destination)| Ports {
        source,
        destination,
    })
}

fn tcp() -> impl Strategy<Value = Match> {
    let flags = (0..=0x3f_u8, 0..=0x3f_u8).prop_map(|(mask, set)| TcpFlags { mask, set });
    let flags = option::weighted(0.3, negatable(flags)).prop_map(|flags| {
        flags.filter(|flags| flags.not || flags.value.mask != 0 || flags.value.set != 0)
    });
    let option = option::weighted(0.2, negatable(1..=u8::MAX));
    (ports(), flags, option).prop_map(|(ports, flags, option)| {
        Match::Tcp(Tcp {
            ports,
            flags,
            option,
        })
    })
}

fn udp() -> impl Strategy<Value = Match> {
    ports().prop_map(Match::Udp)
}

fn multiport() -> impl Strategy<Value = Match> {
    let which = prop_oneof![
        Just(WhichPort::Source),
        Just(WhichPort::Destination),
        Just(WhichPort::Either)
    ];
    (which, negatable(vec(range(), 1..=7)))
        .prop_map(|(which, ports)| Match::Multiport(Multiport { which, ports }))
}

fn icmp(family: Family) -> impl Strategy<Value = Match> {
    let kind = (any::<u8>(), option::of(any::<u8>())).prop_map(move |(kind, code)| {
        if family == Family::Ipv4 && kind == 255 {
            return IcmpType {
                kind: None,
                codes: (0, 255),
            };
        }
        IcmpType {
            kind: Some(kind),
            codes: code.map_or((0, 255), |code| (code, code)),
        }
    });
    negatable(kind).prop_map(|kind| Match::Icmp(Some(kind)))
}
