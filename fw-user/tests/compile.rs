//! The compiler's limits, sizes and promises about the blob as a whole.

use std::time::{Duration, Instant};

use fw_common::abi::Family as AbiFamily;
use fw_common::abi::blob::{
    BASE_CHAINS, BaseChain, Chain as ChainView, DIRECTORY, HeaderFields, MAX_DEPTH, MAX_PATTERNS,
    chain_kind,
};
use fw_common::abi::maps::COUNTER_SLOTS_MAX;
use fw_user::compile::{Limits, Meta, Place, Slots, TableSet, compile, decode_meta, pattern_bits};
use fw_user::policy::model::{
    Chain, ChainPolicy, InterfacePattern, Match, Negatable, Origin, Policy, PortRange, Ports,
    Prefix, Rule, Ruleset, Table, Target, Tcp,
};

fn rule(line: u32, target: Target) -> Rule {
    Rule {
        source: None,
        destination: None,
        in_interface: None,
        out_interface: None,
        protocol: None,
        matches: Vec::new(),
        target,
        counters: None,
        origin: Origin { file: 0, line },
    }
}

fn base(name: &str, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        policy: Some(ChainPolicy {
            accept: true,
            counters: None,
            origin: None,
        }),
        rules,
    }
}

fn user(name: &str, rules: Vec<Rule>) -> Chain {
    Chain {
        policy: None,
        ..base(name, rules)
    }
}

/// A filter table for IPv4.
fn filter(input: Vec<Rule>, users: Vec<Chain>) -> Policy {
    let mut chains = vec![
        base("INPUT", input),
        base("FORWARD", vec![]),
        base("OUTPUT", vec![]),
    ];
    chains.extend(users);
    Policy {
        ipv4: Some(Ruleset {
            filter: Some(Table { chains }),
            nat: None,
            ..Ruleset::default()
        }),
        files: vec!["rules.v4".into()],
        ..Policy::default()
    }
}

fn compiled(policy: &Policy) -> Result<TableSet, Limits> {
    compile(policy, &Slots::fresh(policy), 1, &[])
}

fn place(line: u32) -> Place {
    Place {
        file: Some("rules.v4".into()),
        line,
    }
}

#[test]
fn what_no_file_speaks_of_is_absent() {
    let set = compiled(&filter(vec![], vec![])).expect("within the limits");
    let kinds: Vec<u32> = (0..2 * BASE_CHAINS)
        .map(|id| ChainView(&set.cells[(DIRECTORY + id) as usize]).kind())
        .collect();
    let mut expected = vec![chain_kind::ABSENT; 2 * BASE_CHAINS as usize];
    expected[..3].fill(chain_kind::LINEAR);
    assert_eq!(kinds, expected);
    let header = set.header().expect("a header");
    assert_eq!(
        header.features & (HeaderFields::NAT4 | HeaderFields::NAT6),
        0
    );
}

#[test]
fn the_description_comes_back_from_the_cells() {
    let policy = filter(
        vec![Rule {
            in_interface: Some(Negatable {
                not: true,
                value: InterfacePattern("eth+".into()),
            }),
            ..rule(3, Target::Drop)
        }],
        vec![],
    );
    let meta = Meta::new(policy.clone(), Slots::fresh(&policy), 1_700_000_000);
    let bytes = meta.encode();
    let set = compile(&policy, &meta.slots, 7, &bytes).expect("within the limits");
    assert_eq!(decode_meta(&set.cells).expect("own cells"), bytes);
    let read = TableSet::from_cells(set.cells.clone()).expect("own cells");
    assert_eq!(read, set);
    assert_eq!(pattern_bits(&read.patterns, "eth0", None), 0b11);
    assert_eq!(pattern_bits(&read.patterns, "lo", None), 0b01);
    let mut cut = set.cells.clone();
    // The meta data begins in the last cells but for the padding of the page.
    cut.truncate(set.header().expect("a header").meta as usize);
    assert!(TableSet::from_cells(cut).is_err());
    assert!(TableSet::from_cells(vec![]).is_err());
}

#[test]
fn one_pattern_too_many_is_refused_at_its_rule() {
    let named = |count: usize| {
        let rules = (0..count).map(|number| Rule {
            out_interface: Some(Negatable {
                not: false,
                value: InterfacePattern(format!("veth{number}")),
            }),
            ..rule(number as u32 + 1, Target::Accept)
        });
        compiled(&filter(rules.collect(), vec![]))
    };
    let set = named(MAX_PATTERNS).expect("as many as fit");
    assert_eq!(pattern_bits(&set.patterns, "veth62", None), 1 << 63 | 1);
    assert_eq!(
        named(MAX_PATTERNS + 1),
        Err(Limits::Patterns {
            place: place(64),
            pattern: "veth63".into(),
        })
    );
}

