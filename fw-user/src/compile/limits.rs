//! Why a well-formed policy may still not fit the kernel's tables.

use std::fmt;

use fw_common::abi::blob::{MAX_DEPTH, MAX_PATTERNS, MAX_ZONES};
use fw_common::abi::maps::COUNTER_SLOTS_MAX;

use crate::policy::model::{Origin, Policy};

/// A limit that the policy exceeds: where, what was found, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limits {
    /// More interface patterns than the word of an interface has bits.
    #[error(
        "{place}: `{pattern}` is interface pattern number {}, and one policy may name {MAX_PATTERNS}; \
         name several interfaces by one pattern that ends in `+`, or leave out interfaces that \
         need no rule of their own",
        MAX_PATTERNS + 1
    )]
    Patterns {
        /// The rule that names one too many.
        place: Place,
        /// The pattern.
        pattern: String,
    },
    /// More zones than a packet on its way through this host can tell apart.
    #[error(
        "{place}: zone {zone} is number {} beside zone 0, and one policy may name {MAX_ZONES}, as a packet tells each hook \
         its zone by five bits; leave out zones, or have a part of the networks in a network namespace with a firewall \
         of its own",
        MAX_ZONES + 1
    )]
    Zones {
        /// The rule that names one too many.
        place: Place,
        /// The zone.
        zone: u16,
    },
    /// A jump to a chain that its table lacks.
    #[error(
        "{place}: there is no chain `{chain}` in this table; declare it with `:{chain} - [0:0]` or `-N {chain}`"
    )]
    UnknownChain {
        /// The rule that jumps.
        place: Place,
        /// The chain's name.
        chain: String,
    },
    /// A chain that can be reached from itself.
    #[error(
        "{place}: the jump to `{chain}` closes a loop: packets would never leave it; remove one of the jumps between these chains"
    )]
    Loop {
        /// The rule that jumps.
        place: Place,
        /// The chain's name.
        chain: String,
    },
    /// Jumps that nest too deep.
    #[error("{place}: the jump to `{chain}` is number {} of a nest of jumps, and {MAX_DEPTH} may nest; join some of the chains, or use `-g` where the caller's further rules are not needed", MAX_DEPTH + 1)]
    Depth {
        /// The rule that jumps.
        place: Place,
        /// The chain's name.
        chain: String,
    },
    /// More rules and policies than there are counters.
    #[error(
        "the policy needs {needed} counters (one for each rule and each chain's policy), and together with the running \
         policy, which counts until it is replaced, more than the {slots} that there are; their number is chosen at the \
         first load: `fwbpf unload` and load again to have more (of at most {COUNTER_SLOTS_MAX}), or join rules by \
         `-m multiport` or by wider prefixes"
    )]
    Counters {
        /// Rules and base chains of the policy.
        needed: usize,
        /// The slots that there are.
        slots: u32,
    },
    /// A limit that the kernel refuses, too.
    #[error(
        "{place}: `--limit-burst {burst}` is too much for so slow a limit, as it is for iptables; write a smaller burst, or a faster limit"
    )]
    Rate {
        /// The rule.
        place: Place,
        /// The burst.
        burst: u32,
    },
    /// A set that nobody has given.
    #[error(
        "{place}: there is no set `{set}`; load the file that `ipset save` writes together with the rules"
    )]
    UnknownSet {
        /// The rule that asks it.
        place: Place,
        /// The set's name.
        set: String,
    },
    /// A set whose addresses are of the other IP version.
    #[error(
        "{place}: the set {set} has {family}'s addresses, so that iptables refuses the rule; make a set of this rule's IP version"
    )]
    SetFamily {
        /// The rule that asks it.
        place: Place,
        /// The set's name.
        set: String,
        /// Its IP version.
        family: &'static str,
    },
    /// SET with a set of prefixes.
    #[error(
        "{place}: SET cannot change {set}, which is of type {kind}: how long a prefix it would add depends on what was in the set before; let it change a set of addresses, such as hash:ip"
    )]
    SetOfPrefixes {
        /// The rule that changes it.
        place: Place,
        /// The set's name.
        set: String,
        /// Its type.
        kind: &'static str,
    },
    /// A port list longer than iptables' own.
    #[error(
        "{place}: the port list has {ranges} separate ranges, and `-m multiport` takes 15; write the rule twice, with half of the list each"
    )]
    PortList {
        /// The rule.
        place: Place,
        /// Ranges left after joining neighbours.
        ranges: usize,
    },
}

/// The line that a rule came from, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name, if it is known.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: u32,
}

impl Place {
    /// Names a rule's origin.
    pub fn of(policy: &Policy, origin: Origin) -> Self {
        Self {
            file: policy.files.get(origin.file as usize).cloned(),
            line: origin.line,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}:{}", self.line),
            None => write!(f, "line {}", self.line),
        }
    }
}
