//! The `fwbpf` command.

use std::process::ExitCode;

use clap::Parser as _;

/// Twice as fast as glibc's for large policies: it takes memory from the kernel in larger pieces. Version 2 of it
/// puts large vectors side by side, so that they share huge pages; version 3 has one for each size of vector.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The allocator asks for huge pages, each of which the kernel fills with zeros: a fifth of the time
/// that a load of up to some thousand rules takes. Larger ones have them (`command::load`): there, a
/// huge page takes less time than all the small ones in its stead.
extern "C" fn disable_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// The allocator begins before `main`, and what is listed here is called before it: its first two huge
/// pages were a seventh of a load of ten rules. (What it does is one system call, which needs nothing that
/// the C library sets up later. Where a C library knows no such list, the pages stay on.)
#[used]
#[expect(unsafe_code, reason = "the C library finds the list by its section")]
#[unsafe(link_section = ".preinit_array")]
static BEFORE_ALL: extern "C" fn() = disable_huge_pages;

fn main() -> ExitCode {
    fw_user::command::output::show_library_warnings();
    fw_user::command::run(&fw_user::cli::Cli::parse())
}
