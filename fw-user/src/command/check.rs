//! `fwbpf check`: what is wrong or doubtful about a policy. Needs no root.

use serde::Serialize;

use super::Failure;
use super::output::Output;
use super::source::parse;
use crate::cli::Check;
use crate::compile::Draft;
use crate::policy::model::Origin;
use crate::policy::set::SetDefinition;
use crate::policy::{LintContext, Loaded, PolicyErrors, SshSession, Warning, lint};

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
struct Report {
    accepted: bool,
    errors: Option<PolicyErrors>,
    /// A limit of fwbpf's that the policy as a whole exceeds.
    limit: Option<String>,
    warnings: Vec<Warning>,
}

/// Runs the command.
pub fn run(arguments: &Check, output: &mut Output) -> Result<(), Failure> {
    let files = &arguments.policy;
    let report = match parse(&files.files, files.family.chosen(), files.strict)? {
        Ok(mut loaded) => {
            let missing = suppose_sets(&mut loaded);
            let draft = Draft::of(&loaded.policy);
            let context = LintContext {
                ssh: SshSession::of_environment(),
            };
            let mut warnings = loaded.warnings;
            warnings.extend(missing);
            warnings.extend(lint(&loaded.policy, &context));
            if let Ok(draft) = &draft {
                warnings.extend(draft.costs(&loaded.policy));
            }
            let limit = draft.err();
            Report {
                accepted: limit.is_none(),
                errors: None,
                limit: limit.map(|limit| limit.to_string()),
                warnings,
            }
        }
        Err(errors) => Report {
            accepted: false,
            errors: Some(errors),
            limit: None,
            warnings: Vec::new(),
        },
    };
    if output.json {
        output.value(&report)?;
    } else {
        print(&report, output)?;
    }
    if report.accepted {
        Ok(())
    } else {
        Err(Failure::Refused)
    }
}

/// Sets that no file gives may be in the kernel already, where a check does not look.
fn suppose_sets(loaded: &mut Loaded) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = Vec::new();
    for missing in std::mem::take(&mut loaded.missing_sets) {
        let (name, error) = (missing.name, missing.error);
        if loaded.policy.set(&name).is_none() {
            loaded.policy.sets.push(SetDefinition::unknown(&name));
        }
        warnings.push(Warning {
            code: "unknown-set",
            origin: Some(Origin {
                file: 0,
                line: error.line,
            }),
            file: Some(error.file),
            text: format!("no file gives the set `{name}`: the running firewall must have it when this is loaded"),
            help: error.help,
        });
    }
    warnings
}

fn print(report: &Report, output: &mut Output) -> Result<(), Failure> {
    if let Some(errors) = &report.errors {
        output.say(errors.render(output.colours_on_stderr()));
        let count = errors.errors.len();
        output.say(format_args!(
            "{count} error{}: this policy would be refused",
            if count == 1 { "" } else { "s" }
        ));
    }
    if let Some(limit) = &report.limit {
        output.refusal(limit);
    }
    for warning in &report.warnings {
        output.doubt(warning);
    }
    if report.accepted {
        output.line(match report.warnings.len() {
            0 => "The policy is fine.".to_owned(),
            1 => "The policy can be loaded; there is 1 warning.".to_owned(),
            count => format!("The policy can be loaded; there are {count} warnings."),
        })?;
    }
    Ok(())
}
