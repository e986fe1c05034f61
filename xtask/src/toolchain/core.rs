//! A core library for x86_64-unknown-none.
//!
//! In this order: the target is installed; `rustup target add`; as a last resort core and alloc are compiled from the
//! toolchain's own source (`-Zbuild-std`, which on a stable compiler needs `RUSTC_BOOTSTRAP=1`). The crates themselves
//! use stable Rust only, whichever way core comes.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Step, find_program, install};
use crate::cli::CoreRoute;
use crate::exit::{Exit, stop};
use crate::process::output_of;
use crate::workspace::Workspace;

/// The target of the kernel and the loader.
pub const TARGET: &str = "x86_64-unknown-none";

/// The core that was found or made sure of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Comes with the toolchain.
    Installed,
    /// Is compiled along with the kernel.
    BuildStd,
}

impl Core {
    /// What cargo has to be told to use it.
    pub fn apply(self, cargo: &mut Command) {
        if self == Core::BuildStd {
            cargo.env("RUSTC_BOOTSTRAP", "1");
            cargo.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
        }
    }
}

fn rustc(workspace: &Workspace, args: &[&str]) -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    output_of(Command::new(rustc).args(args).current_dir(&workspace.root))
}

/// Whether the toolchain in use has a core for the target.
#[must_use]
pub fn target_installed(workspace: &Workspace) -> bool {
    let Some(dir) = rustc(workspace, &["--print", "target-libdir", "--target", TARGET]) else {
        return false;
    };
    let Ok(files) = Path::new(&dir).read_dir() else {
        return false;
    };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Where the toolchain keeps the source of core, if it does.
#[must_use]
pub fn source(workspace: &Workspace) -> Option<PathBuf> {
    let sysroot = rustc(workspace, &["--print", "sysroot"])?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library");
    source.join("core/Cargo.toml").is_file().then_some(source)
}

/// The commands that would give a core the usual way.
#[must_use]
pub fn steps() -> [Step; 1] {
    [Step::user(&format!("rustup target add {TARGET}"))]
}

/// Makes sure of a core, by the route the user chose.
///
/// # Errors
/// When there is none and none can be had: the host's trouble, with what to type.
pub fn ensure(workspace: &Workspace) -> anyhow::Result<Core> {
    match workspace.core {
        CoreRoute::Auto if target_installed(workspace) => Ok(Core::Installed),
        CoreRoute::Auto => {
            if find_program(Path::new("rustup")).is_some() {
                match install(workspace, "the Rust target x86_64-unknown-none", &steps()) {
                    Ok(()) if target_installed(workspace) => return Ok(Core::Installed),
                    Ok(()) => {}
                    Err(error) if workspace.no_install => return Err(error),
                    Err(error) => eprintln!("{error}"),
                }
            }
            eprintln!(
                "rustup could not add the target: core and alloc will be compiled from source (--core build-std)"
            );
            ensure_source(workspace)
        }
        CoreRoute::Target => {
            if !target_installed(workspace) {
                install(workspace, "the Rust target x86_64-unknown-none", &steps())?;
            }
            Ok(Core::Installed)
        }
        CoreRoute::BuildStd => ensure_source(workspace),
    }
}

fn ensure_source(workspace: &Workspace) -> anyhow::Result<Core> {
    if source(workspace).is_none() {
        if find_program(Path::new("rustup")).is_none() {
            return Err(stop(
                Exit::Host,
                "no core library for x86_64-unknown-none, no rustup to add it and no source to compile it from. \
                 Type: curl https://sh.rustup.rs -sSf | sh -s -- -y -t x86_64-unknown-none",
            ));
        }
        install(workspace, "the source of core", &[Step::user("rustup component add rust-src")])?;
    }
    Ok(Core::BuildStd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_build_std_needs_the_bootstrap_variable() {
        let mut cargo = Command::new("cargo");
        Core::Installed.apply(&mut cargo);
        assert_eq!((cargo.get_args().count(), cargo.get_envs().count()), (0, 0));
        Core::BuildStd.apply(&mut cargo);
        assert_eq!((cargo.get_args().count(), cargo.get_envs().count()), (2, 1));
    }
}
