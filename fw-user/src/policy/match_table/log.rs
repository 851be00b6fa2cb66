//! LOG and NFLOG.

use super::targets::{TargetDraft, flag};
use super::{Argument, BOTH, OptionRow, ReadOption, Support, TargetRow, Value};
use crate::policy::error::{Problem, nearest};
use crate::policy::model::{Log, Nflog};
use crate::policy::save::{Word, values::number};

pub(crate) const TARGETS: &[TargetRow] = &[
    TargetRow {
        name: "LOG",
        families: BOTH,
        support: Support::Partly,
        note: "`fwbpf daemon` writes to the kernel's log what the kernel would have written, or to the journal, or as JSON (`--log`, [logging.md](logging.md)). Of a packet's beginning it knows 256 bytes. `--log-uid` tells who sends, not who gets a packet.",
        start: Some(TargetDraft::Log(Log::PLAIN)),
        tables: &[],
        options: &[
            OptionRow {
                names: &["log-level"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Log(log), [word]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    log.level = level(word)?;
                    Ok(())
                }),
            },
            OptionRow {
                names: &["log-prefix"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let TargetDraft::Log(log) = draft else {
                        return Ok(());
                    };
                    prefix(&mut log.prefix, argument, Log::PREFIX)
                }),
            },
            OptionRow {
                names: &["log-tcp-sequence"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    TargetDraft::Log(log) => flag(&mut log.tcp_sequence, argument),
                    _ => Ok(()),
                }),
            },
            OptionRow {
                names: &["log-tcp-options"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    TargetDraft::Log(log) => flag(&mut log.tcp_options, argument),
                    _ => Ok(()),
                }),
            },
            OptionRow {
                names: &["log-ip-options"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    TargetDraft::Log(log) => flag(&mut log.ip_options, argument),
                    _ => Ok(()),
                }),
            },
            OptionRow {
                names: &["log-macdecode"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    TargetDraft::Log(log) => flag(&mut log.mac_decode, argument),
                    _ => Ok(()),
                }),
            },
            OptionRow {
                names: &["log-uid"],
                arguments: 0,
                negatable: false,
                read: ReadOption::Into(|draft, argument| match draft {
                    TargetDraft::Log(log) => flag(&mut log.owner, argument),
                    _ => Ok(()),
                }),
            },
        ],
    },
    TargetRow {
        name: "NFLOG",
        families: BOTH,
        support: Support::Partly,
        note: "`fwbpf daemon` writes it down as for LOG, with the group and the prefix: no netlink group is fed, so that ulogd gets nothing. `--nflog-threshold` and `--nflog-range` change nothing.",
        start: Some(TargetDraft::Nflog(Nflog::PLAIN)),
        tables: &[],
        options: &[
            OptionRow {
                names: &["nflog-group"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Nflog(nflog), [word]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    nflog.group = bounded(word, u16::MAX.into())? as u16;
                    Ok(())
                }),
            },
            OptionRow {
                names: &["nflog-prefix"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let TargetDraft::Nflog(nflog) = draft else {
                        return Ok(());
                    };
                    prefix(&mut nflog.prefix, argument, Nflog::PREFIX)
                }),
            },
            OptionRow {
                names: &["nflog-range"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Nflog(nflog), [word]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    either(nflog.size, argument)?;
                    argument.once(&mut nflog.range, bounded(word, u32::MAX)?)
                }),
            },
            OptionRow {
                names: &["nflog-size"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Nflog(nflog), [word]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    either(nflog.range, argument)?;
                    argument.once(&mut nflog.size, bounded(word, u32::MAX)?)
                }),
            },
            OptionRow {
                names: &["nflog-threshold"],
                arguments: 1,
                negatable: false,
                read: ReadOption::Into(|draft, argument| {
                    let (TargetDraft::Nflog(nflog), [word]) = (draft, argument.words) else {
                        return Ok(());
                    };
                    nflog.threshold = bounded(word, u16::MAX.into())? as u16;
                    Ok(())
                }),
            },
        ],
    },
];

fn level(word: &Word<'_>) -> Value<u8> {
    if let Some(number) = number(&word.text, 7) {
        return Ok(number as u8);
    }
    let named = Log::LEVELS.iter().find(|(name, _)| *name == word.text);
    named.map(|(_, level)| *level).ok_or_else(|| {
        let message = format!("`{}` is no level of the log", word.text);
        let problem = Problem::wrong("bad-level", word.span, message)
            .expected("a number from 0 to 7, or a name from `emerg` to `debug`");
        match nearest(&word.text, Log::LEVELS.iter().map(|(name, _)| *name)) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem,
        }
    })
}

/// A prefix. iptables cuts a long one without a word, and so does this.
fn prefix(place: &mut String, argument: &Argument<'_>, longest: usize) -> Value<()> {
    let [word] = argument.words else {
        return Ok(());
    };
    if !place.is_empty() {
        return Err(argument.twice());
    }
    if word.text.is_empty() || word.text.contains('\n') {
        let message = format!("`{}` needs a text on one line", argument.option.text);
        return Err(
            Problem::wrong("bad-prefix", word.span, message).expected("at least one letter")
        );
    }
    let mut end = word.text.len().min(longest);
    while !word.text.is_char_boundary(end) {
        end -= 1;
    }
    *place = word.text[..end].to_owned();
    Ok(())
}

fn bounded(word: &Word<'_>, most: u32) -> Value<u32> {
    number(&word.text, most).ok_or_else(|| {
        let message = format!("`{}` is not a number from 0 to {most}", word.text);
        Problem::wrong("bad-number", word.span, message).expected("a number")
    })
}

/// `--nflog-size` and `--nflog-range` exclude each other.
fn either(other: Option<u32>, argument: &Argument<'_>) -> Value<()> {
    if other.is_none() {
        return Ok(());
    }
    let message = "`--nflog-range` and `--nflog-size` exclude each other";
    Err(Problem::wrong("excludes", argument.option.span, message)
        .expected("one of them")
        .help("leave out `--nflog-range`, which never did anything"))
}
