//! A policy that would cut the SSH connection it is loaded from.

use std::net::IpAddr;

use super::{Findings, filter_tables};
use crate::policy::model::{
    Chain, CtStates, Family, Match, Negatable, Origin, Ports, Prefix, Rule, Table, Target,
    WhichPort,
};
use crate::policy::names::TCP;
use crate::policy::save::called;

/// The code of the warning that the policy cuts the SSH connection in use.
const CUTS_SSH: &str = "cuts-ssh";

/// An SSH connection, as the server's side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshSession {
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The address that the client connected to.
    pub server: IpAddr,
    /// The port that the client connected to.
    pub server_port: u16,
}

impl SshSession {
    /// Reads the value of SSH_CONNECTION: `CLIENT PORT SERVER PORT` (ssh(1)).
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let address = |word: Option<&str>| {
            // A link-local address comes with its interface.
            let word = word?.split('%').next()?;
            word.parse()
                .ok()
                .map(|address: IpAddr| address.to_canonical())
        };
        let client = address(words.next())?;
        let client_port = words.next()?.parse().ok()?;
        let server = address(words.next())?;
        let server_port = words.next()?.parse().ok()?;
        Some(Self {
            client,
            client_port,
            server,
            server_port,
        })
    }

    /// The session of this process, by its environment.
    pub fn of_environment() -> Option<Self> {
        Self::parse(&std::env::var("SSH_CONNECTION").ok()?)
    }
}

pub(super) fn lint(findings: &mut Findings<'_>, session: &SshSession) {
    let family = if session.client.is_ipv4() {
        Family::Ipv4
    } else {
        Family::Ipv6
    };
    let SshSession {
        client,
        server_port,
        ..
    } = session;
    for (_, table) in filter_tables(findings.policy).filter(|(own, _)| *own == family) {
        for (chain, outwards) in [("INPUT", false), ("OUTPUT", true)] {
            let Some(start) = table.chain(chain) else {
                continue;
            };
            let packet = Packet { session, outwards };
            if let Some(Verdict::Drop(origin)) = walk(table, start, &packet, &mut Budget::default())
            {
                let text = format!(
                    "this policy cuts the SSH connection that you are using: {chain} drops its packets (client {client}, port {server_port})"
                );
                let help = match outwards {
                    false => {
                        format!("before it: `-A INPUT -p tcp --dport {server_port} -j ACCEPT`")
                    }
                    true => {
                        format!("before it: `-A OUTPUT -p tcp --sport {server_port} -j ACCEPT`")
                    }
                };
                findings.warn(CUTS_SSH, origin, text, &help);
                // One warning is enough.
                return;
            }
        }
    }
}

/// A packet of the session. Its flow is taken as new on the way in, because the firewall that is
/// about to be loaded has not seen it yet, and as established on the way out.
struct Packet<'a> {
    session: &'a SshSession,
    outwards: bool,
}

enum Verdict {
    Accept,
    Drop(Option<Origin>),
}

/// What a walk may still cost: chains that call one another twice each would take forever.
struct Budget {
    depth: usize,
    calls: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            depth: 64,
            calls: 10_000,
        }
    }
}

/// The verdict of a chain; `None` if a called chain leaves the decision to its caller.
fn walk(table: &Table, chain: &Chain, packet: &Packet<'_>, budget: &mut Budget) -> Option<Verdict> {
    for rule in chain.rules.iter().filter(|rule| packet.meets(rule)) {
        match &rule.target {
            Target::Accept => return Some(Verdict::Accept),
            Target::Drop | Target::Reject(_) => return Some(Verdict::Drop(Some(rule.origin))),
            Target::Return => break,
            Target::Continue
            | Target::Masquerade(_)
            | Target::Log(_)
            | Target::Nflog(_)
            | Target::Set(_)
            | Target::Change(_)
            | Target::Dnat(_)
            | Target::Snat(_)
            | Target::Redirect(_)
            | Target::Netmap(_) => {}
            Target::Jump(_) | Target::Goto(_) => {
                let callee = called(rule).and_then(|name| table.chain(name));
                if let Some(callee) = callee.filter(|_| budget.depth > 0 && budget.calls > 0) {
                    budget.calls -= 1;
                    budget.depth -= 1;
                    let verdict = walk(table, callee, packet, budget);
                    budget.depth += 1;
                    if verdict.is_some() {
                        return verdict;
                    }
                }
                if matches!(rule.target, Target::Goto(_)) {
                    break;
                }
            }
        }
    }
    let policy = chain.policy.as_ref()?;
    Some(if policy.accept {
        Verdict::Accept
    } else {
        Verdict::Drop(policy.origin)
    })
}

