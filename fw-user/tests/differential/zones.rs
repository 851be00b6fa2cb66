//! Zones of connections: what table raw says of a packet, and what that makes of its flow at every hook.

use fw_common::abi::ct;
use fw_common::abi::flow::{Flow, FlowKey};
use fw_common::abi::stat::Stat;
use fw_common::datapath::Verdict;
use fw_common::datapath::tcp::flag;
use fw_user::kernel::flows::FlowView;
use fw_user::policy::model::Family;
use fw_user::sim::SlicePacket;

use crate::machine::{ETH0, ETH1, LO, Machine, SERVER4, SERVER6, frame, icmpv4, other, tcp, udp};

const FILTER: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
const NAT: &str = "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n";

fn machine(family: Family, raw: &str, nat: &str) -> Machine {
    let nat = if nat.is_empty() {
        String::new()
    } else {
        format!("{NAT}{nat}\nCOMMIT\n")
    };
    let text = format!("{FILTER}*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n{raw}\nCOMMIT\n{nat}");
    Machine::loading(family, &text)
}

/// Zone, source port and translated source port of each flow, in order.
fn flows(machine: &Machine) -> Vec<(u16, u16, u16)> {
    let state = machine.tables.state();
    let views = state.flows.iter().filter_map(|(key, held)| {
        let view = FlowView::new(key, &held.flow, 0)?;
        let (from, to) = (view.original.source_port, view.reply.destination_port);
        Some((view.zone, from, to))
    });
    let mut views: Vec<_> = views.collect();
    views.sort_unstable();
    views
}

const PAIRS: [(Family, [&str; 2]); 2] = [
    (Family::Ipv4, ["192.0.2.7", "203.0.113.9"]),
    (Family::Ipv6, ["2001:db8:7::7", "2001:db8:9::9"]),
];

/// The same tuple by two interfaces is two flows, and each side's answers are its own.
#[test]
fn a_tuple_in_two_zones_is_two_flows() {
    for (family, [from, to]) in PAIRS {
        let raw = "-A PREROUTING -i eth0 -j CT --zone 40000\n-A PREROUTING -i eth1 -j CT --zone 7";
        let mut machine = machine(family, raw, "");
        machine.forward(ETH0, ETH1, udp([from, to], [5000, 53]));
        assert_eq!(machine.label(), (ct::NEW, 0));
        // What came in by eth1 answers nothing.
        machine.forward(ETH1, ETH0, udp([to, from], [53, 5000]));
        assert_eq!(machine.label(), (ct::NEW, 0));
        machine.forward(ETH0, ETH1, udp([to, from], [53, 5000]));
        assert_eq!(machine.label(), (ct::ESTABLISHED, 1));
        machine.forward(ETH1, ETH0, udp([from, to], [5000, 53]));
        assert_eq!(machine.label(), (ct::ESTABLISHED, 1));
        assert_eq!(flows(&machine), [(7, 53, 53), (40_000, 5000, 5000)]);
    }
}

/// Two networks of the same addresses, each masqueraded to ports of its own, which tell the answers'
/// zones.
#[test]
fn networks_of_the_same_addresses_are_masqueraded() {
    for (family, [from, to]) in PAIRS {
        let own = match family {
            Family::Ipv4 => SERVER4,
            Family::Ipv6 => SERVER6,
        };
        let raw = "-A PREROUTING -i eth0 -m mark --mark 1 -j CT --zone 1\n\
                   -A PREROUTING -i eth0 -m mark --mark 2 -j CT --zone 2\n\
                   -A PREROUTING -i eth1 -p udp --dport 10000:10999 -j CT --zone 1\n\
                   -A PREROUTING -i eth1 -p udp --dport 20000:20999 -j CT --zone 2";
        let nat = "-A POSTROUTING -o eth1 -p udp -m mark --mark 1 -j MASQUERADE --to-ports 10000-10999\n\
                   -A POSTROUTING -o eth1 -p udp -m mark --mark 2 -j MASQUERADE --to-ports 20000-20999";
        let mut machine = machine(family, raw, nat);
        for tenant in [1, 2] {
            for label in [ct::NEW, ct::NEW] {
                let mut packet = frame(udp([from, to], [5000, 53]));
                packet.mark = tenant;
                let (verdict, packet) = machine.arrive(ETH0, packet);
                assert_eq!(verdict, Verdict::Pass);
                assert_eq!(machine.leave(ETH1, packet).0, Verdict::Pass);
                assert_eq!(machine.scratch.tracked.ct & !ct::SNAT, label);
                assert_eq!(machine.scratch.headers.zone, tenant as u16);
            }
        }
        let both = flows(&machine);
        let [
            (1, 5000, first @ 10_000..=10_999),
            (2, 5000, second @ 20_000..=20_999),
        ] = both[..]
        else {
            panic!("{both:?}");
        };
        for (zone, port) in [(1, first), (2, second)] {
            let (verdict, packet) = machine.arrive(ETH1, frame(udp([to, own], [53, port])));
            assert_eq!(verdict, Verdict::Pass);
            assert_ne!(packet.note, 0, "the answer is not for this host");
            assert_eq!(
                machine.label(),
                (ct::ESTABLISHED | ct::SNAT, 1),
                "{zone} {port}"
            );
            assert_eq!(machine.leave(ETH0, packet).0, Verdict::Pass);
            assert_eq!(machine.scratch.headers.zone, zone);
        }
        // A port of the other's zone answers nothing.
        let (_, packet) = machine.arrive(ETH1, frame(udp([to, own], [53, first + 10_000])));
        assert_eq!(packet.note == 0, first + 10_000 != second);
    }
}

