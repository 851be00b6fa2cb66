//! The command line as scripts and people meet it, where no root is needed: exit codes, JSON,
//! colours, and the manual page.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/guide.rules.v4");

fn fwbpf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fwbpf"))
        .args(arguments)
        .env_remove("SSH_CONNECTION")
        .env_remove("NO_COLOR")
        .output()
        .expect("fwbpf runs")
}

fn code(arguments: &[&str]) -> Option<i32> {
    fwbpf(arguments).status.code()
}

const NOWHERE: [&str; 2] = ["--state-dir", "/nonexistent/fwbpf"];

#[test]
fn exit_codes_are_those_of_the_help() {
    assert_eq!(code(&["check", GUIDE]), Some(0));
    assert_eq!(code(&["check", "/nonexistent/rules.v4"]), Some(1));
    assert_eq!(code(&["check"]), Some(2));
    assert_eq!(code(&["nonsense"]), Some(2));
    assert_eq!(code(&["check", "--strict", GUIDE]), Some(3));
    for command in ["show", "status", "flows", "unload"] {
        assert_eq!(
            code(&[command, NOWHERE[0], NOWHERE[1]]),
            Some(4),
            "{command}"
        );
    }
    let help = fwbpf(&["--help"]);
    let help = String::from_utf8_lossy(&help.stdout);
    for number in 0..=4 {
        assert!(help.contains(&format!("\n  {number}  ")), "{help}");
    }
}

#[test]
fn strict_refuses_the_three_lines_that_iptables_refuses() {
    let output = fwbpf(&["check", "--strict", "--json", GUIDE]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("check prints JSON");
    assert_eq!(report["accepted"], false);
    let errors = report["errors"].as_array().expect("a list of errors");
    let lines: Vec<_> = errors.iter().map(|error| error["line"].as_u64()).collect();
    assert_eq!(lines, [Some(11), Some(14), Some(44)]);

    let output = fwbpf(&["check", "--json", GUIDE]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("check prints JSON");
    assert_eq!(report["accepted"], true);
    for line in [11, 14, 44] {
        let warnings = report["warnings"].as_array().expect("a list of warnings");
        assert!(
            warnings
                .iter()
                .any(|warning| warning["origin"]["line"] == line && warning["help"].is_string()),
            "no warning of line {line}: {report}"
        );
    }
}

#[test]
fn failures_are_json_where_json_is_asked_for() {
    for arguments in [
        &["--json", "check", "/nonexistent/rules.v4"][..],
        &["--json", "show", NOWHERE[0], NOWHERE[1]],
    ] {
        let output = fwbpf(arguments);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let said: Value = serde_json::from_slice(&output.stderr).expect("one line of JSON");
        assert!(said["error"].is_string(), "{said}");
    }
}

#[test]
fn colours_are_for_terminals() {
    let escapes = |arguments: &[&str]| {
        let Output { stdout, stderr, .. } = fwbpf(arguments);
        stdout.contains(&0x1b) || stderr.contains(&0x1b)
    };
    for arguments in [
        &["--help"][..],
        &["check", "--strict", GUIDE],
        &["check", "/nonexistent"],
    ] {
        assert!(!escapes(arguments), "{arguments:?}");
    }
    assert!(escapes(&["check", "--strict", "--color", "always", GUIDE]));
}

#[test]
fn the_manual_page_is_the_help() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fwbpf.8");
    let found = fwbpf(&["man"]).stdout;
    if std::env::var_os("FWBPF_BLESS").is_some() {
        fs::write(&path, &found).expect("the manual page is writable");
    }
    let kept = fs::read(&path).expect("docs/fwbpf.8 is readable");
    assert!(found == kept, "FWBPF_BLESS=1 writes docs/fwbpf.8 anew");
}
