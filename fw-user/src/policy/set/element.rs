//! Elements of sets as they are written: `192.0.2.0/24`, `192.0.2.1,udp:53`.

use std::fmt::Write as _;
use std::net::IpAddr;

use fw_common::abi::set::{MASKS, SetKey, WHOLE};
use fw_common::abi::{Addr, Family as AbiFamily};

use super::{Part, SetDefinition, SetKind, Shape};
use crate::addr;
use crate::policy::model::{Family, IcmpType};
use crate::policy::names::{
    ICMP, ICMPV6, Named, SCTP, TCP, UDP, UDPLITE, icmp_type, protocol_name, protocol_number,
    service_port,
};

/// Why a text is no element of a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadElement {
    /// What is the matter.
    pub message: String,
    /// What was expected.
    pub expected: String,
}

type Element<T> = Result<T, BadElement>;

/// The keys that a text stands for: several where it has ranges.
pub fn parse_element(text: &str, set: &SetDefinition) -> Element<Vec<SetKey>> {
    let mut parts = text.split(',');
    let Shape {
        first,
        port,
        second,
    } = set.kind.shape();
    let count = text.split(',').count();
    if count != set.kind.dimension() {
        return Err(bad(
            format!(
                "`{text}` has {count} parts, and {} takes {}",
                set.kind.name(),
                set.kind.dimension()
            ),
            format!("an element such as {}", example(set)),
        ));
    }
    let mut next = || parts.next().unwrap_or_default();
    let whole = vec![([0; 4], WHOLE)];
    let firsts = match first {
        Some(part) => addresses(next(), part, set, set.netmask)?,
        None => whole.clone(),
    };
    let ports = match (port, set.kind) {
        (true, SetKind::BitmapPort) => bitmap_ports(next(), set)?,
        (true, _) => ports(next())?,
        (false, _) => vec![(0, 0)],
    };
    let seconds = match second {
        Some(part) => addresses(next(), part, set, None)?,
        None => whole,
    };
    let total = firsts.len() * ports.len() * seconds.len();
    if total > MOST {
        return Err(bad(
            format!("`{text}` stands for {total} elements"),
            format!("ranges of {MOST} elements at most"),
        ));
    }
    let mut keys = Vec::with_capacity(total);
    for (first, first_length) in &firsts {
        for (protocol, port) in &ports {
            for (second, second_length) in &seconds {
                keys.push(SetKey {
                    first: *first,
                    second: *second,
                    port: *port,
                    protocol: *protocol,
                    first_length: *first_length,
                    second_length: *second_length,
                    reserved: [0; 3],
                });
            }
        }
    }
    Ok(keys)
}

/// Elements that one line may stand for, as in ipset (`IPSET_MAX_RANGE`).
const MOST: usize = 1 << 20;

fn bad(message: String, expected: impl Into<String>) -> BadElement {
    BadElement {
        message,
        expected: expected.into(),
    }
}

fn example(set: &SetDefinition) -> String {
    let (address, prefix) = match set.family {
        Family::Ipv4 => ("192.0.2.1", "192.0.2.0/24"),
        Family::Ipv6 => ("2001:db8::1", "2001:db8::/32"),
    };
    let text = |part| match part {
        Part::Address => address,
        Part::Prefix => prefix,
    };
    let Shape {
        first,
        port,
        second,
    } = set.kind.shape();
    let port = port.then_some(match set.kind {
        SetKind::BitmapPort => "443",
        _ => "tcp:443",
    });
    let parts = [first.map(text), port, second.map(text)];
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    format!("`{}`", parts.join(","))
}

