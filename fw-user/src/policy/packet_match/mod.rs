//! Matches on what is in and about a packet besides addresses, ports and state.

mod address_type;
#[cfg(feature = "testing")]
pub(crate) mod arbitrary;
mod frag;
mod physdev;
mod print;
mod text;

pub use address_type::AddressType;
pub use frag::Frag;
pub use physdev::{Physdev, PortSide};
pub use text::{Algorithm, Text};

pub(crate) use print::{DCCP_TYPES, PACKET_TYPES, WEEKDAYS, day_of};

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ids::TableName;
use super::model::{Negatable, Ports};

/// One of these matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PacketMatch {
    /// `-f`, first of all matches. Datagrams are put together before rules see them: it never holds.
    Fragment {
        /// `! -f`.
        not: bool,
    },
    /// `-m iprange`.
    Range {
        /// `--src-range`, first and last.
        source: Option<Negatable<(IpAddr, IpAddr)>>,
        /// `--dst-range`.
        destination: Option<Negatable<(IpAddr, IpAddr)>>,
    },
    /// `-m mac --mac-source`.
    LinkSource(Negatable<[u8; 6]>),
    /// `-m length --length`, inclusive.
    Length(Negatable<(u16, u16)>),
    /// `-m ttl`, in IPv6 `-m hl`.
    Hops(Hops),
    /// `-m dscp --dscp`.
    Dscp(Negatable<u8>),
    /// `-m tos --tos`: value and mask.
    Tos(Negatable<(u8, u8)>),
    /// `-m ecn`.
    Ecn(Ecn),
    /// `-m pkttype --pkt-type`, as linux/if_packet.h counts.
    PacketType(Negatable<u8>),
    /// `-m mark --mark`: value and mask.
    Mark(Negatable<(u32, u32)>),
    /// `-m connmark --mark`: value and mask of the flow's mark.
    FlowMark(Negatable<(u32, u32)>),
    /// `-m rt`.
    Routing(Routing),
    /// `-m cpu --cpu`.
    Cpu(Negatable<u32>),
    /// `-m addrtype`.
    AddressType(AddressType),
    /// `-m owner`.
    Owner(Owner),
    /// `-m string`.
    Text(Text),
    /// `-m frag`.
    Frag(Frag),
    /// `-m physdev`.
    Physdev(Physdev),
    /// `-m policy --pol none`: IPsec has had nothing to do with the packet.
    WithoutIpsec {
        /// `--dir out`, not `in`.
        out: bool,
    },
    /// `-m rpfilter`: answers would leave by the interface that the packet came in by.
    ReversePath {
        /// `--loose`: by any interface.
        loose: bool,
        /// `--invert`.
        invert: bool,
    },
    /// `-m statistic`.
    Statistic(Negatable<Statistic>),
    /// `-m time`.
    Time(Time),
    /// `-m tcpmss --mss`, inclusive.
    Segment(Negatable<(u16, u16)>),
    /// `-m esp --espspi`, inclusive.
    Esp(Option<Negatable<(u32, u32)>>),
    /// `-m ah --ahspi`, inclusive.
    Ah(Option<Negatable<(u32, u32)>>),
    /// `-m sctp`.
    Sctp(Ports),
    /// `-m dccp`: ports, and `--dccp-types` with a bit for each.
    Dccp(Ports, Option<Negatable<u16>>),
}

/// `-m ttl`, `-m hl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hops {
    /// `--ttl-eq`.
    Equal(Negatable<u8>),
    /// `--ttl-lt`.
    Less(u8),
    /// `--ttl-gt`.
    Greater(u8),
}

/// `-m ecn`; at least one part is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ecn {
    /// `--ecn-tcp-ece`; true for `!`.
    pub echo: Option<bool>,
    /// `--ecn-tcp-cwr`; true for `!`.
    pub reduced: Option<bool>,
    /// `--ecn-ip-ect`.
    pub transport: Option<Negatable<u8>>,
}

/// `-m owner`; at least one part is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// `--socket-exists`; true for `!`.
    pub socket: Option<bool>,
    /// `--uid-owner`, inclusive.
    pub user: Option<Negatable<(u32, u32)>>,
    /// `--gid-owner`, inclusive.
    pub group: Option<Negatable<(u32, u32)>>,
}

