//! What fwbpf prints of a rule set is what iptables prints of it, over the whole grammar: the rule
//! sets of the conformance test are read by both and printed by both, without any packet.

use std::sync::Arc;

use fw_user::policy::model::Family;
use fw_user::policy::{LoadOptions, SourceFile, load, print_save};
use fwbpf_tests::conformance::grammar::Rules;
use fwbpf_tests::conformance::traffic::{Traffic, Ways};
use fwbpf_tests::lab::{Firewall, Iptables, Namespace, ready};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const RULE_SETS: u64 = 150;

#[test]
fn rules_are_spelled_as_iptables_spells_them() {
    const NAME: &str = "rules_are_spelled_as_iptables";
    let programs = [
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
        "conntrack",
        "ipset",
    ];
    if !ready(NAME, &programs, false) {
        return;
    }
    let namespace = Namespace::new(NAME, "srv").unwrap();
    let iptables = Iptables::new(Arc::new(namespace));
    let mut wrong = Vec::new();
    for seed in 0..RULE_SETS {
        for family in [Family::Ipv4, Family::Ipv6] {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let traffic = Traffic::generate(&mut random, family, 100, Ways::ROUTED);
            let rules = Rules::generate(&mut random, family, &traffic.flows);
            iptables.clear().unwrap();
            iptables.give_sets(&rules.sets.text).unwrap();
            iptables.load(&[(family, &rules.text())]).unwrap();
            let expected = iptables.save(family).unwrap();
            wrong.extend(compare(&rules, family, &expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn compare(rules: &Rules, family: Family, expected: &str) -> Vec<String> {
    let text = rules.text();
    let file = SourceFile::new("rules", text.as_bytes(), Some(family));
    let sets = SourceFile::new("sets.ipset", rules.sets.text.as_bytes(), None);
    let printed = match load(&[file, sets], LoadOptions { strict: true }) {
        Ok(loaded) => print_save(&loaded.policy, family, None),
        Err(errors) => return vec![format!("refused: {errors:?}\n{text}")],
    };
    let mut wrong = Vec::new();
    for table in &rules.tables {
        let expected = lines_of(expected, table.name);
        let printed = lines_of(&printed, table.name);
        for number in 0..expected.len().max(printed.len()) {
            let pair = (expected.get(number), printed.get(number));
            if pair.0 != pair.1 {
                wrong.push(format!(
                    "{family:?} {}: iptables {:?}, fwbpf {:?}",
                    table.name, pair.0, pair.1
                ));
            }
        }
    }
    wrong
}

/// Chains and rules of one table, without counters.
fn lines_of(text: &str, table: &str) -> Vec<String> {
    text.lines()
        .skip_while(|line| *line != format!("*{table}"))
        .skip(1)
        .take_while(|line| *line != "COMMIT")
        .map(|line| match line.strip_prefix('[') {
            Some(counted) => counted.split_once(' ').map_or(counted, |(_, rule)| rule),
            // Brackets of a rule are an address's.
            None if line.starts_with(':') => line.split(" [").next().unwrap_or(line),
            None => line,
        })
        .map(|line| line.trim_end().to_string())
        .collect()
}
