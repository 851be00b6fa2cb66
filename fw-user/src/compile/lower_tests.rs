use std::collections::{BTreeMap, BTreeSet};

use fw_common::abi::blob::{Condition, PredicateFields, RuleFields, pack_range, target};

use super::super::patterns::Patterns;
use super::*;
use crate::policy::model::{Chain, CtStates, Masquerade, Origin, Policy, Ruleset, Table};

/// A rule without conditions, to be filled in by struct update.
fn rule() -> Rule {
    Rule {
        source: None,
        destination: None,
        in_interface: None,
        out_interface: None,
        protocol: None,
        matches: Vec::new(),
        target: Target::Accept,
        counters: None,
        origin: Origin { file: 0, line: 7 },
    }
}

fn yes<T>(value: T) -> Option<Negatable<T>> {
    Some(Negatable { not: false, value })
}

fn no<T>(value: T) -> Option<Negatable<T>> {
    Some(Negatable { not: true, value })
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

fn lowered_in(family: Family, rule: Rule) -> Result<Lowered, Limits> {
    let policy = Policy {
        ipv4: Some(Ruleset {
            filter: Some(Table {
                chains: vec![Chain {
                    name: "INPUT".into(),
                    policy: None,
                    rules: vec![rule.clone()],
                }],
            }),
            nat: None,
            ..Ruleset::default()
        }),
        files: vec!["rules.v4".into()],
        ..Policy::default()
    };
    let patterns = Patterns::of(&policy)?;
    lower(
        &rule,
        &Scope {
            zones: &Zones::default(),
            policy: &policy,
            family,
            patterns: &patterns,
            changed: &BTreeSet::new(),
            chains: &BTreeMap::from([("web", 14)]),
        },
    )
}

fn lowered(rule: Rule) -> Lowered {
    lowered_in(Family::Ipv4, rule).expect("within the limits")
}

fn accept() -> RuleFields {
    RuleFields {
        target: target::ACCEPT,
        ..RuleFields::default()
    }
}

fn not(condition: Condition) -> PredicateFields {
    PredicateFields {
        not: true,
        condition,
    }
}

#[test]
fn plain_conditions_become_fields() {
    let got = lowered(Rule {
        source: yes(Prefix {
            address: [10, 1, 2, 3].into(),
            mask: [255, 0, 255, 0].into(),
        }),
        in_interface: yes(InterfacePattern("eth+".into())),
        out_interface: yes(InterfacePattern("eth0".into())),
        protocol: yes(6),
        matches: vec![
            Match::Comment("ignored".into()),
            Match::Tcp(Tcp {
                ports: Ports {
                    source: yes(range(1024, 65535)),
                    destination: yes(range(22, 22)),
                },
                flags: yes(TcpFlags { mask: 0x17, set: 2 }),
                option: None,
            }),
        ],
        ..rule()
    });
    let expected = RuleFields {
        source: [0x0a00_0200, 0, 0, 0],
        source_mask: [0xff00_ff00, 0, 0, 0],
        protocol: Some(6),
        source_ports: (1024, 65535),
        destination_ports: (22, 22),
        tcp_mask: 0x17,
        tcp_set: 2,
        in_pattern: 1,
        out_pattern: 2,
        ..accept()
    };
    assert_eq!(got.fields, expected);
    assert_eq!(got.predicates, []);
}

#[test]
fn ipv6_addresses_are_four_words() {
    let got = lowered_in(
        Family::Ipv6,
        Rule {
            destination: yes(Prefix {
                address: "2001:db8::1".parse().expect("an address"),
                mask: "ffff:ffff:ffff:ffff::".parse().expect("a mask"),
            }),
            ..rule()
        },
    )
    .expect("within the limits");
    assert_eq!(got.fields.destination, [0x2001_0db8, 0, 0, 0]);
    assert_eq!(got.fields.destination_mask, [u32::MAX, u32::MAX, 0, 0]);
}

#[test]
fn negations_become_predicates() {
    let got = lowered(Rule {
        destination: no(Prefix {
            address: [192, 0, 2, 0].into(),
            mask: [255, 255, 255, 0].into(),
        }),
        in_interface: no(InterfacePattern("lo".into())),
        protocol: no(47),
        ..rule()
    });
    assert_eq!(got.fields, accept());
    let expected = [
        not(Condition::Destination(
            [0xc000_0200, 0, 0, 0],
            [0xffff_ff00, 0, 0, 0],
        )),
        not(Condition::InInterface(1)),
        not(Condition::Protocol(47)),
    ];
    assert_eq!(got.predicates, expected);
}

#[test]
fn plus_alone_is_no_condition_and_its_negation_never_holds() {
    let any = InterfacePattern("+".into());
    let got = lowered(Rule {
        in_interface: yes(any.clone()),
        ..rule()
    });
    assert_eq!(got.fields, accept());
    let got = lowered(Rule {
        in_interface: no(any),
        ..rule()
    });
    assert_eq!(got.fields.ct_mask, 0);
}

#[test]
fn port_conditions_are_intersected_and_lists_of_one_range_are_ranges() {
    let multiport = |which, ports: &[PortRange]| {
        Match::Multiport(Multiport {
            which,
            ports: Negatable {
                not: false,
                value: ports.to_vec(),
            },
        })
    };
    let got = lowered(Rule {
        protocol: yes(17),
        matches: vec![
            Match::Udp(Ports {
                source: None,
                destination: yes(range(50, 100)),
            }),
            multiport(
                WhichPort::Destination,
                &[range(82, 200), range(80, 80), range(81, 81)],
            ),
            multiport(WhichPort::Either, &[range(9, 9)]),
        ],
        ..rule()
    });
    assert_eq!(got.fields.destination_ports, (80, 100));
    let mut ranges = [(1, 0); 15];
    ranges[0] = (9, 9);
    let expected = PredicateFields {
        not: false,
        condition: Condition::Ports { which: 3, ranges },
    };
    assert_eq!(got.predicates, [expected]);

    let got = lowered(Rule {
        protocol: yes(17),
        matches: vec![
            multiport(WhichPort::Source, &[range(1, 9)]),
            multiport(WhichPort::Source, &[range(10, 10)]),
        ],
        ..rule()
    });
    assert_eq!(got.fields.ct_mask, 0, "no port is in both ranges");
}

#[test]
fn icmp_types_are_where_ports_are() {
    let icmp = |kind, not| {
        Match::Icmp(Some(Negatable {
            not,
            value: IcmpType {
                kind,
                codes: (0, 255),
            },
        }))
    };
    let with = |family, matches| {
        lowered_in(family, Rule { matches, ..rule() }).expect("within the limits")
    };
    let got = with(Family::Ipv4, vec![icmp(Some(8), false)]);
    assert_eq!(got.fields.protocol, Some(1));
    assert_eq!(got.fields.source_ports, (8, 8));
    assert_eq!(got.fields.destination_ports, (0, 255));
    let got = with(Family::Ipv4, vec![icmp(None, false)]);
    assert_eq!(got.fields.source_ports, (0, u16::MAX));
    let got = with(Family::Ipv4, vec![icmp(Some(255), true)]);
    assert_eq!(got.fields.ct_mask, 0, "`! any`");
    let got = with(Family::Ipv6, vec![icmp(Some(255), false)]);
    assert_eq!(got.fields.protocol, Some(58));
    assert_eq!(got.fields.source_ports, (255, 255));
    let got = with(Family::Ipv6, vec![icmp(Some(1), true)]);
    let expected = not(Condition::Icmp {
        kind: 1,
        codes: (0, 255),
    });
    assert_eq!(got.predicates, [expected]);
}

#[test]
fn states_are_complemented_only_where_one_of_five_holds() {
    let state = |not, value| Match::State(Negatable { not, value });
    let snat_or_new = CtStates(ct::SNAT | ct::NEW);
    let got = lowered(Rule {
        matches: vec![state(true, CtStates(ct::NEW | ct::INVALID))],
        ..rule()
    });
    assert_eq!(
        got.fields.ct_mask,
        ct::ESTABLISHED | ct::RELATED | ct::UNTRACKED
    );
    let got = lowered(Rule {
        matches: vec![state(true, snat_or_new)],
        ..rule()
    });
    assert_eq!(got.fields.ct_mask, 0xff);
    assert_eq!(got.predicates, [not(Condition::CtState(snat_or_new.0))]);
    let got = lowered(Rule {
        matches: vec![
            state(false, CtStates(ct::NEW | ct::ESTABLISHED)),
            state(false, CtStates(ct::NEW | ct::RELATED)),
            state(false, snat_or_new),
        ],
        ..rule()
    });
    assert_eq!(got.fields.ct_mask, ct::NEW);
    let expected = PredicateFields {
        not: false,
        condition: Condition::CtState(snat_or_new.0),
    };
    assert_eq!(got.predicates, [expected]);
}

#[test]
fn a_direction_without_a_flow_holds_only_beside_a_state() {
    let conntrack = |states| {
        Match::Conntrack(Conntrack {
            states,
            direction: Some(CtDirection::Reply),
            connection: None,
        })
    };
    for (states, without_flow) in [(None, false), (yes(CtStates::INVALID), true)] {
        let got = lowered(Rule {
            matches: vec![conntrack(states)],
            ..rule()
        });
        let condition = Condition::CtDirection {
            direction: 1,
            without_flow,
        };
        assert_eq!(
            got.predicates,
            [PredicateFields {
                not: false,
                condition
            }]
        );
    }
}

#[test]
fn flags_that_no_packet_has_never_match_whatever_flags_follow() {
    let flags = |not, mask, set| {
        Match::Tcp(Tcp {
            flags: Some(Negatable {
                not,
                value: TcpFlags { mask, set },
            }),
            ..Tcp::default()
        })
    };
    let of = |matches| {
        lowered(Rule {
            protocol: yes(6),
            matches,
            ..rule()
        })
        .fields
    };
    let never = of(vec![flags(false, 0, 4), flags(false, 3, 2)]);
    assert_eq!((never.ct_mask, never.tcp_mask, never.tcp_set), (0, 3, 2));
    assert_eq!(of(vec![flags(true, 0, 0)]).ct_mask, 0);
    let always = of(vec![flags(true, 1, 4), flags(false, 0, 0)]);
    assert_eq!((always.ct_mask, always.tcp_mask), (accept().ct_mask, 0));
}

#[test]
fn contradicting_protocols_never_match() {
    let got = lowered(Rule {
        protocol: yes(17),
        matches: vec![Match::Tcp(Tcp::default())],
        ..rule()
    });
    assert_eq!(got.fields.ct_mask, 0);
}

#[test]
fn targets_carry_their_argument() {
    let with = |target| {
        let fields = lowered(Rule { target, ..rule() }).fields;
        (fields.target, fields.argument)
    };
    assert_eq!(with(Target::Jump("web".into())), (target::JUMP, 14));
    assert_eq!(with(Target::Goto("web".into())), (target::GOTO, 14));
    assert_eq!(
        with(Target::Masquerade(Masquerade::default())),
        (target::MASQUERADE, 0)
    );
    let random = Masquerade {
        ports: Some(range(1024, 2048)),
        random: false,
        random_fully: true,
    };
    assert_eq!(
        with(Target::Masquerade(random)),
        (target::MASQUERADE_RANDOM, pack_range((1024, 2048)))
    );
}

#[test]
fn what_does_not_fit_names_the_line() {
    let error = lowered_in(
        Family::Ipv4,
        Rule {
            target: Target::Jump("nowhere".into()),
            ..rule()
        },
    )
    .expect_err("no such chain");
    assert!(error.to_string().starts_with("rules.v4:7: "), "{error}");
}
