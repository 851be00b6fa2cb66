//! Every difference between fwbpf and iptables that is one of design, modelled: nothing else may
//! differ. docs/conformance.md tells the same for people who run the test.
//!
//! 1. **Fragmented TCP segments.** netfilter knows how long they are, as it puts them together first;
//!    fwbpf does not, and from then on holds no window against the connection. None is sent.
//! 2. **Fragments.** netfilter puts a datagram together before any chain sees it; fwbpf lets the
//!    later fragments follow the first, and counts the datagram once, as netfilter does. So the
//!    fragments of a datagram are all sent, and what is delivered is compared whole. Its
//!    length is not known before its last one: nothing is sent in fragments through rules that ask
//!    for lengths, answer, or end a packet's time: an answer would quote the first one. What is forwarded, by rules that
//!    translate or a bridge, too, is sent in order: one that comes before its first is dropped there. To this host
//!    they are sent out of order, too: its stack puts them together, and the first counts all that came before it.
//! 3. **Random ports.** `--random`, `--to-ports` and collisions make both sides draw a port; each
//!    translated port is replaced by a number that stands for its flow ([`RandomPorts`]). That it
//!    is a port at all that brings replies back is tested by sending them there. A draw can also
//!    decide whether a rule on ports matches a late reply: a trial with drawn ports that differs
//!    is run again, and counts if it differs with [`OTHER_DRAWS`](super::random_ports::OTHER_DRAWS) other draws, too, and if iptables comes
//!    to the same as iptables in one of [`TWIN_RUNS`](super::random_ports::TWIN_RUNS) runs: with rules on half of all ports and many drawn
//!    ones, it never does.
//! 4. **Silent OUTPUT drop.** iptables fails the sender's call with EPERM; tcx drops silently. What
//!    the sender is told is not compared; what leaves the host is.
//! 5. **Broken layer 4 checksums.** netfilter calls them INVALID in FORWARD and INPUT; a BPF
//!    program cannot know whether the card has checked. No such packet is generated.
//! 6. **The kernel's own fields.** IP identification and IPv6 flow label of packets that the
//!    server's kernel makes by itself (errors, resets, echo replies) are drawn by the kernel: they
//!    are blanked ([`canonical`]), also where an error quotes such a packet. Those of packets that were
//!    sent are compared.
//! 7. **Checksums left to the card.** The sum of a packet that the server's kernel makes may be
//!    unfinished on a veth (CHECKSUM_PARTIAL). Whether a sum is right, finished or not, is
//!    compared; then it is blanked, also where an error quotes such a packet.
//! 8. **`! --sport 0:65535`.** iptables-save leaves it out, and so turns a rule that never matches
//!    into one that does when its dump is loaded; fwbpf prints it. It is not generated.
//! 9. **Conntrack is always on.** netfilter tracks nothing until some rule asks for a state or
//!    translates, and until then fragments stay fragments and nat chains see no packet. fwbpf
//!    always tracks. The reference has a rule in mangle that asks for a state and does nothing
//!    ([`prepare_reference`]).
//! 10. **The address of a source that INPUT translates.** A rule there that names ports only keeps the
//!     address in fwbpf. netfilter takes that of another connection of the same source, if POSTROUTING
//!     gave it one with a port of the range (`find_appropriate_src`); this host would answer itself. Both
//!     chains' rules name other ports.
//! 11. **Answers that OUTPUT refuses.** The reset about a forwarded segment bears its receiver's
//!     address. When OUTPUT refuses that reset, the error goes to that receiver, by the way to it; in
//!     fwbpf it is judged as one to this host, on loopback. Of a segment to this host that would have opened a
//!     connection, that error has netfilter store the connection after all, once INPUT lets the error in
//!     (`nf_confirm`, net/netfilter/nf_conntrack_proto.c): to it, the error goes the way of the segment. In fwbpf
//!     there is none, as the segment was refused. Where anything resets, OUTPUT drops.
//! 12. **Answers about drawn ports.** What answers quote on loopback of a connection that was never
//!     stored bears a port that was drawn. Where a policy refuses, nothing is masqueraded to drawn ports;
//!     one that was drawn since two connections had one name is known by the packet that was answered
//!     ([`RandomPorts::learn_answered`]).
//! 13. **raw OUTPUT and ICMP errors of the kernel's.** An ICMP error that the kernel makes carries the
//!     connection of the packet that it is about into raw OUTPUT, where rules see its state and NOTRACK
//!     leaves it alone; in fwbpf rules there see INVALID, and NOTRACK leaves alone only errors that turn
//!     out to carry a connection. Rules in raw OUTPUT are generated for TCP and UDP only.
//! 14. **UDP over IPv6 whose header rules change.** netfilter verifies checksums of UDP in PREROUTING
//!     and notes a sum over the whole packet, IPv6 header included; HL, DSCP and TOS change the header
//!     and leave the sum, so that this host drops UDP of which they changed anything in PREROUTING or
//!     INPUT (`nf_ip6_checksum`, net/netfilter/utils.c; `udp6_csum_init`, net/ipv6/ip6_checksum.c). In
//!     fwbpf it is delivered. There, such rules are generated for TCP only.
//! 15. **Own ICMPv6 errors about flows to themselves.** Nothing in an ICMPv6 error tells whether this
//!     host's kernel made it or a program. About a packet whose two ends are the same endpoint it is
//!     taken for the kernel's, which goes the original way; a program's, made by a raw socket, goes
//!     the reply's in netfilter. None is generated.
//! 16. **The path to this host's own addresses.** TCPMSS's --clamp-mss-to-pmtu asks for the paths to both
//!     ends. An ICMP error on loopback may have told an MTU of the path to an address of this host's own,
//!     which counts for what this host sends; no program can ask for it, and in fwbpf such a path is as
//!     wide as can be. --clamp-mss-to-pmtu is generated in FORWARD only.
//! 17. **SNAT on loopback to an address of another host.** Answers go to that host, until netfilter
//!     routes them anew in OUTPUT, which a program at egress cannot; fwbpf leaves the source as it
//!     is. Such rules are generated with `! -o lo`.
//! 18. **Errors of this host's that are routed anew.** An ICMP error that the kernel makes about a packet
//!     without a connection may resemble one about another connection, whose destination is
//!     translated; it is translated like that, and netfilter routes it anew in OUTPUT. In fwbpf it stays
//!     on its way. By which interface errors of the kernel's leave is not compared, and where rules
//!     translate destinations neither an answer is past its time nor what may be INVALID, and nothing is where
//!     rules keep packets from being tracked. Where they redirect to this host, FORWARD drops what it would refuse; where they
//!     translate destinations, it drops what it would reset, as a reset about a segment without a connection
//!     may resemble one of another. Where an error left by another interface all the same, the rules'
//!     counters are not compared, nor what it became there and what came after: it met other chains.
//! 19. **Four names.** A packet whose destination is translated goes from ingress to egress under one of
//!     four names that its two ends can have there; a fifth connection of one source, to a fifth address or
//!     port that is translated to the same, is dropped and counted. A trial that differs, and in which
//!     that happened, does not count.
//! 20. **connlimit's jiffies.** netfilter looks for connections that are gone once in a jiffy for each
//!     address, leaves those alone that another CPU added within the last two, and forgets eight at a time
//!     (net/netfilter/nf_conncount.c); fwbpf looks every time, and forgets all. Packets that meet such
//!     rules, which all ask for SYN, are sent more than two jiffies apart. A connection that is counted
//!     already ends the search, in both: what is behind it may be gone and still count, until netfilter walks
//!     past that address on its way to another one that happens to be in the same tree. So nothing asks to
//!     open a connection twice there, and who was asked for one in vain says nothing. Such a trial takes longer than a closed connection lives, whose time may
//!     end between the two sides' packets: it runs again, and counts if it differs again.
//! 21. **SCTP's checksum.** netfilter sums a packet up anew where it translates; fwbpf changes the sum by what
//!     a port changes, which is the same where it was right, and netfilter calls the others INVALID. Of a
//!     quoted packet that was cut, netfilter sums up what is left. How much a port changes depends on how long the
//!     packet is, which its first fragment does not tell: no port of a fragment changes. No wrong sum is sent,
//!     all that is quoted is quoted whole, and SCTP is not sent in fragments.
//! 22. **Resets to ::1.** The kernel sends the reset about a segment from ::1 by the interface that has the
//!     segment's destination, as it takes that for the one of its scope (`ip6_rcv_core`, net/ipv6/ip6_input.c;
//!     `rt6_need_strict`, net/ipv6/route.c), and so to the wire, unless a rule of mangle's OUTPUT changes the
//!     packet's mark, class or hop limit: then netfilter routes it anew, to loopback (`ip6t_mangle_out`), while
//!     in fwbpf it stays on its way. Where there are such rules, such resets are like difference 18's errors.
//!     A segment whose destination is restored on loopback is routed anew, too, and so is of the interface that
//!     has the address: its reset leaves by that in netfilter, where a masquerade ends with it
//!     (`nf_nat_oif_changed`, net/netfilter/nf_nat_core.c); in fwbpf it stays on loopback. Where sources are
//!     translated, what comes after a reset that only one side lets out is not compared.
//! 23. **Templates.** Behind CT, rules of raw see a template in netfilter, which has no ends and no protocol, and
//!     whose mark CONNMARK changes for all packets that come after; in fwbpf they see its state, NEW, and nothing
//!     else. Zones come behind all other rules of raw, but for some that ask for a state.
//! 24. **Translating what loopback tracks anew.** A packet that OUTPUT called INVALID comes back in on loopback
//!     without a connection, and may be put in a zone there and translated. netfilter has it routed once more, over
//!     IPv6 to other hosts, too; no program can, and fwbpf drops it (`zone::is_lost`). So may
//!     one that OUTPUT alone puts in a zone. Where rules translate to other hosts' addresses, no packet on
//!     loopback is put in a zone, by neither chain.
//! 25. **Errors about what a bridge has routed.** Where a bridge hands over what it switches, br_netfilter itself
//!     routes an IPv6 packet whose destination is translated (`br_nf_pre_routing_finish_ipv6`,
//!     net/bridge/br_netfilter_ipv6.c). If its time is over, the kernel's error bears the address of the interface
//!     that the packet would have left by when it comes to OUTPUT, else that of the bridge. What its receiver sees
//!     is the same. Where rules translate, nothing over IPv6 is past its time in trials with such a bridge: answers to
//!     what has another source have their destination back.
//! 26. **Connections that answer themselves.** Where a connection's ends are translated to each other, a packet
//!     that goes forth and its answer have the same ends in the same order. netfilter knows it by these alone, and
//!     leaves the other order to another connection; fwbpf names a connection by its two ends, in no order, so that
//!     there is no room for another one. What comes after a packet that came out with its ends exchanged is
//!     compared, but a trial that differs then does not count.

