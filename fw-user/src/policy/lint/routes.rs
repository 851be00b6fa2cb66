//! What mangle OUTPUT changes after the packet has its route.

use super::{Findings, flattened};
use crate::policy::change::{Change, FlowMark};
use crate::policy::ids::TableName;
use crate::policy::model::Target;

/// netfilter asks for the route anew when mangle OUTPUT has changed a packet's mark or type of service
/// (`ipt_mangle_out`, net/ipv4/netfilter/iptable_mangle.c); a program at the interface comes too late
/// for that.
pub(super) fn lint(findings: &mut Findings<'_>) {
    let policy = findings.policy;
    let tables = policy
        .rulesets()
        .filter_map(|(_, ruleset)| ruleset.table(TableName::Mangle));
    for table in tables {
        let Some(output) = table.chain("OUTPUT") else {
            continue;
        };
        let changing = flattened(table, output).into_iter().find_map(|rule| {
            let what = match rule.target {
                Target::Change(
                    Change::Mark { .. }
                    | Change::FlowMark {
                        mark: FlowMark::Restore { .. },
                        ..
                    },
                ) => "the mark",
                Target::Change(Change::Dscp(_) | Change::Tos { .. }) => "the type of service",
                _ => return None,
            };
            Some((rule, what))
        });
        let Some((rule, what)) = changing else {
            continue;
        };
        let text =
            format!("{what} is set after the packet has its route: `ip rule` does not see it");
        findings.warn(
            "late-mark",
            Some(rule.origin),
            text,
            "nothing is amiss if only rules, tc or sockets look at it; to route by it, have the program set its mark (SO_MARK), or write an `ip rule` that asks for the user, address or port",
        );
    }
}
