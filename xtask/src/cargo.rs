//! Cargo's own processes, free of what the `cargo run` around xtask has put into the environment.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// The workspace's root: where it is now, as cargo tells whom it runs, rather than where it was
/// when xtask was compiled.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        package
            .parent()
            .expect("xtask lies in a folder of the workspace")
            .to_owned()
    });
    &ROOT
}

/// The workspace's target directory, `CARGO_TARGET_DIR` respected.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs xtask, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    scrub(&mut command);
    command
}

/// Another program, as if it had been started from a shell rather than from `cargo run`:
/// with rustup's choice of toolchain left in place, `rustc +nightly` would not be nightly.
pub fn outside(program: &str) -> Command {
    let mut command = Command::new(program);
    scrub(&mut command);
    for variable in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC"] {
        command.env_remove(variable);
    }
    command
}

fn scrub(command: &mut Command) {
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&variable);
        }
    }
}
