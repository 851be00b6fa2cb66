//! Of which connection this host's answers and ICMP errors are, and how they are translated.

use etherparse::PacketBuilder;
use fw_common::datapath::tcp::flag;
use fw_common::datapath::{Verdict, egress, ingress};
use fw_user::sim::SlicePacket;

use super::{
    BRIDGE, CLIENT, DOCKER0, ETH0, INNER, LO, Machine, NAT, OPEN, SERVER, sorted, tcp, udp,
};

/// On loopback both ends of a packet are translated before INPUT sees it, and of one that an error quotes.
#[test]
fn an_error_about_what_is_redirected_on_loopback_has_its_connection() {
    let text = format!(
        "*filter\n{OPEN}-A INPUT -m conntrack --ctorigdst 198.51.100.10 -m comment --comment redirected\n\
         -A INPUT -m conntrack --ctreplsrc 127.0.0.1 -m comment --comment answers\nCOMMIT\n{NAT}\
         -A OUTPUT -p udp -o lo -m comment --comment dnat -j DNAT --to-destination 127.0.0.1:80\n\
         COMMIT\n"
    );
    let mut machine = Machine::new(&text);
    let mut send = |frame| {
        machine.hits(|machine| {
            let mut packet = machine.leave(LO, frame);
            packet.device = LO;
            packet.arrival_device = LO;
            let verdict = ingress(&mut packet, &machine.tables, &mut machine.scratch);
            assert_eq!(verdict, Verdict::Pass);
        })
    };
    let (own, other) = ((BRIDGE, 4000), (SERVER, 53));
    let hits = send(udp(own, other));
    assert_eq!(hits, ["redirected", "answers", "dnat"]);
    // About an answer, to whence the sender takes it to come.
    let mut error = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(own.0, other.0, 64)
        .icmpv4_raw(3, 1, [0; 4])
        .write(&mut error, &udp(other, own)[14..])
        .expect("a frame");
    assert_eq!(send(error), ["redirected", "answers"]);
}

/// What answers a packet that belongs to no connection carries none; its own is that which the packet
/// resembles, and not that of the packet before.
#[test]
fn the_answer_to_a_packet_without_a_connection_has_the_one_that_it_is_about() {
    const RULES: &str = "\
        -A FORWARD -m conntrack --ctstate INVALID -m comment --comment refused -j REJECT\n\
        -A OUTPUT -m conntrack --ctrepldst 172.17.0.2 -m comment --comment before\n\
        -A OUTPUT -m conntrack --ctrepldst 172.17.0.3 -m comment --comment about\n";
    let mut machine = Machine::new(&format!("*filter\n{OPEN}{RULES}COMMIT\n"));
    let (inner, server) = (([172, 17, 0, 3], 5000), (CLIENT, 80));
    machine.forward(DOCKER0, ETH0, tcp(inner, server, flag::SYN, [1, 0]));
    machine.forward(DOCKER0, ETH0, udp((INNER, 4000), (CLIENT, 53)));
    let hits = machine.hits(|machine| {
        machine.be_refused(ETH0, DOCKER0, tcp(server, inner, 0, [1, 0]));
    });
    assert_eq!(sorted(hits), ["about", "refused"]);
}

/// Of two connections of one source that are redirected to one place, the second has another source there. An
/// answer to its packet is about the second, though the packet bears a name of the first.
#[test]
fn an_answer_is_translated_as_the_connection_that_it_is_about() {
    const OTHER: [u8; 4] = [192, 0, 2, 2];
    const REFUSES: &str = "-A INPUT -m conntrack --ctstate ESTABLISHED -j REJECT\n";
    let redirects = "-A PREROUTING -p udp -j REDIRECT\nCOMMIT\n";
    let mut machine = Machine::new(&format!("*filter\n{OPEN}{REFUSES}COMMIT\n{NAT}{redirects}"));
    let inner = (INNER, 4000);
    machine.arrive(DOCKER0, udp(inner, (CLIENT, 53)));
    let second = machine.arrive(DOCKER0, udp(inner, (OTHER, 53)));
    let drawn = u16::from_be_bytes([second.bytes[34], second.bytes[35]]);
    assert_ne!(drawn, 4000);
    machine.leave(DOCKER0, udp((BRIDGE, 53), (INNER, drawn)));

    let mut packet = SlicePacket::ethernet(udp(inner, (OTHER, 53)), DOCKER0);
    packet.arrival_device = DOCKER0;
    let verdict = ingress(&mut packet, &machine.tables, &mut machine.scratch);
    assert_eq!(verdict, Verdict::Answer);
    let mut answer = packet.at_egress_of(DOCKER0);
    let verdict = egress(&mut answer, &machine.tables, &mut machine.scratch);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(answer.bytes[26..30], OTHER);
    assert_eq!(answer.bytes[30..34], INNER);
    let quoted = &answer.bytes[42..];
    assert_eq!(quoted[12..20], [INNER, OTHER].concat());
    assert_eq!(quoted[20..22], 4000u16.to_be_bytes());
}

