//! Targets at random, of those that a chain may have.

use std::net::IpAddr;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::matches::{comment, range};
use super::{OWN_CHAINS, Place, prefix};
use crate::policy::change::{Change, FlowMark, HopChange, MarkShift, SegmentSize, asks_for_syn};
use crate::policy::ids::TableName;
use crate::policy::model::{
    Family, Log, Masquerade, Match, Negatable, Nflog, Prefix, Redirect, Reject, Target, Translation,
};
use crate::policy::names::{DCCP, SCTP, TCP, UDP, UDPLITE};

pub(super) fn target(family: Family, table: TableName, place: Place) -> BoxedStrategy<Target> {
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

/// `--to-ports` needs a protocol with ports, and a reset TCP; some protocols are not translated.
pub(super) fn fitting(
    target: Target,
    protocol: Option<Negatable<u8>>,
    family: Family,
    matches: &[Match],
) -> Target {
    let is = |protocols: &[u8]| {
        protocol.is_some_and(|protocol| !protocol.not && protocols.contains(&protocol.value))
    };
    let tcp = is(&[TCP]);
    match target {
        Target::Masquerade(_)
        | Target::Dnat(_)
        | Target::Snat(_)
        | Target::Redirect(_)
        | Target::Netmap(_)
            if is(&[DCCP, UDPLITE]) =>
        {
            Target::Continue
        }
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
    protocol.is_some_and(|protocol| [TCP, UDP, SCTP].contains(&protocol.value))
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
            any::<bool>().prop_map(|as_ct| Change::NoTrack { as_ct }),
            prop_oneof![0..12_u16, Just(u16::MAX)].prop_map(Change::Zone),
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
