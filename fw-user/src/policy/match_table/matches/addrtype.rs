//! The row of `-m addrtype`.

use super::MatchDraft;
use super::packet::PacketDraft;
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Family, Negatable};
use crate::policy::packet_match::{AddressType, PacketMatch};
use crate::policy::save::Value;
use crate::policy::source::Span;

pub(crate) const MATCHES: &[MatchRow] = &[MatchRow {
    name: "addrtype",
    aliases: &[],
    families: BOTH,
    support: Support::Partly,
    note: "By the kernel's table of local addresses, as iptables does; without `--limit-iface-in` and \
           `--limit-iface-out`, and in IPv6 without UNREACHABLE.",
    reading: Some(MatchReading {
        start: || {
            let none = PacketMatch::AddressType(AddressType::default());
            MatchDraft::Packet(PacketDraft::of(none, "--src-type or --dst-type"))
        },
        protocols: &[],
        options: &[
            packet_part!(
                &["src-type"],
                1,
                true,
                PacketMatch::AddressType(types),
                |argument| read(&mut types.source, argument)
            ),
            packet_part!(
                &["dst-type"],
                1,
                true,
                PacketMatch::AddressType(types),
                |argument| read(&mut types.destination, argument)
            ),
            OptionRow {
                names: &["limit-iface-in"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Unsupported(
                    "it is not known which interface an address belongs to: name the interface with `-i` and the addresses with `-s` or `-d`",
                ),
            },
            OptionRow {
                names: &["limit-iface-out"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Unsupported(
                    "it is not known which interface an address belongs to: name the interface with `-o` and the addresses with `-s` or `-d`",
                ),
            },
        ],
    }),
}];

/// Types, with commas. iptables takes the beginnings of names, too, and the first name that fits
/// (`parse_type`, extensions/libxt_addrtype.c).
fn read(place: &mut Option<Negatable<u16>>, argument: &Argument<'_>) -> Value<()> {
    let word = &argument.words[0];
    let mut value = 0;
    for (name, span) in word.parts(',') {
        let fits = |known: &str| {
            known
                .get(..name.len())
                .is_some_and(|start| !name.is_empty() && start.eq_ignore_ascii_case(name))
        };
        let Some(number) = AddressType::NAMES.iter().position(|known| fits(known)) else {
            let message = format!("`{name}` is not a type of addresses");
            return Err(Problem::wrong("bad-value", span, message).expected(format!(
                "types of {}, with commas",
                AddressType::NAMES.join(" ")
            )));
        };
        if argument.family == Family::Ipv6 {
            refuse_for_ipv6(AddressType::NAMES[number], span)?;
        }
        value |= 1 << number;
    }
    if argument.family == Family::Ipv6 && AddressType::is_two_questions(value) {
        let message = "LOCAL and ANYCAST are not asked for together beside another type";
        return Err(Problem::unsupported("address-type", word.span, message)
            .expected("a rule for LOCAL and one for ANYCAST"));
    }
    argument.once(place, argument.negatable(value))
}

/// The kernel refuses most types that IPv6's addresses do not have (`addrtype_mt_checkentry_v1`,
/// net/netfilter/xt_addrtype.c).
fn refuse_for_ipv6(name: &str, span: Span) -> Value<()> {
    match name {
        "UNSPEC" | "UNICAST" | "LOCAL" | "ANYCAST" | "MULTICAST" => Ok(()),
        "UNREACHABLE" => {
            let message = "whether there is a way to an IPv6 address is not looked up for rules";
            Err(Problem::unsupported("address-type", span, message)
                .expected("the addresses, with `-s` or `-d`"))
        }
        _ => {
            let message = format!("no IPv6 address is of the type {name}; the kernel refuses it");
            Err(Problem::wrong("bad-value", span, message)
                .expected("types of UNSPEC UNICAST LOCAL ANYCAST MULTICAST, with commas"))
        }
    }
}
