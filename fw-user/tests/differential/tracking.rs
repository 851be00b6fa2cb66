//! Corners of connection tracking, packet by packet, with what netfilter makes of them.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep, TcpHeader};
use fw_common::abi::ct;
use fw_common::abi::flow::Flow;
use fw_common::abi::stat::Stat;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tcp::flag;
use fw_common::datapath::tuple::Lookup;
use fw_common::datapath::{Verdict, egress, ingress};
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};

const LO: u32 = 1;
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const SERVER4: &str = "198.51.100.10";
const SERVER6: &str = "2001:db8:1::10";

/// A machine, and the scratch space of its one CPU.
struct Machine {
    tables: HostTables,
    scratch: Scratch,
}

impl Machine {
    /// One that accepts everything, and has these rules in nat.
    fn with(family: Family, rules: &str) -> Self {
        let nat = if rules.is_empty() {
            String::new()
        } else {
            format!(
                "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
                 {rules}\nCOMMIT\n"
            )
        };
        let text =
            format!("*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n{nat}");
        let file = SourceFile::new("rules", text, Some(family));
        let policy = load(&[file], LoadOptions { strict: true })
            .expect("the rules are right")
            .policy;
        let set = compile(&policy, &Slots::fresh(&policy), 1, &[]).expect("within the limits");
        let device = |index, name| HostDevice {
            masquerade4: Some(SERVER4.parse().expect("an address")),
            masquerade6: Some(SERVER6.parse().expect("an address")),
            ..HostDevice::ethernet(index, name)
        };
        let host = Host {
            broadcast: Vec::new(),
            devices: vec![
                HostDevice::loopback(),
                device(ETH0, "eth0"),
                device(ETH1, "eth1"),
            ],
            local: ["198.51.100.10/32", "2001:db8:1::10/128", "::1/128"]
                .map(|prefix| prefix.parse().expect("a prefix"))
                .to_vec(),
            ..Host::default()
        };
        Self {
            tables: HostTables::running(host, set),
            scratch: Scratch::default(),
        }
    }

    fn arrive(&mut self, device: u32, packet: SlicePacket) -> (Verdict, SlicePacket) {
        let mut packet = SlicePacket {
            device,
            arrival_device: device,
            ..packet
        };
        let verdict = ingress(&mut packet, &self.tables, &mut self.scratch);
        (verdict, packet)
    }

    fn leave(&mut self, device: u32, packet: SlicePacket) -> (Verdict, SlicePacket) {
        let mut packet = packet.at_egress_of(device);
        let verdict = egress(&mut packet, &self.tables, &mut self.scratch);
        (verdict, packet)
    }

    fn forward(&mut self, from: u32, to: u32, ip: Vec<u8>) -> SlicePacket {
        let (verdict, packet) = self.arrive(from, frame(ip));
        assert_eq!(verdict, Verdict::Pass);
        assert_ne!(packet.note, 0, "it is for this host");
        let (verdict, packet) = self.leave(to, packet);
        assert_eq!(verdict, Verdict::Pass);
        packet
    }

    /// What this host sends to itself.
    fn loop_back(&mut self, ip: Vec<u8>) {
        let (verdict, packet) = self.leave(LO, frame(ip).made_here());
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(self.arrive(LO, packet).0, Verdict::Pass);
    }

    fn label(&self) -> (u8, u8) {
        (self.scratch.tracked.ct, self.scratch.tracked.direction)
    }
}

fn frame(ip: Vec<u8>) -> SlicePacket {
    let ethertype: [u8; 2] = match ip[0] >> 4 {
        4 => [0x08, 0x00],
        _ => [0x86, 0xdd],
    };
    SlicePacket::ethernet([&[2; 12][..], &ethertype, &ip].concat(), ETH0)
}

fn ip(source: &str, destination: &str, hops: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    match (address(source), address(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), hops)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), hops)
        }
        mixed => panic!("{mixed:?}"),
    }
}

