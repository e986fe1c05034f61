//! What is kept of a machine that died: its memory as a core file, and the kernel and loader that ran in it.
//!
//! The kernel announces its death (`arch::exit::announce_death`), a triple fault ends the machine by a reset, and a hang
//! is found by [`crate::pulse`]. In each case QEMU holds the machine, writes its memory through a pipe, and lets it go on to
//! the end that it would have had. `xtask` compresses while QEMU writes, so that the whole memory never lies on a disk.
//!
//! | kept in | what |
//! |---|---|
//! | the boot's folder | `core.elf.zst`: an ELF core with one thread a vCPU; `build`, a link to |
//! | `target/grange/kernels/<checksums>/` | `grange` and `grange-boot`, once for all runs of a build |
//!
//! [`packed`] is the core file itself. Linux: kdump's `vmcore`.

pub mod packed;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::artifact::Artifacts;
use crate::process::Owned;
use crate::qemu::Machine;
use crate::qmp::Qmp;
use crate::rundir::write;
use crate::workspace::Workspace;

use packed::compress;

/// Name of the core in a boot's folder.
pub const CORE: &str = "core.elf.zst";
/// Name of the link to loader and kernel in a boot's folder.
pub const BUILD: &str = "build";
/// File names of the kernel and of the loader behind that link.
pub const KERNEL: &str = "grange";
/// See [`KERNEL`].
pub const LOADER: &str = "grange-boot";

/// A machine with more memory leaves no core. Up to here physical memory is in one piece, which [`mend`] relies on.
pub(crate) const MAX_MEMORY: u64 = 2 << 30;
/// How long QEMU may take to write it all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Cores that are kept; of the older ones only the logs are.
const KEPT_CORES: usize = 10;
/// Builds that are kept.
const KEPT_BUILDS: usize = 10;

/// Stands by while a machine runs, and takes its core when it dies.
#[derive(Debug)]
pub struct Attendant<'a> {
    dir: &'a Path,
    /// Bytes of the machine's memory.
    memory: u64,
    /// Why there will be none; empty when there may be one.
    none: String,
    taken: bool,
}

