use std::time::Instant;

use fw_common::abi::blob::{Prune, prune};

use super::*;

/// Rules of many shapes, from a fixed sequence.
fn rules(count: u32, family: Family) -> Vec<RuleFields> {
    let mut state = 1u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    (0..count)
        .map(|index| {
            let lengths = [0, 8, 16, 24, 28, 31, 32, 64, 128];
            let address: Addr = std::array::from_fn(|_| next());
            let source_mask = prefix_mask(lengths[next() as usize % 9], family);
            let destination_mask = prefix_mask(lengths[next() as usize % 9], family);
            let port = next() as u16;
            RuleFields {
                source: and(address, source_mask),
                source_mask,
                destination: and(address, destination_mask),
                destination_mask,
                destination_ports: match next() % 3 {
                    0 => (0, u16::MAX),
                    1 => (port, port),
                    _ => (port, port.saturating_add(1000)),
                },
                protocol: [None, Some(6), Some(17)][next() as usize % 3],
                index,
                ..RuleFields::default()
            }
        })
        .collect()
}

/// Every rule must be in the list that a packet with its own lowest values hashes to.
fn assert_findable(rules: &[RuleFields], family: Family, cells: &[Cell], first: u32, count: u32) {
    for rule in rules {
        let key = HashKey {
            source: rule.source,
            destination: rule.destination,
            ports: (rule.source_ports.0 as u32) << 16 | rule.destination_ports.0 as u32,
            protocol: rule.protocol.unwrap_or(1).into(),
        };
        let found = (first..first + count).any(|table| {
            let (bucket, tag) = Table(&cells[table as usize]).locate(&key, family == Family::Ipv6);
            let list = Bucket(&cells[bucket as usize]).find(tag);
            let indices: Vec<u32> = blocks::rules(cells, list, family)
                .map(|at| fw_common::abi::blob::Rule(&cells[at as usize]).index())
                .collect();
            assert!(indices.is_sorted(), "lists ascend: {indices:?}");
            indices.contains(&rule.index)
        });
        assert!(found, "rule {} is in no list", rule.index);
    }
}

/// The bitmaps must have the bit of a rule's table for each packet that the rule matches: these try
/// the ends of each range.
fn assert_not_pruned(
    rules: &[RuleFields],
    family: Family,
    cells: &[Cell],
    tables: std::ops::Range<u32>,
    prune: u32,
) {
    let view = Prune(&cells[prune as usize]);
    let bits = |dimension, entry| {
        let cell = &cells[view.cell(dimension, entry) as usize];
        view.bits(dimension, entry, cell)
    };
    let by_address = |dimension, address: Addr, mask: Addr| {
        let last = std::array::from_fn(|word| address[word] | !mask[word]);
        [address, last].map(|address| bits(dimension, view.entry(dimension, &address)))
    };
    for rule in rules {
        let number = tables
            .clone()
            .position(|table| lists_hold(rule, family, cells, table))
            .expect("each rule is in a table");
        let bit = 1 << prune::table_bit(number as u32);
        for bits in by_address(0, rule.source, rule.source_mask)
            .into_iter()
            .chain(by_address(1, rule.destination, rule.destination_mask))
            .chain(
                [rule.destination_ports.0, rule.destination_ports.1]
                    .map(|port| bits(2, Prune::port_entry(port.into()))),
            )
        {
            assert!(bits & bit != 0, "table {number} is left out for {rule:?}");
        }
    }
}

/// Whether a table has the rule where a packet of its own lowest values looks.
fn lists_hold(rule: &RuleFields, family: Family, cells: &[Cell], table: u32) -> bool {
    let key = HashKey {
        source: rule.source,
        destination: rule.destination,
        ports: (rule.source_ports.0 as u32) << 16 | rule.destination_ports.0 as u32,
        protocol: rule.protocol.unwrap_or(1).into(),
    };
    let (bucket, tag) = Table(&cells[table as usize]).locate(&key, family == Family::Ipv6);
    let list = Bucket(&cells[bucket as usize]).find(tag);
    blocks::rules(cells, list, family)
        .any(|at| fw_common::abi::blob::Rule(&cells[at as usize]).index() == rule.index)
}

fn placed(rules: &[RuleFields], family: Family) -> (Vec<Cell>, u32) {
    let mut cells = vec![Cell::default()];
    let (count, prune) = place(rules, &Groups::of(rules, family), family, &mut cells);
    if prune != 0 {
        assert_not_pruned(rules, family, &cells, 1..1 + count, prune);
    }
    (cells, count)
}

#[test]
fn every_rule_is_found_where_its_packets_look() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let rules = rules(3000, family);
        let (cells, count) = placed(&rules, family);
        assert_findable(&rules, family, &cells, 1, count);
    }
}

#[test]
fn tables_ascend_by_their_first_rule() {
    let rules = rules(3000, Family::Ipv4);
    let (cells, count) = placed(&rules, Family::Ipv4);
    let firsts: Vec<u32> = (1..=count)
        .map(|table| Table(&cells[table as usize]).min_index())
        .collect();
    assert!(firsts.is_sorted(), "{firsts:?}");
    assert_eq!(firsts[0], 0);
}

#[test]
fn rules_alike_in_all_hashed_fields_share_one_long_list() {
    let rules: Vec<RuleFields> = (0..1000)
        .map(|index| RuleFields {
            index,
            ct_mask: index as u8,
            ..RuleFields::default()
        })
        .collect();
    let (cells, count) = placed(&rules, Family::Ipv4);
    assert_eq!(count, 1);
    assert_findable(&rules, Family::Ipv4, &cells, 1, count);
}

#[test]
fn a_mask_with_holes_is_hashed_by_its_leading_ones() {
    let rule = RuleFields {
        source_mask: [0xff00_ff00, 0, 0, 0],
        ..RuleFields::default()
    };
    assert_eq!(Tuple::of(&rule, Family::Ipv4).source, 8);
    let whole = RuleFields {
        source_mask: [u32::MAX; 4],
        ..RuleFields::default()
    };
    assert_eq!(Tuple::of(&whole, Family::Ipv6).source, 128);
}

#[test]
fn masks_have_the_length_asked_for() {
    assert_eq!(prefix_mask(0, Family::Ipv6), [0; 4]);
    assert_eq!(prefix_mask(33, Family::Ipv6), [u32::MAX, 1 << 31, 0, 0]);
    assert_eq!(prefix_mask(128, Family::Ipv6), [u32::MAX; 4]);
    assert_eq!(prefix_mask(128, Family::Ipv4), [u32::MAX, 0, 0, 0]);
    assert_eq!([0, 1, 15, 16].map(port_mask), [0, 0x8000, 0xfffe, 0xffff]);
    assert_eq!(common_bits((1024, 2047)), 6);
}

#[test]
fn a_hundred_thousand_rules_are_quick_to_place() {
    let rules = rules(100_000, Family::Ipv4);
    let before = Instant::now();
    let (cells, count) = placed(&rules, Family::Ipv4);
    let took = before.elapsed();
    // Generous, as this also runs unoptimised and on busy machines.
    assert!(took.as_secs() < 20, "{took:?}");
    assert!(cells.len() < 300_000, "{} cells", cells.len());
    assert!(count < 200, "{count} tables");
}
