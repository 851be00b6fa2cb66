//! These matches as iptables-save 1.8.9 writes them.

use std::fmt::{self, Write as _};

use super::{AddressType, Ecn, Hops, Owner, PacketMatch, Routing, Statistic, Time};
use crate::policy::model::{Family, Negatable, Ports};

impl PacketMatch {
    /// The words of the match, `-m` included.
    pub(crate) fn text(&self, family: Family) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, family);
        text
    }

    fn write(&self, f: &mut String, family: Family) -> fmt::Result {
        match self {
            Self::Fragment { not } => return write!(f, "{}-f", bang(*not)),
            Self::Hops(_) if family == Family::Ipv6 => f.write_str("-m hl")?,
            other => write!(f, "-m {}", other.name())?,
        }
        match self {
            Self::Fragment { .. } => Ok(()),
            Self::Range {
                source,
                destination,
            } => {
                for (option, range) in [("src", source), ("dst", destination)] {
                    if let Some(Negatable {
                        not,
                        value: (first, last),
                    }) = range
                    {
                        write!(f, " {}--{option}-range {first}-{last}", bang(*not))?;
                    }
                }
                Ok(())
            }
            Self::LinkSource(Negatable { not, value }) => {
                let [a, b, c, d, e, g] = value;
                write!(f, " {}--mac-source ", bang(*not))?;
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Length(Negatable { not, value }) => {
                write!(f, " {}--length {}", bang(*not), Range(*value))
            }
            Self::Hops(hops) => {
                let name = match family {
                    Family::Ipv4 => "ttl",
                    Family::Ipv6 => "hl",
                };
                match hops {
                    Hops::Equal(Negatable { not, value }) => {
                        write!(f, " {}--{name}-eq {value}", bang(*not))
                    }
                    Hops::Less(value) => write!(f, " --{name}-lt {value}"),
                    Hops::Greater(value) => write!(f, " --{name}-gt {value}"),
                }
            }
            Self::Dscp(Negatable { not, value }) => {
                write!(f, " {}--dscp 0x{value:02x}", bang(*not))
            }
            Self::Tos(Negatable {
                not,
                value: (value, mask),
            }) => write!(f, " {}--tos 0x{value:02x}/0x{mask:02x}", bang(*not)),
            Self::Ecn(ecn) => write_ecn(f, ecn),
            Self::PacketType(Negatable { not, value }) => {
                let name = PACKET_TYPES.iter().find(|(number, _)| number == value);
                let name = name.map_or("unicast", |(_, name)| name);
                write!(f, " {}--pkt-type {name}", bang(*not))
            }
            Self::Mark(Negatable {
                not,
                value: (value, mask),
            })
            | Self::FlowMark(Negatable {
                not,
                value: (value, mask),
            }) => write!(f, " {}--mark {}", bang(*not), Marked(*value, *mask)),
            Self::Routing(routing) => write_routing(f, routing),
            Self::Cpu(Negatable { not, value }) => write!(f, " {}--cpu {value}", bang(*not)),
            Self::AddressType(types) => {
                let sides = [("src", types.source), ("dst", types.destination)];
                for (side, asked) in sides {
                    if let Some(Negatable { not, value }) = asked {
                        let list = AddressType::list(value);
                        write!(f, " {}--{side}-type {list}", bang(not))?;
                    }
                }
                Ok(())
            }
            Self::Owner(owner) => write_owner(f, owner),
            Self::Statistic(Negatable { not, value }) => match value {
                Statistic::Random(probability) => {
                    let probability = f64::from(*probability) / f64::from(1u32 << 31);
                    write!(
                        f,
                        " --mode random {}--probability {probability:.11}",
                        bang(*not)
                    )
                }
                Statistic::Nth { every, packet } => write!(
                    f,
                    " --mode nth {}--every {every} --packet {packet}",
                    bang(*not)
                ),
            },
            Self::Text(text) => text.write(f),
            Self::Frag(frag) => frag.write(f),
            Self::Physdev(physdev) => physdev.write(f),
            Self::ReversePath { loose, invert } => {
                f.write_str(if *loose { " --loose" } else { "" })?;
                f.write_str(if *invert { " --invert" } else { "" })
            }
            Self::WithoutIpsec { out } => {
                write!(f, " --dir {} --pol none", if *out { "out" } else { "in" })
            }
            Self::Time(time) => write_time(f, time),
            Self::Segment(Negatable { not, value }) => {
                write!(f, " {}--mss {}", bang(*not), Range(*value))
            }
            Self::Esp(range) => write_range(f, "--espspi", range),
            Self::Ah(range) => write_range(f, "--ahspi", range),
            Self::Sctp(ports) => write_ports(f, ports),
            Self::Dccp(ports, types) => {
                write_ports(f, ports)?;
                let Some(Negatable { not, value }) = types else {
                    return Ok(());
                };
                let names = DCCP_TYPES.iter().enumerate();
                let names = names.filter(|(bit, _)| value >> bit & 1 != 0);
                let names: Vec<_> = names.map(|(_, name)| *name).collect();
                write!(f, " {}--dccp-types {}", bang(*not), names.join(","))
            }
        }
    }
}

fn bang(not: bool) -> &'static str {
    if not { "! " } else { "" }
}

/// `100`, `100:200`.
struct Range<T>((T, T));

impl<T: PartialEq + fmt::Display> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = &self.0;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}:{last}")
        }
    }
}

