//! Files -> policy: what each file is, for which IP version, and how several become one.

use fw_common::abi::maps::{POLICY_LISTS_MAX, POLICY_SETS_MAX};
use serde::Serialize;

use super::document;
use super::error::{PolicyError, PolicyErrors, Problem, Report, Warning, nearest};
use super::hosts::Hosts;
use super::lists::Disagreement;
use super::model::{Family, Origin, Policy};
use super::save;
use super::set::{self, is_set_file};
use super::source::{SourceFile, Span};

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Refuse whatever iptables-restore refuses, even if its meaning is evident.
    pub strict: bool,
}

/// A policy and what its writer would want to know.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// What was taken although it is doubtful.
    pub warnings: Vec<Warning>,
    /// The places where rules ask sets that no file gives. The running firewall may have them.
    pub missing_sets: Vec<MissingSet>,
}

/// A rule that asks a set that no file gives.
#[derive(Clone, Debug, Serialize)]
pub struct MissingSet {
    /// The set's name.
    pub name: String,
    /// What is the matter, where nobody else has the set either.
    pub error: PolicyError,
}

/// Reads the files that together are one policy: rule files in iptables-save's format, one per
/// IP version and table, or one policy.toml; and files of sets, as `ipset save` writes them. Names of
/// hosts are errors.
pub fn load(files: &[SourceFile], options: LoadOptions) -> Result<Loaded, PolicyErrors> {
    read(files, options, None)
}

/// Reads the files as [`load`] does, with names of hosts looked up.
pub fn load_with_hosts(
    files: &[SourceFile],
    options: LoadOptions,
    hosts: &dyn Hosts,
) -> Result<Loaded, PolicyErrors> {
    read(files, options, Some(hosts))
}

fn read(
    files: &[SourceFile],
    options: LoadOptions,
    hosts: Option<&dyn Hosts>,
) -> Result<Loaded, PolicyErrors> {
    let mut policy = Policy::default();
    let mut warnings = Vec::new();
    let mut errors = Vec::new();
    policy.files = files.iter().map(|file| file.name.clone()).collect();
    // Sets first: rules refer to them.
    let (sets, others): (Vec<_>, Vec<_>) = files
        .iter()
        .enumerate()
        .partition(|(_, file)| is_set_file(file));
    for (index, file) in sets {
        let mut report = Report::new(file, index, options.strict, hosts);
        set::read(file, &mut policy.sets, &mut report);
        take_report(report, &mut errors, &mut warnings);
    }
    let alone = others.len() == 1;
    for (index, file) in others {
        let mut report = Report::new(file, index, options.strict, hosts);
        load_file(file, alone, &mut policy, &mut report);
        take_report(report, &mut errors, &mut warnings);
    }
    if policy.sets.len() > POLICY_SETS_MAX && errors.is_empty() {
        let set = &policy.sets[POLICY_SETS_MAX];
        errors.push(error_at(files, set.origin, &set.name, |span| {
            Problem::wrong("too-many-sets", span, "there are too many sets")
                .expected(format!("{POLICY_SETS_MAX} sets at most"))
                .help("leave out sets that no rule asks")
        }));
    }
    if errors.is_empty()
        && let Some(error) = gather_lists(files, &mut policy)
    {
        errors.push(error);
    }
    if errors.is_empty() {
        Ok(Loaded {
            missing_sets: missing_sets(files, &policy),
            policy,
            warnings,
        })
    } else {
        Err(PolicyErrors { errors })
    }
}

/// Notes the lists that rules name; what is wrong with them.
fn gather_lists(files: &[SourceFile], policy: &mut Policy) -> Option<PolicyError> {
    if let Err(Disagreement { origin, name, what }) = policy.gather_lists() {
        return Some(error_at(files, origin, &name, |span| {
            let message = format!("the list `{name}` has {what} in a rule before");
            Problem::wrong("list-disagreement", span, message)
                .expected("the same in all rules that name a list")
                .help("give one of the lists another `--name`: iptables would take what the rule says that it sees first for all of them")
        }));
    }
    if let Some(list) = policy.lists.get(POLICY_LISTS_MAX) {
        return Some(error_at(files, list.origin, &list.name, |span| {
            Problem::wrong("too-many-lists", span, "there are too many lists")
                .expected(format!("{POLICY_LISTS_MAX} lists at most"))
                .help("let rules share a list by its `--name`")
        }));
    }
    None
}

fn take_report(mut report: Report<'_>, errors: &mut Vec<PolicyError>, warnings: &mut Vec<Warning>) {
    warnings.append(&mut report.warnings);
    report
        .errors
        .sort_by_key(|error| (error.line, error.column));
    errors.append(&mut report.errors);
}

fn missing_sets(files: &[SourceFile], policy: &Policy) -> Vec<MissingSet> {
    let mut missing = Vec::new();
    for rule in policy.rules() {
        for name in rule.named_sets().filter(|name| policy.set(name).is_none()) {
            let error = error_at(files, rule.origin, name, |span| {
                let problem =
                    Problem::wrong("unknown-set", span, format!("there is no set `{name}`"))
                        .expected("a set that a file gives, or that the running firewall has");
                match nearest(name, policy.sets.iter().map(|set| set.name.as_str())) {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem
                        .help("load the file that `ipset save` writes together with the rules"),
                }
            });
            missing.push(MissingSet {
                name: name.to_owned(),
                error,
            });
        }
    }
    missing
}

