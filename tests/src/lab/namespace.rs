//! One network namespace.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace that this process made. Dropping it removes it and every interface in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Longest test name kept in a namespace's name; the rest is process id, number and role.
const NAME_LIMIT: usize = 40;

impl Namespace {
    /// Makes the namespace of `role` for the test `test`. Namespaces that an earlier, killed run
    /// of the same test left behind are removed first; those of living processes are not touched.
    pub fn new(test: &str, role: &str) -> Result<Self> {
        let prefix = prefix(test);
        remove_leftovers(&prefix);
        // Tests that run side by side in one process may build the same lab.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{number}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside. `nsenter` rather than `ip netns exec`, which mounts a new
    /// /sys and so hides the bpffs and the control groups.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs lines of `ip -batch` inside.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run_with_input(
            Command::new("ip").args(["-n", &self.name, "-force", "-batch", "-"]),
            batch,
        )
    }

    /// Runs `action` on a thread of its own inside. Sockets made there stay in the namespace
    /// wherever they are used later.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        let file =
            File::open(self.path()).with_context(|| format!("open namespace {}", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(move || -> Result<T> {
                    setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
                    Ok(action())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes values below /proc/sys/net, which belong to the namespace of who writes.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in values {
                let path = format!("/proc/sys/net/{key}");
                std::fs::write(&path, value).with_context(|| format!("write {value} to {path}"))?;
            }
            Ok(())
        })?
    }

    /// Reads one value below /proc/sys/net.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(move || std::fs::read_to_string(&path).with_context(|| format!("read {path}")))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Runs a command to its end; a failure carries the command and what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    finish(command, output)
}

/// [`run`] with text on standard input.
pub(super) fn run_with_input(command: &mut Command, input: &str) -> Result<()> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that stops reading says why on its standard error, which is the better message.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    finish(command, output)
        .with_context(|| format!("with the input\n{input}"))
        .map(drop)
}

fn finish(command: &Command, output: std::process::Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout)
}

fn prefix(test: &str) -> String {
    let name: String = test
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(NAME_LIMIT)
        .collect();
    format!("fwt-{name}")
}

fn remove_leftovers(prefix: &str) {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let Some(rest) = name.strip_prefix(prefix).and_then(|r| r.strip_prefix('-')) else {
            continue;
        };
        let Some(pid) = rest.split('-').next().and_then(|p| p.parse::<u32>().ok()) else {
            continue;
        };
        if !PathBuf::from(format!("/proc/{pid}")).exists() {
            remove(&name);
        }
    }
}

fn remove(name: &str) {
    // A killed test's firewall is pinned under the namespace's name.
    let _ = std::fs::remove_dir_all(std::path::Path::new("/sys/fs/bpf").join(name));
    // The peer ends of its veth pairs go with it. Nothing better than telling can be done here.
    if let Err(error) = run(Command::new("ip").args(["netns", "del", name])) {
        eprintln!("namespace {name} is left behind: {error:#}");
    }
}
