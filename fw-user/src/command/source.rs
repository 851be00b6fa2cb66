//! Reading the files of a policy.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Failure;
use super::names::SystemHosts;
use super::output::Output;
use crate::cli::Files;
use crate::policy::model::{Family, Policy};
use crate::policy::set::{SetDefinition, adopt};
use crate::policy::{LoadOptions, Loaded, PolicyErrors, SourceFile, load_with_hosts};

/// A policy as it was read, or why it is none.
pub type Parsed = Result<Loaded, PolicyErrors>;

/// Reads all files as one policy.
pub fn parse_for(files: &Files) -> Result<Parsed> {
    parse(&files.files, files.family.chosen(), files.strict)
}

/// How large a policy is, by its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// As most are.
    Usual,
    /// So many rules, some 1,000, that it is worth the while to do several things at a time.
    Large,
    /// So many, some 3,000, that huge pages are mostly filled.
    Huge,
}

impl Size {
    /// Looks at the files.
    pub fn of(files: &Files) -> Self {
        const LARGE: u64 = 32 << 10;
        const HUGE: u64 = 128 << 10;
        let length = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
        match files.files.iter().map(length).sum() {
            0..LARGE => Self::Usual,
            LARGE..HUGE => Self::Large,
            HUGE.. => Self::Huge,
        }
    }
}

/// Says on standard error what is wrong or doubtful about a policy. Sets that no file gives are taken from
/// those of the running policy.
pub fn take(
    parsed: Parsed,
    running: &[SetDefinition],
    output: &mut Output,
) -> Result<Policy, Failure> {
    match parsed.and_then(|loaded| adopt_sets(loaded, running)) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                output.doubt(warning);
            }
            Ok(loaded.policy)
        }
        Err(errors) => {
            if output.json {
                output.value(&serde_json::json!({ "errors": errors }))?;
            } else {
                output.say(errors.render(output.colours_on_stderr()));
            }
            Err(Failure::Refused)
        }
    }
}

/// Takes the sets that no file gives from those of the running policy.
pub fn adopt_sets(mut loaded: Loaded, running: &[SetDefinition]) -> Result<Loaded, PolicyErrors> {
    adopt(&mut loaded.policy, running);
    let policy = &loaded.policy;
    loaded
        .missing_sets
        .retain(|missing| policy.set(&missing.name).is_none());
    if loaded.missing_sets.is_empty() {
        return Ok(loaded);
    }
    let errors = loaded.missing_sets.into_iter();
    Err(PolicyErrors {
        errors: errors.map(|missing| missing.error).collect(),
    })
}

/// Reads all files as one policy.
pub fn parse(files: &[PathBuf], family: Option<Family>, strict: bool) -> Result<Parsed> {
    let sources = files
        .iter()
        .map(|path| {
            let (name, bytes) = contents(path)?;
            Ok(SourceFile::new(name, bytes, family))
        })
        .collect::<Result<Vec<_>>>()?;
    let hosts = SystemHosts::default();
    Ok(load_with_hosts(&sources, LoadOptions { strict }, &hosts))
}

/// `-` is standard input.
fn contents(path: &Path) -> Result<(String, Vec<u8>)> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
        return Ok(("<stdin>".to_owned(), bytes));
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((path.display().to_string(), bytes))
}
