//! Rule files as the tools that people use write them: what of each is refused.
//!
//! tests/policy/real has a file for each tool; iptables-legacy-restore takes all of them whole
//! (`files_as_tools_write_them` in policy_iptables.rs). tests/policy/real/refused.txt lists every
//! line that fwbpf refuses; a line that is not in the list fails the test, `FWBPF_BLESS=1` writes
//! the list anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fw_user::compile::Draft;
use fw_user::policy::{Kind, LoadOptions, SourceFile, load};

#[test]
fn only_what_is_listed_is_refused() {
    let files = files();
    assert!(files.len() >= 20, "only {} files", files.len());
    let mut refused = BTreeSet::new();
    let mut whole = 0;
    for (name, text) in &files {
        let file = SourceFile::new(name, text.as_bytes(), None);
        match load(&[file], LoadOptions { strict: true }) {
            Ok(loaded) => {
                Draft::of(&loaded.policy).expect("a policy of this size compiles");
                whole += 1;
            }
            Err(errors) => {
                for error in errors.errors {
                    let rule = text
                        .lines()
                        .nth(error.line as usize - 1)
                        .unwrap_or_default();
                    assert!(error.kind == Kind::Unsupported, "{name}: {rule}: {error}");
                    refused.insert(format!("{name}:{}: {}", error.line, error.message));
                }
            }
        }
    }
    let refused: Vec<_> = refused.into_iter().collect();
    println!("{whole} of {} files load whole", files.len());
    println!("{}", refused.join("\n"));

    let path = folder().join("refused.txt");
    if std::env::var_os("FWBPF_BLESS").is_some() {
        let text: String = refused.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&path, text).expect("the list is writable");
    }
    let listed = fs::read_to_string(&path).expect("the list is readable");
    let listed: BTreeSet<_> = listed.lines().filter_map(place).collect();
    let fresh: Vec<_> = refused
        .iter()
        .filter(|line| place(line).is_some_and(|place| !listed.contains(place)))
        .collect();
    assert!(fresh.is_empty(), "refused and not listed: {fresh:#?}");
}

/// `ufw.v4.rules:62` of a line of the list.
fn place(line: &str) -> Option<&str> {
    line.split_once(": ").map(|(place, _)| place)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/policy/real")
}

/// Name and text of each file.
fn files() -> Vec<(String, String)> {
    let entries = fs::read_dir(folder()).expect("tests/policy/real exists");
    let paths = entries.map(|entry| entry.expect("the folder is readable").path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "rules"))
        .map(|path| {
            let name = path
                .file_name()
                .expect("a file has a name")
                .to_string_lossy();
            let text = fs::read_to_string(&path).expect("the file is readable");
            (name.into_owned(), text)
        })
        .collect();
    files.sort();
    files
}
