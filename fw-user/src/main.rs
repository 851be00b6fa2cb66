//! The `fwbpf` command.

use std::process::ExitCode;

use clap::Parser as _;

/// Twice as fast as glibc's for large policies: it takes memory from the kernel in larger pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, each of which the kernel fills with zeros: a fifth of the time
    // that a load of up to some ten thousand rules takes. The largest take as long either way.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    fw_user::command::output::show_library_warnings();
    fw_user::command::run(&fw_user::cli::Cli::parse())
}
