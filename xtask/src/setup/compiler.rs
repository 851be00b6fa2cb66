//! The compiler for the BPF object: a Rust that takes `-Z build-std` and has `core`'s source.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages::{self, Package, Probe};
use crate::{cargo::outside, progress::Progress};

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// Debian's newest Rust, kept for its browsers, comes with `core`'s source.
fn debian_packages() -> [Package; 3] {
    [
        Package::new(
            "rustc-web",
            Probe::File(DEBIAN_RUSTC),
            "compiles the BPF object",
        ),
        Package::new(
            "cargo-web",
            Probe::File(DEBIAN_CARGO),
            "drives that compiler",
        ),
        Package::new(
            "rust-web-src",
            Probe::Installed,
            "core's source, which the BPF target is built from",
        ),
    ]
}

/// Where the compiler comes from.
pub enum Origin {
    /// A nightly of rustup's, by its name.
    Rustup(String),
    /// Debian's packages; a stable compiler that is told to take unstable options.
    Debian,
}

/// A Rust compiler that can build for the BPF target.
pub struct Compiler {
    origin: Origin,
    version: String,
    /// The major version of its LLVM, which the linker must be able to read.
    pub llvm: u32,
}

impl Compiler {
    /// Its cargo, free of the toolchain that runs xtask.
    pub fn cargo(&self) -> Command {
        match &self.origin {
            Origin::Rustup(name) => rustup_run(name, "cargo"),
            Origin::Debian => {
                let mut command = outside(DEBIAN_CARGO);
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }

    /// Its rustc.
    pub fn rustc(&self) -> Command {
        match &self.origin {
            Origin::Rustup(name) => rustup_run(name, "rustc"),
            Origin::Debian => {
                let mut command = outside(DEBIAN_RUSTC);
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }

    fn new(origin: Origin) -> Result<Self> {
        let mut compiler = Self {
            origin,
            version: String::new(),
            llvm: 0,
        };
        let text = output(compiler.rustc().arg("-vV"))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .with_context(|| format!("`rustc -vV` printed no line `{name}`:\n{text}"))
        };
        field("release:")?.clone_into(&mut compiler.version);
        compiler.llvm = llvm_major(field("LLVM version:")?)?;
        Ok(compiler)
    }

    fn has_source(&self) -> bool {
        output(self.rustc().args(["--print", "sysroot"])).is_ok_and(|sysroot| {
            Path::new(sysroot.trim())
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .is_file()
        })
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, llvm, .. } = self;
        match &self.origin {
            Origin::Rustup(name) => write!(f, "rustup's {name} ({version}, LLVM {llvm})"),
            Origin::Debian => write!(f, "Debian's rustc-web {version} (LLVM {llvm})"),
        }
    }
}

/// A nightly with `rust-src` if rustup has one, else Debian's compiler, installed if need be.
pub fn find_or_install(progress: &Progress) -> Result<Compiler> {
    if let Some(compiler) = rustup_nightly() {
        return Ok(compiler);
    }
    if !packages::is_debian() && !Path::new(DEBIAN_RUSTC).exists() {
        bail!(
            "the BPF object needs a Rust that has core's source: \
             install it with `rustup toolchain install nightly --component rust-src`"
        );
    }
    packages::ensure(progress, &debian_packages())?;
    let compiler = Compiler::new(Origin::Debian)?;
    if !compiler.has_source() {
        bail!(
            "{compiler} has no core source in its sysroot: \
             install the package rust-web-src of the same version, \
             or `rustup toolchain install nightly --component rust-src`"
        );
    }
    Ok(compiler)
}

fn rustup_nightly() -> Option<Compiler> {
    let toolchains = output(outside("rustup").args(["toolchain", "list"])).ok()?;
    toolchains
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| Compiler::new(Origin::Rustup(name.to_owned())).ok())
        .find(Compiler::has_source)
}

fn rustup_run(toolchain: &str, program: &str) -> Command {
    let mut command = outside("rustup");
    command.args(["run", toolchain, program]);
    command
}

/// The LLVM whose linker plug-in, headers and libraries Debian keeps under this folder.
pub fn debian_llvm(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

fn llvm_major(version: &str) -> Result<u32> {
    version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("expected an LLVM version (e.g. 22.1.8), found `{version}`"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}",
            command.get_program().to_string_lossy(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_versions() {
        assert_eq!(llvm_major("22.1.8").unwrap(), 22);
        assert!(llvm_major("trunk").is_err());
    }
}
