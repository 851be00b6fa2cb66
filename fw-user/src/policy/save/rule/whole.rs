//! What can only be said when the whole line has been read.

use super::{Line, LoadedMatch, Orphan, Reader};
use crate::policy::change::{self, Change};
use crate::policy::error::Problem;
use crate::policy::match_table::{
    Argument, OptionRow, ReadOption, TargetDraft, Unfinished, find_match,
};
use crate::policy::model::{
    Match, Negatable, PortRange, Ports, Reject, SetChange, Target, Translation,
};
use crate::policy::names::{DCCP, TCP, UDP, UDPLITE, protocol_name};
use crate::policy::packet_match::PacketMatch;
use crate::policy::source::Span;

impl<'a> Reader<'a, '_, '_> {
    pub(super) fn finish(mut self) -> Line<'a> {
        self.adopt_orphans();
        self.check_protocols();
        if let Some(not) = self.rule.fragment {
            let fragment = PacketMatch::Fragment { not };
            self.rule.matches.push(Match::Packet(fragment));
        }
        for loaded in std::mem::take(&mut self.matches) {
            match loaded.draft.finish(self.family) {
                Ok(finished) => self.rule.matches.push(normal(finished)),
                Err(_) if self.errors_before < self.report.errors.len() => {}
                Err(Unfinished::Wrong(problem)) => self.error(*problem),
                Err(Unfinished::Says(missing)) => {
                    let message = format!("`-m {}` says nothing", loaded.name);
                    self.error(
                        Problem::wrong("missing-option", loaded.span, message).expected(missing),
                    );
                }
            }
        }
        if let Some((_, draft, span)) = self.target.take() {
            self.check_translation(&draft, span);
            self.check_translatable(&draft, span);
            let target = match draft {
                TargetDraft::Accept => Target::Accept,
                TargetDraft::Drop => Target::Drop,
                TargetDraft::Return => Target::Return,
                TargetDraft::Reject(answer) => Target::Reject(self.answer(answer, span)),
                TargetDraft::Masquerade(masquerade) => Target::Masquerade(masquerade),
                TargetDraft::Change(draft) => match draft.change {
                    Some(change) => {
                        self.check_segments(change, span);
                        Target::Change(change)
                    }
                    // What it was to say is refused already.
                    None if self.errors_before < self.report.errors.len() => Target::Continue,
                    // CT without a word.
                    None if draft.missing.is_empty() => Target::Change(Change::Zone(0)),
                    None => {
                        let problem =
                            Problem::wrong("missing-option", span, "the target says nothing");
                        self.error(problem.expected(draft.missing));
                        Target::Continue
                    }
                },
                TargetDraft::FlowMark(draft) => match draft.finish() {
                    Ok(change) => Target::Change(change),
                    Err(_) if self.errors_before < self.report.errors.len() => Target::Continue,
                    Err(expected) => {
                        let message = "the target does not say one thing";
                        let problem = Problem::wrong("missing-option", span, message);
                        self.error(problem.expected(expected));
                        Target::Continue
                    }
                },
                TargetDraft::Log(log) => Target::Log(log),
                TargetDraft::Nflog(nflog) => Target::Nflog(nflog),
                TargetDraft::Set(change) => {
                    self.check_change(&change, span);
                    Target::Set(Box::new(change))
                }
                TargetDraft::Dnat(translation) => Target::Dnat(translation),
                TargetDraft::Snat(translation) => Target::Snat(translation),
                TargetDraft::Redirect(redirect) => Target::Redirect(redirect),
                TargetDraft::Netmap(Some(network)) => Target::Netmap(network),
                TargetDraft::Netmap(None) => Target::Continue,
            };
            self.rule.target = Some((target, span));
        }
        let sound = self.report.errors.len() == self.errors_before;
        if self.command.is_none() && sound && !self.other_family {
            let span = self.words.first().map_or(self.end, |word| word.span);
            self.error(
                Problem::wrong("no-command", span, "the line has no command")
                    .expected("`-A CHAIN` before it"),
            );
        }
        let sound = self.report.errors.len() == self.errors_before;
        let Self {
            command,
            operands,
            rule,
            other_family,
            ..
        } = self;
        Line {
            command,
            operands,
            rule,
            sound,
            other_family,
        }
    }

    /// What a rule with REJECT answers. Only a rule that names TCP, and not by `!`, may reset
    /// (`reject_tg_check`, net/ipv4/netfilter/ipt_REJECT.c).
    fn answer(&mut self, answer: Option<Reject>, span: Span) -> Reject {
        let answer = answer.unwrap_or(Reject::default_of(self.family));
        let tcp = Some(Negatable {
            not: false,
            value: TCP,
        });
        if answer == Reject::TcpReset && self.rule.protocol != tcp {
            self.error(
                Problem::wrong(
                    "needs-protocol",
                    span,
                    "`--reject-with tcp-reset` answers TCP only",
                )
                .expected("a rule with `-p tcp`")
                .help("give the rule `-p tcp`, or leave `--reject-with tcp-reset` out"),
            );
        }
        answer
    }

    /// TCPMSS stands in rules about SYN only (`find_syn_match`, net/netfilter/xt_TCPMSS.c).
    fn check_segments(&mut self, change: Change, span: Span) {
        if matches!(change, Change::SegmentSize(_)) && !change::asks_for_syn(&self.rule.matches) {
            self.error(
                Problem::wrong("needs-syn", span, "TCPMSS is for segments with SYN only")
                    .expected("a rule with `-p tcp` and `--syn` or `--tcp-flags SYN,RST SYN`")
                    .help("give the rule `-p tcp --tcp-flags SYN,RST SYN`"),
            );
        }
    }

    /// SET changes something, and only what it adds has times.
    fn check_change(&mut self, change: &SetChange, span: Span) {
        let missing = match (&change.add, &change.delete) {
            (None, None) => "`--add-set NAME src` or `--del-set NAME src`",
            (None, Some(_)) if change.exist || change.timeout.is_some() => {
                "`--add-set NAME src`, which `--exist` and `--timeout` are about"
            }
            _ => return,
        };
        self.error(
            Problem::wrong("missing-option", span, "`-j SET` is not complete").expected(missing),
        );
    }

    /// A translation must say to what.
    fn check_translation(&mut self, draft: &TargetDraft, span: Span) {
        let says_nothing = |translation: &Translation| {
            translation.addresses.is_none() && translation.ports.is_none()
        };
        let missing = match draft {
            TargetDraft::Dnat(translation) if says_nothing(translation) => "--to-destination",
            TargetDraft::Snat(translation) if says_nothing(translation) => "--to-source",
            TargetDraft::Netmap(None) => "--to",
            _ => return,
        };
        if self.errors_before == self.report.errors.len() {
            let message = "the target does not say what it translates to";
            self.error(Problem::wrong("missing-option", span, message).expected(missing));
        }
    }

    /// What netfilter makes of these would not be taken: since Linux 6.17 it leaves DCCP's checksum, which
    /// covers the addresses; and it takes right ones of UDP-Lite for wrong (`nf_checksum_partial` is told that
    /// they were UDP's), and translates nothing that is INVALID.
    fn check_translatable(&mut self, draft: &TargetDraft, span: Span) {
        let translates = matches!(
            draft,
            TargetDraft::Masquerade(_)
                | TargetDraft::Dnat(_)
                | TargetDraft::Snat(_)
                | TargetDraft::Redirect(_)
                | TargetDraft::Netmap(_)
        );
        let Some(Negatable {
            not: false,
            value: protocol @ (DCCP | UDPLITE),
        }) = self.rule.protocol
        else {
            return;
        };
        if translates {
            let name = protocol_name(protocol).unwrap_or_default();
            let message = format!("packets of {name} are not translated");
            self.error(
                Problem::unsupported("nat-protocol", span, message)
                    .expected("a rule for another protocol, such as TCP, UDP or SCTP")
                    .help(format!("let them through as they are, `-p {name} -j ACCEPT`: what another rule would translate is dropped")),
            );
        }
    }

    /// Gives ports that stood before or without `-p` their protocol.
    pub(super) fn adopt_orphans(&mut self) {
        let orphans = std::mem::take(&mut self.orphans);
        let Some(first) = orphans.first() else { return };
        let span = first.option.span;
        let option = first.option.text.clone();
        let named = self.rule.protocol;
        let (protocol, taken_as, help) = match named {
            Some(Negatable {
                not: false,
                value: value @ (TCP | UDP),
            }) => {
                let name = protocol_name(value).unwrap_or_default();
                (
                    value,
                    format!("taken as if `-p {name}` stood before it"),
                    format!("write `-p {name}` before `{option}`"),
                )
            }
            None => (
                TCP,
                "taken for tcp and for udp, as two rules".to_owned(),
                format!(
                    "write `-p tcp` before `{option}`, and if udp is meant as well a second line with `-p udp`"
                ),
            ),
            Some(_) => {
                return self.error(
                    Problem::wrong(
                        "needs-protocol",
                        span,
                        format!("`{option}` needs a protocol with ports"),
                    )
                    .expected("`-p tcp` or `-p udp` before it")
                    .help("for other protocols with ports use `-m multiport`"),
                );
            }
        };
        let needs = Problem::wrong(
            "ports-without-protocol",
            span,
            format!("`{option}` needs `-p tcp` or `-p udp` before it"),
        )
        .expected("`-p tcp` or `-p udp` before it")
        .help(help);
        if !self.report.lenient(needs, &taken_as) {
            return;
        }
        self.rule.both_transports = named.is_none();
        self.rule.protocol = Some(Negatable {
            not: false,
            value: protocol,
        });
        let row = protocol_name(protocol).and_then(|name| find_match(name, self.family));
        let Some(reading) = row.and_then(|row| row.reading.as_ref()) else {
            return;
        };
        let mut draft = (reading.start)();
        for Orphan {
            option,
            name,
            not,
            value,
        } in &orphans
        {
            let argument = Argument {
                option,
                not: *not,
                words: std::slice::from_ref(value),
                family: self.family,
                protocol: Some(protocol),
            };
            let row = reading.options.iter().find(|row| row.names.contains(name));
            if let Some(OptionRow {
                read: ReadOption::Into(read),
                ..
            }) = row
            {
                let result = read(&mut draft, &argument);
                self.ok(result);
            }
        }
        let name = row.map_or("tcp", |row| row.name);
        self.matches.push(LoadedMatch {
            reading,
            name,
            draft,
            span,
            before_protocol: false,
        });
    }

    /// Matches that look into a protocol's header need the rule to name the protocol.
    pub(super) fn check_protocols(&mut self) {
        for index in 0..self.matches.len() {
            let LoadedMatch {
                reading,
                name,
                span,
                before_protocol,
                ..
            } = &self.matches[index];
            let (name, span, needed, early) = (*name, *span, reading.protocols, *before_protocol);
            if needed.is_empty() {
                continue;
            }
            match self.rule.protocol {
                Some(Negatable { not: false, value }) if needed.contains(&value) => {
                    // multiport alone looks at the protocol while its options are read.
                    if early && name == "multiport" {
                        let protocol = protocol_name(value).unwrap_or_default();
                        let problem = Problem::wrong(
                            "ports-without-protocol",
                            span,
                            format!("`-m {name}` needs a protocol before it"),
                        )
                        .expected(format!("`-p {protocol}` before it"))
                        .help(format!("write `-p {protocol}` before `-m {name}`"));
                        self.report.lenient(
                            problem,
                            &format!("taken as if `-p {protocol}` stood before it"),
                        );
                    }
                }
                None if !self.foreign => self.supply_protocol(name, span, needed),
                _ => {
                    let names: Vec<_> = needed
                        .iter()
                        .filter_map(|number| protocol_name(*number))
                        .collect();
                    self.error(
                        Problem::wrong(
                            "needs-protocol",
                            span,
                            format!("`-m {name}` does not fit the rule's protocol"),
                        )
                        .expected(format!("a rule with `-p {}`", names.join("`, `-p "))),
                    );
                }
            }
        }
    }

    pub(super) fn supply_protocol(&mut self, name: &str, span: Span, needed: &'static [u8]) {
        let both = name == "multiport";
        let protocol = protocol_name(needed[0]).unwrap_or_default();
        let (taken_as, help) = if both {
            (
                "taken for tcp and for udp, as two rules".to_owned(),
                "write `-p tcp` or `-p udp` before it".to_owned(),
            )
        } else {
            (
                format!("taken as if `-p {protocol}` stood there"),
                format!("write `-p {protocol}` before `-m {name}`"),
            )
        };
        let problem = Problem::wrong(
            "ports-without-protocol",
            span,
            format!("`-m {name}` needs a protocol"),
        )
        .expected(format!("a rule with `-p {protocol}`"))
        .help(help);
        if self.report.lenient(problem, &taken_as) {
            self.rule.both_transports = both;
            self.rule.protocol = Some(Negatable {
                not: false,
                value: needed[0],
            });
        }
    }
}

