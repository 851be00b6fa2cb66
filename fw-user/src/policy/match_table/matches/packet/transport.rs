//! What the headers behind IP's say, of TCP's options, IPsec, SCTP and DCCP.

use super::super::MatchDraft;
use super::{PacketDraft, many, one, yes};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, ONLY_V4, OptionRow, ReadOption, Support,
};
use crate::policy::model::Ports;
use crate::policy::names::{AH, DCCP, ESP, SCTP, TCP};
use crate::policy::packet_match::PacketMatch;
use crate::policy::save::{Value, packet_values as values};

/// `--sport` or `--dport` of a match that keeps them in [`Ports`].
macro_rules! port {
    ($names:expr, $protocol:expr, $side:ident) => {
        packet_part!(
            $names,
            1,
            true,
            PacketMatch::Sctp(ports) | PacketMatch::Dccp(ports, _),
            |argument| {
                let value = values::port_range(&argument.words[0], $protocol)?;
                argument.once(&mut ports.$side, argument.negatable(value))
            }
        )
    };
}

const NO_PORTS: Ports = Ports {
    source: None,
    destination: None,
};

pub(crate) const MATCHES: &[MatchRow] = &[
    yes(
        "tcpmss",
        BOTH,
        "The MSS that TCP's options announce.",
        MatchReading {
            start: || MatchDraft::Packet(one("--mss")),
            protocols: &[TCP],
            options: &[whole!(
                &["mss"],
                true,
                values::half_range,
                PacketMatch::Segment
            )],
        },
    ),
    yes(
        "esp",
        BOTH,
        "`--espspi`.",
        MatchReading {
            start: || MatchDraft::Packet(many(PacketMatch::Esp(None), "")),
            protocols: &[ESP],
            options: &[packet_part!(
                &["espspi"],
                1,
                true,
                PacketMatch::Esp(spi),
                |argument| {
                    let range = values::range32(&argument.words[0])?;
                    argument.once(spi, argument.negatable(range))
                }
            )],
        },
    ),
    yes(
        "ah",
        ONLY_V4,
        "`--ahspi`. In IPv6, AH is an extension header, which is skipped.",
        MatchReading {
            start: || MatchDraft::Packet(many(PacketMatch::Ah(None), "")),
            protocols: &[AH],
            options: &[packet_part!(
                &["ahspi"],
                1,
                true,
                PacketMatch::Ah(spi),
                |argument| {
                    let range = values::range32(&argument.words[0])?;
                    argument.once(spi, argument.negatable(range))
                }
            )],
        },
    ),
    MatchRow {
        name: "sctp",
        aliases: &[],
        families: BOTH,
        support: Support::Partly,
        note: "Ports; not `--chunk-types`.",
        reading: Some(MatchReading {
            start: || MatchDraft::Packet(many(PacketMatch::Sctp(NO_PORTS), "")),
            protocols: &[SCTP],
            options: &[
                port!(&["sport", "source-port"], Some(SCTP), source),
                port!(&["dport", "destination-port"], Some(SCTP), destination),
                OptionRow {
                    names: &["chunk-types"],
                    arguments: 2,
                    negatable: true,
                    read: ReadOption::Unsupported(
                        "rules do not see chunks, only what tracking makes of them: `-m conntrack --ctstate NEW` is what opens an association (INIT), INVALID what does not belong to it",
                    ),
                },
            ],
        }),
    },
    MatchRow {
        name: "dccp",
        aliases: &[],
        families: BOTH,
        support: Support::Partly,
        note: "Ports and `--dccp-types`; not `--dccp-option`.",
        reading: Some(MatchReading {
            start: || MatchDraft::Packet(many(PacketMatch::Dccp(NO_PORTS, None), "")),
            protocols: &[DCCP],
            options: &[
                port!(&["sport", "source-port"], Some(DCCP), source),
                port!(&["dport", "destination-port"], Some(DCCP), destination),
                packet_part!(
                    &["dccp-types"],
                    1,
                    true,
                    PacketMatch::Dccp(_, types),
                    |argument| {
                        let value = values::dccp_types(&argument.words[0])?;
                        argument.once(types, argument.negatable(value))
                    }
                ),
                OptionRow {
                    names: &["dccp-option"],
                    arguments: 1,
                    negatable: true,
                    read: ReadOption::Unsupported("leave it out: DCCP's options are not looked at"),
                },
            ],
        }),
    },
];
