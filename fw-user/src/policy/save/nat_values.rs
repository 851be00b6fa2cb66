//! What the targets of the nat table take.

use std::net::IpAddr;

use super::lexer::Word;
use super::values::{self, Value};
use crate::policy::error::Problem;
use crate::policy::model::{Family, Prefix, Translation};
use crate::policy::source::Span;

/// `--to-destination`, `--to-source`: `[address[-address]][:port[-port[/base]]]`, IPv6's addresses in
/// brackets where ports follow.
pub(crate) fn translation(word: &Word<'_>, family: Family, into: &mut Translation) -> Value<()> {
    let text = word.text.as_ref();
    let (addresses, ports) = split(text).ok_or_else(|| bad(word, family))?;
    let at = |part: &str, offset: usize| word.part(offset, part.len());
    if let Some((offset, ports)) = ports {
        let (range, base) = match ports.split_once('/') {
            Some((range, base)) => (range, Some(base)),
            None => (ports, None),
        };
        let word = Word {
            text: range.into(),
            span: at(range, offset),
        };
        let range = values::nat_ports(&word)?;
        into.ports = Some(range);
        if let Some(base) = base {
            // libxt_NAT.c takes it after a range only.
            let is_range = ports.contains('-');
            let base = values::port_number(base).filter(|port| *port > 0 && is_range);
            into.base_port = Some(base.ok_or_else(|| {
                let message = format!("`{ports}` has no base port");
                Problem::wrong("bad-port", at(ports, offset), message)
                    .expected("a range and a port such as `8000-8010/80`")
            })?);
        }
    }
    let (offset, addresses) = addresses;
    if !addresses.is_empty() {
        let (first, last) = match addresses.split_once('-') {
            Some((first, last)) => (first, last),
            None => (addresses, addresses),
        };
        let span = at(addresses, offset);
        let (low, high) = (one(first, span, family)?, one(last, span, family)?);
        if low > high {
            let message = format!("the range of addresses `{addresses}` is backwards");
            return Err(Problem::wrong("bad-address", span, message)
                .expected("the lower address first")
                .help(format!("write `{last}-{first}`")));
        }
        into.addresses = Some((low, high));
    } else if ports.is_none() {
        return Err(bad(word, family));
    }
    Ok(())
}

type Part<'a> = (usize, &'a str);

/// The addresses and the ports, each with its offset.
fn split(text: &str) -> Option<(Part<'_>, Option<Part<'_>>)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (addresses, rest) = inner.split_once(']')?;
        let ports = match rest.strip_prefix(':') {
            Some(ports) => Some((addresses.len() + 3, ports)),
            None if rest.is_empty() => None,
            None => return None,
        };
        return Some(((1, addresses), ports));
    }
    match text.split_once(':') {
        // More than one colon: an IPv6 address.
        Some((addresses, ports)) if !ports.contains(':') => {
            Some(((0, addresses), Some((addresses.len() + 1, ports))))
        }
        _ => Some(((0, text), None)),
    }
}

/// One address, written in full.
fn one(text: &str, span: Span, family: Family) -> Value<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_ipv4() == (family == Family::Ipv4) => Ok(address),
        _ => Err(values::bad_address(text, span, family)),
    }
}

fn bad(word: &Word<'_>, family: Family) -> Problem {
    let example = match family {
        Family::Ipv4 => "`192.0.2.2`, `192.0.2.2:80` or `:80`",
        Family::Ipv6 => "`2001:db8::2`, `[2001:db8::2]:80` or `:80`",
    };
    let message = format!("`{}` is neither an address nor a port", word.text);
    Problem::wrong("bad-address", word.span, message)
        .expected(format!("an address, a port, or both: {example}"))
}

/// NETMAP's `--to`.
pub(crate) fn network(word: &Word<'_>, family: Family) -> Value<Prefix> {
    let network = values::prefix(&word.text, word.span, family)?;
    let contiguous = match network.mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones() == mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones() == mask.to_bits().count_ones(),
    };
    if contiguous {
        return Ok(network);
    }
    let message = format!("the mask of `{}` is no prefix", word.text);
    Err(Problem::wrong("bad-mask", word.span, message).expected("a network such as 192.0.2.0/24"))
}
