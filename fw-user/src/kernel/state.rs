//! The state directory: every pin of one firewall, and the few facts that go with them.
//!
//! ```text
//! POLICY, COUNTERS, ...        the maps, by name (fw_common::abi::maps)
//! prog_fwbpf_ingress, ...      the programs
//! link_<ifindex>_ingress, ...  the attachments: ingress, egress, xdp
//! @object, @netns, @xdp, ...   facts: symbolic links whose target is the text
//! ```
//! A bpffs takes no regular files, but it does take symbolic links, which are replaced atomically
//! by rename. It refuses names with a dot, so attachments are named by index, not by interface.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::statfs;
use sha2::{Digest as _, Sha256};

/// Where the firewall is pinned unless the user says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf/fwbpf";

/// `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: rustix::fs::FsWord = 0xcafe_4a11;

/// A state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

/// A fact kept beside the pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// SHA-256 of the BPF object that the programs came from.
    Object,
    /// The network namespace that the attachments are in.
    Netns,
    /// The `--xdp` that loads asked for, see [`StateDir::term`].
    Xdp,
    /// The `--fast-path` that loads asked for, likewise.
    FastPath,
    /// Which generation is on trial, until when, and who watches over that.
    Trial,
}

impl Fact {
    const ALL: [Self; 5] = [
        Self::Object,
        Self::Netns,
        Self::Xdp,
        Self::FastPath,
        Self::Trial,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Object => "@object",
            Self::Netns => "@netns",
            Self::Xdp => "@xdp",
            Self::FastPath => "@fast_path",
            Self::Trial => "@trial",
        }
    }
}

/// The exclusive right to change one state directory; released on drop, or when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    /// Whether somebody else had it, so that things may have changed meanwhile.
    pub waited: bool,
}

/// That the last flip is over: no program runs under the policy that it replaced.
#[derive(Debug)]
pub struct Settled(File);

impl Settled {
    /// For a policy in no state directory: a file that is locked until then.
    pub fn by(file: File) -> Self {
        Self(file)
    }
}

impl AsFd for Settled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl StateDir {
    /// Names a state directory; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether there is anything of a firewall here.
    pub fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Makes the directory, and mounts a bpffs first if its place is the usual mount point and
    /// none is there.
    pub fn create(&self) -> Result<()> {
        let parent = self.0.parent().unwrap_or(Path::new("/"));
        if !is_bpffs(parent) {
            mount_bpffs(parent)?;
        }
        match fs::create_dir(&self.0) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot create {}", self.0.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes the lock, waiting for a while if another `fwbpf` has it.
    pub fn lock(&self) -> Result<Lock> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let (file, path) = self.lock_file("lock")?;
        let started = Instant::now();
        let mut waited = false;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    return Ok(Lock {
                        _file: file,
                        waited,
                    });
                }
                Err(fs::TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                    waited = true;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(fs::TryLockError::WouldBlock) => bail!(
                    "another fwbpf has been changing {} for {} seconds (lock {}); \
                     find it with `fuser {}`",
                    self.0.display(),
                    PATIENCE.as_secs(),
                    path.display(),
                    path.display(),
                ),
                Err(fs::TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    }

    /// Waits until no program runs under the policy before the running one: a few milliseconds
    /// after a flip, as a rule no time at all. The process that flips next keeps what this
    /// returns for as long as its own flip takes.
    pub fn settled(&self, _lock: &Lock) -> Result<Settled> {
        let (file, path) = self.lock_file("flip")?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Settled(file))
    }

    /// A file to lock. It is outside the bpffs, which has no regular files, and never deleted: a
    /// second process could hold a lock on the deleted file while a third locks its successor.
    fn lock_file(&self, extension: &str) -> Result<(File, PathBuf)> {
        let directory = Path::new("/run/fwbpf");
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let digest = Sha256::digest(self.0.as_os_str().as_encoded_bytes());
        let path = directory.join(format!("{}.{extension}", hex(&digest[..8])));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        Ok((file, path))
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(format!("prog_{name}"))
    }

    /// The pin of an attachment.
    pub fn link(&self, interface: u32, hook: &str) -> PathBuf {
        self.0.join(format!("link_{interface}_{hook}"))
    }

    /// All pinned attachments: interface index, hook, path.
    pub fn links(&self) -> Result<Vec<(u32, String, PathBuf)>> {
        let mut links = Vec::new();
        for (name, path) in self.entries()? {
            let parts = name
                .strip_prefix("link_")
                .and_then(|rest| rest.split_once('_'))
                .and_then(|(index, hook)| Some((index.parse().ok()?, hook.to_owned())));
            if let Some((index, hook)) = parts {
                links.push((index, hook, path));
            }
        }
        links.sort();
        Ok(links)
    }

    /// Reads a fact.
    pub fn fact(&self, fact: Fact) -> Option<String> {
        fs::read_link(self.0.join(fact.name()))
            .ok()
            .and_then(|target| target.into_os_string().into_string().ok())
    }

