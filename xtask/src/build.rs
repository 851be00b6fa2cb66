//! `cargo xtask build`: the BPF object, then `fwbpf` with the object inside.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{cargo, root, target_dir},
    progress::Progress,
    setup::{self, Need, Toolchain},
};

/// Options of `cargo xtask build`.
#[derive(Args)]
pub struct Options {
    /// Optimise `fwbpf` too; the BPF object always is.
    #[arg(long)]
    release: bool,
}

/// Sets up and builds.
pub fn run(progress: &Progress, options: &Options) -> Result<()> {
    let toolchain = setup::ensure(progress, &[Need::Build])?;
    let object = object(progress, &toolchain)?;
    let binary = binary(progress, &object, options.release)?;
    progress.say(&format!("built {}", binary.display()));
    Ok(())
}

/// Compiles `fw-ebpf` and returns the object's path.
pub fn object(progress: &Progress, toolchain: &Toolchain) -> Result<PathBuf> {
    bpf_object(progress, toolchain, "fw-ebpf")
}

/// Compiles a package of BPF programs and returns the object's path. Warnings are errors.
pub fn bpf_object(progress: &Progress, toolchain: &Toolchain, package: &str) -> Result<PathBuf> {
    let target_dir = target_dir().join("bpf");
    // v3 has 32-bit jumps and ALU; LLVM's default (v1 to v3 by version) is not left to chance.
    let flags = [
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".into(),
        "-Cdebuginfo=2".into(),
        "-Ctarget-cpu=v3".into(),
        // Headers lie at odd places, and every machine that fwbpf runs on reads them there: without
        // this, LLVM reads packets byte by byte.
        "-Ctarget-feature=+allows-misaligned-mem-access".into(),
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
        "-Dwarnings".into(),
    ];
    let mut command = toolchain.compiler.cargo();
    command
        .current_dir(root())
        .args(["build", "--package", package, "--profile", "bpf"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS");
    progress.run(
        &format!(
            "compiling the BPF object {package} with {}",
            toolchain.compiler
        ),
        &mut command,
    )?;
    let object = target_dir.join("bpfel-unknown-none/bpf").join(package);
    ensure!(
        object.is_file(),
        "expected the BPF object at {}, and there is none after a build that succeeded",
        object.display()
    );
    Ok(object)
}

/// Compiles `fwbpf` around the object and returns the binary's path.
pub fn binary(progress: &Progress, object: &std::path::Path, release: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--package", "fw-user", "--bin", "fwbpf"])
        .env("FWBPF_OBJECT", object);
    if release {
        command.arg("--release");
    }
    progress.run("building fwbpf", &mut command)?;
    let profile = if release { "release" } else { "debug" };
    let binary = target_dir().join(profile).join("fwbpf");
    binary
        .canonicalize()
        .with_context(|| format!("expected the binary at {}", binary.display()))
}
