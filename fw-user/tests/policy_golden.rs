//! Golden tests: each file of tests/policy loads to the text beside it, or is refused with it.
//!
//! `NAME.rules` or `NAME.toml` is the input. `NAME.ok` holds its warnings and what it is printed
//! as; `NAME.err` the errors as people see them. `FWBPF_BLESS=1` writes the expectations anew.

use std::fs;
use std::path::{Path, PathBuf};

use fw_user::policy::model::Family;
use fw_user::policy::{LintContext, LoadOptions, SourceFile, SshSession, lint, load, print_save};

#[test]
fn files_are_read_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/policy");
    let mut inputs: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("tests/policy exists")
        .map(|entry| entry.expect("the folder is readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| ending == "rules" || ending == "toml")
        })
        .collect();
    inputs.sort();
    assert!(
        inputs.len() >= 10,
        "only {} inputs in {}",
        inputs.len(),
        folder.display()
    );
    let mut failures = Vec::new();
    for input in inputs {
        let name = input
            .file_name()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        let bytes = fs::read(&input).expect("the input is readable");
        let (ending, found) = outcome(&name, &bytes);
        let other = if ending == "ok" { "err" } else { "ok" };
        if let Err(failure) = compare(&input.with_extension(ending), &found) {
            failures.push(failure);
        }
        let stale = input.with_extension(other);
        if stale.exists() {
            failures.push(format!("{} is not what comes of {name}", stale.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The ending of the expectation and its text.
fn outcome(name: &str, bytes: &[u8]) -> (&'static str, String) {
    let strict = name.contains("strict");
    match load(
        &[SourceFile::new(name, bytes, None)],
        LoadOptions { strict },
    ) {
        Err(errors) => ("err", errors.render(false)),
        Ok(loaded) => {
            let mut text: String = loaded
                .warnings
                .iter()
                .map(|warning| format!("{warning}\n"))
                .collect();
            // Every policy is checked as if by somebody who came in by SSH.
            let ssh = SshSession::parse("203.0.113.9 50000 198.51.100.10 22");
            let lints = lint(&loaded.policy, &LintContext { ssh });
            text.extend(lints.iter().map(|warning| format!("check: {warning}\n")));
            for family in [Family::Ipv4, Family::Ipv6] {
                let saved = print_save(&loaded.policy, family, None);
                if !saved.is_empty() {
                    text.push_str(&format!("--- {}\n{saved}", family.title()));
                }
            }
            ("ok", text)
        }
    }
}

fn compare(path: &Path, found: &str) -> Result<(), String> {
    if std::env::var_os("FWBPF_BLESS").is_some() {
        fs::write(path, found).expect("the expectation is writable");
        return Ok(());
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        return Ok(());
    }
    Err(format!("{} differs; found:\n{found}", path.display()))
}

#[test]
fn support_document_is_the_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/iptables-support.md");
    let found = fw_user::policy::match_table::support_document();
    compare(&path, &found).expect("FWBPF_BLESS=1 writes docs/iptables-support.md");
}
