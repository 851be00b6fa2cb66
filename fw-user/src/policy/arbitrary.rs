//! Policies at random, over everything that the rule format can say: for the property tests of
//! the parser and whoever else needs many different policies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::change::{Change, FlowMark, HopChange, MarkShift, SegmentSize, asks_for_syn};
use super::connection::arbitrary as connection;
use super::ids::TableName;
use super::lists::arbitrary as lists;
use super::model::{
    Chain, ChainPolicy, Conntrack, Counters, CtDirection, CtStates, Family, IcmpType,
    InterfacePattern, Limit, Log, Masquerade, Match, Multiport, Negatable, Nflog, Origin, Policy,
    PortRange, Ports, Prefix, Redirect, Reject, Rule, Ruleset, Table, Target, Tcp, TcpFlags,
    Translation, WhichPort,
};
use super::names::{TCP, UDP};
use super::packet_match::arbitrary as packet;
use super::save::{Word, values::rate};
use super::source::Span;

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

/// Now and then a match that only some hooks allow.
fn at_hook(chain: &str) -> BoxedStrategy<Option<Match>> {
    match packet::at_hook(chain) {
        Some(own) => option::weighted(0.2, own).boxed(),
        None => Just(None).boxed(),
    }
}

/// `--to-ports` needs a protocol with ports, and a reset TCP.
fn fitting(
    target: Target,
    protocol: Option<Negatable<u8>>,
    family: Family,
    matches: &[Match],
) -> Target {
    let tcp = protocol.is_some_and(|protocol| !protocol.not && protocol.value == TCP);
    match target {
        Target::Reject(Reject::TcpReset) if !tcp => Target::Reject(Reject::default_of(family)),
        Target::Masquerade(masquerade) if !has_ports(protocol) => Target::Masquerade(Masquerade {
            ports: None,
            ..masquerade
        }),
        Target::Change(Change::SegmentSize(_)) if !asks_for_syn(matches) => Target::Continue,
        Target::Dnat(translation) => Target::Dnat(fitting_ports(translation, protocol)),
        Target::Snat(translation) => Target::Snat(fitting_ports(translation, protocol)),
        Target::Redirect(redirect) if !has_ports(protocol) => Target::Redirect(Redirect {
            ports: None,
            ..redirect
        }),
        other => other,
    }
}

fn fitting_ports(translation: Translation, protocol: Option<Negatable<u8>>) -> Translation {
    if has_ports(protocol) {
        return translation;
    }
    Translation {
        ports: None,
        base_port: None,
        ..translation
    }
}

fn has_ports(protocol: Option<Negatable<u8>>) -> bool {
    protocol.is_some_and(|protocol| [TCP, UDP].contains(&protocol.value))
}

