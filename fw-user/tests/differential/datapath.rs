//! The whole datapath on the host: properties of every packet, whatever it looks like.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use etherparse::PacketBuilder;
use fw_common::abi::flow::FlowKey;
use fw_common::abi::stat::Stat;
use fw_common::datapath::header::{Headers, Parsed, parse};
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::{Verdict, early, egress, ingress};
use fw_user::compile::{Slots, compile};
use fw_user::policy::TableName;
use fw_user::policy::model::{
    Chain, ChainPolicy, InterfacePattern, Masquerade, Negatable, Origin, Policy, Rule, Ruleset,
    Table, Target,
};
use fw_user::sim::{Held, Host, HostDevice, HostTables, SlicePacket};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::generate;

const L2: u32 = 14;
const ETH0: u32 = 2;
const DOCKER0: u32 = 3;
const OUTSIDE4: [u8; 4] = [198, 51, 100, 10];
const OUTSIDE6: &str = "2001:db8:ffff::10";

fn host() -> Host {
    Host {
        devices: vec![
            HostDevice::loopback(),
            HostDevice {
                masquerade4: Some(OUTSIDE4.into()),
                masquerade6: Some(OUTSIDE6.parse().expect("an address")),
                ..HostDevice::ethernet(ETH0, "eth0")
            },
            HostDevice::ethernet(DOCKER0, "docker0"),
        ],
        broadcast: Vec::new(),
        local: ["198.51.100.10/32", "2001:db8:ffff::10/128", "127.0.0.0/8"]
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec(),
        ..Host::default()
    }
}

fn running(policy: &Policy) -> HostTables {
    let set = compile(policy, &Slots::fresh(policy), 1, &[]).expect("within the limits");
    HostTables::running(host(), set)
}

/// Everything passes; what leaves by eth0 is masqueraded.
fn masquerading() -> Policy {
    let table = |name: TableName| {
        let chain = |chain: &&str| Chain {
            name: (*chain).to_owned(),
            policy: Some(ChainPolicy {
                accept: true,
                counters: None,
                origin: None,
            }),
            rules: Vec::new(),
        };
        Table {
            chains: name.builtin_chains().iter().map(chain).collect(),
        }
    };
    let mut nat = table(TableName::Nat);
    let rule = Rule {
        source: None,
        destination: None,
        in_interface: None,
        out_interface: Some(Negatable {
            not: false,
            value: InterfacePattern("eth0".into()),
        }),
        protocol: None,
        matches: Vec::new(),
        target: Target::Masquerade(Masquerade::default()),
        counters: None,
        origin: Origin { file: 0, line: 1 },
    };
    nat.chains.last_mut().expect("POSTROUTING").rules.push(rule);
    let ruleset = Ruleset {
        filter: Some(table(TableName::Filter)),
        nat: Some(nat),
        ..Ruleset::default()
    };
    Policy {
        ipv4: Some(ruleset.clone()),
        ipv6: Some(ruleset),
        files: vec!["generated".into()],
        toml: None,
        sets: Vec::new(),
        lists: Vec::new(),
        tracking: Default::default(),
    }
}

/// One side's view of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Talk {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// ICMP: the identifier is the source port of a request, the destination port of a reply.
    ports: (u16, u16),
    reply: bool,
}

impl Talk {
    fn frame(&self) -> Vec<u8> {
        let step = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => PacketBuilder::ethernet2(
                [2; 6], [4; 6],
            )
            .ipv4(source.octets(), destination.octets(), 64),
            (IpAddr::V6(source), IpAddr::V6(destination)) => PacketBuilder::ethernet2(
                [2; 6], [4; 6],
            )
            .ipv6(source.octets(), destination.octets(), 64),
            mixed => panic!("{mixed:?}"),
        };
        let (source, destination) = self.ports;
        let mut frame = Vec::new();
        let data = b"odd";
        let written = match (self.protocol, self.reply) {
            (6, false) => step
                .tcp(source, destination, 1000, 1000)
                .syn()
                .write(&mut frame, &[]),
            (6, true) => step
                .tcp(source, destination, 5000, 1000)
                .syn()
                .ack(1001)
                .write(&mut frame, &[]),
            (17, _) => step.udp(source, destination).write(&mut frame, data),
            (1, false) => step.icmpv4_echo_request(source, 1).write(&mut frame, data),
            (1, true) => step
                .icmpv4_echo_reply(destination, 1)
                .write(&mut frame, data),
            (58, false) => step.icmpv6_echo_request(source, 1).write(&mut frame, data),
            (58, true) => step
                .icmpv6_echo_reply(destination, 1)
                .write(&mut frame, data),
            other => panic!("{other:?}"),
        };
        written.expect("a frame");
        frame
    }

    /// What the other side answers.
    fn answer(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            ports: (self.ports.1, self.ports.0),
            reply: true,
            ..*self
        }
    }
}

