//! Lines that declare chains and set policies: `:INPUT DROP [0:0]`.

use super::lexer::Line;
use super::{FileReader, Open, is_builtin_anywhere};
use crate::policy::error::{Problem, nearest};
use crate::policy::match_table::find_target;
use crate::policy::model::{ChainPolicy, Counters};
use crate::policy::source::Span;

impl FileReader<'_, '_> {
    pub(super) fn declare_chain(&mut self, line: Line<'_>, text: &str, span: Span) {
        let offset = |part: &str| {
            // Both are parts of the line, so the difference is the offset within it.
            let at = line.start + (part.as_ptr() as usize - line.text.as_ptr() as usize);
            Span {
                start: at,
                end: at + part.len(),
            }
        };
        let mut parts = text[1..].split([' ', '\t']).filter(|part| !part.is_empty());
        let (name, policy) = (parts.next(), parts.next());
        if matches!(self.open, Open::None) && !self.outside(span) {
            return;
        }
        let builder = match &mut self.open {
            Open::None | Open::Unknown => return,
            Open::Known(builder, _) => builder,
        };
        let (Some(name), Some(policy)) = (name, policy) else {
            return self.report.error(
                Problem::wrong("bad-chain-line", span, "a chain's line is incomplete").expected(
                    "`:CHAIN POLICY [packets:bytes]`, with the policy `-` for a chain of your own",
                ),
            );
        };
        let name_span = offset(name);
        let own = !builder.is_builtin(name);
        if policy == "-" {
            // iptables-restore reads no further.
            let rest = parts
                .next()
                .map(|first| (first, brackets(first), parts.next()));
            if let Some((first, counters, more)) = rest
                && (counters.is_none() || more.is_some())
            {
                let ignored = if counters.is_none() {
                    Some(first)
                } else {
                    more
                };
                let ignored = ignored.unwrap_or(first);
                self.report.warn(
                    "ignored-word",
                    offset(ignored),
                    format!("`{ignored}` is ignored: the `-` before it says that `{name}` has no policy of its own"),
                    Some(format!("write `:{name} - [0:0]`")),
                );
            }
            if own {
                self.declare_own_chain(name, name_span);
            }
            return;
        }
        let counters = parts.next();
        if own {
            return self.policy_of_no_builtin(name, policy, name_span, offset(policy));
        }
        let counters = match counters.map(|text| (text, brackets(text))) {
            None => None,
            Some((_, Some(counters))) => Some(counters),
            Some((text, None)) => {
                return self.report.error(
                    Problem::wrong(
                        "bad-counters",
                        offset(text),
                        "the chain's counters cannot be read",
                    )
                    .expected("`[packets:bytes]`, such as `[0:0]`"),
                );
            }
        };
        if let Some(extra) = parts.next() {
            return self.report.error(
                Problem::wrong(
                    "stray-word",
                    offset(extra),
                    format!("`{extra}` is not expected here"),
                )
                .expected("the end of the line"),
            );
        }
        let policy_span = offset(policy);
        self.set_policy(name, policy, policy_span, counters);
    }

    /// `:CHAIN -` of a chain of one's own.
    fn declare_own_chain(&mut self, name: &str, span: Span) {
        let Open::Known(builder, _) = &mut self.open else {
            return;
        };
        if builder.has_chain(name) {
            return self.report.error(
                Problem::wrong(
                    "chain-exists",
                    span,
                    format!("the chain `{name}` exists already"),
                )
                .expected("a new name"),
            );
        }
        match chain_name(name, span) {
            Ok(()) => builder.add_chain(name),
            Err(problem) => self.report.error(problem),
        }
    }

