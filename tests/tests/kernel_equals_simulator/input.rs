//! What both are given: rule sets, and packets that have something to do with them.

use anyhow::{Context as _, Result};
use fw_user::policy::model::{Family, Policy};
use fw_user::policy::{LoadOptions, SourceFile, load};
use fwbpf_tests::conformance::grammar::Rules;
use fwbpf_tests::conformance::traffic::{Flow, Traffic, Ways};
use fwbpf_tests::packet::{Packet, Payload, ones_complement};
use rand::Rng;

/// Bytes of an Ethernet header.
pub const L2: usize = 14;

/// Rules as text that make something of these flows, and the sets that they ask. Of a few, most packets meet so
/// few that the fast path takes them.
pub fn rules(random: &mut impl Rng, family: Family, flows: &[Flow], few: bool) -> (String, String) {
    let mut rules = Rules::generate(random, family, flows);
    if few {
        for table in &mut rules.tables {
            table.rules.retain(|_| random.random_bool(0.1));
        }
    } else if random.random_bool(0.5) {
        // Chains of more than 16 rules are compiled into hash tables. Most of what is put in front
        // only counts, so that packets come to the end.
        let mut more = Vec::new();
        for _ in 0..8 {
            let sets = rules.sets.clone();
            let filter = Rules::asking(random, family, flows, sets)
                .tables
                .swap_remove(0);
            more.extend(filter.rules.into_iter().filter_map(|rule| {
                let (matches, target) = rule.split_once(" -j ").unwrap_or((&rule, ""));
                if rule.starts_with("-A user") || rule.contains("user") {
                    None
                } else if random.random_bool(0.9) {
                    Some(matches.to_owned())
                } else {
                    Some(format!("{matches} -j {target}")).filter(|_| !target.is_empty())
                }
            }));
        }
        rules.tables[0].rules.splice(0..0, more);
    }
    for rule in rules.tables.iter_mut().flat_map(|table| &mut table.rules) {
        *rule = with_one_port(rule);
    }
    (rules.text(), rules.sets.text)
}

/// Ranges of ports to draw from with the first port only. Two draws of one port from the same range can
/// be made the same (see `Trial::expect`) only where the test knows the range.
fn with_one_port(rule: &str) -> String {
    let Some(option) = ["--to-ports ", "--to-source "]
        .into_iter()
        .find(|option| rule.contains(option))
    else {
        return rule.to_owned();
    };
    let (before, value) = rule.split_once(option).expect("it has the option");
    let (value, rest) = match value.split_once(' ') {
        Some((value, rest)) => (value, format!(" {rest}")),
        None => (value, String::new()),
    };
    let first = value.split('-').next().unwrap_or(value);
    format!("{before}{option}{first}{rest}")
}

/// The policy that rules and sets make together.
pub fn policy(texts: &[(Family, (String, String))]) -> Result<Policy> {
    let files: Vec<SourceFile> = texts
        .iter()
        .flat_map(|(family, (rules, sets))| {
            [
                SourceFile::new("generated", rules.as_bytes(), Some(*family)),
                SourceFile::new("generated.ipset", sets.as_bytes(), None),
            ]
        })
        .collect();
    let loaded = load(&files, LoadOptions::default())
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))
        .context("the generator wrote rules that are refused")?;
    Ok(loaded.policy)
}

/// Traffic of both IP versions, to be sent alternately.
pub fn traffic(random: &mut impl Rng, packets: usize) -> Vec<(Family, Traffic)> {
    [Family::Ipv4, Family::Ipv6]
        .map(|family| {
            (
                family,
                Traffic::generate(random, family, packets / 2, Ways::ROUTED),
            )
        })
        .into()
}

/// Makes a datagram of UDP now and then one of SCTP with chunks that may come together or not; whether it did.
pub fn associate(random: &mut impl Rng, packet: &mut Packet) -> bool {
    const KINDS: [u8; 16] = [0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 77];
    let Payload::Udp { ports, .. } = packet.payload else {
        return false;
    };
    if random.random_bool(0.7) {
        return false;
    }
    let mut data = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    let tag = |random: &mut _| u32::from(Rng::random_bool(random, 0.7)).to_be_bytes();
    data.extend(tag(random));
    data.extend([0; 4]);
    let chunks = if random.random_bool(0.8) {
        1
    } else {
        random.random_range(0..12)
    };
    for _ in 0..chunks {
        let kind = KINDS[random.random_range(0..KINDS.len())];
        let length = if random.random_bool(0.8) {
            20
        } else {
            random.random_range(0..24)
        };
        data.extend([kind, u8::from(random.random_bool(0.2)), 0, length]);
        let mut body = tag(random).to_vec();
        body.resize(usize::from(length).saturating_sub(4).next_multiple_of(4), 0);
        data.extend(body);
    }
    packet.payload = Payload::Other {
        protocol: 132,
        data,
    };
    true
}

/// Changes a few bytes of a frame, or cuts it. It keeps the length that `BPF_PROG_TEST_RUN` asks
/// for: an IP header's (net/bpf/test_run.c).
pub fn spoil(random: &mut impl Rng, frame: &mut Vec<u8>) {
    if random.random_bool(0.4) {
        let length = random.random_range(L2..=frame.len());
        frame.truncate(length);
    }
    for _ in 0..random.random_range(0..4) {
        // Most headers are within the first hundred bytes; the link layer's are changed less.
        let from = if random.random_bool(0.1) { 0 } else { L2 };
        let to = frame.len().min(from + 90);
        if from < to {
            let place = random.random_range(from..to);
            frame[place] = if random.random_bool(0.5) {
                random.random()
            } else {
                frame[place] ^ 1 << random.random_range(0..8)
            };
        }
    }
    let least = match frame.get(12..14) {
        Some([0x86, 0xdd]) => L2 + 40,
        _ => L2 + 20,
    };
    if frame.len() < least {
        frame.resize(least, 0);
    }
    if random.random_bool(0.7) {
        repair_header_sum(frame);
    }
}

/// Makes an IPv4 header's checksum right again, so that more than the checksum is looked at.
fn repair_header_sum(frame: &mut [u8]) {
    if frame[12..14] != [8, 0] {
        return;
    }
    let length = usize::from(frame[L2] & 15) * 4;
    let Some(header) = frame.get_mut(L2..L2 + length).filter(|h| h.len() >= 20) else {
        return;
    };
    header[10..12].fill(0);
    let sum = !ones_complement(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}