impl<'a> Attendant<'a> {
    /// For one boot, whose folder is `dir`.
    #[must_use]
    pub fn new(machine: &Machine, dir: &'a Path) -> Attendant<'a> {
        let none = match machine.shape.memory() {
            _ if !machine.cores => "--no-core".to_owned(),
            more if more > MAX_MEMORY => format!("the machine has more than {} GiB", MAX_MEMORY >> 30),
            _ => String::new(),
        };
        Attendant { dir, memory: machine.shape.memory(), none, taken: false }
    }

    /// Looks whether QEMU holds the machine for us. If so takes the core and lets it go on; one that was reset or switched
    /// off cannot go on, and QEMU is told to end. `asked_for` tells whether the user wanted a reset.
    pub fn look(&mut self, qmp: &mut Qmp, asked_for: impl FnOnce() -> bool) {
        if qmp.is_held() {
            self.take(qmp);
            qmp.let_go();
        }
        match qmp.shutdown_reason().map(str::to_owned).as_deref() {
            None => {}
            // A machine that was switched off is not dead of anything.
            Some("guest-reset") if !asked_for() => {
                self.take(qmp);
                qmp.send("quit");
            }
            Some(_) => _ = qmp.send("quit"),
        }
    }

    /// Takes the core, unless that has been done or is not wanted. What goes wrong is said, and changes no verdict.
    pub fn take(&mut self, qmp: &mut Qmp) {
        if std::mem::replace(&mut self.taken, true) || !self.none.is_empty() {
            return;
        }
        if let Err(error) = save(qmp, self.dir, self.memory) {
            self.none = format!("{error:#}");
        }
        prune(self.dir);
    }

    /// Waits for the end of a machine that was told to end, until it has `said_all`, and lets it go on when it is held once
    /// more.
    pub fn see_off(&mut self, child: &mut Owned, qmp: &mut Qmp, time: Duration, mut said_all: impl FnMut() -> bool) {
        let end = Instant::now() + time;
        while Instant::now() < end && !said_all() && matches!(child.wait_for(Some(Duration::ZERO)), Ok(None)) {
            self.look(qmp, || false);
            std::thread::sleep(crate::process::POLL);
        }
    }

    /// Why there is no core, if there is none.
    #[must_use]
    pub fn why_none(self) -> String {
        match self {
            Attendant { none, .. } if !none.is_empty() => none,
            Attendant { taken: false, .. } => "the machine did not live to be saved".to_owned(),
            _ => String::new(),
        }
    }
}

/// One line about the core of a machine that failed, for people.
#[must_use]
pub fn remark(workspace: &Workspace, dir: &Path, why_none: &str) -> String {
    match dir.join(CORE).metadata() {
        Ok(meta) => format!(
            "core of {} KiB; open it: cargo xtask debug --core {}",
            meta.len().div_ceil(1024),
            workspace.short(dir).display()
        ),
        Err(_) => format!("no core: {why_none}"),
    }
}

/// Lets QEMU write the machine into a pipe, and compresses what comes out of it.
fn save(qmp: &mut Qmp, dir: &Path, memory: u64) -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let pipe = temporary.path().join("core");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).context("a pipe")?;
    // Open for both sides: neither our reader nor QEMU has to wait for the other, and it ends when we let go of it.
    let open = OpenOptions::new().read(true).write(true).open(&pipe)?;
    let from = File::open(&pipe)?;
    let unfinished = dir.join(format!(".{CORE}"));
    let to = File::create(&unfinished).with_context(|| unfinished.display().to_string())?;
    let copy = std::thread::spawn(move || compress(from, memory, to));
    let dumped = qmp.dump(&pipe, PATIENCE);
    drop(open);
    let copied = copy.join().map_err(|_| anyhow::anyhow!("the thread that compresses panicked"))?;
    if let Err(error) = dumped.map_err(anyhow::Error::msg).and(copied.map_err(anyhow::Error::from)) {
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    fs::rename(&unfinished, dir.join(CORE)).with_context(|| unfinished.display().to_string())
}

/// Keeps loader and kernel of a boot that failed, and links them into its folder.
///
/// # Errors
/// `Host` when a file cannot be read or written.
pub fn keep_build(workspace: &Workspace, artifacts: &Artifacts, dir: &Path) -> anyhow::Result<()> {
    let files = [(KERNEL, &artifacts.kernel), (LOADER, &artifacts.loader)];
    let mut id = String::new();
    let mut contents = Vec::new();
    for (name, path) in files {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        id.push_str(&format!("{:08x}", crc32fast::hash(&bytes)));
        contents.push((name, bytes));
    }
    let kernels = workspace.kernels();
    let kept = kernels.join(&id);
    if !kept.is_dir() {
        fs::create_dir_all(&kernels).with_context(|| kernels.display().to_string())?;
        // A folder of its own for each boot: several may fail at once.
        let unfinished = tempfile::Builder::new().prefix(&format!(".{id}-")).tempdir_in(&kernels)?;
        for (name, bytes) in contents {
            let path = unfinished.path().join(name);
            fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        }
        // Another may have kept it meanwhile: then it is there, and this copy goes when it is dropped.
        let _ = fs::rename(unfinished.path(), &kept);
    }
    // What is used again counts as new. The time only decides which builds go first.
    let _ = File::open(&kept).and_then(|folder| folder.set_modified(SystemTime::now()));
    for old in oldest(folders(&kernels), KEPT_BUILDS) {
        let _ = fs::remove_dir_all(old);
    }
    let link = dir.join(BUILD);
    if !link.exists() {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&kept, &link).with_context(|| link.display().to_string())?;
    }
    Ok(())
}

/// Writes the words of the QEMU line, for a later boot of the same machine.
///
/// # Errors
/// `Host` when the disk does not let it.
pub fn keep_line(command: &std::process::Command, dir: &Path) -> anyhow::Result<()> {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    write(&dir.join("qemu.json"), &format!("{:#}\n", serde_json::json!({ "v": 1, "argv": words })))
}