fn tcp(way: [&str; 2], ports: [u16; 2], flags: u8, numbers: [u32; 2], length: usize) -> Vec<u8> {
    let mut header = TcpHeader::new(ports[0], ports[1], numbers[0], 1000);
    header.acknowledgment_number = numbers[1];
    header.syn = flags & flag::SYN != 0;
    header.ack = flags & flag::ACK != 0;
    header.rst = flags & flag::RST != 0;
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .tcp_header(header)
        .write(&mut bytes, &vec![0; length])
        .expect("a packet");
    bytes
}

fn udp(way: [&str; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .udp(ports[0], ports[1])
        .write(&mut bytes, b"odd")
        .expect("a packet");
    bytes
}

fn other(way: [&str; 2], protocol: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .write(&mut bytes, IpNumber(protocol), &[0; 20])
        .expect("a packet");
    bytes
}

fn icmpv6(way: [&str; 2], hops: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], hops)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut bytes, rest)
        .expect("a packet");
    bytes
}

fn icmpv4(way: [&str; 2], kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .icmpv4_raw(kind, code, [0; 4])
        .write(&mut bytes, quoted)
        .expect("a packet");
    bytes
}

/// The kernel's error about what a host sent to itself in a protocol that nobody takes goes the other
/// way than that packet: after the first packet, which went the original way, they alternate with what
/// netfilter's table finds, which is the reply's entry (`nf_conntrack_attach`).
#[test]
fn errors_about_what_was_sent_to_itself() {
    let mut machine = Machine::with(Family::Ipv6, "");
    let own = ["::1", "::1"];
    let packet = other(own, 99);
    let error = icmpv6(own, 64, 4, &packet);
    machine.loop_back(packet.clone());
    assert_eq!(machine.label(), (ct::NEW, 0));
    let (_, sent) = machine.leave(LO, frame(error.clone()).made_here());
    assert_eq!(machine.label(), (ct::RELATED, 1));
    machine.arrive(LO, sent);
    machine.loop_back(packet);
    assert_eq!(machine.label(), (ct::ESTABLISHED, 1));
    machine.leave(LO, frame(error).made_here());
    assert_eq!(machine.label(), (ct::RELATED, 0));
}

/// A reset that ended a masqueraded connection on its way through, but did not get far, leaves its
/// name free at once.
#[test]
fn the_name_of_a_connection_that_a_reset_ended_is_free() {
    let mut machine = Machine::with(Family::Ipv4, "-A POSTROUTING -o eth1 -j MASQUERADE");
    let out = ["192.0.2.7", "203.0.113.9"];
    machine.forward(ETH0, ETH1, tcp(out, [22, 40000], flag::ACK, [7, 9], 0));
    let reset = tcp(out, [22, 40000], flag::RST | flag::ACK, [7, 9], 0);
    // It came with one hop left.
    assert_eq!(machine.arrive(ETH0, frame(reset)).0, Verdict::Pass);
    let opening = tcp(["203.0.113.9", SERVER4], [40000, 22], flag::SYN, [1, 0], 0);
    let before = frame(opening.clone());
    let (verdict, packet) = machine.arrive(ETH1, before.clone());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(packet.bytes, before.bytes, "its source port was changed");
}

/// A reset in a connection that is not established yet is held against the window, even if it
/// acknowledges exactly what was sent last (`nf_conntrack_tcp_packet`: what it answers is asked only if
/// its number is not exact in an established one).
#[test]
fn resets_of_half_open_connections_are_held_against_the_window() {
    let mut machine = Machine::with(Family::Ipv4, "");
    let (to, back) = (["192.0.2.7", "203.0.113.9"], ["203.0.113.9", "192.0.2.7"]);
    let open = tcp(to, [40000, 80], flag::SYN, [100, 0], 0);
    let answer = tcp(back, [80, 40000], flag::SYN | flag::ACK, [5000, 101], 0);
    machine.forward(ETH0, ETH1, open);
    machine.forward(ETH1, ETH0, answer);
    // What the reset seems to answer.
    machine.forward(
        ETH1,
        ETH0,
        tcp(back, [80, 40000], flag::ACK, [5001, 101], 900),
    );
    let reset = flag::RST | flag::ACK;
    machine.forward(
        ETH0,
        ETH1,
        tcp(to, [40000, 80], reset, [101 + 2000, 5901], 0),
    );
    assert_eq!(machine.label().0, ct::INVALID);
}

