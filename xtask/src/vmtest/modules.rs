//! The kernel modules that the lab and clsact need, and those that they need in turn.
//!
//! Debian's packages come without `modules.dep`, which `depmod` makes at installation; the same
//! facts are in each module's section `.modinfo`, as `depends=one,other`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::cargo::outside;

/// What the lab's networks and clsact filters are made of, what has bridges hand over what they switch, and SCTP,
/// whose checksum is a module of its own before Linux 6.15; not every kernel has them as modules.
const WANTED: [&str; 8] = [
    "veth",
    "bridge",
    "br_netfilter",
    "sch_ingress",
    "cls_bpf",
    "tun",
    "crc32c_generic",
    "sctp",
];

/// A module, uncompressed.
pub struct Module {
    /// Its name.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// The modules below `root`, each after those that it needs.
pub fn collect(root: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find(root, &mut files)?;
    let mut modules = Vec::new();
    for name in WANTED {
        add(name, &files, &mut modules)?;
    }
    Ok(modules)
}

fn add(name: &str, files: &HashMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    let Some(path) = files.get(name) else {
        // It is built in.
        return Ok(());
    };
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let bytes = read(path)?;
    for needed in depends(&bytes) {
        add(&needed, files, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

/// All modules by name, in which `-` and `_` are the same.
fn find(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, files)?;
        } else if let Some((name, "" | ".xz")) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.split_once(".ko"))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = outside("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot run xz")?;
    ensure!(
        output.status.success(),
        "xz cannot unpack {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The names after `depends=`, which begins a string of its own.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(start) = module
        .windows(FIELD.len())
        .position(|window| window == FIELD)
    else {
        return Vec::new();
    };
    let value = module[start + FIELD.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("lib/modules/6.1/kernel/net");
        fs::create_dir_all(&folder).unwrap();
        for (file, info) in [
            (
                "bridge.ko",
                &b"ELF\0license=GPL\0depends=stp,llc\0intree=Y\0"[..],
            ),
            ("stp.ko", b"\0depends=llc\0"),
            ("llc.ko", b"\0depends=\0"),
            ("veth.ko", b"\0license=GPL\0"),
            ("unwanted.ko", b"\0depends=llc\0"),
        ] {
            fs::write(folder.join(file), info).unwrap();
        }
        let modules = collect(root.path()).unwrap();
        let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["veth", "llc", "stp", "bridge"]);
    }
}
