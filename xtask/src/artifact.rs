//! Builds the loader and the kernel and says where they are.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::cli::{BuildArgs, KernelArgs, Profile};
use crate::exit::{Exit, stop, usage};
use crate::mutants;
use crate::process::shell_line;
use crate::toolchain::core::{self, Core, TARGET};
use crate::workspace::Workspace;

/// Chooses the answers that are built for `cargo xtask lab`; labs/build.rs reads it.
pub const LABS: &str = "GRANGE_LABS";

/// A build that takes longer is announced.
const SOON: Duration = Duration::from_secs(2);

/// The two files QEMU is given.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The PVH loader: `-kernel`.
    pub loader: PathBuf,
    /// The kernel ELF: `-initrd`.
    pub kernel: PathBuf,
    /// Profile of the kernel, or "given" for one that was not built here.
    pub profile: &'static str,
}

impl Artifacts {
    /// What the linker signed the kernel with: equal for equal kernels. `None` for a file without such a note.
    #[must_use]
    pub fn build_id(&self) -> Option<String> {
        use object::Object as _;
        let bytes = std::fs::read(&self.kernel).ok()?;
        let elf = object::File::parse(&*bytes).ok()?;
        Some(elf.build_id().ok()??.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Profile {
    /// Cargo's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Checking => "checking",
            Profile::Dev => "dev",
            Profile::Mutants => "mutants",
        }
    }

    /// The features of the kernel that belong to it.
    fn features(self) -> &'static [&'static str] {
        match self {
            Profile::Mutants => &["mutants"],
            Profile::Release | Profile::Checking | Profile::Dev => &[],
        }
    }
}

/// Builds what the arguments ask for and did not give.
///
/// # Errors
/// `Build` when cargo fails, `Usage` when a given file is not there, `Host` when there is no bare-metal core.
pub fn make(workspace: &Workspace, args: &KernelArgs, default: Profile) -> anyhow::Result<Artifacts> {
    for (option, path) in [("--kernel", &args.kernel), ("--loader", &args.loader)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_file()) {
            return Err(usage(format!("{option} {}: no such file", path.display())));
        }
    }
    let profile = args.profile_or(default);
    let core = if args.kernel.is_some() && args.loader.is_some() { None } else { Some(core::ensure(workspace)?) };
    let loader = match (&args.loader, core) {
        (None, Some(core)) => build(workspace, core, "grange-boot", Profile::Release, &[], None)?,
        (given, _) => given.clone().unwrap_or_default(),
    };
    let kernel = match (&args.kernel, core) {
        (None, Some(core)) => {
            let features = [args.features, profile.features()].concat();
            let kernel = build(workspace, core, "grange", profile, &features, args.labs.as_deref())?;
            mutants::expect(&kernel, profile == Profile::Mutants)?;
            kernel
        }
        (given, _) => given.clone().unwrap_or_default(),
    };
    let profile = if args.kernel.is_some() { "given" } else { profile.name() };
    Ok(Artifacts { loader: std::path::absolute(loader)?, kernel: std::path::absolute(kernel)?, profile })
}

/// `cargo build` of one bare-metal package; returns the executable that cargo names.
fn build(
    workspace: &Workspace,
    core: Core,
    package: &str,
    profile: Profile,
    features: &[&str],
    labs: Option<&str>,
) -> anyhow::Result<PathBuf> {
    let mut cargo = workspace.cargo();
    if let Some(which) = labs {
        cargo.env(LABS, which);
    }
    cargo.args(["build", "--package", package, "--target", TARGET, "--profile", profile.name()]);
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    core.apply(&mut cargo);
    cargo.arg("--message-format=json-render-diagnostics");
    if !workspace.verbose {
        cargo.arg("--quiet");
    } else {
        eprintln!("$ {}", shell_line(&cargo));
    }
    let _patience = said_when_it_takes_long(format!("building {package} ({}), which takes a while", profile.name()));
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        return Err(stop(Exit::Build, format!("{package} ({}) did not build", profile.name())));
    }
    executable(&String::from_utf8_lossy(&output.stdout), package)
        .ok_or_else(|| stop(Exit::Build, format!("cargo built {package} but named no executable")))
}

/// Says this line if what is returned still lives after a moment.
fn said_when_it_takes_long(line: String) -> mpsc::Sender<()> {
    let (alive, gone) = mpsc::channel();
    std::thread::spawn(move || {
        if gone.recv_timeout(SOON) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("grange: {line}");
        }
    });
    alive
}

fn executable(messages: &str, package: &str) -> Option<PathBuf> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let named = parsed.filter(|message| message["target"]["name"] == package);
    named.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back()
}

/// `cargo xtask build`: prints where the two files are and how large.
///
/// # Errors
/// As [`make`].
pub fn command(workspace: &Workspace, args: &BuildArgs) -> anyhow::Result<Exit> {
    let made = make(workspace, &args.kernel, Profile::Release)?;
    let size = |path: &Path| path.metadata().map(|meta| meta.len() / 1024).unwrap_or_default();
    for (what, path) in [("loader", &made.loader), ("kernel", &made.kernel)] {
        println!("{what}  {}  {} KiB", workspace.short(path).display(), size(path));
    }
    Ok(Exit::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_one_of_the_package_asked_for() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"grange-arch"},"executable":null}"#,
            "\n",
            "not json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"grange"},"executable":"/t/grange"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        assert_eq!(executable(messages, "grange"), Some(PathBuf::from("/t/grange")));
        assert_eq!(executable(messages, "grange-boot"), None);
    }
}
