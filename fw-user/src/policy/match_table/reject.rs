//! REJECT.

use super::{BOTH, OptionRow, ReadOption, Support, TargetDraft, TargetRow};
use crate::policy::error::{Problem, nearest};
use crate::policy::ids::TableName;
use crate::policy::model::Reject;

pub(crate) const TARGETS: &[TargetRow] = &[TargetRow {
    name: "REJECT",
    families: BOTH,
    support: Support::Yes,
    note: "The packet is gone, and its sender is told: with every `--reject-with` of iptables, held back by the kernel's own limits of ICMP errors.",
    start: Some(TargetDraft::Reject(None)),
    tables: &[TableName::Filter],
    options: &[OptionRow {
        names: &["reject-with"],
        arguments: 1,
        negatable: false,
        read: ReadOption::Into(|draft, argument| {
            let (TargetDraft::Reject(answer), [word]) = (draft, argument.words) else {
                return Ok(());
            };
            let family = argument.family;
            let Some(read) = Reject::from_name(&word.text, family) else {
                let message = format!("there is no answer `{}`", word.text);
                let names: Vec<_> = Reject::names(family).collect();
                let problem = Problem::wrong("reject-with", word.span, message)
                    .expected(format!("one of {}", names.join(", ")));
                let problem = match nearest(&word.text, names.iter().copied()) {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem,
                };
                return Err(problem);
            };
            argument.once(answer, read)
        }),
    }],
}];
