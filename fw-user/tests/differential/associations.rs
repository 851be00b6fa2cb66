//! SCTP where addresses and ports are translated: its checksum covers ports, and no addresses.

use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use fw_common::abi::stat::Stat;
use fw_common::datapath::Verdict;
use fw_common::datapath::header::protocol;
use fw_user::policy::model::Family;
use fw_user::sim::SlicePacket;

use crate::machine::{ETH0, ETH1, Machine, SERVER4, SERVER6, frame, icmpv4, icmpv6, ip};

const L2: usize = 14;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const DATA: u8 = 0;

/// Of either IP version: a host that asks, the one that it asks, and where rules lead it.
const HOSTS: [(Family, [&str; 4]); 2] = [
    (
        Family::Ipv4,
        ["192.0.2.7", "203.0.113.9", "10.0.0.2", SERVER4],
    ),
    (
        Family::Ipv6,
        ["2001:db8:2::7", "2001:db8:3::9", "fd00::2", SERVER6],
    ),
];

/// A packet with one chunk of so many bytes, which tells a tag.
fn packet(way: [&str; 2], ports: [u16; 2], tag: u8, kind: u8, told: u8, length: usize) -> Vec<u8> {
    let mut body = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    body.extend([0, 0, 0, tag, 0, 0, 0, 0, kind, 0]);
    body.extend((length as u16).to_be_bytes());
    body.extend([0, 0, 0, told]);
    body.extend((body.len()..12 + length).map(|at| (at * 7) as u8));
    let sum = crc32c(&body).to_le_bytes();
    body[8..12].copy_from_slice(&sum);
    let mut bytes = Vec::new();
    ip(way[0], way[1], 64)
        .write(&mut bytes, IpNumber(protocol::SCTP), &body)
        .expect("a packet");
    bytes
}

/// RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ (0x82f6_3b78 & 0_u32.wrapping_sub(sum & 1))
        })
    })
}

/// Where the transport header of an IP packet is, which has no options.
fn header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

fn length(packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => u16::from_be_bytes([packet[2], packet[3]]).into(),
        _ => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
    }
}

fn sum(packet: &[u8]) -> [u8; 4] {
    *packet[header(packet) + 8..].first_chunk().expect("a sum")
}

fn is_sound(packet: &[u8]) -> bool {
    let mut body = packet[header(packet)..length(packet)].to_vec();
    body[8..12].fill(0);
    crc32c(&body).to_le_bytes() == sum(packet)
}

fn ports(packet: &[u8]) -> [u16; 2] {
    let at = header(packet);
    [at, at + 2].map(|at| u16::from_be_bytes([packet[at], packet[at + 1]]))
}

/// Both ends become others, addresses and ports, and back, whatever the length and whatever the link layer
/// puts behind.
#[test]
fn both_ends_become_others_and_back() {
    for (family, [client, public, inner, outer]) in HOSTS {
        let to = match family {
            Family::Ipv4 => format!("{inner}:4000"),
            Family::Ipv6 => format!("[{inner}]:4000"),
        };
        let rules = format!(
            "-A PREROUTING -d {public} -p sctp -m sctp --dport 3868 -j DNAT --to-destination {to}\n\
             -A POSTROUTING -o eth1 -p sctp -j MASQUERADE --to-ports 30000-30009"
        );
        let mut machine = Machine::with(family, &rules);
        let mut send = |answers_to: Option<u16>, tag, kind, told, length, padding| {
            let (mut ip, from, to) = if let Some(port) = answers_to {
                let ip = packet([inner, outer], [4000, port], tag, kind, told, length);
                (ip, ETH1, ETH0)
            } else {
                let ip = packet([client, public], [5000, 3868], tag, kind, told, length);
                (ip, ETH0, ETH1)
            };
            ip.extend(vec![0x55; padding]);
            let sent = machine.forward(from, to, ip).bytes.split_off(L2);
            assert!(
                is_sound(&sent),
                "{family:?}, chunk {kind} of {length} bytes"
            );
            ports(&sent)
        };
        let [drawn, port] = send(None, 0, INIT, 1, 20, 10);
        assert!((30_000..30_010).contains(&drawn) && port == 4000);
        let back = Some(drawn);
        assert_eq!(send(back, 1, INIT_ACK, 2, 300, 0), [3868, 5000]);
        assert_eq!(send(None, 2, COOKIE_ECHO, 0, 277, 0), [drawn, 4000]);
        assert_eq!(send(back, 1, COOKIE_ACK, 0, 8, 6), [3868, 5000]);
        for length in (17..1460).step_by(31) {
            assert_eq!(send(None, 2, DATA, 0, length, 0), [drawn, 4000]);
            assert_eq!(send(back, 1, DATA, 0, length, 3), [3868, 5000]);
        }
    }
}

