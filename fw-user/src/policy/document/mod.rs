//! policy.toml: one file for both IP versions, safe by default. docs/policy-toml.md describes it.
//!
//! text -> [`Document`] (read) -> model (lower); and back: model -> [`Document`] (convert) -> text
//! (write).

mod convert;
mod limit;
mod log;
mod lower;
mod publish;
mod read;
mod sets;
mod tracking;
mod types;
mod write;

pub use convert::NotExpressible;
use convert::from_policy;
use log::Logging;
use publish::Publication;
use types::Kind;

use super::error::Report;
use super::model::{Family, Limit, Origin, Policy, PortRange, Prefix, Reject};
use super::set::SetDefinition;
use super::source::SourceFile;
use super::tracking::Tracking;

/// Reads a policy.toml into the policy. What comes back is only meant without errors.
pub(crate) fn load(file: &SourceFile, policy: &mut Policy, report: &mut Report<'_>) {
    let document = read::read(file, &policy.sets, report);
    if report.errors.is_empty() {
        lower::lower(&document, policy);
        policy.toml = Some(write::write(&document));
    }
}

/// The policy as policy.toml: the document it was written as, or for rule files what
/// policy.toml can say, if it can say all.
pub fn print_toml(policy: &Policy) -> Result<String, NotExpressible> {
    match &policy.toml {
        Some(text) => Ok(text.clone()),
        None => from_policy(policy),
    }
}

/// What a policy.toml says. Equal documents mean the same policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub defaults: Defaults,
    pub incoming: Section,
    pub outgoing: Section,
    pub forward: Section,
    pub masquerade: Option<Masquerading>,
    pub publish: Vec<Publication>,
    pub sets: Vec<SetDefinition>,
    pub tracking: Tracking,
}

/// What is allowed without a rule, unless switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Defaults {
    pub loopback: bool,
    pub established: bool,
    pub neighbour_discovery: bool,
}

/// `[incoming]`, `[outgoing]` or `[forward]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// Whether what no rule decides is allowed.
    pub accept: bool,
    pub rules: Vec<Entry>,
    /// The line of `default`, if there is one.
    pub origin: Place,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub verdict: Verdict,
    pub what: Vec<What>,
    pub types: Vec<Kind>,
    pub ports: Vec<PortRange>,
    pub source_ports: Vec<PortRange>,
    pub from: Vec<Prefix>,
    pub to: Vec<Prefix>,
    pub from_set: Option<String>,
    pub to_set: Option<String>,
    /// The IP versions of these sets, as far as they are known.
    pub set_families: Vec<Family>,
    pub in_interfaces: Vec<String>,
    pub out_interfaces: Vec<String>,
    pub family: Option<Family>,
    /// How often the rule holds.
    pub limit: Option<Limit>,
    /// How what it holds for is written down.
    pub log: Option<Logging>,
    pub comment: Option<String>,
    pub origin: Place,
}

/// What a rule does with the packets that it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow,
    #[default]
    Drop,
    Reject(Answer),
}

/// `with`: how both IP versions answer what they reject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    #[default]
    PortUnreachable,
    AdminProhibited,
    TcpReset,
}

impl Answer {
    pub const ALL: [Self; 3] = [Self::PortUnreachable, Self::AdminProhibited, Self::TcpReset];

    pub fn name(self) -> &'static str {
        match self {
            Self::PortUnreachable => "port-unreachable",
            Self::AdminProhibited => "admin-prohibited",
            Self::TcpReset => "tcp-reset",
        }
    }

    pub fn of(self, family: Family) -> Reject {
        match (self, family) {
            (Self::PortUnreachable, family) => Reject::default_of(family),
            (Self::AdminProhibited, Family::Ipv4) => Reject::Unreachable(13),
            (Self::AdminProhibited, Family::Ipv6) => Reject::Unreachable(1),
            (Self::TcpReset, _) => Reject::TcpReset,
        }
    }
}

/// What `allow`, `drop` and `reject` name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Any,
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
    /// Packets of known flows and ICMP errors about them.
    Established,
    /// Packets of no flow that cannot open one.
    Invalid,
    Protocol(u8),
}

/// `[masquerade]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Masquerading {
    pub out_interfaces: Vec<String>,
    pub from: Vec<Prefix>,
    pub family: Option<Family>,
    pub origin: Place,
}

/// Where something was written; it plays no part in comparisons.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place(pub Option<Origin>);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl Place {
    /// The line; the file's first for what nobody wrote.
    pub fn origin(self) -> Origin {
        self.0.unwrap_or(Origin { file: 0, line: 1 })
    }
}

impl Default for Document {
    fn default() -> Self {
        let section = |accept| Section {
            accept,
            rules: Vec::new(),
            origin: Place::default(),
        };
        Self {
            defaults: Defaults {
                loopback: true,
                established: true,
                neighbour_discovery: true,
            },
            incoming: section(false),
            outgoing: section(true),
            forward: section(false),
            masquerade: None,
            publish: Vec::new(),
            sets: Vec::new(),
            tracking: Tracking::default(),
        }
    }
}