/// Reads the talk off a packet, and checks its sums.
fn heard(tables: &HostTables, packet: &SlicePacket, reply: bool) -> Talk {
    let mut headers = Headers::default();
    let parsed = parse(packet, tables, L2, &mut headers);
    assert_eq!(parsed, Parsed::Headers, "right header sum");
    assert_eq!(transport_sum(packet, &headers), 0xffff, "{headers:?}");
    let address = |words| fw_user::addr::from_abi(headers.family, words);
    let (mut source, mut destination) =
        ((headers.flow_ports >> 16) as u16, headers.flow_ports as u16);
    if matches!(headers.key.protocol, 1 | 58) {
        // The far side's "port" is type and code.
        if reply {
            source = 0;
        } else {
            destination = 0;
        }
    }
    Talk {
        source: address(headers.key.source),
        destination: address(headers.key.destination),
        protocol: headers.key.protocol as u8,
        ports: (source, destination),
        reply,
    }
}

/// RFC 1071 over the pseudo header and the segment: 0xffff if the checksum is right.
fn transport_sum(packet: &SlicePacket, headers: &Headers) -> u32 {
    let segment = &packet.bytes[headers.l4 as usize..];
    let l3 = L2 as usize;
    let mut words = segment.to_vec();
    if words.len() % 2 == 1 {
        words.push(0);
    }
    let addresses = if headers.is_v6() {
        &packet.bytes[l3 + 8..l3 + 40]
    } else {
        &packet.bytes[l3 + 12..l3 + 20]
    };
    if headers.key.protocol != 1 {
        words.extend(addresses);
        words.extend([0, headers.key.protocol as u8]);
        words.extend((segment.len() as u16).to_be_bytes());
    }
    let mut sum: u32 = words
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Sends a packet through the host, in by one device and out by another.
fn forward(tables: &HostTables, frame: Vec<u8>, from: u32, to: u32) -> (Verdict, SlicePacket) {
    let mut scratch = Scratch::default();
    let mut packet = SlicePacket::ethernet(frame, from);
    let verdict = ingress(&mut packet, tables, &mut scratch);
    if verdict != Verdict::Pass {
        return (verdict, packet);
    }
    assert_ne!(packet.note, 0, "the packet is to be forwarded");
    packet = packet.at_egress_of(to);
    let verdict = egress(&mut packet, tables, &mut scratch);
    (verdict, packet)
}

/// Containers that talk to few places from few ports, so that their tuples collide outside.
fn talk() -> impl Strategy<Value = Talk> {
    let container = 2..5u8;
    let port = select(vec![7u16, 53, 700, 1024, 40_000, 65_535]);
    let service = select(vec![53u16, 443]);
    let far = 1..3u8;
    (
        container,
        far,
        select(vec![1u8, 6, 17]),
        port,
        service,
        any::<bool>(),
    )
        .prop_map(|(container, far, protocol, port, service, v6)| {
            let (source, destination) = if v6 {
                (
                    format!("fd00::{container}").parse().expect("an address"),
                    format!("2001:db8::{far}").parse().expect("an address"),
                )
            } else {
                ([172, 17, 0, container].into(), [203, 0, 113, far].into())
            };
            let icmp = protocol == 1;
            Talk {
                source,
                destination,
                protocol: if icmp && v6 { 58 } else { protocol },
                ports: (port, if icmp { 0 } else { service }),
                reply: false,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Each connection leaves under the host's address and a tuple of its own, and its answers
    /// come back to the one that opened it; every checksum stays right.
    #[test]
    fn masqueraded_connections_are_told_apart(talks in vec(talk(), 1..40), seed in any::<u64>()) {
        let tables = running(&masquerading());
        tables.set_seed(seed);
        let talks: BTreeSet<Talk> = talks.into_iter().collect();
        let mut outside = HashSet::new();
        let mut seen = Vec::new();
        for inside in &talks {
            let (verdict, packet) = forward(&tables, inside.frame(), DOCKER0, ETH0);
            prop_assert_eq!(verdict, Verdict::Pass);
            let out = heard(&tables, &packet, false);
            let address: IpAddr = match inside.source {
                IpAddr::V4(_) => OUTSIDE4.into(),
                IpAddr::V6(_) => OUTSIDE6.parse().expect("an address"),
            };
            prop_assert_eq!(out.source, address);
            prop_assert_eq!(out.destination, inside.destination);
            prop_assert_eq!(out.ports.1, inside.ports.1);
            prop_assert!(outside.insert(out), "{:?} is taken", out);
            seen.push((*inside, out));
        }
        for (inside, out) in seen {
            let (verdict, packet) = forward(&tables, out.answer().frame(), ETH0, DOCKER0);
            prop_assert_eq!(verdict, Verdict::Pass, "{:?}", out);
            prop_assert_eq!(heard(&tables, &packet, true), inside.answer());
            // The same port again, now that the connection is known.
            let (verdict, packet) = forward(&tables, inside.frame(), DOCKER0, ETH0);
            prop_assert_eq!(verdict, Verdict::Pass);
            prop_assert_eq!(heard(&tables, &packet, false), out);
        }
        let mut flows = tables.state().flows;
        // Sources whose ports collided have a list each.
        let sources = flows.extract_if(.., |key, _| key.kind() == FlowKey::SOURCE);
        prop_assert!(sources.count() <= talks.len());
        let aliases = flows.values().filter(|state| state.flow.is_alias());
        prop_assert_eq!(aliases.count(), talks.len());
        prop_assert_eq!(flows.len(), 2 * talks.len());
    }
}

/// A frame that is right, then spoiled in a few places and cut.
fn odd_frame() -> impl Strategy<Value = Vec<u8>> {
    let spoiled = (talk(), vec((0..80usize, any::<u8>()), 0..6), 0..90usize).prop_map(
        |(talk, changes, length)| {
            let mut frame = talk.frame();
            for (place, byte) in changes {
                if let Some(old) = frame.get_mut(place) {
                    *old = byte;
                }
            }
            // Most frames keep their length.
            if length < 70 {
                frame.truncate(frame.len().max(length) - length / 8);
            }
            frame
        },
    );
    prop_oneof![4 => spoiled, 1 => vec(any::<u8>(), 0..120)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Nothing panics, a packet that rules drop opens no connection, and only what the nat table
    /// may change is changed.
    #[test]
    fn any_frame_is_judged(
        policy in generate::policy(),
        frames in vec((odd_frame(), select(vec![1, ETH0, DOCKER0]), 0..3u8), 1..30),
    ) {
        let tables = running(&policy);
        let has_nat = policy.rulesets().any(|(_, ruleset)| ruleset.nat.is_some());
        let mut scratch = Scratch::default();
        for (frame, device, way) in frames {
            let before = tables.state().flows.len();
            let mut packet = SlicePacket::ethernet(frame.clone(), device);
            let verdict = match way {
                0 => ingress(&mut packet, &tables, &mut scratch),
                1 => {
                    packet = packet.made_here();
                    egress(&mut packet, &tables, &mut scratch)
                }
                _ => {
                    let verdict = ingress(&mut packet, &tables, &mut scratch);
                    if verdict == Verdict::Pass {
                        packet = packet.at_egress_of(ETH0);
                        egress(&mut packet, &tables, &mut scratch)
                    } else {
                        verdict
                    }
                }
            };
            if verdict == Verdict::Answer {
                // As long as an ICMPv6 error may be.
                prop_assert!(packet.bytes.len() <= 14 + 1280);
                // Ingress may have named one on its way through.
                prop_assert!(way == 2 || tables.state().flows.len() <= before);
                continue;
            }
            prop_assert_eq!(packet.bytes.len(), frame.len());
            if !has_nat {
                prop_assert_eq!(&packet.bytes, &frame);
            }
            if verdict == Verdict::Drop(Stat::Policy) && way < 2 {
                prop_assert!(tables.state().flows.len() <= before);
            }
        }
    }
}

/// A frame to the host itself, now and then spoiled.
fn frame_to_host() -> impl Strategy<Value = Vec<u8>> {
    let to_host = talk().prop_map(|talk| {
        let destination = match talk.source {
            IpAddr::V4(_) => OUTSIDE4.into(),
            IpAddr::V6(_) => OUTSIDE6.parse().expect("an address"),
        };
        Talk {
            destination,
            ..talk
        }
        .frame()
    });
    prop_oneof![4 => to_host, 1 => odd_frame()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Dropping early is dropping the same packets with the same counts: what XDP drops, ingress
    /// would have dropped, and what it passes leaves no trace.
    #[test]
    fn early_drops_are_ingress_drops(
        policy in generate::policy(),
        frames in vec((frame_to_host(), any::<bool>()), 1..30),
    ) {
        let (plain, with_xdp) = (running(&policy), running(&policy));
        let mut scratch = Scratch::default();
        let mut dropped = 0;
        for (frame, at_xdp) in frames {
            let packet = SlicePacket::ethernet(frame, ETH0);
            let expected = ingress(&mut packet.clone(), &plain, &mut scratch);
            let before = with_xdp.state();
            let mut verdict = Verdict::Pass;
            if at_xdp {
                let held = Held::new(&with_xdp, 16);
                verdict = early(&mut packet.clone(), &held, &mut scratch);
            }
            if verdict == Verdict::Pass {
                prop_assert_eq!(with_xdp.state(), before);
                verdict = ingress(&mut packet.clone(), &with_xdp, &mut scratch);
            } else {
                dropped += 1;
            }
            prop_assert_eq!(verdict, expected);
        }
        prop_assert_eq!(with_xdp.stat(Stat::XdpDrop), dropped);
        let (plain, with_xdp) = (plain.state(), with_xdp.state());
        prop_assert_eq!(with_xdp.counters, plain.counters);
        prop_assert_eq!(with_xdp.flows, plain.flows);
    }
}
