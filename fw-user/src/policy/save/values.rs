//! The arguments of options: addresses, ports, protocols, interfaces, states.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::lexer::Word;
use crate::policy::error::{Problem, nearest};
use crate::policy::model::{
    CtStates, Family, IcmpType, InterfacePattern, Limit, PortRange, Prefix, TcpFlags,
};
use crate::policy::names::{
    ANY_V4, Named, icmp_names, icmp_type, protocol_names, protocol_number, service_names,
    service_port,
};
use crate::policy::print::{CT_STATES, TCP_FLAGS};
use crate::policy::source::Span;

/// What reading a value gives.
pub(crate) type Value<T> = Result<T, Problem>;

impl Word<'_> {
    /// The place of a part of the word; of the whole word if quotes or escapes moved the bytes.
    pub fn part(&self, start: usize, length: usize) -> Span {
        if self.span.end - self.span.start == self.text.len() {
            let start = self.span.start + start;
            Span {
                start,
                end: start + length,
            }
        } else {
            self.span
        }
    }

    /// The parts between the separators, each with its place.
    pub fn parts(&self, separator: char) -> impl Iterator<Item = (&str, Span)> {
        let mut at = 0;
        self.text.split(separator).map(move |part| {
            let span = self.part(at, part.len());
            at += part.len() + separator.len_utf8();
            (part, span)
        })
    }
}

/// A number as C's strtoul with base 0 reads it, as iptables reads all of its numbers: decimal,
/// hexadecimal after `0x`, octal after `0`; blanks and a `+` may stand before it.
pub(crate) fn number(text: &str, max: u32) -> Option<u32> {
    if let Some(value) = plain_number(text) {
        return (value <= max).then_some(value);
    }
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would take a second sign.
    let value = digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then_some(digits)?;
    u32::from_str_radix(value, radix)
        .ok()
        .filter(|value| *value <= max)
}

/// Up to nine decimal digits without a zero before them, as nearly all numbers are.
fn plain_number(text: &str) -> Option<u32> {
    let digits = text.as_bytes();
    if digits.is_empty() || digits.len() > 9 || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    digits.iter().try_fold(0, |value, digit| {
        digit
            .is_ascii_digit()
            .then(|| value * 10 + u32::from(digit - b'0'))
    })
}

fn small_number(text: &str) -> Option<u8> {
    number(text, u8::MAX.into()).and_then(|value| u8::try_from(value).ok())
}

pub(crate) fn port_number(text: &str) -> Option<u16> {
    number(text, u16::MAX.into()).and_then(|value| u16::try_from(value).ok())
}

/// `-p`: a number, or a name in any case; 0 for `all`.
pub(crate) fn protocol(word: &Word<'_>) -> Value<u8> {
    let name = word.text.to_lowercase();
    let known = small_number(&name)
        .or_else(|| (name == "all").then_some(0))
        .or_else(|| protocol_number(&name));
    known.ok_or_else(|| {
        let message = format!("there is no protocol `{}`", word.text);
        let problem = Problem::wrong("unknown-protocol", word.span, message)
            .expected("a protocol's name or its number from 0 to 255");
        match nearest(&name, protocol_names()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help("common ones: tcp, udp, icmp, ipv6-icmp, esp, gre, all"),
        }
    })
}

/// `-i`, `-o`.
pub(crate) fn interface(word: &Word<'_>) -> Value<InterfacePattern> {
    // IFNAMSIZ is 16 with the terminating zero.
    const LONGEST: usize = 15;
    if word.text.is_empty() {
        let problem = Problem::wrong("bad-interface", word.span, "the interface's name is empty");
        return Err(problem.expected("an interface such as `eth0`"));
    }
    if word.text.len() > LONGEST {
        let message = format!("the interface's name `{}` is too long", word.text);
        let problem = Problem::wrong("bad-interface", word.span, message);
        return Err(problem.expected(format!("at most {LONGEST} characters")));
    }
    if word.text.chars().any(char::is_control) {
        let problem = Problem::wrong(
            "bad-interface",
            word.span,
            "a control character in an interface's name",
        );
        return Err(problem.expected("an interface such as `eth0`"));
    }
    Ok(InterfacePattern(word.text.to_string()))
}

