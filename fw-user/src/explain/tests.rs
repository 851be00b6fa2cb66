use fw_common::abi::ct;

use super::*;
use crate::policy::model::{
    Chain, ChainPolicy, CtStates, InterfacePattern, Masquerade, Match, Negatable, Origin, Policy,
    PortRange, Ports, Rule, Ruleset, Table, Target, Tcp, Translation,
};

fn yes<T>(value: T) -> Option<Negatable<T>> {
    Some(Negatable { not: false, value })
}

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

fn chain(name: &str, accept: bool, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.into(),
        policy: Some(ChainPolicy {
            accept,
            counters: None,
            origin: None,
        }),
        rules,
    }
}

/// A server with SSH open, that masquerades for docker0.
fn policy() -> Policy {
    let established = |line| Rule {
        matches: vec![Match::State(Negatable {
            not: false,
            value: CtStates(ct::ESTABLISHED | ct::RELATED),
        })],
        ..rule(line, Target::Accept)
    };
    let ssh = Rule {
        protocol: yes(6),
        matches: vec![Match::Tcp(Tcp {
            ports: Ports {
                source: None,
                destination: yes(PortRange {
                    first: 22,
                    last: 22,
                }),
            },
            ..Tcp::default()
        })],
        ..rule(4, Target::Jump("LOG-SSH".into()))
    };
    let from_docker = Rule {
        in_interface: yes(InterfacePattern("docker0".into())),
        out_interface: yes(InterfacePattern("eth0".into())),
        ..rule(6, Target::Accept)
    };
    let masquerade = Rule {
        out_interface: yes(InterfacePattern("eth0".into())),
        ..rule(9, Target::Masquerade(Masquerade::default()))
    };
    let user = Chain {
        policy: None,
        ..chain("LOG-SSH", true, vec![rule(5, Target::Accept)])
    };
    let filter = vec![
        chain("INPUT", false, vec![established(3), ssh]),
        chain("FORWARD", false, vec![established(7), from_docker]),
        chain("OUTPUT", true, vec![]),
        user,
    ];
    let nat = ["PREROUTING", "INPUT", "OUTPUT"].map(|name| chain(name, true, vec![]));
    let mut nat = nat.to_vec();
    nat.push(chain("POSTROUTING", true, vec![masquerade]));
    Policy {
        ipv4: Some(Ruleset {
            filter: Some(Table { chains: filter }),
            nat: Some(Table { chains: nat }),
            ..Ruleset::default()
        }),
        files: vec!["rules.v4".into()],
        ..Policy::default()
    }
}

/// TCP to port 22 of the host.
fn question() -> Question {
    Question {
        in_interface: Some("eth0".into()),
        out_interface: None,
        source: [203, 0, 113, 7].into(),
        destination: [198, 51, 100, 10].into(),
        protocol: 6,
        source_port: None,
        destination_port: Some(22),
        icmp: None,
        tcp_flags: None,
        state: None,
    }
}

fn forwarded() -> Question {
    Question {
        in_interface: Some("docker0".into()),
        out_interface: Some("eth0".into()),
        source: [172, 17, 0, 2].into(),
        destination: [203, 0, 113, 7].into(),
        ..question()
    }
}

fn answer(question: &Question) -> Result<Explanation, ExplainError> {
    let machine = Machine::offline(policy(), question).expect("within the limits");
    explain(&machine, question)
}