/// What a packet is translated to is unique in its zone only (`nf_nat_used_tuple`), and a source's other
/// translations are those in its zone (`find_appropriate_src`).
#[test]
fn names_are_unique_in_their_zone() {
    let raw = "-A PREROUTING -i eth0 -m mark --mark 1 -j CT --zone 1";
    let mut machine = machine(
        Family::Ipv4,
        raw,
        "-A POSTROUTING -o eth1 -p udp -j SNAT --to-source 198.51.100.10",
    );
    for (mark, source) in [(0, "192.0.2.7"), (1, "192.0.2.8"), (0, "192.0.2.9")] {
        let mut packet = frame(udp([source, "203.0.113.9"], [5000, 53]));
        packet.mark = mark;
        let (verdict, packet) = machine.arrive(ETH0, packet);
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(machine.leave(ETH1, packet).0, Verdict::Pass);
    }
    let flows = flows(&machine);
    assert_eq!(flows.len(), 3, "{flows:?}");
    let ports = |zone| flows.iter().filter(move |flow| flow.0 == zone);
    assert_eq!(
        ports(1).filter(|flow| flow.2 == 5000).count(),
        1,
        "{flows:?}"
    );
    assert_eq!(
        ports(0).filter(|flow| flow.2 == 5000).count(),
        1,
        "{flows:?}"
    );
}

/// A packet keeps its zone on loopback, whatever PREROUTING says, and an answer is in the zone that OUTPUT
/// says.
#[test]
fn loopback_has_the_zone_of_output() {
    let raw = "-A PREROUTING -j CT --zone 9\n-A OUTPUT -p udp --dport 53 -j CT --zone 3\n\
               -A OUTPUT -p udp --sport 53 -j CT --zone 3\n-A OUTPUT -j CT --zone 4";
    let mut machine = machine(Family::Ipv4, raw, "");
    let own = [SERVER4, SERVER4];
    machine.loop_back(udp(own, [5000, 53]));
    assert_eq!(machine.label(), (ct::NEW, 0));
    machine.loop_back(udp(own, [53, 5000]));
    assert_eq!(machine.label(), (ct::ESTABLISHED, 1));
    machine.loop_back(udp(own, [5000, 54]));
    assert_eq!(flows(&machine), [(3, 5000, 5000), (4, 5000, 5000)]);
}

/// What raw has said first counts: a packet has a connection behind CT, though it is a template, and none
/// behind NOTRACK (`xt_ct_target`).
#[test]
fn the_first_word_counts() {
    let raw = "-A PREROUTING -p udp --dport 53 -j CT --zone 1\n\
               -A PREROUTING -m conntrack --ctstate NEW -m udp -p udp --sport 6000 -j DROP\n\
               -A PREROUTING -p udp --dport 54 -j NOTRACK\n-A PREROUTING -p udp --dport 55 -j CT\n\
               -A PREROUTING -j CT --zone 2\n-A PREROUTING -j NOTRACK";
    let mut machine = machine(Family::Ipv4, raw, "");
    let way = ["192.0.2.7", "203.0.113.9"];
    for port in [53, 55, 56] {
        machine.forward(ETH0, ETH1, udp(way, [5000, port]));
        assert_eq!(machine.label(), (ct::NEW, 0));
    }
    machine.forward(ETH0, ETH1, udp(way, [5001, 54]));
    assert_eq!(machine.label().0, ct::UNTRACKED);
    let dropped = frame(udp(way, [6000, 53]));
    assert!(matches!(machine.arrive(ETH0, dropped).0, Verdict::Drop(_)));
    let opened: Vec<u16> = flows(&machine).iter().map(|flow| flow.0).collect();
    assert_eq!(opened, [0, 1, 2]);
}