impl Packet<'_> {
    /// Whether a rule matches. Interfaces are not known: a rule for `lo` is taken not to match,
    /// one for any other interface to match if it accepts, so that doubt does not cry wolf.
    fn meets(&self, rule: &Rule) -> bool {
        let SshSession { client, server, .. } = self.session;
        let (source, destination) = if self.outwards {
            (server, client)
        } else {
            (client, server)
        };
        let doubt = !matches!(rule.target, Target::Drop);
        let interfaces = [&rule.in_interface, &rule.out_interface];
        let interfaces =
            interfaces
                .into_iter()
                .flatten()
                .all(|pattern| match pattern.value.0.as_str() {
                    "lo" => pattern.not,
                    _ => doubt,
                });
        interfaces
            && within(rule.source, *source)
            && within(rule.destination, *destination)
            && rule
                .protocol
                .is_none_or(|protocol| (protocol.value == TCP) != protocol.not)
            && rule.matches.iter().all(|each| self.fulfils(rule, each))
    }

    fn fulfils(&self, rule: &Rule, each: &Match) -> bool {
        let SshSession {
            client_port,
            server_port,
            ..
        } = *self.session;
        let (source, destination) = if self.outwards {
            (server_port, client_port)
        } else {
            (client_port, server_port)
        };
        let own = if self.outwards {
            CtStates::ESTABLISHED
        } else {
            CtStates::NEW
        };
        let state = |states: Negatable<CtStates>| (states.value.0 & own.0 != 0) != states.not;
        match each {
            Match::Tcp(tcp) => {
                // Packets in the middle of a connection bear ACK alone.
                let flags = tcp.flags.is_none_or(|flags| {
                    ((0x10 & flags.value.mask) == flags.value.set) != flags.not
                });
                ports_hold(&tcp.ports, source, destination) && flags
            }
            Match::Udp(_) | Match::Icmp(_) => false,
            Match::Multiport(multiport) => {
                let has = |port: u16| {
                    multiport
                        .ports
                        .value
                        .iter()
                        .any(|range| (range.first..=range.last).contains(&port))
                };
                let found = match multiport.which {
                    WhichPort::Source => has(source),
                    WhichPort::Destination => has(destination),
                    WhichPort::Either => has(source) || has(destination),
                };
                found != multiport.ports.not
            }
            Match::State(states) => state(*states),
            // What an administrator's connection is like besides is not known.
            Match::Conntrack(conntrack) => {
                let known = conntrack.connection.is_none() || !rule.target.refuses();
                conntrack.states.is_none_or(state) && known
            }
            // Only what the limit lets through matches.
            // Nor is it known what an administrator's packets are like besides.
            Match::Limit(_) | Match::Packet(_) | Match::List(_) => !rule.target.refuses(),
            // What is in a set may change any moment; most drop what hardly anybody is in.
            Match::Set(_) => !rule.target.refuses(),
            Match::Comment(_) => true,
        }
    }
}

fn ports_hold(ports: &Ports, source: u16, destination: u16) -> bool {
    let holds = |range: Option<Negatable<crate::policy::model::PortRange>>, port: u16| {
        range
            .is_none_or(|range| (range.value.first..=range.value.last).contains(&port) != range.not)
    };
    holds(ports.source, source) && holds(ports.destination, destination)
}

fn within(prefix: Option<Negatable<Prefix>>, address: IpAddr) -> bool {
    prefix.is_none_or(|prefix| {
        let found = match (prefix.value.address, prefix.value.mask, address) {
            (IpAddr::V4(base), IpAddr::V4(mask), IpAddr::V4(address)) => {
                address.to_bits() & mask.to_bits() == base.to_bits()
            }
            (IpAddr::V6(base), IpAddr::V6(mask), IpAddr::V6(address)) => {
                address.to_bits() & mask.to_bits() == base.to_bits()
            }
            _ => false,
        };
        found != prefix.not
    })
}