/// The answer to what would have opened a connection of this host's, and bears the names of another whose
/// destination became the same, is about what was refused.
#[test]
fn an_answer_to_a_first_packet_is_about_no_other_connection() {
    const REFUSES: &str = "-A OUTPUT -p udp -m conntrack --ctorigdstport 443 -j REJECT\n";
    let redirects = "-A OUTPUT -p udp -j DNAT --to-destination :8080\nCOMMIT\n";
    let mut machine = Machine::new(&format!("*filter\n{OPEN}{REFUSES}COMMIT\n{NAT}{redirects}"));
    let own = (SERVER, 4000);
    machine.leave(ETH0, udp(own, (CLIENT, 80)));
    let refused = SlicePacket::ethernet(udp(own, (CLIENT, 443)), ETH0);
    let mut answer = refused.made_here();
    for (device, verdict) in [
        (ETH0, Verdict::Answer),
        (ETH0, Verdict::Redirect),
        (LO, Verdict::Pass),
    ] {
        answer = answer.at_egress_of(device);
        let result = egress(&mut answer, &machine.tables, &mut machine.scratch);
        assert_eq!(result, verdict);
    }
    let quoted = &answer.bytes[42..];
    assert_eq!(quoted[12..20], [SERVER, CLIENT].concat());
    assert_eq!(
        quoted[20..24],
        [4000u16.to_be_bytes(), 443u16.to_be_bytes()].concat()
    );
}

/// Of two connections between the same ends, an error about the one that goes the other way is the other's, at
/// every hook.
#[test]
fn an_error_carries_the_connection_that_it_is_about_to_its_end() {
    const RULES: &str =
        "-A FORWARD -m conntrack --ctorigsrc 203.0.113.7 -m comment --comment other\n";
    const MASQUERADE: &str = "-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";
    let mut machine = Machine::new(&format!("*filter\n{OPEN}{RULES}COMMIT\n{NAT}{MASQUERADE}"));
    let (inner, server) = ((INNER, 4000), (CLIENT, 80));
    machine.forward(DOCKER0, ETH0, tcp(inner, server, flag::SYN, [1, 0]));
    let other = tcp(server, inner, flag::SYN, [7, 0]);
    let other = machine.forward(ETH0, DOCKER0, other).bytes[14..].to_vec();
    let frame = PacketBuilder::ethernet2([2; 6], [2; 6]);
    let error = frame.ipv4(INNER, CLIENT, 64).icmpv4_raw(3, 1, [0; 4]);
    let mut bytes = Vec::new();
    error.write(&mut bytes, &other).expect("a packet");
    let hits = machine.hits(|machine| drop(machine.forward(DOCKER0, ETH0, bytes)));
    assert_eq!(hits, ["other"]);
}

