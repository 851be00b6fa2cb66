//! The matches that fwbpf knows.

/// A part of what a match of [`packet::PacketDraft`] says: names, arguments, whether `!` may stand before
/// it, the match that it is a part of, and what it does to that.
macro_rules! packet_part {
    ($names:expr, $arguments:literal, $negatable:literal, $pattern:pat, |$argument:ident| $read:expr) => {
        draft_option!(
            MatchDraft::Packet(PacketDraft),
            $names,
            $arguments,
            $negatable,
            |draft, $argument| match draft.built() {
                Some($pattern) => $read,
                _ => Ok(()),
            }
        )
    };
}

pub(crate) mod addrtype;
pub(crate) mod connlimit;
pub(crate) mod conntrack;
pub(crate) mod frag;
pub(crate) mod hashlimit;
pub(crate) mod packet;
pub(crate) mod physdev;
pub(crate) mod policy;
pub(crate) mod recent;
pub(crate) mod routing;
pub(crate) mod rpfilter;
pub(crate) mod set;
pub(crate) mod string;

use super::{
    Argument, BOTH, MatchReading, MatchRow, ONLY_V4, ONLY_V6, OptionRow, ReadOption, Support,
};
use crate::policy::model::{
    Conntrack, CtStates, Family, IcmpType, Limit, Match, Multiport, Negatable, PortRange, Ports,
    Tcp, TcpFlags, WhichPort,
};
use crate::policy::names::{DCCP, ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE};
use crate::policy::packet_match::{Frag, PacketMatch, Physdev};
use crate::policy::save::{Value, packet_values, values};
use crate::policy::source::Span;

/// A match while its options are being read.
#[derive(Clone, Debug)]
pub(crate) enum MatchDraft {
    Tcp(Tcp),
    Udp(Ports),
    Icmp(Option<Negatable<IcmpType>>),
    Multiport(Option<Multiport>),
    State(Option<Negatable<CtStates>>),
    Conntrack(Conntrack),
    Limit(LimitDraft),
    Set(set::Draft),
    Recent(recent::Draft),
    Hashlimit(hashlimit::Draft),
    Connlimit(connlimit::Draft),
    Comment(Option<String>),
    Packet(packet::PacketDraft),
    Text(string::Draft),
    Frag(Frag),
    Physdev(Physdev),
    Policy(policy::Draft),
    ReversePath(rpfilter::Draft),
}

/// `-m limit` while its options are being read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LimitDraft {
    period: Option<u32>,
    burst: Option<u32>,
    /// Where the last option is that says how much.
    at: Option<Span>,
}