/// What addresses change, the sum does not see; and where it is left to the card, it is zero and stays
/// that.
#[test]
fn the_sum_stays_where_ports_do_and_where_it_is_left_to_the_card() {
    for (family, [client, public, ..]) in HOSTS {
        let init = packet([client, public], [5000, 3868], 0, INIT, 1, 20);
        let mut machine = Machine::with(family, "-A POSTROUTING -o eth1 -j MASQUERADE");
        let sent = machine
            .forward(ETH0, ETH1, init.clone())
            .bytes
            .split_off(L2);
        assert_eq!((ports(&sent), sum(&sent)), ([5000, 3868], sum(&init)));
        assert_ne!(sent[..header(&sent)], init[..header(&init)]);

        let rule = "-A POSTROUTING -o eth1 -p sctp -j MASQUERADE --to-ports 30000";
        let mut machine = Machine::with(family, rule);
        let mut init = init;
        let at = header(&init) + 8;
        init[at..at + 4].fill(0);
        let unfinished = SlicePacket {
            partial_sum: true,
            ..frame(init)
        };
        let (verdict, packet) = machine.arrive(ETH0, unfinished);
        assert_eq!(verdict, Verdict::Pass);
        let (verdict, mut packet) = machine.leave(ETH1, packet);
        assert_eq!(verdict, Verdict::Pass);
        let sent = packet.bytes.split_off(L2);
        assert_eq!((ports(&sent), sum(&sent)), ([30_000, 3868], [0; 4]));
    }
}

/// What a port changes in the sum depends on how long the packet is, which a fragment does not tell.
#[test]
fn fragments_keep_their_ports() {
    let (_, [client, public, ..]) = HOSTS[0];
    let whole = packet([client, public], [5000, 3868], 0, INIT, 1, 100);
    let piece = |offset: usize, more| {
        let (mut header, body) = Ipv4Header::from_slice(&whole).expect("a header");
        let body = &body[offset..];
        let body = if more { &body[..40] } else { body };
        header.identification = 7;
        header.more_fragments = more;
        header.fragment_offset = IpFragOffset::try_new((offset / 8) as u16).expect("an offset");
        header.set_payload_len(body.len()).expect("a length");
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], body].concat()
    };
    let mut machine = Machine::with(Family::Ipv4, "-A POSTROUTING -o eth1 -j MASQUERADE");
    for (offset, more) in [(0, true), (40, false)] {
        let sent = machine.forward(ETH0, ETH1, piece(offset, more));
        assert_eq!(sent.bytes[L2 + 20..], piece(offset, more)[20..]);
        assert_eq!(sent.bytes[L2 + 12..L2 + 16], [198, 51, 100, 10]);
    }
    for rule in [
        "-A POSTROUTING -o eth1 -p sctp -j MASQUERADE --to-ports 30000-30009",
        "-A POSTROUTING -o eth1 -p sctp -j MASQUERADE --random",
        "-A PREROUTING -p sctp -j DNAT --to-destination :4000",
    ] {
        let mut machine = Machine::with(Family::Ipv4, rule);
        let (mut verdict, packet) = machine.arrive(ETH0, frame(piece(0, true)));
        if verdict == Verdict::Pass {
            verdict = machine.leave(ETH1, packet).0;
        }
        assert_eq!(verdict, Verdict::Drop(Stat::Rewrite), "{rule}");
        assert!(machine.tables.state().flows.is_empty(), "{rule}");
    }
    // Nor do those of an association whose other packets have other ports.
    let rule = "-A POSTROUTING -o eth1 -p sctp -j MASQUERADE --to-ports 30000-30009";
    let mut machine = Machine::with(Family::Ipv4, rule);
    machine.forward(ETH0, ETH1, whole.clone());
    for (offset, more) in [(0, true), (40, false)] {
        let (verdict, packet) = machine.arrive(ETH0, frame(piece(offset, more)));
        assert_eq!(verdict, Verdict::Pass);
        let (verdict, _) = machine.leave(ETH1, packet);
        assert_eq!(verdict, Verdict::Drop(Stat::Rewrite));
    }
}

/// An error quotes a packet as it became; whoever sent it gets it back as it was, its sum too, where it is
/// quoted.
#[test]
fn errors_quote_what_was_sent() {
    const KEPT: [usize; 4] = [8, 11, 12, 40];
    for (family, [client, public, _, outer]) in HOSTS {
        let rule = "-A POSTROUTING -o eth1 -p sctp -j MASQUERADE --to-ports 30000";
        let mut machine = Machine::with(family, rule);
        let init = packet([client, public], [5000, 3868], 0, INIT, 1, 60);
        let sent = machine
            .forward(ETH0, ETH1, init.clone())
            .bytes
            .split_off(L2);
        assert_eq!(ports(&sent), [30_000, 3868]);
        let header = header(&sent);
        for kept in KEPT.into_iter().chain([sent.len() - header]) {
            let way = [public, outer];
            let quoted = &sent[..header + kept];
            let error = match family {
                Family::Ipv4 => icmpv4(way, 3, 1, quoted),
                Family::Ipv6 => icmpv6(way, 64, 1, quoted),
            };
            let got = machine.forward(ETH1, ETH0, error).bytes.split_off(L2);
            let quoted = &got[header + 8..];
            assert_eq!(ports(quoted), [5000, 3868]);
            // Of a sum that is cut, nothing changes.
            let same = if kept < 12 { 8 } else { kept };
            let (quoted, sent) = (&quoted[header..][..same], &init[header..][..same]);
            assert_eq!(quoted, sent, "{kept} bytes");
            let pseudo = match family {
                Family::Ipv4 => Vec::new(),
                Family::Ipv6 => [&got[8..40], &[0, 0], &got[4..6], &[0, 0, 0, 58]].concat(),
            };
            let words = [&pseudo, &got[header..]].concat();
            let words = words.chunks(2).map(|pair| {
                u64::from(u16::from_be_bytes([
                    pair[0],
                    pair.get(1).copied().unwrap_or(0),
                ]))
            });
            assert_eq!(
                words.sum::<u64>() % 0xffff,
                0,
                "the error's sum, {kept} bytes"
            );
        }
    }
}