/// What a policy has cut is absent: what its opener sends is judged as if it was new, a SYN makes room for
/// a new connection, and nothing else is taken for the beginning of one.
#[test]
fn what_is_cut_is_not_picked_up_again() {
    for translated in ["", "-A POSTROUTING -o eth1 -j MASQUERADE"] {
        let mut machine = Machine::with(Family::Ipv4, translated);
        let outer = if translated.is_empty() {
            "192.0.2.7"
        } else {
            SERVER4
        };
        let (to, back) = (["192.0.2.7", "203.0.113.9"], ["203.0.113.9", outer]);
        machine.forward(ETH0, ETH1, udp(to, [5000, 53]));
        machine.forward(ETH1, ETH0, udp(back, [53, 5000]));
        machine.forward(ETH0, ETH1, udp(to, [5000, 53]));
        let syn = |number| tcp(to, [40000, 80], flag::SYN, [number, 0], 0);
        machine.forward(ETH0, ETH1, syn(100));
        let both = flag::SYN | flag::ACK;
        machine.forward(ETH1, ETH0, tcp(back, [80, 40000], both, [500, 101], 0));
        machine.forward(ETH0, ETH1, tcp(to, [40000, 80], flag::ACK, [101, 501], 0));
        for (key, held) in &machine.tables.state().flows {
            let status = held.flow.status.get();
            if status & Flow::ALIAS == 0 {
                held.flow.status.set(status | Flow::DYING | Flow::REVOKED);
                machine.tables.put_flow(key, &held.flow, held.embryo);
            }
        }
        let mut label = |device, bytes| {
            machine.arrive(device, frame(bytes));
            machine.label().0
        };
        assert_eq!(label(ETH1, udp(back, [53, 5000])), ct::INVALID);
        assert_eq!(label(ETH0, udp(to, [5000, 53])), ct::NEW);
        let later = |way, ports, numbers| tcp(way, ports, flag::ACK, numbers, 9);
        assert_eq!(
            label(ETH1, later(back, [80, 40000], [501, 101])),
            ct::INVALID
        );
        assert_eq!(label(ETH0, later(to, [40000, 80], [101, 501])), ct::INVALID);
        assert_eq!(
            label(ETH1, later(back, [80, 40000], [501, 101])),
            ct::INVALID
        );
        let fin = tcp(back, [80, 40000], flag::RST | flag::ACK, [501, 101], 0);
        assert_eq!(label(ETH1, fin), ct::INVALID);
        // One that begins anew.
        machine.forward(ETH0, ETH1, syn(9000));
        assert_eq!(machine.label().0 & ct::NEW, ct::NEW);
        machine.forward(ETH1, ETH0, tcp(back, [80, 40000], both, [7000, 9001], 0));
        assert_eq!(machine.label().0 & ct::ESTABLISHED, ct::ESTABLISHED);
    }
}

/// The quoted packet's destination is the redirect's third part (RFC 4861 4.5).
fn redirect(way: [&str; 2], hops: u8, option: [u8; 2], quoted: &[u8]) -> Vec<u8> {
    let target: Ipv6Addr = "fe80::9".parse().expect("an address");
    let mut rest = [target.octets(), [0; 16]].concat();
    rest.extend(option);
    rest.extend([0; 6]);
    rest.extend(quoted);
    icmpv6(way, hops, 137, &rest)
}

#[test]
fn redirects_of_neighbours_are_related() {
    let mut machine = Machine::with(Family::Ipv6, "");
    let packet = udp([SERVER6, "2001:db8:9::1"], [5000, 53]);
    let (verdict, _) = machine.leave(ETH0, frame(packet.clone()).made_here());
    assert_eq!(verdict, Verdict::Pass);
    let to = ["fe80::1", SERVER6];
    for (bytes, label) in [
        (redirect(to, 255, [4, 8], &packet), ct::RELATED),
        (redirect(to, 254, [4, 8], &packet), ct::INVALID),
        (redirect(to, 255, [4, 0], &packet), ct::INVALID),
        // The target's link-layer address, which may come before.
        (redirect(to, 255, [2, 1], &packet), ct::INVALID),
        (
            redirect(["2001:db8:1::1", SERVER6], 255, [4, 8], &packet),
            ct::INVALID,
        ),
        (
            redirect(
                to,
                255,
                [4, 8],
                &udp([SERVER6, "2001:db8:9::1"], [5001, 53]),
            ),
            ct::INVALID,
        ),
    ] {
        let (verdict, _) = machine.arrive(ETH0, frame(bytes));
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(machine.label().0, label);
    }
}

