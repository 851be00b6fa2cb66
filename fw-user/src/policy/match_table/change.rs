//! The rows of [`crate::policy::change`]: MARK, DSCP, TOS, TTL, HL, NOTRACK and CT.

use super::targets::TargetDraft;
use super::{Argument, BOTH, ONLY_V4, ONLY_V6, OptionRow, ReadOption, Support, TargetRow, Value};
use crate::policy::change::{Change, HopChange};
use crate::policy::ids::TableName;
use crate::policy::save::packet_values as values;

/// One of these targets while its options are being read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangeDraft {
    /// What has been read.
    pub change: Option<Change>,
    /// The option that it cannot be without, or nothing.
    pub missing: &'static str,
}

const fn lacking(missing: &'static str) -> Option<TargetDraft> {
    Some(TargetDraft::Change(ChangeDraft {
        change: None,
        missing,
    }))
}

/// An option of these targets that says all: names, and the change that its argument makes.
macro_rules! option {
    ($names:expr, $arguments:literal, |$argument:ident| $change:expr) => {
        draft_option!(
            TargetDraft::Change(ChangeDraft),
            $names,
            $arguments,
            false,
            |draft, $argument| {
                let change = $change;
                $argument.once(&mut draft.change, change)
            }
        )
    };
}

const fn unsupported(
    names: &'static [&'static str],
    instead: &'static str,
) -> OptionRow<TargetDraft> {
    OptionRow {
        names,
        arguments: 1,
        negatable: false,
        read: ReadOption::Unsupported(instead),
    }
}

const HELPER: &str = "no helper reads along to open further ports: have the service use ports of a range (FTP's passive \
    ports, RTP's), and accept those, `-p tcp --dport 50000:50100 -j ACCEPT`";

const ONE_WAY: &str = "a flow is stored once, under one name for both directions, so that it is in one zone: write `--zone`, \
    and a rule that puts the answers in the same zone, by what tells them apart, such as a range of ports of its own \
    that each network is masqueraded to (`-j MASQUERADE --to-ports 10000-19999`, and in table raw \
    `-i uplink -p tcp --dport 10000:19999 -j CT --zone 1`)";

