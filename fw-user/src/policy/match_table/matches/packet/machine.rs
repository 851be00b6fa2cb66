//! What this machine knows of a packet: marks, the CPU, and who has the socket.

use super::super::MatchDraft;
use super::{PacketDraft, many, one, yes};
use crate::policy::match_table::{
    Argument, BOTH, MatchReading, MatchRow, OptionRow, ReadOption, Support,
};
use crate::policy::packet_match::{Owner, PacketMatch};
use crate::policy::save::{Value, packet_values as values};

pub(crate) const MATCHES: &[MatchRow] = &[
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
                packet_part!(
                    &["uid-owner"],
                    1,
                    true,
                    PacketMatch::Owner(owner),
                    |argument| {
                        let users = values::users(&argument.words[0])?;
                        argument.once(&mut owner.user, argument.negatable(users))
                    }
                ),
                packet_part!(
                    &["socket-exists"],
                    0,
                    true,
                    PacketMatch::Owner(owner),
                    |argument| { argument.once(&mut owner.socket, argument.not) }
                ),
                packet_part!(
                    &["gid-owner"],
                    1,
                    true,
                    PacketMatch::Owner(owner),
                    |argument| {
                        let groups = values::groups(&argument.words[0])?;
                        argument.once(&mut owner.group, argument.negatable(groups))
                    }
                ),
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
];
