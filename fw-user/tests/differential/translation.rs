//! Corners of NAT, packet by packet, with what netfilter makes of them.

use std::net::Ipv4Addr;

use etherparse::{IpFragOffset, Ipv4Header};
use fw_common::abi::ct;
use fw_common::abi::stat::Stat;
use fw_common::datapath::Verdict;
use fw_common::datapath::tcp::flag;
use fw_user::policy::model::Family;
use fw_user::sim::SlicePacket;

use crate::machine::{
    ETH0, ETH1, LO, Machine, SERVER4, SERVER6, frame, icmpv4, icmpv6, ip, other, tcp, udp,
};

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

/// A fragment at so many eight bytes, of two.
fn fragment(whole: &[u8], offset: u16) -> Vec<u8> {
    let (mut header, data) = Ipv4Header::from_slice(whole).expect("an IPv4 packet");
    header.more_fragments = offset == 0;
    header.fragment_offset = IpFragOffset::try_new(offset).expect("within range");
    let mut bytes = Vec::new();
    header.write(&mut bytes).expect("a header");
    bytes.extend(data);
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

/// connlimit looks for what it counted as netfilter does, by its tuple: a translated connection has its answers'
/// under another name, so that one the other way round is not there.
#[test]
fn a_translated_connection_is_not_counted_the_other_way_round() {
    const OTHER: &str = "198.51.100.20";
    const FAR: &str = "192.0.2.2";
    let mut machine = Machine::loading(
        Family::Ipv4,
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
         -A INPUT -p tcp --syn -m connlimit --connlimit-upto 1 --connlimit-daddr -j DROP\nCOMMIT\n\
         *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
         -A POSTROUTING -p tcp -o eth0 -j SNAT --to-source 198.51.100.20\nCOMMIT\n",
    );
    let arrives = |ports| frame(tcp([FAR, SERVER4], ports, flag::SYN, [100, 0], 0));
    assert!(matches!(
        machine.arrive(ETH0, arrives([4000, 80])).0,
        Verdict::Drop(_)
    ));
    let own = frame(tcp([SERVER4, FAR], [80, 4000], flag::SYN, [100, 0], 0)).made_here();
    let (verdict, own) = machine.leave(ETH0, own);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(
        own.bytes[14..],
        tcp([OTHER, FAR], [80, 4000], flag::SYN, [100, 0], 0)
    );
    // The first one was dropped, and the second one's answers come to another address.
    assert!(matches!(
        machine.arrive(ETH0, arrives([4001, 80])).0,
        Verdict::Drop(_)
    ));
}

/// A source keeps the port that was drawn for it, whichever of its connections begin again in the place of one
/// that has ended, and keeps its record for rules that may ask for it.
#[test]
fn a_source_keeps_its_port_when_its_newest_connection_begins_again() {
    const CLIENT: &str = "192.0.2.2";
    let rules = "-A INPUT -p tcp -j SNAT --to-source :20000-23000\nCOMMIT\n\
                 *mangle\n-A INPUT -m conntrack --ctstatus SEEN_REPLY";
    let mut machine = Machine::with(Family::Ipv4, rules);
    let arrives = |machine: &mut Machine, port, flags| {
        let ip = tcp([CLIENT, SERVER4], [50_000, port], flags, [100, 500], 0);
        let (verdict, packet) = machine.arrive(ETH0, frame(ip));
        assert_eq!(verdict, Verdict::Pass);
        source_port(&packet)
    };
    let drawn = arrives(&mut machine, 80, flag::SYN);
    assert!((20_000..=23_000).contains(&drawn));
    for _ in 0..2 {
        assert_eq!(arrives(&mut machine, 81, flag::ACK), drawn);
        let reset = tcp([SERVER4, CLIENT], [81, drawn], flag::RST, [500, 0], 0);
        let (verdict, packet) = machine.leave(ETH0, frame(reset).made_here());
        assert_eq!(verdict, Verdict::Pass);
        let restored = tcp([SERVER4, CLIENT], [81, 50_000], flag::RST, [500, 0], 0);
        assert_eq!(packet.bytes[14..], restored);
    }
    assert_eq!(arrives(&mut machine, 82, flag::SYN), drawn);
}

/// A second tunnel to one translated place has no name of its own and is dropped, in fragments, too.
#[test]
fn the_later_fragments_of_what_finds_no_name_are_dropped() {
    const GRE: u8 = 47;
    const INNER: &str = "10.0.0.3";
    let rules = "-A PREROUTING -j DNAT --to-destination 10.0.0.3";
    let mut machine = Machine::with(Family::Ipv4, rules);
    machine.forward(ETH0, ETH1, other(["192.0.2.2", "10.0.0.2"], GRE));
    for (offset, reason) in [(0, Stat::NoFreePort), (1, Stat::NoFlowEntry)] {
        let fragment = fragment(&other(["192.0.2.2", "10.0.0.4"], GRE), offset);
        let (verdict, fragment) = machine.arrive(ETH0, frame(fragment));
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(
            fragment.bytes[30..34],
            INNER.parse::<Ipv4Addr>().expect("an address").octets()
        );
        assert_eq!(machine.leave(ETH1, fragment).0, Verdict::Drop(reason));
    }
}

/// MASQUERADE on loopback may make a packet one from an endpoint to itself. The kernel's error about it still
/// goes to whoever sent it.
#[test]
fn an_error_about_what_became_its_own_sender_is_told_to_the_sender() {
    const OTHER: &str = "2001:db8:50::1";
    let rules = "-A POSTROUTING -j SNAT --to-source 2001:db8:1::10";
    let mut machine = Machine::with(Family::Ipv6, rules);
    let (verdict, packet) = machine.leave(LO, frame(other([OTHER, SERVER6], 99)).made_here());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(packet.bytes[14..], other([SERVER6, SERVER6], 99));
    let (verdict, packet) = machine.arrive(LO, packet);
    assert_eq!(verdict, Verdict::Pass);
    let error = icmpv6([SERVER6, SERVER6], 64, 4, &packet.bytes[14..]);
    let (verdict, error) = machine.leave(LO, frame(error).made_here());
    assert_eq!(verdict, Verdict::Pass);
    let told = icmpv6([SERVER6, OTHER], 64, 4, &other([OTHER, SERVER6], 99));
    assert_eq!(error.bytes[14..], told);
}

/// A connection whose two tuples are one: sent to a masqueraded address, and translated to its sender. What
/// comes after is its answers, and nobody else gets its names.
#[test]
fn what_comes_back_to_its_sender_under_its_own_name_is_an_answer() {
    const PEER: &str = "fd00:10::9";
    const MASQUERADE: &str = "2001:db8:50::1";
    let rules = format!(
        "-A PREROUTING -d {MASQUERADE} -j DNAT --to-destination {PEER}\n\
         -A POSTROUTING -p tcp -j SNAT --to-source {MASQUERADE}"
    );
    let mut machine = Machine::with(Family::Ipv6, &rules);
    let (way, back, same) = ([PEER, MASQUERADE], [MASQUERADE, PEER], [40_000, 40_000]);
    for (flags, numbers, label) in [
        (flag::SYN, [100, 0], (ct::NEW | ct::SNAT | ct::DNAT, 0)),
        (
            flag::SYN | flag::ACK,
            [700, 101],
            (ct::ESTABLISHED | ct::SNAT | ct::DNAT, 1),
        ),
    ] {
        let packet = machine.forward(ETH1, ETH1, tcp(way, same, flags, numbers, 0));
        assert_eq!(packet.bytes[14..], tcp(back, same, flags, numbers, 0));
        assert_eq!(machine.label(), label);
    }
    let other = tcp(["2001:db8::2", PEER], same, flag::SYN, [100, 0], 0);
    let (drawn, _) = ports(&machine.forward(ETH0, ETH1, other));
    assert_ne!(drawn, 40_000, "answers would be the first one's");
}

/// A connection that bears its second name keeps both from others when the one is gone whose the first was.
#[test]
fn the_second_name_of_a_connection_outlives_the_first() {
    const PEER: &str = "2001:db8::2";
    let (own, back) = ([SERVER6, PEER], [PEER, SERVER6]);
    // What was masqueraded came first, and has the names of this host's own connection.
    let mut machine = Machine::with(Family::Ipv6, "-A POSTROUTING -o eth0 -j MASQUERADE");
    let leaves = |machine: &mut Machine, way, flags, numbers| {
        let ip = tcp(way, [40_001, 443], flags, numbers, 0);
        let (verdict, packet) = machine.leave(ETH0, frame(ip).made_here());
        assert_eq!(verdict, Verdict::Pass);
        ports(&packet).0
    };
    let first = ["fd17::1", PEER];
    assert_eq!(leaves(&mut machine, first, flag::ACK, [500, 700]), 40_001);
    assert_ne!(leaves(&mut machine, own, flag::SYN, [5000, 0]), 40_001);
    let reset = tcp(back, [443, 40_001], flag::RST, [700, 0], 0);
    assert_eq!(machine.arrive(ETH0, frame(reset)).0, Verdict::Pass);
    let stranger = tcp(back, [443, 40_001], flag::ACK, [9000, 7010], 0);
    let (verdict, packet) = machine.arrive(ETH0, frame(stranger));
    assert_eq!(
        (verdict, machine.label().0),
        (Verdict::Pass, ct::NEW | ct::SNAT)
    );
    assert_ne!(
        ports(&packet).0,
        443,
        "answers would be packets of this host's connection"
    );

    // The other way round: the name of what is masqueraded was that of this host's own.
    let rules = format!(
        "-A POSTROUTING -s {SERVER6} -p tcp -j SNAT --to-source :50000\n\
         -A POSTROUTING -j MASQUERADE"
    );
    let mut machine = Machine::with(Family::Ipv6, &rules);
    assert_eq!(leaves(&mut machine, own, flag::SYN, [5000, 0]), 50_000);
    assert_eq!(leaves(&mut machine, first, flag::SYN, [500, 0]), 40_001);
    let reset = tcp(back, [443, 50_000], flag::RST | flag::ACK, [0, 5001], 0);
    assert_eq!(machine.arrive(ETH0, frame(reset)).0, Verdict::Pass);
    let other = ["fd17::2", PEER];
    assert_ne!(leaves(&mut machine, other, flag::SYN, [900, 0]), 40_001);
}

/// A connection comes from the port that was drawn for another one of the same hosts. What answers its packets
/// is about none but it, though answers to the other one's bear the same name.
#[test]
fn an_answer_is_about_the_connection_that_its_packet_belongs_to() {
    const CLIENT: &str = "10.0.0.2";
    const PEER: &str = "192.0.2.7";
    for (with, length) in [("icmp-port-unreachable", 82), ("tcp-reset", 54)] {
        let mut machine = Machine::loading(
            Family::Ipv4,
            &format!(
                "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
                 -A FORWARD -p tcp -i eth0 -m conntrack --ctstate ESTABLISHED -j REJECT --reject-with {with}\n\
                 COMMIT\n*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
                 -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n"
            ),
        );
        let forth = tcp([CLIENT, PEER], [1023, 25], flag::SYN, [100, 0], 0);
        machine.forward(ETH1, ETH0, forth);
        let back = |port| tcp([PEER, CLIENT], [port, 1023], flag::ACK, [500, 100], 0);
        let first = source_port(&machine.forward(ETH0, ETH1, back(25)));
        let second = source_port(&machine.forward(ETH0, ETH1, back(first)));
        assert!(![25, first].contains(&second), "both had the name");
        let reply = tcp([CLIENT, PEER], [1023, second], flag::ACK, [100, 500], 0);
        machine.forward(ETH1, ETH0, reply);

        let (verdict, packet) = machine.arrive(ETH0, frame(back(first)));
        assert_eq!(verdict, Verdict::Pass);
        let (verdict, answer) = machine.leave(ETH1, packet);
        assert_eq!(verdict, Verdict::Answer, "{with}");
        let (verdict, answer) = machine.leave(ETH0, answer);
        assert_eq!((verdict, answer.bytes.len()), (Verdict::Pass, length));
        let port = if with == "tcp-reset" { 36 } else { 62 };
        assert_eq!(answer.bytes[port..port + 2], first.to_be_bytes(), "{with}");
    }
}

/// A rule's range with a base below which the packet's own port is: the search begins near the range's end by
/// netfilter's arithmetic, and goes on at its beginning.
#[test]
fn a_search_for_ports_goes_on_behind_65535_as_it_does_in_netfilter() {
    let rules = "-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.2:443-448/40001";
    let mut machine = Machine::with(Family::Ipv4, rules);
    for (server, port) in [("192.0.2.1", 446), ("192.0.2.2", 443), ("192.0.2.3", 444)] {
        let open = tcp(["10.0.1.2", server], [40_000, 40_000], flag::SYN, [1, 0], 0);
        let bytes = machine.forward(ETH1, ETH0, open).bytes;
        let found = u16::from_be_bytes([bytes[36], bytes[37]]);
        assert_eq!(found, port, "to {server}");
    }
}

/// An answer carries its connection, with its mark, into the table raw (`nf_ct_attach`).
#[test]
fn an_answer_has_a_mark_before_it_is_tracked() {
    let mut machine = Machine::loading(
        Family::Ipv4,
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
         -A INPUT -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n\
         *raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A OUTPUT -m connmark --mark 0/0xff -j DROP\nCOMMIT\n",
    );
    let open = tcp(["192.0.2.7", SERVER4], [5000, 80], flag::SYN, [1, 0], 0);
    let (verdict, answer) = machine.arrive(ETH0, frame(open));
    assert_eq!(verdict, Verdict::Answer);
    let (verdict, _) = machine.leave(ETH0, answer);
    assert_eq!(verdict, Verdict::Drop(Stat::Policy));
}

/// A reset that ends its connection, whose destination alone is translated, leaves as it came, though another
/// connection of that source to the same place has drawn a port.
#[test]
fn a_reset_is_not_taken_for_another_connections_on_its_way() {
    const CLIENT: &str = "10.0.1.2";
    let rules = "-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.9:22";
    let mut machine = Machine::with(Family::Ipv4, rules);
    let (first, second) = ([CLIENT, "192.0.2.1"], [CLIENT, "192.0.2.2"]);
    let met = tcp(first, [40_001, 53], flag::ACK, [100, 700], 10);
    assert_eq!(source_port(&machine.forward(ETH0, ETH1, met)), 40_001);
    let open = tcp(second, [40_001, 22], flag::SYN, [100, 0], 0);
    assert_ne!(source_port(&machine.forward(ETH0, ETH1, open)), 40_001);
    let reset = tcp(first, [40_001, 53], flag::RST | flag::ACK, [110, 700], 0);
    assert_eq!(source_port(&machine.forward(ETH0, ETH1, reset)), 40_001);
}

/// The answer to what would have opened a connection to this host, and was redirected to where another one
/// of that source was, comes from where that was sent to.
#[test]
fn an_answer_to_a_first_packet_that_is_redirected_here_is_about_no_other_connection() {
    const CLIENT: &str = "192.0.2.7";
    const FIRST: &str = "203.0.113.1";
    const SECOND: &str = "203.0.113.2";
    for with in ["icmp-port-unreachable", "tcp-reset"] {
        let mut machine = Machine::loading(
            Family::Ipv4,
            &format!(
                "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
                 -A INPUT -p tcp -m conntrack --ctorigdst {SECOND} -j REJECT --reject-with {with}\n\
                 COMMIT\n*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
                 -A PREROUTING -p tcp -j REDIRECT\nCOMMIT\n"
            ),
        );
        let open = |server| frame(tcp([CLIENT, server], [1023, 80], flag::SYN, [1, 0], 0));
        assert_eq!(machine.arrive(ETH0, open(FIRST)).0, Verdict::Pass);
        let (verdict, answer) = machine.arrive(ETH0, open(SECOND));
        assert_eq!(verdict, Verdict::Answer);
        let (verdict, answer) = machine.leave(ETH0, answer);
        assert_eq!(verdict, Verdict::Pass);
        let second: Ipv4Addr = SECOND.parse().expect("an address");
        assert_eq!(answer.bytes[26..30], second.octets(), "{with}");
        if with != "tcp-reset" {
            assert_eq!(answer.bytes[58..62], second.octets());
        }
        // The first one lives.
        machine.arrive(ETH0, open(FIRST));
        assert_eq!(machine.label(), (ct::NEW | ct::DNAT, 0));
    }
}

/// What already has the one name that a rule would draw for it keeps that, untranslated.
#[test]
fn a_draw_of_one_port_may_be_the_packets_own() {
    let rules = "-A POSTROUTING -p tcp -j MASQUERADE --to-ports 20018 --random";
    let mut machine = Machine::with(Family::Ipv6, rules);
    for port in [20_018, 20_019] {
        let own = tcp([SERVER6, "2001:db8:7::7"], [port, 80], flag::SYN, [1, 0], 0);
        let (verdict, packet) = machine.leave(ETH0, frame(own).made_here());
        // Whoever comes second finds it taken.
        if port == 20_018 {
            assert_eq!((verdict, ports(&packet)), (Verdict::Pass, (20_018, 80)));
            assert_eq!(machine.label().0, ct::NEW);
        } else {
            assert_eq!(verdict, Verdict::Drop(Stat::NoFreePort));
        }
    }
}
