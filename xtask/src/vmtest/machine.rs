//! One virtual machine, from its start to its end.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    kernels::{Files, Kernel},
    report::{Line, Report},
};
use crate::{
    cargo::outside,
    progress::{Progress, elapsed},
};

/// Memory of the machine in MB: the flow tables take about 200.
const MEMORY: &str = "2048";

/// Boots the kernel and reads what the first process tells, until the machine switches itself off
/// or its time is over. A machine that fails is a report with failures, not an error.
pub fn boot(
    progress: &Progress,
    kernel: Kernel,
    files: &Files,
    initramfs: &Path,
    patience: Duration,
) -> Result<Report> {
    let console = initramfs.with_file_name("console.log");
    progress.say(&format!(
        "\n== kernel {}, Debian's {} (console: {})",
        kernel.name(),
        kernel.release(),
        console.display()
    ));
    let mut log =
        File::create(&console).with_context(|| format!("cannot write {}", console.display()))?;
    let started = Instant::now();
    let mut child = start(files, initramfs)?;
    let lines = read(&mut child)?;
    let mut report = Report::new(kernel);
    loop {
        let left = patience.saturating_sub(started.elapsed());
        match lines.recv_timeout(left.min(Duration::from_secs(1))) {
            Ok(text) => {
                writeln!(log, "{text}")?;
                if let Some(line) = Line::parse(&text) {
                    if let Some(news) = line.news() {
                        progress.say(&format!("  {news}"));
                    }
                    report.add(line);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if left.is_zero() || progress.interrupted() => {
                report.cut_short(started.elapsed());
                child.kill().context("cannot end the virtual machine")?;
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    child
        .wait()
        .context("cannot wait for the virtual machine")?;
    progress.say(&format!("  it ran for {}", elapsed(started.elapsed())));
    report.finish(&console);
    Ok(report)
}

fn start(files: &Files, initramfs: &Path) -> Result<Child> {
    outside("qemu-system-x86_64")
        // No KVM: this runs inside virtual machines and containers, too.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", MEMORY, "-nodefaults", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(&files.image)
        .arg("-initrd")
        .arg(initramfs)
        // What the kernel does not know goes into its first process's environment. `panic=-1`
        // reboots at once, which -no-reboot makes the end.
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 PATH=/bin FWBPF_BIN=/bin/fwbpf",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot run qemu-system-x86_64")
}

fn read(child: &mut Child) -> Result<mpsc::Receiver<String>> {
    let stdout = child
        .stdout
        .take()
        .context("the virtual machine has no console")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}
