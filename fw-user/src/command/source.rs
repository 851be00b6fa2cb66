//! Reading the files of a policy.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Failure;
use super::names::SystemHosts;
use super::output::Output;
use crate::cli::Files;
use crate::policy::model::{Family, Policy};
use crate::policy::{LoadOptions, Loaded, PolicyErrors, SourceFile, load_with_hosts};

/// Reads all files as one policy, and says on standard error what is wrong or doubtful.
pub fn read(files: &Files, output: &mut Output) -> Result<Policy, Failure> {
    match parse(&files.files, files.family.chosen(), files.strict)? {
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

/// Reads all files as one policy.
pub fn parse(
    files: &[PathBuf],
    family: Option<Family>,
    strict: bool,
) -> Result<Result<Loaded, PolicyErrors>> {
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
