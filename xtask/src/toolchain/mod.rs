//! What the commands need from the machine they run on, and how it is got.
//!
//! | need | got by |
//! |---|---|
//! | a core library for the bare machine | [`core`]: the installed target, rustup, or compiled from source |
//! | QEMU with its firmware | [`emulator`]: apt |
//!
//! Nothing is installed silently: each command is printed before it runs. With `--no-install`, or where this user may
//! not install, the tool stops with the exact commands to type.

pub mod core;
pub mod emulator;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exit::{Exit, stop};
use crate::process::{output_of, run_shown};
use crate::workspace::Workspace;

/// One command line that installs something, without `sudo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Whether only root may do it.
    pub as_root: bool,
}

impl Step {
    fn new(line: &str, as_root: bool) -> Self {
        Step { words: line.split_whitespace().map(str::to_owned).collect(), as_root }
    }

    /// A step that every user may do.
    #[must_use]
    pub fn user(line: &str) -> Self {
        Step::new(line, false)
    }

    /// A step that only root may do.
    #[must_use]
    pub fn root(line: &str) -> Self {
        Step::new(line, true)
    }

    /// As one types it.
    #[must_use]
    pub fn line(&self, sudo: bool) -> String {
        let line = self.words.join(" ");
        if self.as_root && sudo { format!("sudo {line}") } else { line }
    }
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    output_of(Command::new("id").arg("-u")).as_deref() == Some("0")
}

/// The first program of that name on `PATH`; a name with a slash is taken as it is.
#[must_use]
pub fn find_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_path_buf());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs the steps that install `what`, or stops with the commands to type.
///
/// # Errors
/// With `--no-install`, without the right to install, and when a step fails: the host's trouble.
pub fn install(workspace: &Workspace, what: &str, steps: &[Step]) -> anyhow::Result<()> {
    let root = is_root();
    let needs_root = steps.iter().any(|step| step.as_root);
    let to_type = || steps.iter().map(|step| step.line(!root)).collect::<Vec<_>>().join(" && ");
    if workspace.no_install {
        return Err(stop(Exit::Host, format!("{what} is missing (--no-install). Type: {}", to_type())));
    }
    let sudo = needs_root && !root;
    if sudo && output_of(Command::new("sudo").args(["-n", "true"])).is_none() {
        return Err(stop(
            Exit::Host,
            format!(
                "{what} is missing, and this user is neither root nor has sudo without a password. Type: {}",
                to_type()
            ),
        ));
    }
    eprintln!("{what} is missing: installing it");
    for step in steps {
        let mut command = if step.as_root && sudo { Command::new("sudo") } else { Command::new(&step.words[0]) };
        if step.as_root && sudo {
            command.arg("-n").args(&step.words);
        } else {
            command.args(&step.words[1..]);
        }
        command.current_dir(&workspace.root).env("DEBIAN_FRONTEND", "noninteractive");
        if !run_shown(&mut command)?.success() {
            return Err(stop(Exit::Host, format!("`{}` failed; {what} is still missing", step.line(!root))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(no_install: bool) -> Workspace {
        Workspace {
            root: std::env::temp_dir(),
            target: std::env::temp_dir(),
            no_install,
            core: crate::cli::CoreRoute::Auto,
            verbose: false,
        }
    }

    #[test]
    fn no_install_names_every_command_and_runs_none() {
        let marker = std::env::temp_dir().join("grange-must-not-exist");
        let steps = [Step::user(&format!("touch {}", marker.display())), Step::user("true again")];
        let error = install(&workspace(true), "thing", &steps).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Host);
        assert!(error.to_string().contains("touch") && error.to_string().contains("&& true again"), "{error}");
        assert!(!marker.exists());
    }

    #[test]
    fn a_step_that_fails_stops_with_its_command() {
        let error = install(&workspace(false), "thing", &[Step::user("false now")]).unwrap_err();
        assert!(error.to_string().contains("`false now` failed"), "{error}");
    }

    #[test]
    fn root_steps_get_sudo_only_where_it_is_needed() {
        assert_eq!(Step::root("apt-get update").line(true), "sudo apt-get update");
        assert_eq!(Step::root("apt-get update").line(false), "apt-get update");
        assert_eq!(Step::user("rustup target add x").line(true), "rustup target add x");
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(find_program(Path::new("sh")).is_some());
        assert!(find_program(Path::new("/bin/sh")).is_some());
        assert!(find_program(Path::new("grange-no-such-program")).is_none());
    }
}
