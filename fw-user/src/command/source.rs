//! Reading the files of a policy.

use anyhow::Context as _;

use super::Failure;
use super::output::Output;
use crate::cli::Files;
use crate::policy::model::Policy;

/// Reads all files as one policy, and says all that is wrong or doubtful about them.
pub fn read(files: &Files, _output: &mut Output) -> Result<Policy, Failure> {
    let path = &files.files[0];
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_str(&text).context("JSON stand-in")?)
}
