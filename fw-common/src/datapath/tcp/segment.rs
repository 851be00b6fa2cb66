//! The part of a TCP header that tracking needs.

use super::{next_state, state};
use crate::abi::blob::HeaderFields;

/// TCP header flags (RFC 9293 3.1).
pub mod flag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// URG.
    pub const URG: u8 = 0x20;
    /// ECE and CWR.
    pub const ECN: u8 = 0xc0;
}

/// What a segment is, for the state machine.
pub(in crate::datapath) mod kind {
    pub const SYN: u8 = 0;
    pub const SYN_ACK: u8 = 1;
    pub const FIN: u8 = 2;
    pub const ACK: u8 = 3;
    pub const RST: u8 = 4;
    pub const NONE: u8 = 5;
}

/// The part of a segment that tracking needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Sequence number after the segment: data, SYN and FIN counted.
    pub end: u32,
    /// Window, unscaled.
    pub window: u16,
    /// Header flags.
    pub flags: u8,
    /// Length of the header, in words of four bytes.
    pub words: u8,
    /// The highest sequence number that a selective acknowledgement covers; [`Segment::ack`] if there
    /// is none, or the options were not read.
    pub sack: u32,
    /// [`option`](crate::datapath::window::option) of the options that were read.
    pub options: u8,
    /// The window scale option's value.
    pub scale: u8,
    /// A selective acknowledgement was read.
    pub sacked: bool,
    /// Zero.
    pub reserved: u8,
    /// [`HeaderFields::features`], which has the settings of TCP tracking.
    pub settings: u32,
}

impl Segment {
    /// From a header's first 20 bytes and the length of header and data together.
    #[inline(always)]
    pub fn new<const N: usize>(bytes: &[u8; N], at: usize, length: u32, settings: u32) -> Self {
        let header = &bytes[at..];
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let flags = header[13];
        let data = length.wrapping_sub((header[12] >> 4) as u32 * 4);
        let phantom = (flags & flag::SYN != 0) as u32 + (flags & flag::FIN != 0) as u32;
        Self {
            seq: word(4),
            ack: word(8),
            end: word(4).wrapping_add(data).wrapping_add(phantom),
            window: u16::from_be_bytes([header[14], header[15]]),
            flags,
            words: header[12] >> 4,
            sack: word(8),
            options: 0,
            scale: 0,
            sacked: false,
            reserved: 0,
            settings,
        }
    }

    /// A segment of which only the flags are known.
    #[inline(always)]
    pub fn of_flags(flags: u8, settings: u32) -> Self {
        Self {
            flags,
            settings,
            ..Self::default()
        }
    }

    /// One of [`kind`].
    #[inline(always)]
    pub(super) fn kind(&self) -> u8 {
        if self.flags & flag::RST != 0 {
            kind::RST
        } else if self.flags & flag::SYN != 0 {
            if self.flags & flag::ACK != 0 {
                kind::SYN_ACK
            } else {
                kind::SYN
            }
        } else if self.flags & flag::FIN != 0 {
            kind::FIN
        } else if self.flags & flag::ACK != 0 {
            kind::ACK
        } else {
            kind::NONE
        }
    }

    /// Whether the segment can open a flow: a SYN, or an acknowledgement by which a connection is
    /// picked up in the middle, unless that is switched off (`tcp_new`).
    #[inline(always)]
    pub fn opens(&self) -> bool {
        match next_state(false, self.kind(), state::NONE) {
            state::SYN_SENT => true,
            state::ESTABLISHED => self.settings & HeaderFields::TCP_NOT_LOOSE == 0,
            _ => false,
        }
    }

    /// Whether it opens a connection whose opening it is, and not one that is picked up in the middle.
    #[inline(always)]
    pub fn opens_anew(&self) -> bool {
        self.kind() == kind::SYN
    }

    /// Whether the flags make sense together. ECN bits and PSH go with anything.
    #[inline(always)]
    pub fn flags_are_valid(&self) -> bool {
        let flags = self.flags & !(flag::ECN | flag::PSH);
        let without_urgent = flags & !flag::URG;
        match without_urgent {
            flag::SYN | flag::ACK => true,
            // FIN alone is not valid: every segment after the handshake acknowledges.
            0x11 => true,
            flag::RST | 0x12 | 0x14 => flags == without_urgent,
            _ => false,
        }
    }
}
