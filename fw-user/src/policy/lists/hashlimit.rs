//! `-m hashlimit`: what it asks, in the kernel's numbers, and how iptables writes it.

use std::fmt::{self, Write as _};

use fw_common::abi::list::{ListShape, hashlimit};
use fw_common::abi::set::MASKS;
use serde::{Deserialize, Serialize};

use crate::policy::model::Family;

/// `-m hashlimit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashlimit {
    /// `--hashlimit-above`: what is over the limit is meant.
    pub above: bool,
    /// How fast.
    pub rate: Rate,
    /// `--hashlimit-mode`: bits of [`Hashlimit::SOURCE`] and its siblings.
    pub mode: u8,
    /// `--hashlimit-srcmask`: bits of a source that count.
    pub source_bits: u8,
    /// `--hashlimit-dstmask`.
    pub destination_bits: u8,
    /// `--hashlimit-name`.
    pub name: String,
    /// `--hashlimit-htable-size`, 0 where it is not given.
    pub size: u32,
    /// `--hashlimit-htable-max`, 0 where it is not given.
    pub most: u32,
    /// `--hashlimit-htable-gcinterval`, in milliseconds.
    pub interval: u32,
    /// `--hashlimit-htable-expire`, in milliseconds.
    pub lifetime: u32,
}

/// What a bucket lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rate {
    /// Packets.
    Packets {
        /// Millionths of a second between them.
        period: u64,
        /// `--hashlimit-burst`.
        burst: u64,
    },
    /// Bytes.
    Bytes {
        /// What 16 bytes cost, of 2^32 for each second.
        cost: u64,
        /// How often an empty bucket is filled at once.
        burst: u64,
    },
}

impl Hashlimit {
    /// `dstip`, as in linux/netfilter/xt_hashlimit.h.
    pub const DESTINATION: u8 = 1;
    /// `dstport`.
    pub const DESTINATION_PORT: u8 = 2;
    /// `srcip`.
    pub const SOURCE: u8 = 4;
    /// `srcport`.
    pub const SOURCE_PORT: u8 = 8;
    /// The names of the modes, in the order in which they are printed.
    pub(crate) const MODES: [(u8, &str); 4] = [
        (Self::SOURCE, "srcip"),
        (Self::SOURCE_PORT, "srcport"),
        (Self::DESTINATION, "dstip"),
        (Self::DESTINATION_PORT, "dstport"),
    ];
    /// The burst of a rule that names none.
    pub const BURST: u64 = 5;
    /// The largest burst, in packets.
    pub const BURST_MAX: u64 = 1_000_000;
    /// The interval of a rule that names none.
    pub const INTERVAL: u32 = 1000;
    /// The most that a table can hold (`HASHLIMIT_MAX_SIZE`, net/netfilter/xt_hashlimit.c).
    pub const ENTRIES_MAX: u32 = 1 << 20;
    /// What it holds where nobody says: what the kernel takes on a machine with more than a gigabyte.
    const ENTRIES: u32 = 8 * 8192;

    /// Bits of a whole address.
    pub const fn whole(family: Family) -> u8 {
        match family {
            Family::Ipv4 => 32,
            Family::Ipv6 => 128,
        }
    }

    /// How many buckets there may be (`htable_create`).
    pub fn entries(&self) -> u32 {
        let size = self.size.min(Self::ENTRIES_MAX);
        let most = match (self.most.min(Self::ENTRIES_MAX), size) {
            (0, 0) => Self::ENTRIES,
            (0, size) => size.saturating_mul(8),
            (most, size) => most.max(size),
        };
        most.min(Self::ENTRIES_MAX)
    }

    /// What its table is like.
    pub fn shape(&self) -> ListShape {
        let (of_bytes, cost, cap) = match self.rate {
            Rate::Packets { period, burst } => (
                false,
                packet_credits(period),
                packet_credits(period.wrapping_mul(burst)),
            ),
            Rate::Bytes { cost, burst } => (true, byte_credits(cost), burst),
        };
        let mask = |mode: u8, bits: u8| match self.mode & mode {
            0 => [0; 4],
            _ => MASKS[usize::from(bits.min(128))],
        };
        let ports = |mode: u8, mask: u32| if self.mode & mode == 0 { 0 } else { mask };
        ListShape::hashlimit(
            self.entries(),
            mask(Self::SOURCE, self.source_bits),
            &hashlimit::Terms {
                mask: mask(Self::DESTINATION, self.destination_bits),
                ports: ports(Self::SOURCE_PORT, 0xffff_0000)
                    | ports(Self::DESTINATION_PORT, 0xffff),
                lifetime: self.lifetime,
                cost,
                cap,
                bytes: of_bytes,
            },
        )
    }

    /// The same question to the same table; rules may ask for either side of the limit.
    pub fn shares_table(&self, other: &Self) -> bool {
        let same = |one: &Self| Self {
            above: false,
            ..one.clone()
        };
        same(self) == same(other)
    }

    /// Whether the kernel can count with the numbers (`hashlimit_mt_check_common`).
    pub fn is_countable(&self) -> bool {
        match self.rate {
            Rate::Packets { period, burst } => {
                burst != 0 && packet_credits(period.wrapping_mul(burst)) >= packet_credits(period)
            }
            Rate::Bytes { cost, .. } => byte_credits(cost) != 0,
        }
    }

