//! The folder that keeps what a run left: `target/grange/runs/<utc>-<command>-<id>/`, with the symlink `latest`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::exit::usage;
use crate::process::output_of;
use crate::workspace::Workspace;

/// How many runs are named where a beginning stands for several.
const SHOWN: usize = 5;

/// One run's folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    started: Instant,
    /// `events.jsonl`, appended to line by line. Protects the file's order; nests in nothing.
    events: Mutex<fs::File>,
}

impl RunDir {
    /// Makes the folder, points `latest` at it and writes `run.json`.
    ///
    /// # Errors
    /// When the disk does not let it: the host's trouble.
    pub fn create(workspace: &Workspace, command: &str) -> anyhow::Result<RunDir> {
        let runs = workspace.runs();
        let path = fresh(&runs, command)?;
        let link = runs.join("latest");
        let temporary = runs.join(format!(".latest-{}", std::process::id()));
        // A link that cannot be set (another run sets it at this moment) is no reason not to run.
        let _ = fs::remove_file(&temporary);
        if std::os::unix::fs::symlink(path.file_name().unwrap_or_default(), &temporary).is_ok() {
            let _ = fs::rename(&temporary, &link);
        }
        RunDir::at(path)
    }

    fn at(path: PathBuf) -> anyhow::Result<RunDir> {
        let events = fs::File::create(path.join("events.jsonl")).with_context(|| path.display().to_string())?;
        Ok(RunDir { path, started: Instant::now(), events: Mutex::new(events) })
    }

