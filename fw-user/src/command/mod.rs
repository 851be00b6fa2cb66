//! The subcommands: each gathers its inputs, calls the library, and prints.

pub mod check;
pub mod confirm;
pub mod explain;
pub mod flows;
pub mod guard;
pub mod load;
pub mod names;
pub mod output;
mod plan;
pub mod recent;
mod require;
mod revoked;
pub mod running;
pub mod set;
pub mod show;
pub mod source;
pub mod status;
pub mod trial;
pub mod unload;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::cli::{Cli, Command};
use crate::kernel::state::StateDir;
use output::Output;

/// Why a command did not succeed. Each has its exit code.
#[derive(Debug)]
pub enum Failure {
    /// The command line is well-formed but makes no sense.
    Usage(String),
    /// The system failed: kernel, permissions, input or output.
    System(anyhow::Error),
    /// The policy was refused; everything there is to say has been said.
    Refused,
    /// No firewall is loaded.
    NotLoaded(StateDir),
    /// What was asked for is not there.
    Absent(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::System(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::System(error.into())
    }
}

impl Failure {
    /// The exit code that `--help` documents.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::System(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused => 3,
            Self::NotLoaded(_) => 4,
            Self::Absent(_) => 5,
        }
    }
}

/// Runs a command line.
pub fn run(cli: &Cli) -> ExitCode {
    let mut output = Output::new(cli.global.json, cli.global.color);
    let state = StateDir::new(&cli.global.state_dir);
    let result = match &cli.command {
        Command::Load(arguments) => load::run(&state, arguments, &mut output),
        Command::Check(arguments) => check::run(arguments, &mut output),
        Command::Show(arguments) => show::run(&state, arguments, &mut output),
        Command::Status => status::run(&state, &mut output),
        Command::Flows(arguments) => flows::run(&state, arguments, &mut output),
        Command::Recent(arguments) => recent::run(&state, arguments, &mut output),
        Command::Explain(arguments) => explain::run(&state, arguments, &mut output),
        Command::Confirm(arguments) => confirm::run(&state, *arguments, &mut output),
        Command::Set(arguments) => set::run(&state, arguments, &mut output),
        Command::Unload => unload::run(&state, &mut output),
        Command::Daemon(arguments) => crate::daemon::run(&state, arguments, &mut output),
        Command::Guard => guard::run(&state),
        Command::Man => manual(&mut output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough: `fwbpf flows | head`.
        Err(Failure::System(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn manual(output: &mut Output) -> Result<(), Failure> {
    output.bytes(&crate::manual::render(&Cli::command())?)
}