/// Addresses or prefixes with their lengths.
fn addresses(
    text: &str,
    part: Part,
    set: &SetDefinition,
    netmask: Option<u8>,
) -> Element<Vec<(Addr, u8)>> {
    let expected = || match (part, set.family) {
        (Part::Address, Family::Ipv4) => "an IPv4 address, prefix or range of addresses",
        (Part::Address, Family::Ipv6) => "an IPv6 address",
        (Part::Prefix, Family::Ipv4) => "an IPv4 prefix or range of addresses",
        (Part::Prefix, Family::Ipv6) => "an IPv6 prefix",
    };
    let fail = || {
        bad(
            format!("`{text}` does not fit the set {}", set.name),
            expected(),
        )
    };
    let parse = |text: &str| -> Element<IpAddr> {
        let address: IpAddr = text.parse().map_err(|_| fail())?;
        match (address, set.family) {
            (IpAddr::V4(_), Family::Ipv4) | (IpAddr::V6(_), Family::Ipv6) => Ok(address),
            _ => Err(fail()),
        }
    };
    let whole = set.whole();
    let range = match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (parse(first)?, parse(last)?);
            let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else {
                return Err(fail());
            };
            Some((
                first.to_bits().min(last.to_bits()),
                first.to_bits().max(last.to_bits()),
            ))
        }
        None => None,
    };
    if let Some((first, last)) = range {
        return match part {
            Part::Prefix => Ok(prefixes_of(first, last)),
            Part::Address => single(first, last, set, netmask),
        };
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => {
            let length: u8 = length.parse().map_err(|_| fail())?;
            (parse(address)?, length)
        }
        None => (parse(text)?, whole),
    };
    // A prefix of no bits is everything: ipset takes it for two networks only.
    let shortest = u8::from(set.kind != SetKind::HashNetNet);
    if length > whole || length < shortest {
        return Err(bad(
            format!("`{text}` has a prefix of {length} bits"),
            format!("{shortest} to {whole} bits; for everything write two halves, `/1` each"),
        ));
    }
    let words = addr::to_abi(address);
    match part {
        Part::Prefix => Ok(vec![(masked(words, length), length)]),
        Part::Address if length == whole => {
            let (first, last) = (words[0], words[0]);
            match set.family {
                Family::Ipv4 => single(first, last, set, netmask),
                Family::Ipv6 => {
                    let element = with_netmask(words, netmask);
                    // As below (`hash_ip6_uadt`).
                    if set.kind == SetKind::HashIp && element.0 == [0; 4] {
                        return Err(null(text));
                    }
                    Ok(vec![element])
                }
            }
        }
        Part::Address => match set.family {
            Family::Ipv4 => {
                let first = masked(words, length)[0];
                single(first, first | !MASKS[usize::from(length)][0], set, netmask)
            }
            Family::Ipv6 => Err(fail()),
        },
    }
}

fn masked(address: Addr, length: u8) -> Addr {
    let mask = MASKS[usize::from(length)];
    std::array::from_fn(|word| address[word] & mask[word])
}

/// An address of a set whose elements are addresses.
fn with_netmask(address: Addr, netmask: Option<u8>) -> (Addr, u8) {
    match netmask {
        Some(length) => (masked(address, length), length),
        None => (address, WHOLE),
    }
}

/// Every address of a range, under the set's mask.
fn single(
    first: u32,
    last: u32,
    set: &SetDefinition,
    netmask: Option<u8>,
) -> Element<Vec<(Addr, u8)>> {
    let text = std::net::Ipv4Addr::from_bits;
    if let Some((low, high)) = set.range
        && (first < low || last > high)
    {
        return Err(bad(
            format!(
                "{} is beyond the set {}",
                text(if first < low { first } else { last }),
                set.name
            ),
            format!("addresses from {} to {}", text(low), text(high)),
        ));
    }
    let step = 1_u64 << (32 - u32::from(netmask.unwrap_or(32)));
    let count = (u64::from(last) - u64::from(first)) / step + 1;
    if count > MOST as u64 {
        return Err(bad(
            format!("{}-{} has {count} addresses", text(first), text(last)),
            format!("{MOST} addresses at most; a set of type hash:net takes whole networks"),
        ));
    }
    let each = (0..count).map(|index| (u64::from(first) + index * step) as u32);
    let mut found: Vec<_> = each
        .map(|address| with_netmask([address, 0, 0, 0], netmask))
        .collect();
    // An address of zero is in no hash (`hash_ip4_uadt`).
    if set.kind == SetKind::HashIp {
        if found.iter().any(|(address, _)| *address == [0; 4]) && count == 1 {
            return Err(null("0.0.0.0"));
        }
        found.retain(|(address, _)| *address != [0; 4]);
    }
    found.dedup();
    Ok(found)
}

fn null(text: &str) -> BadElement {
    bad(
        format!("`{text}`, of zeroes under the set's mask, cannot be an element of hash:ip"),
        "another address",
    )
}

/// The longest prefixes that make up a range.
fn prefixes_of(first: u32, last: u32) -> Vec<(Addr, u8)> {
    let mut found = Vec::new();
    let mut at = u64::from(first);
    while at <= u64::from(last) {
        let aligned = if at == 0 {
            32
        } else {
            at.trailing_zeros().min(32)
        };
        let room = (u64::from(last) - at + 1).ilog2();
        // No prefix is everything.
        let bits = aligned.min(room).min(31);
        found.push(([at as u32, 0, 0, 0], (32 - bits) as u8));
        at += 1 << bits;
    }
    found
}

