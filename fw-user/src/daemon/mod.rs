//! `fwbpf daemon`.

use crate::cli::Daemon;
use crate::command::Failure;
use crate::command::output::Output;
use crate::kernel::state::StateDir;

/// Runs the command.
pub fn run(_state: &StateDir, _arguments: &Daemon, _output: &mut Output) -> Result<(), Failure> {
    Err(Failure::System(anyhow::anyhow!("not yet")))
}
