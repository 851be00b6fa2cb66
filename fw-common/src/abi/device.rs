//! Interfaces and local addresses.

use super::pod::pod;
use super::{Addr, Family};

/// What the programs know of one interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The interface patterns of the policy that this interface's name fits, one word for each
    /// parity of the generation number: the idle word is written before the flip. Bit 0 is always
    /// set: it stands for "any interface".
    pub patterns: [u64; 2],
    /// The address that MASQUERADE uses for IPv4, or zero: the primary address of the interface
    /// (`inet_select_addr` in the kernel's net/ipv4/devinet.c).
    pub masquerade4: u32,
    /// The same for IPv6, or zero.
    pub masquerade6: Addr,
    /// Bytes before the network header: 14 on Ethernet and loopback, 0 on tun and ppp.
    pub l2_len: u32,
    /// [`Device::LOOPBACK`] and its siblings.
    pub flags: u32,
    /// The interface's link-layer address, or zeros.
    pub link: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// Of a port whose frames the firewall judges: the index of its bridge, whose all else is. 0 in all others.
    pub master: u32,
    /// The first of the interface's own IPv4 addresses, or zeros.
    pub own4: [u32; 2],
    /// The first of the interface's own IPv6 addresses, or zeros.
    pub own6: [Addr; 2],
}

impl Device {
    /// The record is in use, in the array.
    pub const PRESENT: u32 = 1 << 1;

    /// Whether an address is one of those that the record has: most packets for this host go to
    /// one, and need not be looked up in `LOCAL`.
    #[inline(always)]
    pub fn owns(&self, family: Family, address: &Addr) -> bool {
        let [a, b, c, d] = *address;
        if family as u8 == Family::V4 as u8 {
            return a != 0 && (a == self.own4[0] || a == self.own4[1]);
        }
        let own = &self.own6;
        let differs = |own: &Addr| (own[0] ^ a) | (own[1] ^ b) | (own[2] ^ c) | (own[3] ^ d);
        a | b | c | d != 0 && (differs(&own[0]) == 0 || differs(&own[1]) == 0)
    }

    /// The fast path may take packets from the interface to another that has this flag, at tc.
    pub const FAST: u32 = 1 << 2;

    /// The same at XDP.
    pub const FAST_XDP: u32 = 1 << 3;

    /// The loopback interface: what is sent on it comes in again.
    pub const LOOPBACK: u32 = 1;

    /// A bridge, of which some port has [`Device::PORT4`] or [`Device::PORT6`].
    pub const BRIDGE: u32 = 1 << 4;

    /// A port of a bridge that hands frames with IPv4 packets to iptables, though it only switches them.
    pub const PORT4: u32 = 1 << 5;

    /// The same for IPv6. The bit behind [`Device::PORT4`], as the families are numbered.
    pub const PORT6: u32 = 1 << 6;

    /// A port out of which its bridge sends what came in by it, too (`hairpin_mode`).
    pub const HAIRPIN: u32 = 1 << 7;

    /// Whether it is a port that either may be asked about.
    #[inline(always)]
    pub fn is_port(&self) -> bool {
        self.flags & (Self::PORT4 | Self::PORT6) != 0
    }
}

/// Kinds of addresses, numbered as linux/rtnetlink.h numbers those of routes. The values of the `LOCAL`
/// trie are those of the kernel's table of local addresses.
pub mod address_kind {
    /// IPv6's unspecified address.
    pub const UNSPECIFIED: u32 = 0;
    /// Any other host's.
    pub const UNICAST: u32 = 1;
    /// This host's.
    pub const LOCAL: u32 = 2;
    /// A broadcast address.
    pub const BROADCAST: u32 = 3;
    /// An anycast address that this host answers for.
    pub const ANYCAST: u32 = 4;
    /// A multicast group.
    pub const MULTICAST: u32 = 5;

    /// A value in `LOCAL` has the kind in so many low bits, and above the index of the interface that the
    /// address is on.
    pub const BITS: u32 = 8;
    /// Those bits.
    pub const MASK: u32 = (1 << BITS) - 1;
}

/// Key of the `LOCAL` trie. IPv4 addresses are stored as `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalKey {
    /// Prefix length in bits, of the 128.
    pub prefix_len: u32,
    /// The address, network byte order.
    pub address: [u8; 16],
}

pod! {
    Device { size: 96, fields: [[u64; 2], u32, Addr, u32, u32, [u8; 6], [u8; 2], u32, [u32; 2], [Addr; 2]] }
    LocalKey { size: 20, fields: [u32, [u8; 16]] }
}