/// `0x1`, `0x10/0xf0`.
pub(crate) struct Marked(pub u32, pub u32);

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, mask) = self;
        write!(f, "0x{value:x}")?;
        if *mask != u32::MAX {
            write!(f, "/0x{mask:x}")?;
        }
        Ok(())
    }
}

fn write_ecn(f: &mut String, ecn: &Ecn) -> fmt::Result {
    if let Some(not) = ecn.echo {
        write!(f, " {}--ecn-tcp-ece", bang(not))?;
    }
    if let Some(not) = ecn.reduced {
        write!(f, " {}--ecn-tcp-cwr", bang(not))?;
    }
    if let Some(Negatable { not, value }) = ecn.transport {
        write!(f, " {}--ecn-ip-ect {value}", bang(not))?;
    }
    Ok(())
}

fn write_routing(f: &mut String, routing: &Routing) -> fmt::Result {
    if let Some(Negatable { not, value }) = routing.kind {
        write!(f, " {}--rt-type {value}", bang(not))?;
    }
    if let Some(Negatable { not, value }) = routing.left {
        write!(f, " {}--rt-segsleft {}", bang(not), Range(value))?;
    }
    if let Some(Negatable { not, value }) = routing.length {
        write!(f, " {}--rt-len {value}", bang(not))?;
    }
    Ok(())
}

fn write_owner(f: &mut String, owner: &Owner) -> fmt::Result {
    if let Some(not) = owner.socket {
        write!(f, " {}--socket-exists", bang(not))?;
    }
    let parts = [("uid", owner.user), ("gid", owner.group)];
    for (id, part) in parts {
        let Some(Negatable {
            not,
            value: (first, last),
        }) = part
        else {
            continue;
        };
        write!(f, " {}--{id}-owner {first}", bang(not))?;
        if first != last {
            write!(f, "-{last}")?;
        }
    }
    Ok(())
}

fn write_time(f: &mut String, time: &Time) -> fmt::Result {
    if time.daytime != (0, Time::LAST_SECOND) {
        for (option, seconds) in [("start", time.daytime.0), ("stop", time.daytime.1)] {
            write!(f, " --time{option} {}", Clock(seconds))?;
        }
    }
    if time.monthdays != Time::MONTHDAYS {
        let days = (1..=31).filter(|day| time.monthdays >> day & 1 != 0);
        let days: Vec<_> = days.map(|day| day.to_string()).collect();
        write!(f, " --monthdays {}", days.join(","))?;
    }
    if time.weekdays != Time::WEEKDAYS {
        let days = WEEKDAYS.iter().enumerate();
        let days = days.filter(|(day, _)| time.weekdays >> (day + 1) & 1 != 0);
        let days: Vec<_> = days.map(|(_, name)| *name).collect();
        write!(f, " --weekdays {}", days.join(","))?;
    }
    for (option, seconds) in [("start", time.dates.0), ("stop", time.dates.1)] {
        if seconds != 0 {
            let (year, month, day) = date(seconds / 86_400);
            write!(f, " --date{option} {year:04}-{month:02}-{day:02}T")?;
            write!(f, "{}", Clock(seconds % 86_400))?;
        }
    }
    if time.kernel_zone {
        f.write_str(" --kerneltz")?;
    }
    if time.contiguous {
        f.write_str(" --contiguous")?;
    }
    Ok(())
}

/// `22:00:05`.
struct Clock(u32);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(seconds) = self;
        let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
        write!(f, "{hours:02}:{minutes:02}:{:02}", seconds % 60)
    }
}

/// The date of a day since 1970.
fn date(mut days: u32) -> (u32, u32, u32) {
    let mut year = 1970;
    while days >= 365 + u32::from(is_leap(year)) {
        days -= 365 + u32::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    while days >= month_length(year, month) {
        days -= month_length(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

/// The day since 1970 of a date; nothing if there is no such day.
pub(crate) fn day_of(year: u32, month: u32, day: u32) -> Option<u32> {
    if !(1970..=2106).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    if day == 0 || day > month_length(year, month) {
        return None;
    }
    let years = (1970..year).map(|year| 365 + u32::from(is_leap(year)));
    let months = (1..month).map(|month| month_length(year, month));
    Some(years.sum::<u32>() + months.sum::<u32>() + day - 1)
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_length(year: u32, month: u32) -> u32 {
    match month {
        2 => 28 + u32::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn write_range(f: &mut String, option: &str, range: &Option<Negatable<(u32, u32)>>) -> fmt::Result {
    match range {
        Some(Negatable { not, value }) => write!(f, " {}{option} {}", bang(*not), Range(*value)),
        None => Ok(()),
    }
}

fn write_ports(f: &mut String, ports: &Ports) -> fmt::Result {
    for (option, range) in [("--sport", ports.source), ("--dport", ports.destination)] {
        if let Some(Negatable { not, value }) = range {
            write!(f, " {}{option} {value}", bang(not))?;
        }
    }
    Ok(())
}

/// The kinds of addressees, as linux/if_packet.h numbers them.
pub(crate) const PACKET_TYPES: [(u8, &str); 3] =
    [(0, "unicast"), (1, "broadcast"), (2, "multicast")];

/// The days of the week, the first of which is bit 1.
pub(crate) const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// DCCP's packet types by number (RFC 4340 5.1), and what iptables calls the others.
pub(crate) const DCCP_TYPES: [&str; 11] = [
    "REQUEST", "RESPONSE", "DATA", "ACK", "DATAACK", "CLOSEREQ", "CLOSE", "RESET", "SYNC",
    "SYNCACK", "INVALID",
];