#[test]
fn loops_are_refused_where_they_close_unless_nothing_leads_there() {
    let jump = |line, chain: &str| rule(line, Target::Jump(chain.into()));
    let goto = |line, chain: &str| rule(line, Target::Goto(chain.into()));
    let chains = || {
        vec![
            user("a", vec![jump(5, "b")]),
            user("b", vec![rule(6, Target::Continue), goto(7, "a")]),
        ]
    };
    assert_eq!(
        compiled(&filter(vec![jump(4, "a")], chains())),
        Err(Limits::Loop {
            place: place(7),
            chain: "a".into(),
        })
    );
    assert!(compiled(&filter(vec![], chains())).is_ok());
    let twice = vec![jump(4, "b"), jump(5, "b")];
    assert!(compiled(&filter(twice, vec![user("b", vec![])])).is_ok());
}

#[test]
fn jumps_nest_as_deep_as_there_are_return_addresses_and_gotos_any_depth() {
    let nest = |depth: u32, target: fn(String) -> Target| {
        let name = |number: u32| format!("c{number:04}");
        let link = |number: u32| user(&name(number), vec![rule(number, target(name(number + 1)))]);
        let mut chains: Vec<Chain> = (1..depth).map(link).collect();
        chains.push(user(&name(depth), vec![]));
        compiled(&filter(vec![rule(100, target(name(1)))], chains))
    };
    assert!(nest(MAX_DEPTH, Target::Jump).is_ok());
    assert!(nest(20_000, Target::Goto).is_ok());
    let error = nest(MAX_DEPTH + 1, Target::Jump).expect_err("too deep");
    assert!(matches!(error, Limits::Depth { .. }), "{error}");
}

#[test]
fn slots_beyond_the_counter_map_are_refused() {
    let policy = filter(vec![rule(1, Target::Accept)], vec![]);
    let last = |slot| {
        let mut slots = Slots::fresh(&policy);
        slots.of[0] = slot;
        compile(&policy, &slots, 1, &[])
    };
    assert!(last(COUNTER_SLOTS_MAX - 1).is_ok());
    assert!(matches!(
        last(COUNTER_SLOTS_MAX),
        Err(Limits::Counters { .. })
    ));
}

#[test]
fn every_limit_says_where_and_what_to_do() {
    let limits = [
        Limits::Patterns {
            place: place(9),
            pattern: "veth63".into(),
        },
        Limits::UnknownChain {
            place: place(9),
            chain: "web".into(),
        },
        Limits::Loop {
            place: place(9),
            chain: "web".into(),
        },
        Limits::Depth {
            place: place(9),
            chain: "web".into(),
        },
        Limits::PortList {
            place: place(9),
            ranges: 16,
        },
    ];
    for limit in limits {
        let text = limit.to_string();
        assert!(text.starts_with("rules.v4:9: "), "{text}");
        assert!(text.contains("; "), "{text}");
    }
}

/// Host and port rules, as block lists and service lists have them.
fn many_rules(count: u32) -> Vec<Rule> {
    let random = |number: u32| number.wrapping_mul(2_654_435_761).rotate_left(13);
    let tcp = |port: u16| {
        Match::Tcp(Tcp {
            ports: Ports {
                source: None,
                destination: Some(Negatable {
                    not: false,
                    value: PortRange {
                        first: port,
                        last: port.saturating_add(port % 3),
                    },
                }),
            },
            ..Tcp::default()
        })
    };
    (0..count)
        .map(|number| {
            let length = [32, 32, 32, 24, 24, 20, 16][number as usize % 7];
            let mask = u32::MAX << (32 - length);
            Rule {
                source: Some(Negatable {
                    not: number % 50 == 49,
                    value: Prefix {
                        address: std::net::Ipv4Addr::from_bits(random(number) & mask).into(),
                        mask: std::net::Ipv4Addr::from_bits(mask).into(),
                    },
                }),
                protocol: Some(Negatable {
                    not: false,
                    value: 6,
                }),
                matches: vec![tcp(random(number) as u16)],
                ..rule(number + 1, Target::Continue)
            }
        })
        .collect()
}

#[test]
fn large_policies_compile_quickly_and_in_little_space() {
    for (count, limit) in [(10_000, 4), (100_000, 30)] {
        let policy = filter(many_rules(count), vec![]);
        let slots = Slots::fresh(&policy);
        let before = Instant::now();
        let set = compile(&policy, &slots, 1, &[]).expect("within the limits");
        let took = before.elapsed();
        // Generous: tests run unoptimised, on busy machines. A release build takes a tenth.
        assert!(took < Duration::from_secs(limit), "{count}: {took:?}");
        assert!(set.cells.len() < 2 * count as usize + 100);
        let input = BaseChain::FilterInput.id(AbiFamily::V4);
        let chain = ChainView(&set.cells[(DIRECTORY + input) as usize]);
        assert_eq!(chain.kind(), chain_kind::TABLES);
        assert!(chain.count() < 40, "{} tables", chain.count());
    }
}