/// The mask that a word ends with.
fn mask_at_the_end(mask: &str, span: Span, family: Family) -> Value<u128> {
    read_mask(mask, family).ok_or_else(|| {
        let (longest, example) = match family {
            Family::Ipv4 => (32, "255.255.255.0"),
            Family::Ipv6 => (128, "ffff:ffff::"),
        };
        let message = format!("`{mask}` is not a mask of {}", family.title());
        let at = Span {
            start: span.end.saturating_sub(mask.len()),
            end: span.end,
        };
        Problem::wrong("bad-mask", at, message).expected(format!(
            "a length from 0 to {longest}, or a mask such as {example}"
        ))
    })
}

/// One address with or without a mask, as `--ctorigsrc` takes it: the address stays as it is, and is
/// read as getaddrinfo reads it. A mask that is not a length is left out by iptables 1.8, which takes it
/// for an address that it then overwrites (`xtopt_parse_hostmask`, libxtables/xtoptions.c).
pub(crate) fn host_under_mask(word: &Word<'_>, family: Family) -> Value<Prefix> {
    let (host, mask) = match word.text.split_once('/') {
        Some((host, mask)) => (host, Some(mask)),
        None => (word.text.as_ref(), None),
    };
    let bits = match mask {
        None => all_ones(family),
        Some(mask) if mask.contains(['.', ':']) => {
            let at = word.part(host.len() + 1, mask.len());
            let message = format!("iptables 1.8 leaves the mask `{mask}` out here");
            return Err(Problem::unsupported("address-mask", at, message)
                .expected("the length of a prefix")
                .help(format!("`{host}` alone is what iptables makes of it")));
        }
        Some(mask) => mask_at_the_end(mask, word.span, family)?,
    };
    let address = match family {
        Family::Ipv4 => host.parse().ok().map(IpAddr::V4),
        Family::Ipv6 => host.parse().ok().map(IpAddr::V6),
    };
    let span = word.part(0, host.len());
    Ok(Prefix {
        address: address.ok_or_else(|| bad_address(host, span, family))?,
        mask: masked(bits, bits, family).mask,
    })
}

/// One address with or without a mask, as `-s` takes it.
pub(crate) fn prefix(text: &str, span: Span, family: Family) -> Value<Prefix> {
    // iptables skips blanks before each address of a list.
    let text = text.trim_start();
    let (host, mask) = match text.rsplit_once('/') {
        Some((host, mask)) => (host, Some(mask)),
        None => (text, None),
    };
    let bits = match mask {
        None => all_ones(family),
        Some(mask) => mask_at_the_end(mask, span, family)?,
    };
    // As in iptables, a zero mask makes the address irrelevant: `any/0`.
    if bits == 0 {
        return Ok(masked(0, 0, family));
    }
    match read_address(host, family) {
        Some(address) => Ok(masked(address, bits, family)),
        None => Err(bad_address(host, span, family)),
    }
}

pub(crate) fn bad_address(host: &str, span: Span, family: Family) -> Problem {
    let title = family.title();
    if read_address(host, family.other()).is_some() && (host.contains(':') || host.contains('.')) {
        let other = family.other().title();
        let message = format!("`{host}` is an {other} address, in rules for {title}");
        return Problem::wrong("wrong-family", span, message)
            .expected(format!("an {title} address"))
            .help(format!("put the rule into the file for {other}"));
    }
    let namelike = host.chars().any(char::is_alphabetic)
        && host
            .chars()
            .all(|letter| letter.is_alphanumeric() || "-._".contains(letter));
    if namelike {
        let message = format!("the name `{host}` stands where an address is needed");
        return Problem::unsupported("host-name", span, message)
            .expected(format!("an {title} address"))
            .help("write the address: what a name resolves to can change under a loaded policy");
    }
    let example = match family {
        Family::Ipv4 => "192.0.2.2 or 10.0.0.0/8",
        Family::Ipv6 => "2001:db8::2 or fc00::/7",
    };
    Problem::wrong(
        "bad-address",
        span,
        format!("`{host}` is not an {title} address"),
    )
    .expected(format!("an address such as {example}"))
}

