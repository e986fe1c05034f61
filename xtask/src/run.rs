//! `cargo xtask run`: boots with this terminal as the kernel's serial console.

use std::io::IsTerminal as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::artifact::{self, Artifacts};
use crate::cli::{Profile, RunArgs};
use crate::exit::Exit;
use crate::kernel_args::KernelLine;
use crate::process::{Owned, interrupted, tied_to_us};
use crate::qemu::{Machine, Wiring, script};
use crate::qmp::Qmp;
use crate::rundir::{RunDir, write, write_script};
use crate::shape::Defaults;
use crate::symbols::Symbols;
use crate::workspace::Workspace;
use crate::{console, process, typist};

/// The machine one gets without asking for another.
const DEFAULTS: Defaults = Defaults { cpus: 4, nodes: 2 };

/// What the kernel prints on COM1 before it resets the machine because the user asked it to.
const REBOOT_MARK: &str = "rebooting";

/// What the kernel prints on COM1 when it refuses its command line.
const REFUSED_MARK: &str = "command line refused";

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a kernel that fails is an [`Exit`] and not an error.
pub fn run(workspace: &Workspace, args: &RunArgs) -> anyhow::Result<Exit> {
    let mut line = KernelLine::new(&args.machine.append);
    if let Some(commands) = &args.exec {
        line.set("grange.exec", commands)?;
    }
    let machine = Machine::from_args(workspace, &args.machine, &args.qemu_args, DEFAULTS)?;
    if let Some((key, value)) = machine.kernel_words() {
        line.set(key, value)?;
    }
    let line = line.finish()?.to_owned();
    let artifacts = artifact::make(workspace, &args.kernel, Profile::Release)?;
    if args.machine.print_qemu {
        let frames = workspace.target.join("grange/com2.log");
        let wiring = Wiring { terminal: true, console: None, frames, qmp: None, reboots: false };
        print!("{}", script(&machine.command(&artifacts, &line, 0, &wiring)));
        return Ok(Exit::Passed);
    }
    let dir = RunDir::create(workspace, "run")?;
    dir.describe(workspace, "run", &json!({ "machine": machine.shape.options(), "engine": machine.engine.name() }))?;
    eprintln!(
        "grange: {} ({}), {} kernel; {}logs in {}",
        machine.shape,
        machine.engine.name(),
        artifacts.profile,
        if args.exec.is_none() { "Ctrl-A X leaves; " } else { "" },
        workspace.short(dir.path()).display()
    );
    let terminal = std::io::stdin().is_terminal();
    let session = Session {
        machine: &machine,
        artifacts: &artifacts,
        line: &line,
        dir: &dir,
        piped: !terminal && args.exec.is_none(),
    };
    let end = args.timeout.map(|time| Instant::now() + time);
    let ended = loop {
        let ended = session.boot(end)?;
        let asked_to =
            console::read(&dir.path().join("console.log")).lines().rev().take(3).any(|line| line.contains(REBOOT_MARK));
        match ended {
            // A person who typed `reboot` wants to see it boot; what came through a pipe is gone with the old boot.
            Ended::Reset if asked_to && terminal && args.exec.is_none() => {}
            Ended::Reset if asked_to => break Ended::PoweredOff,
            ended => break ended,
        }
    };
    let exit = match (ended.judge(args), session.refused()) {
        // The kernel has said so itself, in a line that names the word.
        (Exit::Panicked, true) => Exit::Usage,
        (exit, _) => exit,
    };
    session.afterwards(workspace, exit)?;
    Ok(exit)
}

/// Why the machine is gone.
enum Ended {
    /// QEMU's status, where it means something.
    Status(ExitStatus),
    /// The guest switched itself off.
    PoweredOff,
    /// The guest reset: a triple fault, or `reboot`.
    Reset,
    /// The user left by Ctrl-A X.
    Left,
    /// The time was over.
    TimeOut,
    /// Ctrl-C or a signal.
    Interrupted,
}

impl Ended {
    /// The command's status; says in one line what went wrong.
    fn judge(&self, args: &RunArgs) -> Exit {
        let (exit, word) = match self {
            Ended::Status(status) => match status.code() {
                Some(33) => (Exit::Passed, String::new()),
                Some(35) => (Exit::TestsFailed, "a command failed".to_owned()),
                Some(37) => (Exit::Panicked, "the kernel panicked".to_owned()),
                Some(39) => (Exit::Hung, "the kernel reported a stall".to_owned()),
                _ => (Exit::Host, format!("QEMU ended with {status}")),
            },
            Ended::PoweredOff => (Exit::Passed, String::new()),
            Ended::Left if args.exec.is_none() => (Exit::Passed, String::new()),
            Ended::Left => (Exit::Incomplete, "QEMU ended before the commands did".to_owned()),
            Ended::Reset => (Exit::Panicked, "the machine was reset: a triple fault, or `reboot`".to_owned()),
            Ended::TimeOut => (Exit::Hung, "the time of --timeout is over".to_owned()),
            Ended::Interrupted => (Exit::Interrupted, "interrupted".to_owned()),
        };
        if !word.is_empty() {
            eprintln!("\ngrange: {word}");
        }
        exit
    }
}

