//! The `fwbpf` command.
fn main() {}
