//! `cargo xtask demo`: sets up, builds, and hands over to `fwbpf-tests`' binary `demo`.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build,
    cargo::{cargo, target_dir},
    progress::Progress,
    setup::{self, Need},
    suites,
};

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct Options {
    /// Options of the demo itself.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds and shows.
pub fn run(progress: &Progress, options: &Options) -> Result<()> {
    if !suites::has_bin("demo") {
        bail!("the package fwbpf-tests has no binary `demo`");
    }
    let toolchain = setup::ensure(progress, &[Need::Build, Need::Demo])?;
    let object = build::object(progress, &toolchain)?;
    let binary = build::binary(progress, &object, false)?;
    progress.run(
        "building the demo",
        cargo()
            .args(["build", "--package", "fwbpf-tests", "--bin", "demo"])
            .env("FWBPF_OBJECT", &object),
    )?;
    progress.hand_over(
        std::process::Command::new(target_dir().join("debug/demo"))
            .args(&options.arguments)
            .current_dir(crate::cargo::root())
            .env("FWBPF_BIN", &binary),
    )
}
