//! Model -> [`Document`]: rule files in policy.toml's words, where it has words for them.

use std::fmt;

use super::lower::rules_of;
use super::{
    Answer, Defaults, Document, Entry, Kind, Logging, Masquerading, Place, Section, Verdict, What,
    write,
};
use crate::policy::ids::TableName;
use crate::policy::model::{
    Chain, Conntrack, CtStates, Family, InterfacePattern, Limit, Match, Multiport, Negatable,
    Policy, PortRange, Rule, Target, WhichPort,
};
use crate::policy::packet_match::PacketMatch;
use crate::policy::print::print_append;

/// Why a policy cannot be written as policy.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotExpressible {
    /// The rule or chain at fault.
    pub what: String,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for NotExpressible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "policy.toml cannot say this policy: {}: {}",
            self.what, self.why
        )
    }
}

impl std::error::Error for NotExpressible {}

/// The policy as policy.toml's text. What is read back from it has the same rules.
pub fn from_policy(policy: &Policy) -> Result<String, NotExpressible> {
    let mut document = Document {
        // Rule files say everything themselves.
        defaults: Defaults {
            loopback: false,
            established: false,
            neighbour_discovery: false,
        },
        ..Document::default()
    };
    document.incoming = section(policy, "INPUT")?;
    document.forward = section(policy, "FORWARD")?;
    document.outgoing = section(policy, "OUTPUT")?;
    document.masquerade = masquerade(policy)?;
    document.tracking = policy.tracking.clone();
    for (family, ruleset) in policy.rulesets() {
        let more = [
            (TableName::Mangle, &ruleset.mangle),
            (TableName::Raw, &ruleset.raw),
            (TableName::Security, &ruleset.security),
        ];
        let used = |table: &crate::policy::model::Table| {
            let counts = |chain: &Chain| {
                chain.rules.is_empty() && chain.policy.as_ref().is_some_and(|policy| policy.accept)
            };
            !table.chains.iter().all(counts)
        };
        let found = more
            .iter()
            .find(|(_, table)| table.as_ref().is_some_and(used));
        if let Some((name, _)) = found {
            let what = format!("{}'s table {name}", family.title());
            return Err(NotExpressible {
                what,
                why: "it has no such table",
            });
        }
        let own = ruleset.tables().flat_map(|(_, table)| &table.chains);
        if let Some(chain) = own.into_iter().find(|chain| chain.policy.is_none()) {
            let what = format!("{}'s chain {}", family.title(), chain.name);
            return Err(NotExpressible {
                what,
                why: "it has no chains of one's own",
            });
        }
    }
    Ok(write::write(&document))
}

fn section(policy: &Policy, name: &str) -> Result<Section, NotExpressible> {
    let mut accept = None;
    let mut of_family: Vec<(Family, Vec<Entry>)> = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let table = policy
            .ruleset(family)
            .and_then(|ruleset| ruleset.table(TableName::Filter));
        let Some(chain) = table.and_then(|table| table.chain(name)) else {
            let what = format!("{}'s filter table", family.title());
            return Err(NotExpressible {
                what,
                why: "it is not there, and policy.toml always speaks for both IP versions",
            });
        };
        let own = chain.policy.as_ref().is_some_and(|policy| policy.accept);
        if *accept.get_or_insert(own) != own {
            let what = format!("the policy of {name}");
            return Err(NotExpressible {
                what,
                why: "it differs between IPv4 and IPv6",
            });
        }
        of_family.push((family, entries(chain, family)?));
    }
    Ok(Section {
        accept: accept.unwrap_or_default(),
        rules: merge(of_family),
        origin: Place::default(),
    })
}

/// The lines of a chain. A rule that logs goes with the one behind it.
fn entries(chain: &Chain, family: Family) -> Result<Vec<Entry>, NotExpressible> {
    let mut entries = Vec::new();
    let mut rest = chain.rules.as_slice();
    while let [first, behind @ ..] = rest {
        let take = if matches!(first.target, Target::Log(_)) && !behind.is_empty() {
            2
        } else {
            1
        };
        let (taken, left) = rest.split_at(take);
        entries.push(entry(chain, taken, family)?);
        rest = left;
    }
    Ok(entries)
}

