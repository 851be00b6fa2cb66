//! What a policy means: the one typed model that `rules.v4`, `rules.v6` and `policy.toml` become.
//!
//! No text and no spans here except [`Origin`], which names the line that a rule came from. Lists
//! in `-s`/`-d` are already expanded into one rule each, as iptables does; names of protocols,
//! services and ICMP types are numbers; ports are in host byte order.

mod log;
mod reject;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::tracking::Tracking;

pub use log::{Log, Nflog};
pub use reject::Reject;

use super::change::Change;
use super::connection::Connection;
use super::lists::{ListDefinition, ListMatch};
use super::packet_match::PacketMatch;
use super::set::SetDefinition;

/// A whole policy: what one `fwbpf load` enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// IPv4's tables, or nothing if no file spoke of IPv4 (then IPv4 is not filtered).
    pub ipv4: Option<Ruleset>,
    /// IPv6's tables, or nothing if no file spoke of IPv6.
    pub ipv6: Option<Ruleset>,
    /// The names of the files read, which [`Origin::file`] indexes.
    pub files: Vec<String>,
    /// The policy.toml document, canonical text, when the policy was written as one.
    pub toml: Option<String>,
    /// The sets that its rules may ask.
    pub sets: Vec<SetDefinition>,
    /// The lists that its rules keep.
    pub lists: Vec<ListDefinition>,
    /// How connections are tracked.
    pub tracking: Tracking,
}

impl Policy {
    /// The set of that name.
    pub fn set(&self, name: &str) -> Option<&SetDefinition> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// Every rule.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rulesets()
            .flat_map(|(_, ruleset)| ruleset.tables())
            .flat_map(|(_, table)| &table.chains)
            .flat_map(|chain| &chain.rules)
    }

    /// The names of the sets that rules ask, each as often as it is asked.
    pub fn named_sets(&self) -> impl Iterator<Item = &str> {
        self.rules().flat_map(Rule::named_sets)
    }
}

impl Rule {
    /// The names of the sets that the rule asks or changes.
    pub fn named_sets(&self) -> impl Iterator<Item = &str> {
        let asked = self.matches.iter().filter_map(|each| match each {
            Match::Set(set) => Some(set.name.as_str()),
            _ => None,
        });
        asked.chain(self.changed_sets())
    }

    /// The names of the sets that the rule changes.
    pub fn changed_sets(&self) -> impl Iterator<Item = &str> {
        let change = match &self.target {
            Target::Set(change) => Some(&**change),
            _ => None,
        };
        change.into_iter().flat_map(SetChange::sets)
    }
}

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4: iptables.
    Ipv4,
    /// IPv6: ip6tables.
    Ipv6,
}

/// The tables of one IP version. A table that no file mentions is `None`: its hooks do not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// The `filter` table.
    pub filter: Option<Table>,
    /// The `nat` table.
    pub nat: Option<Table>,
    /// The `mangle` table.
    pub mangle: Option<Table>,
    /// The `raw` table.
    pub raw: Option<Table>,
    /// The `security` table.
    pub security: Option<Table>,
}

/// A table: its chains in the order of iptables-save, built-in chains first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The chains. All built-in chains of the table are present, in the kernel's order
    /// (filter: INPUT, FORWARD, OUTPUT; nat: PREROUTING, INPUT, OUTPUT, POSTROUTING),
    /// followed by the user-defined chains sorted by name, as the kernel's dump has them.
    pub chains: Vec<Chain>,
}

/// One chain. It is built in exactly if it has a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The chain's name.
    pub name: String,
    /// The base chain's policy; `None` for a user-defined chain.
    pub policy: Option<ChainPolicy>,
    /// The rules, first match wins.
    pub rules: Vec<Rule>,
}

/// What a base chain does with packets that no rule decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainPolicy {
    /// True for ACCEPT, false for DROP.
    pub accept: bool,
    /// The `[packets:bytes]` of the file.
    pub counters: Option<Counters>,
    /// Where the policy was set, if a line did.
    pub origin: Option<Origin>,
}

/// `[packets:bytes]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes of layer 3: IP header and payload, as iptables counts them.
    pub bytes: u64,
}

/// The line that something came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Index into [`Policy::files`].
    pub file: u32,
    /// Line number, from 1.
    pub line: u32,
}

/// One rule: all of its matches must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `-s`.
    pub source: Option<Negatable<Prefix>>,
    /// `-d`.
    pub destination: Option<Negatable<Prefix>>,
    /// `-i`.
    pub in_interface: Option<Negatable<InterfacePattern>>,
    /// `-o`.
    pub out_interface: Option<Negatable<InterfacePattern>>,
    /// `-p`; never 0 (`all` is `None`).
    pub protocol: Option<Negatable<u8>>,
    /// The `-m` matches in the order written.
    pub matches: Vec<Match>,
    /// What the rule does.
    pub target: Target,
    /// The `[packets:bytes]` of the file.
    pub counters: Option<Counters>,
    /// The line that the rule came from.
    pub origin: Origin,
}

