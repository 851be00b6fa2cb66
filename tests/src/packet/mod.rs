//! Packets: built from typed parts, read back, and told in words.

mod build;
pub mod chunk;
mod describe;
mod layers;

pub use build::{Dressing, Packet, Payload, flags, frame};
pub use describe::{describe, flag_names};
pub use layers::{
    Layers, checksum_is_sound, checksum_is_unfinished, ones_complement, reassemble, sctp_sum,
};

/// IP protocol numbers that the tests speak of.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ESP.
    pub const ESP: u8 = 50;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// OSPF.
    pub const OSPF: u8 = 89;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