/// Redirects about translated connections are dropped (`nf_nat_icmp_reply_translation`).
#[test]
fn redirects_about_translated_connections_are_dropped() {
    let mut machine = Machine::with(Family::Ipv4, "-A POSTROUTING -o eth1 -j MASQUERADE");
    let packet = udp(["192.0.2.7", "203.0.113.9"], [5000, 53]);
    let sent = machine.forward(ETH0, ETH1, packet).bytes.split_off(14);
    let router = ["203.0.113.1", SERVER4];
    let unreachable = icmpv4(router, 3, 1, &sent);
    assert_eq!(machine.arrive(ETH1, frame(unreachable)).0, Verdict::Pass);
    assert_eq!(machine.label().0, ct::RELATED | ct::SNAT);
    let redirect = icmpv4(router, 5, 1, &sent);
    assert!(matches!(
        machine.arrive(ETH1, frame(redirect)).0,
        Verdict::Drop(_)
    ));
}

/// A connection whose reply's name was taken has a drawn port, and keeps it to its end.
#[test]
fn a_reset_leaves_under_the_port_that_its_flow_drew() {
    for (client, inner) in [("192.0.2.9", "10.0.0.2"), ("10.0.0.2", "192.0.2.9")] {
        for data in [0, 1] {
            let rule = format!("-A PREROUTING -d {SERVER4} -j DNAT --to-destination {inner}");
            let mut machine = Machine::with(Family::Ipv4, &rule);
            let ack = tcp([inner, client], [80, 1023], flag::ACK, [500, 100], 10);
            assert_eq!(machine.leave(ETH0, frame(ack).made_here()).0, Verdict::Pass);
            let (way, ports) = ([client, SERVER4], [1023, 80]);
            let first = tcp(way, ports, flag::ACK, [99, 500], data);
            let drawn = source_port(&machine.forward(ETH0, ETH1, first));
            assert_ne!(drawn, 1023);
            let reset = tcp(way, ports, flag::RST | flag::ACK, [100, 500], 0);
            let port = source_port(&machine.forward(ETH0, ETH1, reset));
            assert_eq!(port, drawn, "from {client}, after {data} bytes");
        }
    }
}

/// As above, where the name that the packet comes under is that of a connection whose destination is
/// translated: the reset is none of that one's.
#[test]
fn a_reset_under_the_name_of_a_redirected_connection_leaves_under_its_drawn_port() {
    const HERE: &str = "10.0.0.2";
    const THERE: &str = "10.0.1.2";
    let rule = format!("-A PREROUTING -d 203.0.113.7 -j DNAT --to-destination {THERE}");
    let mut machine = Machine::with(Family::Ipv4, &rule);
    let open = tcp([HERE, "203.0.113.7"], [1023, 80], flag::SYN, [1000, 0], 0);
    machine.forward(ETH0, ETH1, open);
    let way = [HERE, THERE];
    let open = tcp(way, [1023, 80], flag::SYN, [5000, 0], 0);
    let drawn = source_port(&machine.forward(ETH0, ETH1, open));
    assert_ne!(drawn, 1023, "two connections bear one name");
    let reset = tcp(way, [1023, 80], flag::RST | flag::ACK, [5001, 0], 0);
    assert_eq!(source_port(&machine.forward(ETH0, ETH1, reset)), drawn);
    // It has ended, and the other one lives.
    assert_eq!(machine.tables.state().flows.len(), 2);
}

