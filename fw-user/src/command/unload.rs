//! `fwbpf unload`.

use serde_json::json;

use super::Failure;
use super::output::Output;
use crate::host::Host;
use crate::kernel::attach;
use crate::kernel::state::StateDir;

/// Runs the command.
pub fn run(state: &StateDir, output: &mut Output) -> Result<(), Failure> {
    if !state.exists() {
        return Err(Failure::NotLoaded(state.clone()));
    }
    let _lock = state.lock()?;
    let strangers = state.strangers()?;
    if !strangers.is_empty() {
        return Err(Failure::System(anyhow::anyhow!(
            "{} is not a directory of fwbpf's: it contains {}; nothing was removed",
            state.path().display(),
            strangers.join(", "),
        )));
    }
    attach::detach_all(state, &Host::read()?)?;
    state.remove()?;
    if output.json {
        output.value(&json!({ "unloaded": state.path() }))
    } else {
        output.line("The firewall is gone; packets pass as if it had never been.")
    }
}
