//! TCPMSS.

use super::change::ChangeDraft;
use super::targets::TargetDraft;
use super::{BOTH, OptionRow, ReadOption, Support, TargetRow};
use crate::policy::change::{Change, SegmentSize};
use crate::policy::model::Family;
use crate::policy::save::packet_values as values;

pub(crate) const TARGETS: &[TargetRow] = &[TargetRow {
    name: "TCPMSS",
    families: BOTH,
    support: Support::Yes,
    note: "`--set-mss` and, where FORWARD, OUTPUT and POSTROUTING alone lead, `--clamp-mss-to-pmtu`, which \
           goes by the MTU of interfaces, by what ICMP has told, and by that of a route: of an IPv4 route \
           only if it is locked, `ip route ... mtu lock 1400`.",
    start: Some(TargetDraft::Change(ChangeDraft {
        change: None,
        missing: "--set-mss or --clamp-mss-to-pmtu",
    })),
    tables: &[],
    options: &[
        OptionRow {
            names: &["set-mss"],
            arguments: 1,
            negatable: false,
            read: ReadOption::Into(|draft, argument| {
                let TargetDraft::Change(draft) = draft else {
                    return Ok(());
                };
                // What is left of a packet behind the IP header.
                let most = match argument.family {
                    Family::Ipv4 => 65_515,
                    Family::Ipv6 => 65_495,
                };
                let size = values::up_to(&argument.words[0], most)? as u16;
                argument.once(
                    &mut draft.change,
                    Change::SegmentSize(SegmentSize::Most(size)),
                )
            }),
        },
        OptionRow {
            names: &["clamp-mss-to-pmtu"],
            arguments: 0,
            negatable: false,
            read: ReadOption::Into(|draft, argument| {
                let TargetDraft::Change(draft) = draft else {
                    return Ok(());
                };
                argument.once(&mut draft.change, Change::SegmentSize(SegmentSize::Path))
            }),
        },
    ],
}];
