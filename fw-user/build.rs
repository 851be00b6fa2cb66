//! Hands the BPF object to the library, which embeds it into the binary.
//!
//! `cargo xtask build` compiles `fw-ebpf` and names the object in `FWBPF_OBJECT`; the cfg
//! `fwbpf_object` is then set. Plain `cargo check`, `clippy` and `test` have neither the BPF
//! toolchain nor that variable: they get an empty file, so that everything which does not load
//! programs still compiles and runs. Either way `FWBPF_OBJECT_FILE` is a path that
//! `include_bytes!` can take. Its hash is in `FWBPF_OBJECT_HASH`: a load compares it with that of
//! the running programs, and would spend a millisecond on hashing.

use std::{env, fs, path::PathBuf};

use sha2::{Digest as _, Sha256};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=FWBPF_OBJECT");
    println!("cargo::rustc-check-cfg=cfg(fwbpf_object)");

    let embedded =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"))
            .join("fwbpf.bpf.o");
    match env::var_os("FWBPF_OBJECT").filter(|path| !path.is_empty()) {
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo::rerun-if-changed={}", object.display());
            println!("cargo::rustc-cfg=fwbpf_object");
            if let Err(error) = fs::copy(&object, &embedded) {
                panic!(
                    "FWBPF_OBJECT names {}, which cannot be copied: {error}; \
                     build it with `cargo xtask build`, or unset the variable",
                    object.display()
                );
            }
        }
        None => fs::write(&embedded, []).expect("OUT_DIR is writable"),
    }
    println!("cargo::rustc-env=FWBPF_OBJECT_FILE={}", embedded.display());
    let bytes = fs::read(&embedded).expect("it was just written");
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("cargo::rustc-env=FWBPF_OBJECT_HASH={hash}");
}
