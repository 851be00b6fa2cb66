//! `fwbpf flows`: like `conntrack -L`.

use super::Failure;
use super::output::Output;
use crate::kernel::flows::views;
use crate::kernel::load::Maps;
use crate::kernel::state::StateDir;

/// Runs the command.
pub fn run(state: &StateDir, output: &mut Output) -> Result<(), Failure> {
    if Maps::open(state)?.is_none() {
        return Err(Failure::NotLoaded(state.clone()));
    }
    let flows = views(state)?;
    if output.json {
        return output.value(&flows);
    }
    for flow in &flows {
        output.line(flow.to_string().trim_end())?;
    }
    output.say(format_args!("{} flows", flows.len()));
    Ok(())
}
