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
