//! One boot under watch: QEMU is started, COM2 is read while it is written, and a guest that hangs is made to say where.
//!
//! COM1 and COM2 go into files of the boot's folder, so that nothing is lost whatever becomes of this process.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::artifact::Artifacts;
use crate::frames::{Frame, FrameReader};
use crate::host_share::HostShare;
use crate::post_mortem::{Attendant, keep_line};
use crate::process::{Owned, POLL, interrupted, tied_to_us};
use crate::pulse::{Limits, Pulse};
use crate::qemu::{Machine, Wiring, script};
use crate::qmp::Qmp;
use crate::rundir::{write, write_script};
use crate::trace::{self, Trace, memory::Memory};
use crate::verdict::{Ending, Stream};
use crate::watchdog::{self, Report};

/// How long a kernel that was sent an NMI may take to print where its CPUs are.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What the host gave a guest is told for so long before it was given up.
const HANG_WINDOW: Duration = Duration::from_secs(20);

/// What to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Loader and kernel.
    pub artifacts: &'a Artifacts,
    /// The finished kernel command line.
    pub kernel_line: &'a str,
    /// Seed, for QEMU's own random numbers in deterministic runs.
    pub seed: u64,
    /// Folder of this boot.
    pub dir: &'a Path,
    /// When it counts as hung.
    pub limits: Limits,
}

/// What a boot left.
#[derive(Debug)]
pub struct Left {
    /// The frames.
    pub stream: Stream,
    /// How QEMU ended.
    pub ending: Ending,
    /// What COM1 said.
    pub console: Vec<u8>,
    /// Where each CPU was when the guest was given up, one a line; empty for one that ended by itself.
    pub cpus: String,
    /// What QEMU itself said.
    pub stderr: String,
    /// What the kernel's watchdogs reported.
    pub reports: Vec<Report>,
    /// Why there is no core in its folder, if there is none.
    pub why_no_core: String,
    /// From QEMU's start to its end.
    pub took: Duration,
}

impl Boot<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Boots, and watches until the machine is gone. `on_frame` is called for each frame as it comes.
    ///
    /// # Errors
    /// `Host` when QEMU cannot be started or the disk does not let files be written.
    pub fn watch(&self, on_frame: &mut dyn FnMut(&Frame)) -> anyhow::Result<Left> {
        // The path of a socket is short by nature; that of a run folder is not.
        let socket_dir = tempfile::tempdir().context("temporary folder")?;
        let memory = self.machine.trace.as_ref().map(|_| trace::memory::folder()).transpose()?;
        let wiring = Wiring {
            terminal: false,
            console: Some(self.file("console.log")),
            frames: self.file("com2.log"),
            qmp: Some(socket_dir.path().join("qmp")),
            reboots: false,
            memory: memory.as_ref().map(|folder| folder.path().to_owned()),
        };
        let mut command = tied_to_us(self.machine.command(self.artifacts, self.kernel_line, self.seed, &wiring));
        let without_socket = Wiring { qmp: None, memory: None, ..wiring.clone() };
        let to_keep = self.machine.command(self.artifacts, self.kernel_line, self.seed, &without_socket);
        write_script(&self.file("qemu-cmd"), &script(&to_keep))?;
        keep_line(&to_keep, self.dir)?;
        for name in ["console.log", "com2.log"] {
            write(&self.file(name), "")?;
        }
        let stderr = File::create(self.file("qemu-stderr.log")).context("qemu-stderr.log")?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let started = Instant::now();
        let mut child = Owned::start(&mut command)?;
        let mut tail = Tail::open(&self.file("com2.log"))?;
        let mut pulse = Pulse::new(self.limits, started);
        let mut host = HostShare::new(started);
        let console_log = self.file("console.log");
        let mut attendant = Attendant::new(self.machine, self.dir);
        let (mut cpus, mut qmp) = (String::new(), None);
        let ending = loop {
            // QEMU makes its socket a moment after it starts.
            qmp = qmp.or_else(|| Qmp::connect(&socket_dir.path().join("qmp"), Duration::ZERO));
            // First whether it has ended, then what it wrote: so nothing that it wrote is missed.
            let status = child.0.try_wait().context("waiting for QEMU")?;
            host.look(child.0.id(), &console_log, Instant::now());
            let now = host.guest_time(Instant::now());
            tail.read(&mut |frame| {
                pulse.frame(frame, now);
                on_frame(frame);
            })?;
            if let Some(status) = status {
                break ending_of(status);
            }
            if interrupted() {
                break Ending::Interrupted;
            }
            if let Some(qmp) = &mut qmp {
                attendant.look(qmp, || false);
            }
            if qmp.as_mut().is_some_and(Qmp::internal_error) {
                break Ending::Stuck;
            }
            if let Some(why) = pulse.hang(now) {
                cpus = qmp.map_or_else(String::new, |qmp| self.last_words(&mut child, qmp, &mut attendant));
                break Ending::Hung(format!("{why}; {}", host.before_byte(u64::MAX, HANG_WINDOW).line()));
            }
            std::thread::sleep(POLL);
        };
        child.kill();
        tail.read(on_frame)?;
        let stderr = std::fs::read_to_string(self.file("qemu-stderr.log")).unwrap_or_default();
        let console = std::fs::read(&console_log).unwrap_or_default();
        let reports = watchdog::reports(&console, &host);
        let why_no_core = attendant.why_none();
        if let Some(folder) = memory {
            trace::keep(&Trace::new(&Memory::of_files(folder.path())?, &self.artifacts.kernel)?, self.dir)?;
        }
        Ok(Left { stream: tail.finish(), ending, console, cpus, stderr, reports, why_no_core, took: started.elapsed() })
    }

    /// The guest hangs. QEMU is asked where each CPU is; an NMI to all of them makes a kernel that still can say more.
    fn last_words(&self, child: &mut Owned, mut qmp: Qmp, attendant: &mut Attendant<'_>) -> String {
        let registers = qmp.monitor("info registers -a", LAST_WORDS).unwrap_or_default();
        // A file that cannot be written is missing afterwards; the verdict is the same.
        let _ = write(&self.file("registers.txt"), &registers.replace('\r', ""));
        // Before the NMI: it moves every CPU from where it hangs.
        attendant.take(&mut qmp);
        if qmp.inject_nmi().is_some() {
            // Whether it ends by itself or not, it hung.
            attendant.see_off(child, &mut qmp, LAST_WORDS, || false);
        }
        where_cpus_are(&registers)
    }
}

