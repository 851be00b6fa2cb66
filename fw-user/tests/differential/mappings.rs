//! What the RFCs ask of a masqueraded mapping (docs/nat.md), packet by packet and with the clock in hand. Of what fwbpf
//! does otherwise, as netfilter does, this shows what it does.

use fw_common::abi::ct;
use fw_common::abi::stat::Stat;
use fw_common::datapath::Verdict;
use fw_common::datapath::tcp::flag;
use fw_user::policy::model::Family;
use fw_user::sim::SlicePacket;

use crate::machine::{ETH0, ETH1, Machine, SERVER4, frame, icmpv4, ip, tcp, udp};

const INNER: &str = "10.0.0.2";
const FAR: &str = "203.0.113.9";
const OUT: [&str; 2] = [INNER, FAR];
const BACK: [&str; 2] = [FAR, SERVER4];

/// Where an IPv4 packet has its identification, its ends and its ports in a frame.
const ID: usize = 18;
const SOURCE: usize = 26;
const DESTINATION: usize = 30;
const PORT: usize = 34;

/// A machine that masquerades what leaves by eth1, at a time.
struct Nat(Machine);

impl Nat {
    fn new() -> Self {
        let rule = "-A POSTROUTING -o eth1 -j MASQUERADE";
        let mut nat = Self(Machine::with(Family::Ipv4, rule));
        nat.at(0);
        nat
    }

    /// So many seconds after it began.
    fn at(&mut self, seconds: u64) -> &mut Self {
        self.0.tables.set_now((1000 + seconds) * 1_000_000_000);
        self
    }

    /// The packet goes out under the server's address.
    fn out(&mut self, packet: Vec<u8>) -> SlicePacket {
        let packet = self.0.forward(ETH0, ETH1, packet);
        assert_eq!(octets(&packet, SOURCE), address(SERVER4));
        packet
    }

    /// Whether what comes back is the inner host's; otherwise it is for this host.
    fn back(&mut self, packet: Vec<u8>) -> bool {
        let (verdict, packet) = self.0.arrive(ETH1, frame(packet));
        assert_eq!(verdict, Verdict::Pass);
        let inner = octets(&packet, DESTINATION) == address(INNER);
        assert_eq!(packet.note != 0, inner);
        inner
    }
}

fn octets(packet: &SlicePacket, at: usize) -> [u8; 4] {
    packet.bytes[at..at + 4].try_into().expect("four bytes")
}

fn address(text: &str) -> [u8; 4] {
    let address: std::net::Ipv4Addr = text.parse().expect("an address");
    address.octets()
}

fn port(packet: &SlicePacket) -> u16 {
    u16::from_be_bytes([packet.bytes[PORT], packet.bytes[PORT + 1]])
}

fn request() -> Vec<u8> {
    udp(OUT, [5000, 53])
}

fn response() -> Vec<u8> {
    udp(BACK, [53, 5000])
}

fn echo(way: [&str; 2], reply: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = ip(way[0], way[1], 64);
    let step = if reply {
        step.icmpv4_echo_reply(7, 1)
    } else {
        step.icmpv4_echo_request(7, 1)
    };
    step.write(&mut bytes, b"ping").expect("a packet");
    bytes
}

/// Segments of a connection from port 5000 to port 80 with their flags and numbers.
fn segment(forth: bool, flags: u8, numbers: [u32; 2]) -> Vec<u8> {
    if forth {
        tcp(OUT, [5000, 80], flags, numbers, 0)
    } else {
        tcp(BACK, [80, 5000], flags, numbers, 0)
    }
}

fn open(nat: &mut Nat) {
    nat.out(segment(true, flag::SYN, [100, 0]));
    assert!(nat.back(segment(false, flag::SYN | flag::ACK, [500, 101])));
    nat.out(segment(true, flag::ACK, [101, 501]));
}

/// After the talk, which ends at second 0 or at the one that it says, the answer finds its way for so long and no longer.
fn lives(what: &str, seconds: u64, talk: impl Fn(&mut Nat) -> u64, answer: &[u8]) {
    for (later, expected) in [(seconds - 1, true), (seconds + 1, false)] {
        let mut nat = Nat::new();
        let end = talk(&mut nat);
        let found = nat.at(end + later).back(answer.to_vec());
        assert_eq!(found, expected, "{what}, after {later} s");
    }
}

