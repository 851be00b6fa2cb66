//! What the tests need of the machine, and what they say when it is not there.

use std::path::Path;
use std::process::Command;

use super::{fwbpf_binary, run};

/// Something that the machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Namespaces and BPF need root.
    Root,
    /// A program that is looked for in PATH.
    Program(&'static str),
    /// The fwbpf binary itself.
    Fwbpf,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => write!(f, "root (run as root)"),
            Self::Program(name) => write!(f, "the program `{name}` (cargo xtask test installs it)"),
            Self::Fwbpf => write!(
                f,
                "the fwbpf binary (set FWBPF_BIN, or run `cargo xtask build`)"
            ),
        }
    }
}

/// Whether a test can run. If not, says what is missing, so that the caller can return; with
/// `CI=true` in the environment a missing thing is a failure.
pub fn ready(test: &str, programs: &[&'static str], fwbpf: bool) -> bool {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push(Missing::Root);
    }
    for program in ["ip", "nsenter"].iter().chain(programs) {
        if !in_path(program) {
            missing.push(Missing::Program(program));
        }
    }
    if fwbpf && fwbpf_binary().is_none() {
        missing.push(Missing::Fwbpf);
    }
    if missing.is_empty() {
        mount_bpffs();
        return true;
    }
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let message = format!("SKIPPED {test}: missing {}", list.join("; "));
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{message} (and CI=true)"
    );
    eprintln!("{message}");
    false
}

/// Why bridges cannot be told to hand over what they switch, if they cannot.
pub fn no_hand_over() -> Option<String> {
    let can = Path::new("/proc/sys/net/bridge").exists();
    (!can).then(|| "the kernel has no br_netfilter, or has not loaded it".to_owned())
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        || Path::new("/usr/sbin").join(program).is_file()
}

/// The firewall keeps its pins in a bpffs; a fresh machine may not have one mounted.
fn mount_bpffs() {
    const BPFFS: &str = "/sys/fs/bpf";
    let mounted = std::fs::read_to_string("/proc/mounts").is_ok_and(|mounts| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(BPFFS))
    });
    if !mounted && let Err(error) = run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS])) {
        eprintln!("cannot mount a bpffs: {error:#}");
    }
}