pub(crate) const TARGETS: &[TargetRow] = &[
    TargetRow {
        name: "MARK",
        families: BOTH,
        support: Support::Yes,
        note: "In every table. A mark that is set in OUTPUT comes after the packet has its route: \
               `ip rule` sees only those of PREROUTING and of sockets (`SO_MARK`).",
        start: lacking("--set-mark, --set-xmark, --and-mark, --or-mark or --xor-mark"),
        tables: &[],
        options: &[
            option!(&["set-mark"], 1, |argument| {
                let (value, mask) = values::mark(&argument.words[0])?;
                Change::Mark {
                    value,
                    mask: value | mask,
                }
            }),
            option!(&["set-xmark"], 1, |argument| {
                let (value, mask) = values::mark(&argument.words[0])?;
                Change::Mark { value, mask }
            }),
            option!(&["and-mark"], 1, |argument| {
                let bits = values::number32(&argument.words[0])?;
                Change::Mark {
                    value: 0,
                    mask: !bits,
                }
            }),
            option!(&["or-mark"], 1, |argument| {
                let bits = values::number32(&argument.words[0])?;
                Change::Mark {
                    value: bits,
                    mask: bits,
                }
            }),
            option!(&["xor-mark"], 1, |argument| {
                let bits = values::number32(&argument.words[0])?;
                Change::Mark {
                    value: bits,
                    mask: 0,
                }
            }),
        ],
    },
    TargetRow {
        name: "DSCP",
        families: BOTH,
        support: Support::Yes,
        note: "By number or class.",
        start: lacking("--set-dscp or --set-dscp-class"),
        tables: &[TableName::Mangle],
        options: &[
            option!(&["set-dscp"], 1, |argument| Change::Dscp(values::dscp(
                &argument.words[0]
            )?)),
            option!(&["set-dscp-class"], 1, |argument| Change::Dscp(
                values::dscp_class(&argument.words[0])?
            )),
        ],
    },
    TargetRow {
        name: "TOS",
        families: BOTH,
        support: Support::Yes,
        note: "By value, value and mask, or name. A fragment that comes before its datagram's first one keeps its own bits, and of a datagram whose fragments disagree about congestion (the last two bits) the stack makes nothing.",
        start: lacking("--set-tos, --and-tos, --or-tos or --xor-tos"),
        tables: &[TableName::Mangle],
        options: &[
            option!(&["set-tos"], 1, |argument| {
                let (value, mask) = values::tos(&argument.words[0])?;
                Change::Tos { value, mask }
            }),
            option!(&["and-tos"], 1, |argument| {
                let bits = values::up_to(&argument.words[0], 255)? as u8;
                Change::Tos {
                    value: 0,
                    mask: !bits,
                }
            }),
            option!(&["or-tos"], 1, |argument| {
                let bits = values::up_to(&argument.words[0], 255)? as u8;
                Change::Tos {
                    value: bits,
                    mask: bits,
                }
            }),
            option!(&["xor-tos"], 1, |argument| {
                let bits = values::up_to(&argument.words[0], 255)? as u8;
                Change::Tos {
                    value: bits,
                    mask: 0,
                }
            }),
        ],
    },
    TargetRow {
        name: "TTL",
        families: ONLY_V4,
        support: Support::Yes,
        note: "`--ttl-set`, `--ttl-dec` and `--ttl-inc`.",
        start: lacking("--ttl-set, --ttl-dec or --ttl-inc"),
        tables: &[TableName::Mangle],
        options: &[
            option!(&["ttl-set"], 1, |argument| set(argument)?),
            option!(&["ttl-dec"], 1, |argument| less(argument)?),
            option!(&["ttl-inc"], 1, |argument| more(argument)?),
        ],
    },
    TargetRow {
        name: "HL",
        families: ONLY_V6,
        support: Support::Yes,
        note: "`--hl-set`, `--hl-dec` and `--hl-inc`.",
        start: lacking("--hl-set, --hl-dec or --hl-inc"),
        tables: &[TableName::Mangle],
        options: &[
            option!(&["hl-set"], 1, |argument| set(argument)?),
            option!(&["hl-dec"], 1, |argument| less(argument)?),
            option!(&["hl-inc"], 1, |argument| more(argument)?),
        ],
    },
    TargetRow {
        name: "CHECKSUM",
        families: BOTH,
        support: Support::Yes,
        note: "`--checksum-fill`, of TCP and UDP in packets of up to 1280 bytes; longer ones leave as \
               without the rule.",
        start: lacking("--checksum-fill"),
        tables: &[TableName::Mangle],
        options: &[option!(&["checksum-fill"], 0, |argument| Change::FillSum)],
    },
    TargetRow {
        name: "NOTRACK",
        families: BOTH,
        support: Support::Yes,
        note: "The packet belongs to no flow: its state is UNTRACKED, and it is not translated.",
        start: Some(TargetDraft::Change(ChangeDraft {
            change: Some(Change::NoTrack { as_ct: false }),
            missing: "",
        })),
        tables: &[TableName::Raw],
        options: &[],
    },
    TargetRow {
        name: "CT",
        families: BOTH,
        support: Support::Partly,
        note: "`--notrack` and `--zone` with a number: a policy may name 31 zones beside zone 0. There are no helpers.",
        start: lacking(""),
        tables: &[TableName::Raw],
        options: &[
            option!(&["notrack"], 0, |argument| Change::NoTrack { as_ct: true }),
            unsupported(&["helper"], HELPER),
            option!(&["zone"], 1, |argument| Change::Zone(values::zone(
                &argument.words[0]
            )?)),
            unsupported(&["zone-orig"], ONE_WAY),
            unsupported(&["zone-reply"], ONE_WAY),
            unsupported(
                &["ctevents"],
                "flows make no events: `fwbpf flows` lists them",
            ),
            unsupported(
                &["expevents"],
                "flows make no events: `fwbpf flows` lists them",
            ),
            unsupported(
                &["timeout"],
                "how long flows live is for all flows of a protocol: by sysctls (net.netfilter.nf_conntrack_udp_timeout and the like), or by [conntrack] in policy.toml",
            ),
        ],
    },
];

fn set(argument: &Argument<'_>) -> Value<Change> {
    let value = values::up_to(&argument.words[0], 255)? as u8;
    Ok(Change::Hops(HopChange::Set(value)))
}

fn less(argument: &Argument<'_>) -> Value<Change> {
    Ok(Change::Hops(HopChange::Less(some(argument)?)))
}

fn more(argument: &Argument<'_>) -> Value<Change> {
    Ok(Change::Hops(HopChange::More(some(argument)?)))
}

/// How many hops, which may not be none.
fn some(argument: &Argument<'_>) -> Value<u8> {
    values::count(&argument.words[0])?;
    Ok(values::up_to(&argument.words[0], 255)? as u8)
}
