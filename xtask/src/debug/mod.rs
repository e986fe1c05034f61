//! `cargo xtask debug`: gdb on a machine that runs, on one that is run once more, or on the core of one that died.
//!
//! | module | does |
//! |---|---|
//! | [`runs`] | finds the run that the user means |
//! | [`places`] | the addresses of functions and tests to stop at |
//! | [`live`] | QEMU and gdb together, each ended with the other |
//!
//! The commands for Grange are in `xtask/gdb/grange.py`. Linux: `scripts/gdb/`, kdump with `crash`.

pub mod live;
pub mod places;
pub mod runs;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use crate::artifact::{self, Artifacts};
use crate::cli::{DebugArgs, Profile};
use crate::exit::{Exit, stop, usage};
use crate::kernel_args::KernelLine;
use crate::kernel_tests::{self, Filter, filter_glob};
use crate::post_mortem::{BUILD, CORE, KERNEL, LOADER, packed};
use crate::process::{Owned, POLL, forget_interrupt, interrupted};
use crate::qemu::{Machine, Wiring, script};
use crate::rundir::{RunDir, write};
use crate::shape::Defaults;
use crate::toolchain::{Step, find_program, is_root};
use crate::workspace::Workspace;

use live::Live;
use places::Places;

/// The machine one gets without asking for another.
const DEFAULTS: Defaults = Defaults { cpus: 4, nodes: 2 };
/// Where every death of the kernel passes.
const DEATH: &str = "grange::panic::die";
/// Where every test passes that fails by its own assertion.
const FAILURE: &str = "grange_tests::outcome::Failure::failed";

/// What installs gdb on Debian and its children.
#[must_use]
pub fn steps() -> [Step; 1] {
    [Step::root("apt-get install -y --no-install-recommends gdb")]
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]. A command of gdb that fails is an [`Exit`] and not an error.
pub fn debug(workspace: &Workspace, args: &DebugArgs) -> anyhow::Result<Exit> {
    let gdb = Gdb::find(workspace, args)?;
    match (args.core_of(), &args.replay) {
        (Some(run), _) => dead(workspace, args, &gdb, run),
        (_, Some(run)) => replay(workspace, args, &gdb, run),
        _ => alive(workspace, args, &gdb),
    }
}

/// A gdb that is there, and what it is to do.
pub struct Gdb<'a> {
    program: PathBuf,
    root: &'a Path,
    commands: Option<String>,
    timeout: Option<Duration>,
}

