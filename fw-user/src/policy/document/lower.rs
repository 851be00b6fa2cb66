//! [`Document`] -> model: the iptables rules that each line of policy.toml stands for.

use super::publish::{acceptance, translations};
use super::{Document, Entry, Kind, Masquerading, Section, Verdict, What};
use crate::policy::ids::TableName;
use crate::policy::model::{
    Chain, ChainPolicy, Conntrack, CtStates, Family, IcmpType, InterfacePattern, Masquerade, Match,
    Multiport, Negatable, Origin, Policy, PortRange, Ports, Prefix, Rule, Ruleset, SetMatch, Side,
    Table, Target, Tcp, WhichPort,
};
use crate::policy::names::{ICMPV6, SCTP, TCP};
use crate::policy::packet_match::PacketMatch;
use crate::policy::set::SetDefinition;

/// Fills in the tables of both IP versions.
pub(super) fn lower(document: &Document, policy: &mut Policy) {
    for set in &document.sets {
        let place = policy.sets.len() as u32;
        policy.sets.push(SetDefinition {
            place,
            ..set.clone()
        });
    }
    policy.tracking = document.tracking.clone();
    for family in [Family::Ipv4, Family::Ipv6] {
        let filter = filter(document, family);
        let translates = document.masquerade.is_some() || !document.publish.is_empty();
        let nat = translates.then(|| nat(document, family));
        *policy.ruleset_mut(family) = Some(Ruleset {
            filter: Some(filter),
            nat,
            ..Ruleset::default()
        });
    }
}

/// Whether an IP version has packets that the rule can match.
pub(super) fn applies(entry: &Entry, family: Family) -> bool {
    let fits = |list: &[Prefix]| list.is_empty() || list.iter().any(|prefix| is_of(prefix, family));
    let mut of_sets = entry.set_families.iter();
    entry.family.is_none_or(|only| only == family)
        && fits(&entry.from)
        && fits(&entry.to)
        && of_sets.all(|only| *only == family)
        && (entry.types.is_empty() || entry.types.iter().any(|kind| kind.of(family).is_some()))
}

/// The rules that one line stands for in one IP version.
pub(super) fn rules_of(entry: &Entry, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    if !applies(entry, family) {
        return rules;
    }
    let target = match entry.verdict {
        Verdict::Allow => Target::Accept,
        Verdict::Drop => Target::Drop,
        Verdict::Reject(answer) => Target::Reject(answer.of(family)),
    };
    let ports = port_matches(&entry.source_ports, &entry.ports);
    let kinds = kinds(&entry.types, family);
    for (what, kind) in entry.what.iter().flat_map(|what| {
        let kinds = kinds.iter();
        kinds.map(move |kind| (what, kind))
    }) {
        for in_interface in interfaces(&entry.in_interfaces) {
            for out_interface in interfaces(&entry.out_interfaces) {
                for source in prefixes(&entry.from, family) {
                    for destination in prefixes(&entry.to, family) {
                        for ports in &ports {
                            let (protocol, mut matches) =
                                protocol_and_matches(*what, *ports, family);
                            matches.extend(kind.clone());
                            matches.extend(multiports(*ports));
                            matches.extend(in_set(&entry.from_set, Side::Source));
                            matches.extend(in_set(&entry.to_set, Side::Destination));
                            matches.extend(entry.limit.map(Match::Limit));
                            push(
                                &mut rules,
                                entry,
                                Rule {
                                    source,
                                    destination,
                                    in_interface: in_interface.clone(),
                                    out_interface: out_interface.clone(),
                                    protocol,
                                    matches,
                                    target: target.clone(),
                                    counters: None,
                                    origin: entry.origin.origin(),
                                },
                            );
                        }
                    }
                }
            }
        }
    }
    rules
}

/// Adds a rule, which still lacks its comment, behind the one that writes down what it holds for. (A limit
/// is in both; as both are asked about the same packets, they say the same.)
fn push(rules: &mut Vec<Rule>, entry: &Entry, mut rule: Rule) {
    if let Some(log) = &entry.log {
        let mut before = rule.clone();
        before.matches.extend(log.limit.map(Match::Limit));
        before.target = log.target();
        rules.push(before);
    }
    let comment = entry.comment.clone();
    rule.matches.extend(comment.map(Match::Comment));
    rules.push(rule);
}