pub(super) fn negatable<T: Clone + std::fmt::Debug>(
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

type ProtocolAndMatches = (Option<Negatable<u8>>, Vec<Match>);

/// A protocol and matches that fit it.
fn protocol_and_matches(family: Family) -> impl Strategy<Value = ProtocolAndMatches> {
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

/// Any text on one line, of which quotes, backslashes and blanks are the hard part.
fn comment() -> impl Strategy<Value = String> {
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

pub(super) fn range() -> impl Strategy<Value = PortRange> {
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
pub(super) fn any_ports() -> impl Strategy<Value = Ports> {
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

fn log() -> impl Strategy<Value = Log> {
    (0..=7_u8, text(Log::PREFIX), any::<[bool; 5]>()).prop_map(|(level, prefix, flags)| {
        let [tcp_sequence, tcp_options, ip_options, owner, mac_decode] = flags;
        Log {
            level,
            prefix,
            tcp_sequence,
            tcp_options,
            ip_options,
            owner,
            mac_decode,
        }
    })
}

fn nflog() -> impl Strategy<Value = Nflog> {
    let size = option::of(any::<u32>());
    (any::<u16>(), text(Nflog::PREFIX), size, any::<u16>()).prop_map(
        |(group, prefix, size, threshold)| Nflog {
            group,
            prefix,
            range: None,
            size,
            threshold,
        },
    )
}

/// Addresses, with or without ports.
fn translation(family: Family) -> impl Strategy<Value = Translation> {
    let address = move || prefix(family).prop_map(|prefix| prefix.address);
    let addresses = (address(), option::of(address()))
        .prop_map(|(one, other)| (one.min(other.unwrap_or(one)), one.max(other.unwrap_or(one))));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (addresses, option::of(range()), flags).prop_map(
        |(addresses, ports, (random, random_fully, persistent))| Translation {
            addresses: Some(addresses),
            ports,
            base_port: None,
            random,
            random_fully,
            persistent,
        },
    )
}

/// A text that is printed and read as it is, or none.
fn text(longest: usize) -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), comment()]
        .prop_map(move |text| text.chars().filter(char::is_ascii).take(longest).collect())
}

fn target(family: Family, table: TableName, place: Place) -> BoxedStrategy<Target> {
    let callable = match place {
        Place::Base(_) => 0,
        Place::Own(index) => index + 1,
    };
    let mut choices = vec![
        Just(Target::Continue).boxed(),
        Just(Target::Accept).boxed(),
        Just(Target::Return).boxed(),
    ];
    if table != TableName::Nat {
        choices.push(change(table, place).prop_map(Target::Change).boxed());
        choices.push(Just(Target::Drop).boxed());
    }
    if table == TableName::Filter {
        let answers: Vec<_> = Reject::all(family).map(Target::Reject).collect();
        choices.push(select(answers).boxed());
    }
    choices.push(log().prop_map(Target::Log).boxed());
    choices.push(nflog().prop_map(Target::Nflog).boxed());
    // nat's own chains are called from all of its hooks here, so only POSTROUTING masquerades.
    if table == TableName::Nat && matches!(place, Place::Base("POSTROUTING")) {
        let masquerade = (option::of(range()), any::<bool>(), any::<bool>());
        choices.push(
            masquerade
                .prop_map(|(ports, random, random_fully)| {
                    Target::Masquerade(Masquerade {
                        ports,
                        random,
                        random_fully,
                    })
                })
                .boxed(),
        );
    }
    // In OUTPUT and INPUT, most of these are refused.
    let source = matches!(place, Place::Base("POSTROUTING"));
    let destination = matches!(place, Place::Base("PREROUTING"));
    if table == TableName::Nat && source {
        choices.push(translation(family).prop_map(Target::Snat).boxed());
    }
    if table == TableName::Nat && destination {
        let fully = |translation| Translation {
            random_fully: false,
            ..translation
        };
        let translated = (translation(family).prop_map(fully), any::<u16>());
        choices.push(
            translated
                .prop_map(|(translation, base)| {
                    let is_range = translation
                        .ports
                        .is_some_and(|ports| ports.first != ports.last);
                    Target::Dnat(Translation {
                        base_port: (is_range && base % 2 == 1).then_some(base),
                        ..translation
                    })
                })
                .boxed(),
        );
        let redirect = (option::of(range()), any::<bool>());
        choices.push(
            redirect
                .prop_map(|(ports, random)| Target::Redirect(Redirect { ports, random }))
                .boxed(),
        );
    }
    if table == TableName::Nat && (source || destination) {
        let contiguous = |network: &Prefix| match network.mask {
            IpAddr::V4(mask) => mask.to_bits().leading_ones() == mask.to_bits().count_ones(),
            IpAddr::V6(mask) => mask.to_bits().leading_ones() == mask.to_bits().count_ones(),
        };
        let network = prefix(family).prop_filter("a prefix", contiguous);
        choices.push(network.prop_map(Target::Netmap).boxed());
    }
    for chain in &OWN_CHAINS[callable..] {
        choices.push(Just(Target::Jump((*chain).to_owned())).boxed());
        choices.push(Just(Target::Goto((*chain).to_owned())).boxed());
    }
    proptest::strategy::Union::new(choices).boxed()
}

fn flow_mark() -> impl Strategy<Value = Change> {
    let mark = (0..3, any::<(u32, u32)>()).prop_map(|(kind, (packet, flow))| match kind {
        0 => FlowMark::Set {
            value: packet,
            mask: flow,
        },
        1 => FlowMark::Save { packet, flow },
        _ => FlowMark::Restore { packet, flow },
    });
    let shift = (any::<bool>(), 1..32_u8).prop_map(|(right, bits)| MarkShift { right, bits });
    (mark, option::weighted(0.2, shift)).prop_map(|(mark, shift)| Change::FlowMark { mark, shift })
}

fn change(table: TableName, place: Place) -> BoxedStrategy<Change> {
    let mark = any::<(u32, u32)>().prop_map(|(value, mask)| Change::Mark { value, mask });
    let segment = prop_oneof![1 => Just(SegmentSize::Path), 4 => (0..=65_495_u16).prop_map(SegmentSize::Most)]
        .prop_map(move |size| match (size, place) {
            (SegmentSize::Path, Place::Base("FORWARD" | "OUTPUT" | "POSTROUTING")) => size,
            (SegmentSize::Path, _) => SegmentSize::Most(1),
            _ => size,
        })
        .prop_map(Change::SegmentSize);
    let mark = prop_oneof![mark, flow_mark(), segment];
    match table {
        TableName::Filter | TableName::Nat | TableName::Security => mark.boxed(),
        TableName::Raw => prop_oneof![
            mark,
            any::<bool>().prop_map(|as_ct| Change::NoTrack { as_ct })
        ]
        .boxed(),
        TableName::Mangle => prop_oneof![
            mark,
            Just(Change::FillSum),
            (0..=0x3f_u8).prop_map(Change::Dscp),
            any::<(u8, u8)>().prop_map(|(value, mask)| Change::Tos { value, mask }),
            any::<u8>().prop_map(|value| Change::Hops(HopChange::Set(value))),
            (1..=u8::MAX).prop_map(|value| Change::Hops(HopChange::Less(value))),
            (1..=u8::MAX).prop_map(|value| Change::Hops(HopChange::More(value))),
        ]
        .boxed(),
    }
}
