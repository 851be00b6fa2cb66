//! The demo: the guide's policy on real traffic, in a sandbox of network namespaces.
//!
//! `cargo xtask demo` builds and runs this as root. Everything it makes is named after its process
//! and gone when it ends, by Ctrl-C too.

mod ledger;
mod probe;
mod report;
mod service;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use fw_user::policy::model::Family;
use fwbpf_tests::lab::{Fwbpf, Peers, ServerLab, fwbpf_binary, run};

use crate::{
    ledger::{Ledger, Policy},
    probe::Scene,
    report::{Outcome, Progress},
    service::Services,
};

/// The name of the demo's namespaces, and of its pins.
const NAME: &str = "demo";

/// Shows fwbpf enforcing the guide's policy on real traffic.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Cli {
    /// The folder of guide.rules.v4 and guide.rules.v6.
    #[arg(long, value_name = "FOLDER")]
    policy: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    match demo(&cli, &interrupted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whatever the programs of the sandbox died of, the reason is known.
        Err(_) if interrupted.load(Ordering::Relaxed) => {
            eprintln!("\ninterrupted; the sandbox is gone");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole show. False if a probe ended otherwise than the guide says.
fn demo(cli: &Cli, interrupted: &Arc<AtomicBool>) -> Result<bool> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads BPF programs: run it as root"
    );
    watch_for_interrupts(interrupted)?;
    let binary = fwbpf_binary().context(
        "there is no fwbpf binary: run `cargo xtask demo`, which builds it, or set FWBPF_BIN",
    )?;
    let folder = cli
        .policy
        .clone()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"));
    let files = ["guide.rules.v4", "guide.rules.v6"].map(|name| shorten(&folder.join(name)));
    let policies = [
        Policy::read(Family::Ipv4, &files[0])?,
        Policy::read(Family::Ipv6, &files[1])?,
    ];

    let before = host_state()?;
    let right = {
        let sandbox = Sandbox::make(binary)?;
        sandbox.load(&files)?;
        let outcomes = sandbox.probe(&policies, interrupted)?;
        report::tables(&outcomes);
        sandbox.show_counters()?;
        report::verdict(&outcomes)
    };
    check_nothing_is_left(&before)?;
    Ok(right)
}

/// The namespaces, the firewall in the server's and the programs that talk. Dropped from top to
/// bottom: first the programs end, then the firewall is unloaded, then the namespaces go.
struct Sandbox {
    _services: Services,
    firewall: Fwbpf,
    scene: Scene,
}

impl Sandbox {
    fn make(binary: PathBuf) -> Result<Self> {
        remove_dead_pins();
        let progress = Progress::start("making the sandbox: five network namespaces");
        let lab = ServerLab::new(NAME, Peers::Real)?;
        let firewall = Fwbpf::new(Arc::clone(&lab.server), binary)?;
        let services = Services::start(&lab)?;
        progress.done();
        println!("\n{}\n", report::MAP);
        Ok(Self {
            _services: services,
            firewall,
            scene: Scene::new(lab),
        })
    }

    /// Runs `fwbpf load` in full view: its warnings are part of the show.
    fn load(&self, files: &[PathBuf]) -> Result<()> {
        let names: Vec<String> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        println!("server# fwbpf load {}", names.join(" "));
        let status = self
            .firewall
            .command()
            .arg("load")
            .args(files)
            .status()
            .context("cannot run fwbpf")?;
        ensure!(status.success(), "`fwbpf load` failed ({status})");
        println!();
        Ok(())
    }

    fn probe(&self, policies: &[Policy], interrupted: &AtomicBool) -> Result<Vec<Outcome>> {
        let all = probe::all();
        let progress = Progress::counting("probing with real traffic", all.len());
        let mut outcomes = Vec::with_capacity(all.len());
        for probe in all {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            progress.step(probe.what);
            let policy = policies
                .iter()
                .find(|policy| policy.family == probe.family)
                .context("both families have a policy")?;
            let before = self.settled_ledger(probe.family)?;
            let got = (probe.run)(&self.scene, probe.family)
                .with_context(|| format!("the probe `{}` could not be made", probe.what))?;
            let after = self.settled_ledger(probe.family)?;
            let decided = after.decided(&before, probe.chain, probe.enters, policy);
            outcomes.push(Outcome {
                probe,
                got,
                decided,
            });
        }
        progress.done();
        Ok(outcomes)
    }

