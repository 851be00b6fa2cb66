//! `-j`, `-g` and the options of targets.

use super::Reader;
use crate::policy::error::{Problem, nearest};
use crate::policy::match_table::{
    Argument, OptionRow, ReadOption, Support, TargetDraft, TargetRow, all_targets, find_target,
};
use crate::policy::model::Target;
use crate::policy::names::{DCCP, ICMP, SCTP, TCP, UDP};
use crate::policy::save::lexer::Word;
use crate::policy::save::options::Core;

impl<'a> Reader<'a, '_, '_> {
    pub(super) fn jump(&mut self, option: &'a Word<'a>, core: Core, word: &'a Word<'a>) {
        self.goto = core == Core::Goto;
        let name = word.text.as_ref();
        if self.table.has_chain(name) {
            if self.table.is_builtin(name) {
                return self.error(
                    Problem::wrong(
                        "jump-to-builtin",
                        word.span,
                        format!("`{name}` is a built-in chain: rules cannot send packets there"),
                    )
                    .expected("a chain of your own, or a target"),
                );
            }
            let target = if self.goto {
                Target::Goto(name.into())
            } else {
                Target::Jump(name.into())
            };
            self.rule.target = Some((target, word.span));
            return;
        }
        if self.goto {
            return self.unknown_target(word);
        }
        let row = find_target(name).or_else(|| self.misspelt_target(option, word));
        let Some(row) = row else {
            return self.unknown_target(word);
        };
        let Some(start) = row.start.clone() else {
            self.foreign = true;
            return self.error(
                Problem::unsupported(
                    "unsupported-target",
                    word.span,
                    format!("`-j {}` is not supported", row.name),
                )
                .expected("ACCEPT, DROP, RETURN, another target that works, or a chain")
                .help(row.note),
            );
        };
        let table = self.table.name;
        if !row.tables.is_empty() && !row.tables.contains(&table) {
            let allowed: Vec<_> = row.tables.iter().map(|table| table.name()).collect();
            self.error(
                Problem::wrong(
                    "wrong-table",
                    word.span,
                    format!("`{}` cannot stand in the table {table}", row.name),
                )
                .expected("another target")
                .help(format!(
                    "{} belongs into the table {}",
                    row.name,
                    allowed.join(", ")
                )),
            );
        }
        self.target = Some((row, start, word.span));
    }

