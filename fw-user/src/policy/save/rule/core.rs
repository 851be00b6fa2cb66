//! The options of iptables itself: `-s`, `-p`, `-i` and the commands.

use std::net::IpAddr;

use super::Reader;
use crate::policy::error::Problem;
use crate::policy::model::{Counters, Family, Negatable, Prefix};
use crate::policy::names::protocol_name;
use crate::policy::save::lexer::Word;
use crate::policy::save::options::Core;
use crate::policy::save::{slips, values};
use crate::policy::source::Span;

impl<'a> Reader<'a, '_, '_> {
    pub(super) fn core(&mut self, word: &'a Word<'a>, core: Core) {
        let not = self.not.take();
        if let Some(span) = not
            && !core.is_negatable()
        {
            self.error(
                Problem::wrong(
                    "misplaced-not",
                    span,
                    format!("`{}` cannot be negated", word.text),
                )
                .expected("no `!` here"),
            );
        }
        if core.is_command() {
            return self.command(word, core);
        }
        let repeatable = matches!(core, Core::Match | Core::Ipv4 | Core::Ipv6);
        // -j and -g exclude each other.
        let slot = if core == Core::Goto { Core::Jump } else { core };
        let bit = 1 << slot as u32;
        if !repeatable && self.seen & bit != 0 {
            self.error(
                Problem::wrong(
                    "given-twice",
                    word.span,
                    format!("`{}` is given twice in one rule", word.text),
                )
                .expected("only one"),
            );
        }
        self.seen |= bit;
        match core {
            Core::Ipv4 => self.only_for(Family::Ipv4),
            Core::Ipv6 => self.only_for(Family::Ipv6),
            Core::Table => self.error(
                Problem::wrong(
                    "table-option",
                    word.span,
                    "a table cannot be named inside a file",
                )
                .expected("a rule for the table of the last `*` line")
                .help("put the rule after the line `*TABLE`"),
            ),
            Core::OutOfPlace => self.error(
                Problem::wrong(
                    "out-of-place",
                    word.span,
                    format!("`{}` has no place in a file", word.text),
                )
                .expected("a match or target")
                .help("leave it out"),
            ),
            Core::Fragment => self.fragment(word, not.is_some()),
            Core::SetCounters => {
                let values = [self.argument(word), self.argument(word)];
                if let [Some(packets), Some(bytes)] = values {
                    let counters = [packets.text.parse(), bytes.text.parse()];
                    match counters {
                        [Ok(packets), Ok(bytes)] => {
                            self.rule.counters = Some(Counters { packets, bytes })
                        }
                        _ => self.error(
                            Problem::wrong(
                                "bad-counters",
                                packets.span.to(bytes.span),
                                "the counters are not numbers",
                            )
                            .expected("packets and bytes"),
                        ),
                    }
                }
            }
            _ => {
                if let Some(value) = self.argument(word) {
                    self.core_value(word, core, not.is_some(), value);
                }
            }
        }
    }

    pub(super) fn core_value(
        &mut self,
        option: &'a Word<'a>,
        core: Core,
        not: bool,
        value: &'a Word<'a>,
    ) {
        if value.text == "!"
            && let Some(negated) = self.words.get(self.next)
            && !negated.text.starts_with('-')
        {
            self.next += 1;
            if self.takes_late_not(option, value, negated, core.is_negatable() && !not) {
                self.core_value(option, core, true, negated);
            }
            return;
        }
        match core {
            Core::Source | Core::Destination => {
                let Some(list) = self.prefixes(value) else {
                    return;
                };
                if not && list.len() > 1 {
                    return self.error(
                        Problem::wrong(
                            "negated-list",
                            value.span,
                            "a list of addresses cannot be negated",
                        )
                        .expected("one address")
                        .help("negate one address, or send the addresses to a chain that RETURNs"),
                    );
                }
                let place = if core == Core::Source {
                    &mut self.rule.sources
                } else {
                    &mut self.rule.destinations
                };
                *place = Some(Negatable { not, value: list });
            }
            Core::InInterface | Core::OutInterface => {
                let Some(name) = self.ok(values::interface(value)) else {
                    return;
                };
                if name.0.contains([' ', '/']) {
                    self.report.warn(
                        "odd-interface",
                        value.span,
                        format!(
                            "no interface can be called `{}`: the rule never matches",
                            name.0
                        ),
                        None,
                    );
                }
                if slips::is_placeholder(&name.0) {
                    let text = format!(
                        "`{}` looks like a placeholder: it is taken as an interface's name",
                        name.0
                    );
                    let help = Some("put the interface in its place".into());
                    self.report.warn("odd-interface", value.span, text, help);
                }
                let place = if core == Core::InInterface {
                    &mut self.rule.in_interface
                } else {
                    &mut self.rule.out_interface
                };
                *place = Some((Negatable { not, value: name }, option.span));
            }
            Core::Protocol => {
                let Some(number) = self.ok(values::protocol(value)) else {
                    return;
                };
                self.protocol(not, number, value);
            }
            Core::Match => self.load_match(value),
            Core::Jump | Core::Goto => self.jump(option, core, value),
            _ => {}
        }
    }

