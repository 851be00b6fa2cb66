//! `string` against what it says: some bytes in a row, from one place to another.

use etherparse::PacketBuilder;
use fw_common::abi::blob::text::upper;
use fw_common::datapath::ingress;
use fw_common::datapath::scratch::Scratch;
use fw_user::compile::{Slots, compile};
use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes of the headers of layers 2 to 4.
const HEADERS: usize = 14 + 20 + 8;

fn counts(rule: &str, frame: &[u8]) -> bool {
    let text = format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n-A INPUT {rule}\nCOMMIT\n"
    );
    let file = SourceFile::new("rules.v4", text.as_bytes(), Some(Family::Ipv4));
    let policy = load(&[file], LoadOptions::default())
        .expect("good rules")
        .policy;
    let set = compile(&policy, &Slots::fresh(&policy), 1, &[]).expect("within the limits");
    let host = Host {
        broadcast: Vec::new(),
        devices: vec![HostDevice::ethernet(2, "eth0")],
        local: vec!["192.0.2.1/32".parse().expect("a prefix")],
        ..Host::default()
    };
    let tables = HostTables::running(host, set);
    let mut packet = SlicePacket::ethernet(frame.to_vec(), 2);
    ingress(&mut packet, &tables, &mut Scratch::default());
    // INPUT's policy has slot 0.
    tables.counter(1)[0] == 1
}

fn datagram(data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([198, 51, 100, 7], [192, 0, 2, 1], 64)
        .udp(4000, 53)
        .write(&mut frame, data)
        .expect("a frame");
    frame
}

fn hexadecimal(bytes: &[u8]) -> String {
    let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("--hex-string \"|{bytes}|\"")
}

/// Few letters, so that much begins and falls back; large and small ones, and some that are none.
fn letter() -> impl Strategy<Value = u8> {
    prop_oneof![
        Just(b'a'),
        Just(b'a'),
        Just(b'A'),
        Just(b'b'),
        Just(0xdf),
        Just(0xe0),
        Just(0xc0),
        Just(0xf7),
        Just(0xd7)
    ]
}

proptest! {
    #[test]
    fn a_text_is_found_where_it_is(
        data in vec(letter(), 0..900),
        short in vec(letter(), 1..5),
        (at, length) in (0..900_usize, 1..=128_usize),
        taken in any::<bool>(),
        range in prop_oneof![Just(None), (0..900_u16, 0..900_u16).prop_map(Some)],
        [not, any_case] in any::<[bool; 2]>(),
        padding in 0..20_usize,
    ) {
        let cut = data.iter().skip(at).take(length).copied().collect::<Vec<_>>();
        let text = if taken && !cut.is_empty() { cut } else { short };
        let (from, to) = range.map_or((0, u16::MAX), |(a, b)| (a.min(b), a.max(b)));
        let mut rule = format!("-m string {}{}", if not { "! " } else { "" }, hexadecimal(&text));
        rule += &format!(" --algo bm --from {from} --to {to}");
        if any_case {
            rule += " --icase";
        }
        let mut frame = datagram(&data);
        let packet = frame[14..].to_vec();
        // What is behind the packet does not count.
        frame.extend(text.iter().copied().cycle().take(padding));
        let same = |a: u8, b: u8| if any_case { upper(a) == upper(b) } else { a == b };
        let end = packet.len().min(usize::from(to));
        let within = packet.get(usize::from(from)..end).unwrap_or_default();
        let found = within
            .windows(text.len())
            .any(|window| window.iter().zip(&text).all(|(a, b)| same(*a, *b)));
        prop_assert_eq!(counts(&rule, &frame), found != not);
    }
}

/// Headers belong to the packet as well: the source address, here.
#[test]
fn a_packet_begins_with_its_ip_header() {
    let frame = datagram(b"what");
    assert_eq!(frame.len(), HEADERS + 4);
    let text = "-m string --hex-string \"|c6336407|\" --algo kmp";
    assert!(counts(&format!("{text} --from 12 --to 16"), &frame));
    assert!(!counts(&format!("{text} --from 12 --to 15"), &frame));
    assert!(!counts(&format!("{text} --from 13"), &frame));
}

/// Whoever fills a packet with almost what is looked for has it searched as fast.
#[test]
fn the_longest_packet_is_searched_to_its_end() {
    let mut data = vec![b'a'; 65_000];
    data.push(b'b');
    let text = format!("{}b", "a".repeat(127));
    let rule = format!("-m string --string {text} --algo bm");
    assert!(counts(&rule, &datagram(&data)));
    data.pop();
    assert!(!counts(&rule, &datagram(&data)));
}
