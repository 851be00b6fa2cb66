//! The comparison with iptables leaves nothing behind when it is interrupted.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fwbpf_tests::lab::ready;
use fwbpf_tests::lab::sockets::wait_up_to;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Making and removing ten namespaces takes its time on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn ctrl_c_removes_the_namespaces() {
    let programs = [
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
        "conntrack",
    ];
    if !ready("conformance_interrupted", &programs, false) {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        if let Err(error) = interrupt(signal) {
            panic!("{signal}: {error:#}");
        }
    }
}

fn interrupt(signal: Signal) -> Result<()> {
    // iptables against itself, which needs no BPF object.
    let mut conformance = Command::new(env!("CARGO_BIN_EXE_conformance"))
        .args(["--self-check", "--rulesets", "100000", "--jobs", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start conformance")?;
    let result = watch(&mut conformance, signal);
    if result.is_err() {
        let _ = conformance.kill();
        let _ = conformance.wait();
    }
    result
}

fn watch(conformance: &mut Child, signal: Signal) -> Result<()> {
    let pid = conformance.id();
    wait_up_to(PATIENCE, "both labs", || {
        if let Some(status) = conformance.try_wait()? {
            anyhow::bail!("it ended with {status}");
        }
        Ok(namespaces(pid)?.len() == 10)
    })?;
    kill(Pid::from_raw(pid.cast_signed()), signal)?;
    let mut ended = None;
    wait_up_to(PATIENCE, "its end", || {
        ended = conformance.try_wait()?;
        Ok(ended.is_some())
    })?;
    let status = ended.context("it has ended")?;
    ensure!(status.code() == Some(130), "it ended with {status}");
    let left = namespaces(pid)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// The namespaces that a process made.
fn namespaces(pid: u32) -> Result<Vec<String>> {
    let own = format!("-{pid}-");
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/run/netns")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("fwt-conformance") && name.contains(&own) {
            names.push(name);
        }
    }
    Ok(names)
}
