//! `cargo xtask vmtest`: Debian's kernels in virtual machines, with the smoke set in each.

mod build;
mod initramfs;
mod kernels;
mod machine;
mod modules;
mod report;

use std::{env, fs, time::Duration};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::kernels::Kernel;
use crate::{
    cargo::{root, target_dir},
    progress::Progress,
    setup::{self, Need},
};

/// Options of `cargo xtask vmtest`.
#[derive(Args)]
pub struct Options {
    /// The kernels: `6.1`, `6.12`, `newest`. Without a name, all of them.
    #[arg(value_enum)]
    kernels: Vec<Kernel>,

    /// Ask the mirror for newer packages of kernels that were fetched before.
    #[arg(long)]
    update: bool,

    /// Write the matrix to docs/kernels.md.
    #[arg(long)]
    record: bool,

    /// How long one machine may run, in seconds. Software emulation is slow, and the verifier's
    /// walk through the programs is most of it.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

/// Builds, fetches, boots one kernel after the other, and prints what each was capable of.
pub fn run(progress: &Progress, options: &Options) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!(
            "vmtest boots Debian's amd64 kernels and this machine is {}: run it on an x86_64",
            env::consts::ARCH
        );
    }
    let kernels = if options.kernels.is_empty() {
        Kernel::ALL.to_vec()
    } else {
        options.kernels.clone()
    };
    let toolchain = setup::ensure(progress, &[Need::Build, Need::Vm])?;
    let built = build::build(progress, &toolchain)?;
    let cache = target_dir().join("vm");

    let mut reports = Vec::new();
    let mut missing = Vec::new();
    for kernel in kernels {
        if progress.interrupted() {
            bail!("interrupted");
        }
        let folder = cache.join(kernel.name());
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let files = match kernels::fetch(progress, kernel, &folder, options.update) {
            Ok(files) => files,
            Err(error) => {
                missing.push(format!("Debian's kernel {}: {error:#}", kernel.name()));
                continue;
            }
        };
        let initramfs = folder.join("initramfs.cpio");
        initramfs::write(&initramfs, &files, &built)?;
        let report = machine::boot(
            progress,
            kernel,
            &files,
            &initramfs,
            Duration::from_secs(options.timeout),
        )?;
        reports.push(report);
    }

    let matrix = report::Matrix::new(&reports);
    println!("\n{matrix}");
    if options.record {
        matrix.record(&root().join("docs/kernels.md"))?;
        progress.say("docs/kernels.md has the matrix");
    }
    missing.extend(reports.iter().flat_map(report::Report::lacks));
    judge(progress, &reports, &missing)
}

fn judge(progress: &Progress, reports: &[report::Report], missing: &[String]) -> Result<()> {
    for lack in missing {
        progress.say(&format!("SKIPPED: missing {lack}"));
    }
    let failures: Vec<String> = reports.iter().flat_map(report::Report::failures).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    // What cannot run skips at a desk and fails under CI.
    if !missing.is_empty() && env::var("CI").as_deref() == Ok("true") {
        bail!("{} things are missing (and CI=true)", missing.len());
    }
    Ok(())
}
