//! `cargo xtask setup`: finds what fwbpf needs, and installs what is missing.
//!
//! Every step looks first and acts only when something is missing, so a machine that is complete
//! is left alone and needs no network.

mod bpffs;
mod compiler;
mod linker;
mod packages;

use std::path::PathBuf;

use anyhow::Result;

pub use self::{compiler::Compiler, packages::find};
use crate::progress::Progress;

/// What the machine is to be ready for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Compiling the BPF object and `fwbpf`.
    Build,
    /// The demo's namespaces and probes.
    Demo,
    /// All tests, real iptables and a real dockerd among them.
    Test,
    /// The benchmark's own tools.
    Bench,
    /// Virtual machines with other kernels.
    Vm,
}

/// A compiler for the BPF target and a linker that reads its output.
pub struct Toolchain {
    /// The Rust that has `core`'s source.
    pub compiler: Compiler,
    /// bpf-linker's path.
    pub linker: PathBuf,
}

/// Makes the machine ready for `needs`.
pub fn ensure(progress: &Progress, needs: &[Need]) -> Result<Toolchain> {
    let compiler = compiler::find_or_install(progress)?;
    let linker = linker::find_or_install(progress, &compiler)?;
    packages::ensure(progress, &packages::for_needs(needs))?;
    if needs.iter().any(|need| *need != Need::Build) {
        bpffs::ensure_mounted(progress)?;
    }
    progress.say(&format!(
        "ready: {compiler}, {}{}",
        linker.display(),
        if needs == [Need::Build] {
            ""
        } else {
            ", programs, bpffs"
        }
    ));
    Ok(Toolchain { compiler, linker })
}
