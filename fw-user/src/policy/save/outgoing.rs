//! Rules that would have this host's own packets routed anew.
//!
//! A program at egress sees a packet when it is routed: its interface and next hop are settled, where
//! netfilter routes it anew. So of what this host sends, only what stays on its way can be translated
//! exactly: to another port of the same address; and on loopback, whose packets all come in again, to a
//! loopback address. The same is true of its answers to a source that INPUT translated.

use crate::policy::error::{Problem, Report};
use crate::policy::model::{Rule, Target};
use crate::policy::source::Span;

/// The rules that OUTPUT reaches, or PREROUTING.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Where the target stands, its name, and the chain that it cannot be exact in.
    inexact: Vec<(Span, &'static str, &'static str)>,
    /// Those that are reached from where they can be exact.
    elsewhere: Vec<Span>,
}

impl Outgoing {
    /// A rule that a base chain reaches.
    pub fn visit(&mut self, start: &str, rule: &Rule, target: Span) {
        match (start, rule.target.nat_chains()) {
            ("OUTPUT", Some((name, _))) if !is_exact(rule) => {
                self.inexact.push((target, name, "OUTPUT"));
            }
            ("INPUT", Some((name, _))) if !keeps_address(rule) => {
                self.inexact.push((target, name, "INPUT"));
            }
            ("PREROUTING" | "POSTROUTING", _) => self.elsewhere.push(target),
            _ => {}
        }
    }

    /// Refuses those that only OUTPUT reaches, and says of the others what becomes of them.
    pub fn report(self, report: &mut Report<'_>) {
        for (span, name, chain) in self.inexact {
            if self.elsewhere.contains(&span) {
                report.warn(
                    "nat-local",
                    span,
                    format!("{name} in a chain that {chain} calls too: what meets it there is accepted, but not translated"),
                    Some("let the service, or Docker's proxy (its default), listen on the port, so that it answers this host's own connections".to_owned()),
                );
                continue;
            }
            if chain == "INPUT" {
                let message =
                    format!("{name} in INPUT would have to route this host's answers anew");
                report.error(
                    Problem::unsupported("nat-local", span, message)
                        .expected("a rule that leaves the source's address")
                        .help("translate ports only, `-j SNAT --to-source :PORTS`, or put the rule into POSTROUTING of the router before"),
                );
                continue;
            }
            let message =
                format!("{name} in OUTPUT would have to route packets anew that are on their way");
            report.error(
                Problem::unsupported("nat-local", span, message)
                    .expected("a rule that leaves them on their way")
                    .help("on loopback, `-o lo -j REDIRECT --to-ports PORT`; elsewhere another port of the same address, `-j DNAT --to-destination :PORT`; or have the program connect to where it should"),
            );
        }
    }
}

/// Whether a rule of INPUT leaves the source's address.
fn keeps_address(rule: &Rule) -> bool {
    matches!(&rule.target, Target::Snat(translation) if translation.addresses.is_none())
}

/// Whether the rule leaves every packet of this host's on its way.
fn is_exact(rule: &Rule) -> bool {
    let on_loopback = rule
        .out_interface
        .as_ref()
        .is_some_and(|pattern| !pattern.not && pattern.value.0 == "lo");
    match &rule.target {
        Target::Redirect(_) => on_loopback,
        Target::Dnat(translation) => match translation.addresses {
            None => true,
            Some((first, last)) => on_loopback && first.is_loopback() && last.is_loopback(),
        },
        _ => false,
    }
}
