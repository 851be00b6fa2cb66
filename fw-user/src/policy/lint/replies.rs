//! What may begin and not go on: connections whose replies are dropped, what this host says to itself,
//! and ICMP errors, which carry the MTU of a path.
//!
//! A chain is warned of only if none of its rules accepts a packet of the kind, whatever else the rule
//! asks: a warning that cries wolf is worse than none.

use super::{Findings, filter_tables, flattened};
use crate::policy::model::{
    CtStates, Family, InterfacePattern, Match, Negatable, Origin, PortRange, Prefix, Rule, Table,
    Target, WhichPort,
};
use crate::policy::names::{ICMP, ICMPV6, TCP};
use crate::policy::print::print_rule;
use crate::policy::save::is_unconditional;

type Interface = Option<Negatable<InterfacePattern>>;

pub(super) fn lint(findings: &mut Findings<'_>) {
    if findings.policy.toml.is_some() {
        // There, all of it is accepted unless somebody has switched it off.
        return;
    }
    for (family, table) in filter_tables(findings.policy) {
        if let Some(drops) = Chain::that_drops(table, "INPUT") {
            input(findings, &drops, table, family);
        }
        if let Some(drops) = Chain::that_drops(table, "OUTPUT") {
            output(findings, &drops, table);
        }
        if let Some(drops) = Chain::that_drops(table, "FORWARD") {
            forward(findings, &drops, family);
        }
    }
}

/// A built-in chain that drops what none of its rules accepts.
struct Chain<'a> {
    rules: Vec<&'a Rule>,
    /// Where it says so.
    drops: Option<Origin>,
}

impl<'a> Chain<'a> {
    fn of(table: &'a Table, name: &str) -> Option<Self> {
        let chain = table.chain(name)?;
        let refuses = |rule: &&Rule| is_unconditional(rule) && rule.target.refuses();
        let policy = chain.policy.as_ref().filter(|policy| !policy.accept);
        let drops = match chain.rules.iter().find(refuses) {
            Some(rule) => Some(rule.origin),
            None => policy.and_then(|policy| policy.origin),
        };
        let rules = flattened(table, chain);
        Some(Self { rules, drops })
    }

    /// The chain, if it drops what its rules do not accept, and is not meant to be shut.
    fn that_drops(table: &'a Table, name: &str) -> Option<Self> {
        let chain = Self::of(table, name)?;
        (chain.drops.is_some() && !is_shut(table, name)).then_some(chain)
    }

    fn accepts(&self, packet: &Packet) -> bool {
        let meets = |rule: &&Rule| rule.target == Target::Accept && packet.may_meet(rule);
        self.rules.iter().any(meets)
    }
}

/// Whether a chain accepts nothing but what this host sends to itself, which is hardly a mistake: the IP
/// version is not in use.
pub(super) fn is_shut(table: &Table, name: &str) -> bool {
    let accepts = |rule: &&Rule| rule.target == Target::Accept && !is_of_loopback(rule);
    Chain::of(table, name)
        .is_some_and(|chain| chain.drops.is_some() && !chain.rules.iter().any(accepts))
}

fn is_of_loopback(rule: &Rule) -> bool {
    let mut interfaces = [&rule.in_interface, &rule.out_interface]
        .into_iter()
        .flatten();
    let inside = |prefix: Option<Negatable<Prefix>>| {
        prefix.is_some_and(|prefix| prefix.value.address.is_loopback() && !prefix.not)
    };
    interfaces.any(|pattern| pattern.value.0 == "lo" && !pattern.not)
        || inside(rule.source)
        || inside(rule.destination)
}

