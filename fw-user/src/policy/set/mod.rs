//! Sets of addresses and ports, as ipset has them: what they are, how their elements are written,
//! and `ipset save`'s files.

mod element;
mod file;

use std::sync::Arc;

use fw_common::abi::set::SetKey;
use serde::{Deserialize, Serialize};

use super::model::{Family, Origin, Policy};

pub use element::{BadElement, parse_element, print_element};
pub use file::MOST_SECONDS;
pub(crate) use file::{is_set_file, read};

/// A set, and what is in it if a file said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDefinition {
    /// The name that rules know it by.
    pub name: String,
    /// Its type.
    pub kind: SetKind,
    /// The IP version of its addresses. Sets of ports alone have none in ipset, and IPv4 here.
    pub family: Family,
    /// Bits of an address that count, of the types that may say so.
    pub netmask: Option<u8>,
    /// Seconds that elements stay which name no time of their own, 0 for ever; nothing if elements
    /// have no times.
    pub timeout: Option<u32>,
    /// How many elements it may have.
    pub capacity: u32,
    /// The first and last address or port of a bitmap.
    pub range: Option<(u32, u32)>,
    /// Its place among the kernel's maps. Whoever loads the policy chooses it.
    pub place: u32,
    /// The line that makes it.
    pub origin: Origin,
    /// Its elements; nothing for a set that is in the kernel already and stays as it is. They are
    /// no part of what a running policy says of itself: they may change any moment.
    #[serde(skip)]
    pub elements: Option<Arc<Vec<SetElement>>>,
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetElement {
    /// What it contains.
    pub key: SetKey,
    /// Seconds that it stays, 0 for ever; nothing for the set's own time.
    pub timeout: Option<u32>,
    /// What it contains is not in the set, though a shorter prefix may contain it too.
    pub nomatch: bool,
}

/// The types of sets, named as in ipset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SetKind {
    /// `hash:ip`.
    HashIp,
    /// `hash:net`.
    HashNet,
    /// `hash:ip,port`.
    HashIpPort,
    /// `hash:net,port`.
    HashNetPort,
    /// `hash:ip,port,ip`.
    HashIpPortIp,
    /// `hash:ip,port,net`.
    HashIpPortNet,
    /// `hash:net,net`.
    HashNetNet,
    /// `bitmap:ip`.
    BitmapIp,
    /// `bitmap:port`.
    BitmapPort,
}

/// An address in an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One address.
    Address,
    /// A prefix.
    Prefix,
}

/// What an element is made of, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The first address.
    pub first: Option<Part>,
    /// Whether there is a port.
    pub port: bool,
    /// The second address.
    pub second: Option<Part>,
}

impl SetKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::HashIp,
        Self::HashNet,
        Self::HashIpPort,
        Self::HashNetPort,
        Self::HashIpPortIp,
        Self::HashIpPortNet,
        Self::HashNetNet,
        Self::BitmapIp,
        Self::BitmapPort,
    ];

    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashNet => "hash:net",
            Self::HashIpPort => "hash:ip,port",
            Self::HashNetPort => "hash:net,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::HashNetNet => "hash:net,net",
            Self::BitmapIp => "bitmap:ip",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// What elements are made of.
    pub const fn shape(self) -> Shape {
        use Part::{Address, Prefix};
        let (first, port, second) = match self {
            Self::HashIp | Self::BitmapIp => (Some(Address), false, None),
            Self::HashNet => (Some(Prefix), false, None),
            Self::HashIpPort => (Some(Address), true, None),
            Self::HashNetPort => (Some(Prefix), true, None),
            Self::HashIpPortIp => (Some(Address), true, Some(Address)),
            Self::HashIpPortNet => (Some(Address), true, Some(Prefix)),
            Self::HashNetNet => (Some(Prefix), false, Some(Prefix)),
            Self::BitmapPort => (None, true, None),
        };
        Shape {
            first,
            port,
            second,
        }
    }

    /// How many of `src` and `dst` a rule names at least, for the set to be asked.
    pub const fn dimension(self) -> usize {
        let Shape {
            first,
            port,
            second,
        } = self.shape();
        first.is_some() as usize + port as usize + second.is_some() as usize
    }

    /// Whether it is one of the types that are given a range.
    pub const fn is_bitmap(self) -> bool {
        matches!(self, Self::BitmapIp | Self::BitmapPort)
    }

    /// Whether elements may say `nomatch` (`IPSET_TYPE_NOMATCH`).
    pub const fn has_nomatch(self) -> bool {
        matches!(
            self,
            Self::HashNet | Self::HashNetPort | Self::HashIpPortNet | Self::HashNetNet
        )
    }
}

impl SetDefinition {
    /// A set of which only the name is known: one that any rule may ask.
    pub fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: SetKind::BitmapPort,
            family: Family::Ipv4,
            netmask: None,
            timeout: None,
            capacity: 0,
            range: None,
            place: 0,
            origin: Origin { file: 0, line: 0 },
            elements: None,
        }
    }

    /// What is written of it, for people and for `ipset restore`.
    pub fn create_line(&self) -> String {
        let mut line = format!("create {} {}", self.name, self.kind.name());
        if let Some((first, last)) = self.range {
            line.push_str(&match self.kind {
                SetKind::BitmapIp => format!(
                    " range {}-{}",
                    std::net::Ipv4Addr::from_bits(first),
                    std::net::Ipv4Addr::from_bits(last)
                ),
                _ => format!(" range {first}-{last}"),
            });
        } else {
            line.push_str(match self.family {
                Family::Ipv4 => " family inet",
                Family::Ipv6 => " family inet6",
            });
            line.push_str(&format!(" maxelem {}", self.capacity));
        }
        if let Some(netmask) = self.netmask {
            line.push_str(&format!(" netmask {netmask}"));
        }
        if let Some(timeout) = self.timeout {
            line.push_str(&format!(" timeout {timeout}"));
        }
        line
    }

    /// Whether it is the same set, whatever is in it, so that its contents may stay.
    pub fn is_like(&self, other: &Self) -> bool {
        let plain = |set: &Self| Self {
            place: 0,
            origin: Origin { file: 0, line: 0 },
            elements: None,
            ..set.clone()
        };
        plain(self) == plain(other)
    }

    /// Bits of a whole address.
    pub const fn whole(&self) -> u8 {
        match self.family {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }
}

/// Takes a policy's sets that no file gives from those that the running policy has.
pub fn adopt(policy: &mut Policy, running: &[SetDefinition]) {
    let named: Vec<String> = policy.named_sets().map(str::to_owned).collect();
    for name in named {
        if policy.set(&name).is_none()
            && let Some(set) = running.iter().find(|set| set.name == name)
        {
            policy.sets.push(SetDefinition {
                elements: None,
                ..set.clone()
            });
        }
    }
}
