//! `cargo xtask run`: boots with this terminal as the kernel's serial console.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::artifact::{self, Artifacts};
use crate::cli::{Profile, RunArgs};
use crate::exit::{Exit, stop, usage};
use crate::kernel_args::KernelLine;
use crate::post_mortem::{self, Attendant, keep_line};
use crate::process::{Owned, interrupted, tied_to_us};
use crate::qemu::{Machine, Wiring, script};
use crate::qmp::Qmp;
use crate::rundir::{RunDir, write, write_script};
use crate::shape::Defaults;
use crate::symbols::{Symbols, addresses};
use crate::trace::{self, Trace, memory::Memory};
use crate::workspace::Workspace;
use crate::{console, process, typist, watchdog};

/// The machine one gets without asking for another.
const DEFAULTS: Defaults = Defaults { cpus: 4, nodes: 2 };

/// What the kernel prints on COM1 before it resets the machine because the user asked it to.
const REBOOT_MARK: &str = "rebooting";

/// How long a kernel whose time is over may take to print where its CPUs are, ...
const LAST_WORDS: Duration = Duration::from_secs(6);
/// ... and how long it must have said nothing more when all have been named.
const SILENCE: Duration = Duration::from_millis(300);

/// Lines of log shown once more with the functions of their addresses.
const LINES: usize = 200;

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a kernel that fails is an [`Exit`] and not an error.
pub fn run(workspace: &Workspace, args: &RunArgs) -> anyhow::Result<Exit> {
    Ok(traced(workspace, args)?.0)
}

/// What a traced machine left.
#[derive(Debug)]
pub struct Traced {
    /// What it recorded.
    pub trace: Trace,
    /// The kernel that ran.
    pub kernel: PathBuf,
    /// The run's folder.
    pub dir: PathBuf,
}

/// [`run`], and what was recorded if the machine was traced.
///
/// # Errors
/// As for [`run`].
pub fn traced(workspace: &Workspace, args: &RunArgs) -> anyhow::Result<(Exit, Option<Traced>)> {
    let mut line = KernelLine::new(&args.machine.append);
    if let Some(commands) = &args.exec {
        if commands.split(';').all(|command| command.trim().is_empty()) {
            return Err(stop(
                Exit::Usage,
                "--exec names no command; `cargo xtask run --exec help` lists them".to_owned(),
            ));
        }
        line.set("grange.exec", commands)?;
    }
    let machine =
        Machine::from_args(workspace, &args.machine, &args.qemu_args, DEFAULTS)?.traced(args.trace.as_ref())?;
    if machine.engine.is_deterministic() && args.exec.is_none() {
        return Err(usage(
            "--deterministic without --exec: what one types comes when it comes; give the commands to it",
        ));
    }
    let seed = args.seed.unwrap_or(0);
    if args.seed.is_some() {
        line.set("grange.seed", &seed.to_string())?;
    }
    for (key, value) in machine.kernel_words() {
        line.set(key, value)?;
    }
    let line = line.finish()?.to_owned();
    let artifacts = artifact::make(workspace, &args.kernel, Profile::Release)?;
    if args.machine.print_qemu {
        let frames = workspace.target.join("grange/com2.log");
        let terminal = !machine.engine.is_deterministic();
        let wiring = Wiring { terminal, console: None, frames, qmp: None, reboots: false, memory: None };
        print!("{}", script(&machine.command(&artifacts, &line, seed, &wiring)));
        return Ok((Exit::Passed, None));
    }
    let dir = RunDir::create(workspace, "run")?;
    dir.describe(
        workspace,
        "run",
        &json!({
            "machine": machine.shape.options(), "engine": machine.engine.name(), "seed": seed,
            "build_id": artifacts.build_id(),
        }),
    )?;
    let terminal = std::io::stdin().is_terminal();
    eprintln!(
        "grange: {} ({}), {} kernel; {}logs in {}",
        machine.shape,
        machine.engine.name(),
        artifacts.profile,
        if terminal && args.exec.is_none() { "Ctrl-A X leaves; " } else { "" },
        workspace.short(dir.path()).display()
    );
    let session = Session {
        machine: &machine,
        artifacts: &artifacts,
        line: &line,
        seed,
        dir: &dir,
        piped: !terminal && args.exec.is_none(),
        commands: args.exec.is_some(),
        memory: machine.trace.as_ref().map(|_| trace::memory::folder()).transpose()?,
    };
    let end = args.timeout.map(|time| Instant::now() + time);
    let mut attendant = Attendant::new(&machine, dir.path());
    let ended = loop {
        let ended = session.boot(end, &mut attendant)?;
        let asked_to = session.reset_was_asked_for();
        match ended {
            // A person who typed `reboot` wants to see it boot; what came through a pipe is gone with the old boot.
            Ended::Reset if asked_to && terminal && args.exec.is_none() => {}
            Ended::Reset if asked_to => break Ended::Rebooted,
            ended => break ended,
        }
    };
    let log = console::read(&dir.path().join("console.log"));
    let (exit, word) = ended.judge(args.exec.as_deref(), &log);
    if !word.is_empty() {
        eprintln!("\ngrange: {word}");
    }
    session.afterwards(workspace, &ended, exit)?;
    let folder = session.memory.as_ref().filter(|_| console::refusal(&log).is_none());
    let traced = match folder {
        Some(folder) => {
            let trace = Trace::new(&Memory::of_files(folder.path())?, &artifacts.kernel)?;
            eprintln!("grange: {}", trace::keep(&trace, dir.path())?);
            Some(Traced { trace, kernel: artifacts.kernel.clone(), dir: dir.path().to_owned() })
        }
        None => None,
    };
    if matches!(exit, Exit::Panicked | Exit::Hung) && console::refusal(&log).is_none() {
        post_mortem::keep_build(workspace, &artifacts, dir.path())?;
        eprintln!("grange: {}", post_mortem::remark(workspace, dir.path(), &attendant.why_none()));
    }
    Ok((exit, traced))
}