fn input(findings: &mut Findings<'_>, chain: &Chain<'_>, table: &Table, family: Family) {
    let asks = Chain::of(table, "OUTPUT")
        .is_none_or(|output| output.drops.is_none() || output.accepts(&Packet::opening()));
    let replies = chain.accepts(&Packet::reply());
    if asks && !replies {
        findings.warn(
            "no-replies",
            chain.drops,
            "INPUT accepts no replies: what this host asks others (names, updates, the time) is never answered".to_owned(),
            "before it: `-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`",
        );
    }
    if !chain.accepts(&Packet::own()) {
        findings.warn(
            "no-loopback",
            chain.drops,
            "INPUT drops what this host sends to itself: services on it cannot talk to one another (the local resolver, databases)".to_owned(),
            "before it: `-A INPUT -i lo -j ACCEPT`",
        );
    }
    if replies && !chain.accepts(&Packet::error(family)) {
        findings.warn(
            "no-icmp-errors",
            chain.drops,
            "INPUT drops ICMP errors: connections hang where a path is narrower than this host's interface, as nobody tells it the MTU".to_owned(),
            "accept RELATED together with ESTABLISHED: `-m conntrack --ctstate RELATED,ESTABLISHED`",
        );
    }
}

fn output(findings: &mut Findings<'_>, chain: &Chain<'_>, table: &Table) {
    let serves = Chain::of(table, "INPUT")
        .is_none_or(|input| input.drops.is_none() || input.accepts(&Packet::opening()));
    if serves && !chain.accepts(&Packet::reply()) {
        findings.warn(
            "no-replies",
            chain.drops,
            "OUTPUT accepts no replies: whom INPUT lets in is never answered".to_owned(),
            "before it: `-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`",
        );
    }
    if !chain.accepts(&Packet::own()) {
        findings.warn(
            "no-loopback",
            chain.drops,
            "OUTPUT drops what this host sends to itself: services on it cannot talk to one another (the local resolver, databases)".to_owned(),
            "before it: `-A OUTPUT -o lo -j ACCEPT`",
        );
    }
}

/// Rules that let connections through in one direction, with none that lets anything back.
fn forward(findings: &mut Findings<'_>, chain: &Chain<'_>, family: Family) {
    let opening = Packet::opening();
    for rule in &chain.rules {
        let opens = rule.target == Target::Accept && opening.may_meet(rule);
        let both = rule.in_interface.is_none() && rule.out_interface.is_none();
        if !opens || both && rule.source.is_none() && rule.destination.is_none() {
            continue;
        }
        let back = Packet {
            input: rule.out_interface.clone(),
            output: rule.in_interface.clone(),
            place: Place::Between,
            ..Packet::reply()
        };
        if !chain.accepts(&back) {
            let text = format!(
                "FORWARD lets `{}` through and no replies back: no such connection comes about",
                print_rule(rule, family)
            );
            findings.warn(
                "no-replies",
                Some(rule.origin),
                text,
                "before it: `-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`",
            );
            // One is enough: the remedy is the same for all.
            return;
        }
    }
}

/// Where a packet is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// At an interface to others.
    Outside,
    /// On loopback.
    Loopback,
    /// On its way through: at the interfaces that are named.
    Between,
}

/// A kind of packets.
#[derive(Clone)]
struct Packet {
    place: Place,
    input: Interface,
    output: Interface,
    protocol: u8,
    state: CtStates,
    /// Both ports are among those that clients draw, or not known.
    drawn: (Option<PortRange>, Option<PortRange>),
    /// The flags of TCP that its packets may have.
    flags: &'static [u8],
    icmp: Option<u8>,
}

/// The ports that Linux draws for clients (`ip_local_port_range`).
const DRAWN: PortRange = PortRange {
    first: 32_768,
    last: 60_999,
};
const ANY: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

impl Packet {
    /// The first packet of a connection.
    fn opening() -> Self {
        Self {
            place: Place::Outside,
            input: None,
            output: None,
            protocol: TCP,
            state: CtStates::NEW,
            drawn: (Some(DRAWN), Some(ANY)),
            flags: &[SYN],
            icmp: None,
        }
    }

    /// A packet of the side that was asked.
    fn reply() -> Self {
        Self {
            state: CtStates::ESTABLISHED,
            drawn: (Some(ANY), Some(DRAWN)),
            flags: &[ACK, SYN | ACK],
            ..Self::opening()
        }
    }

    /// What goes from this host to itself, to a port that no rule need know.
    fn own() -> Self {
        Self {
            place: Place::Loopback,
            drawn: (None, None),
            ..Self::opening()
        }
    }

