//! The file system of the virtual machine: the two programs, the kernel's modules, and the few
//! programs that the lab makes its networks with.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

use super::{build::Built, kernels::Files, modules};
use crate::{cargo::outside, setup};

/// What the lab starts.
const PROGRAMS: [&str; 4] = ["ip", "bridge", "nsenter", "ping"];

/// Writes the archive.
pub fn write(place: &Path, files: &Files, built: &Built) -> Result<()> {
    let mut tree = Tree::default();
    tree.add("init", read(&built.init)?);
    tree.add("bin/fwbpf", read(&built.fwbpf)?);
    tree.add("fwbpf.bpf.o", read(&built.object)?);
    for name in PROGRAMS {
        let path = setup::find(name)
            .next()
            .with_context(|| format!("there is no program `{name}` on this machine"))?;
        tree.add(&format!("bin/{name}"), read(&path)?);
        for library in libraries(&path)? {
            let bytes = read(Path::new(&library))?;
            tree.add(library.trim_start_matches('/'), bytes);
        }
    }
    for (number, module) in modules::collect(&files.root)?.into_iter().enumerate() {
        tree.add(
            &format!("modules/{number:02}-{}.ko", module.name),
            module.bytes,
        );
    }
    let file = File::create(place).with_context(|| format!("cannot write {}", place.display()))?;
    tree.write(BufWriter::new(file))
        .with_context(|| format!("cannot write {}", place.display()))
}

#[derive(Default)]
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    fn add(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), bytes);
    }

    fn write(&self, mut out: impl Write) -> Result<()> {
        let mut folders: Vec<&str> = self
            .files
            .keys()
            .flat_map(|path| path.match_indices('/').map(|(end, _)| &path[..end]))
            .collect();
        folders.extend(["dev", "modules"]);
        // A folder comes before what it holds, since its name is shorter.
        folders.sort_unstable();
        folders.dedup();
        let mut number = 0;
        let mut entry = |name: &str, kind| {
            number += 1;
            Builder::new(name)
                .ino(number)
                .mode(0o755)
                .set_mode_file_type(kind)
        };
        for folder in folders {
            entry(folder, ModeFileType::Directory)
                .write(&mut out, 0)
                .finish()?;
        }
        for (path, bytes) in &self.files {
            let size = u32::try_from(bytes.len()).context("a file of more than 4 GB")?;
            let mut writer = entry(path, ModeFileType::Regular).write(&mut out, size);
            writer.write_all(bytes)?;
            writer.finish()?;
        }
        trailer(&mut out)?.flush()?;
        Ok(())
    }
}

/// The paths of the shared libraries that a program is linked with, the loader included.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = outside("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    ensure!(
        output.status.success(),
        "ldd does not understand {}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