/// Why the machine is gone.
enum Ended {
    /// QEMU's status, where it means something.
    Status(ExitStatus),
    /// The guest switched itself off.
    PoweredOff,
    /// The guest reset: a triple fault, or `reboot`.
    Reset,
    /// The guest said that it resets itself, and is not started again.
    Rebooted,
    /// The user left by Ctrl-A X.
    Left,
    /// The time was over. Behind this many bytes of the log is what the kernel said when it was asked where it is.
    TimeOut(usize),
    /// QEMU stopped the machine, and will not go on.
    Stuck,
    /// Ctrl-C or a signal.
    Interrupted,
}

impl Ended {
    /// The command's status, and in one line what went wrong. With commands that were to be run the kernel has to say
    /// itself that it ran them: by debug-exit, or by switching off where that was the last of them.
    fn judge(&self, commands: Option<&str>, log: &str) -> (Exit, String) {
        let all_ran = commands.is_none_or(ends_with_poweroff);
        let (exit, word) = match self {
            Ended::Status(status) => match status.code() {
                Some(33) => (Exit::Passed, ""),
                Some(35) => (Exit::TestsFailed, "a command failed"),
                Some(37) => match console::refusal(log) {
                    // The line names what is wrong with it: the user's mistake.
                    Some(line) if line.contains("command line") => (Exit::Usage, "the boot was refused"),
                    Some(_) => (Exit::Panicked, "the boot was refused"),
                    None => (Exit::Panicked, "the kernel panicked"),
                },
                Some(39) => (Exit::Hung, "the kernel reported a stall"),
                _ => return (Exit::Host, format!("QEMU ended with {status}")),
            },
            Ended::PoweredOff if all_ran => (Exit::Passed, ""),
            Ended::PoweredOff => (Exit::Incomplete, "the machine was switched off before all commands had run"),
            Ended::Rebooted if commands.is_none() => (Exit::Passed, ""),
            Ended::Rebooted => (Exit::Incomplete, "`reboot` ended the machine; --exec does not start it again"),
            Ended::Left if commands.is_none() => (Exit::Passed, ""),
            Ended::Left => (Exit::Incomplete, "QEMU ended before the commands did"),
            Ended::Reset => (Exit::Panicked, "the machine was reset: a triple fault, or `reboot`"),
            Ended::TimeOut(_) => (Exit::Hung, "the time of --timeout is over"),
            Ended::Stuck => (Exit::Host, "QEMU stopped the machine: an internal error of it or of the accelerator"),
            Ended::Interrupted => (Exit::Interrupted, "interrupted"),
        };
        (exit, word.to_owned())
    }
}

