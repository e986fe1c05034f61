//! Child processes: printed before they run, and ended when the user presses Ctrl-C.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::exit::{Exit, stop};
use crate::toolchain::find_program;

/// Set by the signal handler, read by every loop that waits. Relaxed: the flag carries no data with it.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a waiting loop looks around.
pub const POLL: Duration = Duration::from_millis(10);

/// From here on Ctrl-C (and SIGTERM) sets a flag instead of ending this process, so that QEMU never outlives it.
pub fn watch_for_interrupts() {
    // Fails only when a handler is set already: then somebody else watches, and that is as good.
    let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
}

/// From here on a reader of standard output that goes away (`cargo xtask doctor | head`) ends this process quietly.
pub fn end_quietly_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map(String::as_str).unwrap_or_default();
        if message.starts_with("failed printing to std") && message.contains("Broken pipe") {
            std::process::exit(Exit::Host.code().into());
        }
        usual(panic);
    }));
}

/// The same command, ended by the host when this process ends in a way that it cannot help: a guest that hangs must not
/// stay behind. Without util-linux's `setpriv` it is the command itself.
#[must_use]
pub fn tied_to_us(command: Command) -> Command {
    let Some(setpriv) = find_program(Path::new("setpriv")) else { return command };
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    tied
}

/// Whether the user asked to stop.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Forgets an interrupt that was meant for a child that shares this terminal.
pub fn forget_interrupt() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}

/// A word as one types it in a POSIX shell.
#[must_use]
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The command as one types it in a POSIX shell.
#[must_use]
pub fn shell_line(command: &Command) -> String {
    // Cargo is known by its path inside the toolchain; nobody types that.
    let program = Path::new(command.get_program());
    let program = program.file_name().filter(|&name| name == "cargo").unwrap_or(command.get_program());
    std::iter::once(program).chain(command.get_args()).map(quoted).collect::<Vec<_>>().join(" ")
}

/// Prints the command, runs it with this terminal, and waits for it.
///
/// # Errors
/// When it cannot be started.
pub fn run_shown(command: &mut Command) -> anyhow::Result<ExitStatus> {
    eprintln!("$ {}", shell_line(command));
    command.status().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

/// Runs the command and returns what it printed, or `None` when it cannot be started or fails.
#[must_use]
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A child that is killed when this value goes away.
#[derive(Debug)]
pub struct Owned(pub Child);

impl Owned {
    /// Starts the command.
    ///
    /// # Errors
    /// When it cannot be started: the host's trouble.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn();
        child.map(Owned).map_err(|error| {
            stop(Exit::Host, format!("cannot start {}: {error}", command.get_program().to_string_lossy()))
        })
    }

    /// Waits until the child ends, the time is over or the user interrupts; `None` in the last two cases.
    ///
    /// # Errors
    /// When the child cannot be waited for.
    pub fn wait_for(&mut self, time: Option<Duration>) -> anyhow::Result<Option<ExitStatus>> {
        let end = time.map(|time| Instant::now() + time);
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if interrupted() || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks the child to end, as a terminal that goes away does.
    pub fn ask_to_end(&self) {
        if let Some(pid) = Pid::from_raw(self.0.id() as i32) {
            // Fails only when the child is gone already.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Ends the child and reaps it.
    pub fn kill(&mut self) {
        // Both fail only when the child is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_line_quotes_only_what_needs_it() {
        let mut command = Command::new("qemu");
        command.args(["-m", "512M", "-append", "grange.exec=\"cpus; it's\"", ""]);
        assert_eq!(shell_line(&command), r#"qemu -m 512M -append 'grange.exec="cpus; it'\''s"' ''"#);
    }

    #[test]
    fn a_child_that_outlives_its_time_is_not_waited_for() {
        let mut child = Owned::start(Command::new("sleep").arg("30")).unwrap();
        assert!(child.wait_for(Some(Duration::from_millis(30))).unwrap().is_none());
        child.kill();
    }

    #[test]
    fn a_tied_command_is_the_same_command() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo \"$0\"", "a b"]);
        let mut tied = tied_to_us(command);
        assert_eq!(output_of(&mut tied).as_deref(), Some("a b"));
    }

    #[test]
    fn a_program_that_is_not_there_is_the_hosts_trouble() {
        let error = Owned::start(&mut Command::new("/no/such/qemu")).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Host);
        assert!(error.to_string().contains("/no/such/qemu"));
    }
}
