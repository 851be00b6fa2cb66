//! The targets that translate addresses to given ones.

use super::targets::flag;
use super::{Argument, BOTH, OptionRow, ReadOption, Support, TargetDraft, TargetRow, Value};
use crate::policy::ids::TableName;
use crate::policy::model::{Redirect, Translation};
use crate::policy::save::{nat_values, values};

const EMPTY: Translation = Translation {
    addresses: None,
    ports: None,
    base_port: None,
    random: false,
    random_fully: false,
    persistent: false,
};

pub(crate) const TARGETS: &[TargetRow] = &[
    TargetRow {
        name: "DNAT",
        families: BOTH,
        support: Support::Partly,
        note: "With `--to-destination` (addresses, ports, base port), `--random` and `--persistent`, in PREROUTING and chains called from it. In OUTPUT only where the packet need not be routed anew: to another port of the same address, or with `-o lo` to a loopback address. A chain that both call, as Docker's, is taken for PREROUTING; in OUTPUT such a rule accepts without translating. Not for DCCP and UDP-Lite, and no identifiers of echoes.",
        start: Some(TargetDraft::Dnat(EMPTY)),
        tables: &[TableName::Nat],
        options: &[translated("to-destination"), random(), persistent()],
    },
    TargetRow {
        name: "SNAT",
        families: BOTH,
        support: Support::Partly,
        note: "With `--to-source`, `--random`, `--random-fully` and `--persistent`; in nat's POSTROUTING and chains called from it. In INPUT only to other ports of the same address: answers are routed before they can be translated back. On loopback only to addresses of this host.",
        start: Some(TargetDraft::Snat(EMPTY)),
        tables: &[TableName::Nat],
        options: &[
            translated("to-source"),
            random(),
            OptionRow {
                names: &["random-fully"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    TargetDraft::Snat(translation) => flag(&mut translation.random_fully, argument),
                    _ => Ok(()),
                }),
            },
            persistent(),
        ],
    },
    TargetRow {
        name: "REDIRECT",
        families: BOTH,
        support: Support::Partly,
        note: "With `--to-ports` and `--random`, in PREROUTING and chains called from it. In OUTPUT with `-o lo`: what leaves by another interface is routed already.",
        start: Some(TargetDraft::Redirect(Redirect {
            ports: None,
            random: false,
        })),
        tables: &[TableName::Nat],
        options: &[
            OptionRow {
                names: &["to-ports"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Redirect(redirect), [word]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    argument.once(&mut redirect.ports, values::nat_ports(word)?)
                }),
            },
            random(),
        ],
    },
    TargetRow {
        name: "NETMAP",
        families: BOTH,
        support: Support::Partly,
        note: "With `--to`, whose mask must be a prefix; in PREROUTING and POSTROUTING, and chains called from these. Not in OUTPUT and INPUT, where packets or their answers are routed already.",
        start: Some(TargetDraft::Netmap(None)),
        tables: &[TableName::Nat],
        options: &[OptionRow {
            names: &["to"],
            arguments: 1,
            negatable: false,
            read: ReadOption::Into(|draft, argument| {
                let (TargetDraft::Netmap(network), [word]) = (draft, argument.words) else {
                    return Ok(());
                };
                argument.once(network, nat_values::network(word, argument.family)?)
            }),
        }],
    },
];

const fn translated(name: &'static str) -> OptionRow<TargetDraft> {
    OptionRow {
        // A slice of a constant needs one for each name.
        names: match name.as_bytes()[3] {
            b'd' => &["to-destination"],
            _ => &["to-source"],
        },
        arguments: 1,
        negatable: false,
        read: ReadOption::Into(read_translated),
    }
}

fn read_translated(draft: &mut TargetDraft, argument: &Argument<'_>) -> Value<()> {
    let (TargetDraft::Dnat(translation) | TargetDraft::Snat(translation), [word]) =
        (draft, argument.words)
    else {
        return Ok(());
    };
    if translation.addresses.is_some() || translation.ports.is_some() {
        return Err(argument.twice());
    }
    nat_values::translation(word, argument.family, translation)
}

const fn random() -> OptionRow<TargetDraft> {
    OptionRow {
        names: &["random"],
        arguments: 0,
        negatable: false,
        read: ReadOption::Into(|draft, argument| match draft {
            TargetDraft::Dnat(translation) | TargetDraft::Snat(translation) => {
                flag(&mut translation.random, argument)
            }
            TargetDraft::Redirect(redirect) => flag(&mut redirect.random, argument),
            _ => Ok(()),
        }),
    }
}

const fn persistent() -> OptionRow<TargetDraft> {
    OptionRow {
        names: &["persistent"],
        arguments: 0,
        negatable: false,
        read: ReadOption::Into(|draft, argument| match draft {
            TargetDraft::Dnat(translation) | TargetDraft::Snat(translation) => {
                flag(&mut translation.persistent, argument)
            }
            _ => Ok(()),
        }),
    }
}