/// Tells, whenever it is asked, whether a kernel has said where `cpus` CPUs are, behind so many bytes of its log, and is
/// silent since. Before it has started the others it speaks of one.
fn said_all(console: &Path, from: usize, cpus: usize) -> impl FnMut() -> bool {
    let (mut seen, mut since) = (from, Instant::now());
    move || {
        let log = std::fs::read(console).unwrap_or_default();
        if log.len() != seen {
            (seen, since) = (log.len(), Instant::now());
        }
        let answers = String::from_utf8_lossy(log.get(from..).unwrap_or_default());
        let all = answers.contains("during early boot") || answers.matches(" was in ").count() >= cpus;
        all && since.elapsed() > SILENCE
    }
}

/// Whether `poweroff` stands at the end of the commands and nowhere before.
fn ends_with_poweroff(commands: &str) -> bool {
    let names = commands.split(';').filter_map(|command| command.split_whitespace().next());
    let mut names = names.skip_while(|&name| name != "poweroff");
    names.next().is_some() && names.next().is_none()
}

struct Session<'a> {
    machine: &'a Machine,
    artifacts: &'a Artifacts,
    line: &'a str,
    seed: u64,
    dir: &'a RunDir,
    /// The shell's input comes through a pipe.
    piped: bool,
    /// The kernel was given commands to run.
    commands: bool,
    /// Where the memory of a traced machine is.
    memory: Option<TempDir>,
}

