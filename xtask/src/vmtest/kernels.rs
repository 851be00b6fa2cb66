//! Debian's kernels: fetched with apt from the mirror that this machine uses, under a
//! configuration of their own, and unpacked. Nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::{cargo::outside, progress::Progress};

/// A kernel of Debian's, for cloud machines: the drivers that they lack are no loss here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// Debian 12, bookworm.
    #[value(name = "6.1")]
    Bookworm,
    /// Debian 13, trixie; also bookworm's backport.
    #[value(name = "6.12")]
    Trixie,
    /// Whatever unstable has.
    #[value(name = "newest")]
    Sid,
}

impl Kernel {
    /// All, the oldest first.
    pub const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "6.1",
            Self::Trixie => "6.12",
            Self::Sid => "newest",
        }
    }

    /// Debian's release that has it.
    pub fn release(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// An unpacked kernel.
pub struct Files {
    /// The image that boots.
    pub image: PathBuf,
    /// Where its modules are, somewhere below.
    pub root: PathBuf,
}

/// The package that depends on a release's current kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Debian's own keys, from its package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Fetches and unpacks the kernel, unless that was done before. With `update`, or for the first
/// time, the network is needed.
pub fn fetch(progress: &Progress, kernel: Kernel, folder: &Path, update: bool) -> Result<Files> {
    let root = folder.join("root");
    let present = find_image(&root)?;
    match present {
        Some(image) if !update => Ok(Files { image, root }),
        present => match download(progress, kernel, folder, &root) {
            Ok(()) => {
                let image = find_image(&root)?.context("its packages hold no vmlinuz")?;
                Ok(Files { image, root })
            }
            Err(error) => match present {
                Some(image) => {
                    progress.say(&format!(
                        "no newer kernel {} can be had, the one from before will do: {error:#}",
                        kernel.name()
                    ));
                    Ok(Files { image, root })
                }
                None => Err(error),
            },
        },
    }
}

fn download(progress: &Progress, kernel: Kernel, folder: &Path, root: &Path) -> Result<()> {
    let apt = Apt::new(&folder.join("apt"), kernel.release(), &mirror(progress)?)?;
    progress.run(
        &format!("asking the mirror for the packages of {}", kernel.release()),
        apt.command("apt-get").arg("update"),
    )?;
    let image = apt
        .depends(META_PACKAGE)?
        .into_iter()
        .find(|name| {
            name.strip_prefix("linux-image-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .with_context(|| format!("{META_PACKAGE} depends on no linux-image-<version>"))?;
    // Since 6.17 the image's package is empty and needs these two.
    let mut packages: Vec<String> = apt
        .depends(&image)?
        .into_iter()
        .filter(|name| name.starts_with("linux-modules-") || name.starts_with("linux-binary-"))
        .collect();
    packages.push(image);

    let new = folder.join("root.new");
    let debs = folder.join("debs");
    for place in [&new, &debs] {
        if place.exists() {
            fs::remove_dir_all(place)
                .with_context(|| format!("cannot remove {}", place.display()))?;
        }
        fs::create_dir_all(place).with_context(|| format!("cannot create {}", place.display()))?;
    }
    let size: u64 = packages
        .iter()
        .map(|name| apt.size(name))
        .sum::<Result<_>>()?;
    progress.run(
        &format!(
            "downloading {} ({:.1} MB)",
            packages.join(", "),
            size as f64 / 1e6
        ),
        apt.command("apt-get")
            .arg("download")
            .args(&packages)
            .current_dir(&debs),
    )?;
    for deb in fs::read_dir(&debs)? {
        let deb = deb?.path();
        progress.run(
            &format!("unpacking {}", deb.display()),
            outside("dpkg-deb").arg("-x").arg(&deb).arg(&new),
        )?;
    }
    fs::remove_dir_all(&debs)?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::rename(&new, root).with_context(|| format!("cannot make {}", root.display()))
}

/// apt with lists and sources of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(folder: &Path, release: &str, mirror: &str) -> Result<Self> {
        let lists = folder.join("lists");
        let cache = folder.join("cache");
        for place in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&place)
                .with_context(|| format!("cannot create {}", place.display()))?;
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is not there: install Debian's package debian-archive-keyring"
        );
        let sources = folder.join("sources.list");
        fs::write(
            &sources,
            format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {release} main\n"),
        )
        .with_context(|| format!("cannot write {}", sources.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::lists={}", lists.display()),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={}", cache.display()),
            "Acquire::Languages=none".into(),
            // The unprivileged user that apt downloads as may not be able to enter our folder.
            "APT::Sandbox::User=root".into(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
        Ok(Self { options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = outside(program);
        command.args(&self.options);
        command
    }

    /// A field of a package's record.
    fn field(&self, package: &str, field: &str) -> Result<String> {
        let record = text(self.command("apt-cache").args(["show", package]))?;
        record
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(str::to_owned)
            .with_context(|| format!("the package {package} has no field {field}"))
    }

    /// The names of the packages that a package depends on, without versions.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let field = self.field(package, "Depends")?;
        Ok(field
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    fn size(&self, package: &str) -> Result<u64> {
        let size = self.field(package, "Size")?;
        size.parse()
            .with_context(|| format!("the package {package} has the size {size:?}"))
    }
}

/// Where this machine gets Debian from.
fn mirror(progress: &Progress) -> Result<String> {
    if let Some(mirror) = known_mirror()? {
        return Ok(mirror);
    }
    // Without lists apt does not know whose packages a mirror has.
    progress.run(
        "asking Debian's mirrors for their package lists",
        outside("apt-get").arg("update"),
    )?;
    match known_mirror()? {
        Some(mirror) => Ok(mirror),
        None => bail!("none of this machine's apt sources is Debian's main archive"),
    }
}

fn known_mirror() -> Result<Option<String>> {
    let targets = text(outside("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    Ok(targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian "))
        .map(str::to_owned))
}

fn text(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `boot/vmlinuz-<version>`, or since 6.17 `usr/lib/modules/<version>/vmlinuz`.
fn find_image(root: &Path) -> Result<Option<PathBuf>> {
    let mut images = Vec::new();
    for folder in ["boot", "usr/lib/modules"] {
        let folder = root.join(folder);
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let image = path.join("vmlinuz");
            if image.is_file() {
                images.push(image);
            } else if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
            {
                images.push(path);
            }
        }
    }
    Ok(images.into_iter().next())
}