use std::net::Ipv6Addr;

use anyhow::Result;

use super::random_ports::{RandomPorts, drawn_destination};
use crate::lab::{Namespace, run};
use crate::packet::{Layers, ones_complement, protocol, sctp_sum};

/// Difference 9: puts netfilter into the state that fwbpf is compared with.
pub fn prepare_reference(server: &Namespace) -> Result<()> {
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        let rule = "-w 20 -t mangle -A PREROUTING -m conntrack --ctstate NEW";
        run(server.command(program).args(rule.split(' ')))?;
    }
    Ok(())
}

/// The packet with everything made equal that may differ (3, 6 and 7). `sent` is the packet that
/// was sent last: what it became keeps its identification, and so does a quotation of it.
pub fn canonical(mut bytes: Vec<u8>, sent: &[u8], random: &RandomPorts) -> Vec<u8> {
    let Some(layers) = Layers::read(&bytes) else {
        return bytes;
    };
    if !is_the_same(&bytes, sent) {
        blank_identification(&mut bytes);
    }
    if layers.source.is_ipv4() {
        // The header's checksum was examined before; it follows the identification.
        bytes[10..12].fill(0);
    }
    let sent_to = drawn_destination(sent, random);
    replace_ports(&mut bytes, 0, random, sent_to);
    if let Some(inner) = layers.quoted(&bytes) {
        replace_ports(&mut bytes, inner, random, None);
        if let Some(quoted) = bytes.get_mut(inner..)
            && Layers::read(quoted).is_some()
            && !is_of_what_was_sent(quoted, sent)
        {
            blank_identification(quoted);
            if layers.source.is_ipv4() {
                quoted[10..12].fill(0);
            }
            blank_checksum(quoted);
        }
    }
    blank_checksum(&mut bytes);
    bytes
}