/// Two connections of one source to two places, which are translated to one and drew a port each.
#[test]
fn connections_to_one_translated_place_live_side_by_side() {
    const CLIENT: &str = "198.51.100.1";
    const OTHER: &str = "10.1.2.3";
    const PUBLIC: &str = "192.168.50.1";
    let rules = format!(
        "-A PREROUTING -d {PUBLIC} -p tcp -j DNAT --to-destination 203.0.113.7:39999-40001\n\
         -A POSTROUTING -o eth1 -j MASQUERADE"
    );
    let mut machine = Machine::with(Family::Ipv4, &rules);
    let first = tcp([OTHER, PUBLIC], [1023, 53], flag::SYN, [1, 0], 0);
    assert_eq!(source_port(&machine.forward(ETH0, ETH1, first)), 1023);
    let way = [CLIENT, PUBLIC];
    let ended = tcp(way, [1023, 81], flag::SYN, [100, 0], 0);
    let drawn = source_port(&machine.forward(ETH0, ETH1, ended));
    let reset = tcp(
        ["203.0.113.7", SERVER4],
        [39_999, drawn],
        flag::RST | flag::ACK,
        [9, 101],
        0,
    );
    assert_eq!(machine.arrive(ETH1, frame(reset)).0, Verdict::Pass);
    let met = tcp(way, [1023, 25], flag::ACK, [500, 900], 20);
    let drawn = source_port(&machine.forward(ETH0, ETH1, met));
    let again = tcp(way, [1023, 81], flag::SYN, [7000, 0], 0);
    assert_ne!(source_port(&machine.forward(ETH0, ETH1, again)), drawn);
    let more = tcp(way, [1023, 25], flag::ACK, [520, 900], 60);
    assert_eq!(source_port(&machine.forward(ETH0, ETH1, more)), drawn);
}

/// Of two connections between the same endpoints, the one that was opened from here goes on when the
/// other, redirected one has ended and waits for its reset to leave.
#[test]
fn a_connection_outlives_another_one_of_the_same_endpoints() {
    const CLIENT: &str = "203.0.113.7";
    let rule = "-A PREROUTING -d 192.168.50.1 -j DNAT --to-destination 10.0.0.9";
    let mut machine = Machine::with(Family::Ipv4, rule);
    let ports = [40_000, 40_000];
    let redirected = tcp([CLIENT, "192.168.50.1"], ports, flag::SYN, [100, 0], 0);
    machine.forward(ETH0, ETH1, redirected);
    let way = ["192.168.50.1", CLIENT];
    let own = tcp(way, ports, flag::SYN, [7000, 0], 0);
    let (verdict, packet) = machine.leave(ETH0, frame(own).made_here());
    assert_eq!(verdict, Verdict::Pass);
    let drawn = source_port(&packet);
    assert_ne!(
        drawn, 40_000,
        "answers would be the redirected connection's requests"
    );
    let reset = tcp(
        ["10.0.0.9", CLIENT],
        ports,
        flag::RST | flag::ACK,
        [9, 101],
        0,
    );
    assert_eq!(machine.arrive(ETH1, frame(reset)).0, Verdict::Pass);
    let more = tcp(way, ports, flag::SYN, [7000, 0], 0);
    let (verdict, packet) = machine.leave(ETH0, frame(more).made_here());
    assert_eq!((verdict, source_port(&packet)), (Verdict::Pass, drawn));
}

/// Both directions of a connection from an endpoint to itself look alike; its second packet is an answer
/// to rules at either end of loopback.
#[test]
fn the_answer_of_a_connection_to_itself_was_seen() {
    const RULE: &str =
        "COMMIT\n*mangle\n-A INPUT -m conntrack --ctstatus SEEN_REPLY --ctdir REPLY -j DROP";
    let mut machine = Machine::with(Family::Ipv6, RULE);
    let (way, ports) = (["::1", "::1"], [40_001, 40_001]);
    machine.loop_back(tcp(way, ports, flag::ACK, [1000, 2000], 0));
    let answer = tcp(way, ports, flag::ACK, [2000, 1000], 0);
    let (verdict, packet) = machine.leave(LO, frame(answer).made_here());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(machine.arrive(LO, packet).0, Verdict::Drop(Stat::Policy));
}

