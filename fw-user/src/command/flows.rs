//! `fwbpf flows`: like `conntrack -L`.

use super::Failure;
use super::output::Output;
use crate::cli::Flows;
use crate::kernel::flows::views;
use crate::kernel::load::Maps;
use crate::kernel::state::StateDir;
use crate::kernel::sweep::flush;

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Flows, output: &mut Output) -> Result<(), Failure> {
    if Maps::open(state)?.is_none() {
        return Err(Failure::NotLoaded(state.clone()));
    }
    if arguments.flush {
        let ended = flush(state)?;
        if output.json {
            return output.value(&serde_json::json!({ "ended": ended }));
        }
        output.say(format_args!("{ended} flows ended"));
        return Ok(());
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