    /// `-s`, `-d`: what each part of the list stands for; a host's name for all of its addresses.
    fn prefixes(&mut self, word: &Word<'_>) -> Option<Vec<Prefix>> {
        let mut all = Vec::with_capacity(1);
        for (text, span) in word.parts(',') {
            match values::prefix(text, span, self.family) {
                Ok(prefix) => all.push(prefix),
                Err(problem) => {
                    let resolved = self.resolve(text, span, problem);
                    all.append(&mut self.ok(resolved)?);
                }
            }
        }
        Some(all)
    }

    /// The addresses of a host, each under the mask behind its name, in the order in which
    /// iptables makes a rule for each (`xtables_ipparse_multiple`, libxtables/xtables.c).
    fn resolve(&mut self, text: &str, span: Span, problem: Problem) -> values::Value<Vec<Prefix>> {
        let Some(hosts) = self.report.hosts.filter(|_| problem.code == "host-name") else {
            return Err(problem);
        };
        let text = text.trim_start();
        let (name, mask) = text.split_at(text.find('/').unwrap_or(text.len()));
        let addresses = hosts.addresses(name, self.family).map_err(|why| {
            let message = format!("the name `{name}` cannot be resolved: {why}");
            Problem::wrong("unknown-host", span, message)
                .expected(format!("an {} address, or a name that has one", self.family.title()))
                .help("write the address: a rule with a name loads only while a name server answers, at boot too")
        })?;
        let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        self.report.warn(
            "host-name",
            span,
            format!("the name `{name}` is taken for {}", list.join(", ")),
            Some("write the address, or load again when it changes: a loaded policy does not follow the name".into()),
        );
        list.iter()
            .map(|address| values::prefix(&format!("{address}{mask}"), span, self.family))
            .collect()
    }

    pub(super) fn protocol(&mut self, not: bool, number: u8, value: &Word<'_>) {
        if number == 0 && not {
            return self.error(
                Problem::wrong("never-matches", value.span, "`! -p all` would never match")
                    .expected("a protocol"),
            );
        }
        // NEXTHDR of extension headers, which are skipped on the way to the final header.
        const SKIPPED: [u8; 5] = [0, 43, 44, 51, 60];
        if self.family == Family::Ipv6 && number != 0 && SKIPPED.contains(&number) && !not {
            self.report.warn(
                "never-matches",
                value.span,
                format!(
                    "`-p {}` never matches: extension headers are skipped",
                    value.text
                ),
                Some("match the final header's protocol".into()),
            );
        }
        if number == self.family.other().icmp() && !not {
            let right = protocol_name(self.family.icmp()).unwrap_or_default();
            self.report.warn(
                "never-matches",
                value.span,
                format!(
                    "`-p {}` is not {}'s ICMP: it hardly ever matches",
                    value.text,
                    self.family.title()
                ),
                Some(format!("write `-p {right}`")),
            );
        }
        self.rule.protocol = (number != 0).then_some(Negatable { not, value: number });
    }

    /// `-4` or `-6`: a line of the other IP version is of no interest, whatever it says.
    fn only_for(&mut self, family: Family) {
        if family == self.family {
            return;
        }
        self.other_family = true;
        self.report.errors.truncate(self.errors_before);
        self.next = self.words.len();
        self.matches.clear();
        self.orphans.clear();
        self.target = None;
    }

    pub(super) fn fragment(&mut self, word: &Word<'_>, not: bool) {
        if self.family == Family::Ipv6 {
            let problem = Problem::wrong("unsupported-option", word.span, "`-f` is for IPv4 only");
            return self.error(problem.expected("another match"));
        }
        if !not {
            self.report.warn(
                "never-matches",
                word.span,
                "`-f` never matches: datagrams are put together before rules see them",
                Some("leave the rule out".into()),
            );
        }
        self.rule.fragment = Some(not);
    }

    pub(super) fn command(&mut self, word: &'a Word<'a>, core: Core) {
        if self.command.is_some() {
            return self.error(
                Problem::wrong("two-commands", word.span, "a second command in one line")
                    .expected("one command per line"),
            );
        }
        self.command = Some((core, word.span));
        if core == Core::Edit {
            self.error(
                Problem::unsupported(
                    "unsupported-command",
                    word.span,
                    format!("`{}` is not supported", word.text),
                )
                .expected("-A, -I, -N, -P, -F, -X or -Z")
                .help("write the chain as it shall be in the end"),
            );
            // Its operands are of no interest.
            self.next = self.words.len();
            return;
        }
        let optional = matches!(core, Core::Flush | Core::DeleteChain | Core::Zero);
        let is_operand = |word: Option<&Word<'_>>| {
            word.is_some_and(|word| !word.text.starts_with('-') && word.text != "!")
        };
        if !optional || is_operand(self.words.get(self.next)) {
            self.operand(word);
        }
        let second = match core {
            Core::Insert => is_operand(self.words.get(self.next)),
            Core::Policy => true,
            _ => false,
        };
        if second && !self.operands.is_empty() {
            self.operand(word);
        }
    }

    /// Takes the next word for the command.
    fn operand(&mut self, command: &Word<'_>) {
        let first = self.next - self.operands.len();
        self.argument(command);
        self.operands = &self.words[first..self.next];
    }
}