/// What a packet met, which netfilter had translated and which is dropped for it, says nothing of the next
/// one, whatever that is.
#[test]
fn what_one_packet_met_is_forgotten_for_the_next() {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const UNREACHABLE: u8 = 1;
    let mut machine = Machine::with(Family::Ipv6, "-A POSTROUTING -o eth1 -j MASQUERADE");
    let way = [SERVER6, "2001:db8::2"];
    let quoted = tcp(["2001:db8::2", SERVER6], [80, 5000], flag::SYN, [1, 0], 0);
    for packet in [
        icmpv6(way, 255, NEIGHBOUR_SOLICITATION, &[0; 20]),
        icmpv6(way, 64, UNREACHABLE, &quoted),
        tcp(way, [5000, 80], flag::SYN, [1, 0], 0),
    ] {
        machine.scratch.lookup.met = Lookup::STANDS_IN;
        let (verdict, _) = machine.leave(ETH0, frame(packet).made_here());
        assert_eq!(verdict, Verdict::Pass);
    }
}

/// Between the same endpoints, one after the other: a connection of another source that is masqueraded, one
/// that is redirected and reset, and one of the masquerade's own address. Each has its names, though what
/// has ended keeps its record for rules that may ask for it.
#[test]
fn a_connection_takes_the_second_name_of_one_that_has_ended() {
    const PEER: &str = "2001:db8:50::9";
    let rules = "-A PREROUTING -j REDIRECT\n-A POSTROUTING -p tcp -j MASQUERADE\nCOMMIT\n\
                 *mangle\n-A INPUT -m conntrack --ctstatus SEEN_REPLY";
    let mut machine = Machine::with(Family::Ipv6, rules);
    let first = tcp(["fd17::1", PEER], [81, 50_000], flag::ACK, [900, 300], 0);
    let (_, packet) = machine.leave(ETH1, frame(first).made_here());
    assert_eq!(ports(&packet), (81, 50_000));
    for _ in 0..2 {
        let redirected = tcp([PEER, "fd00:10::3"], [50_000, 81], flag::ACK, [500, 700], 0);
        let (_, packet) = machine.arrive(ETH1, frame(redirected));
        assert_eq!(ports(&packet), (50_000, 81), "its name was free again");
        let reset = tcp([SERVER6, PEER], [81, 50_000], flag::RST, [700, 0], 0);
        let (verdict, _) = machine.leave(ETH1, frame(reset).made_here());
        assert_eq!(verdict, Verdict::Pass);
    }
    let own = tcp([SERVER6, PEER], [81, 50_000], flag::ACK, [700, 500], 0);
    let (_, packet) = machine.leave(ETH1, frame(own).made_here());
    let (drawn, _) = ports(&packet);
    assert_ne!(drawn, 81, "answers would be the first one's");
    let answer = tcp([PEER, SERVER6], [50_000, drawn], flag::ACK, [500, 700], 0);
    let (_, packet) = machine.arrive(ETH1, frame(answer));
    assert_eq!(ports(&packet), (50_000, 81));
}

/// A connection that only waits for its time to end makes way for one whose destination a rule with one
/// port gives the same two ends; one that goes on does not.
#[test]
fn a_closed_connection_makes_way_for_a_translated_destination() {
    const SERVER: &str = "203.0.113.7";
    let rules = "-A OUTPUT -p tcp -j DNAT --to-destination :22\n\
                 -A POSTROUTING -o eth1 -j MASQUERADE";
    for (closed, sequence, kept) in [(true, 9000, true), (true, 50, false), (false, 9000, false)] {
        let mut machine = Machine::with(Family::Ipv4, rules);
        let way = ["10.0.0.9", SERVER];
        let first = tcp(way, [1023, 8080], flag::ACK, [100, 500], 0);
        let (_, packet) = machine.leave(ETH1, frame(first).made_here());
        assert_eq!(source_port(&packet), 1023);
        let answer = tcp([SERVER, SERVER4], [22, 1023], flag::ACK, [500, 100], 6);
        assert_eq!(machine.arrive(ETH1, frame(answer)).0, Verdict::Pass);
        if closed {
            let reset = tcp(way, [1023, 8080], flag::RST, [100, 0], 0);
            machine.leave(ETH1, frame(reset).made_here());
        }
        let (way, ports) = ([SERVER4, SERVER], [1023, 8080]);
        let own = tcp(way, ports, flag::SYN, [sequence, 0], 0);
        let (verdict, packet) = machine.leave(ETH1, frame(own).made_here());
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(source_port(&packet) == 1023, kept, "{closed} {sequence}");
    }
}