    /// A folder inside for a part of the run that is a run in itself.
    ///
    /// # Errors
    /// When the disk does not let it.
    pub fn part(&self, name: &str) -> anyhow::Result<RunDir> {
        RunDir::at(self.sub(name)?)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long ago the run began.
    #[must_use]
    pub fn age(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// A folder inside for one boot.
    ///
    /// # Errors
    /// When the disk does not let it.
    pub fn sub(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Writes a file of the folder.
    ///
    /// # Errors
    /// When the disk does not let it.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<()> {
        write(&self.path.join(name), content)
    }

    /// Writes `run.json`: all that is needed to know what ran, on what. Gives what it wrote.
    ///
    /// # Errors
    /// When the disk does not let it.
    pub fn describe(&self, workspace: &Workspace, command: &str, more: &Value) -> anyhow::Result<Value> {
        let mut about = json!({
            "v": 1,
            "command": command,
            "argv": std::env::args().collect::<Vec<_>>(),
            "cwd": std::env::current_dir().ok(),
            "pid": std::process::id(),
            "utc": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            "commit": git(workspace, &["rev-parse", "HEAD"]),
            "changed": is_changed(workspace),
            "rustc": output_of(Command::new("rustc").arg("--version").current_dir(&workspace.root)),
            "host_cores": std::thread::available_parallelism().map_or(0, usize::from),
        });
        if let (Some(about), Some(more)) = (about.as_object_mut(), more.as_object()) {
            about.extend(more.clone());
        }
        self.write("run.json", &format!("{about:#}\n"))?;
        Ok(about)
    }

    /// Adds a line to `events.jsonl`. One that cannot be written is left out: the results do not depend on it.
    pub fn event(&self, kind: &str, more: &Value) {
        use std::io::Write as _;
        let mut event = json!({ "t": (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3, "event": kind });
        if let (Some(event), Some(more)) = (event.as_object_mut(), more.as_object()) {
            event.extend(more.clone());
        }
        if let Ok(mut file) = self.events.lock() {
            let _ = writeln!(file, "{event}");
        }
    }
}

fn git(workspace: &Workspace, args: &[&str]) -> Option<String> {
    output_of(Command::new("git").args(args).current_dir(&workspace.root))
}

/// Whether files of the checkout were changed. The ledgers grow by the runs themselves.
fn is_changed(workspace: &Workspace) -> Option<bool> {
    let ledgers = [":!docs/soak.csv", ":!docs/torture.csv"];
    let words = ["status", "--porcelain", "--untracked-files=no", "--", "."];
    git(workspace, &[&words[..], &ledgers].concat()).map(|text| !text.is_empty())
}

/// What is checked out: the beginning of the commit, with a `+` if files were changed.
#[must_use]
pub fn commit(workspace: &Workspace) -> String {
    let commit = git(workspace, &["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    commit + if is_changed(workspace) == Some(true) { "+" } else { "" }
}

/// The folder of a run that the user names: `latest`, a path, or how the folder's name or its id begins.
///
/// # Errors
/// `Usage`, in one line, when there is none or more than one.
pub fn find(workspace: &Workspace, text: &str) -> anyhow::Result<PathBuf> {
    let runs = workspace.runs();
    for path in [runs.join(text), PathBuf::from(text)] {
        if !text.is_empty() && path.join("run.json").is_file() {
            return fs::canonicalize(&path).with_context(|| path.display().to_string());
        }
    }
    let entries = fs::read_dir(&runs).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("run.json").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "latest")
        .collect();
    names.sort_unstable();
    let id = |name: &str| name.rsplit('-').next().unwrap_or_default().to_owned();
    let chosen: Vec<&String> =
        names.iter().filter(|name| name.starts_with(text) || id(name).starts_with(text)).collect();
    match chosen[..] {
        [one] => Ok(runs.join(one)),
        [] => {
            let short = workspace.short(&runs).display();
            Err(usage(format!("no run {text:?}: `latest`, a folder of {short}, or the beginning of its name or id")))
        }
        _ => {
            let shown: Vec<&str> = chosen.iter().rev().take(SHOWN).map(|name| name.as_str()).collect();
            let more = if chosen.len() > SHOWN { ", …" } else { "" };
            Err(usage(format!("{text:?} is the beginning of {} runs: {}{more}", chosen.len(), shown.join(", "))))
        }
    }
}

/// Writes a file and names it when that fails.
///
/// # Errors
/// When the disk does not let it.
pub fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| path.display().to_string())
}

/// Writes a script and makes it executable.
///
/// # Errors
/// When the disk does not let it.
pub fn write_script(path: &Path, content: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| path.display().to_string())
}

/// A folder that was not there before.
fn fresh(runs: &Path, command: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(runs).with_context(|| runs.display().to_string())?;
    let utc = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "");
    for id in 0..u32::MAX {
        let id = id.wrapping_mul(0x9e37).wrapping_add(std::process::id()) & 0xffff;
        let path = runs.join(format!("{utc}-{command}-{id:04x}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    anyhow::bail!("no free name in {}", runs.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_in_one_second_get_two_folders_and_latest_is_the_second() {
        let target = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_tests(target.path());
        let first = RunDir::create(&workspace, "test").unwrap();
        let second = RunDir::create(&workspace, "test").unwrap();
        assert_ne!(first.path(), second.path());
        assert_eq!(
            fs::canonicalize(workspace.runs().join("latest")).unwrap(),
            fs::canonicalize(second.path()).unwrap()
        );
        second.event("boot", &json!({ "cpus": 4 }));
        let line = fs::read_to_string(second.path().join("events.jsonl")).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&event["event"], &event["cpus"]), (&json!("boot"), &json!(4)));
    }
    #[test]
    fn a_run_is_found_by_latest_its_path_and_the_beginning_of_its_name_or_id() {
        let target = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_tests(target.path());
        let make = |name: &str| {
            let path = workspace.runs().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("run.json"), "{}").unwrap();
            fs::canonicalize(path).unwrap()
        };
        let first = make("2026-11-21T122637Z-test-54cb");
        let second = make("2026-11-21T122705Z-run-5a00");
        std::os::unix::fs::symlink("2026-11-21T122705Z-run-5a00", workspace.runs().join("latest")).unwrap();
        let found = |text: &str| find(&workspace, text).map(|path| fs::canonicalize(path).unwrap());
        for (text, run) in
            [("latest", &second), ("54", &first), ("2026-11-21T122637", &first), (first.to_str().unwrap(), &first)]
        {
            assert_eq!(&found(text).unwrap(), run, "{text}");
        }
        for (text, part) in [("77", "no run \"77\""), ("5", "2 runs: 2026-11-21T122705Z-run-5a00, 2026-11-21T122637Z-")]
        {
            let error = found(text).unwrap_err();
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
