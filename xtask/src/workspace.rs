//! Where things lie: the workspace root, the target directory, and what the global options say.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::{CoreRoute, Global};
use crate::exit::{Exit, stop};

/// The checkout this tool belongs to, with the global options of this invocation.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The folder with the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// Where cargo puts what it builds: `CARGO_TARGET_DIR`, else `target/`.
    pub target: PathBuf,
    /// Stop with the commands to type instead of installing anything.
    pub no_install: bool,
    /// How the bare-metal core is to be had.
    pub core: CoreRoute,
    /// Print more: each child process that is started.
    pub verbose: bool,
}

impl Workspace {
    /// Finds the checkout: the one that cargo says this tool was started for, else the one it was built in.
    ///
    /// # Errors
    /// When that folder is not there any more.
    pub fn find(global: &Global) -> anyhow::Result<Self> {
        let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir.parent().unwrap_or(&manifest_dir).to_path_buf();
        if !root.join("kernel/Cargo.toml").is_file() {
            return Err(stop(
                Exit::Host,
                format!("no Grange checkout in {}: start this as `cargo xtask`", root.display()),
            ));
        }
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => std::path::absolute(PathBuf::from(dir)).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Workspace {
            root,
            target,
            no_install: global.no_install,
            core: global.core_route(),
            verbose: global.verbose,
        })
    }

    /// The folder that holds one folder a run.
    #[must_use]
    pub fn runs(&self) -> PathBuf {
        self.target.join("grange/runs")
    }

    /// The folder that holds one folder a build that some run failed with.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.target.join("grange/kernels")
    }

    /// `path` as seen from the root, for messages.
    #[must_use]
    pub fn short<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// The cargo that started this tool, so that the toolchain stays the same.
    #[must_use]
    pub fn cargo(&self) -> std::process::Command {
        let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        // What cargo told this tool about itself is not meant for the crates that it builds now.
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_PKG_NAME").env("CARGO_TARGET_DIR", &self.target);
        command
    }
}

#[cfg(test)]
impl Workspace {
    /// One whose target directory is `target`, and which installs nothing.
    pub(crate) fn for_tests(target: &Path) -> Workspace {
        Workspace {
            root: target.to_path_buf(),
            target: target.to_path_buf(),
            no_install: true,
            core: CoreRoute::Auto,
            verbose: false,
        }
    }
}