/// What the kernel makes leaves by a raw socket of its own.
fn by_the_kernel(ip: Vec<u8>) -> SlicePacket {
    let mut packet = frame(ip).made_here();
    packet.owner.raw = true;
    packet
}

/// An ICMP error is about a flow of its own zone, and one that this host makes is in the zone of the packet
/// that it quotes.
#[test]
fn errors_are_about_flows_of_their_zone() {
    let raw = "-A PREROUTING -i eth0 -j CT --zone 1\n-A OUTPUT -o eth0 -j CT --zone 2\n\
               -A PREROUTING -i eth1 -p icmp -m mark --mark 1 -j CT --zone 1";
    let mut machine = machine(Family::Ipv4, raw, "");
    let out = udp(["192.0.2.7", "203.0.113.9"], [5000, 53]);
    machine.forward(ETH0, ETH1, out.clone());
    for (mark, label) in [(1, ct::RELATED), (0, ct::INVALID)] {
        let mut error = frame(icmpv4(["203.0.113.9", "192.0.2.7"], 3, 3, &out));
        error.mark = mark;
        machine.arrive(ETH1, error);
        assert_eq!(machine.label().0, label);
    }
    // What nobody takes keeps its flow, and so gives it to the error; UDP does not.
    let way = ["192.0.2.7", SERVER4];
    for (own, code, label) in [
        (other(way, 99), 2, ct::RELATED),
        (udp(way, [5000, 53]), 3, ct::INVALID),
    ] {
        machine.arrive(ETH0, frame(own.clone()));
        assert_eq!(machine.label(), (ct::NEW, 0));
        // As the kernel writes it ("internetwork control").
        let mut error = icmpv4([SERVER4, "192.0.2.7"], 3, code, &own);
        error[1] = 0xc0;
        let sum = u16::from_be_bytes([error[10], error[11]]);
        error[10..12].copy_from_slice(&(sum - 0xc0).to_be_bytes());
        machine.leave(ETH0, by_the_kernel(error));
        assert_eq!(machine.label().0, label);
        // What a process writes is in OUTPUT's zone.
        let error = icmpv4([SERVER4, "192.0.2.7"], 3, code, &own);
        machine.leave(ETH0, frame(error).made_here());
        assert_eq!(machine.label().0, ct::INVALID);
    }
    machine.forward(ETH0, ETH1, out.clone());
    machine.leave(
        ETH0,
        by_the_kernel(icmpv4([SERVER4, "192.0.2.7"], 11, 0, &out)),
    );
    assert_eq!(machine.label(), (ct::RELATED, 1));
}

/// A destination's translation is found at egress in the zone, with a source's and without.
#[test]
fn destinations_are_translated_in_zones() {
    for nat in [
        "",
        "\n-A POSTROUTING -o eth1 -j SNAT --to-source 198.51.100.10",
    ] {
        let raw = "-A PREROUTING -p tcp --dport 80 -j CT --zone 5\n\
                   -A PREROUTING -p tcp --sport 8080 -j CT --zone 5";
        let nat = format!(
            "-A PREROUTING -p tcp -d 198.51.100.10 --dport 80 -j DNAT --to-destination 10.0.0.9:8080{nat}"
        );
        let mut machine = machine(Family::Ipv4, raw, &nat);
        let client = "203.0.113.9";
        let syn = tcp([client, SERVER4], [40_000, 80], flag::SYN, [1, 0], 0);
        machine.forward(ETH0, ETH1, syn);
        let outer = if nat.contains("SNAT") {
            SERVER4
        } else {
            client
        };
        let both = flag::SYN | flag::ACK;
        let answer = tcp(["10.0.0.9", outer], [8080, 40_000], both, [9, 2], 0);
        let packet = machine.forward(ETH1, ETH0, answer);
        assert_eq!(machine.label().1, 1);
        assert_eq!(packet.bytes[26..30], [198, 51, 100, 10]);
        let ack = tcp([client, SERVER4], [40_000, 80], flag::ACK, [2, 10], 0);
        machine.forward(ETH0, ETH1, ack);
        assert_eq!(machine.label().0 & ct::ESTABLISHED, ct::ESTABLISHED);
        let state = machine.tables.state();
        let zones = |key: &FlowKey| key.zone();
        assert!(state.flows.keys().all(|key| zones(key) == 5));
        let primary = |flow: &Flow| flow.status.get() & Flow::ALIAS == 0;
        assert_eq!(
            state
                .flows
                .values()
                .filter(|held| primary(&held.flow))
                .count(),
            1
        );
    }
}

