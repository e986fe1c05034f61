//! `cargo xtask bench native`: the program in `native/`, a workspace of its own.
//!
//! What it is compared with is C and C++ code that nothing else here needs, so no other command builds it.

use crate::exit::{Exit, stop};
use crate::process::{output_of, run_shown};
use crate::workspace::Workspace;

use super::record::Native;

/// Builds and runs it, and gives its figures.
///
/// # Errors
/// [`Exit::Build`] if it cannot be built, [`Exit::TestsFailed`] if it stops before its end.
pub fn run(workspace: &Workspace) -> anyhow::Result<Vec<Native>> {
    let target = workspace.target.join("native");
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--locked", "--manifest-path", "native/Cargo.toml"]);
    if !run_shown(build.env("CARGO_TARGET_DIR", &target))?.success() {
        return Err(stop(Exit::Build, "the native bench did not build"));
    }
    let mut program = std::process::Command::new(target.join("release/grange-native"));
    let printed = output_of(&mut program).ok_or_else(|| stop(Exit::TestsFailed, "the native bench failed"))?;
    let figures = figures(&printed);
    if figures.is_empty() {
        return Err(stop(Exit::Incomplete, "the native bench printed no figure"));
    }
    Ok(figures)
}

/// The JSON lines among what it printed.
fn figures(printed: &str) -> Vec<Native> {
    printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_json_line_is_a_figure_and_the_rest_is_for_people() {
        let printed = "{\"native\":\"pair\",\"threads\":2,\"by\":\"seize\",\"ns\":7.25}\nns threads grange\n";
        let figure = Native { native: "pair".to_owned(), threads: 2, by: "seize".to_owned(), ns: 7.25 };
        assert_eq!(figures(printed), [figure]);
    }
}
