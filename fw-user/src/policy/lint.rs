//! What `fwbpf check` warns of: policies that are right by the letter and probably not meant.

mod containers;
mod covers;
mod families;
mod limits;
mod owners;
mod reach;
mod replies;
mod routes;
mod ssh;

pub use ssh::SshSession;

use std::collections::HashSet;

use super::error::Warning;
use super::ids::TableName;
use super::model::{Chain, Origin, Policy, Rule, Table};

/// What the machine that checks knows besides the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LintContext {
    /// The SSH connection that the check is run from.
    pub ssh: Option<SshSession>,
}

/// Every warning about the policy, in the order of its lines.
pub fn lint(policy: &Policy, context: &LintContext) -> Vec<Warning> {
    let mut findings = Findings {
        policy,
        warnings: Vec::new(),
        said: HashSet::new(),
    };
    reach::lint(&mut findings);
    families::lint(&mut findings);
    replies::lint(&mut findings);
    limits::lint(&mut findings);
    containers::lint(&mut findings);
    owners::lint(&mut findings);
    routes::lint(&mut findings);
    if let Some(session) = &context.ssh {
        ssh::lint(&mut findings, session);
    }
    let mut warnings = findings.warnings;
    let line = |warning: &Warning| warning.origin.map(|origin| (origin.file, origin.line));
    // Stable; what is about no line in particular comes first.
    warnings.sort_by_key(line);
    warnings
}

/// The warnings about the SSH connection alone.
pub fn cuts_ssh(policy: &Policy, session: &SshSession) -> Vec<Warning> {
    let mut findings = Findings {
        policy,
        warnings: Vec::new(),
        said: HashSet::new(),
    };
    ssh::lint(&mut findings, session);
    findings.warnings
}

/// The warnings found so far.
struct Findings<'a> {
    policy: &'a Policy,
    warnings: Vec<Warning>,
    /// The file, line and text of each.
    said: HashSet<(Option<(u32, u32)>, String)>,
}

impl Findings<'_> {
    fn warn(&mut self, code: &'static str, origin: Option<Origin>, text: String, help: &str) {
        let name =
            origin.and_then(|origin| self.policy.files.get(usize::try_from(origin.file).ok()?));
        let (file, help) = (name.cloned(), Some(help.to_owned()));
        let warning = Warning {
            code,
            origin,
            file,
            text,
            help,
        };
        // A line of policy.toml may say the same in both IP versions.
        let key = (
            origin.map(|origin| (origin.file, origin.line)),
            warning.text.clone(),
        );
        if self.said.insert(key) {
            self.warnings.push(warning);
        }
    }
}

/// The filter tables of the IP versions that the policy speaks of.
fn filter_tables(policy: &Policy) -> impl Iterator<Item = (super::model::Family, &Table)> {
    policy.rulesets().filter_map(|(family, ruleset)| {
        ruleset
            .table(TableName::Filter)
            .map(|table| (family, table))
    })
}

/// The rules that a packet in this chain may meet, those of called chains in their place. At most
/// so many as to see what a policy lets in; not an evaluation.
fn flattened<'a>(table: &'a Table, chain: &'a Chain) -> Vec<&'a Rule> {
    let mut rules = Vec::new();
    flatten(table, chain, 0, &mut rules);
    rules
}

fn flatten<'a>(table: &'a Table, chain: &'a Chain, depth: usize, rules: &mut Vec<&'a Rule>) {
    const DEPTH: usize = 8;
    const RULES: usize = 100_000;
    for rule in &chain.rules {
        if rules.len() >= RULES {
            return;
        }
        rules.push(rule);
        let called = super::save::called(rule).and_then(|name| table.chain(name));
        if let Some(called) = called.filter(|_| depth < DEPTH) {
            flatten(table, called, depth + 1, rules);
        }
    }
}
