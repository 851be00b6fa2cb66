//! `cargo xtask fuzz`: libFuzzer on the readers of policies, the header parser and the datapath.
//!
//! What it runs is in `tests/fuzz`, a workspace of its own, and what its functions do is in fw-user's
//! tests (`fw-user/tests/differential/fuzzed`), which run them on the committed corpora.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cargo::{outside, root, target_dir},
    progress::Progress,
};

/// The version of cargo-fuzz that this is tested with.
const VERSION: &str = "0.13.2";

/// What there is, and the longest input worth trying.
const TARGETS: [(&str, u32); 4] = [
    ("rules", 8192),
    ("document", 4096),
    ("header", 20_000),
    ("datapath", 1024),
];

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// `rules`, `document`, `header` or `datapath`; without a name, all of them, one after the other.
    targets: Vec<String>,

    /// How long each is fuzzed.
    #[arg(long, default_value_t = 60)]
    seconds: u64,

    /// Afterwards, put inputs that reach what the committed ones do not into tests/fuzz/corpus.
    #[arg(long)]
    merge: bool,
}

/// Builds, fuzzes, and says where the input is that made a target fail.
pub fn run(progress: &Progress, options: &Options) -> Result<()> {
    let chosen = choose(&options.targets)?;
    let tool = find_or_install(progress)?;
    let mut build = fuzz(&tool, "build");
    build.args(["--sanitizer", "none"]);
    progress.run("building the fuzzer's programs", &mut build)?;
    let mut failed = Vec::new();
    for (target, length) in chosen {
        if progress.interrupted() {
            bail!("interrupted");
        }
        progress.say(&format!("\n== {target}, {} s", options.seconds));
        let found = target_dir().join("fuzz/corpus").join(target);
        let committed = root().join("tests/fuzz/corpus").join(target);
        fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
        let mut command = fuzz(&tool, "run");
        command
            .args(["--sanitizer", "none", target])
            // New inputs go into the first folder.
            .args([&found, &committed])
            .arg("--")
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-max_len={length}"))
            .args(["-timeout=60", "-print_final_stats=1"]);
        if let Err(error) = progress.hand_over(&mut command) {
            progress.say(&format!("{target} failed: {error:#}"));
            failed.push(target);
            continue;
        }
        if options.merge {
            let mut merge = fuzz(&tool, "run");
            merge
                .args(["--sanitizer", "none", target])
                .args([&committed, &found])
                .args(["--", "-merge=1"])
                .arg(format!("-max_len={length}"));
            progress.run(&format!("adding to tests/fuzz/corpus/{target}"), &mut merge)?;
        }
    }
    if !failed.is_empty() {
        bail!(
            "{}: the inputs are in tests/fuzz/artifacts. Mend what they show, give each a name that \
             says what was wrong, and put it into tests/fuzz/found: `cargo test -p fw-user --test \
             differential` runs it from then on",
            failed.join(", ")
        );
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<(&'static str, u32)>> {
    if names.is_empty() {
        return Ok(TARGETS.to_vec());
    }
    let find = |name: &String| {
        let mut targets = TARGETS.iter();
        match targets.find(|(target, _)| target == name) {
            Some(target) => Ok(*target),
            None => bail!(
                "there is nothing to fuzz called `{name}`; there are: {}",
                TARGETS.map(|(target, _)| target).join(", ")
            ),
        }
    };
    names.iter().map(find).collect()
}

/// cargo-fuzz by its path. Coverage needs unstable options, which any compiler takes with this
/// variable set.
fn fuzz(tool: &Path, verb: &str) -> Command {
    let mut command = outside(&tool.to_string_lossy());
    command
        .current_dir(root())
        .env("RUSTC_BOOTSTRAP", "1")
        .args([verb, "--fuzz-dir", "tests/fuzz", "--target-dir"])
        .arg(target_dir().join("fuzz"));
    command
}

fn find_or_install(progress: &Progress) -> Result<PathBuf> {
    let own = target_dir().join("tools/bin/cargo-fuzz");
    if own.is_file() {
        return Ok(own);
    }
    progress.run(
        &format!("building cargo-fuzz {VERSION}, which is missing (a minute)"),
        outside("cargo")
            .args(["install", "cargo-fuzz", "--locked", "--version", VERSION])
            .arg("--root")
            .arg(target_dir().join("tools"))
            .env("CARGO_TARGET_DIR", target_dir().join("tools/build")),
    )?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
        for (target, _) in TARGETS {
            assert!(fuzz.join(format!("targets/{target}.rs")).is_file());
            assert!(fuzz.join("corpus").join(target).is_dir());
        }
        assert_eq!(
            fs::read_dir(fuzz.join("targets")).unwrap().count(),
            TARGETS.len()
        );
    }

    #[test]
    fn an_unknown_target_is_told_with_those_that_exist() {
        let error = choose(&["parser".into()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is nothing to fuzz called `parser`; there are: rules, document, header, datapath"
        );
    }
}
