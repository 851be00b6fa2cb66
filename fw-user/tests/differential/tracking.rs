//! Corners of connection tracking, packet by packet, with what netfilter makes of them.

use std::net::Ipv6Addr;

use fw_common::abi::ct;
use fw_common::abi::flow::Flow;
use fw_common::abi::stat::Stat;
use fw_common::datapath::Verdict;
use fw_common::datapath::tcp::flag;
use fw_common::datapath::tuple::Lookup;
use fw_user::policy::model::Family;

use crate::machine::{ETH0, ETH1, LO, Machine, SERVER4, SERVER6, frame, icmpv6, other, tcp, udp};

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

/// Table raw meets an answer with its connection already, and what it makes of the mark is met by all that
/// comes after, and kept.
#[test]
fn table_raw_marks_the_connection_that_an_answer_is_about() {
    let mut machine = Machine::loading(
        Family::Ipv4,
        "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
         -A INPUT -p tcp -m length --length 100: -j REJECT --reject-with tcp-reset\n\
         -A OUTPUT -m connmark ! --mark 0x21 -j DROP\nCOMMIT\n\
         *mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
         :POSTROUTING ACCEPT\n-A PREROUTING -m connmark --mark 0 -j CONNMARK --or-mark 1\nCOMMIT\n\
         *raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A OUTPUT -j CONNMARK --or-mark 0x20\nCOMMIT\n",
    );
    let (way, ports) = (["198.51.100.1", SERVER4], [40_000, 22]);
    let short = frame(tcp(way, ports, flag::SYN, [1, 0], 0));
    assert_eq!(machine.arrive(ETH0, short).0, Verdict::Pass);
    let (verdict, answer) = machine.arrive(ETH0, frame(tcp(way, ports, flag::SYN, [1, 0], 80)));
    assert_eq!(verdict, Verdict::Answer);
    assert_eq!(machine.leave(ETH0, answer).0, Verdict::Pass);
    // It is kept with the connection.
    let again = frame(tcp(way, ports, flag::SYN, [1, 0], 0));
    assert_eq!(machine.arrive(ETH0, again).0, Verdict::Pass);
    assert_eq!(machine.scratch.mark.value, 0x21);
}