/// An error about a word of a line.
fn error_at(
    files: &[SourceFile],
    origin: Origin,
    word: &str,
    problem: impl FnOnce(Span) -> Problem,
) -> PolicyError {
    let index = (origin.file as usize).min(files.len().saturating_sub(1));
    let file = &files[index];
    let before = origin.line.saturating_sub(1) as usize;
    let start = file
        .text
        .split_inclusive('\n')
        .take(before)
        .map(str::len)
        .sum();
    let line = file.text[start..].lines().next().unwrap_or_default();
    let column = line.find(word).unwrap_or(0);
    let mut report = Report::new(file, index, false, None);
    report.error(problem(
        (start + column..start + column + word.len()).into(),
    ));
    report.errors.remove(0)
}

fn load_file(file: &SourceFile, alone: bool, policy: &mut Policy, report: &mut Report<'_>) {
    if is_toml(file) {
        if !alone {
            report.error(not_alone());
        }
        return document::load(file, policy, report);
    }
    if policy.toml.is_some() {
        return report.error(not_alone());
    }
    if let Some(problem) = save::shell_script(file) {
        return report.error(problem);
    }
    let Some(family) = family_of(file, report) else {
        return;
    };
    let mut ruleset = save::read(file, family, report);
    let place = policy.ruleset_mut(family).get_or_insert_default();
    for name in super::TableName::ALL {
        let Some(table) = ruleset.table_mut(name).take() else {
            continue;
        };
        if place.table(name).is_some() {
            let title = family.title();
            report.error(Problem::wrong("table-in-two-files", Span::default(), format!("{title}'s table {name} is in two of the files"))
                .expected("each table in one file")
                .help("put the rules of both into one file, or name the IP version of each with --ipv4 or --ipv6"));
            continue;
        }
        *place.table_mut(name) = Some(table);
    }
}

/// A policy.toml by its name, or by a first line that only TOML can have.
fn is_toml(file: &SourceFile) -> bool {
    let mut lines = file.text.lines().map(str::trim);
    let first = lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .unwrap_or_default();
    let header = first.starts_with('[') && first.ends_with(']') && !first.contains(':');
    file.name.to_lowercase().ends_with(".toml") || header
}

fn not_alone() -> Problem {
    Problem::wrong(
        "toml-and-others",
        Span::default(),
        "a policy.toml is given together with another file",
    )
    .expected("one policy.toml alone, or rule files")
    .help("a policy.toml speaks for both IP versions: give it alone")
}

/// The IP version of a rule file: what the user said, else its name, else its contents.
fn family_of(file: &SourceFile, report: &mut Report<'_>) -> Option<Family> {
    let named = family_of_name(&file.name);
    if let (Some(given), Some(named)) = (file.family, named)
        && given != named
    {
        let message = format!(
            "the file is given as {} but its name says {}",
            given.title(),
            named.title()
        );
        report.error(
            Problem::wrong("family-contradiction", Span::default(), message)
                .expected(format!("rules for {}", given.title()))
                .help("leave the option out, or rename the file"),
        );
        return None;
    }
    if let Some(family) = file.family.or(named) {
        return Some(family);
    }
    let signs = signs_of(&file.text);
    let first = |family| signs.iter().find(|(found, _)| *found == family);
    match (first(Family::Ipv4), first(Family::Ipv6)) {
        (Some(_), None) => Some(Family::Ipv4),
        (None, Some(_)) => Some(Family::Ipv6),
        (Some(_), Some((_, span))) => {
            report.error(
                Problem::wrong(
                    "family-contradiction",
                    *span,
                    "the file has rules for IPv4 and for IPv6",
                )
                .expected("rules for one IP version")
                .help("split it in two: iptables-save writes one file, ip6tables-save the other"),
            );
            None
        }
        (None, None) => {
            report.error(
                Problem::wrong(
                    "unknown-family",
                    Span::default(),
                    "nothing tells whether the rules are for IPv4 or IPv6",
                )
                .expected("a name such as rules.v4, or an address")
                .help("give --ipv4 or --ipv6, or name the file rules.v4 or rules.v6"),
            );
            None
        }
    }
}

fn family_of_name(path: &str) -> Option<Family> {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let has = |signs: &[&str]| signs.iter().any(|sign| name.contains(sign));
    match (
        has(&["ip6tables", ".v6", "ipv6"]),
        has(&["iptables", ".v4", "ipv4"]),
    ) {
        (true, false) => Some(Family::Ipv6),
        (false, true) => Some(Family::Ipv4),
        _ => None,
    }
}

/// Words of rules that belong to one IP version only.
fn signs_of(text: &str) -> Vec<(Family, Span)> {
    let mut signs = Vec::new();
    if text.contains("Generated by ip6tables-save") {
        signs.push((Family::Ipv6, Span::default()));
    }
    if text.contains("Generated by iptables-save") {
        signs.push((Family::Ipv4, Span::default()));
    }
    for words in save::all_words(text) {
        for pair in words.windows(2) {
            let [option, value] = pair else { continue };
            let sign = match option.text.as_ref() {
                "-s" | "-d" | "--source" | "--src" | "--destination" | "--dst" => {
                    if value.text.contains(':') {
                        Some(Family::Ipv6)
                    } else {
                        value.text.contains('.').then_some(Family::Ipv4)
                    }
                }
                "-p" | "--protocol" | "--proto" | "-m" | "--match" => match value.text.as_ref() {
                    "icmp" | "1" => Some(Family::Ipv4),
                    "icmpv6" | "ipv6-icmp" | "icmp6" | "58" => Some(Family::Ipv6),
                    _ => None,
                },
                _ => None,
            };
            signs.extend(sign.map(|family| (family, value.span)));
        }
    }
    signs
}
