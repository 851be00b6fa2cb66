//! Debian packages: what each is for, whether it is there, and how it gets there without starting
//! a single service.

use std::{
    borrow::Cow,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::Need;
use crate::{cargo::outside, progress::Progress};

/// A Debian package and why fwbpf wants it.
pub struct Package {
    name: Cow<'static, str>,
    probe: Probe,
    reason: &'static str,
}

/// How to see that a package is there. Programs count wherever they come from.
#[derive(Clone, Copy)]
pub enum Probe {
    /// On the `PATH` or in an `sbin` folder.
    Program(&'static str),
    /// At this place.
    File(&'static str),
    /// As dpkg says.
    Installed,
}

impl Package {
    /// A package, how to see it, and what for.
    pub fn new(name: impl Into<Cow<'static, str>>, probe: Probe, reason: &'static str) -> Self {
        Self {
            name: name.into(),
            probe,
            reason,
        }
    }

    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(name) => find(name).next().is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Installed => is_installed(&self.name),
        }
    }
}

const IP: Package = program("iproute2", "ip", "makes the namespaces and their links");
const PING: Package = program(
    "iputils-ping",
    "ping",
    "sends the demo's and the tests' pings",
);

const TESTS: [Package; 12] = [
    program(
        "iptables",
        "iptables-legacy",
        "the judge of the conformance test",
    ),
    program("ipset", "ipset", "the judge of what sets contain"),
    program(
        "nftables",
        "nft",
        "shows that the tests leave no rule behind",
    ),
    program("docker.io", "dockerd", "the test with a real Docker engine"),
    program(
        "busybox-static",
        "busybox",
        "the image of the test's containers",
    ),
    program("prometheus", "promtool", "checks the exported metrics"),
    program(
        "conntrack",
        "conntrack",
        "shows the kernel's flows beside fwbpf's",
    ),
    program(
        "traceroute",
        "traceroute",
        "ICMP errors that cross the masquerade",
    ),
    program("tcpdump", "tcpdump", "reads packets on both sides of fwbpf"),
    program(
        "bpftool",
        "bpftool",
        "looks at programs and maps from outside",
    ),
    program(
        "procps",
        "sysctl",
        "switches forwarding on inside namespaces",
    ),
    program(
        "strace",
        "strace",
        "ends loads at a system call of its choice",
    ),
];

const BENCH: [Package; 2] = [
    program(
        "ethtool",
        "ethtool",
        "switches NAPI on in the benchmark's wires",
    ),
    program("iperf3", "iperf3", "the benchmark's local TCP streams"),
];

const VM: [Package; 2] = [
    program(
        "qemu-system-x86",
        "qemu-system-x86_64",
        "boots other kernels, in software",
    ),
    program("xz-utils", "xz", "unpacks those kernels' modules"),
];

const fn program(package: &'static str, program: &'static str, reason: &'static str) -> Package {
    Package {
        name: Cow::Borrowed(package),
        probe: Probe::Program(program),
        reason,
    }
}

/// What `needs` take besides the BPF toolchain.
pub fn for_needs(needs: &[Need]) -> Vec<Package> {
    let mut packages = Vec::new();
    if needs.iter().any(|need| *need != Need::Build) {
        packages.extend([IP, PING]);
    }
    if needs.contains(&Need::Test) {
        packages.extend(TESTS);
    }
    if needs.contains(&Need::Bench) {
        packages.extend(BENCH);
    }
    if needs.contains(&Need::Vm) {
        packages.extend(VM);
    }
    packages
}

/// Installs those of `packages` that are missing.
pub fn ensure(progress: &Progress, packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|p| !p.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    progress.say("missing:");
    for package in &missing {
        progress.say(&format!("  {:<16} {}", package.name, package.reason));
    }
    let names: Vec<&str> = missing.iter().map(|package| &*package.name).collect();
    if !is_debian() {
        bail!(
            "this is not Debian: install by hand what its packages {} provide",
            names.join(", ")
        );
    }
    if !is_root() {
        bail!(
            "installing needs root: run `apt-get install --no-install-recommends {}`, \
             or this command as root",
            names.join(" ")
        );
    }
    install(progress, &names)?;
    match missing.iter().find(|package| !package.is_there()) {
        Some(package) => bail!("{} is installed and yet not to be found", package.name),
        None => Ok(()),
    }
}

/// Whether apt can be asked.
pub fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && find("apt-get").next().is_some()
}

