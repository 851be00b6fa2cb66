//! Whom the answers of this host are told, and what they quote, as netfilter's are.

use fw_common::datapath::Verdict;
use fw_common::datapath::tcp::flag;
use fw_user::policy::model::Family;
use fw_user::sim::SlicePacket;

use crate::machine::{ETH0, LO, Machine, SERVER6, frame, icmpv6, other, tcp};

const GRE: u8 = 47;

/// Two tunnels from one sender, whose destinations are translated to that sender. The second one's first packet is
/// past its time: the error comes from where that was sent to, though a tunnel that is known bears the same name.
#[test]
fn an_error_about_a_first_packet_comes_from_where_it_was_sent_to() {
    const SENDER: &str = "fd17::2";
    const SECOND: &str = "2001:db8:50::7";
    let rules = "-A PREROUTING -j DNAT --to-destination fd17::2";
    let mut machine = Machine::with(Family::Ipv6, rules);
    machine.forward(ETH0, ETH0, other([SENDER, "2001:db8:50::2"], GRE));
    let second = other([SENDER, SECOND], GRE);
    let (verdict, packet) = machine.arrive(ETH0, frame(second.clone()));
    assert_eq!(verdict, Verdict::Pass);
    let error = icmpv6([SERVER6, SENDER], 64, 3, &packet.bytes[14..]);
    let (verdict, error) = machine.leave(ETH0, frame(error).made_here());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(error.bytes[14..], icmpv6([SECOND, SENDER], 64, 3, &second));
}

/// The same, and before the error leaves, another packet comes, whose destination is translated, too, and that is for
/// this host.
#[test]
fn an_error_about_a_first_packet_knows_its_own_destination() {
    const SENDER: &str = "fd17::2";
    const FIRST: &str = "2001:db8:50::2";
    const SECOND: &str = "2001:db8:50::3";
    let rules = "-A PREROUTING -d 2001:db8:50::2 -j DNAT --to-destination fd17::9\n\
        -A PREROUTING -d 2001:db8:50::3 -j DNAT --to-destination 2001:db8:1::10";
    let mut machine = Machine::with(Family::Ipv6, rules);
    let first = other([SENDER, FIRST], GRE);
    let (verdict, packet) = machine.arrive(ETH0, frame(first.clone()));
    assert_eq!(verdict, Verdict::Pass);
    let (verdict, _) = machine.arrive(ETH0, frame(other([SENDER, SECOND], GRE)));
    assert_eq!(verdict, Verdict::Pass);
    let error = icmpv6([SERVER6, SENDER], 64, 3, &packet.bytes[14..]);
    let (verdict, error) = machine.leave(ETH0, frame(error).made_here());
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(error.bytes[14..], icmpv6([FIRST, SENDER], 64, 3, &first));
}

/// A reset on loopback ends its connection, which nobody had answered, and INPUT answers with an error: that is
/// told whoever sent it, about what was sent, whichever end of the connection that is.
#[test]
fn an_error_about_what_ended_on_loopback_is_told_to_its_sender() {
    const OTHER: &str = "2001:db8:50::1";
    let translations = [
        "-A POSTROUTING -s 2001:db8:50::1 -j SNAT --to-source 2001:db8:1::10",
        "-A OUTPUT -p tcp --dport 80 -j DNAT --to-destination :8080",
        "-A OUTPUT -p tcp --dport 80 -j DNAT --to-destination :8080\n\
         -A POSTROUTING -s 2001:db8:50::1 -p tcp -j SNAT --to-source [2001:db8:1::10]:99",
    ];
    for translation in translations {
        let policy = format!(
            "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
             -A INPUT -p tcp --tcp-flags RST RST -j REJECT --reject-with icmp6-adm-prohibited\nCOMMIT\n\
             *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n{translation}\nCOMMIT\n"
        );
        for answered in [false, true] {
            let mut machine = Machine::loading(Family::Ipv6, &policy);
            let (way, ports) = ([OTHER, SERVER6], [1023, 80]);
            let open = tcp(way, ports, flag::SYN, [100, 0], 0);
            let seen = cross(&mut machine, open, Verdict::Pass).bytes;
            let reset = if answered {
                turned(&seen[14..])
            } else {
                tcp(way, ports, flag::RST, [101, 0], 0)
            };
            let answer = cross(&mut machine, reset.clone(), Verdict::Answer);
            let (verdict, answer) = machine.leave(LO, answer);
            assert_eq!(verdict, Verdict::Pass, "{translation}, {answered}");
            assert_eq!(
                answer.bytes[38..54],
                reset[8..24],
                "{translation}, {answered}"
            );
            assert_eq!(answer.bytes[62..], reset, "{translation}, {answered}");
        }
    }
}

/// What this host sends to itself, as it comes in.
fn cross(machine: &mut Machine, ip: Vec<u8>, verdict: Verdict) -> SlicePacket {
    let (sent, packet) = machine.leave(LO, frame(ip).made_here());
    assert_eq!(sent, Verdict::Pass);
    let (met, packet) = machine.arrive(LO, packet);
    assert_eq!(met, verdict);
    packet
}

/// The reset that answers a SYN.
fn turned(syn: &[u8]) -> Vec<u8> {
    let address = |at: usize| {
        let octets: [u8; 16] = syn[at..at + 16].try_into().expect("an address");
        std::net::Ipv6Addr::from(octets).to_string()
    };
    let port = |at: usize| u16::from_be_bytes([syn[at], syn[at + 1]]);
    let way = [&*address(24), &*address(8)];
    tcp(
        way,
        [port(42), port(40)],
        flag::RST | flag::ACK,
        [0, 101],
        0,
    )
}