/// The identifier of an echo of this host's that a masqueraded one has already is changed in OUTPUT, with
/// the destination, to the lowest that is free; POSTROUTING keeps it, whatever the source becomes
/// (`nf_nat_l4proto_unique_tuple` and `nf_nat_alloc_null_binding`, net/netfilter/nf_nat_core.c). ICMP errors
/// are translated accordingly (`nf_nat_icmp_reply_translation`, net/netfilter/nf_nat_proto.c).
#[test]
fn an_echo_whose_identifier_is_taken_gets_another_one_with_its_destination() {
    const FAR: &str = "203.0.113.7";
    const OTHER: &str = "198.51.100.20";
    const REQUEST: u8 = 8;
    const MASQUERADE: &str = "-A POSTROUTING -s 10.0.0.2 -j MASQUERADE\n";
    let snat = format!("{MASQUERADE}-A POSTROUTING -o eth0 -j SNAT --to-source {OTHER}");
    let of_rule = ct::DNAT | ct::SNAT;
    for (rules, source, nat) in [
        (MASQUERADE, SERVER4, ct::DNAT | ct::RENAMED),
        (&snat, OTHER, of_rule),
    ] {
        let mut machine = Machine::with(Family::Ipv4, rules);
        let first = machine.forward(ETH1, ETH0, echo(["10.0.0.2", FAR], REQUEST, 5));
        assert_eq!(first.bytes[14..], echo([SERVER4, FAR], REQUEST, 5));
        for state in [ct::NEW, ct::NEW] {
            let own = frame(echo([SERVER4, FAR], REQUEST, 5)).made_here();
            let (verdict, own) = machine.leave(ETH0, own);
            assert_eq!(verdict, Verdict::Pass);
            assert_eq!(own.bytes[14..], echo([source, FAR], REQUEST, 0));
            assert_eq!(machine.label(), (state | nat, 0));
        }

        let about = |way, quoted: &[u8]| icmpv4(way, 3, 1, quoted);
        let error = about(["192.0.2.1", source], &echo([source, FAR], REQUEST, 0));
        let (verdict, error) = machine.arrive(ETH0, frame(error));
        assert_eq!(verdict, Verdict::Pass);
        let restored = about([FAR, SERVER4], &echo([SERVER4, FAR], REQUEST, 5));
        assert_eq!(error.bytes[14..], restored);
        assert_eq!(machine.label(), (ct::RELATED | nat, 1));

        let (verdict, reply) = machine.arrive(ETH0, frame(echo([FAR, source], 0, 0)));
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(reply.bytes[14..], echo([FAR, SERVER4], 0, 5));
        assert_eq!(machine.label(), (ct::ESTABLISHED | nat, 1));

        let error = about(["192.168.50.1", FAR], &echo([FAR, SERVER4], 0, 5));
        let (verdict, error) = machine.leave(ETH0, frame(error).made_here());
        assert_eq!(verdict, Verdict::Pass);
        let sender = if nat == of_rule {
            source
        } else {
            "192.168.50.1"
        };
        let translated = about([sender, FAR], &echo([FAR, source], 0, 0));
        assert_eq!(error.bytes[14..], translated);
    }
}

fn echo(way: [&str; 2], kind: u8, identifier: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .icmpv4_raw(kind, 0, [0, identifier, 0, 1])
        .write(&mut bytes, b"odd")
        .expect("a packet");
    bytes
}

fn source_port(packet: &SlicePacket) -> u16 {
    u16::from_be_bytes([packet.bytes[34], packet.bytes[35]])
}

/// Of an IPv6 packet without extension headers.
fn ports(packet: &SlicePacket) -> (u16, u16) {
    let at = |place| u16::from_be_bytes([packet.bytes[place], packet.bytes[place + 1]]);
    (at(54), at(56))
}