/// Why a match is not finished.
pub(crate) enum Unfinished {
    /// An option is missing: this one.
    Says(&'static str),
    /// Its options do not go together.
    Wrong(Box<super::Problem>),
}

impl MatchDraft {
    /// The finished match, or the option that it cannot be without.
    pub fn finish(self, family: Family) -> Result<Match, Unfinished> {
        let whole = match self {
            Self::Tcp(tcp) => Ok(Match::Tcp(tcp)),
            Self::Udp(ports) => Ok(Match::Udp(ports)),
            Self::Icmp(None) => Err("--icmp-type (in IPv6 --icmpv6-type)"),
            Self::Icmp(kind) => Ok(Match::Icmp(kind)),
            Self::Multiport(ports) => ports
                .map(Match::Multiport)
                .ok_or("--sports, --dports or --ports"),
            Self::State(states) => states.map(Match::State).ok_or("--state"),
            Self::Conntrack(conntrack) if conntrack == Conntrack::default() => {
                Err("--ctstate, --ctdir or another of its options")
            }
            Self::Conntrack(conntrack) => Ok(Match::Conntrack(conntrack)),
            Self::Limit(limit) => return limit.finish(),
            Self::Recent(recent) => return recent.finish(family),
            Self::Hashlimit(limit) => return limit.finish(family),
            Self::Connlimit(limit) => return limit.finish(family),
            Self::Set(set) => set.finish().ok_or("--match-set"),
            Self::Packet(packet) => return packet.finish(),
            Self::Text(text) => return text.finish(),
            Self::Frag(frag) => Ok(Match::Packet(PacketMatch::Frag(frag))),
            Self::Physdev(physdev) => return physdev::finish(physdev),
            Self::Policy(policy) => return policy.finish(),
            Self::ReversePath(path) => return Ok(path.finish()),
            Self::Comment(text) => text.map(Match::Comment).ok_or("--comment"),
        };
        whole.map_err(Unfinished::Says)
    }
}

impl LimitDraft {
    /// Three an hour is what iptables takes where nothing is said (libxt_limit.c).
    fn finish(self) -> Result<Match, Unfinished> {
        let limit = Limit {
            period: self.period.unwrap_or(3600 * Limit::SECOND / 3),
            burst: self.burst.unwrap_or(Limit::BURST),
        };
        if limit.credits().is_some() {
            return Ok(Match::Limit(limit));
        }
        let message = format!(
            "a burst of {} is too much for a limit of {limit}",
            limit.burst
        );
        let problem = super::Problem::wrong("bad-limit", self.at.unwrap_or_default(), message)
            .expected("numbers whose product the kernel can count with")
            .help("write a smaller `--limit-burst`, which is 5 where none is written");
        Err(Unfinished::Wrong(Box::new(problem)))
    }
}

pub(crate) const MATCHES: &[MatchRow] = &[
    MatchRow {
        name: "tcp",
        aliases: &[],
        families: BOTH,
        support: Support::Yes,
        note: "Ports, ranges, service names, `--tcp-flags`, `--syn` and `--tcp-option`.",
        reading: Some(MatchReading {
            start: || MatchDraft::Tcp(Tcp::default()),
            protocols: &[TCP],
            options: &[
                draft_option!(
                    MatchDraft::Tcp(Tcp),
                    &["sport", "source-port"],
                    1,
                    true,
                    |tcp, argument| port(&mut tcp.ports.source, argument, Some(TCP))
                ),
                draft_option!(
                    MatchDraft::Tcp(Tcp),
                    &["dport", "destination-port"],
                    1,
                    true,
                    |tcp, argument| port(&mut tcp.ports.destination, argument, Some(TCP))
                ),
                OptionRow {
                    names: &["tcp-flags"],
                    arguments: 2,
                    negatable: true,
                    read: ReadOption::Into(|draft, argument| {
                        let [mask, set] = argument.words else {
                            return Ok(());
                        };
                        set_flags(draft, argument, values::tcp_flags(mask, set)?)
                    }),
                },
                OptionRow {
                    names: &["syn"],
                    arguments: 0,
                    negatable: true,
                    read: ReadOption::Into(|draft, argument| {
                        // FIN, SYN, RST and ACK are examined; of them SYN alone is set.
                        set_flags(
                            draft,
                            argument,
                            TcpFlags {
                                mask: 0x17,
                                set: 0x02,
                            },
                        )
                    }),
                },
                OptionRow {
                    names: &["tcp-option"],
                    arguments: 1,
                    negatable: true,
                    read: ReadOption::Into(tcp_option),
                },
            ],
        }),
    },
    MatchRow {
        name: "udp",
        aliases: &[],
        families: BOTH,
        support: Support::Yes,
        note: "Ports, ranges and service names.",
        reading: Some(MatchReading {
            start: || MatchDraft::Udp(Ports::default()),
            protocols: &[UDP],
            options: &[
                draft_option!(
                    MatchDraft::Udp(Ports),
                    &["sport", "source-port"],
                    1,
                    true,
                    |ports, argument| port(&mut ports.source, argument, Some(UDP))
                ),
                draft_option!(
                    MatchDraft::Udp(Ports),
                    &["dport", "destination-port"],
                    1,
                    true,
                    |ports, argument| port(&mut ports.destination, argument, Some(UDP))
                ),
            ],
        }),
    },
    MatchRow {
        name: "icmp",
        aliases: &[],
        families: ONLY_V4,
        support: Support::Yes,
        note: "`--icmp-type` by name, number, `type/code` or `any`.",
        reading: Some(MatchReading {
            start: || MatchDraft::Icmp(None),
            protocols: &[ICMP],
            options: &[OptionRow {
                names: &["icmp-type"],
                arguments: 1,
                negatable: true,
                read: ReadOption::Into(icmp_type),
            }],
        }),
    },
    MatchRow {
        name: "icmp6",
        aliases: &["icmpv6", "ipv6-icmp"],
        families: ONLY_V6,
        support: Support::Yes,
        note: "`--icmpv6-type` by name, number or `type/code`.",
        reading: Some(MatchReading {
            start: || MatchDraft::Icmp(None),
            protocols: &[ICMPV6],
            options: &[OptionRow {
                names: &["icmpv6-type"],
                arguments: 1,
                negatable: true,
                read: ReadOption::Into(icmp_type),
            }],
        }),
    },
    MatchRow {
        name: "multiport",
        aliases: &[],
        families: BOTH,
        support: Support::Yes,
        note: "`--sports`, `--dports` and `--ports` with up to 15 ports, a range counting for two.",
        reading: Some(MatchReading {
            start: || MatchDraft::Multiport(None),
            protocols: &[TCP, UDP, UDPLITE, SCTP, DCCP],
            options: &[
                OptionRow {
                    names: &["sports", "source-ports"],
                    arguments: 1,
                    negatable: true,
                    read: ReadOption::Into(|draft, argument| {
                        multiport(draft, argument, WhichPort::Source)
                    }),
                },
                OptionRow {
                    names: &["dports", "destination-ports"],
                    arguments: 1,
                    negatable: true,
                    read: ReadOption::Into(|draft, argument| {
                        multiport(draft, argument, WhichPort::Destination)
                    }),
                },
                OptionRow {
                    names: &["ports"],
                    arguments: 1,
                    negatable: true,
                    read: ReadOption::Into(|draft, argument| {
                        multiport(draft, argument, WhichPort::Either)
                    }),
                },
            ],
        }),
    },
    MatchRow {
        name: "state",
        aliases: &[],
        families: BOTH,
        support: Support::Yes,
        note: "`--state` with NEW, ESTABLISHED, RELATED, INVALID and UNTRACKED.",
        reading: Some(MatchReading {
            start: || MatchDraft::State(None),
            protocols: &[],
            options: &[OptionRow {
                names: &["state"],
                arguments: 1,
                negatable: true,
                read: ReadOption::Into(|draft, argument| {
                    let MatchDraft::State(states) = draft else {
                        return Ok(());
                    };
                    ct_states(states, argument, false)
                }),
            }],
        }),
    },
    MatchRow {
        name: "limit",
        aliases: &[],
        families: BOTH,
        support: Support::Yes,
        note: "xt_limit's arithmetic, one bucket for all CPUs. A load fills every bucket, as iptables-restore does.",
        reading: Some(MatchReading {
            start: || MatchDraft::Limit(LimitDraft::default()),
            protocols: &[],
            options: &[
                OptionRow {
                    names: &["limit"],
                    arguments: 1,
                    negatable: false,
                    read: ReadOption::Into(|draft, argument| {
                        let (MatchDraft::Limit(limit), [word]) = (draft, argument.words) else {
                            return Ok(());
                        };
                        limit.at = Some(word.span);
                        argument.once(&mut limit.period, values::rate(word)?)
                    }),
                },
                OptionRow {
                    names: &["limit-burst"],
                    arguments: 1,
                    negatable: false,
                    read: ReadOption::Into(|draft, argument| {
                        let (MatchDraft::Limit(limit), [word]) = (draft, argument.words) else {
                            return Ok(());
                        };
                        limit.at = Some(word.span);
                        argument.once(&mut limit.burst, values::burst(word)?)
                    }),
                },
            ],
        }),
    },
    MatchRow {
        name: "comment",
        aliases: &[],
        families: BOTH,
        support: Support::Yes,
        note: "Kept, shown with the rule, and used as a label of its metrics.",
        reading: Some(MatchReading {
            start: || MatchDraft::Comment(None),
            protocols: &[],
            options: &[OptionRow {
                names: &["comment"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(comment),
            }],
        }),
    },
];

fn port(
    place: &mut Option<Negatable<PortRange>>,
    argument: &Argument<'_>,
    protocol: Option<u8>,
) -> Value<()> {
    let [word] = argument.words else {
        return Ok(());
    };
    let value = values::port_range(word, protocol)?;
    argument.once(place, argument.negatable(value))
}

fn set_flags(draft: &mut MatchDraft, argument: &Argument<'_>, value: TcpFlags) -> Value<()> {
    let MatchDraft::Tcp(tcp) = draft else {
        return Ok(());
    };
    argument.once(&mut tcp.flags, argument.negatable(value))
}

fn tcp_option(draft: &mut MatchDraft, argument: &Argument<'_>) -> Value<()> {
    let (MatchDraft::Tcp(tcp), [word]) = (draft, argument.words) else {
        return Ok(());
    };
    let value = packet_values::up_to(word, 255)? as u8;
    argument.once(&mut tcp.option, argument.negatable(value))
}

fn icmp_type(draft: &mut MatchDraft, argument: &Argument<'_>) -> Value<()> {
    let (MatchDraft::Icmp(kind), [word]) = (draft, argument.words) else {
        return Ok(());
    };
    let value = values::icmp(word, argument.family)?;
    argument.once(kind, argument.negatable(value))
}

fn multiport(draft: &mut MatchDraft, argument: &Argument<'_>, which: WhichPort) -> Value<()> {
    let (MatchDraft::Multiport(multiport), [word]) = (draft, argument.words) else {
        return Ok(());
    };
    if multiport.is_some() {
        return Err(argument
            .twice()
            .expected("one list per `-m multiport`")
            .help("write `-m multiport` before each list"));
    }
    let ports = values::port_list(word, argument.protocol)?;
    let ports = argument.negatable(ports);
    argument.once(multiport, Multiport { which, ports })
}

fn ct_states(
    place: &mut Option<Negatable<CtStates>>,
    argument: &Argument<'_>,
    with_nat: bool,
) -> Value<()> {
    let [word] = argument.words else {
        return Ok(());
    };
    let value = values::states(word, with_nat)?;
    argument.once(place, argument.negatable(value))
}

fn comment(draft: &mut MatchDraft, argument: &Argument<'_>) -> Value<()> {
    // XT_MAX_COMMENT_LEN in linux/netfilter/xt_comment.h, with the terminating zero.
    const LONGEST: usize = 255;
    let (MatchDraft::Comment(text), [word]) = (draft, argument.words) else {
        return Ok(());
    };
    if word.text.len() > LONGEST {
        let message = format!("the comment has {} bytes", word.text.len());
        let problem = super::Problem::wrong("long-comment", word.span, message);
        return Err(problem.expected(format!("at most {LONGEST} bytes")));
    }
    argument.once(text, word.text.to_string())
}