/// `-m rt`: of IPv6's routing header, whatever is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// `--rt-type`.
    pub kind: Option<Negatable<u8>>,
    /// `--rt-segsleft`, inclusive.
    pub left: Option<Negatable<(u32, u32)>>,
    /// `--rt-len`, in bytes.
    pub length: Option<Negatable<u32>>,
}

/// `-m statistic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistic {
    /// `--mode random --probability`, in parts of 2^31.
    Random(u32),
    /// `--mode nth`.
    Nth {
        /// `--every`, from 1.
        every: u32,
        /// `--packet`, less than `every`.
        packet: u32,
    },
}

/// `-m time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// `--datestart`, `--datestop`: seconds since 1970.
    pub dates: (u32, u32),
    /// `--timestart`, `--timestop`: seconds since midnight.
    pub daytime: (u32, u32),
    /// `--weekdays`: bit 1 is Monday.
    pub weekdays: u8,
    /// `--monthdays`: bit 1 is the first.
    pub monthdays: u32,
    /// `--kerneltz`.
    pub kernel_zone: bool,
    /// `--contiguous`.
    pub contiguous: bool,
}

impl Time {
    /// The last date of a rule that names none (`time_init`, extensions/libxt_time.c).
    pub const LAST_DATE: u32 = i32::MAX as u32;
    /// The last second of a day.
    pub const LAST_SECOND: u32 = 24 * 60 * 60 - 1;
    /// Every day of the week.
    pub const WEEKDAYS: u8 = 0xfe;
    /// Every day of the month.
    pub const MONTHDAYS: u32 = 0xffff_fffe;
}

impl Default for Time {
    fn default() -> Self {
        Self {
            dates: (0, Self::LAST_DATE),
            daytime: (0, Self::LAST_SECOND),
            weekdays: Self::WEEKDAYS,
            monthdays: Self::MONTHDAYS,
            kernel_zone: false,
            contiguous: false,
        }
    }
}

impl PacketMatch {
    /// The match's name, for either IP version.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fragment { .. } => "-f",
            Self::Range { .. } => "iprange",
            Self::LinkSource(_) => "mac",
            Self::Length(_) => "length",
            Self::Hops(_) => "ttl",
            Self::Dscp(_) => "dscp",
            Self::Tos(_) => "tos",
            Self::Ecn(_) => "ecn",
            Self::PacketType(_) => "pkttype",
            Self::Mark(_) => "mark",
            Self::FlowMark(_) => "connmark",
            Self::Routing(_) => "rt",
            Self::Cpu(_) => "cpu",
            Self::AddressType(_) => "addrtype",
            Self::Owner(_) => "owner",
            Self::Text(_) => "string",
            Self::Frag(_) => "frag",
            Self::Physdev(_) => "physdev",
            Self::WithoutIpsec { .. } => "policy",
            Self::ReversePath { .. } => "rpfilter",
            Self::Statistic(_) => "statistic",
            Self::Time(_) => "time",
            Self::Segment(_) => "tcpmss",
            Self::Esp(_) => "esp",
            Self::Ah(_) => "ah",
            Self::Sctp(_) => "sctp",
            Self::Dccp(..) => "dccp",
        }
    }

    /// Whether a table may have it (`rpfilter_check`, net/ipv4/netfilter/ipt_rpfilter.c).
    pub(crate) fn may_be_in(&self, table: TableName) -> bool {
        !matches!(self, Self::ReversePath { .. })
            || matches!(table, TableName::Raw | TableName::Mangle)
    }

    /// The hooks from which a rule with it may be reached, if not all (the `hooks` of `mac_mt_reg`
    /// and `owner_mt_reg`, net/netfilter/xt_mac.c and xt_owner.c; `physdev_mt_check`; `policy_mt_check`).
    pub(crate) fn hooks(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::LinkSource(_) => Some(&["PREROUTING", "INPUT", "FORWARD"]),
            Self::ReversePath { .. } => Some(&["PREROUTING"]),
            Self::Owner(_) => Some(&["OUTPUT", "POSTROUTING"]),
            Self::WithoutIpsec { out: false } => Some(&["PREROUTING", "INPUT", "FORWARD"]),
            Self::WithoutIpsec { out: true } => Some(&["FORWARD", "OUTPUT", "POSTROUTING"]),
            Self::Physdev(physdev) if !physdev.may_be_in_output() => {
                Some(&["PREROUTING", "INPUT", "FORWARD", "POSTROUTING"])
            }
            _ => None,
        }
    }
}
