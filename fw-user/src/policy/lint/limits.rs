//! Limits that limit nothing: what is above them is accepted by another rule, or by the policy.

use super::Findings;
use super::covers::covers;
use crate::policy::ids::TableName;
use crate::policy::lists::{Hashlimit, ListMatch};
use crate::policy::model::{Chain, Family, Match, Rule, Target};
use crate::policy::print::print_rule;

pub(super) fn lint(findings: &mut Findings<'_>) {
    let policy = findings.policy;
    for (family, ruleset) in policy.rulesets() {
        if let Some(table) = ruleset.table(TableName::Filter) {
            for chain in &table.chains {
                accepted_anyway(findings, family, chain);
            }
        }
    }
}

fn accepted_anyway(findings: &mut Findings<'_>, family: Family, chain: &Chain) {
    for (index, rule) in chain.rules.iter().enumerate() {
        let Some(unlimited) = without_limit(rule) else {
            continue;
        };
        let by = match fate(chain, &chain.rules[index + 1..], &unlimited) {
            Some(Fate::Rule(later)) => format!(
                "line {} (`{}`) accepts what is above it",
                later.origin.line,
                print_rule(later, family)
            ),
            Some(Fate::Policy) => format!("{} accepts what is above it", chain.name),
            None => continue,
        };
        let text = format!(
            "the limit of `{}` in {} limits nothing: {by}",
            print_rule(rule, family),
            chain.name
        );
        findings.warn(
            "idle-limit",
            Some(rule.origin),
            text,
            "drop what is above it: behind it the same rule without the limit, and with `-j DROP`",
        );
    }
}

/// Who accepts what a limit has not let through.
enum Fate<'a> {
    Rule(&'a Rule),
    Policy,
}

/// `None` if it may be dropped, or if that is not plain.
fn fate<'a>(chain: &Chain, later: &'a [Rule], unlimited: &Rule) -> Option<Fate<'a>> {
    for rule in later {
        match rule.target {
            Target::Accept if covers(rule, unlimited) => return Some(Fate::Rule(rule)),
            Target::Accept | Target::Continue | Target::Log(_) | Target::Nflog(_) => {}
            _ => return None,
        }
    }
    chain
        .policy
        .as_ref()
        .filter(|policy| policy.accept)
        .map(|_| Fate::Policy)
}

/// A rule that accepts up to a limit, without the limit.
fn without_limit(rule: &Rule) -> Option<Rule> {
    let limits = |each: &Match| match each {
        Match::Limit(_) => true,
        Match::List(ListMatch::Hashlimit(Hashlimit { above, .. })) => !above,
        _ => false,
    };
    if rule.target != Target::Accept || !rule.matches.iter().any(limits) {
        return None;
    }
    let mut unlimited = rule.clone();
    unlimited.matches.retain(|each| !limits(each));
    Some(unlimited)
}