    /// `:FORWARD ACCEPT` in nat: the chain is built in elsewhere. Without rules it means nothing.
    pub(super) fn policy_of_no_builtin(
        &mut self,
        name: &str,
        policy: &str,
        name_span: Span,
        policy_span: Span,
    ) {
        let Open::Known(builder, _) = &self.open else {
            return;
        };
        let table = builder.name;
        let builtin: Vec<_> = table.builtin_chains().to_vec();
        let elsewhere = is_builtin_anywhere(name);
        if elsewhere {
            let problem = Problem::wrong(
                "no-such-builtin",
                name_span,
                format!("the table {table} has no chain {name}"),
            )
            .expected(format!("one of {}", builtin.join(", ")))
            .help("leave the line out");
            if policy == "ACCEPT" {
                self.report.lenient(problem, "the line is ignored");
            } else {
                self.report.error(problem);
            }
            return;
        }
        let problem = Problem::wrong(
            "policy-of-own-chain",
            policy_span,
            format!("`{name}` is not a built-in chain and has no policy"),
        )
        .expected("`-`");
        let problem = match nearest(name, builtin) {
            Some(near) => problem.help(format!(
                "did you mean `:{near} {policy}`? A chain of your own is declared `:{name} - [0:0]`"
            )),
            None => problem.help(format!("write `:{name} - [0:0]`")),
        };
        let forgotten = brackets(policy).is_some();
        if !forgotten
            || !self
                .report
                .lenient(problem.clone(), "the chain is declared")
        {
            if !forgotten {
                self.report.error(problem);
            }
            // Rules for the chain are not wrong for this.
            let Open::Known(builder, _) = &mut self.open else {
                return;
            };
            if chain_name(name, name_span).is_ok() && !builder.has_chain(name) {
                builder.add_chain(name);
            }
            return;
        }
        self.declare_own_chain(name, name_span);
    }

    pub(super) fn set_policy(
        &mut self,
        name: &str,
        policy: &str,
        span: Span,
        counters: Option<Counters>,
    ) {
        let Open::Known(builder, _) = &mut self.open else {
            return;
        };
        let accept = match policy {
            "ACCEPT" => true,
            "DROP" => false,
            _ => {
                let problem =
                    Problem::wrong("bad-policy", span, format!("`{policy}` cannot be a policy"))
                        .expected("ACCEPT or DROP");
                let upper = policy.to_uppercase();
                let meant = match upper.as_str() {
                    "ACCEPT" | "DROP" => upper.as_str(),
                    "REJECT" => "DROP",
                    _ => return self.report.error(problem),
                };
                let exact = meant == upper;
                let problem = problem.help(format!("write `{meant}`"));
                if !exact
                    || !self
                        .report
                        .lenient(problem.clone(), &format!("taken as `{meant}`"))
                {
                    if !exact {
                        self.report.error(problem);
                    }
                    return;
                }
                meant == "ACCEPT"
            }
        };
        let origin = Some(self.report.origin(span));
        builder.set_policy(
            name,
            ChainPolicy {
                accept,
                counters,
                origin,
            },
        );
    }
}

pub(super) fn brackets(text: &str) -> Option<Counters> {
    let (packets, bytes) = text.strip_prefix('[')?.strip_suffix(']')?.split_once(':')?;
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (packets, bytes) = Some((packets, bytes)).filter(|pair| plain(pair.0) && plain(pair.1))?;
    Some(Counters {
        packets: packets.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

/// Whether a chain of one's own may have that name.
pub(super) fn chain_name(name: &str, span: Span) -> Result<(), Problem> {
    // XT_EXTENSION_MAXNAMELEN is 29 with the terminating zero.
    const LONGEST: usize = 28;
    let bad = |why: String| Problem::wrong("bad-chain-name", span, why);
    if name.len() > LONGEST {
        return Err(bad(format!("the chain's name `{name}` is too long"))
            .expected(format!("at most {LONGEST} characters")));
    }
    if name.is_empty() || name.starts_with(['-', '!']) {
        return Err(bad(format!("a chain's name cannot be `{name}`"))
            .expected("a name that begins with a letter"));
    }
    if name.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '"')
    {
        return Err(bad(format!("a chain's name cannot be `{name}`"))
            .expected("a name without blanks and quotes"));
    }
    if find_target(name).is_some() {
        return Err(
            bad(format!("`{name}` is a target and cannot name a chain")).expected("another name")
        );
    }
    Ok(())
}