/// One line a CPU from what the monitor's `info registers -a` prints.
fn where_cpus_are(registers: &str) -> String {
    let mut out = String::new();
    let mut cpu = "?";
    for line in registers.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#") {
            cpu = number;
        }
        let mut fields = line.split_whitespace();
        if let Some(ip) = fields.clone().find_map(|field| field.strip_prefix("RIP=")) {
            let halted = if fields.any(|field| field == "HLT=1") { ", halted" } else { "" };
            out.push_str(&format!("cpu {cpu} is at 0x{ip}{halted}\n"));
        }
    }
    out
}

fn ending_of(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        _ if interrupted() => Ending::Interrupted,
        (Some(code), _) => Ending::Status(code),
        (None, signal) => Ending::Signal(signal.unwrap_or_default()),
    }
}

/// Reads a file of frames behind its writer.
struct Tail {
    file: File,
    reader: FrameReader,
    stream: Stream,
}

impl Tail {
    fn open(frames: &Path) -> anyhow::Result<Tail> {
        let file = File::open(frames).with_context(|| frames.display().to_string())?;
        Ok(Tail { file, reader: FrameReader::default(), stream: Stream::default() })
    }

    fn read(&mut self, on_frame: &mut dyn FnMut(&Frame)) -> anyhow::Result<()> {
        // QEMU truncates the file when it opens it: a position behind the end means that this has just happened.
        if self.file.metadata()?.len() < self.file.stream_position()? {
            self.file.seek(SeekFrom::Start(0))?;
        }
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes).context("reading COM2")?;
        for frame in self.reader.push(&bytes) {
            if let Ok(frame) = &frame {
                on_frame(frame);
            }
            self.stream.take(frame);
        }
        Ok(())
    }

    fn finish(self) -> Stream {
        let mut stream = self.stream;
        stream.errors.extend(self.reader.finish());
        stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitors_registers_become_one_line_a_cpu() {
        let registers = "\r\nCPU#0\r\nRAX=0 RBX=1\r\nRIP=ffffffff80001234 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n\r\n\
                         CPU#1\r\nRIP=ffffffff80005678 RFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n";
        assert_eq!(
            where_cpus_are(registers),
            "cpu 0 is at 0xffffffff80001234\ncpu 1 is at 0xffffffff80005678, halted\n"
        );
        assert_eq!(where_cpus_are(""), "");
    }
}
