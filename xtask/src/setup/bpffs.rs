//! The bpf file system, where pinned programs and maps outlive the process that made them.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use super::packages;
use crate::progress::Progress;

const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Mounts the bpf file system where systemd does, unless it is there.
pub fn ensure_mounted(progress: &Progress) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    if is_mounted(&mounts) {
        return Ok(());
    }
    let command_line = format!("mount -t bpf bpffs {MOUNT_POINT}");
    if !packages::is_root() {
        bail!("the bpf file system is not mounted: run `{command_line}` as root");
    }
    progress.say("the bpf file system is not mounted: fwbpf pins its programs and maps there");
    progress.run(
        &format!("mounting it at {MOUNT_POINT}"),
        Command::new("mount").args(["-t", "bpf", "bpffs", MOUNT_POINT]),
    )
}

fn is_mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(MOUNT_POINT) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_file_system_counts() {
        assert!(is_mounted(
            "none /proc proc rw\nbpf /sys/fs/bpf bpf rw 0 0\n"
        ));
        assert!(!is_mounted("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
        assert!(!is_mounted("bpf /run/bpf bpf rw 0 0\n"));
    }
}