    /// How long a bucket lives if the rule does not say, in milliseconds.
    pub fn usual_lifetime(rate: Rate, unit: u32) -> u32 {
        match rate {
            Rate::Packets { .. } => unit * 1000,
            Rate::Bytes { burst: 0, .. } => 15_000,
            Rate::Bytes { .. } => 60_000,
        }
    }
}

/// `user2credits` of revision 3: the constants are divided first.
fn packet_credits(period: u64) -> u64 {
    const PER_SECOND: u64 = 1000 << hashlimit::PER_MILLISECOND;
    period.wrapping_mul(PER_SECOND / Rate::SECOND)
}

/// `user2credits_byte`.
fn byte_credits(cost: u64) -> u64 {
    (u64::from(cost as u32) * hashlimit::BYTES_CAP) >> 32
}

impl Rate {
    /// Millionths of a second (`XT_HASHLIMIT_SCALE_v2`).
    pub const SECOND: u64 = 1_000_000;

    /// What 16 bytes cost at so many bytes a second (`bytes_to_cost`, extensions/libxt_hashlimit.c).
    pub(crate) const fn cost_of(bytes: u64) -> u64 {
        let chunks = (bytes >> hashlimit::CHUNK) as u32 as u64;
        u32::MAX as u64 / (chunks + 1)
    }

    /// The bytes a second at which 16 bytes cost so much (`cost_to_bytes`).
    pub(crate) const fn bytes_of(cost: u64) -> u64 {
        let chunks = match cost {
            0 => u32::MAX as u64,
            cost => u32::MAX as u64 / cost,
        };
        chunks.wrapping_sub(1) << hashlimit::CHUNK
    }
}

/// As iptables-save prints it.
pub(super) fn text(limit: &Hashlimit, family: Family) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = print(limit, family, &mut text);
    text
}

/// `hashlimit_mt_save`.
fn print(limit: &Hashlimit, family: Family, f: &mut String) -> fmt::Result {
    let side = if limit.above { "above" } else { "upto" };
    write!(f, "-m hashlimit --hashlimit-{side} ")?;
    let usual = match limit.rate {
        Rate::Packets { period, burst } => {
            let usual = print_rate(period, f)?;
            write!(f, " --hashlimit-burst {burst}")?;
            usual
        }
        Rate::Bytes { cost, burst } => {
            print_bytes(cost, burst, f)?;
            u64::from(Hashlimit::usual_lifetime(limit.rate, 1))
        }
    };
    if limit.mode != 0 {
        let named = Hashlimit::MODES
            .iter()
            .filter(|(bit, _)| limit.mode & bit != 0);
        let names: Vec<&str> = named.map(|(_, name)| *name).collect();
        write!(f, " --hashlimit-mode {}", names.join(","))?;
    }
    write!(f, " --hashlimit-name {}", limit.name)?;
    if limit.size != 0 {
        write!(f, " --hashlimit-htable-size {}", limit.size)?;
    }
    if limit.most != 0 {
        write!(f, " --hashlimit-htable-max {}", limit.most)?;
    }
    if limit.interval != Hashlimit::INTERVAL {
        write!(f, " --hashlimit-htable-gcinterval {}", limit.interval)?;
    }
    if u64::from(limit.lifetime) != usual {
        write!(f, " --hashlimit-htable-expire {}", limit.lifetime)?;
    }
    if limit.source_bits != Hashlimit::whole(family) {
        write!(f, " --hashlimit-srcmask {}", limit.source_bits)?;
    }
    if limit.destination_bits != Hashlimit::whole(family) {
        write!(f, " --hashlimit-dstmask {}", limit.destination_bits)?;
    }
    Ok(())
}

/// The largest unit in which the rate is nearly whole (`print_rate`); the unit in milliseconds.
fn print_rate(period: u64, f: &mut String) -> Result<u64, fmt::Error> {
    const UNITS: [(&str, u64); 4] = [
        ("day", 86_400 * Rate::SECOND),
        ("hour", 3_600 * Rate::SECOND),
        ("min", 60 * Rate::SECOND),
        ("sec", Rate::SECOND),
    ];
    let period = period.max(1);
    let coarse = |(_, unit): &&(&str, u64)| period > *unit || unit / period < unit % period;
    let whole = UNITS[1..].iter().position(|unit| coarse(&unit));
    let (name, unit) = UNITS[whole.unwrap_or(UNITS.len() - 1)];
    write!(f, "{}/{name}", unit / period)?;
    Ok(unit / Rate::SECOND * 1000)
}

/// `print_bytes`.
fn print_bytes(cost: u64, burst: u64, f: &mut String) -> fmt::Result {
    const UNITS: [(&str, u64); 3] = [("m", 1 << 20), ("k", 1 << 10), ("", 1)];
    let bytes = Rate::bytes_of(cost);
    let whole = |(_, unit): &&(&str, u64)| {
        // iptables has a mask of 32 bits here.
        let mask = u64::from(!(*unit as u32 - 1));
        *unit == 1 || bytes >= *unit && Rate::cost_of(bytes & mask) == cost
    };
    let (name, unit) = UNITS.iter().find(whole).unwrap_or(&UNITS[2]);
    write!(f, "{}{name}b/s", bytes / unit)?;
    if burst == 0 {
        return Ok(());
    }
    let bytes = bytes.wrapping_mul(burst);
    let large = |(_, unit): &&(&str, u64)| *unit == 1 || bytes >= *unit;
    let (name, unit) = UNITS.iter().find(large).unwrap_or(&UNITS[2]);
    write!(f, " --hashlimit-burst {}{name}b", bytes / unit)
}