#[track_caller]
fn assert_text(question: &Question, expected: &str) {
    let text = answer(question).expect("an answer").to_string();
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn an_accepted_packet_names_the_rule_in_the_user_chain() {
    assert_text(
        &question(),
        "comes in by eth0
connection tracking: NEW
nat PREROUTING's policy: ACCEPT
198.51.100.10 is this host's: INPUT
rules.v4:4: filter -A INPUT -p tcp -m tcp --dport 22 -j LOG-SSH: goes through chain LOG-SSH
rules.v4:5: filter -A LOG-SSH -j ACCEPT: ACCEPT
nat INPUT's policy: ACCEPT
the connection is remembered until it is answered
ACCEPT by rules.v4:5: filter -A LOG-SSH -j ACCEPT",
    );
}

#[test]
fn a_policy_can_decide() {
    assert_text(
        &Question {
            destination_port: Some(81),
            ..question()
        },
        "comes in by eth0
connection tracking: NEW
nat PREROUTING's policy: ACCEPT
198.51.100.10 is this host's: INPUT
filter INPUT's policy: DROP
DROP by filter INPUT's policy",
    );
}

#[test]
fn a_forwarded_packet_goes_through_both_hooks_and_is_masqueraded() {
    assert_text(
        &forwarded(),
        "comes in by docker0
connection tracking: NEW
nat PREROUTING's policy: ACCEPT
203.0.113.7 is another host's: FORWARD
is forwarded, and leaves by eth0
rules.v4:6: filter -A FORWARD -i docker0 -o eth0 -j ACCEPT: ACCEPT
rules.v4:9: nat -A POSTROUTING -o eth0 -j MASQUERADE: MASQUERADE
the connection is remembered
source 172.17.0.2, port 40000 becomes the interface's address, port 40000
ACCEPT by rules.v4:6: filter -A FORWARD -i docker0 -o eth0 -j ACCEPT",
    );
}

#[test]
fn an_established_connection_is_assumed_with_its_translation() {
    assert_text(
        &Question {
            state: Some(State::Established),
            ..forwarded()
        },
        "assumed: 172.17.0.2 opened the connection, and was answered
comes in by docker0
connection tracking: ESTABLISHED, in the direction of the first packet, source translated
203.0.113.7 is another host's: FORWARD
is forwarded, and leaves by eth0
rules.v4:7: filter -A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT: ACCEPT
source 172.17.0.2, port 40000 becomes the interface's address, port 40000
ACCEPT by rules.v4:7: filter -A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT",
    );
}

#[test]
fn every_state_can_be_asked_for_where_it_can_occur() {
    let related = Question {
        protocol: 1,
        icmp: Some((3, 3)),
        state: Some(State::Related),
        ..question()
    };
    let decider = |question: &Question| {
        let explanation = answer(question).expect("an answer");
        let decider = explanation.decided_by.expect("a rule");
        (explanation.verdict, decider.place)
    };
    assert_eq!(
        decider(&related),
        (Verdict::Accept, Some("rules.v4:3".into()))
    );
    let invalid = Question {
        state: Some(State::Invalid),
        ..question()
    };
    assert_eq!(
        decider(&invalid),
        (Verdict::Accept, Some("rules.v4:5".into()))
    );
    let answer_to_ping = Question {
        protocol: 1,
        icmp: Some((0, 0)),
        state: Some(State::Established),
        ..question()
    };
    assert_eq!(
        decider(&answer_to_ping),
        (Verdict::Accept, Some("rules.v4:3".into()))
    );
    let untracked = Question {
        state: Some(State::Untracked),
        ..question()
    };
    assert_eq!(
        answer(&untracked),
        Err(ExplainError::State {
            asked: State::Untracked,
            why: "connection tracking calls it NEW".into(),
        })
    );
}

#[test]
fn what_this_host_sends_meets_output() {
    let explanation = answer(&Question {
        in_interface: None,
        out_interface: Some("lo".into()),
        ..question()
    })
    .expect("an answer");
    let interfaces: Vec<_> = explanation
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Arrives { .. } | Step::Leaves { .. }))
        .map(ToString::to_string)
        .collect();
    assert_eq!(interfaces, ["this host sends it by lo", "comes in by lo"]);
    assert_eq!(explanation.verdict, Verdict::Accept);
}

#[test]
fn a_family_without_tables_is_not_filtered() {
    let explanation = answer(&Question {
        source: "2001:db8::7".parse().expect("an address"),
        destination: "2001:db8::10".parse().expect("an address"),
        ..question()
    })
    .expect("an answer");
    assert_eq!(explanation.verdict, Verdict::Accept);
    assert_eq!(explanation.decided_by, None);
}

#[test]
fn unanswerable_questions_say_what_is_missing() {
    let mixed = Question {
        source: "2001:db8::7".parse().expect("an address"),
        ..question()
    };
    assert!(matches!(answer(&mixed), Err(ExplainError::Families(..))));
    let nowhere = Question {
        in_interface: None,
        ..question()
    };
    assert_eq!(answer(&nowhere), Err(ExplainError::NoInterface));
    // The policy's own host, asked about a packet that it would forward.
    let machine = Machine::offline(policy(), &forwarded()).expect("within the limits");
    let no_way_out = Question {
        out_interface: None,
        ..forwarded()
    };
    assert_eq!(
        explain(&machine, &no_way_out),
        Err(ExplainError::WayOut([203, 0, 113, 7].into()))
    );
}

#[test]
fn json_names_steps_and_verdict() {
    let explanation = answer(&question()).expect("an answer");
    let json = serde_json::to_value(&explanation).expect("plain data");
    assert_eq!(json["verdict"], "accept");
    assert_eq!(json["decided_by"]["place"], "rules.v4:5");
    assert_eq!(json["steps"][1]["step"], "tracked");
    assert_eq!(json["steps"][1]["state"], "NEW");
    assert_eq!(json["steps"][4]["chain"], "INPUT");
}

/// The same host with a port published.
fn publishing() -> Policy {
    let mut policy = policy();
    let ruleset = policy.ipv4.as_mut().expect("an IPv4 half");
    let nat = ruleset.nat.as_mut().expect("a nat table");
    let ports = PortRange {
        first: 80,
        last: 80,
    };
    let inner = Translation {
        addresses: Some(([172, 17, 0, 2].into(), [172, 17, 0, 2].into())),
        ports: Some(ports),
        ..Translation::default()
    };
    nat.chains[0].rules = vec![Rule {
        protocol: yes(6),
        ..rule(20, Target::Dnat(inner))
    }];
    policy
}

#[test]
fn a_published_port_says_where_its_packets_go() {
    let question = Question {
        out_interface: Some("docker0".into()),
        ..question()
    };
    let machine = Machine::offline(publishing(), &question).expect("within the limits");
    let text = explain(&machine, &question).expect("an answer").to_string();
    let expected = "comes in by eth0\n\
        connection tracking: NEW\n\
        rules.v4:20: nat -A PREROUTING -p tcp -j DNAT --to-destination 172.17.0.2:80: DNAT to 172.17.0.2:80\n\
        destination 198.51.100.10, port 22 becomes 172.17.0.2, port 80\n\
        172.17.0.2 is another host's: FORWARD\n\
        is forwarded, and leaves by docker0\n\
        filter FORWARD's policy: DROP\n\
        DROP by filter FORWARD's policy";
    assert_eq!(text, expected, "\n{text}");
}