    /// That a packet was too big for the way.
    fn error(family: Family) -> Self {
        let (protocol, kind) = match family {
            Family::Ipv4 => (ICMP, 3),
            Family::Ipv6 => (ICMPV6, 2),
        };
        Self {
            protocol,
            state: CtStates::RELATED,
            icmp: Some(kind),
            ..Self::opening()
        }
    }

    /// Whether some packet of the kind may match; what is not known is taken to hold.
    fn may_meet(&self, rule: &Rule) -> bool {
        let protocol = rule
            .protocol
            .is_none_or(|protocol| (protocol.value == self.protocol) != protocol.not);
        let place = self.place == Place::Loopback || !is_of_loopback(rule);
        protocol
            && place
            && self.may_be_at(&rule.in_interface, &self.input)
            && self.may_be_at(&rule.out_interface, &self.output)
            && rule.matches.iter().all(|each| self.may_fulfil(each))
    }

    fn may_be_at(&self, pattern: &Interface, place: &Interface) -> bool {
        let Some(pattern) = pattern else {
            return true;
        };
        let name = pattern.value.0.as_str();
        let covers_loopback = name == "lo"
            || name
                .strip_suffix('+')
                .is_some_and(|start| "lo".starts_with(start));
        match self.place {
            Place::Loopback => covers_loopback != pattern.not,
            // Of `lo+` only the name `lo` is loopback.
            Place::Outside => name != "lo" || pattern.not,
            Place::Between => place
                .as_ref()
                .is_none_or(|place| may_be_one(pattern, place)),
        }
    }

    fn may_fulfil(&self, each: &Match) -> bool {
        let tcp = self.protocol == TCP;
        match each {
            Match::Tcp(found) => {
                let fits = |flags: &u8| {
                    found.flags.is_none_or(|asked| {
                        (flags & asked.value.mask == asked.value.set) != asked.not
                    })
                };
                tcp && self.flags.iter().any(fits)
                    && may_be_among(found.ports.source, self.drawn.0)
                    && may_be_among(found.ports.destination, self.drawn.1)
            }
            Match::Udp(_) => false,
            Match::Icmp(asked) => self.icmp.is_some_and(|kind| {
                asked.is_none_or(|asked| {
                    asked.value.kind.is_none_or(|found| found == kind) != asked.not
                })
            }),
            Match::Multiport(multiport) => {
                let among = |own: Option<PortRange>| {
                    multiport.ports.value.iter().any(|range| {
                        let range = Negatable {
                            not: false,
                            value: *range,
                        };
                        may_be_among(Some(range), own)
                    })
                };
                let found = match multiport.which {
                    WhichPort::Source => among(self.drawn.0),
                    WhichPort::Destination => among(self.drawn.1),
                    WhichPort::Either => among(self.drawn.0) || among(self.drawn.1),
                };
                tcp && (found || multiport.ports.not)
            }
            Match::State(_) | Match::Conntrack(_) => super::covers::states_of(each)
                .is_none_or(|states| (states.value.0 & self.state.0 != 0) != states.not),
            Match::Limit(_)
            | Match::Set(_)
            | Match::Comment(_)
            | Match::Packet(_)
            | Match::List(_) => true,
        }
    }
}

/// Whether a port of the kind may be in the range. Of a port that is not known, no rule that names
/// one is about.
fn may_be_among(range: Option<Negatable<PortRange>>, own: Option<PortRange>) -> bool {
    let Some(range) = range else {
        return true;
    };
    match own {
        None => range.not || range.value == ANY,
        Some(own) if range.not => own.first < range.value.first || range.value.last < own.last,
        Some(own) => range.value.first <= own.last && own.first <= range.value.last,
    }
}

fn may_be_one(one: &Negatable<InterfacePattern>, other: &Negatable<InterfacePattern>) -> bool {
    let within = |wide: &str, narrow: &str| match wide.strip_suffix('+') {
        Some(start) => narrow.trim_end_matches('+').starts_with(start),
        None => wide == narrow,
    };
    let (first, second) = (one.value.0.as_str(), other.value.0.as_str());
    match (one.not, other.not) {
        (false, false) => within(first, second) || within(second, first),
        (true, false) => !within(first, second),
        (false, true) => !within(second, first),
        (true, true) => true,
    }
}