/// On loopback, an error about what would have opened a connection has that one's status, and not that of one which
/// has just ended between the same ends.
#[test]
fn an_error_about_a_first_packet_is_of_no_ended_connection() {
    const RULES: &str = "-A OUTPUT -p tcp -m tcp --tcp-flags RST,ACK ACK -j REJECT\n\
        -A INPUT -p icmp -m conntrack --ctstatus CONFIRMED -m comment --comment confirmed\n\
        -A INPUT -p icmp -m conntrack ! --ctstatus CONFIRMED -m comment --comment first\n";
    let mut machine = Machine::new(&format!("*filter\n{OPEN}{RULES}COMMIT\n"));
    let (one, other) = ((SERVER, 4000), (SERVER, 80));
    let open = machine.leave(LO, tcp(one, other, flag::SYN, [100, 0]));
    machine.come_back(open);
    let reset = tcp(other, one, flag::RST | flag::ACK, [0, 101]);
    let reset = machine.leave(LO, reset);
    machine.come_back(reset);
    let data = SlicePacket::ethernet(tcp(one, other, flag::ACK, [900, 900]), LO);
    let mut packet = data.at_egress_of(LO).made_here();
    let verdict = egress(&mut packet, &machine.tables, &mut machine.scratch);
    assert_eq!(verdict, Verdict::Answer);
    let verdict = egress(&mut packet, &machine.tables, &mut machine.scratch);
    assert_eq!(verdict, Verdict::Pass);
    let hits = machine.hits(|machine| {
        machine.come_back(packet);
    });
    assert_eq!(hits, ["first"]);
}

/// A reset closes the connection of the packet that it answers, also where it bears none of the names of that
/// connection, as both ends of it were translated (`nf_send_reset`, net/ipv4/netfilter/nf_reject_ipv4.c).
#[test]
fn a_reset_closes_a_connection_of_which_both_ends_were_translated() {
    const RESETS: &str = "-A INPUT -p tcp -j REJECT --reject-with tcp-reset\n";
    const TRANSLATES: &str = "-A OUTPUT -p tcp -j DNAT --to-destination :80\n\
        -A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n";
    let mut machine = Machine::new(&format!("*filter\n{OPEN}{RESETS}COMMIT\n{NAT}{TRANSLATES}"));
    let (own, other) = ((BRIDGE, 4000), (CLIENT, 53));
    let port = |packet: &SlicePacket| u16::from_be_bytes([packet.bytes[36], packet.bytes[37]]);
    let first = machine.leave(ETH0, tcp(own, other, flag::SYN, [1, 0]));
    assert_eq!((&first.bytes[26..30], port(&first)), (&SERVER[..], 80));

    let opens_too = tcp((CLIENT, 80), (SERVER, 4000), flag::SYN, [7, 0]);
    let mut packet = SlicePacket::ethernet(opens_too, ETH0);
    packet.arrival_device = ETH0;
    let verdict = ingress(&mut packet, &machine.tables, &mut machine.scratch);
    assert_eq!(verdict, Verdict::Answer);
    let mut answer = packet.at_egress_of(ETH0);
    let verdict = egress(&mut answer, &machine.tables, &mut machine.scratch);
    assert_eq!(verdict, Verdict::Pass);

    // In a connection that is closed it is INVALID, and not translated.
    let late = machine.leave(ETH0, tcp(own, other, flag::SYN | flag::ACK, [2, 8]));
    assert_eq!(port(&late), 53);
}

/// An answer to this host's own packet quotes it as it was made, whatever else bears the name that it has become: here a
/// connection that went to the address while another host had it.
#[test]
fn an_answer_quotes_the_port_that_its_own_connection_has() {
    for refuses in ["REJECT", "REJECT --reject-with tcp-reset"] {
        const TRANSLATES: &str =
            "-A PREROUTING -p tcp -j DNAT --to-destination 192.0.2.80\nCOMMIT\n";
        let rule = format!("-A OUTPUT -p tcp -m conntrack --ctdir REPLY -j {refuses}\n");
        let mut machine = Machine::new(&format!("*filter\n{OPEN}{rule}COMMIT\n{NAT}{TRANSLATES}"));
        let moves = [192, 0, 2, 80];
        let port_at = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let first = |last| tcp((INNER, 4000), ([203, 0, 113, last], 80), flag::SYN, [1, 0]);
        machine.forward(DOCKER0, ETH0, first(1));
        let drawn = machine.forward(DOCKER0, ETH0, first(2));
        let far = &drawn.bytes[26..30];
        assert_ne!((far, port_at(&drawn.bytes, 34)), (&INNER[..], 4000));

        machine
            .tables
            .host_mut()
            .local
            .push("192.0.2.80/32".parse().expect("a prefix"));
        let own = machine.arrive(DOCKER0, first(3));
        let port = port_at(&own.bytes, 34);
        assert_ne!(port, 4000);
        let answer = tcp((moves, 80), (INNER, port), flag::SYN | flag::ACK, [7, 2]);
        let mut packet = SlicePacket::ethernet(answer, DOCKER0)
            .at_egress_of(DOCKER0)
            .made_here();
        let verdict = egress(&mut packet, &machine.tables, &mut machine.scratch);
        assert_eq!(verdict, Verdict::Answer);
        // By way of the interface that has the address.
        let mut packet = packet.at_egress_of(DOCKER0);
        let verdict = egress(&mut packet, &machine.tables, &mut machine.scratch);
        assert_eq!(verdict, Verdict::Redirect);
        let mut packet = packet.at_egress_of(LO);
        let verdict = egress(&mut packet, &machine.tables, &mut machine.scratch);
        assert_eq!(verdict, Verdict::Pass);
        // The reset's own source, or the destination of what the error quotes: behind two headers and ICMP's.
        let at = if refuses == "REJECT" {
            34 + 8 + 20 + 2
        } else {
            34
        };
        assert_eq!(port_at(&packet.bytes, at), port, "{refuses}");
    }
}