/// Removes the oldest cores of all runs that `dir` is one of. One that cannot be removed stays.
fn prune(dir: &Path) {
    let Some(runs) = dir.ancestors().find(|at| at.file_name().is_some_and(|name| name == "runs")) else { return };
    for old in oldest(cores(runs), KEPT_CORES) {
        let _ = fs::remove_file(old);
    }
}

/// The cores of all runs.
#[must_use]
pub fn cores(runs: &Path) -> Vec<PathBuf> {
    let runs = folders(runs);
    let boots = runs.iter().flat_map(|run| folders(run)).collect::<Vec<_>>();
    let cores = runs.iter().chain(&boots).map(|folder| folder.join(CORE));
    cores.filter(|core| core.is_file()).collect()
}

/// The folders in a folder, but for those with a dot that are being made; links are not followed.
fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let finished = folders.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    finished.map(|entry| entry.path()).collect()
}

/// All but the newest `keep` of some files or folders.
fn oldest(mut paths: Vec<PathBuf>, keep: usize) -> Vec<PathBuf> {
    let age = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    paths.sort_by_key(|path| std::cmp::Reverse(age(path)));
    paths.split_off(keep.min(paths.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_cores_the_newest_stay_and_the_logs_beside_all_of_them() {
        let target = tempfile::tempdir().unwrap();
        let runs = target.path().join("runs");
        for number in 0..KEPT_CORES + 3 {
            let dir = runs.join(format!("run{number}/4c2n"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("console.log"), "").unwrap();
            let core = File::create(dir.join(CORE)).unwrap();
            core.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
        }
        prune(&runs.join("run7/4c2n"));
        let mut left: Vec<_> = cores(&runs).iter().map(|core| core.strip_prefix(&runs).unwrap().to_owned()).collect();
        left.sort();
        assert_eq!(left.len(), KEPT_CORES);
        assert!(!left.iter().any(|core| ["run0", "run1", "run2"].iter().any(|old| core.starts_with(old))), "{left:?}");
        assert!(runs.join("run0/4c2n/console.log").is_file());
    }

    #[test]
    fn a_build_is_kept_once_and_linked_from_each_run_that_failed_with_it() {
        let target = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_tests(target.path());
        let artifacts =
            Artifacts { kernel: target.path().join("kernel"), loader: target.path().join("boot"), profile: "checking" };
        fs::write(&artifacts.loader, "loader").unwrap();
        for (run, kernel) in ["one", "one", "two"].iter().enumerate() {
            fs::write(&artifacts.kernel, kernel).unwrap();
            let dir = target.path().join(format!("runs/{run}"));
            fs::create_dir_all(&dir).unwrap();
            keep_build(&workspace, &artifacts, &dir).unwrap();
        }
        assert_eq!(folders(&workspace.kernels()).len(), 2);
        let of = |run: &str| fs::read_to_string(target.path().join(format!("runs/{run}/{BUILD}/{KERNEL}"))).unwrap();
        assert_eq!((of("0"), of("1"), of("2")), ("one".into(), "one".into(), "two".into()));
    }

    #[test]
    fn boots_that_fail_at_the_same_time_keep_their_build_once() {
        let target = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_tests(target.path());
        let artifacts =
            Artifacts { kernel: target.path().join("kernel"), loader: target.path().join("boot"), profile: "checking" };
        fs::write(&artifacts.loader, "loader").unwrap();
        for build in 1..=KEPT_BUILDS {
            fs::write(&artifacts.kernel, vec![build as u8; 1 << 20]).unwrap();
            std::thread::scope(|scope| {
                for run in 0..8 {
                    let dir = target.path().join(format!("runs/{build}/{run}"));
                    fs::create_dir_all(&dir).unwrap();
                    let (workspace, artifacts) = (&workspace, &artifacts);
                    scope.spawn(move || keep_build(workspace, artifacts, &dir).unwrap());
                }
            });
            assert_eq!(folders(&workspace.kernels()).len(), build);
        }
    }
}