/// The ICMP types that a rule names, as far as an IP version has them.
fn kinds(types: &[Kind], family: Family) -> Vec<Option<Match>> {
    if types.is_empty() {
        return vec![None];
    }
    let own = types.iter().filter_map(|kind| kind.of(family));
    own.map(|kind| Some(Match::Icmp(Some(yes(kind))))).collect()
}

fn filter(document: &Document, family: Family) -> Table {
    let sections = [&document.incoming, &document.forward, &document.outgoing];
    let chains = TableName::Filter.builtin_chains().iter().zip(sections);
    let chains = chains.map(|(name, section)| Chain {
        name: (*name).to_owned(),
        policy: Some(ChainPolicy {
            accept: section.accept,
            counters: None,
            origin: section.origin.0,
        }),
        rules: chain_rules(document, section, name, family),
    });
    Table {
        chains: chains.collect(),
    }
}

fn chain_rules(document: &Document, section: &Section, chain: &str, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    let defaults = document.defaults;
    if defaults.loopback {
        let lo = Some(yes(InterfacePattern("lo".into())));
        match chain {
            "INPUT" => rules.push(Rule {
                in_interface: lo,
                ..default_rule("loopback")
            }),
            "OUTPUT" => rules.push(Rule {
                out_interface: lo,
                ..default_rule("loopback")
            }),
            _ => {}
        }
    }
    // Neighbours are not looked up through a router, so FORWARD has no need of it.
    if defaults.neighbour_discovery && family == Family::Ipv6 && chain != "FORWARD" {
        rules.extend(ESSENTIAL_ICMPV6.iter().map(|kind| {
            let mut rule = default_rule("neighbour discovery");
            rule.protocol = Some(yes(ICMPV6));
            let kind = IcmpType {
                kind: Some(*kind),
                codes: (0, u8::MAX),
            };
            rule.matches.insert(0, Match::Icmp(Some(yes(kind))));
            rule
        }));
    }
    if defaults.established {
        let mut rule = default_rule("replies");
        rule.matches.insert(0, conntrack(REPLIES));
        rules.push(rule);
    }
    rules.extend(acceptance(document, family, chain));
    rules.extend(
        section
            .rules
            .iter()
            .flat_map(|entry| rules_of(entry, family)),
    );
    rules
}

/// What IPv6 does not work without (RFC 4890, 4.4.1): multicast listener queries, reports and
/// ends, router and neighbour solicitations and advertisements, version 2 listener reports.
const ESSENTIAL_ICMPV6: &[u8] = &[130, 131, 132, 133, 134, 135, 136, 143];

const REPLIES: CtStates = CtStates(CtStates::RELATED.0 | CtStates::ESTABLISHED.0);

pub(super) fn default_rule(comment: &str) -> Rule {
    Rule {
        source: None,
        destination: None,
        in_interface: None,
        out_interface: None,
        protocol: None,
        matches: vec![Match::Comment(comment.to_owned())],
        target: Target::Accept,
        counters: None,
        origin: Origin { file: 0, line: 1 },
    }
}

fn nat(document: &Document, family: Family) -> Table {
    let chain = |name: &&str| Chain {
        name: (*name).to_owned(),
        policy: Some(ChainPolicy {
            accept: true,
            counters: None,
            origin: None,
        }),
        rules: match (*name, &document.masquerade) {
            ("PREROUTING", _) => translations(document, family),
            ("POSTROUTING", Some(masquerade)) => masquerade_rules(masquerade, family),
            _ => Vec::new(),
        },
    };
    Table {
        chains: TableName::Nat.builtin_chains().iter().map(chain).collect(),
    }
}

fn masquerade_rules(masquerade: &Masquerading, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    let entry = Entry {
        from: masquerade.from.clone(),
        family: masquerade.family,
        ..Entry::default()
    };
    if !applies(&entry, family) {
        return rules;
    }
    for out_interface in interfaces(&masquerade.out_interfaces) {
        for source in prefixes(&masquerade.from, family) {
            rules.push(Rule {
                source,
                out_interface: out_interface.clone(),
                target: Target::Masquerade(Masquerade::default()),
                matches: Vec::new(),
                origin: masquerade.origin.origin(),
                ..default_rule("")
            });
        }
    }
    rules
}