/// A value and whether `!` stood before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Negatable<T> {
    /// True if the match is inverted.
    pub not: bool,
    /// What is compared.
    pub value: T,
}

/// An address under a mask. The mask need not be contiguous (iptables takes `255.0.255.0`).
/// The address is already masked. A zero mask is legal and matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix {
    /// The address, of the ruleset's family.
    pub address: IpAddr,
    /// The mask, of the same family.
    pub mask: IpAddr,
}

/// `eth0`, or `eth+` for every name that begins with `eth`; `+` alone matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InterfacePattern(pub String);

impl InterfacePattern {
    /// Whether an interface of this name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('+') {
            Some(prefix) => name.starts_with(prefix),
            None => self.0 == name,
        }
    }
}

/// One `-m` match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Match {
    /// `-m tcp`.
    Tcp(Tcp),
    /// `-m udp`.
    Udp(Ports),
    /// `-m icmp --icmp-type` or `-m icmp6 --icmpv6-type`, by family.
    Icmp(Option<Negatable<IcmpType>>),
    /// `-m multiport`.
    Multiport(Multiport),
    /// `-m state --state`.
    State(Negatable<CtStates>),
    /// `-m conntrack`.
    Conntrack(Conntrack),
    /// `-m limit`.
    Limit(Limit),
    /// `-m set`.
    Set(SetMatch),
    /// `-m comment --comment`.
    Comment(String),
    /// What is in and about the packet besides.
    Packet(PacketMatch),
    /// What was seen before.
    List(ListMatch),
}

/// `-m set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetMatch {
    /// `!` before `--match-set`.
    pub not: bool,
    /// The set's name.
    pub name: String,
    /// Up to six sides, one for each part of the set's elements.
    pub sides: Vec<Side>,
    /// `--return-nomatch`.
    pub return_nomatch: bool,
    /// `! --update-counters`.
    pub keep_counters: bool,
    /// `! --update-subcounters`.
    pub keep_subcounters: bool,
}

/// `src` or `dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// `src`.
    Source,
    /// `dst`.
    Destination,
}

/// `-m tcp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// `--sport`, `--dport`.
    pub ports: Ports,
    /// `--tcp-flags mask set`; `--syn` is `FIN,SYN,RST,ACK SYN`.
    pub flags: Option<Negatable<TcpFlags>>,
    /// `--tcp-option`: a kind; never 0, which iptables takes for none.
    pub option: Option<Negatable<u8>>,
}

/// `--sport` and `--dport`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// `--sport`.
    pub source: Option<Negatable<PortRange>>,
    /// `--dport`.
    pub destination: Option<Negatable<PortRange>>,
}

/// Inclusive range of ports, host byte order, `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// `--tcp-flags mask set`, bits as in the TCP header (FIN 0x01 .. URG 0x20; RFC 9293 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpFlags {
    /// The flags examined.
    pub mask: u8,
    /// Of those, the flags that must be set.
    pub set: u8,
}

/// `--icmp-type type[/code]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpType {
    /// The type; `None` for `any` (IPv4's 255), which matches every ICMP packet.
    pub kind: Option<u8>,
    /// The codes, inclusive; 0..=255 when no code was given.
    pub codes: (u8, u8),
}

/// `-m multiport`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multiport {
    /// Which port is compared.
    pub which: WhichPort,
    /// 1 to 15 ports, a range counting for two; in the order written.
    pub ports: Negatable<Vec<PortRange>>,
}

/// `--source-ports`, `--destination-ports` or `--ports`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhichPort {
    /// `--source-ports`.
    Source,
    /// `--destination-ports`.
    Destination,
    /// `--ports`: either.
    Either,
}

/// `-m conntrack`; at least one part is present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conntrack {
    /// `--ctstate`.
    pub states: Option<Negatable<CtStates>>,
    /// `--ctdir`.
    pub direction: Option<CtDirection>,
    /// What few rules ask.
    pub connection: Option<Box<Connection>>,
}

/// `-m limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// `--limit`: ten-thousandths of a second between packets, as the kernel keeps it; never 0.
    pub period: u32,
    /// `--limit-burst`: from 1 to 10,000.
    pub burst: u32,
}

impl Limit {
    /// [`Limit::period`] of one packet a second (`XT_LIMIT_SCALE`, linux/netfilter/xt_limit.h).
    pub const SECOND: u32 = 10_000;
    /// The burst of a rule that names none.
    pub const BURST: u32 = 5;

    /// What a packet costs and the most credit there can be, or nothing if the numbers are too big
    /// for the kernel (`limit_mt_check`, net/netfilter/xt_limit.c).
    pub fn credits(self) -> Option<(u32, u32)> {
        let cap = credits_of(self.period.wrapping_mul(self.burst));
        let cost = credits_of(self.period);
        (self.period != 0 && self.burst != 0 && cap >= cost).then_some((cost, cap))
    }
}

