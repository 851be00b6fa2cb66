//! The two firewalls that the tests drive through one trait: fwbpf, and iptables as the reference.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use fw_user::policy::model::Family;

use super::namespace::{Namespace, run, run_with_input};

/// A firewall in one namespace.
pub trait Firewall: Send {
    /// How reports call it.
    fn name(&self) -> &'static str;
    /// Makes these rules (iptables-save text), all counters at zero, the whole policy.
    fn load(&self, rules: &[(Family, &str)]) -> Result<()>;
    /// Makes these sets (as `ipset save` prints them) the ones that the rules of the next
    /// [`Firewall::load`] may ask. iptables' rules of before are gone then.
    fn give_sets(&self, sets: &str) -> Result<()>;
    /// Removes all rules and forgets all flows.
    fn clear(&self) -> Result<()>;
    /// Loads policies with nothing left of what was before: no flows, all counters as written.
    fn load_anew(&self, rules: &[(Family, &str)]) -> Result<()> {
        self.clear()?;
        self.load(rules)
    }
    /// The rules with counters, as `iptables-save -c` prints them.
    fn save(&self, family: Family) -> Result<String>;
    /// The connections that it tracks, as `conntrack -L` prints them.
    fn flows(&self) -> Result<String> {
        bail!("{} is not asked for its flows", self.name())
    }
    /// How it is doing, in JSON of its own.
    fn status(&self) -> Result<String> {
        bail!("{} has no status", self.name())
    }
}

/// iptables-legacy and ip6tables-legacy.
pub struct Iptables {
    namespace: Arc<Namespace>,
}

impl Iptables {
    /// The kernel's netfilter in this namespace.
    pub fn new(namespace: Arc<Namespace>) -> Self {
        Self { namespace }
    }

    fn restore(&self, family: Family, rules: &str) -> Result<()> {
        let program = match family {
            Family::Ipv4 => "iptables-legacy-restore",
            Family::Ipv6 => "ip6tables-legacy-restore",
        };
        // Other tests hold the system-wide xtables lock now and then: wait for it.
        run_with_input(self.namespace.command(program).args(["-w", "20"]), rules)
    }
}

impl Firewall for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn load(&self, rules: &[(Family, &str)]) -> Result<()> {
        for (family, text) in rules {
            let mut text = (*text).to_owned();
            for (name, empty) in [("raw", RAW), ("mangle", MANGLE)] {
                // What another rule set left there must not stay.
                if !text.contains(&format!("*{name}\n")) {
                    text += empty;
                }
            }
            self.restore(*family, &text)?;
        }
        Ok(())
    }

    fn give_sets(&self, sets: &str) -> Result<()> {
        // The kernel keeps what rules ask.
        self.clear()?;
        run(self.namespace.command("ipset").arg("destroy"))?;
        run_with_input(self.namespace.command("ipset").arg("restore"), sets)
    }

    fn clear(&self) -> Result<()> {
        const OPEN: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n\
             *nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n";
        for family in [Family::Ipv4, Family::Ipv6] {
            self.restore(family, &format!("{OPEN}{RAW}{MANGLE}"))?;
        }
        run(self.namespace.command("conntrack").arg("-F")).map(drop)
    }

    fn save(&self, family: Family) -> Result<String> {
        let program = match family {
            Family::Ipv4 => "iptables-legacy-save",
            Family::Ipv6 => "ip6tables-legacy-save",
        };
        run(self.namespace.command(program).arg("-c"))
    }

    fn flows(&self) -> Result<String> {
        let list = |family| {
            run(self
                .namespace
                .command("conntrack")
                .args(["-L", "-f", family]))
        };
        Ok(list("ipv4")? + &list("ipv6")?)
    }
}

/// Nothing in the table raw.
const RAW: &str = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";

/// A rule that has connections tracked, which fwbpf always does (difference 9 of the conformance test),
/// and nothing else in the table mangle.
const MANGLE: &str = "*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n\
    :POSTROUTING ACCEPT\n-A PREROUTING -m conntrack --ctstate NEW\nCOMMIT\n";

/// fwbpf, with all that it pins in a directory of its own.
pub struct Fwbpf {
    namespace: Arc<Namespace>,
    binary: PathBuf,
    state: PathBuf,
    files: tempfile::TempDir,
    load_options: Vec<String>,
    /// What the next load is given besides rules.
    sets: Mutex<Option<PathBuf>>,
}

impl Fwbpf {
    /// The binary `binary` in this namespace.
    pub fn new(namespace: Arc<Namespace>, binary: PathBuf) -> Result<Self> {
        let state = PathBuf::from("/sys/fs/bpf").join(namespace.name());
        let files = tempfile::tempdir().context("make a directory for policy files")?;
        Ok(Self {
            namespace,
            binary,
            state,
            files,
            load_options: Vec::new(),
            sets: Mutex::default(),
        })
    }

