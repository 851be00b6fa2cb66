//! `fwbpf show`: the running policy with its counters.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Failure;
use super::output::Output;
use super::running::Running;
use crate::cli::Show;
use crate::kernel::state::StateDir;
use crate::policy::ids::{CounterId, TableName};
use crate::policy::model::{Chain, Counters, Family, Match, Origin, Policy, Rule};
use crate::policy::{print_rule, print_save, print_toml};

/// One chain as `--json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainView {
    /// IP version.
    pub family: Family,
    /// The table.
    pub table: TableName,
    /// The chain.
    pub chain: String,
    /// `ACCEPT` or `DROP`; nothing for user-defined chains.
    pub policy: Option<&'static str>,
    /// Packets that the policy decided.
    pub policy_counters: Option<Counters>,
    /// The rules.
    pub rules: Vec<RuleView>,
}

/// One rule as `--json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// Packets that matched.
    pub packets: u64,
    /// Their bytes, of layer 3.
    pub bytes: u64,
    /// The rule, as iptables-save writes it.
    pub rule: String,
    /// The comment, if it has one.
    pub comment: Option<String>,
    /// The file that it came from.
    pub file: Option<String>,
    /// The line.
    pub line: u32,
}

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Show, output: &mut Output) -> Result<(), Failure> {
    let running = Running::open(state)?;
    let counters: HashMap<CounterId, Counters> = running.counters()?.into_iter().collect();
    let policy = &running.meta.policy;
    let wanted = |family| arguments.family.chosen().is_none_or(|only| only == family);
    if arguments.save {
        let read = |id| counters.get(&id).copied().unwrap_or_default();
        let texts: BTreeMap<Family, String> = [Family::Ipv4, Family::Ipv6]
            .into_iter()
            .filter(|family| wanted(*family))
            .map(|family| (family, print_save(policy, family, Some(&read))))
            .collect();
        if output.json {
            return output.value(&texts);
        }
        return texts.values().try_for_each(|text| output.text(text));
    }
    if arguments.toml {
        let text = print_toml(policy).map_err(|error| Failure::System(error.into()))?;
        if output.json {
            return output.value(&serde_json::json!({ "toml": text }));
        }
        return output.text(&text);
    }
    let chains: Vec<ChainView> = chain_views(policy, &counters)
        .into_iter()
        .filter(|chain| wanted(chain.family))
        .collect();
    if output.json {
        return output.value(&chains);
    }
    for chain in &chains {
        print_chain(chain, output)?;
    }
    Ok(())
}

/// The chains of a policy, in the order of iptables-save.
pub fn chain_views(policy: &Policy, counters: &HashMap<CounterId, Counters>) -> Vec<ChainView> {
    let mut views = Vec::new();
    for (family, ruleset) in policy.rulesets() {
        for (table, content) in ruleset.tables() {
            for (index, chain) in content.chains.iter().enumerate() {
                let count = |rule| {
                    let id = CounterId {
                        family,
                        table,
                        chain: index,
                        rule,
                    };
                    counters.get(&id).copied().unwrap_or_default()
                };
                views.push(ChainView {
                    family,
                    table,
                    chain: chain.name.clone(),
                    policy: policy_name(chain),
                    policy_counters: chain.policy.as_ref().map(|_| count(None)),
                    rules: chain
                        .rules
                        .iter()
                        .enumerate()
                        .map(|(index, rule)| rule_view(policy, family, rule, count(Some(index))))
                        .collect(),
                });
            }
        }
    }
    views
}

/// The comment of a rule, if it has one.
pub fn comment(rule: &Rule) -> Option<&str> {
    rule.matches.iter().find_map(|one| match one {
        Match::Comment(text) => Some(text.as_str()),
        Match::Tcp(_)
        | Match::Udp(_)
        | Match::Icmp(_)
        | Match::Multiport(_)
        | Match::State(_)
        | Match::Conntrack(_)
        | Match::Limit(_)
        | Match::Set(_)
        | Match::Packet(_)
        | Match::List(_) => None,
    })
}

/// `rules.v4:12`, without the directories.
pub fn place(policy: &Policy, origin: Origin) -> String {
    let file = policy
        .files
        .get(origin.file as usize)
        .map_or("?", |name| name.rsplit('/').next().unwrap_or(name));
    format!("{file}:{}", origin.line)
}

fn rule_view(policy: &Policy, family: Family, rule: &Rule, counters: Counters) -> RuleView {
    RuleView {
        packets: counters.packets,
        bytes: counters.bytes,
        rule: print_rule(rule, family),
        comment: comment(rule).map(str::to_owned),
        file: policy.files.get(rule.origin.file as usize).cloned(),
        line: rule.origin.line,
    }
}

fn policy_name(chain: &Chain) -> Option<&'static str> {
    chain
        .policy
        .as_ref()
        .map(|policy| if policy.accept { "ACCEPT" } else { "DROP" })
}

fn print_chain(chain: &ChainView, output: &mut Output) -> Result<(), Failure> {
    let policy = match (chain.policy, chain.policy_counters) {
        (Some(policy), Some(counters)) => format!(
            " (policy {policy}: {} packets, {} bytes)",
            counters.packets, counters.bytes
        ),
        _ => String::new(),
    };
    output.heading(format_args!(
        "{} {} {}{policy}",
        match chain.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        },
        chain.table,
        chain.chain,
    ))?;
    if chain.rules.is_empty() {
        return output.line("  no rules\n");
    }
    let rows = chain.rules.iter().map(|rule| {
        let file = rule.file.as_deref().unwrap_or("?");
        let file = file.rsplit('/').next().unwrap_or(file);
        vec![
            rule.packets.to_string(),
            rule.bytes.to_string(),
            rule.rule.clone(),
            format!("{file}:{}", rule.line),
        ]
    });
    output.table(&["packets", "bytes", "rule", "from"], rows, &[0, 1])?;
    output.line("")
}
