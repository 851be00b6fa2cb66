//! Rule sets that are as bad as can be for masked-hash tables: they are judged exactly as any other,
//! compile in reasonable time, and are reported.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fw_common::abi::blob::BaseChain;
use fw_user::compile::{Draft, compile};
use fw_user::policy::model::{CtStates, Family, Policy};
use fw_user::policy::{LoadOptions, SourceFile, TableName, load};
use fw_user::sim::HostTables;

use crate::classify::{as_decision, classify, host, scattered_slots};
use crate::model::{Seen, judge};

/// A filter table for IPv4 with these chains and rules.
fn filter(chains: &str, rules: &str) -> Policy {
    let text = format!(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{chains}{rules}COMMIT\n"
    );
    let file = SourceFile::new("rules.v4", text, None);
    let loaded = load(&[file], LoadOptions { strict: true });
    loaded.expect("the rules are right").policy
}

fn tcp(source: u32, port: u16) -> Seen {
    Seen {
        family: Family::Ipv4,
        source: IpAddr::V4(Ipv4Addr::from_bits(source)),
        destination: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)),
        ports: (40_000, port),
        protocol: 6,
        tcp_flags: 2,
        states: CtStates::NEW,
        direction: None,
        in_interface: None,
        out_interface: None,
    }
}

/// Compares the verdicts, and returns the codes of the warnings about costs with their lines.
fn check(policy: &Policy, packets: impl IntoIterator<Item = Seen>) -> Vec<(&'static str, u32)> {
    let before = Instant::now();
    let slots = scattered_slots(policy);
    let compiled = compile(policy, &slots, 1, &[]).expect("within the limits");
    // Unoptimised, on a busy machine; a release build takes a tenth.
    let took = before.elapsed();
    assert!(took < Duration::from_secs(20), "compiling took {took:?}");
    let tables = HostTables::running(host(), compiled);
    for seen in packets {
        let (outcome, _) = judge(policy, TableName::Filter, "INPUT", &seen);
        let decision = classify(&tables, BaseChain::FilterInput, 1, &seen);
        assert_eq!(decision, as_decision(&outcome), "{seen:?}");
    }
    let draft = Draft::of(policy).expect("within the limits");
    let line = |warning: fw_user::policy::Warning| {
        let line = warning.origin.map_or(0, |origin| origin.line);
        (warning.code, line)
    };
    draft.costs(policy).into_iter().map(line).collect()
}

/// The first line after those that `filter` puts before the rules.
const FIRST_LINE: u32 = 5;

#[test]
fn rules_alike_in_all_that_is_hashed() {
    let mut rules = String::new();
    for number in 0..3_000 {
        let (low, high) = (32_000 - number, 33_000 + number % 7);
        let target = ["ACCEPT", "DROP"][number % 2];
        let _ = writeln!(
            rules,
            "-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport {low}:{high} -j {target}"
        );
    }
    let policy = filter("", &rules);
    let packets = [32_500, 33_003, 33_006, 33_007, 31_000, 29_001, 29_000].into_iter();
    let found = check(&policy, packets.map(|port| tcp(10 << 24 | 7, port)));
    assert_eq!(found, [("rules-alike", FIRST_LINE)]);
}

#[test]
fn nested_prefixes_and_ranges() {
    let mut rules = String::new();
    // The narrowest first: each packet meets another rule.
    for length in (8..=32).rev() {
        for number in 0..100_u32 {
            let (low, high) = (1_000 + number, 60_000 - number);
            let target = ["ACCEPT", "DROP"][(length + number as usize) % 2];
            let _ = writeln!(
                rules,
                "-A INPUT -s 10.77.77.77/{length} -p tcp -m tcp --dport {low}:{high} -j {target}"
            );
        }
    }
    let policy = filter("", &rules);
    let address = u32::from_be_bytes([10, 77, 77, 77]);
    let packets = (0..24).flat_map(|bit| {
        let ports = [999, 1_000, 1_050, 59_901, 60_000, 60_001];
        ports.map(|port| tcp(address ^ 1 << bit, port))
    });
    let found = check(&policy, packets);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "rules-alike");
}

#[test]
fn ten_thousand_chains() {
    let (mut chains, mut rules) = (String::new(), String::new());
    for number in 0..10_000 {
        let (high, low) = (number / 256, number % 256);
        let _ = writeln!(chains, ":c{number} - [0:0]");
        let _ = writeln!(rules, "-A INPUT -s 10.{high}.{low}.0/24 -j c{number}");
        let _ = writeln!(rules, "-A c{number} -p tcp -m tcp --dport 22 -j ACCEPT");
    }
    let before = Instant::now();
    let policy = filter(&chains, &rules);
    let took = before.elapsed();
    assert!(took < Duration::from_secs(10), "reading took {took:?}");
    let packets = [0, 5_000, 9_999, 10_000].into_iter().flat_map(|number| {
        let source = 10 << 24 | number << 8 | 9;
        [tcp(source, 22), tcp(source, 23)]
    });
    let found = check(&policy, packets);
    // By what the rules say only one of the chains can be called, which nobody looks into.
    assert_eq!(found, [("long-way", 0)]);
}

#[test]
fn deep_jumps_and_long_ways() {
    let (mut chains, mut rules) = (String::new(), String::new());
    // A nest as deep as can be, behind a chain of gotos.
    for number in 0..2_000 {
        let next = number + 1;
        let _ = writeln!(chains, ":g{number} - [0:0]");
        let _ = writeln!(rules, "-A g{number} -p tcp -m tcp --dport {number} -j DROP");
        let _ = writeln!(rules, "-A g{number} -g g{next}");
    }
    let _ = writeln!(chains, ":g2000 - [0:0]");
    for number in 0..126 {
        let next = number + 1;
        let _ = writeln!(chains, ":j{number} - [0:0]");
        let _ = writeln!(rules, "-A j{number} -j j{next}");
        let _ = writeln!(
            rules,
            "-A j{number} -p tcp -m tcp --dport {} -j ACCEPT",
            5_000 + number
        );
    }
    let _ = writeln!(chains, ":j126 - [0:0]");
    rules.push_str("-A g2000 -j j0\n-A INPUT -j g0\n-A INPUT -j ACCEPT\n");
    let policy = filter(&chains, &rules);
    let packets = [0, 1_999, 2_000, 5_000, 5_125, 5_126].into_iter();
    let found = check(&policy, packets.map(|port| tcp(1 << 24, port)));
    assert_eq!(found, []);
}
