//! The rows of [`crate::policy::packet_match`]: lengths, marks, owners, the time and the like.

use super::{MatchDraft, Unfinished};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, ONLY_V4, ONLY_V6, OptionRow, ReadOption, Support,
};
use crate::policy::model::{Match, Negatable, Ports};
use crate::policy::names::{AH, DCCP, ESP, SCTP, TCP};
use crate::policy::packet_match::{
    AddressType, Ecn, Hops, Owner, PacketMatch, Routing, Statistic, Time,
};
use crate::policy::save::Value;
use crate::policy::save::packet_values as values;
use crate::policy::source::Span;

/// One of these matches while its options are being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct PacketDraft {
    /// What has been read, or what the match is before its first option.
    built: Option<PacketMatch>,
    /// The option that it cannot be without.
    missing: &'static str,
    statistic: StatisticDraft,
}

#[derive(Clone, Copy, Debug, Default)]
struct StatisticDraft {
    mode: Option<values::Mode>,
    not: bool,
    probability: Option<u32>,
    every: Option<u32>,
    packet: Option<u32>,
    at: Span,
}

/// A match of which one option says all.
const fn one(missing: &'static str) -> PacketDraft {
    PacketDraft {
        built: None,
        missing,
        statistic: StatisticDraft {
            mode: None,
            not: false,
            probability: None,
            every: None,
            packet: None,
            at: Span { start: 0, end: 0 },
        },
    }
}

/// A match of several options.
fn many(built: PacketMatch, missing: &'static str) -> PacketDraft {
    PacketDraft {
        built: Some(built),
        ..one(missing)
    }
}

impl PacketDraft {
    /// A match of several options, of which it cannot be without one.
    pub fn of(built: PacketMatch, missing: &'static str) -> Self {
        many(built, missing)
    }

    /// The types of addresses, if the match is about those.
    pub fn address_type(&mut self) -> Option<&mut AddressType> {
        match &mut self.built {
            Some(PacketMatch::AddressType(types)) => Some(types),
            _ => None,
        }
    }

    /// The routing header, if the match is about that.
    pub fn routing(&mut self) -> Option<&mut Routing> {
        match &mut self.built {
            Some(PacketMatch::Routing(routing)) => Some(routing),
            _ => None,
        }
    }

    pub fn finish(self) -> Result<Match, Unfinished> {
        if self.missing == STATISTIC {
            return self.statistic.finish().map(Match::Packet);
        }
        let says_nothing = match &self.built {
            None => true,
            Some(PacketMatch::Range {
                source,
                destination,
            }) => source.is_none() && destination.is_none(),
            Some(PacketMatch::Ecn(ecn)) => *ecn == Ecn::default(),
            Some(PacketMatch::Owner(owner)) => *owner == Owner::default(),
            Some(PacketMatch::AddressType(types)) => *types == AddressType::default(),
            Some(PacketMatch::Time(time)) if time.contiguous && time.daytime.0 < time.daytime.1 => {
                return Err(Unfinished::Says(
                    "a `--timestop` before its `--timestart`, which `--contiguous` is for",
                ));
            }
            Some(_) => false,
        };
        match self.built {
            Some(built) if !says_nothing => Ok(Match::Packet(built)),
            _ => Err(Unfinished::Says(self.missing)),
        }
    }
}

impl StatisticDraft {
    fn finish(self) -> Result<PacketMatch, Unfinished> {
        let value = match (self.mode, self.probability, self.every, self.packet) {
            (Some(values::Mode::Random), Some(probability), None, None) => {
                Statistic::Random(probability)
            }
            (Some(values::Mode::Random), ..) => {
                return Err(Unfinished::Says("--probability alone"));
            }
            (Some(values::Mode::Nth), None, Some(every), Some(packet)) if packet < every => {
                Statistic::Nth { every, packet }
            }
            (Some(values::Mode::Nth), None, Some(_), Some(_)) => {
                let message = "the `--packet` is none of those that `--every` counts";
                let problem = super::super::Problem::wrong("bad-statistic", self.at, message)
                    .expected("a number below that of `--every`");
                return Err(Unfinished::Wrong(Box::new(problem)));
            }
            (Some(values::Mode::Nth), ..) => {
                return Err(Unfinished::Says("--every and --packet"));
            }
            (None, ..) => return Err(Unfinished::Says("--mode")),
        };
        Ok(PacketMatch::Statistic(Negatable {
            not: self.not,
            value,
        }))
    }
}

