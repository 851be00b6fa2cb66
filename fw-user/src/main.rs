//! The `fwbpf` command.

use std::process::ExitCode;

use clap::Parser as _;

/// Twice as fast as glibc's for large policies: it takes memory from the kernel in larger pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fw_user::command::output::show_library_warnings();
    fw_user::command::run(&fw_user::cli::Cli::parse())
}
