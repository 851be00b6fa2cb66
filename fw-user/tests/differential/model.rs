//! An interpreter of the policy model that shares nothing with the compiler or the datapath: rule
//! after rule, as the iptables manual tells it. What it says is what fwbpf must do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fw_user::policy::model::{
    Conntrack, CtDirection, CtStates, Family, IcmpType, InterfacePattern, Match, Negatable, Policy,
    PortRange, Ports, Prefix, Rule, Table, Target, TcpFlags, WhichPort,
};
use fw_user::policy::{CounterId, TableName};

/// What rules can see of a packet.
#[derive(Clone, Debug)]
pub struct Seen {
    pub family: Family,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Source and destination; of ICMP, type and code.
    pub ports: (u16, u16),
    pub tcp_flags: u8,
    pub in_interface: Option<String>,
    pub out_interface: Option<String>,
    /// The connection state, and SNAT if its source is translated.
    pub states: CtStates,
    /// `None` if the packet belongs to no flow.
    pub direction: Option<CtDirection>,
}

/// How a base chain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accept,
    Drop,
    Reject,
    Masquerade {
        ports: Option<(u16, u16)>,
        random: bool,
    },
    /// To an address that the rule names.
    Translate,
}

/// Which counters count the packet, and how often.
pub type Hits = BTreeMap<CounterId, u64>;

/// Sends a packet through a base chain. A table that is not there accepts.
pub fn judge(policy: &Policy, table: TableName, chain: &str, seen: &Seen) -> (Outcome, Hits) {
    let ruleset = match seen.family {
        Family::Ipv4 => &policy.ipv4,
        Family::Ipv6 => &policy.ipv6,
    };
    let content = ruleset.as_ref().and_then(|ruleset| match table {
        TableName::Filter => ruleset.filter.as_ref(),
        TableName::Nat => ruleset.nat.as_ref(),
        TableName::Mangle => ruleset.mangle.as_ref(),
        TableName::Raw => ruleset.raw.as_ref(),
        TableName::Security => ruleset.security.as_ref(),
    });
    let Some(content) = content else {
        return (Outcome::Accept, Hits::new());
    };
    let mut walk = Walk {
        table: content,
        name: table,
        seen,
        hits: Hits::new(),
    };
    let base = walk.position(chain);
    let outcome = walk.chain(base).unwrap_or_else(|| {
        walk.hit(base, None);
        let policy = content.chains[base].policy.as_ref().expect("a base chain");
        if policy.accept {
            Outcome::Accept
        } else {
            Outcome::Drop
        }
    });
    (outcome, walk.hits)
}

struct Walk<'a> {
    table: &'a Table,
    name: TableName,
    seen: &'a Seen,
    hits: Hits,
}

impl Walk<'_> {
    fn position(&self, name: &str) -> usize {
        let mut chains = self.table.chains.iter();
        chains.position(|chain| chain.name == name).expect(name)
    }

    fn hit(&mut self, chain: usize, rule: Option<usize>) {
        let id = CounterId {
            family: self.seen.family,
            table: self.name,
            chain,
            rule,
        };
        *self.hits.entry(id).or_default() += 1;
    }

    /// `None` if the packet returns to the caller.
    fn chain(&mut self, chain: usize) -> Option<Outcome> {
        let rules = &self.table.chains[chain].rules;
        for (index, rule) in rules.iter().enumerate() {
            if !matches(rule, self.seen) {
                continue;
            }
            self.hit(chain, Some(index));
            match &rule.target {
                Target::Continue
                | Target::Log(_)
                | Target::Nflog(_)
                | Target::Set(_)
                | Target::Change(_) => {}
                Target::Accept => return Some(Outcome::Accept),
                Target::Drop => return Some(Outcome::Drop),
                Target::Reject(_) => return Some(Outcome::Reject),
                Target::Return => return None,
                Target::Jump(name) => {
                    let called = self.position(name);
                    if let Some(outcome) = self.chain(called) {
                        return Some(outcome);
                    }
                }
                // Who returns from there returns to this chain's caller.
                Target::Goto(name) => {
                    let called = self.position(name);
                    return self.chain(called);
                }
                Target::Masquerade(masquerade) => {
                    return Some(Outcome::Masquerade {
                        ports: masquerade.ports.map(|range| (range.first, range.last)),
                        random: masquerade.random || masquerade.random_fully,
                    });
                }
                Target::Dnat(_) | Target::Snat(_) | Target::Redirect(_) | Target::Netmap(_) => {
                    return Some(Outcome::Translate);
                }
            }
        }
        None
    }
}

