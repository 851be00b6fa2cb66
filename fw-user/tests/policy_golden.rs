//! Golden tests: each file of tests/policy loads to the text beside it, or is refused with it.
//!
//! `NAME.rules`, `NAME.toml` or `NAME.ipset` is the input. `NAME.ok` holds its warnings and what it is printed
//! as; `NAME.err` the errors as people see them. `FWBPF_BLESS=1` writes the expectations anew.

use std::fs;
use std::path::{Path, PathBuf};

use fw_user::policy::model::Family;
use fw_user::policy::set::print_element;
use fw_user::policy::{LintContext, LoadOptions, SourceFile, SshSession, lint, load, print_save};

#[test]
fn files_are_read_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/policy");
    let mut inputs: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("tests/policy exists")
        .map(|entry| entry.expect("the folder is readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| ending == "rules" || ending == "toml" || ending == "ipset")
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
            for missing in &loaded.missing_sets {
                text.push_str(&format!("missing: {}\n", missing.error));
            }
            for set in &loaded.policy.sets {
                text.push_str(&set.create_line());
                text.push('\n');
                for element in set.elements.iter().flat_map(|elements| elements.iter()) {
                    text.push_str(&format!(
                        "add {} {}",
                        set.name,
                        print_element(&element.key, set)
                    ));
                    if let Some(seconds) = element.timeout {
                        text.push_str(&format!(" timeout {seconds}"));
                    }
                    text.push_str(if element.nomatch { " nomatch\n" } else { "\n" });
                }
            }
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

/// Every extension that iptables has on this machine has a row, for the IP versions that have it.
#[test]
fn support_document_has_every_match_and_target_of_iptables() {
    let document = fw_user::policy::match_table::support_document();
    let mut files: Vec<String> = Vec::new();
    for folder in fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        let entries = fs::read_dir(folder.path().join("xtables"));
        files.extend(
            entries
                .into_iter()
                .flatten()
                .flatten()
                .map(|file| file.file_name().to_string_lossy().into_owned()),
        );
    }
    if files.is_empty() {
        eprintln!("SKIPPED: iptables is not installed");
        return;
    }
    let has = |start: &str, name: &str| files.contains(&format!("{start}{name}.so"));
    let mut missing = Vec::new();
    for file in &files {
        let name = file
            .strip_suffix(".so")
            .and_then(|stem| stem.split_once('_'));
        let Some(("libxt" | "libipt" | "libip6t", name)) = name else {
            continue;
        };
        // ACCEPT, DROP and RETURN; and what DNAT, SNAT, MASQUERADE and REDIRECT have in common.
        if ["standard", "NAT"].contains(&name) {
            continue;
        }
        let option = if name.starts_with(|letter: char| letter.is_uppercase()) {
            'j'
        } else {
            'm'
        };
        let versions = match (has("libipt_", name), has("libip6t_", name)) {
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            _ => "IPv4, IPv6",
        };
        let row = format!("| `-{option} {name}` | {versions} |");
        // What works for one version only has a row for each.
        let of_each = versions
            .split(", ")
            .all(|version| document.contains(&format!("| `-{option} {name}` | {version} |")));
        if !document.contains(&row) && !of_each && !missing.contains(&row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "missing: {missing:#?}");
}
