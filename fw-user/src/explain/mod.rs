//! What the firewall does with one packet, and why: the datapath itself, watched.
//!
//! A [`Question`] becomes a packet, the packet runs through the kernel's own code over a
//! [`Machine`]'s tables, and what it asked and did becomes [`Step`]s.

mod machine;
mod packet;
mod revoked;
mod text;
mod walk;

use std::net::IpAddr;

use serde::Serialize;

use crate::policy::TableName;
use crate::policy::model::Family;

pub use machine::Machine;
pub use revoked::{Judge, Opinion};
pub use walk::explain;

/// The packet asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The interface that it comes in by; `None` if this host sends it.
    pub in_interface: Option<String>,
    /// The interface that it leaves by; `None` if it is for this host.
    pub out_interface: Option<String>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same IP version.
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Source port, if the protocol has ports; by default a high one.
    pub source_port: Option<u16>,
    /// Destination port, if the protocol has ports.
    pub destination_port: Option<u16>,
    /// ICMP type and code; by default an echo request.
    pub icmp: Option<(u8, u8)>,
    /// TCP flags; by default SYN, or ACK in an established connection.
    pub tcp_flags: Option<u8>,
    /// The connection state that it shall have; by default the one that it has.
    pub state: Option<State>,
}

/// Connection states, as `--ctstate` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It opens a connection.
    New,
    /// It belongs to one that has seen packets both ways.
    Established,
    /// It is an ICMP error about one.
    Related,
    /// It belongs to none, and cannot open one.
    Invalid,
    /// It is not tracked on purpose.
    Untracked,
}

/// What happens to a packet, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The steps.
    pub steps: Vec<Step>,
    /// How it ends.
    pub verdict: Verdict,
    /// Why, if it is dropped: a name of the drop statistics.
    pub reason: Option<&'static str>,
    /// The rule or chain policy that decided; `None` if none did.
    pub decided_by: Option<Decider>,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It is dropped.
    Drop,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// It comes in by an interface.
    Arrives {
        /// The interface.
        interface: String,
    },
    /// It is about to leave by an interface.
    Leaves {
        /// The interface.
        interface: String,
        /// Whether this host made it.
        made_here: bool,
    },
    /// Something that the question left open.
    Assumed {
        /// What is taken for granted.
        what: String,
    },
    /// Connection tracking labels it.
    Tracked {
        /// Its connection state.
        state: State,
        /// Whether it goes the way of its connection's first packet; `None` if it has none.
        original: Option<bool>,
        /// Whether its connection's source is translated.
        translated: bool,
        /// Whether its connection's destination is translated.
        redirected: bool,
    },
    /// Its destination is compared with the host's addresses.
    Destination {
        /// The destination.
        address: IpAddr,
        /// Whether it is this host's.
        local: bool,
    },
    /// A rule or a chain's policy counts it.
    Hit {
        /// The rule or the policy.
        #[serde(flatten)]
        rule: Decider,
        /// What the rule does.
        action: String,
    },
    /// One of its ends is rewritten.
    Translated {
        /// `source` or `destination`.
        end: &'static str,
        /// What it was.
        from: String,
        /// What it is.
        to: String,
    },
    /// Its connection is remembered.
    Remembered {
        /// Whether only until the other side answers, should room be short.
        embryo: bool,
    },
}

/// A rule, or a base chain's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decider {
    /// The IP version.
    pub family: Family,
    /// The table.
    pub table: TableName,
    /// The chain.
    pub chain: String,
    /// The rule as `iptables-save` prints it; `None` for the chain's policy.
    pub rule: Option<String>,
    /// File and line that it came from, if it did.
    pub place: Option<String>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The addresses do not go together.
    #[error("{0} and {1} are of different IP versions; a packet needs two addresses of one")]
    Families(IpAddr, IpAddr),
    /// Neither an input nor an output interface.
    #[error(
        "say where the packet is: --in for one that comes in, --out for one that this host sends, both for one that it forwards"
    )]
    NoInterface,
    /// The host has no such interface.
    #[error(
        "there is no interface `{0}` that the firewall could be on; `fwbpf status` lists those that there are"
    )]
    Interface(String),
    /// The packet is to be forwarded, but not said whereto.
    #[error(
        "{0} is not an address of this host, so the packet is to be forwarded: say by which interface it leaves, with --out"
    )]
    WayOut(IpAddr),
    /// A packet like this cannot be in the state asked for.
    #[error("such a packet cannot be {asked}: {why}")]
    State {
        /// The state asked for.
        asked: State,
        /// The reason.
        why: String,
    },
    /// The host side of the packet could not be built.
    #[error("such a packet cannot be built: {0}")]
    Build(String),
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
