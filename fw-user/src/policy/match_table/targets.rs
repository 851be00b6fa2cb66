//! The targets that fwbpf knows.

use super::change::ChangeDraft;
use super::flow_mark::FlowMarkDraft;
use super::{BOTH, OptionRow, ReadOption, Support, TargetRow};
use crate::policy::ids::TableName;
use crate::policy::model::{
    Log, Masquerade, Nflog, Prefix, Redirect, Reject, SetChange, Translation,
};
use crate::policy::save::values;

/// A target while its options are being read.
#[derive(Clone, Debug)]
pub(crate) enum TargetDraft {
    Accept,
    Drop,
    Return,
    /// REJECT; `None` as long as it is not said with what.
    Reject(Option<Reject>),
    Masquerade(Masquerade),
    Log(Log),
    Change(ChangeDraft),
    FlowMark(FlowMarkDraft),
    Nflog(Nflog),
    Set(SetChange),
    Dnat(Translation),
    Snat(Translation),
    Redirect(Redirect),
    Netmap(Option<Prefix>),
}

pub(crate) const TARGETS: &[TargetRow] = &[
    TargetRow {
        name: "ACCEPT",
        families: BOTH,
        support: Support::Yes,
        note: "The packet passes; no later rule of the table sees it.",
        start: Some(TargetDraft::Accept),
        tables: &[],
        options: &[],
    },
    TargetRow {
        name: "DROP",
        families: BOTH,
        support: Support::Yes,
        note: "The packet is gone without a word. In every table but nat, as in iptables.",
        start: Some(TargetDraft::Drop),
        tables: &[
            TableName::Filter,
            TableName::Mangle,
            TableName::Raw,
            TableName::Security,
        ],
        options: &[],
    },
    TargetRow {
        name: "RETURN",
        families: BOTH,
        support: Support::Yes,
        note: "Back to the calling chain; in a built-in chain, its policy.",
        start: Some(TargetDraft::Return),
        tables: &[],
        options: &[],
    },
    TargetRow {
        name: "MASQUERADE",
        families: BOTH,
        support: Support::Partly,
        note: "With `--to-ports`, `--random` and `--random-fully`; in nat's POSTROUTING and chains called from it. Rules for DCCP and UDP-Lite that translate are refused, whatever the target; what others would translate of these is dropped.",
        start: Some(TargetDraft::Masquerade(Masquerade {
            ports: None,
            random: false,
            random_fully: false,
        })),
        tables: &[TableName::Nat],
        options: &[
            OptionRow {
                names: &["to-ports"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Masquerade(masquerade), [word]) = (draft, argument.words)
                    else {
                        return Ok(());
                    };
                    argument.once(&mut masquerade.ports, values::nat_ports(word)?)
                }),
            },
            OptionRow {
                names: &["random"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let TargetDraft::Masquerade(masquerade) = draft else {
                        return Ok(());
                    };
                    flag(&mut masquerade.random, argument)
                }),
            },
            OptionRow {
                names: &["random-fully"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let TargetDraft::Masquerade(masquerade) = draft else {
                        return Ok(());
                    };
                    flag(&mut masquerade.random_fully, argument)
                }),
            },
        ],
    },
];

pub(super) fn flag(place: &mut bool, argument: &super::Argument<'_>) -> super::Value<()> {
    if std::mem::replace(place, true) {
        Err(argument.twice())
    } else {
        Ok(())
    }
}
