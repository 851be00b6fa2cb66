//! The two programs that run inside: `fwbpf` and the first process, both linked statically, since
//! an initramfs has no libraries but those that we bring.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    build,
    cargo::{cargo, target_dir},
    progress::Progress,
    setup::Toolchain,
};

/// What goes into every initramfs.
pub struct Built {
    /// The BPF object, for loading its programs one by one.
    pub object: PathBuf,
    /// `fwbpf`, static.
    pub fwbpf: PathBuf,
    /// The first process, static.
    pub init: PathBuf,
}

/// Builds them.
pub fn build(progress: &Progress, toolchain: &Toolchain) -> Result<Built> {
    let object = build::object(progress, toolchain)?;
    let link = |package: &str, binary: &str| -> Result<PathBuf> {
        // Only the last step differs from the usual build, so all that was compiled is used
        // again; a static build of its own would compile every dependency a second time.
        progress.run(
            &format!("linking {binary} statically"),
            cargo()
                .args(["rustc", "--package", package, "--bin", binary, "--"])
                .args(["-Ctarget-feature=+crt-static", "-Cstrip=symbols"])
                .env("FWBPF_OBJECT", &object),
        )?;
        let folder = target_dir().join("vm");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let place = folder.join(binary);
        fs::copy(target_dir().join("debug").join(binary), &place)
            .with_context(|| format!("cannot copy {binary} to {}", place.display()))?;
        Ok(place)
    };
    let fwbpf = link("fw-user", "fwbpf")?;
    let init = link("fwbpf-tests", "vm_smoke")?;
    // Leave the usual, debuggable binary where people expect it.
    build::binary(progress, &object, false)?;
    Ok(Built {
        object,
        fwbpf,
        init,
    })
}