/// A packet without a flow is tracked once more when it comes in on loopback, in the zone that PREROUTING says.
#[test]
fn loopback_tracks_anew_what_has_no_flow() {
    let raw = "-A PREROUTING -j CT --zone 1\n-A OUTPUT -p udp -j CT --zone 1";
    let mut machine = machine(Family::Ipv4, raw, "");
    let own = [SERVER4, SERVER4];
    let packet = udp(own, [5000, 53]);
    machine.loop_back(packet.clone());
    let (_, error) = machine.leave(LO, frame(icmpv4(own, 4, 0, &packet)).made_here());
    assert_eq!(machine.label().0, ct::INVALID);
    machine.arrive(LO, error);
    assert_eq!(machine.label(), (ct::RELATED, 1));
}

/// So is one whose destination is translated then; the kernel routes it anew, and takes nothing of its own from
/// elsewhere, of IPv4.
#[test]
fn loopback_takes_no_other_destination() {
    let raw = "-A PREROUTING -j CT --zone 1\n-A OUTPUT -p udp -j CT --zone 1";
    let mut machine = machine(
        Family::Ipv4,
        raw,
        "-A POSTROUTING -j SNAT --to-source 198.51.100.10",
    );
    let own = "127.0.0.1";
    machine.loop_back(udp([own, own], [5000, 53]));
    let outer = flows(&machine)[0].2;
    let seen = udp([SERVER4, own], [outer, 53]);
    let error = icmpv4([own, SERVER4], 3, 3, &seen);
    let (verdict, error) = machine.leave(LO, frame(error).made_here());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(machine.label().0, ct::INVALID);
    let (verdict, _) = machine.arrive(LO, error);
    assert_eq!(machine.label().1, 1);
    assert_eq!(verdict, Verdict::Drop(Stat::Rewrite));
}

/// A zone is a packet's own while it is on the way in loopback's programs, whatever came in before.
#[test]
fn a_zone_does_not_stay() {
    let raw = "-A PREROUTING -i eth0 -j CT --zone 1";
    let mut machine = machine(Family::Ipv4, raw, "");
    machine.forward(ETH0, ETH1, udp(["192.0.2.7", "203.0.113.9"], [1, 2]));
    machine.leave(
        ETH1,
        frame(udp([SERVER4, "203.0.113.9"], [3, 4])).made_here(),
    );
    machine.loop_back(udp([SERVER4, SERVER4], [5, 6]));
    machine.leave(LO, frame(udp([SERVER4, SERVER4], [7, 8])).made_here());
    machine.arrive(ETH1, frame(udp(["203.0.113.9", SERVER4], [9, 10])));
    assert_eq!(
        flows(&machine),
        [(0, 3, 3), (0, 5, 5), (0, 7, 7), (0, 9, 9), (1, 1, 1)]
    );
}

/// What loopback tracks anew in another zone cannot leave it any more: it is not delivered under another host's
/// address, either.
#[test]
fn what_is_translated_to_another_host_on_loopback_is_lost() {
    let raw = "-A PREROUTING -i lo -j CT --zone 7";
    let nat = "-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination [2001:db8:9::9]:443\n\
               -A PREROUTING -p tcp --dport 81 -j DNAT --to-destination [::1]:443";
    for (port, verdict) in [(80, Verdict::Drop(Stat::Rewrite)), (81, Verdict::Pass)] {
        let mut machine = machine(Family::Ipv6, raw, nat);
        let way = [SERVER6, SERVER6];
        machine.loop_back(tcp(way, [5000, port], flag::SYN, [100, 0], 0));
        // No SYN was answered: it is INVALID, and carries no connection.
        let (sent, packet) = machine.leave(
            LO,
            frame(tcp(way, [5000, port], flag::ACK, [101, 7], 0)).made_here(),
        );
        assert_eq!(sent, Verdict::Pass);
        assert_eq!(machine.label().0, ct::INVALID);
        assert_eq!(machine.arrive(LO, packet).0, verdict);
    }
}
