//! Names of protocols, as IANA assigns them and as iptables spells them on Debian 12.
//!
//! Built in rather than read from `/etc/protocols`: a policy must mean the same on every machine.

use super::model::Family;

mod icmp;
mod services;

pub(crate) use icmp::ANY_V4;
pub use icmp::{Named, icmp_names, icmp_type, icmp_type_name, named_icmp_type};
pub use services::{service_names, service_port};

/// ICMP's protocol number (RFC 792).
pub const ICMP: u8 = 1;
/// TCP's protocol number (RFC 9293).
pub const TCP: u8 = 6;
/// UDP's protocol number (RFC 768).
pub const UDP: u8 = 17;
/// DCCP's protocol number (RFC 4340).
pub const DCCP: u8 = 33;
/// ESP's protocol number (RFC 4303).
pub const ESP: u8 = 50;
/// AH's protocol number (RFC 4302).
pub const AH: u8 = 51;
/// ICMPv6's protocol number (RFC 4443).
pub const ICMPV6: u8 = 58;
/// SCTP's protocol number (RFC 9260).
pub const SCTP: u8 = 132;
/// UDP-Lite's protocol number (RFC 3828).
pub const UDPLITE: u8 = 136;

/// Numbers and the names that iptables-save prints for them; `iptables_prints_these_names`
/// in tests/policy_iptables.rs compares the table with the real program.
#[rustfmt::skip]
const PROTOCOLS: &[(u8, &str)] = &[
    (1, "icmp"), (2, "igmp"), (3, "ggp"), (4, "ipencap"), (5, "st"), (6, "tcp"), (8, "egp"),
    (9, "igp"), (12, "pup"), (17, "udp"), (20, "hmp"), (22, "xns-idp"), (27, "rdp"),
    (29, "iso-tp4"), (33, "dccp"), (36, "xtp"), (37, "ddp"), (38, "idpr-cmtp"), (41, "ipv6"),
    (43, "ipv6-route"), (44, "ipv6-frag"), (45, "idrp"), (46, "rsvp"), (47, "gre"), (50, "esp"),
    (51, "ah"), (57, "skip"), (58, "ipv6-icmp"), (59, "ipv6-nonxt"), (60, "ipv6-opts"),
    (73, "rspf"), (81, "vmtp"), (88, "eigrp"), (89, "ospf"), (93, "ax.25"), (94, "ipip"),
    (97, "etherip"), (98, "encap"), (103, "pim"), (108, "ipcomp"), (112, "vrrp"), (115, "l2tp"),
    (124, "isis"), (132, "sctp"), (133, "fc"), (135, "mobility-header"), (136, "udplite"),
    (137, "mpls-in-ip"), (138, "manet"), (139, "hip"), (140, "shim6"), (141, "wesp"),
    (142, "rohc"), (143, "ethernet"),
];

/// Further names that are taken for a protocol but never printed.
const PROTOCOL_ALIASES: &[(u8, &str)] = &[
    (0, "ip"),
    (0, "hopopt"),
    (58, "icmpv6"),
    (135, "ipv6-mh"),
    (135, "mh"),
];

/// The name that iptables-save prints for a protocol; `None` where it prints the number.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    let row = PROTOCOLS.iter().find(|(known, _)| *known == number)?;
    Some(row.1)
}

/// The number of a protocol's (lower-case) name.
pub fn protocol_number(name: &str) -> Option<u8> {
    let mut rows = PROTOCOLS.iter().chain(PROTOCOL_ALIASES);
    rows.find(|(_, known)| *known == name).map(|row| row.0)
}

/// All names of protocols, for suggestions.
pub fn protocol_names() -> impl Iterator<Item = &'static str> {
    PROTOCOLS.iter().chain(PROTOCOL_ALIASES).map(|row| row.1)
}

impl Family {
    /// `ipv4` or `ipv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// `IPv4` or `IPv6`, for sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// The other IP version.
    pub fn other(self) -> Self {
        match self {
            Self::Ipv4 => Self::Ipv6,
            Self::Ipv6 => Self::Ipv4,
        }
    }

    /// The protocol number of this IP version's ICMP.
    pub fn icmp(self) -> u8 {
        match self {
            Self::Ipv4 => ICMP,
            Self::Ipv6 => ICMPV6,
        }
    }
}