/// Blanks the checksum of layer 4.
fn blank_checksum(bytes: &mut [u8]) {
    if let Some(at) = Layers::read(bytes).and_then(|layers| layers.checksum())
        && let Some(field) = bytes.get_mut(at..at + 2)
    {
        field.fill(0);
    }
}

/// Difference 18: makes an error equal that comes out of a raw socket or of an interface. IPv6's raw sockets
/// leave out the header, in whose stead there is one without a hop limit.
pub fn forget_the_way(bytes: &mut [u8]) {
    if bytes.first().is_some_and(|first| first >> 4 == 6)
        && let Some(hop_limit) = bytes.get_mut(7)
    {
        *hop_limit = 0;
    }
}

/// Whether a packet is the one that was sent, as far as no translation changes it, or one that
/// the kernel made.
pub fn is_the_same(bytes: &[u8], sent: &[u8]) -> bool {
    let (Some(left), Some(right)) = (Layers::read(bytes), Layers::read(sent)) else {
        return false;
    };
    // What the kernel's answer would have different: ICMP's type; TCP's numbers and flags.
    let marks: &[usize] = match left.protocol {
        protocol::ICMP | protocol::ICMPV6 => &[0],
        protocol::TCP => &[4, 5, 6, 7, 8, 9, 10, 11, TCP_FLAGS],
        _ => &[],
    };
    let of = |packet: &[u8], layers: &Layers| -> Option<Vec<u8>> {
        let body = packet.get(layers.body..)?;
        marks.iter().map(|at| body.get(*at).copied()).collect()
    };
    let (length, sent_length) = (left.end - left.body, right.end - right.body);
    // TCPMSS gives an opener an option that it does not have.
    let longer = left.protocol == protocol::TCP
        && bytes
            .get(left.body + TCP_FLAGS)
            .is_some_and(|flags| flags & SYN != 0)
        && length == sent_length + MSS_OPTION;
    left.protocol == right.protocol
        && (length == sent_length || longer)
        && of(bytes, &left) == of(sent, &right)
}

