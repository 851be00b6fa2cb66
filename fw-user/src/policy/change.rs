//! Targets that change a packet or how it is tracked, and let it go on.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::model::{Family, Match, Negatable, Tcp};

/// One of these targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// `-j MARK --set-xmark`: the bits of the mask are zeroed, then those of the value flipped.
    Mark {
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// `-j DSCP --set-dscp`.
    Dscp(u8),
    /// `-j TOS --set-tos`, as [`Change::Mark`].
    Tos {
        /// The value.
        value: u8,
        /// The mask.
        mask: u8,
    },
    /// `-j TTL`, in IPv6 `-j HL`.
    Hops(HopChange),
    /// `-j CONNMARK`.
    FlowMark {
        /// What is written where.
        mark: FlowMark,
        /// `--left-shift-mark` or `--right-shift-mark`.
        shift: Option<MarkShift>,
    },
    /// `-j TCPMSS`.
    SegmentSize(SegmentSize),
    /// `-j CHECKSUM --checksum-fill`.
    FillSum,
    /// `-j NOTRACK`, or `-j CT --notrack`.
    NoTrack {
        /// Written as CT.
        as_ct: bool,
    },
    /// `-j CT --zone`, or CT without a word, which says zone 0.
    Zone(u16),
}

/// `-j TCPMSS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SegmentSize {
    /// `--set-mss`.
    Most(u16),
    /// `--clamp-mss-to-pmtu`.
    Path,
}

/// `-j CONNMARK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowMark {
    /// `--set-xmark`: as [`Change::Mark`].
    Set {
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// `--save-mark`: the flow's mark becomes the packet's.
    Save {
        /// `--nfmask`.
        packet: u32,
        /// `--ctmask`.
        flow: u32,
    },
    /// `--restore-mark`: the packet's mark becomes the flow's.
    Restore {
        /// `--nfmask`.
        packet: u32,
        /// `--ctmask`.
        flow: u32,
    },
}

/// By how many bits CONNMARK shifts what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkShift {
    /// To the right.
    pub right: bool,
    /// From 1 to 31.
    pub bits: u8,
}

/// `-j TTL`, `-j HL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HopChange {
    /// `--ttl-set`.
    Set(u8),
    /// `--ttl-dec`; at least 1.
    Less(u8),
    /// `--ttl-inc`; at least 1.
    More(u8),
}

impl Change {
    /// The hooks from which a rule with it may be reached, if not all: only behind them a packet has its
    /// way (`tcpmss_tg4_check`, net/netfilter/xt_TCPMSS.c).
    pub(crate) fn hooks(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::SegmentSize(SegmentSize::Path) => Some(&["FORWARD", "OUTPUT", "POSTROUTING"]),
            _ => None,
        }
    }

    /// The words of the target, `-j` included, as iptables-save 1.8.9 writes them.
    pub(crate) fn text(&self, family: Family) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, family);
        text
    }

    fn write(&self, f: &mut String, family: Family) -> fmt::Result {
        match self {
            Self::Mark { value, mask } => write!(f, "-j MARK --set-xmark 0x{value:x}/0x{mask:x}"),
            Self::Dscp(value) => write!(f, "-j DSCP --set-dscp 0x{value:02x}"),
            Self::Tos { value, mask } => {
                write!(f, "-j TOS --set-tos 0x{value:02x}/0x{mask:02x}")
            }
            Self::Hops(change) => {
                let (target, option) = match family {
                    Family::Ipv4 => ("TTL", "ttl"),
                    Family::Ipv6 => ("HL", "hl"),
                };
                let (how, value) = match change {
                    HopChange::Set(value) => ("set", value),
                    HopChange::Less(value) => ("dec", value),
                    HopChange::More(value) => ("inc", value),
                };
                write!(f, "-j {target} --{option}-{how} {value}")
            }
            Self::FlowMark { mark, shift } => {
                f.write_str("-j CONNMARK ")?;
                match mark {
                    FlowMark::Set { value, mask } => {
                        write!(f, "--set-xmark 0x{value:x}/0x{mask:x}")?;
                    }
                    FlowMark::Save { packet, flow } => {
                        write!(f, "--save-mark --nfmask 0x{packet:x} --ctmask 0x{flow:x}")?;
                    }
                    FlowMark::Restore { packet, flow } => {
                        write!(
                            f,
                            "--restore-mark --nfmask 0x{packet:x} --ctmask 0x{flow:x}"
                        )?;
                    }
                }
                match shift {
                    Some(MarkShift { right: true, bits }) => {
                        write!(f, " --right-shift-mark {bits}")
                    }
                    Some(MarkShift { right: false, bits }) => {
                        write!(f, " --left-shift-mark {bits}")
                    }
                    None => Ok(()),
                }
            }
            Self::SegmentSize(SegmentSize::Most(size)) => {
                write!(f, "-j TCPMSS --set-mss {size}")
            }
            Self::SegmentSize(SegmentSize::Path) => f.write_str("-j TCPMSS --clamp-mss-to-pmtu"),
            Self::FillSum => f.write_str("-j CHECKSUM --checksum-fill"),
            Self::NoTrack { as_ct: true } => f.write_str("-j CT --notrack"),
            Self::NoTrack { as_ct: false } => f.write_str("-j NOTRACK"),
            Self::Zone(0) => f.write_str("-j CT"),
            Self::Zone(zone) => write!(f, "-j CT --zone {zone}"),
        }
    }
}

/// Whether one of the matches asks for a segment with SYN.
pub(crate) fn asks_for_syn(matches: &[Match]) -> bool {
    const SYN: u8 = 2;
    matches.iter().any(|each| match each {
        Match::Tcp(Tcp {
            flags: Some(Negatable { not: false, value }),
            ..
        }) => value.set & SYN != 0,
        _ => false,
    })
}