/// A match in the form in which the kernel keeps it: ranges and flags that exclude nothing are
/// the same as none.
pub(super) fn normal(found: Match) -> Match {
    let ports = |ports: Ports| {
        let keep = |range: &Negatable<PortRange>| {
            range.not || (range.value.first, range.value.last) != (0, u16::MAX)
        };
        Ports {
            source: ports.source.filter(keep),
            destination: ports.destination.filter(keep),
        }
    };
    let indices = |spi: Option<Negatable<(u32, u32)>>| {
        spi.filter(|range| range.not || range.value != (0, u32::MAX))
    };
    match found {
        Match::Tcp(mut tcp) => {
            tcp.ports = ports(tcp.ports);
            tcp.flags = tcp
                .flags
                .filter(|flags| flags.not || flags.value.mask != 0 || flags.value.set != 0);
            tcp.option = tcp.option.filter(|option| option.value != 0);
            Match::Tcp(tcp)
        }
        Match::Udp(udp) => Match::Udp(ports(udp)),
        Match::Packet(PacketMatch::Esp(spi)) => Match::Packet(PacketMatch::Esp(indices(spi))),
        Match::Packet(PacketMatch::Ah(spi)) => Match::Packet(PacketMatch::Ah(indices(spi))),
        other => other,
    }
}
