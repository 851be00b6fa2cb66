//! `fwbpf explain`: what the firewall does with one packet, step by step.

use super::Failure;
use super::output::Output;
use crate::cli::Explain;
use crate::kernel::state::StateDir;

/// Runs the command.
pub fn run(_state: &StateDir, _arguments: &Explain, _output: &mut Output) -> Result<(), Failure> {
    Err(Failure::System(anyhow::anyhow!("not yet")))
}