    /// Writes a fact, replacing the old text in one step.
    pub fn set_fact(&self, fact: Fact, text: &str) -> Result<()> {
        let path = self.0.join(fact.name());
        let new = self.0.join(format!("{}_new", fact.name()));
        remove_if_present(&new)?;
        symlink(text, &new)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the load of a generation asked for.
    pub fn term(&self, fact: Fact, generation: u32) -> Option<String> {
        let text = self.fact(fact)?;
        let words: Vec<&str> = text.split(' ').collect();
        if let [word] = words[..] {
            // As versions noted it that knew of one load only.
            return Some(word.to_owned());
        }
        words
            .chunks_exact(2)
            .find(|pair| pair[0].parse() == Ok(generation))
            .map(|pair| pair[1].to_owned())
    }

    /// Notes before the flip what the next generation's load asks for, and keeps what that of the running
    /// one did: whichever of them runs after a load that dies, what is noted of it is its own.
    pub fn set_term(&self, fact: Fact, running: Option<u32>, next: u32, word: &str) -> Result<()> {
        let kept = running
            .and_then(|running| Some(format!("{running} {} ", self.term(fact, running)?)))
            .unwrap_or_default();
        self.set_fact(fact, &format!("{kept}{next} {word}"))
    }

    /// Removes every pin of ours, and the directory. The attachments should be gone already.
    pub fn remove(&self) -> Result<()> {
        self.empty()?;
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.0.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes every pin of ours.
    pub fn empty(&self) -> Result<()> {
        // Whoever looks meanwhile, or after a process that dies here, finds nothing loaded.
        remove_if_present(&self.map(fw_common::abi::maps::POLICY))?;
        for (name, path) in self.entries()? {
            if is_ours(&name) {
                remove_if_present(&path)?;
            }
        }
        Ok(())
    }

    /// Removes a fact.
    pub fn forget_fact(&self, fact: Fact) -> Result<()> {
        remove_if_present(&self.0.join(fact.name()))
    }

    /// What is in the directory that this version does not know, so must not touch.
    pub fn strangers(&self) -> Result<Vec<String>> {
        Ok(self
            .entries()?
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !is_ours(name))
            .collect())
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot list {}", self.0.display()));
            }
        };
        entries
            .map(|entry| {
                let entry = entry?;
                Ok((
                    entry.file_name().to_string_lossy().into_owned(),
                    entry.path(),
                ))
            })
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("cannot list {}", self.0.display()))
    }
}

/// Names the calling thread's network namespace, as `readlink /proc/self/ns/net` would.
pub fn current_netns() -> Result<String> {
    let path = "/proc/thread-self/ns/net";
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {path}"))?;
    Ok(format!("net:[{}]", metadata.ino()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a file; one that is not there is as good as removed.
pub fn remove_if_present(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_ours(name: &str) -> bool {
    use fw_common::abi::maps;
    let map = [
        maps::ACTIVE,
        maps::HINTS,
        maps::HINTED,
        maps::SHORTCUTS,
        maps::NEAR_PAGES,
        maps::XDP_DEVICES,
        maps::POLICY,
        maps::COUNTERS,
        maps::DEVICES,
        maps::NEAR_DEVICES,
        maps::LOCAL,
        maps::FLOWS4,
        maps::FLOWS6,
        maps::EMBRYOS4,
        maps::EMBRYOS6,
        maps::ANSWERED,
        maps::FRAGMENTS,
        maps::STATS,
        maps::EVENTS,
        maps::SETS,
        maps::SET_INFO,
        maps::LISTS,
    ]
    .contains(&name);
    let fact = Fact::ALL
        .iter()
        .any(|fact| name.strip_suffix("_new").unwrap_or(name) == fact.name());
    map || fact || name.starts_with("prog_") || name.starts_with("link_")
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

fn mount_bpffs(place: &Path) -> Result<()> {
    use rustix::mount::{MountFlags, mount};
    if place != Path::new("/sys/fs/bpf") {
        bail!(
            "{} is not in a bpffs; mount one there with `mount -t bpf bpf {}`, \
             or choose another directory with --state-dir",
            place.display(),
            place.display()
        );
    }
    mount("bpf", place, "bpf", MountFlags::empty(), None)
        .with_context(|| format!("cannot mount a bpffs at {}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        for name in [
            "POLICY",
            "prog_fwbpf_xdp",
            "link_3_egress",
            "@netns",
            "@netns_new",
        ] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["maps", "policy", "netns", "@other"] {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn the_policy_is_the_first_pin_to_go() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        // A directory cannot be removed like a pin, so the removal ends there.
        fs::create_dir(state.map("POLICY")).unwrap();
        for name in ["ACTIVE", "SETS", "prog_fwbpf_xdp", "@netns"] {
            fs::write(state.map(name), "").unwrap();
        }
        assert!(state.remove().is_err());
        assert_eq!(state.entries().unwrap().len(), 5);
    }

    #[test]
    fn terms_are_noted_for_the_running_generation_and_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let term = |generation| state.term(Fact::Xdp, generation);
        assert_eq!(term(1), None);
        state.set_term(Fact::Xdp, None, 1, "off").unwrap();
        state.set_term(Fact::Xdp, Some(1), 2, "native").unwrap();
        assert_eq!(term(1).as_deref(), Some("off"));
        assert_eq!(term(2).as_deref(), Some("native"));
        // The second one's load died before the flip.
        state.set_term(Fact::Xdp, Some(1), 2, "auto").unwrap();
        assert_eq!(term(1).as_deref(), Some("off"));
        assert_eq!(term(2).as_deref(), Some("auto"));
        state.set_fact(Fact::Xdp, "native").unwrap();
        assert_eq!(term(7).as_deref(), Some("native"));
    }

    #[test]
    fn the_namespace_has_a_name() {
        assert!(current_netns().unwrap().starts_with("net:["));
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
    }
}
