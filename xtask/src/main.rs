//! `cargo xtask`: all that a person or CI runs.
fn main() {}
