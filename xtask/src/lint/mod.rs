//! `cargo xtask lint`: format, clippy, the order of the storeys, the rows of the requirements, the book.

pub mod book;
pub mod evidence;
pub mod layers;
pub mod requirements;

use std::process::Command;
use std::time::Instant;

use crate::cli::LintArgs;
use crate::exit::Exit;
use crate::process::{interrupted, output_of, run_shown};
use crate::toolchain::core::{self, TARGET};
use crate::toolchain::{Step, install};
use crate::workspace::Workspace;

/// Packages without an operating system under them.
const BARE_PACKAGES: [&str; 2] = ["grange-boot", "grange"];

/// Runs all checks, also after one has failed, and says which did.
///
/// # Errors
/// `Host` when a tool is missing.
pub fn lint(workspace: &Workspace, args: &LintArgs) -> anyhow::Result<Exit> {
    let core = core::ensure(workspace)?;
    ensure_component(workspace, "fmt", "rustfmt")?;
    ensure_component(workspace, "clippy", "clippy")?;
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
        let mut cargo = workspace.cargo();
        cargo.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
        BARE_PACKAGES.iter().for_each(|package| _ = cargo.args(["--exclude", package]));
        cargo.args(["--", "-D", "warnings"]);
        let mut passed = shown(cargo)?;
        // By themselves: beside the host's crates their dependencies would be built with std, and they bring their own
        // panic handler.
        for package in BARE_PACKAGES {
            let mut cargo = workspace.cargo();
            cargo.args(["clippy", "--quiet", "--package", package, "--all-targets", "--", "-D", "warnings"]);
            passed &= shown(cargo)?;
        }
        Ok(passed)
    })?;
    check("clippy for the bare machine", &mut || {
        let mut cargo = workspace.cargo();
        cargo.args(["clippy", "--quiet", "--target", TARGET]);
        BARE_PACKAGES.iter().for_each(|package| _ = cargo.args(["--package", package]));
        core.apply(&mut cargo);
        cargo.args(["--", "-D", "warnings"]);
        let passed = shown(cargo)?;
        // What only the profile of deliberate bugs has.
        let mut cargo = workspace.cargo();
        cargo.args(["clippy", "--quiet", "--target", TARGET, "--package", "grange", "--features", "mutants"]);
        core.apply(&mut cargo);
        cargo.args(["--", "-D", "warnings"]);
        Ok(passed & shown(cargo)?)
    })?;
    check("order of the storeys", &mut || layers::check(workspace))?;
    check("rows of docs/requirements.md", &mut || requirements::check(workspace, args.open_rows))?;
    check("links and chapters of the book", &mut || book::check(workspace))?;
    if !failed.is_empty() {
        println!("lint failed: {}", failed.join("; "));
        return Ok(Exit::TestsFailed);
    }
    Ok(Exit::Passed)
}

/// Makes sure of a cargo command that comes as a component of the toolchain.
fn ensure_component(workspace: &Workspace, command: &str, component: &str) -> anyhow::Result<()> {
    if output_of(workspace.cargo().args([command, "--version"])).is_some() {
        return Ok(());
    }
    install(workspace, component, &[Step::user(&format!("rustup component add {component}"))])
}
