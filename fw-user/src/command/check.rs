//! `fwbpf check`: what is wrong or doubtful about a policy. Needs no root.

use super::Failure;
use super::output::Output;
use super::source;
use crate::cli::Check;
use crate::compile::{Slots, compile};

/// Runs the command.
pub fn run(arguments: &Check, output: &mut Output) -> Result<(), Failure> {
    let policy = source::read(&arguments.policy, output)?;
    if let Err(limit) = compile(&policy, &Slots::fresh(&policy), 1, &[]) {
        output.refusal(&limit);
        return Err(Failure::Refused);
    }
    output.line("ok")
}