/// RFC 4787 REQ-5: 120 s once both sides have talked for 2 s, 30 s before (`nf_conntrack_udp_packet`,
/// net/netfilter/nf_conntrack_proto_udp.c).
#[test]
fn a_mapping_of_udp_lives_for_two_minutes_once_both_have_talked() {
    let asked = |nat: &mut Nat| {
        nat.out(request());
        0
    };
    lives("asked", 30, asked, &response());
    let answered = |nat: &mut Nat| {
        nat.out(request());
        assert!(nat.at(1).back(response()));
        1
    };
    lives("answered at once", 30, answered, &response());
    let talked = |nat: &mut Nat| {
        nat.out(request());
        assert!(nat.at(1).back(response()));
        nat.at(4).out(request());
        4
    };
    lives("talked", 120, talked, &response());
}

/// RFC 5382 REQ-5: five days established; what opens or closes has netfilter's one or two minutes
/// (`tcp_timeouts`, net/netfilter/nf_conntrack_proto_tcp.c).
#[test]
fn a_mapping_of_tcp_lives_for_days_once_established() {
    const DAYS: u64 = 24 * 60 * 60;
    let more = segment(false, flag::ACK, [501, 101]);
    let asked = |nat: &mut Nat| {
        nat.out(segment(true, flag::SYN, [100, 0]));
        0
    };
    let accepting = segment(false, flag::SYN | flag::ACK, [500, 101]);
    lives("SYN_SENT", 120, asked, &accepting);
    let established = |nat: &mut Nat| {
        open(nat);
        0
    };
    lives("ESTABLISHED", 5 * DAYS, established, &more);
    let closing = |nat: &mut Nat| {
        open(nat);
        nat.out(segment(true, flag::FIN | flag::ACK, [101, 501]));
        0
    };
    lives("FIN_WAIT", 120, closing, &more);
}

/// RFC 7857 2: a reset ends a connection, here within 10 s.
#[test]
fn a_reset_ends_a_mapping_within_seconds() {
    let reset = |nat: &mut Nat| {
        open(nat);
        nat.out(segment(true, flag::RST, [101, 0]));
        0
    };
    lives("CLOSE", 10, reset, &segment(false, flag::ACK, [501, 101]));
}

/// RFC 5508 REQ-2 and RFC 7857 11 ask for 60 s.
#[test]
fn a_mapping_of_queries_lives_for_half_a_minute() {
    let asked = |nat: &mut Nat| {
        nat.out(echo(OUT, false));
        0
    };
    lives("asked", 30, asked, &echo(BACK, true));
    let answered = |nat: &mut Nat| {
        nat.out(echo(OUT, false));
        assert!(nat.at(20).back(echo(BACK, true)));
        20
    };
    lives("answered", 30, answered, &echo(BACK, true));
}

/// RFC 4787 REQ-6, and RFC 7857 7, which asks for a choice about what comes in.
#[test]
fn packets_of_either_direction_refresh_a_mapping() {
    let sent = |nat: &mut Nat| {
        for second in [0, 20, 40, 60] {
            nat.at(second).out(request());
        }
        60
    };
    lives("sent", 30, sent, &response());
    let received = |nat: &mut Nat| {
        nat.out(request());
        for second in [1, 20, 40, 150] {
            assert!(nat.at(second).back(response()), "{second}");
        }
        150
    };
    lives("received", 120, received, &response());
}

/// RFC 4787 REQ-12 and RFC 5508 REQ-6: errors neither end a mapping nor refresh it.
#[test]
fn errors_neither_end_nor_refresh_a_mapping() {
    let refused = |nat: &mut Nat| {
        let sent = nat.out(request()).bytes.split_off(14);
        let error = icmpv4(["203.0.113.1", SERVER4], 3, 1, &sent);
        assert!(nat.at(20).back(error));
        0
    };
    lives("refused", 30, refused, &response());
}

/// RFC 4787 REQ-4 recommends that an even port stays even. Here, as in netfilter, only the port itself does.
#[test]
fn a_port_that_is_taken_becomes_one_of_either_parity() {
    let mut drawn = [0, 0];
    for host in 2..34 {
        let mut nat = Nat::new();
        nat.0.tables.set_seed(host);
        assert_eq!(port(&nat.out(request())), 5000, "it was free");
        let other = udp([&format!("10.0.1.{host}"), FAR], [5000, 53]);
        let port = port(&nat.out(other));
        assert_ne!(port, 5000);
        drawn[usize::from(port % 2)] += 1;
    }
    assert!(drawn[0] > 0 && drawn[1] > 0, "{drawn:?}");
}