impl Session<'_> {
    /// Whether the kernel said that it resets the machine because the user wants it.
    fn reset_was_asked_for(&self) -> bool {
        let log = console::read(&self.dir.path().join("console.log"));
        log.lines().rev().take(3).any(|line| line.contains(REBOOT_MARK))
    }

    /// Boots once and waits for the end.
    fn boot(&self, end: Option<Instant>, attendant: &mut Attendant<'_>) -> anyhow::Result<Ended> {
        let sockets = tempfile::tempdir()?;
        let wiring = Wiring {
            // Nothing from outside may reach a guest that has to be the same each time, not even a full pipe's delay.
            terminal: !self.machine.engine.is_deterministic(),
            console: Some(self.dir.path().join("console.log")),
            frames: self.dir.path().join("com2.log"),
            qmp: Some(sockets.path().join("qmp")),
            reboots: false,
            memory: self.memory.as_ref().map(|folder| folder.path().to_owned()),
        };
        let to_keep = Wiring { qmp: None, memory: None, ..wiring.clone() };
        let kept = self.machine.command(self.artifacts, self.line, self.seed, &to_keep);
        write_script(&self.dir.path().join("qemu-cmd"), &script(&kept))?;
        keep_line(&kept, self.dir.path())?;
        let mut command = tied_to_us(self.machine.command(self.artifacts, self.line, self.seed, &wiring));
        if self.piped {
            command.stdin(Stdio::piped());
        }
        let console = self.dir.path().join("console.log");
        write(&console, "")?;
        let mut child = Owned::start(&mut command)?;
        if let Some(stdin) = child.0.stdin.take() {
            typist::start(std::io::stdin(), stdin, &console);
        }
        let mut shown = (!wiring.terminal).then(|| std::fs::File::open(&console)).transpose()?;
        let (mut qmp, mut reason) = (None, None);
        loop {
            // QEMU makes its socket a moment after it starts.
            qmp = qmp.or_else(|| Qmp::connect(&sockets.path().join("qmp"), Duration::ZERO));
            let status = child.0.try_wait()?;
            reason = qmp.as_mut().and_then(|qmp| qmp.shutdown_reason().map(str::to_owned)).or(reason);
            if let Some(qmp) = &mut qmp {
                attendant.look(qmp, || self.reset_was_asked_for());
            }
            if let Some(log) = &mut shown {
                std::io::copy(log, &mut std::io::stdout())?;
            }
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
            if qmp.as_mut().is_some_and(Qmp::internal_error) {
                self.end(&mut child, qmp);
                return Ok(Ended::Stuck);
            }
            let over = end.is_some_and(|end| Instant::now() >= end);
            if over || interrupted() {
                let log = std::fs::metadata(&console).map_or(0, |meta| meta.len() as usize);
                if let Some(qmp) = qmp.as_mut().filter(|_| over) {
                    // Before the NMI: it moves every CPU from where it is.
                    attendant.take(qmp);
                    if qmp.inject_nmi().is_some() {
                        // Whether it ends by itself or not, its time is over.
                        let all_said = said_all(&console, log, self.machine.shape.cpus() as usize);
                        attendant.see_off(&mut child, qmp, LAST_WORDS, all_said);
                    }
                }
                self.end(&mut child, qmp);
                return Ok(if over { Ended::TimeOut(log) } else { Ended::Interrupted });
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

    /// Keeps the readable log; shows the functions of a crash or of a kernel that was asked where it is, and says where
    /// those of other addresses are.
    fn afterwards(&self, workspace: &Workspace, ended: &Ended, exit: Exit) -> anyhow::Result<()> {
        let bytes = std::fs::read(self.dir.path().join("console.log")).unwrap_or_default();
        let raw = String::from_utf8_lossy(&bytes).replace('\r', "");
        let symbols = Symbols::load(&self.artifacts.kernel, &workspace.root);
        let readable = self.dir.path().join("console.sym.log");
        write(&readable, &console::symbolized(&raw, symbols.as_ref()))?;
        self.dir.write(
            "verdict.json",
            &format!("{:#}\n", json!({ "v": 1, "verdict": exit.word(), "exit": exit.code() })),
        )?;
        let part = match ended {
            Ended::TimeOut(asked) => {
                // What the kernel's watchdogs had noticed before belongs to it.
                let from = watchdog::first(&bytes).map_or(*asked, |noticed| noticed.min(*asked));
                console::around(&bytes, from, bytes.len(), LINES)
            }
            // What was asked for by `bt`; a session has had it on the terminal, and long ago.
            _ if exit == Exit::Passed && self.commands => console::backtraces(&raw),
            _ if exit == Exit::Passed => String::new(),
            _ => console::of_crash(&bytes, bytes.len(), 0, LINES),
        };
        let has_addresses = |log: &str| log.lines().any(|line| addresses(line).next().is_some());
        if symbols.is_some() && has_addresses(&part) {
            eprintln!("\nWith the functions:\n{}", console::symbolized(&part, symbols.as_ref()).trim_end());
        } else if symbols.is_some() && has_addresses(&raw) {
            eprintln!("grange: the log with the functions of its addresses: {}", workspace.short(&readable).display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_pass_only_when_the_kernel_says_that_all_ran() {
        for (commands, exit) in [
            (None, Exit::Passed),
            (Some("cpus; poweroff"), Exit::Passed),
            (Some(" poweroff ;"), Exit::Passed),
            (Some("poweroff; cpus"), Exit::Incomplete),
            (Some("poweroff; poweroff"), Exit::Incomplete),
            (Some("cpus"), Exit::Incomplete),
        ] {
            assert_eq!(Ended::PoweredOff.judge(commands, "").0, exit, "{commands:?}");
        }
        assert_eq!(Ended::Rebooted.judge(None, "").0, Exit::Passed);
        assert_eq!(Ended::Rebooted.judge(Some("reboot; cpus"), "").0, Exit::Incomplete);
    }

    #[test]
    fn a_boot_that_was_refused_is_not_called_a_panic() {
        use std::os::unix::process::ExitStatusExt as _;
        let ended = Ended::Status(ExitStatus::from_raw(37 << 8));
        for (log, exit, word) in [
            ("grange: command line refused: x\n", Exit::Usage, "the boot was refused"),
            ("grange-boot: no kernel\n", Exit::Panicked, "the boot was refused"),
            ("PANIC cpu 0: no\n", Exit::Panicked, "the kernel panicked"),
        ] {
            assert_eq!(ended.judge(None, log), (exit, word.to_owned()), "{log}");
        }
    }
}