const STATISTIC: &str = "--mode random or nth";

impl PacketDraft {
    /// Takes all that a match says, once.
    fn set(&mut self, argument: &Argument<'_>, built: PacketMatch) -> Value<()> {
        argument.once(&mut self.built, built)
    }
}

/// A value with the `!` before its option.
fn with_not<T>(argument: &Argument<'_>, value: T) -> Negatable<T> {
    Negatable {
        not: argument.not,
        value,
    }
}

/// An option of these matches: names, arguments, whether `!` may stand before it, and what it does
/// to the draft.
macro_rules! option {
    ($names:expr, $arguments:literal, $negatable:literal, $read:expr) => {
        OptionRow {
            names: $names,
            arguments: $arguments,
            negatable: $negatable,
            read: ReadOption::Into(|draft, argument| {
                let MatchDraft::Packet(packet) = draft else {
                    return Ok(());
                };
                let read: fn(&mut PacketDraft, &Argument<'_>) -> Value<()> = $read;
                read(packet, argument)
            }),
        }
    };
}

/// An option of a match that has only this one: `$make` makes the match of its value.
macro_rules! whole {
    ($names:expr, $negatable:literal, $value:path, $make:path) => {
        option!($names, 1, $negatable, |draft, argument| {
            let value = $value(&argument.words[0])?;
            draft.set(argument, $make(with_not(argument, value)))
        })
    };
}

/// `--sport` or `--dport` of a match that keeps them in [`Ports`].
macro_rules! port {
    ($names:expr, $protocol:expr, $side:ident) => {
        option!($names, 1, true, |draft, argument| {
            let (Some(PacketMatch::Sctp(ports)) | Some(PacketMatch::Dccp(ports, _))) =
                &mut draft.built
            else {
                return Ok(());
            };
            let value = values::port_range(&argument.words[0], $protocol)?;
            argument.once(&mut ports.$side, with_not(argument, value))
        })
    };
}

/// A part of `-m time`.
macro_rules! time {
    ($names:expr, $arguments:literal, $negatable:literal, |$time:ident, $argument:ident| $read:expr) => {
        option!($names, $arguments, $negatable, |draft, $argument| {
            if let Some(PacketMatch::Time($time)) = &mut draft.built {
                $read;
            }
            Ok(())
        })
    };
}

const NO_PORTS: Ports = Ports {
    source: None,
    destination: None,
};

const fn yes(
    name: &'static str,
    families: &'static [crate::policy::model::Family],
    note: &'static str,
    reading: MatchReading,
) -> MatchRow {
    MatchRow {
        name,
        aliases: &[],
        families,
        support: Support::Yes,
        note,
        reading: Some(reading),
    }
}

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
                option!(&["src-range"], 1, true, |draft, argument| {
                    let Some(PacketMatch::Range { source, .. }) = &mut draft.built else {
                        return Ok(());
                    };
                    let range = values::addresses(&argument.words[0], argument.family)?;
                    argument.once(source, with_not(argument, range))
                }),
                option!(&["dst-range"], 1, true, |draft, argument| {
                    let Some(PacketMatch::Range { destination, .. }) = &mut draft.built else {
                        return Ok(());
                    };
                    let range = values::addresses(&argument.words[0], argument.family)?;
                    argument.once(destination, with_not(argument, range))
                }),
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
                option!(&["ecn-tcp-cwr"], 0, true, |draft, argument| {
                    match &mut draft.built {
                        Some(PacketMatch::Ecn(ecn)) => {
                            needs_tcp(argument)?;
                            argument.once(&mut ecn.reduced, argument.not)
                        }
                        _ => Ok(()),
                    }
                }),
                option!(&["ecn-tcp-ece"], 0, true, |draft, argument| {
                    match &mut draft.built {
                        Some(PacketMatch::Ecn(ecn)) => {
                            needs_tcp(argument)?;
                            argument.once(&mut ecn.echo, argument.not)
                        }
                        _ => Ok(()),
                    }
                }),
                option!(&["ecn-ip-ect"], 1, true, |draft, argument| {
                    let Some(PacketMatch::Ecn(ecn)) = &mut draft.built else {
                        return Ok(());
                    };
                    let value = values::up_to(&argument.words[0], 3)? as u8;
                    argument.once(&mut ecn.transport, with_not(argument, value))
                }),
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
    yes(
        "mark",
        BOTH,
        "The packet's mark, with or without a mask.",
        MatchReading {
            start: || MatchDraft::Packet(one("--mark")),
            protocols: &[],
            options: &[whole!(&["mark"], true, values::mark, PacketMatch::Mark)],
        },
    ),
    yes(
        "connmark",
        BOTH,
        "The mark of the packet's flow, with or without a mask.",
        MatchReading {
            start: || MatchDraft::Packet(one("--mark")),
            protocols: &[],
            options: &[whole!(&["mark"], true, values::mark, PacketMatch::FlowMark)],
        },
    ),
    yes(
        "cpu",
        BOTH,
        "The CPU that the packet is judged on.",
        MatchReading {
            start: || MatchDraft::Packet(one("--cpu")),
            protocols: &[],
            options: &[whole!(&["cpu"], true, values::number32, PacketMatch::Cpu)],
        },
    ),
    MatchRow {
        name: "owner",
        aliases: &[],
        families: BOTH,
        support: Support::Partly,
        note: "`--uid-owner` and `--gid-owner`, with ranges, and `--socket-exists`. \
               Where the kernel has no BTF (Debian's has), `--gid-owner` is \
               refused when it is loaded, and the last packets of a connection that its program \
               has closed still count as the program's; iptables has no owner for them.",
        reading: Some(MatchReading {
            start: || {
                let none = PacketMatch::Owner(Owner {
                    socket: None,
                    user: None,
                    group: None,
                });
                let missing = "--uid-owner, --gid-owner or --socket-exists";
                MatchDraft::Packet(many(none, missing))
            },
            protocols: &[],
            options: &[
                option!(&["uid-owner"], 1, true, |draft, argument| {
                    let Some(PacketMatch::Owner(owner)) = &mut draft.built else {
                        return Ok(());
                    };
                    let users = values::users(&argument.words[0])?;
                    argument.once(&mut owner.user, with_not(argument, users))
                }),
                option!(&["socket-exists"], 0, true, |draft, argument| {
                    match &mut draft.built {
                        Some(PacketMatch::Owner(owner)) => {
                            argument.once(&mut owner.socket, argument.not)
                        }
                        _ => Ok(()),
                    }
                }),
                option!(&["gid-owner"], 1, true, |draft, argument| {
                    let Some(PacketMatch::Owner(owner)) = &mut draft.built else {
                        return Ok(());
                    };
                    let groups = values::groups(&argument.words[0])?;
                    argument.once(&mut owner.group, with_not(argument, groups))
                }),
                OptionRow {
                    names: &["suppl-groups"],
                    arguments: 0,
                    negatable: false,
                    read: ReadOption::Unsupported(
                        "Of whoever opened a socket, the user and the first group are looked at: match `--uid-owner`, or start the program in the group that `--gid-owner` names",
                    ),
                },
            ],
        }),
    },
    yes(
        "statistic",
        BOTH,
        "`--mode random` and `--mode nth`, whose count all CPUs share. A load begins it anew, as \
         iptables-restore does.",
        MatchReading {
            start: || MatchDraft::Packet(one(STATISTIC)),
            protocols: &[],
            options: &[
                option!(&["mode"], 1, false, |draft, argument| {
                    let mode = values::mode(&argument.words[0])?;
                    draft.statistic.at = argument.words[0].span;
                    argument.once(&mut draft.statistic.mode, mode)
                }),
                option!(&["probability"], 1, true, |draft, argument| {
                    let value = values::probability(&argument.words[0])?;
                    draft.statistic.not = argument.not;
                    argument.once(&mut draft.statistic.probability, value)
                }),
                option!(&["every"], 1, true, |draft, argument| {
                    let value = values::count(&argument.words[0])?;
                    draft.statistic.not = argument.not;
                    argument.once(&mut draft.statistic.every, value)
                }),
                option!(&["packet"], 1, false, |draft, argument| {
                    let value = values::number32(&argument.words[0])?;
                    argument.once(&mut draft.statistic.packet, value)
                }),
            ],
        },
    ),
    yes(
        "time",
        BOTH,
        "By the kernel's clock, also after it was set. A leap second, or another time zone of the \
         kernel's for `--kerneltz`, takes effect with the next load.",
        MatchReading {
            start: || {
                let always = PacketMatch::Time(Time {
                    dates: (0, Time::LAST_DATE),
                    daytime: (0, Time::LAST_SECOND),
                    weekdays: Time::WEEKDAYS,
                    monthdays: Time::MONTHDAYS,
                    kernel_zone: false,
                    contiguous: false,
                });
                MatchDraft::Packet(many(always, ""))
            },
            protocols: &[],
            options: &[
                time!(&["datestart"], 1, false, |time, argument| {
                    time.dates.0 = values::date(&argument.words[0])?
                }),
                time!(&["datestop"], 1, false, |time, argument| {
                    time.dates.1 = values::date(&argument.words[0])?
                }),
                time!(&["timestart"], 1, false, |time, argument| {
                    time.daytime.0 = values::daytime(&argument.words[0])?
                }),
                time!(&["timestop"], 1, false, |time, argument| {
                    time.daytime.1 = values::daytime(&argument.words[0])?
                }),
                time!(&["weekdays"], 1, true, |time, argument| {
                    let days = values::weekdays(&argument.words[0])?;
                    let flip = if argument.not { Time::WEEKDAYS } else { 0 };
                    time.weekdays = days ^ flip
                }),
                time!(&["monthdays"], 1, true, |time, argument| {
                    let days = values::monthdays(&argument.words[0])?;
                    let flip = if argument.not { Time::MONTHDAYS } else { 0 };
                    time.monthdays = days ^ flip
                }),
                time!(&["kerneltz", "localtz"], 0, false, |time, _argument| {
                    time.kernel_zone = true
                }),
                time!(&["utc"], 0, false, |time, _argument| {
                    time.kernel_zone = false
                }),
                time!(&["contiguous"], 0, false, |time, _argument| {
                    time.contiguous = true
                }),
            ],
        },
    ),
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
            options: &[option!(&["espspi"], 1, true, |draft, argument| {
                let Some(PacketMatch::Esp(spi)) = &mut draft.built else {
                    return Ok(());
                };
                let range = values::range32(&argument.words[0])?;
                argument.once(spi, with_not(argument, range))
            })],
        },
    ),
    yes(
        "ah",
        ONLY_V4,
        "`--ahspi`. In IPv6, AH is an extension header, which is skipped.",
        MatchReading {
            start: || MatchDraft::Packet(many(PacketMatch::Ah(None), "")),
            protocols: &[AH],
            options: &[option!(&["ahspi"], 1, true, |draft, argument| {
                let Some(PacketMatch::Ah(spi)) = &mut draft.built else {
                    return Ok(());
                };
                let range = values::range32(&argument.words[0])?;
                argument.once(spi, with_not(argument, range))
            })],
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
                        "leave it out: chunks behind the header are not walked through",
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
                option!(&["dccp-types"], 1, true, |draft, argument| {
                    let Some(PacketMatch::Dccp(_, types)) = &mut draft.built else {
                        return Ok(());
                    };
                    let value = values::dccp_types(&argument.words[0])?;
                    argument.once(types, with_not(argument, value))
                }),
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

fn equal(draft: &mut PacketDraft, argument: &Argument<'_>) -> Value<()> {
    let value = values::up_to(&argument.words[0], 255)? as u8;
    draft.set(
        argument,
        PacketMatch::Hops(Hops::Equal(with_not(argument, value))),
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
    let problem = super::super::Problem::wrong("needs-protocol", argument.option.span, message);
    Err(problem.expected("`-p tcp` before it"))
}
