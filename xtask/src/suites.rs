//! The test suites that exist, found in the tree: a new file in `tests/tests/` is a new suite.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::cargo::root;

/// Something `cargo xtask test` runs as one step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Formatting and clippy.
    Lint,
    /// The tests that need no root: all packages but `fwbpf-tests`.
    Unit,
    /// The unit tests of `fwbpf-tests`: its laboratory, its model of iptables.
    Lab,
    /// An integration test of `fwbpf-tests`.
    Integration(String),
    /// The comparison with iptables.
    Conformance(Way),
}

/// What is compared with iptables: which way established flows take, and of which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// As fwbpf has it by default, in the comparison's default size.
    Default,
    /// The stack's.
    Slow,
    /// XDP's where it can.
    Xdp,
    /// As by default, with another seed each time, which is printed.
    Random,
    /// iptables' own, on both sides: the comparison's own test.
    Iptables,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Default,
        Self::Slow,
        Self::Xdp,
        Self::Random,
        Self::Iptables,
    ];

    /// Options of the comparison.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::Slow => &["--rulesets=50", "--seed=2", "--load-option=--fast-path=off"],
            Self::Xdp => &[
                "--rulesets=50",
                "--seed=3",
                "--load-option=--xdp=native",
                "--load-option=--fast-path=on",
            ],
            Self::Random => &["--rulesets=60", "--seed=random"],
            Self::Iptables => &["--rulesets=20", "--self-check"],
        }
    }
}

impl Suite {
    /// As it is called on the command line.
    pub fn name(&self) -> &str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Lab => "lab",
            Self::Integration(name) => name,
            Self::Conformance(Way::Default) => "conformance",
            Self::Conformance(Way::Slow) => "conformance_slow_way",
            Self::Conformance(Way::Xdp) => "conformance_xdp",
            Self::Conformance(Way::Random) => "conformance_random",
            Self::Conformance(Way::Iptables) => "conformance_self_check",
        }
    }
}

/// All suites, in the order in which a failure is cheapest to learn of.
pub fn all() -> Result<Vec<Suite>> {
    let mut suites = vec![Suite::Lint, Suite::Unit, Suite::Lab];
    let mut integration = test_targets(&root().join("tests/tests"))?;
    integration.sort();
    suites.extend(integration.into_iter().map(Suite::Integration));
    if has_bin("conformance") {
        suites.extend(Way::ALL.map(Suite::Conformance));
    }
    Ok(suites)
}

/// Whether `fwbpf-tests` has this binary.
pub fn has_bin(name: &str) -> bool {
    let folder = root().join("tests/src/bin");
    folder.join(format!("{name}.rs")).exists() || folder.join(name).join("main.rs").exists()
}

/// Cargo's rule for integration tests: each file, and each folder with a `main.rs`.
fn test_targets(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", folder.display()))?
            .path();
        let is_target = path.join("main.rs").is_file()
            || path.extension().is_some_and(|extension| extension == "rs");
        if let (true, Some(name)) = (is_target, path.file_stem()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_files_and_folders_with_a_main() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel.rs"), "").unwrap();
        fs::create_dir_all(folder.path().join("netns")).unwrap();
        fs::write(folder.path().join("netns/main.rs"), "").unwrap();
        fs::create_dir_all(folder.path().join("shared")).unwrap();
        let mut names = test_targets(folder.path()).unwrap();
        names.sort();
        assert_eq!(names, ["kernel", "netns"]);
    }

    #[test]
    fn no_folder_no_suites() {
        assert!(test_targets(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
