//! `cargo xtask ci`: what the project's CI runs, step by step, each with its command and its time.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli::{CiArgs, CiStep};
use crate::exit::{Exit, stop};
use crate::process::{interrupted, run_shown};
use crate::toolchain::{core, emulator};
use crate::workspace::Workspace;

/// Runs the steps, all of them also when one fails, tests last so that their counts are the last line.
///
/// # Errors
/// `Host` when something is missing and cannot be installed.
pub fn ci(workspace: &Workspace, args: &CiArgs) -> anyhow::Result<Exit> {
    core::ensure(workspace)?;
    emulator::ensure(workspace, "qemu-system-x86_64".as_ref())?;
    let this = std::env::current_exe().map_err(|error| stop(Exit::Host, format!("who am I: {error}")))?;
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut worst = Exit::Passed;
    for (step, words) in [(CiStep::Lint, "lint"), (CiStep::Test, "test")] {
        if args.step.is_some_and(|only| only != step) || interrupted() {
            continue;
        }
        if step == CiStep::Test {
            times.iter().for_each(|(step, time)| println!("ci: {step} took {:.1} s", time.as_secs_f64()));
        }
        let started = Instant::now();
        let mut command = Command::new(&this);
        command.arg(words).current_dir(&workspace.root);
        if workspace.no_install {
            command.arg("--no-install");
        }
        let status = run_shown(&mut command)?;
        times.push((words, started.elapsed()));
        worst = worst.worst(exit_of(status.code()));
        if step != CiStep::Test && !status.success() {
            eprintln!("ci: {words} failed");
        }
    }
    let told: Vec<String> = times.iter().map(|(step, time)| format!("{step} {:.1} s", time.as_secs_f64())).collect();
    eprintln!("ci: {}: {}", told.join(", "), worst.word());
    Ok(worst)
}

/// The end that a status of this tool stands for.
fn exit_of(code: Option<i32>) -> Exit {
    const ALL: [Exit; 8] = [
        Exit::Passed,
        Exit::TestsFailed,
        Exit::Usage,
        Exit::Panicked,
        Exit::Hung,
        Exit::Incomplete,
        Exit::Build,
        Exit::Interrupted,
    ];
    ALL.into_iter().find(|exit| code == Some(exit.code().into())).unwrap_or(Exit::Host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steps_status_is_read_back_and_a_strange_one_is_the_hosts_trouble() {
        assert_eq!(exit_of(Some(0)), Exit::Passed);
        assert_eq!(exit_of(Some(4)), Exit::Hung);
        assert_eq!(exit_of(Some(130)), Exit::Interrupted);
        assert_eq!(exit_of(Some(101)), Exit::Host);
        assert_eq!(exit_of(None), Exit::Host);
    }
}
