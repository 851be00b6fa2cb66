//! bpf-linker, built against the LLVM of the compiler: bitcode of a newer LLVM cannot be read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    compiler::{Compiler, debian_llvm},
    packages::{self, Package, Probe},
};
use crate::{
    cargo::{outside, target_dir},
    progress::Progress,
};

/// The version that fwbpf is tested with.
const VERSION: &str = "0.13.0";

/// The LLVM versions that this bpf-linker can be built against.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A bpf-linker that reads the compiler's bitcode: fwbpf's own, one on the `PATH`, or a new one.
pub fn find_or_install(progress: &Progress, compiler: &Compiler) -> Result<PathBuf> {
    let own = target_dir().join("tools/bin/bpf-linker");
    let bitcode = Bitcode::of(compiler)?;
    let candidates = std::iter::once(own.clone()).chain(packages::find("bpf-linker"));
    for candidate in candidates.filter(|path| path.is_file()) {
        match bitcode.link_with(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => progress.say(&format!(
                "not using {}, which does not link what {compiler} compiles: {error:#}",
                candidate.display()
            )),
        }
    }
    install(progress, compiler)?;
    bitcode
        .link_with(&own)
        .context("the bpf-linker that was just built does not work")?;
    Ok(own)
}

fn install(progress: &Progress, compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm;
    if !LLVM.contains(&llvm) {
        bail!(
            "{compiler} has LLVM {llvm}, and bpf-linker {VERSION} is built against LLVM {} to {}: \
             use a compiler of that time",
            LLVM.start(),
            LLVM.end()
        );
    }
    packages::ensure(progress, &build_packages(llvm))?;
    let mut command = outside("cargo");
    command
        .args(["install", "bpf-linker", "--locked", "--version", VERSION])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(target_dir().join("tools"))
        .env("LLVM_PREFIX", debian_llvm(llvm))
        .env("CARGO_TARGET_DIR", target_dir().join("tools/build"));
    progress.say(&format!(
        "bpf-linker {VERSION} is missing: it turns LLVM {llvm}'s bitcode into the BPF object"
    ));
    progress.run(
        &format!("building bpf-linker {VERSION} against LLVM {llvm} (a minute or two)"),
        &mut command,
    )?;
    // The intermediate files are five times the size of all else and never needed again.
    let build = target_dir().join("tools/build");
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

fn build_packages(llvm: u32) -> Vec<Package> {
    let headers = "bpf-linker is built against LLVM's libraries";
    vec![
        Package::new(format!("llvm-{llvm}-dev"), Probe::Installed, headers),
        Package::new(format!("libpolly-{llvm}-dev"), Probe::Installed, headers),
        Package::new("zlib1g-dev", Probe::Installed, headers),
        Package::new("libzstd-dev", Probe::Installed, headers),
        Package::new("g++", Probe::Program("g++"), "LLVM's libraries are C++"),
    ]
}

/// A scrap of the compiler's bitcode, to see whether a linker reads it.
struct Bitcode {
    folder: tempfile::TempDir,
}

impl Bitcode {
    fn of(compiler: &Compiler) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let source = folder.path().join("probe.rs");
        fs::write(
            &source,
            "#![no_std]\n#[unsafe(no_mangle)] pub fn probe(a: u32) -> u32 { a }\n",
        )
        .context("cannot write the probe's source")?;
        let mut command = compiler.rustc();
        command
            .args(["--edition=2024", "--crate-type=lib", "--emit=llvm-bc", "-o"])
            .arg(folder.path().join("probe.bc"))
            .arg(&source);
        check(&mut command).context("the compiler cannot emit bitcode")?;
        Ok(Self { folder })
    }

    fn link_with(&self, linker: &Path) -> Result<()> {
        let mut command = Command::new(linker);
        command
            .args(["--target=bpfel", "--export=probe", "-o"])
            .arg(self.folder.path().join("probe.o"))
            .arg(self.folder.path().join("probe.bc"));
        check(&mut command)
    }
}

fn check(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.trim().lines().last().unwrap_or("no message"));
    }
    Ok(())
}
