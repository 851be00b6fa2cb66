//! `cargo xtask lint`: what CI refuses before any test runs.

use std::path::Path;

use anyhow::Result;

use crate::{
    build,
    cargo::cargo,
    progress::Progress,
    setup::{self, Need},
};

/// Sets up, compiles the BPF object (which denies warnings) and lints the rest.
pub fn run(progress: &Progress) -> Result<()> {
    let toolchain = setup::ensure(progress, &[Need::Build])?;
    let object = build::object(progress, &toolchain)?;
    format(progress)?;
    clippy(progress, &object)
}

/// All packages, fw-ebpf included, are formatted as rustfmt would.
pub fn format(progress: &Progress) -> Result<()> {
    progress.run(
        "checking the formatting",
        cargo().args(["fmt", "--all", "--check"]),
    )
}

/// Clippy over all that stable Rust compiles. fw-ebpf is not among it: there is no clippy for the
/// BPF compiler, so there the compiler's own warnings are denied (see [`build::object`]).
pub fn clippy(progress: &Progress, object: &Path) -> Result<()> {
    progress.run(
        "clippy, warnings denied",
        cargo()
            .args(["clippy", "--all-targets", "--quiet"])
            .args(["--", "--deny", "warnings"])
            .env("FWBPF_OBJECT", object),
    )
}