    /// A target in the wrong case: evident, but iptables refuses it.
    pub(super) fn misspelt_target(
        &mut self,
        option: &Word<'_>,
        word: &Word<'_>,
    ) -> Option<&'static TargetRow> {
        let row = all_targets().find(|row| row.name.eq_ignore_ascii_case(&word.text))?;
        if row.support == Support::No {
            return Some(row);
        }
        let problem = Problem::wrong(
            "target-case",
            word.span,
            format!("there is no target `{}`", word.text),
        )
        .expected("targets are written in capitals")
        .help(format!("write `{} {}`", option.text, row.name));
        self.report
            .lenient(problem, &format!("taken as `{}`", row.name));
        Some(row)
    }

    pub(super) fn unknown_target(&mut self, word: &Word<'_>) {
        self.foreign = true;
        let name = word.text.as_ref();
        if let Some(chain) = self
            .table
            .chains()
            .find(|chain| chain.eq_ignore_ascii_case(name))
        {
            return self.error(
                Problem::wrong(
                    "unknown-target",
                    word.span,
                    format!("there is no chain `{name}`"),
                )
                .expected("the chain's name in its own letters")
                .help(format!("did you mean `{chain}`?")),
            );
        }
        let what = if self.goto {
            "chain"
        } else {
            "target or chain"
        };
        let problem = Problem::wrong(
            "unknown-target",
            word.span,
            format!("there is no {what} `{name}`"),
        )
        .expected(if self.goto {
            "a chain of the same table"
        } else {
            "ACCEPT, DROP, RETURN, another target that works, or a chain"
        });
        let targets = all_targets()
            .filter(|row| row.support != Support::No && !self.goto)
            .map(|row| row.name);
        let near = nearest(name, self.table.chains().chain(targets));
        let problem = match near {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None if is_made_by_ufw(name) => problem.help(
                "the file is a part of ufw's, which makes this chain itself: load what `iptables-save` prints while ufw is enabled",
            ),
            None => problem.help(format!(
                "to have a chain of that name, put `:{name} - [0:0]` before its first use"
            )),
        };
        self.error(problem);
    }

    pub(super) fn target_option(
        &mut self,
        word: &'a Word<'a>,
        row: &'static OptionRow<TargetDraft>,
        glued: Option<Word<'a>>,
    ) {
        let Some((not, words)) = self.option_words(word, row.arguments, row.negatable, glued)
        else {
            return;
        };
        if let ReadOption::Unsupported(instead) = row.read {
            let message = format!("`{}` is not supported", word.text);
            return self.error(
                Problem::unsupported("unsupported-option", word.span, message)
                    .expected("the target's other options")
                    .help(instead),
            );
        }
        // iptables looks at the protocol's number only, not at a `!` before it, and counts
        // IPv4's ICMP in, whose echo has identifiers for ports, for both IP versions.
        let with_ports = [TCP, UDP, SCTP, DCCP, ICMP];
        let fits = self
            .rule
            .protocol
            .is_some_and(|protocol| with_ports.contains(&protocol.value));
        if row.names[0] == "to-ports" && !fits {
            let message = format!("`{}` needs a protocol with ports", word.text);
            self.error(
                Problem::wrong("needs-protocol", word.span, message)
                    .expected("`-p tcp` or `-p udp` before it"),
            );
        }
        if let ReadOption::Unsupported(instead) = row.read {
            let message = format!("`{}` is not supported", word.text);
            return self.error(
                Problem::unsupported("unsupported-option", word.span, message)
                    .expected("another target")
                    .help(instead),
            );
        }
        if let (Some((_, draft, _)), ReadOption::Into(read)) = (&mut self.target, &row.read) {
            let argument = Argument {
                option: word,
                not,
                words: &words,
                family: self.family,
                protocol: None,
            };
            let result = read(draft, &argument);
            let draft = draft.clone();
            self.ok(result);
            self.check_ports(&draft, row.names[0], word, fits);
        }
    }

    /// Ports that a target translates to need a protocol that has some.
    fn check_ports(&mut self, draft: &TargetDraft, option: &str, word: &Word<'_>, fits: bool) {
        let has_ports = match draft {
            TargetDraft::Dnat(translation) => {
                option == "to-destination" && translation.ports.is_some()
            }
            TargetDraft::Snat(translation) => option == "to-source" && translation.ports.is_some(),
            TargetDraft::Redirect(redirect) => option == "to-ports" && redirect.ports.is_some(),
            _ => false,
        };
        let of_destination = matches!(draft, TargetDraft::Dnat(_) | TargetDraft::Redirect(_));
        let is_icmp = self
            .rule
            .protocol
            .is_some_and(|protocol| protocol.value == ICMP);
        if has_ports && !fits && option != "to-ports" {
            let message = format!("ports in `{}` need a protocol that has some", word.text);
            self.error(
                Problem::wrong("needs-protocol", word.span, message)
                    .expected("`-p tcp` or `-p udp` before it"),
            );
        } else if has_ports && is_icmp && of_destination {
            let message = "a destination's ports stand for identifiers of ICMP queries here";
            self.error(
                Problem::unsupported("icmp-identifiers", word.span, message)
                    .expected("an address without ports")
                    .help("identifiers belong to the source: leave the ports out"),
            );
        }
    }
}

/// Chains that ufw's own files (before.rules, user.rules, after.rules) call and do not declare.
fn is_made_by_ufw(name: &str) -> bool {
    let rest = name
        .strip_prefix("ufw6-")
        .or_else(|| name.strip_prefix("ufw-"));
    rest.is_some_and(|rest| rest.starts_with("logging-") || rest.starts_with("skip-to-policy-"))
}