/// One list if both IP versions have the same rules, else IPv4's rules and then IPv6's.
fn merge(of_family: Vec<(Family, Vec<Entry>)>) -> Vec<Entry> {
    // A type's number means another thing in either.
    let numbers = |entry: &Entry| entry.types.iter().any(|kind| kind.is_number());
    if let [(_, one), (_, other)] = of_family.as_slice()
        && one == other
        && !one.iter().any(numbers)
    {
        return one.clone();
    }
    let marked = of_family.into_iter().flat_map(|(family, entries)| {
        entries.into_iter().map(move |entry| {
            // An address tells the IP version already.
            let told = !entry.from.is_empty() || !entry.to.is_empty();
            Entry {
                family: (!told).then_some(family),
                ..entry
            }
        })
    });
    marked.collect()
}

/// The line that stands for a rule, or for one that logs and the one behind it.
fn entry(chain: &Chain, rules: &[Rule], family: Family) -> Result<Entry, NotExpressible> {
    let refuse = || NotExpressible {
        what: format!("`{}`", print_append(chain, &rules[0], family)),
        why: "it has no words for this rule",
    };
    let rule = rules.last().ok_or_else(refuse)?;
    let mut entry = try_entry(rule, family).ok_or_else(refuse)?;
    if let [before, _] = rules {
        entry.log = Some(logging(before, &entry).ok_or_else(refuse)?);
    }
    // What was understood must mean the rules again, and nothing more.
    let again = rules_of(&entry, family);
    let same = again.iter().map(plain).eq(rules.iter().map(plain));
    if same { Ok(entry) } else { Err(refuse()) }
}

/// How a rule logs that stands before the one that became this line, whose limit it has, too.
fn logging(rule: &Rule, entry: &Entry) -> Option<Logging> {
    let Target::Log(log) = &rule.target else {
        return None;
    };
    let mut limits = rule.matches.iter().filter_map(|each| match each {
        Match::Limit(limit) => Some(*limit),
        _ => None,
    });
    let own = limits.nth(usize::from(entry.limit.is_some()));
    Logging::of(log, writable(own)?)
}

/// A limit, if there is one, that policy.toml has a rate for.
fn writable(limit: Option<Limit>) -> Option<Option<Limit>> {
    match limit {
        Some(own) => super::limit::limit(own).map(|_| Some(own)),
        None => Some(None),
    }
}

/// A rule without what policy.toml does not keep: place, counters, and which of two names a
/// match goes by.
fn plain(rule: &Rule) -> Rule {
    let matches = rule.matches.iter().filter_map(|each| match each {
        Match::State(states) => Some(Match::Conntrack(Conntrack {
            states: Some(*states),
            ..Conntrack::default()
        })),
        Match::Tcp(tcp) if *tcp == Default::default() => None,
        Match::Udp(ports) | Match::Packet(PacketMatch::Sctp(ports))
            if *ports == Default::default() =>
        {
            None
        }
        other => Some(other.clone()),
    });
    let mut matches: Vec<_> = matches.collect();
    matches.sort_by_key(|each| matches!(each, Match::Comment(_)));
    let origin = crate::policy::model::Origin { file: 0, line: 0 };
    Rule {
        matches,
        counters: None,
        origin,
        ..rule.clone()
    }
}