/// Where TCP's flags are.
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
/// The length of TCP's option for the maximum segment size (RFC 9293, section 3.2).
const MSS_OPTION: usize = 4;

/// Whether a packet is a reset that the kernel made.
pub(super) fn is_own_reset(bytes: &[u8], sent: &[u8]) -> bool {
    Layers::read(bytes).is_some_and(|layers| {
        layers.protocol == protocol::TCP
            && bytes
                .get(layers.body + TCP_FLAGS)
                .is_some_and(|flags| flags & RST != 0)
    }) && !is_the_same(bytes, sent)
}

/// Difference 26: whether a packet that came out is one that was sent, with its ends exchanged.
pub fn answers_itself(bytes: &[u8], sent: &[u8]) -> bool {
    let ends = |bytes: &[u8]| {
        let layers = Layers::read(bytes)?;
        let (source, destination) = layers.ports(bytes)?;
        Some([(layers.source, source), (layers.destination, destination)])
    };
    match (ends(bytes), ends(sent)) {
        (Some([a, b]), Some([c, d])) => a != b && (a, b) == (d, c) && is_the_same(bytes, sent),
        _ => false,
    }
}

/// Difference 22: whether a packet is a reset of the kernel's to ::1.
pub fn resets_to_loopback(bytes: &[u8], sent: &[u8]) -> bool {
    is_own_reset(bytes, sent)
        && Layers::read(bytes).is_some_and(|layers| layers.destination == Ipv6Addr::LOCALHOST)
}

/// Whether what an ICMP error quotes is the packet that was sent, or what that quotes, and not one that
/// the kernel made.
fn is_of_what_was_sent(quoted: &[u8], sent: &[u8]) -> bool {
    let in_sent = Layers::read(sent).and_then(|layers| sent.get(layers.quoted(sent)?..));
    is_the_same(quoted, sent) || in_sent.is_some_and(|in_sent| is_the_same(quoted, in_sent))
}

fn blank_identification(bytes: &mut [u8]) {
    if bytes[0] >> 4 == 4 {
        bytes[4..6].fill(0);
    } else {
        bytes[1] &= 0xf0;
        bytes[2..4].fill(0);
    }
}

/// Replaces the ports, or the echo's identifier, of the packet that begins at `start`.
fn replace_ports(
    bytes: &mut [u8],
    start: usize,
    random: &RandomPorts,
    sent_to: Option<(u16, u16)>,
) {
    let Some(packet) = bytes.get_mut(start..) else {
        return;
    };
    let Some(layers) = Layers::read(packet) else {
        return;
    };
    if let Some((source, destination)) = layers.ports(packet) {
        let ends = [(layers.source, source), (layers.destination, destination)];
        for (own, peer, at) in [
            (ends[0], ends[1], layers.body),
            (ends[1], ends[0], layers.body + 2),
        ] {
            let stand_in = random
                .stand_in(layers.protocol, own, peer)
                .or_else(|| random.quoted(start, layers.protocol, own, peer));
            let sent_to = sent_to.filter(|(port, _)| *port == own.1 && at != layers.body);
            if let Some(stand_in) = stand_in.or(sent_to.map(|(_, stand_in)| stand_in)) {
                replace_word(packet, &layers, at, stand_in);
            }
        }
    } else if let Some(id) = layers.echo_id(packet) {
        let ends = [(layers.source, id), (layers.destination, id)];
        for (own, peer) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            if let Some(stand_in) = random.stand_in(layers.protocol, own, peer) {
                replace_word(packet, &layers, layers.body + 4, stand_in);
                return;
            }
        }
    }
}

