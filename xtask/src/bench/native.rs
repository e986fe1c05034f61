//! `cargo xtask bench --native`: the program in `native/`, a workspace of its own.
//!
//! What it is compared with is C and C++ code that nothing else here needs, so no other command builds it.

use crate::exit::{Exit, stop};
use crate::process::{output_of, run_shown};
use crate::workspace::Workspace;

/// Builds and runs it, and gives what it printed: JSON lines, then a table.
///
/// # Errors
/// [`Exit::Build`] if it cannot be built, [`Exit::TestsFailed`] if it stops before its end.
pub fn run(workspace: &Workspace) -> anyhow::Result<String> {
    let target = workspace.target.join("native");
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--locked", "--manifest-path", "native/Cargo.toml"]);
    if !run_shown(build.env("CARGO_TARGET_DIR", &target))?.success() {
        return Err(stop(Exit::Build, "the native bench did not build"));
    }
    let mut program = std::process::Command::new(target.join("release/grange-native"));
    output_of(&mut program).ok_or_else(|| stop(Exit::TestsFailed, "the native bench failed"))
}
