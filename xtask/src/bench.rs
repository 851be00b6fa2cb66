//! `cargo xtask bench`: builds all of it optimised, and hands over to `fwbpf-tests`' binary `bench`.

use anyhow::Result;
use clap::Args;

use crate::{
    build,
    cargo::{cargo, root, target_dir},
    progress::Progress,
    setup::{self, Need},
};

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// Options of the benchmark itself: --quick, --json FILE, --case N...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds and measures.
pub fn run(progress: &Progress, options: &Options) -> Result<()> {
    let toolchain = setup::ensure(progress, &[Need::Build, Need::Test, Need::Bench])?;
    let object = build::object(progress, &toolchain)?;
    let programs = build::bpf_object(progress, &toolchain, "bench-ebpf")?;
    let binary = build::binary(progress, &object, true)?;
    progress.run(
        "building the benchmark",
        cargo()
            .args(["build", "--release"])
            .args(["--package", "fwbpf-tests", "--bin", "bench"])
            .env("FWBPF_OBJECT", &object),
    )?;
    progress.hand_over(
        std::process::Command::new(target_dir().join("release/bench"))
            .args(&options.arguments)
            .current_dir(root())
            .env("FWBPF_BIN", &binary)
            .env("FWBPF_BENCH_CHARTS", "docs/bench")
            .env("FWBPF_BENCH_OBJECT", &programs),
    )
}
