//! The compiled policy, judged by the datapath on the host, against the model's own meaning.

use fw_common::abi::Family as AbiFamily;
use fw_common::abi::blob::{BaseChain, Filter, HashKey};
use fw_common::datapath::classify::{Decision, Query, traverse};
use fw_common::datapath::header::{Headers, Icmp, Part};
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tables::Tables;
use fw_user::addr;
use fw_user::compile::{Slots, compile};
use fw_user::policy::TableName;
use fw_user::policy::model::{CtDirection, Family, Policy};
use fw_user::sim::{Host, HostDevice, HostTables, SlicePacket};
use proptest::prelude::*;

use crate::generate;
use crate::model::{Hits, Outcome, Seen, judge};

const BYTES: u32 = 60;

const CHAINS: [(BaseChain, TableName, &str); 7] = [
    (BaseChain::FilterInput, TableName::Filter, "INPUT"),
    (BaseChain::FilterForward, TableName::Filter, "FORWARD"),
    (BaseChain::FilterOutput, TableName::Filter, "OUTPUT"),
    (BaseChain::NatPrerouting, TableName::Nat, "PREROUTING"),
    (BaseChain::NatInput, TableName::Nat, "INPUT"),
    (BaseChain::NatOutput, TableName::Nat, "OUTPUT"),
    (BaseChain::NatPostrouting, TableName::Nat, "POSTROUTING"),
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_datapath_does_what_the_model_says(
        policy in generate::policy(),
        packets in proptest::collection::vec((generate::seen(), 0..CHAINS.len()), 1..40),
        generation in 1..3u32,
    ) {
        let slots = scattered_slots(&policy);
        let compiled = compile(&policy, &slots, generation, b"meta").expect("within the limits");
        let tables = HostTables::running(host(), compiled);
        let mut expected = Hits::new();
        for (seen, chain) in &packets {
            let (base, table, name) = CHAINS[*chain];
            let (outcome, hits) = judge(&policy, table, name, seen);
            for (id, count) in hits {
                *expected.entry(id).or_default() += count;
            }
            let decision = classify(&tables, base, generation, seen);
            prop_assert_eq!(decision, as_decision(&outcome), "{} {}: {:?}", table, name, seen);
        }
        for (id, slot) in policy.counter_ids().zip(&slots.of) {
            let count = expected.get(&id).copied().unwrap_or(0);
            let counted = tables.counter(*slot);
            prop_assert_eq!(counted, [count, count * u64::from(BYTES)], "{:?}", id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// The same policy makes the same bytes: a reload of an unchanged file changes nothing.
    #[test]
    fn compiling_is_a_function(policy in generate::policy()) {
        let slots = scattered_slots(&policy);
        let compiled = || compile(&policy, &slots, 1, &[]).expect("within the limits");
        prop_assert_eq!(compiled(), compiled());
        // The dump reads every cell that is referred to.
        let dump = format!("{:?}", compiled());
        prop_assert!(!dump.contains("beyond"), "{}", dump);
        prop_assert!(!dump.contains("unknown"), "{}", dump);
    }
}

/// Slots in an order of their own, so that a slot taken for an index shows.
pub fn scattered_slots(policy: &Policy) -> Slots {
    let needed = Slots::needed_by(policy) as u32;
    Slots {
        of: (0..needed).rev().map(|slot| slot * 3 + 5).collect(),
    }
}

pub fn host() -> Host {
    let device = |(index, name): (usize, &&str)| HostDevice::ethernet(index as u32 + 1, name);
    Host {
        devices: generate::INTERFACES
            .iter()
            .enumerate()
            .map(device)
            .collect(),
        local: Vec::new(),
        ..Host::default()
    }
}

pub fn classify(tables: &HostTables, base: BaseChain, generation: u32, seen: &Seen) -> Decision {
    let family = match seen.family {
        Family::Ipv4 => AbiFamily::V4,
        Family::Ipv6 => AbiFamily::V6,
    };
    let headers = Headers {
        key: HashKey {
            source: addr::to_abi(seen.source),
            destination: addr::to_abi(seen.destination),
            ports: u32::from(seen.ports.0) << 16 | u32::from(seen.ports.1),
            protocol: seen.protocol.into(),
        },
        flow_ports: 0,
        bytes: BYTES,
        fragment_id: 0,
        l3: 14,
        l4: 34,
        l4_len: 40,
        family,
        part: Part::Whole,
        broken: false,
        tos: 0,
        tcp_flags: seen.tcp_flags,
        icmp: Icmp::No,
        zone: 0,
    };
    let patterns = |name: &Option<String>| {
        // Bit 0, "any", is all that a hook without the interface has.
        let device = name.as_ref().and_then(|name| tables.host().device(name));
        let record = device.and_then(|device| tables.device(device.index));
        record.map_or(1, |record| record.patterns[(generation & 1) as usize])
    };
    let query = Query {
        in_patterns: patterns(&seen.in_interface),
        out_patterns: patterns(&seen.out_interface),
        ct: seen.states.0,
        direction: match seen.direction {
            Some(CtDirection::Original) => 0,
            Some(CtDirection::Reply) => 1,
            None => 2,
        },
        packets: 1,
        class: Filter::class_of(headers.key.protocol as u8),
    };
    let mut scratch = Scratch {
        headers,
        query,
        ..Scratch::default()
    };
    // Chains are asked about the scratch space, not about the packet.
    let mut packet = SlicePacket::raw_ip(Vec::new(), 0);
    traverse(&mut packet, tables, base.id(family), &mut scratch)
}

pub fn as_decision(outcome: &Outcome) -> Decision {
    match outcome {
        Outcome::Accept => Decision::Accept,
        Outcome::Drop => Decision::Drop(fw_common::abi::stat::Stat::Policy),
        Outcome::Reject => Decision::Reject,
        Outcome::Masquerade { ports, random } => Decision::Masquerade {
            ports: ports.map_or(0, |(first, last)| u32::from(last) << 16 | u32::from(first)),
            random: *random,
        },
        Outcome::Translate => Decision::Translate,
    }
}
