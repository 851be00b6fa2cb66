//! Programs of the benchmark: the generator, the sink behind the firewall, and the floors, which
//! are the least that a program of the same task can do.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

/// Only the BPF target has these programs; elsewhere this is a crate that compiles.
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
