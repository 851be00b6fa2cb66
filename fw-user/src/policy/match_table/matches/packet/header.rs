//! What IP's header says, and the frame around it: addresses, lengths, hop counts, classes.

use super::super::MatchDraft;
use super::{PacketDraft, many, one, yes};
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, ONLY_V4, ONLY_V6, OptionRow, ReadOption,
};
use crate::policy::names::TCP;
use crate::policy::packet_match::{Ecn, Hops, PacketMatch};
use crate::policy::save::{Value, packet_values as values};

pub(crate) const MATCHES: &[MatchRow] = &[
    yes(
        "iprange",
        BOTH,
        "`--src-range` and `--dst-range`.",
        MatchReading {
            start: || {
                let none = PacketMatch::Range {
                    source: None,
                    destination: None,
                };
                MatchDraft::Packet(many(none, "--src-range or --dst-range"))
            },
            protocols: &[],
            options: &[
                packet_part!(
                    &["src-range"],
                    1,
                    true,
                    PacketMatch::Range { source, .. },
                    |argument| {
                        let range = values::addresses(&argument.words[0], argument.family)?;
                        argument.once(source, argument.negatable(range))
                    }
                ),
                packet_part!(
                    &["dst-range"],
                    1,
                    true,
                    PacketMatch::Range { destination, .. },
                    |argument| {
                        let range = values::addresses(&argument.words[0], argument.family)?;
                        argument.once(destination, argument.negatable(range))
                    }
                ),
            ],
        },
    ),
    yes(
        "mac",
        BOTH,
        "On Ethernet. In FORWARD, where the frame has another address already, the one under which \
         the sender's IP address was last seen at that interface.",
        MatchReading {
            start: || MatchDraft::Packet(one("--mac-source")),
            protocols: &[],
            options: &[whole!(
                &["mac-source"],
                true,
                values::link_address,
                PacketMatch::LinkSource
            )],
        },
    ),
    yes(
        "length",
        BOTH,
        "Bytes of layer 3. Of a datagram in fragments, those of the first one.",
        MatchReading {
            start: || MatchDraft::Packet(one("--length")),
            protocols: &[],
            options: &[whole!(
                &["length"],
                true,
                values::half_range,
                PacketMatch::Length
            )],
        },
    ),
    yes(
        "ttl",
        ONLY_V4,
        "`--ttl-eq`, `--ttl-lt` and `--ttl-gt`.",
        MatchReading {
            start: || MatchDraft::Packet(one("--ttl-eq, --ttl-lt or --ttl-gt")),
            protocols: &[],
            options: &[
                option!(&["ttl-eq", "ttl"], 1, true, equal),
                option!(&["ttl-lt"], 1, false, less),
                option!(&["ttl-gt"], 1, false, greater),
            ],
        },
    ),
    yes(
        "hl",
        ONLY_V6,
        "`--hl-eq`, `--hl-lt` and `--hl-gt`.",
        MatchReading {
            start: || MatchDraft::Packet(one("--hl-eq, --hl-lt or --hl-gt")),
            protocols: &[],
            options: &[
                option!(&["hl-eq", "hl"], 1, true, equal),
                option!(&["hl-lt"], 1, false, less),
                option!(&["hl-gt"], 1, false, greater),
            ],
        },
    ),
    yes(
        "dscp",
        BOTH,
        "By number or class.",
        MatchReading {
            start: || MatchDraft::Packet(one("--dscp or --dscp-class")),
            protocols: &[],
            options: &[
                whole!(&["dscp"], true, values::dscp, PacketMatch::Dscp),
                whole!(&["dscp-class"], true, values::dscp_class, PacketMatch::Dscp),
            ],
        },
    ),
    yes(
        "tos",
        BOTH,
        "By value, value and mask, or name.",
        MatchReading {
            start: || MatchDraft::Packet(one("--tos")),
            protocols: &[],
            options: &[whole!(&["tos"], true, values::tos, PacketMatch::Tos)],
        },
    ),
    yes(
        "ecn",
        BOTH,
        "The bits of IP and of TCP.",
        MatchReading {
            start: || {
                let none = PacketMatch::Ecn(Ecn {
                    echo: None,
                    reduced: None,
                    transport: None,
                });
                MatchDraft::Packet(many(none, "--ecn-tcp-cwr, --ecn-tcp-ece or --ecn-ip-ect"))
            },
            protocols: &[],
            options: &[
                packet_part!(
                    &["ecn-tcp-cwr"],
                    0,
                    true,
                    PacketMatch::Ecn(ecn),
                    |argument| {
                        needs_tcp(argument)?;
                        argument.once(&mut ecn.reduced, argument.not)
                    }
                ),
                packet_part!(
                    &["ecn-tcp-ece"],
                    0,
                    true,
                    PacketMatch::Ecn(ecn),
                    |argument| {
                        needs_tcp(argument)?;
                        argument.once(&mut ecn.echo, argument.not)
                    }
                ),
                packet_part!(
                    &["ecn-ip-ect"],
                    1,
                    true,
                    PacketMatch::Ecn(ecn),
                    |argument| {
                        let value = values::up_to(&argument.words[0], 3)? as u8;
                        argument.once(&mut ecn.transport, argument.negatable(value))
                    }
                ),
            ],
        },
    ),
    yes(
        "pkttype",
        BOTH,
        "Whom the frame was sent to: `unicast`, `broadcast` or `multicast`.",
        MatchReading {
            start: || MatchDraft::Packet(one("--pkt-type")),
            protocols: &[],
            options: &[whole!(
                &["pkt-type"],
                true,
                values::packet_type,
                PacketMatch::PacketType
            )],
        },
    ),
];

fn equal(draft: &mut PacketDraft, argument: &Argument<'_>) -> Value<()> {
    let value = values::up_to(&argument.words[0], 255)? as u8;
    draft.set(
        argument,
        PacketMatch::Hops(Hops::Equal(argument.negatable(value))),
    )
}

fn less(draft: &mut PacketDraft, argument: &Argument<'_>) -> Value<()> {
    let value = values::up_to(&argument.words[0], 255)? as u8;
    draft.set(argument, PacketMatch::Hops(Hops::Less(value)))
}

fn greater(draft: &mut PacketDraft, argument: &Argument<'_>) -> Value<()> {
    let value = values::up_to(&argument.words[0], 255)? as u8;
    draft.set(argument, PacketMatch::Hops(Hops::Greater(value)))
}

fn needs_tcp(argument: &Argument<'_>) -> Value<()> {
    if argument.protocol == Some(TCP) {
        return Ok(());
    }
    let message = format!("`{}` needs a protocol", argument.option.text);
    let problem = Problem::wrong("needs-protocol", argument.option.span, message);
    Err(problem.expected("`-p tcp` before it"))
}
