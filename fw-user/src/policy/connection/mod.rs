//! What `-m conntrack` asks of a packet's connection besides its state and the packet's direction.

#[cfg(feature = "testing")]
pub(crate) mod arbitrary;

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use fw_common::abi::ct::status;
use serde::{Deserialize, Serialize};

use crate::policy::model::{Negatable, PortRange, Prefix};

/// The connection's tuples, status and age; at least one part is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// `--ctproto`; never 0.
    pub protocol: Option<Negatable<u8>>,
    /// `--ctorigsrc` and its siblings, in the order of [`Connection::ENDS`]. The addresses are as they
    /// are written, under their masks or not: iptables prints them so.
    pub addresses: [Option<Negatable<Prefix>>; 4],
    /// `--ctorigsrcport` and its siblings.
    pub ports: [Option<Negatable<PortRange>>; 4],
    /// `--ctstatus`: a bit for each of [`Connection::STATUSES`]; none for NONE.
    pub status: Option<Negatable<u8>>,
    /// `--ctexpire`: seconds, inclusive.
    pub expires: Option<Negatable<(u32, u32)>>,
}

impl Connection {
    /// What the options of the ends are called, in the order of `fw_common::abi::ct::end`.
    pub const ENDS: [&str; 4] = ["ctorigsrc", "ctorigdst", "ctreplsrc", "ctrepldst"];

    /// The statuses, in the order in which iptables-save prints them.
    pub const STATUSES: [(u8, &str); 4] = [
        (status::EXPECTED, "EXPECTED"),
        (status::SEEN_REPLY, "SEEN_REPLY"),
        (status::ASSURED, "ASSURED"),
        (status::CONFIRMED, "CONFIRMED"),
    ];

    /// The options as iptables-save prints them (`conntrack_dump`, extensions/libxt_conntrack.c).
    pub(crate) fn text(&self) -> String {
        let mut words = Vec::new();
        let mut push = |not: bool, option: &str, value: String| {
            let bang = if not { "! " } else { "" };
            words.push(format!("{bang}--{option} {value}"));
        };
        if let Some(Negatable { not, value }) = self.protocol {
            push(not, "ctproto", value.to_string());
        }
        for (name, address) in Self::ENDS.iter().zip(self.addresses) {
            if let Some(Negatable { not, value }) = address {
                push(not, name, Host(value).to_string());
            }
        }
        for (name, ports) in Self::ENDS.iter().zip(self.ports) {
            if let Some(Negatable { not, value }) = ports {
                push(not, &format!("{name}port"), value.to_string());
            }
        }
        if let Some(Negatable { not, value }) = self.status {
            let named = Self::STATUSES.iter().filter(|(bit, _)| value & bit != 0);
            let named: Vec<_> = named.map(|(_, name)| *name).collect();
            let list = match named.is_empty() {
                true => "NONE".to_owned(),
                false => named.join(","),
            };
            push(not, "ctstatus", list);
        }
        if let Some(Negatable {
            not,
            value: (first, last),
        }) = self.expires
        {
            let mut range = first.to_string();
            if first != last {
                // Writing to a String cannot fail.
                let _ = write!(range, ":{last}");
            }
            push(not, "ctexpire", range);
        }
        words.join(" ")
    }
}

/// An address without the mask if that leaves nothing out.
struct Host(Prefix);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let whole = match self.0.mask {
            IpAddr::V4(mask) => mask.to_bits() == u32::MAX,
            IpAddr::V6(mask) => mask.to_bits() == u128::MAX,
        };
        match text.split_once('/') {
            Some((address, _)) if whole => f.write_str(address),
            _ => f.write_str(&text),
        }
    }
}