fn in_set(name: &Option<String>, side: Side) -> Option<Match> {
    let name = name.clone()?;
    Some(Match::Set(SetMatch {
        not: false,
        name,
        sides: vec![side],
        return_nomatch: false,
        keep_counters: false,
        keep_subcounters: false,
    }))
}

pub(super) fn yes<T>(value: T) -> Negatable<T> {
    Negatable { not: false, value }
}

fn is_of(prefix: &Prefix, family: Family) -> bool {
    prefix.address.is_ipv4() == (family == Family::Ipv4)
}

fn prefixes(list: &[Prefix], family: Family) -> Vec<Option<Negatable<Prefix>>> {
    if list.is_empty() {
        return vec![None];
    }
    let own = list.iter().filter(|prefix| is_of(prefix, family));
    own.map(|prefix| (!prefix.mask.is_unspecified()).then_some(yes(*prefix)))
        .collect()
}

fn interfaces(list: &[String]) -> Vec<Option<Negatable<InterfacePattern>>> {
    if list.is_empty() {
        return vec![None];
    }
    let pattern = |name: &String| (name != "+").then(|| yes(InterfacePattern(name.clone())));
    list.iter().map(pattern).collect()
}

pub(super) fn conntrack(states: CtStates) -> Match {
    Match::Conntrack(Conntrack {
        states: Some(yes(states)),
        ..Conntrack::default()
    })
}

/// Source ports and destination ports of one rule.
type PortLists<'a> = (&'a [PortRange], &'a [PortRange]);

/// Lists cut so that each fits into one rule.
fn port_matches<'a>(source: &'a [PortRange], destination: &'a [PortRange]) -> Vec<PortLists<'a>> {
    let destinations = pieces(destination);
    let pairs = pieces(source).into_iter().flat_map(|source| {
        destinations
            .iter()
            .map(move |destination| (source, *destination))
    });
    pairs.collect()
}

/// A list in pieces of at most fifteen places, as multiport takes them, a range counting for two.
fn pieces(list: &[PortRange]) -> Vec<&[PortRange]> {
    let mut pieces = Vec::new();
    let (mut start, mut places) = (0, 0);
    for (index, range) in list.iter().enumerate() {
        let needed = if range.first == range.last { 1 } else { 2 };
        if places + needed > 15 {
            pieces.push(&list[start..index]);
            (start, places) = (index, 0);
        }
        places += needed;
    }
    pieces.push(&list[start..]);
    pieces
}

fn protocol_and_matches(
    what: What,
    ports: PortLists<'_>,
    family: Family,
) -> (Option<Negatable<u8>>, Vec<Match>) {
    match what {
        What::Any => (None, Vec::new()),
        What::Icmp => (Some(yes(family.icmp())), Vec::new()),
        What::Established => (None, vec![conntrack(REPLIES)]),
        What::Invalid => (None, vec![conntrack(CtStates::INVALID)]),
        What::Protocol(number) => {
            let single = |list: &[PortRange]| match list {
                // The whole range excludes nothing.
                [only] if (only.first, only.last) != (0, u16::MAX) => Some(yes(*only)),
                _ => None,
            };
            let single = Ports {
                source: single(ports.0),
                destination: single(ports.1),
            };
            let matches = match (number, single) {
                (
                    _,
                    Ports {
                        source: None,
                        destination: None,
                    },
                ) => Vec::new(),
                (TCP, ports) => vec![Match::Tcp(Tcp {
                    ports,
                    ..Tcp::default()
                })],
                (SCTP, ports) => vec![Match::Packet(PacketMatch::Sctp(ports))],
                (_, ports) => vec![Match::Udp(ports)],
            };
            (Some(yes(number)), matches)
        }
    }
}

/// Lists of several ports.
fn multiports(ports: PortLists<'_>) -> Vec<Match> {
    let list = |list: &[PortRange], which| {
        let ports = yes(list.to_vec());
        (list.len() > 1).then_some(Match::Multiport(Multiport { which, ports }))
    };
    let source = list(ports.0, WhichPort::Source);
    source
        .into_iter()
        .chain(list(ports.1, WhichPort::Destination))
        .collect()
}