    /// The counters, once the last packets of what went before are through.
    fn settled_ledger(&self, family: Family) -> Result<Ledger> {
        const ATTEMPTS: u32 = 20;
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
        let mut last = self.ledger(family)?;
        for _ in 0..ATTEMPTS {
            std::thread::sleep(PAUSE);
            let next = self.ledger(family)?;
            if next == last {
                break;
            }
            last = next;
        }
        Ok(last)
    }

    fn ledger(&self, family: Family) -> Result<Ledger> {
        let version = match family {
            Family::Ipv4 => "--ipv4",
            Family::Ipv6 => "--ipv6",
        };
        Ledger::parse(&run(self
            .firewall
            .command()
            .args(["--json", "show", version]))?)
    }

    fn show_counters(&self) -> Result<()> {
        println!("\nserver# fwbpf show");
        let status = self
            .firewall
            .command()
            .arg("show")
            .status()
            .context("cannot run fwbpf")?;
        ensure!(status.success(), "`fwbpf show` failed ({status})");
        Ok(())
    }
}

/// Ctrl-C, a closed terminal and `kill` end the demo between two probes, so that it cleans up.
fn watch_for_interrupts(interrupted: &Arc<AtomicBool>) -> Result<()> {
    let flag = Arc::clone(interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
        .context("cannot install the handler for Ctrl-C")
}

/// A demo that was killed outright could not remove its pins. The lab does the same for
/// namespaces.
fn remove_dead_pins() {
    for (path, pid) in own_pins() {
        if !Path::new("/proc").join(pid.to_string()).exists() {
            // Pins are plain directory entries; what they hold goes with the last of them.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Pin folders of this and earlier demos, with the process that made them.
fn own_pins() -> Vec<(PathBuf, u32)> {
    let Ok(entries) = fs::read_dir("/sys/fs/bpf") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), owner(&entry.file_name().into_string().ok()?)?)))
        .collect()
}

/// The process in a name such as `fwt-demo-4711-srv`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("fwt-")?
        .strip_prefix(NAME)?
        .strip_prefix('-')?
        .split('-')
        .next()?
        .parse()
        .ok()
}

/// What the demo must not change: the host's interfaces, addresses, routes and forwarding.
fn host_state() -> Result<String> {
    let mut state = String::new();
    for arguments in [["-o", "address"].as_slice(), &["route"], &["-6", "route"]] {
        state += &run(std::process::Command::new("ip").args(arguments))?;
    }
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys/net").join(setting);
        state += &fs::read_to_string(&path).unwrap_or_default();
    }
    // Router advertisements renew lifetimes while the demo runs; that is no change.
    Ok(state
        .split_whitespace()
        .filter(|word| !word.ends_with("sec"))
        .collect::<Vec<_>>()
        .join(" "))
}

fn check_nothing_is_left(before: &str) -> Result<()> {
    let own = std::process::id();
    let namespaces = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name) == Some(own));
    let pins = own_pins()
        .into_iter()
        .filter(|(_, pid)| *pid == own)
        .map(|(path, _)| path.display().to_string());
    let left: Vec<String> = namespaces.chain(pins).collect();
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    if host_state()? == before {
        println!("The sandbox is gone; the host's interfaces, addresses and routes are as before.");
    } else {
        println!(
            "The sandbox is gone. The host's interfaces, addresses or routes changed meanwhile, \
             by another hand than the demo's."
        );
    }
    Ok(())
}

/// The path as seen from here, if that is shorter.
fn shorten(path: &Path) -> PathBuf {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    std::env::current_dir()
        .ok()
        .and_then(|here| canonical.strip_prefix(here).ok().map(Path::to_owned))
        .unwrap_or(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_demos_own_names_have_an_owner() {
        assert_eq!(owner("fwt-demo-4711-srv"), Some(4711));
        assert_eq!(owner("fwt-demolition-4711-srv"), None);
        assert_eq!(owner("fwbpf"), None);
    }
}
