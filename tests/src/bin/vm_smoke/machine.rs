//! From an initramfs to a system in which the lab works.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// The kernel's modules, in the order in which they need each other.
const MODULES: &str = "/modules";

/// Mounts what the kernel offers and loads the modules.
pub fn prepare() -> Result<()> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("bpf", "/sys/fs/bpf"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount a {kind} at {place}"))?;
    }
    let mut modules: Vec<_> = fs::read_dir(MODULES)
        .with_context(|| format!("cannot list {MODULES}"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    modules.sort();
    modules.iter().try_for_each(|module| load(module))
}

fn load(module: &Path) -> Result<()> {
    let file = fs::File::open(module)?;
    finit_module(&file, c"", ModuleInitFlags::empty())
        .with_context(|| format!("cannot load the module {}", module.display()))
}

/// As `uname -r` says.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

/// Ends the virtual machine; the kernel panics if its first process returns.
pub fn switch_off() -> ! {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    panic!("cannot switch the machine off: {error}");
}
