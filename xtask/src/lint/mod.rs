//! `cargo xtask lint`: format, clippy, the order of the storeys, the requirements' tests.

pub mod layers;
pub mod requirements;

use std::process::Command;
use std::time::Instant;

use crate::exit::Exit;
use crate::process::{interrupted, run_shown};
use crate::toolchain::core::{self, TARGET};
use crate::workspace::Workspace;

/// Packages without an operating system under them.
const BARE_PACKAGES: [&str; 2] = ["grange-boot", "grange"];

/// Runs all checks, also after one has failed, and says which did.
///
/// # Errors
/// `Host` when a tool is missing.
pub fn lint(workspace: &Workspace) -> anyhow::Result<Exit> {
    let core = core::ensure(workspace)?;
    let mut failed = Vec::new();
    let mut check = |name: &'static str, run: &mut dyn FnMut() -> anyhow::Result<bool>| -> anyhow::Result<()> {
        let started = Instant::now();
        let passed = !interrupted() && run()?;
        println!("{} lint: {name}, {:.1} s", if passed { "ok  " } else { "FAIL" }, started.elapsed().as_secs_f64());
        if !passed {
            failed.push(name);
        }
        Ok(())
    };
    let shown = |mut command: Command| -> anyhow::Result<bool> { Ok(run_shown(&mut command)?.success()) };
    check("format", &mut || {
        let mut cargo = workspace.cargo();
        cargo.args(["fmt", "--all", "--check"]);
        shown(cargo)
    })?;
    check("clippy on the host", &mut || {
        // The two bare-metal binaries have no test harness: --all-targets is for the others.
        let mut cargo = workspace.cargo();
        cargo.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
        BARE_PACKAGES.iter().for_each(|package| _ = cargo.args(["--exclude", package]));
        cargo.args(["--", "-D", "warnings"]);
        shown(cargo)
    })?;
    check("clippy for the bare machine", &mut || {
        let mut cargo = workspace.cargo();
        cargo.args(["clippy", "--quiet", "--target", TARGET]);
        BARE_PACKAGES.iter().for_each(|package| _ = cargo.args(["--package", package]));
        core.apply(&mut cargo);
        cargo.args(["--", "-D", "warnings"]);
        shown(cargo)
    })?;
    check("order of the storeys", &mut || layers::check(workspace))?;
    check("tests named in docs/requirements.md", &mut || requirements::check(workspace))?;
    if !failed.is_empty() {
        println!("lint failed: {}", failed.join("; "));
        return Ok(Exit::TestsFailed);
    }
    Ok(Exit::Passed)
}