/// `user2credits` of net/netfilter/xt_limit.c, which wraps.
fn credits_of(period: u32) -> u32 {
    use fw_common::datapath::limit::PER_SECOND;
    if period > u32::MAX / PER_SECOND {
        (period / Limit::SECOND).wrapping_mul(PER_SECOND)
    } else {
        period * PER_SECOND / Limit::SECOND
    }
}

/// A set of connection states, bits from [`CtStates::NEW`] and its siblings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtStates(pub u8);

impl CtStates {
    /// The first packets of a flow.
    pub const NEW: Self = Self(fw_common::abi::ct::NEW);
    /// A flow that has seen packets both ways.
    pub const ESTABLISHED: Self = Self(fw_common::abi::ct::ESTABLISHED);
    /// An ICMP error about a known flow.
    pub const RELATED: Self = Self(fw_common::abi::ct::RELATED);
    /// No flow, and it cannot open one.
    pub const INVALID: Self = Self(fw_common::abi::ct::INVALID);
    /// Not tracked on purpose (neighbour discovery, MLD).
    pub const UNTRACKED: Self = Self(fw_common::abi::ct::UNTRACKED);
    /// Virtual: the flow's source is translated.
    pub const SNAT: Self = Self(fw_common::abi::ct::SNAT);
    /// Virtual: the flow's destination is translated.
    pub const DNAT: Self = Self(fw_common::abi::ct::DNAT);
}

/// `--ctdir`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtDirection {
    /// From the side that opened the flow.
    Original,
    /// From the other side.
    Reply,
}

/// What a rule does when it matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// No `-j`: count and go on.
    Continue,
    /// `-j ACCEPT`.
    Accept,
    /// `-j DROP`.
    Drop,
    /// `-j RETURN`.
    Return,
    /// `-j CHAIN`.
    Jump(String),
    /// `-g CHAIN`.
    Goto(String),
    /// `-j REJECT`.
    Reject(Reject),
    /// `-j MASQUERADE`.
    Masquerade(Masquerade),
    /// `-j LOG`.
    Log(Log),
    /// What changes the packet, or how it is tracked.
    Change(Change),
    /// `-j NFLOG`.
    Nflog(Nflog),
    /// `-j SET`. It is rare, and would make all rules larger.
    Set(Box<SetChange>),
    /// `-j DNAT`.
    Dnat(Translation),
    /// `-j SNAT`.
    Snat(Translation),
    /// `-j REDIRECT`.
    Redirect(Redirect),
    /// `-j NETMAP`: the network.
    Netmap(Prefix),
}

/// `-j SET`: adds to a set, deletes from one, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetChange {
    /// `--add-set`: the set's name, and the sides of the packet that make the element.
    pub add: Option<(String, Vec<Side>)>,
    /// `--exist`.
    pub exist: bool,
    /// `--timeout`.
    pub timeout: Option<u32>,
    /// `--del-set`.
    pub delete: Option<(String, Vec<Side>)>,
}

impl SetChange {
    /// A rule that names nothing.
    pub const NONE: Self = Self {
        add: None,
        exist: false,
        timeout: None,
        delete: None,
    };

    /// The names of the sets that it changes.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        let both = self.add.iter().chain(&self.delete);
        both.map(|(name, _)| name.as_str())
    }
}

impl Target {
    /// Whether a packet that matches is dropped, with or without an answer.
    pub fn refuses(&self) -> bool {
        matches!(self, Self::Drop | Self::Reject(_))
    }

    /// The built-in chains that a target of the nat table may be reached from, with its name; nothing
    /// for the others.
    pub fn nat_chains(&self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Masquerade(_) => Some(("MASQUERADE", &["POSTROUTING"])),
            Self::Snat(_) => Some(("SNAT", &["POSTROUTING", "INPUT"])),
            Self::Dnat(_) => Some(("DNAT", &["PREROUTING", "OUTPUT"])),
            Self::Redirect(_) => Some(("REDIRECT", &["PREROUTING", "OUTPUT"])),
            Self::Netmap(_) => Some(("NETMAP", &["PREROUTING", "POSTROUTING", "INPUT", "OUTPUT"])),
            Self::Continue
            | Self::Accept
            | Self::Drop
            | Self::Return
            | Self::Jump(_)
            | Self::Goto(_)
            | Self::Log(_)
            | Self::Nflog(_)
            | Self::Set(_)
            | Self::Reject(_)
            | Self::Change(_) => None,
        }
    }
}

/// `--to-destination` or `--to-source`, and what goes with it; at least addresses or ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The first and the last address.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The ports.
    pub ports: Option<PortRange>,
    /// The port that becomes the first of them, the next one the second, and so on.
    pub base_port: Option<u16>,
    /// `--random`.
    pub random: bool,
    /// `--random-fully`.
    pub random_fully: bool,
    /// `--persistent`.
    pub persistent: bool,
}

/// `-j REDIRECT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// `--to-ports`.
    pub ports: Option<PortRange>,
    /// `--random`.
    pub random: bool,
}

/// `-j MASQUERADE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// `--to-ports`.
    pub ports: Option<PortRange>,
    /// `--random`.
    pub random: bool,
    /// `--random-fully`.
    pub random_fully: bool,
}