struct Session<'a> {
    machine: &'a Machine,
    artifacts: &'a Artifacts,
    line: &'a str,
    dir: &'a RunDir,
    /// The shell's input comes through a pipe.
    piped: bool,
}

impl Session<'_> {
    /// Boots once and waits for the end.
    fn boot(&self, end: Option<Instant>) -> anyhow::Result<Ended> {
        let sockets = tempfile::tempdir()?;
        let wiring = Wiring {
            terminal: true,
            console: Some(self.dir.path().join("console.log")),
            frames: self.dir.path().join("com2.log"),
            qmp: Some(sockets.path().join("qmp")),
            reboots: false,
        };
        let to_keep = Wiring { qmp: None, ..wiring.clone() };
        let kept = self.machine.command(self.artifacts, self.line, 0, &to_keep);
        write_script(&self.dir.path().join("qemu-cmd"), &script(&kept))?;
        let mut command = tied_to_us(self.machine.command(self.artifacts, self.line, 0, &wiring));
        if self.piped {
            command.stdin(Stdio::piped());
        }
        let console = self.dir.path().join("console.log");
        write(&console, "")?;
        let mut child = Owned::start(&mut command)?;
        if let Some(stdin) = child.0.stdin.take() {
            typist::start(std::io::stdin(), stdin, &console);
        }
        let mut qmp = None;
        let mut reason = None;
        loop {
            // QEMU makes its socket a moment after it starts.
            qmp = qmp.or_else(|| Qmp::connect(&sockets.path().join("qmp"), Duration::ZERO));
            let status = child.0.try_wait()?;
            reason = qmp.as_mut().and_then(|qmp| qmp.shutdown_reason().map(str::to_owned)).or(reason);
            match status {
                Some(status) if status.code() == Some(0) => {
                    return Ok(match reason.as_deref() {
                        Some("guest-shutdown") => Ended::PoweredOff,
                        Some("guest-reset") => Ended::Reset,
                        _ => Ended::Left,
                    });
                }
                Some(status) => return Ok(Ended::Status(status)),
                None => {}
            }
            let over = end.is_some_and(|end| Instant::now() >= end);
            if over || interrupted() {
                self.end(&mut child, qmp);
                return Ok(if over { Ended::TimeOut } else { Ended::Interrupted });
            }
            std::thread::sleep(process::POLL);
        }
    }

    /// Ends QEMU so that it leaves the terminal as it found it.
    fn end(&self, child: &mut Owned, qmp: Option<Qmp>) {
        if let Some(mut qmp) = qmp {
            qmp.send("quit");
            let _ = child.wait_for(Some(Duration::from_secs(1)));
        }
        child.kill();
        if std::io::stdin().is_terminal() {
            let _ = Command::new("stty").arg("sane").stdin(Stdio::inherit()).status();
        }
    }

    /// Whether the kernel refused its command line.
    fn refused(&self) -> bool {
        console::read(&self.dir.path().join("console.log")).contains(REFUSED_MARK)
    }

    /// Keeps the readable log, and shows the functions of a crash.
    fn afterwards(&self, workspace: &Workspace, exit: Exit) -> anyhow::Result<()> {
        let raw = console::read(&self.dir.path().join("console.log"));
        let symbols = Symbols::load(&self.artifacts.kernel, &workspace.root);
        let readable = console::symbolized(&raw, symbols.as_ref());
        write(&self.dir.path().join("console.sym.log"), &readable)?;
        self.dir.write(
            "verdict.json",
            &format!("{:#}\n", json!({ "v": 1, "verdict": exit.word(), "exit": exit.code() })),
        )?;
        if matches!(exit, Exit::Panicked | Exit::Hung) && readable.lines().count() > raw.lines().count() {
            let from = readable.lines().position(|line| line.contains("PANIC")).unwrap_or(0);
            eprintln!("\nWith the functions:");
            readable.lines().skip(from).take(200).for_each(|line| eprintln!("{line}"));
        }
        Ok(())
    }
}