    /// Gives every `load` these options.
    pub fn with_load_options(mut self, options: &[&str]) -> Self {
        self.load_options = options.iter().map(ToString::to_string).collect();
        self
    }

    /// The command line `fwbpf --state-dir ...`, to be extended.
    pub fn command(&self) -> Command {
        let mut command = self.namespace.command(&self.binary);
        command.arg("--state-dir").arg(&self.state);
        command
    }

    /// Runs a subcommand, whatever its exit code.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command()
            .args(arguments)
            .output()
            .context("start fwbpf")
    }

    /// Loads policy files as they are.
    pub fn load_files(&self, files: &[&Path]) -> Result<()> {
        run(self.command().arg("load").args(files)).map(drop)
    }

    /// Writes text to a file that `load` can be given.
    pub fn write_policy(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.path().join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// What a subcommand that must succeed says with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = run(self.command().arg("--json").args(arguments))?;
        serde_json::from_str(&text).with_context(|| format!("fwbpf {arguments:?} printed\n{text}"))
    }

    /// What a subcommand that must succeed prints.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        run(self.command().args(arguments))
    }

    /// Loads iptables-save text with options of `load`; what it said on standard error.
    pub fn load_with(&self, options: &[&str], rules: &[(Family, &str)]) -> Result<String> {
        let mut command = self.command();
        command.arg("load").args(&self.load_options).args(options);
        for (family, text) in rules {
            let name = match family {
                Family::Ipv4 => "rules.v4",
                Family::Ipv6 => "rules.v6",
            };
            command.arg(self.write_policy(name, text)?);
        }
        command.args(self.sets.lock().expect("nobody panics with it").as_ref());
        let output = command.output().context("start fwbpf")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("{command:?} ended with {}\n{said}", output.status);
        }
        Ok(said)
    }

    /// Where the pins are.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }
}

/// The exit code that says so.
const NOTHING_LOADED: i32 = 4;

impl Firewall for Fwbpf {
    fn name(&self) -> &'static str {
        "fwbpf"
    }

    fn load(&self, rules: &[(Family, &str)]) -> Result<()> {
        self.load_with(&[], rules).map(drop)
    }

    fn give_sets(&self, sets: &str) -> Result<()> {
        let file = match sets {
            "" => None,
            sets => Some(self.write_policy("sets.ipset", sets)?),
        };
        *self.sets.lock().expect("nobody panics with it") = file;
        Ok(())
    }

    fn load_anew(&self, rules: &[(Family, &str)]) -> Result<()> {
        // Unloading would do too, but the kernel would verify the programs again each time.
        let flushed = self.output(&["flows", "--flush"])?;
        if !flushed.status.success() && flushed.status.code() != Some(NOTHING_LOADED) {
            bail!(
                "fwbpf flows --flush ended with {}: {}",
                flushed.status,
                String::from_utf8_lossy(&flushed.stderr)
            );
        }
        // Lists live on from load to load, as long as rules name them.
        let keeps = |text: &str| text.contains("-m recent") || text.contains("-m hashlimit");
        if rules.iter().any(|(_, text)| keeps(text)) {
            const OPEN: &str = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
            let sets = self.sets.lock().expect("nobody panics with it").take();
            self.load_with(&[], &[(Family::Ipv4, OPEN)])?;
            *self.sets.lock().expect("nobody panics with it") = sets;
        }
        self.load_with(&["--counters"], rules).map(drop)
    }

    fn clear(&self) -> Result<()> {
        let output = self.output(&["unload"])?;
        if output.status.success() || output.status.code() == Some(NOTHING_LOADED) {
            return Ok(());
        }
        bail!(
            "fwbpf unload ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn save(&self, family: Family) -> Result<String> {
        let flag = match family {
            Family::Ipv4 => "--ipv4",
            Family::Ipv6 => "--ipv6",
        };
        run(self.command().args(["show", "--save", flag]))
    }

    fn flows(&self) -> Result<String> {
        run(self.command().arg("flows"))
    }

    fn status(&self) -> Result<String> {
        run(self.command().args(["status", "--json"]))
    }
}

impl Drop for Fwbpf {
    fn drop(&mut self) {
        if self.state.exists() {
            let _ = self.clear();
        }
        // Whatever a failed unload left: pins are plain directory entries.
        let _ = fs::remove_dir_all(&self.state);
    }
}

/// The binary under test: `FWBPF_BIN`, else the newest that cargo built here.
pub fn fwbpf_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FWBPF_BIN") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("fwbpf"))
        .filter(|path| path.is_file())
        .max_by_key(|path| {
            path.metadata()
                .and_then(|meta| meta.modified())
                .unwrap_or(UNIX_EPOCH)
        })
}