/// RFC 4787 REQ-10 and RFC 5382 REQ-6: nothing in a packet's data is translated, or has others expected.
#[test]
fn no_command_within_a_connection_is_understood() {
    const COMMAND: &[u8] = b"PORT 10,0,0,2,19,137\r\n";
    let mut nat = Nat::new();
    let mut bytes = Vec::new();
    let open = ip(INNER, FAR, 64).tcp(5000, 21, 100, 1000).syn();
    open.write(&mut bytes, &[]).expect("a packet");
    nat.out(bytes);
    let mut bytes = Vec::new();
    let accept = ip(FAR, SERVER4, 64).tcp(21, 5000, 500, 1000).syn().ack(101);
    accept.write(&mut bytes, &[]).expect("a packet");
    assert!(nat.back(bytes));
    let mut bytes = Vec::new();
    let command = ip(INNER, FAR, 64).tcp(5000, 21, 101, 1000).ack(501);
    command.write(&mut bytes, COMMAND).expect("a packet");
    assert!(nat.out(bytes).bytes.ends_with(COMMAND));
    // 19 * 256 + 137.
    let data = tcp(BACK, [20, 5001], flag::SYN, [1, 0], 0);
    assert!(!nat.back(data));
    assert_eq!(nat.0.label().0, ct::NEW);
}

/// RFC 5382 REQ-4: the outer host may not hear at once that nobody has asked for it.
#[test]
fn a_connection_that_nobody_asked_for_is_answered_as_the_rules_say() {
    let unasked = || frame(tcp(BACK, [80, 5000], flag::SYN, [1, 0], 0));
    let policy = |target: &str| {
        let text = format!(
            "*filter\n:INPUT {target}\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n\
             *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n\
             -A POSTROUTING -o eth1 -j MASQUERADE\nCOMMIT\n"
        );
        Machine::loading(Family::Ipv4, &text)
    };
    let mut silent = policy("DROP");
    let verdict = silent.arrive(ETH1, unasked()).0;
    assert_eq!(verdict, Verdict::Drop(Stat::Policy));
    let mut telling = policy("ACCEPT\n-A INPUT -p tcp -j REJECT --reject-with tcp-reset");
    assert_eq!(telling.arrive(ETH1, unasked()).0, Verdict::Answer);
}

/// RFC 7857 10 asks for one that is unique under the outer address.
#[test]
fn the_identification_is_the_senders() {
    let mut nat = Nat::new();
    let mut packet = request();
    packet[4..6].copy_from_slice(&[0x12, 0x34]);
    // The header's checksum, one's complement (RFC 1071).
    packet[10..12].fill(0);
    let sum: u32 = packet[..20]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let sent = nat.out(packet);
    assert_eq!(sent.bytes[ID..ID + 2], [0x12, 0x34]);
}

/// docs/nat.md names tests as `file: `name``, several of one file behind a comma.
#[test]
fn the_tests_that_the_document_names_are_there() {
    const FILES: [(&str, &str); 7] = [
        ("mappings", include_str!("mappings.rs")),
        ("datapath", include_str!("datapath.rs")),
        ("differential", include_str!("translation.rs")),
        ("nat", include_str!("../../../tests/tests/e2e_nat.rs")),
        (
            "published",
            include_str!("../../../tests/tests/e2e_published.rs"),
        ),
        (
            "containers",
            include_str!("../../../tests/tests/e2e_containers.rs"),
        ),
        ("daemon", include_str!("../../../tests/tests/e2e_daemon.rs")),
    ];
    let text = include_str!("../../../docs/nat.md");
    let mut found = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let last = row.trim_end_matches('|').rsplit('|').next();
        for part in last.into_iter().flat_map(|cell| cell.split(';')) {
            let Some((file, names)) = part.trim().split_once(": `") else {
                continue;
            };
            let Some((_, source)) = FILES.iter().find(|(name, _)| *name == file) else {
                continue;
            };
            for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
                if !name.ends_with(".rs") {
                    assert!(source.contains(&format!("fn {name}(")), "{file}: {name}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 20, "{found}");
}
