//! Finds the run that the user means.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::exit::usage;
use crate::rundir;
use crate::workspace::Workspace;

/// Folders that are listed when several could be meant.
const LISTED: usize = 8;

/// The folder of the boot that has `file` in it. `word` is that folder, or a run as [`rundir::find`] knows it; `latest` is
/// the newest run that has one. `what` is the file in a word, for messages.
///
/// # Errors
/// `Usage` when there is none, or more than one.
pub fn find(workspace: &Workspace, word: &str, file: &str, what: &str) -> anyhow::Result<PathBuf> {
    let runs = workspace.runs();
    if word == "latest" {
        let newest = boots(&runs, file).into_iter().max_by_key(|boot| modified(&boot.join(file)));
        return newest.ok_or_else(|| usage(format!("no run in {} has a {what}", runs.display())));
    }
    if Path::new(word).join(file).exists() {
        return Ok(word.into());
    }
    let run = rundir::find(workspace, word)?;
    let mut found = boots_of(&run, file);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(usage(format!("{} has no {what}", run.display()))),
        _ => Err(usage(format!("{} has more than one {what}; name one of {}", run.display(), list(&found)))),
    }
}

/// The boots of all runs with that file.
fn boots(runs: &Path, file: &str) -> Vec<PathBuf> {
    folders(runs).iter().flat_map(|run| boots_of(run, file)).collect()
}

/// The boots of a run with that file: the run's folder itself, or those in it.
fn boots_of(run: &Path, file: &str) -> Vec<PathBuf> {
    let mut places = vec![run.to_owned()];
    places.extend(folders(run));
    places.retain(|place| place.join(file).exists());
    places
}

/// The folders in a folder, sorted; links are not followed.
fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let mut folders: Vec<_> =
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

fn modified(file: &Path) -> SystemTime {
    // Of a link the time when it was made, not that of what it leads to.
    file.symlink_metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn list(paths: &[PathBuf]) -> String {
    let mut names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    if names.len() > LISTED {
        names.truncate(LISTED);
        names.push("…".to_owned());
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Boots with a file `core`, the later ones newer, and a run without.
    fn workspace(target: &Path) -> Workspace {
        let workspace = Workspace::for_tests(target);
        for (age, boot) in [
            "2026-01-01T000000Z-test-aaaa/4c2n",
            "2026-01-02T000000Z-test-abab/4c2n",
            "2026-01-02T000000Z-test-abab/2c1n",
            "2026-01-03T000000Z-run-c0de",
            "2026-01-04T000000Z-run-beef",
        ]
        .iter()
        .enumerate()
        {
            let boot = workspace.runs().join(boot);
            fs::create_dir_all(&boot).unwrap();
            let run = boot.ancestors().find(|at| at.parent() == Some(&workspace.runs())).unwrap();
            fs::write(run.join("run.json"), "{}").unwrap();
            if !boot.ends_with("2026-01-04T000000Z-run-beef") {
                let core = fs::File::create(boot.join("core")).unwrap();
                core.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(age as u64)).unwrap();
            }
        }
        workspace
    }

    #[test]
    fn a_boot_is_named_by_its_folder_or_by_its_run_if_it_is_the_only_one() {
        let target = tempfile::tempdir().unwrap();
        let workspace = workspace(target.path());
        let found = |word: &str| find(&workspace, word, "core", "core").unwrap();
        assert!(found("2026-01-01").ends_with("2026-01-01T000000Z-test-aaaa/4c2n"));
        assert!(found("c0de").ends_with("2026-01-03T000000Z-run-c0de"));
        let folder = workspace.runs().join("2026-01-02T000000Z-test-abab/2c1n");
        assert_eq!(found(&folder.to_string_lossy()), folder);
    }

    #[test]
    fn the_latest_is_the_newest_that_has_one() {
        let target = tempfile::tempdir().unwrap();
        assert!(find(&Workspace::for_tests(target.path()), "latest", "core", "core").is_err());
        let workspace = workspace(target.path());
        assert!(find(&workspace, "latest", "core", "core").unwrap().ends_with("2026-01-03T000000Z-run-c0de"));
    }

    #[test]
    fn what_may_be_several_or_is_none_is_refused_with_the_names() {
        let target = tempfile::tempdir().unwrap();
        let workspace = workspace(target.path());
        for (word, parts) in [
            ("2026-01-02", vec!["more than one core", "4c2n", "2c1n"]),
            ("beef", vec!["has no core"]),
            ("ffff", vec!["no run \"ffff\""]),
        ] {
            let error = find(&workspace, word, "core", "core").unwrap_err();
            assert_eq!(crate::exit::of(&error), crate::exit::Exit::Usage);
            for part in parts {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
    }
}