/// Whether this process may install and mount.
pub fn is_root() -> bool {
    // The owner of the process's own folder in /proc is its effective user.
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// All programs of that name, in the order of the `PATH`, then of the folders that only root's
/// `PATH` has.
pub fn find(program: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .collect();
    folders
        .into_iter()
        .map(move |folder| folder.join(program))
        .filter(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn install(progress: &Progress, names: &[&str]) -> Result<()> {
    progress.run(
        "asking Debian's mirrors for their package lists",
        apt_get().arg("update"),
    )?;
    let _no_services = NoServices::begin()?;
    progress.run(
        &format!("installing {} packages", names.len()),
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(names),
    )?;
    disable_services(progress, names)
}

fn apt_get() -> Command {
    let mut command = outside("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The services of the packages above: package, systemd's units, System V's script. Starting
/// dockerd rewrites the host's iptables rules, and the tests start their own in a namespace.
const SERVICES: [(&str, &[&str], &str); 3] = [
    (
        "docker.io",
        &["docker.service", "docker.socket", "containerd.service"],
        "docker",
    ),
    ("prometheus", &["prometheus.service"], "prometheus"),
    ("nftables", &["nftables.service"], "nftables"),
];

/// Keeps the services of freshly installed packages from starting at the next boot. Only
/// packages that this run installed are passed here: a dockerd that was there is nobody's business.
fn disable_services(progress: &Progress, installed: &[&str]) -> Result<()> {
    for (package, units, script) in SERVICES {
        if !installed.contains(&package) {
            continue;
        }
        // These two are what the packages' own scripts use, with and without systemd.
        progress.run(
            &format!("keeping {package}'s services switched off"),
            outside("deb-systemd-helper")
                .arg("disable")
                .args(units)
                // It refuses to work for anyone who does not say which package's script asks.
                .env("DPKG_MAINTSCRIPT_PACKAGE", package),
        )?;
        if Path::new("/etc/init.d").join(script).exists() {
            progress.run(
                &format!("keeping {package}'s start script switched off"),
                outside("update-rc.d").args([script, "disable"]),
            )?;
        }
    }
    Ok(())
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_KEPT: &str = "/usr/sbin/policy-rc.d.before-fwbpf";
const POLICY_MARK: &str = "# fwbpf's setup: no service starts while it installs packages.";

/// While this lives, Debian's packages start no service: their scripts ask `policy-rc.d`, and
/// 101 means "forbidden" (deb-systemd-invoke(1p), invoke-rc.d(8)).
struct NoServices;

impl NoServices {
    fn begin() -> Result<Self> {
        let present = fs::read_to_string(POLICY).ok();
        // A run that was killed may have left its own behind; never keep that as the original.
        let is_own = |text: &String| text.contains(POLICY_MARK);
        if present.as_ref().is_some_and(|text| !is_own(text)) {
            fs::rename(POLICY, POLICY_KEPT)
                .with_context(|| format!("cannot put {POLICY} aside"))?;
        }
        let guard = Self;
        fs::write(POLICY, format!("#!/bin/sh\n{POLICY_MARK}\nexit 101\n"))
            .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let result = if Path::new(POLICY_KEPT).exists() {
            fs::rename(POLICY_KEPT, POLICY)
        } else {
            fs::remove_file(POLICY)
        };
        if let Err(error) = result {
            eprintln!("warning: cannot put {POLICY} back as it was: {error}");
        }
    }
}
