//! The `fwbpf` command.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    fw_user::command::output::show_library_warnings();
    fw_user::command::run(&fw_user::cli::Cli::parse())
}
