//! Connection states as bits, as a rule's `--ctstate` mask and a packet's label use them.

/// The first packets of a flow.
pub const NEW: u8 = 1;
/// A flow that has seen packets both ways.
pub const ESTABLISHED: u8 = 1 << 1;
/// An ICMP error about a known flow.
pub const RELATED: u8 = 1 << 2;
/// No flow, and the packet cannot open one.
pub const INVALID: u8 = 1 << 3;
/// Not tracked on purpose.
pub const UNTRACKED: u8 = 1 << 4;
/// Virtual: the flow's source is translated.
pub const SNAT: u8 = 1 << 5;
/// Virtual: the flow's destination is translated.
pub const DNAT: u8 = 1 << 6;
/// In place of [`SNAT`], and for no rule to see: an echo's identifier was changed together with its
/// destination ([`super::flow::Flow::RENAMED`]).
pub const RENAMED: u8 = 1 << 7;

/// What rules ask about a packet's connection, by number: its protocol, the ports of its tuples in the
/// order of [`end`], its status and for how many seconds it lives on.
pub mod asked {
    /// Protocol number.
    pub const PROTOCOL: u32 = 0;
    /// The first of four ports, in the order of [`super::end`].
    pub const PORTS: u32 = 1;
    /// Bits of [`super::status`].
    pub const STATUS: u32 = 5;
    /// Seconds until the connection ends.
    pub const EXPIRES: u32 = 6;
    /// How many places there are.
    pub const COUNT: usize = 8;
}

/// Ends of a connection's two tuples.
pub mod end {
    /// Who opened it.
    pub const ORIGINAL_SOURCE: usize = 0;
    /// To whom, as the opener has it.
    pub const ORIGINAL_DESTINATION: usize = 1;
    /// Who answers.
    pub const REPLY_SOURCE: usize = 2;
    /// To whom, as the answerer has it.
    pub const REPLY_DESTINATION: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// What has become of a connection; the bits are those of `enum ip_conntrack_status`
/// (linux/netfilter/nf_conntrack_common.h).
pub mod status {
    /// A helper expected it: never here.
    pub const EXPECTED: u8 = 1;
    /// A packet came back.
    pub const SEEN_REPLY: u8 = 1 << 1;
    /// It is worth keeping.
    pub const ASSURED: u8 = 1 << 2;
    /// Its first packet has passed all hooks.
    pub const CONFIRMED: u8 = 1 << 3;
}