/// Addresses of both families as 128 bits; IPv4's are the lowest 32.
fn read_address(text: &str, family: Family) -> Option<u128> {
    match family {
        Family::Ipv4 => read_ipv4(text, true),
        Family::Ipv6 => text.parse().ok().map(Ipv6Addr::to_bits),
    }
}

fn read_mask(text: &str, family: Family) -> Option<u128> {
    let (written, longest) = match family {
        Family::Ipv4 if text.contains('.') => (read_ipv4(text, false), 32),
        Family::Ipv6 if text.contains(':') => (read_address(text, family), 128),
        Family::Ipv4 => (None, 32),
        Family::Ipv6 => (None, 128),
    };
    written.or_else(|| {
        let length = number(text, longest)?;
        Some(all_ones(family) & !all_ones(family).checked_shr(length).unwrap_or(0))
    })
}

/// Dotted bytes, each a number as in [`number`]. As an address (not as a mask) it may be short:
/// `10.1` is 10.1.0.0.
fn read_ipv4(text: &str, may_be_short: bool) -> Option<u128> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        // The usual spelling.
        return Some(address.to_bits().into());
    }
    let mut bytes = [0; 4];
    let mut count = 0;
    for part in text.split('.') {
        *bytes.get_mut(count)? = small_number(part)?;
        count += 1;
    }
    (count == 4 || may_be_short).then(|| u32::from_be_bytes(bytes).into())
}

fn all_ones(family: Family) -> u128 {
    match family {
        Family::Ipv4 => u32::MAX.into(),
        Family::Ipv6 => u128::MAX,
    }
}

fn masked(address: u128, mask: u128, family: Family) -> Prefix {
    let to_ip = |bits: u128| match family {
        // The bits of IPv4 never exceed 32: see `all_ones`.
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
        Family::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    };
    Prefix {
        address: to_ip(address & mask),
        mask: to_ip(mask),
    }
}

/// A port's number or its service's name.
fn port(text: &str, span: Span, protocol: Option<u8>) -> Value<u16> {
    port_number(text)
        .or_else(|| service_port(text, protocol))
        .ok_or_else(|| {
            let message = format!("`{text}` is neither a port nor a service");
            let problem = Problem::wrong("bad-port", span, message)
                .expected("a number from 0 to 65535 or a service's name");
            if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
                return problem.help("the highest port is 65535");
            }
            if text.contains(',') {
                return problem.help(format!("for a list write `-m multiport --dports {text}`"));
            }
            if text.contains('-') && text.split('-').all(|end| port_number(end).is_some()) {
                return problem.help(format!("a range is written `{}`", text.replace('-', ":")));
            }
            match nearest(text, service_names()) {
                Some(near) if !text.is_empty() => problem.help(format!("did you mean `{near}`?")),
                _ => problem,
            }
        })
}

/// `--sport`, `--dport`: `22`, `ssh`, `1000:2000`, `:1023`, `1024:`.
pub(crate) fn port_range(word: &Word<'_>, protocol: Option<u8>) -> Value<PortRange> {
    let Some((low, high)) = word.text.split_once(':') else {
        let only = port(&word.text, word.span, protocol)?;
        return Ok(PortRange {
            first: only,
            last: only,
        });
    };
    let end = |text: &str, at, default| match text {
        "" => Ok(default),
        _ => port(text, word.part(at, text.len()), protocol),
    };
    let first = end(low, 0, 0)?;
    let last = end(high, low.len() + 1, u16::MAX)?;
    if first > last {
        return Err(backwards(word.span, &word.text, first, last, ':'));
    }
    Ok(PortRange { first, last })
}

fn backwards(span: Span, text: &str, first: u16, last: u16, dash: char) -> Problem {
    let problem = Problem::wrong(
        "bad-port",
        span,
        format!("the range of ports `{text}` is backwards"),
    );
    let problem = problem.expected("the lower port first");
    if first == last {
        problem.help(format!("write `{first}`"))
    } else {
        problem.help(format!("write `{last}{dash}{first}`"))
    }
}