/// Protocols with ports.
fn ports(text: &str) -> Element<Vec<(u8, u16)>> {
    let fail = || {
        bad(
            format!("`{text}` is no port of a set"),
            "a port such as `tcp:80`, `udp:1000-2000`, `icmp:echo-request`, or `gre:0`",
        )
    };
    let (protocol, port) = match text.split_once(':') {
        Some((protocol, port)) => {
            let name = protocol.to_ascii_lowercase();
            let number = protocol_number(&name).or_else(|| name.parse().ok());
            (number.filter(|number| *number != 0).ok_or_else(fail)?, port)
        }
        None => (TCP, text),
    };
    let range = match protocol {
        TCP | UDP | SCTP | UDPLITE => port_range(port, protocol).ok_or_else(fail)?,
        ICMP | ICMPV6 => {
            let family = if protocol == ICMP {
                Family::Ipv4
            } else {
                Family::Ipv6
            };
            let code = icmp(port, family).ok_or_else(fail)?;
            (code, code)
        }
        _ if port == "0" => (0, 0),
        _ => return Err(fail()),
    };
    Ok((range.0..=range.1).map(|port| (protocol, port)).collect())
}

fn port_range(text: &str, protocol: u8) -> Option<(u16, u16)> {
    let one = |text: &str| {
        text.parse()
            .ok()
            .or_else(|| service_port(text, Some(protocol)))
    };
    if let Some(port) = one(text) {
        return Some((port, port));
    }
    let (first, last) = text.split_once('-')?;
    let (first, last): (u16, u16) = (one(first)?, one(last)?);
    Some((first.min(last), first.max(last)))
}

fn abi(family: Family) -> AbiFamily {
    match family {
        Family::Ipv4 => AbiFamily::V4,
        Family::Ipv6 => AbiFamily::V6,
    }
}

/// `type/code`, a number of both as ipset prints it, or a name.
fn icmp(text: &str, family: Family) -> Option<u16> {
    if let Some((kind, code)) = text.split_once('/') {
        let (kind, code): (u8, u8) = (kind.parse().ok()?, code.parse().ok()?);
        return Some(u16::from_be_bytes([kind, code]));
    }
    match icmp_type(text, family) {
        Named::Type(IcmpType {
            kind: Some(kind),
            codes,
        }) => Some(u16::from_be_bytes([kind, codes.0])),
        _ => None,
    }
}

fn bitmap_ports(text: &str, set: &SetDefinition) -> Element<Vec<(u8, u16)>> {
    let number = text.split_once(':').map_or(text, |(_, port)| port);
    let (first, last) = port_range(number, TCP)
        .ok_or_else(|| bad(format!("`{text}` is no port"), "a port or a range of ports"))?;
    let (low, high) = set.range.unwrap_or((0, u32::from(u16::MAX)));
    if u32::from(first) < low || u32::from(last) > high {
        return Err(bad(
            format!("`{text}` is beyond the set {}", set.name),
            format!("ports from {low} to {high}"),
        ));
    }
    Ok((first..=last).map(|port| (0, port)).collect())
}

/// An element as `ipset save` prints it.
pub fn print_element(key: &SetKey, set: &SetDefinition) -> String {
    let Shape {
        first,
        port,
        second,
    } = set.kind.shape();
    let mut text = String::new();
    let address = |text: &mut String, part, words, length: u8| {
        let family = abi(set.family);
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", addr::from_abi(family, words));
        if part == Part::Prefix && length != set.whole() {
            let _ = write!(text, "/{length}");
        }
    };
    if let Some(part) = first {
        address(&mut text, part, key.first, key.first_length);
    }
    if port {
        if first.is_some() {
            text.push(',');
        }
        let _ = match (set.kind, key.protocol) {
            (SetKind::BitmapPort, _) => write!(text, "{}", key.port),
            (_, protocol @ (ICMP | ICMPV6)) => {
                let [kind, code] = key.port.to_be_bytes();
                let name = if protocol == ICMP { "icmp" } else { "icmpv6" };
                write!(text, "{name}:{kind}/{code}")
            }
            (_, protocol) => match protocol_name(protocol) {
                Some(name) => write!(text, "{name}:{}", key.port),
                None => write!(text, "{protocol}:{}", key.port),
            },
        };
    }
    if let Some(part) = second {
        text.push(',');
        address(&mut text, part, key.second, key.second_length);
    }
    text
}
