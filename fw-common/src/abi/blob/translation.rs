//! What a rule of the nat table translates to.

use super::{Cell, pack_range};
use crate::abi::Addr;

/// The argument of DNAT, SNAT, REDIRECT and NETMAP, a cell of its own: netfilter's
/// `struct nf_nat_range2` (include/uapi/linux/netfilter/nf_nat.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TranslationFields {
    /// [`Translation::ADDRESSES`] and its siblings.
    pub flags: u32,
    /// The ports, inclusive.
    pub ports: (u16, u16),
    /// The port that becomes the first of `ports`.
    pub base_port: u16,
    /// The first address. NETMAP: the network.
    pub first: Addr,
    /// The last address. NETMAP: the mask.
    pub last: Addr,
}

impl TranslationFields {
    /// Writes the cell.
    pub fn encode(&self) -> Cell {
        let mut cell = Cell::default();
        cell.w[0] = self.flags;
        cell.w[1] = pack_range(self.ports);
        cell.w[2] = self.base_port as u32;
        cell.w[4..8].copy_from_slice(&self.first);
        cell.w[8..12].copy_from_slice(&self.last);
        cell
    }
}

/// View of a translation's cell.
#[derive(Clone, Copy)]
pub struct Translation<'a>(pub &'a Cell);

impl Translation<'_> {
    /// There are addresses; otherwise the address stays.
    pub const ADDRESSES: u32 = 1;
    /// There are ports; otherwise the port stays where it can.
    pub const PORTS: u32 = 1 << 1;
    /// The place in the range is the distance from [`TranslationFields::base_port`].
    pub const OFFSET: u32 = 1 << 2;
    /// The port is drawn, `--random` and `--random-fully`.
    pub const RANDOM: u32 = 1 << 3;
    /// A client gets one address for all destinations, `--persistent`.
    pub const PERSISTENT: u32 = 1 << 4;

    /// See [`TranslationFields::flags`].
    #[inline(always)]
    pub fn flags(&self) -> u32 {
        self.0.w[0]
    }
    /// The ports, packed.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        self.0.w[1]
    }
    /// See [`TranslationFields::base_port`].
    #[inline(always)]
    pub fn base_port(&self) -> u16 {
        self.0.w[2] as u16
    }
    /// See [`TranslationFields::first`].
    #[inline(always)]
    pub fn first(&self) -> Addr {
        let w = &self.0.w;
        [w[4], w[5], w[6], w[7]]
    }
    /// See [`TranslationFields::last`].
    #[inline(always)]
    pub fn last(&self) -> Addr {
        let w = &self.0.w;
        [w[8], w[9], w[10], w[11]]
    }
}