/// The kernel's error about a packet on its way carries that one's connection, whose mark rules change for all that
/// come after (`nf_ct_attach` in net/ipv4/icmp.c; `connmark_tg`).
#[test]
fn an_error_of_this_hosts_changes_the_mark_of_the_connection_that_it_is_about() {
    let text = format!(
        "*filter\n{OPEN}-A FORWARD -m connmark --mark 2 -m comment --comment marked\nCOMMIT\n\
         *mangle\n:OUTPUT ACCEPT [0:0]\n\
         -A OUTPUT -p icmp -m icmp --icmp-type 11 -m comment --comment marks -j CONNMARK --or-mark 2\nCOMMIT\n"
    );
    let mut machine = Machine::new(&text);
    let (inner, far) = ((INNER, 1023), (CLIENT, 80));
    let segment = |numbers| tcp(inner, far, flag::ACK, numbers);
    machine.forward(DOCKER0, ETH0, segment([100, 500]));
    let hits = machine.hits(|machine| {
        let late = machine.arrive(DOCKER0, segment([100, 500]));
        let mut error = Vec::new();
        // Its time is over.
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(BRIDGE, INNER, 64)
            .icmpv4_raw(11, 0, [0; 4])
            .write(&mut error, &late.bytes[14..])
            .expect("a frame");
        machine.leave(DOCKER0, error);
    });
    assert_eq!(hits, ["marks"]);
    let hits = machine.hits(|machine| {
        machine.forward(DOCKER0, ETH0, segment([100, 500]));
    });
    assert_eq!(hits, ["marked"]);
}

/// An answer about a packet that would have opened a connection the other way round between a masqueraded one's own ends
/// has its own connection's mark, not that one's.
#[test]
fn an_answer_does_not_bear_the_mark_of_a_connection_that_goes_the_other_way() {
    let text = format!(
        "*filter\n{OPEN}-A FORWARD -i eth0 -m conntrack --ctdir ORIGINAL -m comment --comment reject -j REJECT\nCOMMIT\n{NAT}\
         -A POSTROUTING -o eth0 -m comment --comment masquerade -j MASQUERADE\nCOMMIT\n\
         *mangle\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         -A PREROUTING -i docker0 -m comment --comment marks -j CONNMARK --set-mark 2\n\
         -A POSTROUTING -m connmark --mark 2 -m comment --comment marked\nCOMMIT\n"
    );
    let mut machine = Machine::new(&text);
    let (inner, far) = ((INNER, 50000), (CLIENT, 80));
    let hits = machine.hits(|machine| {
        machine.forward(DOCKER0, ETH0, tcp(inner, far, flag::SYN, [100, 0]));
    });
    assert_eq!(sorted(hits), ["marked", "marks", "masquerade"]);
    let hits = machine.hits(|machine| {
        machine.be_refused(ETH0, DOCKER0, tcp(far, inner, flag::ACK, [500, 138]));
    });
    assert_eq!(hits, ["reject"]);
}
