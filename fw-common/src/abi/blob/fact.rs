//! What rules ask about a packet besides its headers' addresses, ports and protocol: places in
//! `datapath::facts::Facts::values`.

/// Bytes of layer 3.
pub const LENGTH: u32 = 0;
/// Type of service, traffic class.
pub const TOS: u32 = 1;
/// Time to live, hop limit.
pub const HOPS: u32 = 2;
/// The skb's mark.
pub const MARK: u32 = 3;
/// `PACKET_HOST` and its siblings of linux/if_packet.h.
pub const PACKET_TYPE: u32 = 4;
/// The CPU that the hook runs on.
pub const CPU: u32 = 5;
/// The user whose socket sends.
pub const USER: u32 = 6;
/// 1 if a socket sends.
pub const SOCKET: u32 = 7;
/// The security parameters index of ESP or AH.
pub const SPI: u32 = 8;
/// The maximum segment size that TCP's options announce.
pub const SEGMENT: u32 = 9;
/// 1 << the type of a DCCP packet.
pub const DCCP: u32 = 10;
/// The flow's mark.
pub const FLOW_MARK: u32 = 11;
/// IPv6's routing header: type, segments left, and length, a byte each from the lowest.
pub const ROUTING: u32 = 12;
/// The group whose socket sends.
pub const GROUP: u32 = 13;
/// A bit for each [`address_kind`](crate::abi::device::address_kind) that the source is of.
pub const SOURCE_KIND: u32 = 14;
/// The same for the destination.
pub const DESTINATION_KIND: u32 = 15;
/// [`PATH_STRICT`] and [`PATH_LOOSE`], if answers would find their way.
pub const REVERSE_PATH: u32 = 16;
/// How many places there are.
pub const COUNT: usize = 32;

/// Answers would leave by the interface that the packet came in by.
pub const PATH_STRICT: u32 = 1;
/// Answers would leave by some interface.
pub const PATH_LOOSE: u32 = 2;

/// Whether the fact is in the transport header, or of the whole datagram: a later fragment is
/// then answered as its first one was.
#[inline(always)]
pub const fn is_of_datagram(number: u32) -> bool {
    number == LENGTH || number == SPI || number == SEGMENT || number == DCCP
}