impl<'a> Gdb<'a> {
    fn find(workspace: &'a Workspace, args: &DebugArgs) -> anyhow::Result<Gdb<'a>> {
        let program = find_program(&args.gdb).ok_or_else(|| {
            let [step] = steps();
            stop(Exit::Host, format!("no {}: {}", args.gdb.display(), step.line(!is_root())))
        })?;
        let commands = args.exec.as_ref().map(|commands| {
            let lines = commands.split(';').map(str::trim).filter(|line| !line.is_empty());
            lines.fold(String::new(), |text, line| text + line + "\n")
        });
        if commands.as_ref().is_some_and(String::is_empty) {
            return Err(usage("--exec names no command; `gr-cpus` is one"));
        }
        Ok(Gdb { program, root: &workspace.root, commands, timeout: args.timeout })
    }

    /// The script that gdb begins with: symbols and commands, then `more`.
    fn script(&self, kernel: &Path, loader: &Path, more: &str) -> String {
        let mut text = String::from("set confirm off\nset pagination off\nset print thread-events off\n");
        text.push_str("set language rust\n");
        let _ = writeln!(text, "file {}", kernel.display());
        // The loader runs where it is linked, below the kernel's addresses.
        let _ = writeln!(text, "add-symbol-file {}", loader.display());
        let _ = writeln!(text, "directory {}", self.root.display());
        let _ = writeln!(text, "source {}", self.root.join("xtask/gdb/grange.py").display());
        text + more
    }

    /// gdb with this script; the user's commands come after it.
    fn command(&self, dir: &Path, script: &str) -> anyhow::Result<Command> {
        let setup = dir.join("setup.gdb");
        write(&setup, script)?;
        let mut command = Command::new(&self.program);
        command.arg("-q").current_dir(self.root);
        if let Some(commands) = &self.commands {
            let file = dir.join("commands.gdb");
            write(&file, commands)?;
            command.args(["-nx", "-batch", "-x"]).arg(setup).arg("-x").arg(file);
        } else {
            command.arg("-x").arg(setup);
        }
        Ok(command)
    }

    /// Waits for the end of gdb. Ctrl-C is gdb's, where a person sits before it. `also` is called meanwhile, and ends the
    /// session by returning true.
    fn wait(&self, gdb: &mut Owned, mut also: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<Exit> {
        let end = self.timeout.map(|time| Instant::now() + time);
        loop {
            if let Some(status) = gdb.0.try_wait()? {
                return Ok(self.exit_of(status));
            }
            if interrupted() {
                if self.commands.is_some() {
                    return Ok(Exit::Interrupted);
                }
                forget_interrupt();
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                eprintln!("grange: the time of --timeout is over");
                return Ok(Exit::Hung);
            }
            if also()? {
                gdb.ask_to_end();
                gdb.wait_for(Some(Duration::from_secs(2)))?;
                return Ok(Exit::Passed);
            }
            std::thread::sleep(POLL);
        }
    }

    fn exit_of(&self, status: ExitStatus) -> Exit {
        if status.success() || self.commands.is_none() { Exit::Passed } else { Exit::TestsFailed }
    }
}

/// Opens a core file.
fn dead(workspace: &Workspace, args: &DebugArgs, gdb: &Gdb<'_>, run: &str) -> anyhow::Result<Exit> {
    refuse_machine(args, "--core")?;
    let boot = runs::find(workspace, run, CORE, "core")?;
    let build = build_of(&boot)?;
    let temporary = tempfile::tempdir()?;
    let core = temporary.path().join("core");
    let mut file = fs::File::create(&core)?;
    packed::unpack(&boot.join(CORE), &mut file)?;
    eprintln!("grange: the core in {}", workspace.short(&boot).display());
    let more = format!("core-file {}\npython select_the_dying()\n", core.display());
    let script = gdb.script(&build.kernel, &build.loader, &more);
    let mut child = Owned::start(&mut gdb.command(temporary.path(), &script)?)?;
    gdb.wait(&mut child, || Ok(false))
}

/// Boots a machine that is watched by gdb.
fn alive(workspace: &Workspace, args: &DebugArgs, gdb: &Gdb<'_>) -> anyhow::Result<Exit> {
    let mut line = KernelLine::new(&args.machine.append);
    let machine = Machine::from_args(workspace, &args.machine, &args.qemu_args, DEFAULTS)?;
    let artifacts = artifact::make(workspace, &args.kernel, Profile::Checking)?;
    let mut places = Places::of(&artifacts.kernel, &artifacts.loader)?;
    if let Some(glob) = &args.test {
        let all = kernel_tests::list(&artifacts.kernel)?;
        let filter = Filter::new(std::slice::from_ref(glob))?;
        let chosen: Vec<_> = all.iter().filter(|test| filter.wants(&test.id)).collect();
        if chosen.is_empty() {
            return Err(usage(format!("no test matches {glob}; `cargo xtask test --list` names those in the kernel")));
        }
        line.set("grange.run", "test")?;
        let ids: Vec<_> = chosen.iter().map(|test| test.id.clone()).collect();
        if let Some(glob) = filter_glob(&all, &ids) {
            line.set("kunit.filter_glob", &glob)?;
        }
        line.set("grange.seed", &args.seed.to_string())?;
        chosen.iter().for_each(|test| places.stop_at_address(test.entry));
    }
    for (key, value) in machine.kernel_words() {
        line.set(key, value)?;
    }
    args.breaks.iter().try_for_each(|place| places.stop_at(place))?;
    let line = line.finish()?.to_owned();
    let wiring = |dir: &Path| Wiring {
        terminal: false,
        console: Some(dir.join("console.log")),
        frames: dir.join("com2.log"),
        qmp: None,
        reboots: false,
        memory: None,
    };
    if args.machine.print_qemu {
        print!("{}", script(&machine.command(&artifacts, &line, args.seed, &wiring(&workspace.target.join("grange")))));
        return Ok(Exit::Passed);
    }
    let dir = RunDir::create(workspace, "debug")?;
    dir.describe(workspace, "debug", &json!({ "machine": machine.shape.options(), "engine": machine.engine.name() }))?;
    eprintln!("grange: {} ({}), {} kernel", machine.shape, machine.engine.name(), artifacts.profile);
    let command = machine.command(&artifacts, &line, args.seed, &wiring(dir.path()));
    let argv: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let argv: Vec<_> = argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    // What is typed into COM1 would make each run another.
    let typed = !args.machine.deterministic;
    Live { workspace, argv, dir: dir.path(), typed, gdb }.run(&artifacts, &mut places)
}

/// Boots the machine of a failed run once more.
fn replay(workspace: &Workspace, args: &DebugArgs, gdb: &Gdb<'_>, run: &str) -> anyhow::Result<Exit> {
    refuse_machine(args, "--replay")?;
    let boot = runs::find(workspace, run, BUILD, "failed boot")?;
    let build = build_of(&boot)?;
    let argv = line_of(&boot)?;
    let mut places = Places::of(&build.kernel, &build.loader)?;
    args.breaks.iter().try_for_each(|place| places.stop_at(place))?;
    places.only_at_the_end();
    let dir = RunDir::create(workspace, "debug")?;
    dir.describe(workspace, "debug", &json!({ "replay": boot }))?;
    eprintln!("grange: once more {}", workspace.short(&boot).display());
    if !argv.iter().any(|word| word.starts_with("shift=")) {
        eprintln!("grange: that run was not --deterministic: this one may go another way");
    }
    Live { workspace, argv, dir: dir.path(), typed: false, gdb }.run(&build, &mut places)
}

/// Loader and kernel that a boot failed with.
fn build_of(boot: &Path) -> anyhow::Result<Artifacts> {
    let (kernel, loader) = (boot.join(BUILD).join(KERNEL), boot.join(BUILD).join(LOADER));
    if !kernel.is_file() || !loader.is_file() {
        return Err(usage(format!("{}: its kernel is not kept any more", boot.display())));
    }
    Ok(Artifacts { kernel, loader, profile: "kept" })
}

/// The words of the QEMU line of a boot.
fn line_of(boot: &Path) -> anyhow::Result<Vec<String>> {
    let file = boot.join("qemu.json");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let parsed: serde_json::Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let words = parsed["argv"].as_array().map(|words| words.iter().filter_map(|word| word.as_str()));
    let words: Vec<_> = words.into_iter().flatten().map(str::to_owned).collect();
    if words.is_empty() { Err(stop(Exit::Host, format!("{}: no words in it", file.display()))) } else { Ok(words) }
}

/// Options of a machine mean nothing where the run says what it was.
fn refuse_machine(args: &DebugArgs, option: &str) -> anyhow::Result<()> {
    let machine = &args.machine;
    let given = [
        ("--cpus", machine.cpus.is_some()),
        ("--nodes", machine.nodes.is_some()),
        ("--memory", machine.memory.is_some()),
        ("--append", !machine.append.is_empty()),
        ("--deterministic", machine.deterministic),
        ("--kernel", args.kernel.kernel.is_some()),
        ("--loader", args.kernel.loader.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((word, _)) => Err(usage(format!("{option} with {word}: the run says what its machine was"))),
        None => Ok(()),
    }
}

/// Starts `command` in a process group of its own: Ctrl-C in this terminal is not meant for it.
fn apart(command: &mut Command) -> anyhow::Result<Owned> {
    Owned::start(command.process_group(0))
}

#[cfg(test)]
mod tests {
    /// The bits of preempt_count have no types in the debug information.
    #[test]
    fn the_script_for_gdb_knows_the_bits_that_the_kernel_uses() {
        let kernel = include_str!("../../../kernel/sync/src/context.rs");
        let script = include_str!("../../gdb/grange.py");
        for (name, value) in [
            ("PREEMPT_MASK", "0x0000_00ff"),
            ("SOFTIRQ_OFFSET", "1 << 8"),
            ("SOFTIRQ_MASK", "0x0000_ff00"),
            ("HARDIRQ_MASK", "0x000f_0000"),
            ("NMI_MASK", "0x00f0_0000"),
            ("NOTHING_WANTED", "1 << 31"),
        ] {
            assert!(kernel.contains(&format!("const {name}: u32 = {value};")), "{name} in kernel/sync/src/context.rs");
            let bits = match value.split_once(" << ") {
                Some((_, by)) => 1_u32 << by.parse::<u32>().unwrap(),
                None => u32::from_str_radix(&value[2..].replace('_', ""), 16).unwrap(),
            };
            assert!(script.contains(&format!("{name} = 0x{bits:08X}\n")), "{name} in xtask/gdb/grange.py");
        }
    }
}