/// Replaces two bytes and keeps the layer 4 checksum as right, or as wrong, as it was (RFC 1624).
fn replace_word(packet: &mut [u8], layers: &Layers, at: usize, new: u16) {
    let Some(field) = packet.get_mut(at..at + 2) else {
        return;
    };
    let old = [field[0], field[1]];
    if layers.crc().is_some() {
        return replace_word_of_sctp(packet, layers, at, new);
    }
    field.copy_from_slice(&new.to_be_bytes());
    let Some(sum_at) = layers.checksum() else {
        return;
    };
    let Some(sum) = packet.get_mut(sum_at..sum_at + 2) else {
        return;
    };
    let current = u16::from_be_bytes([sum[0], sum[1]]);
    if layers.protocol == protocol::UDP && current == 0 {
        return;
    }
    let updated = !ones_complement(&[
        &(!current).to_be_bytes(),
        &(!u16::from_be_bytes(old)).to_be_bytes(),
        &new.to_be_bytes(),
    ]);
    // 0 and 0xffff are the same number in one's complement.
    let updated = if updated == 0xffff { 0 } else { updated };
    sum.copy_from_slice(&updated.to_be_bytes());
}

fn replace_word_of_sctp(packet: &mut [u8], layers: &Layers, at: usize, new: u16) {
    let before = sctp_sum(packet, layers);
    packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
    let after = sctp_sum(packet, layers);
    if let (Some(field), Some(before), Some(after)) = (layers.crc(), before, after) {
        for (index, byte) in packet[field..field + 4].iter_mut().enumerate() {
            *byte ^= before[index] ^ after[index];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::Way;
    use super::*;
    use crate::packet::{Dressing, Packet, Payload, checksum_is_sound};

    fn packet(port: u16) -> Vec<u8> {
        Packet {
            source: "198.51.100.10".parse().unwrap(),
            destination: "203.0.113.7".parse().unwrap(),
            ttl: 63,
            id: 9,
            tos: 0,
            mss: None,
            dressing: Dressing::Plain,
            payload: Payload::Udp {
                ports: (port, 53),
                data: vec![1, 2, 3],
            },
        }
        .bytes()
    }

    fn learn(random: &mut RandomPorts, port: u16) {
        let own = ("198.51.100.10".parse().unwrap(), port);
        let peer = ("203.0.113.7".parse().unwrap(), 53);
        random.learn(17, own, peer, (4, Way::Forth));
    }

    #[test]
    fn random_ports_become_equal_and_nothing_else_does() {
        let random = |port| {
            let mut random = RandomPorts::default();
            learn(&mut random, port);
            random
        };
        let left = canonical(packet(20_001), &packet(1), &random(20_001));
        let right = canonical(packet(31_007), &packet(1), &random(31_007));
        assert_eq!(left, right);
        let unknown = canonical(packet(31_008), &packet(1), &random(31_007));
        assert_ne!(left, unknown);
    }

    #[test]
    fn only_what_was_sent_keeps_its_identification_where_it_is_quoted() {
        let quote = |id: u16| {
            let mut quoted = packet(1);
            quoted[4..6].copy_from_slice(&id.to_be_bytes());
            Packet {
                source: "203.0.113.7".parse().unwrap(),
                destination: "198.51.100.10".parse().unwrap(),
                ttl: 64,
                id: 0,
                tos: 0,
                mss: None,
                dressing: Dressing::Plain,
                payload: Payload::Icmp {
                    kind: 3,
                    code: 3,
                    rest: [0; 4],
                    data: quoted,
                },
            }
            .bytes()
        };
        let random = RandomPorts::default();
        let about = |id, sent: &[u8]| canonical(quote(id), sent, &random);
        assert_ne!(about(7, &packet(1)), about(8, &packet(1)));
        assert_ne!(about(7, &quote(0)), about(8, &quote(0)));
        let other = {
            let mut bytes = packet(1);
            bytes[9] = 6;
            bytes
        };
        assert_eq!(about(7, &other), about(8, &other));
    }

    #[test]
    fn replacing_a_quoted_port_keeps_its_checksum_right() {
        let mut bytes = packet(20_001);
        let mut random = RandomPorts::default();
        learn(&mut random, 20_001);
        replace_ports(&mut bytes, 0, &random, None);
        assert_ne!(bytes, packet(20_001));
        assert!(checksum_is_sound(&bytes));
    }
}