fn try_entry(rule: &Rule, family: Family) -> Option<Entry> {
    let mut entry = Entry {
        verdict: match rule.target {
            Target::Accept => Verdict::Allow,
            Target::Drop => Verdict::Drop,
            Target::Reject(reject) => {
                let mut answers = Answer::ALL.into_iter();
                Verdict::Reject(answers.find(|answer| answer.of(family) == reject)?)
            }
            _ => return None,
        },
        from: rule.source.iter().map(|source| source.value).collect(),
        to: rule
            .destination
            .iter()
            .map(|destination| destination.value)
            .collect(),
        in_interfaces: names(rule.in_interface.as_ref()),
        out_interfaces: names(rule.out_interface.as_ref()),
        ..Entry::default()
    };
    let mut what = match rule.protocol {
        None => What::Any,
        Some(protocol) if protocol.value == family.icmp() => What::Icmp,
        Some(protocol) => What::Protocol(protocol.value),
    };
    for each in &rule.matches {
        match each {
            Match::Tcp(tcp) if tcp.option.is_some() => return None,
            Match::Tcp(tcp) => take_ports(&mut entry, tcp.ports.source, tcp.ports.destination),
            Match::Udp(ports) | Match::Packet(PacketMatch::Sctp(ports)) => {
                take_ports(&mut entry, ports.source, ports.destination);
            }
            Match::Multiport(Multiport { which, ports }) => match which {
                WhichPort::Source => entry.source_ports.clone_from(&ports.value),
                WhichPort::Destination => entry.ports.clone_from(&ports.value),
                WhichPort::Either => return None,
            },
            Match::State(Negatable { value, .. })
            | Match::Conntrack(Conntrack {
                states: Some(Negatable { value, .. }),
                connection: None,
                ..
            }) => {
                const REPLIES: u8 = CtStates::RELATED.0 | CtStates::ESTABLISHED.0;
                what = match (*value, what) {
                    (CtStates(REPLIES), What::Any) => What::Established,
                    (CtStates::INVALID, What::Any) => What::Invalid,
                    _ => return None,
                };
            }
            Match::Icmp(Some(kind)) if !kind.not => {
                entry.types.push(Kind::from(kind.value, family)?);
            }
            Match::Limit(limit) if entry.limit.is_none() => entry.limit = writable(Some(*limit))?,
            Match::Conntrack(_)
            | Match::Icmp(_)
            | Match::Limit(_)
            | Match::Set(_)
            | Match::Packet(_)
            | Match::List(_) => {
                return None;
            }
            Match::Comment(text) => entry.comment = Some(text.clone()),
        }
    }
    entry.what = vec![what];
    Some(entry)
}

fn take_ports(
    entry: &mut Entry,
    source: Option<Negatable<PortRange>>,
    destination: Option<Negatable<PortRange>>,
) {
    entry.source_ports.extend(source.map(|range| range.value));
    entry.ports.extend(destination.map(|range| range.value));
}

fn names(interface: Option<&Negatable<InterfacePattern>>) -> Vec<String> {
    interface
        .iter()
        .map(|interface| interface.value.0.clone())
        .collect()
}

/// `[masquerade]`, if all that the nat tables do is to masquerade on interfaces.
fn masquerade(policy: &Policy) -> Result<Option<Masquerading>, NotExpressible> {
    let mut found: Vec<(Family, Vec<String>)> = Vec::new();
    for (family, ruleset) in policy.rulesets() {
        let chains = ruleset.nat.iter().flat_map(|table| &table.chains);
        let mut out_interfaces = Vec::new();
        for (chain, rule) in
            chains.flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)))
        {
            let name = rule
                .out_interface
                .as_ref()
                .map(|interface| interface.value.0.clone());
            let mut simple = rule.clone();
            simple.out_interface = None;
            simple.target = Target::Continue;
            let masquerades = matches!(rule.target, Target::Masquerade(masquerade) if masquerade == Default::default());
            let negated = rule
                .out_interface
                .as_ref()
                .is_some_and(|interface| interface.not);
            match name {
                Some(name)
                    if masquerades
                        && !negated
                        && crate::policy::save::is_unconditional(&simple) =>
                {
                    out_interfaces.push(name);
                }
                _ => {
                    let what = format!("`{}`", print_append(chain, rule, family));
                    return Err(NotExpressible {
                        what,
                        why: "it masquerades whole interfaces only",
                    });
                }
            }
        }
        if !out_interfaces.is_empty() {
            found.push((family, out_interfaces));
        }
    }
    let masquerading = |out_interfaces: &Vec<String>, family| Masquerading {
        out_interfaces: out_interfaces.clone(),
        family,
        ..Masquerading::default()
    };
    match found.as_slice() {
        [] => Ok(None),
        [(family, only)] => Ok(Some(masquerading(only, Some(*family)))),
        [(_, one), (_, other), ..] if one == other => Ok(Some(masquerading(one, None))),
        _ => {
            let what = "masquerading".to_owned();
            Err(NotExpressible {
                what,
                why: "its interfaces differ between IPv4 and IPv6",
            })
        }
    }
}