fn matches(rule: &Rule, seen: &Seen) -> bool {
    holds(&rule.source, |prefix| under(prefix, seen.source))
        && holds(&rule.destination, |prefix| under(prefix, seen.destination))
        && holds(&rule.in_interface, |pattern| {
            fits(pattern, seen.in_interface.as_deref())
        })
        && holds(&rule.out_interface, |pattern| {
            fits(pattern, seen.out_interface.as_deref())
        })
        && holds(&rule.protocol, |number| *number == seen.protocol)
        && rule
            .matches
            .iter()
            .all(|condition| fulfils(condition, seen))
}

fn holds<T>(condition: &Option<Negatable<T>>, is: impl Fn(&T) -> bool) -> bool {
    match condition {
        None => true,
        Some(condition) => is(&condition.value) != condition.not,
    }
}

fn under(prefix: &Prefix, address: IpAddr) -> bool {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (wanted, mask) = (bytes(prefix.address), bytes(prefix.mask));
    let same = |place: usize, byte: &u8| byte & mask[place] == wanted[place] & mask[place];
    bytes(address)
        .iter()
        .enumerate()
        .all(|(place, byte)| same(place, byte))
}

/// At a hook without the interface, its name is empty.
fn fits(pattern: &InterfacePattern, name: Option<&str>) -> bool {
    let name = name.unwrap_or("").as_bytes();
    let pattern = pattern.0.as_bytes();
    match pattern.split_last() {
        Some((b'+', prefix)) => name.len() >= prefix.len() && &name[..prefix.len()] == prefix,
        _ => name == pattern,
    }
}

fn within(range: &PortRange, port: u16) -> bool {
    range.first <= port && port <= range.last
}

fn fulfils(condition: &Match, seen: &Seen) -> bool {
    let (source, destination) = seen.ports;
    let ports = |ports: &Ports| {
        holds(&ports.source, |range| within(range, source))
            && holds(&ports.destination, |range| within(range, destination))
    };
    match condition {
        Match::Tcp(tcp) => {
            let flags = |flags: &TcpFlags| seen.tcp_flags & flags.mask == flags.set;
            seen.protocol == 6 && ports(&tcp.ports) && holds(&tcp.flags, flags)
        }
        Match::Udp(udp) => seen.protocol == 17 && ports(udp),
        Match::Icmp(icmp) => {
            let number = match seen.family {
                Family::Ipv4 => 1,
                Family::Ipv6 => 58,
            };
            let is = |icmp: &IcmpType| {
                let kind = icmp.kind.map(u16::from);
                let any = kind.is_none() || (kind == Some(255) && seen.family == Family::Ipv4);
                let code = u16::from(icmp.codes.0)..=u16::from(icmp.codes.1);
                any || (kind == Some(source) && code.contains(&destination))
            };
            seen.protocol == number && holds(icmp, is)
        }
        Match::Multiport(multiport) => {
            let listed = |port| {
                multiport
                    .ports
                    .value
                    .iter()
                    .any(|range| within(range, port))
            };
            let is = match multiport.which {
                WhichPort::Source => listed(source),
                WhichPort::Destination => listed(destination),
                WhichPort::Either => listed(source) || listed(destination),
            };
            is != multiport.ports.not
        }
        Match::State(states) => (states.value.0 & seen.states.0 != 0) != states.not,
        Match::Conntrack(conntrack) => conntrack_mt(conntrack, seen),
        // Limits depend on time, which is not here: the generator has none. Nor has it what is asked
        // of the packet's bytes.
        // The judge of sets is ipset, in the comparison with iptables.
        Match::Limit(_) | Match::Packet(_) | Match::Set(_) | Match::List(_) | Match::Comment(_) => {
            true
        }
    }
}

/// As the kernel's function of that name: a packet without a flow is asked for its state only.
fn conntrack_mt(conntrack: &Conntrack, seen: &Seen) -> bool {
    if !holds(&conntrack.states, |states| states.0 & seen.states.0 != 0) {
        return false;
    }
    match (conntrack.direction, seen.direction) {
        (None, _) => true,
        (Some(_), None) => conntrack.states.is_some(),
        (Some(wanted), Some(direction)) => wanted == direction,
    }
}