/// `-m multiport`'s list.
pub(crate) fn port_list(word: &Word<'_>, protocol: Option<u8>) -> Value<Vec<PortRange>> {
    // XT_MULTI_PORTS in linux/netfilter/xt_multiport.h; a range takes two places.
    const PLACES: usize = 15;
    let mut ranges = Vec::new();
    let mut places = 0;
    for (text, span) in word.parts(',') {
        let range = match text.split_once(':') {
            None => {
                let only = port(text, span, protocol)?;
                PortRange {
                    first: only,
                    last: only,
                }
            }
            Some((low, high)) => {
                let first = port(low, span, protocol)?;
                let last = port(high, span, protocol)?;
                if first >= last {
                    return Err(backwards(span, text, first, last, ':'));
                }
                PortRange { first, last }
            }
        };
        places += if range.first == range.last { 1 } else { 2 };
        if places > PLACES {
            let message = format!("more than {PLACES} ports in one list");
            return Err(Problem::wrong("too-many-ports", span, message)
                .expected(format!("at most {PLACES} ports, a range counting for two"))
                .help("split the list over two rules"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// MASQUERADE's `--to-ports`: `1024` or `1024-2048`.
pub(crate) fn nat_ports(word: &Word<'_>) -> Value<PortRange> {
    let bad = |text: &str| {
        let problem = Problem::wrong(
            "bad-port",
            word.span,
            format!("`{text}` is not a range of ports"),
        );
        let problem = problem.expected("a port or a range such as `1024-2048`");
        if text.contains(':') {
            problem.help(format!("write `{}`", text.replace(':', "-")))
        } else {
            problem
        }
    };
    let read = |text: &str| {
        port_number(text)
            .or_else(|| service_port(text, None))
            .ok_or_else(|| bad(&word.text))
    };
    let (first, last) = match word.text.split_once('-') {
        Some((low, high)) => (read(low)?, read(high)?),
        None => (read(&word.text)?, read(&word.text)?),
    };
    if first > last {
        return Err(backwards(word.span, &word.text, first, last, '-'));
    }
    Ok(PortRange { first, last })
}

/// `--limit`: `5/minute`, where any beginning of a unit's name will do. What comes back is a period,
/// [`Limit::period`].
pub(crate) fn rate(word: &Word) -> Value<u32> {
    const UNITS: [(&str, u32); 4] = [
        ("second", 1),
        ("minute", 60),
        ("hour", 3_600),
        ("day", 86_400),
    ];
    let bad = || {
        let message = format!("`{}` is not a rate", word.text);
        Problem::wrong("bad-limit", word.span, message)
            .expected("a number, and a unit such as `5/minute`: second, minute, hour or day")
    };
    let (count, unit) = match word.text.split_once('/') {
        Some((count, unit)) => (count, unit),
        None => (&word.text[..], "second"),
    };
    let named = |(name, _): &&(&str, u32)| {
        let beginning = name.get(..unit.len());
        !unit.is_empty() && beginning.is_some_and(|name| name.eq_ignore_ascii_case(unit))
    };
    let (_, seconds) = UNITS.iter().find(named).ok_or_else(bad)?;
    let decimal = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    let count: u32 = decimal
        .then(|| count.parse().ok())
        .flatten()
        .ok_or_else(bad)?;
    if count == 0 {
        return Err(bad());
    }
    let period = Limit::SECOND * seconds / count;
    if period == 0 {
        let message = format!("the rate `{}` is too fast", word.text);
        return Err(
            Problem::wrong("bad-limit", word.span, message).expected("at most 10000 a second")
        );
    }
    Ok(period)
}

/// `--limit-burst`.
pub(crate) fn burst(word: &Word) -> Value<u32> {
    // libxt_limit.c takes no more.
    const MOST: u32 = 10_000;
    number(&word.text, MOST)
        .filter(|burst| *burst > 0)
        .ok_or_else(|| {
            let message = format!("`{}` is not a burst", word.text);
            Problem::wrong("bad-limit", word.span, message)
                .expected(format!("a number from 1 to {MOST}"))
        })
}

/// `--icmp-type`, `--icmpv6-type`: a name, or a number with or without `/code`.
pub(crate) fn icmp(word: &Word<'_>, family: Family) -> Value<IcmpType> {
    let text = &word.text;
    let unknown = || {
        let message = format!("there is no ICMP type `{text}` in {}", family.title());
        let problem = Problem::wrong("bad-icmp-type", word.span, message)
            .expected("a type's name, or its number with or without `/code`");
        match nearest(text, icmp_names(family)) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help("common ones: echo-request, echo-reply, destination-unreachable"),
        }
    };
    if text.starts_with(|letter: char| letter.is_ascii_digit()) {
        let (kind, code) = match text.split_once('/') {
            Some((kind, code)) => (kind, Some(small_number(code).ok_or_else(unknown)?)),
            None => (text.as_ref(), None),
        };
        let kind = small_number(kind).ok_or_else(unknown)?;
        if family == Family::Ipv4 && kind == ANY_V4 {
            // The kernel does not look at the code then (net/ipv4/netfilter/ip_tables.c).
            return Ok(IcmpType {
                kind: None,
                codes: (0, u8::MAX),
            });
        }
        return Ok(IcmpType {
            kind: Some(kind),
            codes: code.map_or((0, u8::MAX), |code| (code, code)),
        });
    }
    match icmp_type(text, family) {
        Named::Type(found) if !text.is_empty() => Ok(found),
        Named::Ambiguous(first, second) if !text.is_empty() => {
            let message = format!("`{text}` is the beginning of several ICMP types");
            Err(Problem::wrong("bad-icmp-type", word.span, message)
                .expected("the whole name")
                .help(format!("write `{first}` or `{second}`")))
        }
        _ => Err(unknown()),
    }
}

/// `--tcp-flags`: the flags examined and those of them that must be set.
pub(crate) fn tcp_flags(mask: &Word<'_>, set: &Word<'_>) -> Value<TcpFlags> {
    Ok(TcpFlags {
        mask: flags(mask)?,
        set: flags(set)?,
    })
}

fn flags(word: &Word<'_>) -> Value<u8> {
    let mut bits = 0;
    // strtok, with which iptables takes the list apart, skips empty parts.
    for (name, span) in word.parts(',').filter(|(name, _)| !name.is_empty()) {
        let upper = name.to_ascii_uppercase();
        bits |= match (
            upper.as_str(),
            TCP_FLAGS.iter().find(|(_, known)| *known == upper),
        ) {
            (_, Some((bit, _))) => *bit,
            ("ALL", None) => 0x3f,
            ("NONE", None) => 0,
            (_, None) => {
                let message = format!("there is no TCP flag `{name}`");
                return Err(Problem::wrong("bad-tcp-flag", span, message)
                    .expected("flags of SYN ACK FIN RST URG PSH ALL NONE, with commas"));
            }
        };
    }
    Ok(bits)
}

/// `--state`, `--ctstate`.
pub(crate) fn states(word: &Word<'_>, with_nat: bool) -> Value<CtStates> {
    let known = || {
        CT_STATES
            .iter()
            .filter(|(bit, _)| with_nat || bit & NAT_STATES == 0)
    };
    let mut bits = 0;
    for (name, span) in word.parts(',') {
        let Some((bit, _)) = known().find(|(_, known)| known.eq_ignore_ascii_case(name)) else {
            let names: Vec<_> = known().map(|(_, name)| *name).collect();
            let message = format!("there is no connection state `{name}`");
            let problem = Problem::wrong("bad-state", span, message)
                .expected(format!("states of {}, with commas", names.join(" ")));
            return Err(match nearest(name, names) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem,
            });
        };
        bits |= bit;
    }
    Ok(CtStates(bits))
}

const NAT_STATES: u8 = CtStates::SNAT.0 | CtStates::DNAT.0;
