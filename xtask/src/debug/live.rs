//! QEMU and gdb together. QEMU starts with its CPUs stopped and a gdbstub behind a Unix socket; when either ends, so does the
//! other. QEMU is in a process group of its own, so that Ctrl-C reaches gdb alone, which stops the machine.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::artifact::Artifacts;
use crate::exit::{Exit, stop};
use crate::process::{Owned, POLL, tied_to_us};
use crate::qemu::script;
use crate::rundir::write_script;
use crate::workspace::Workspace;

use super::places::Places;
use super::{Gdb, apart};

/// How long QEMU may take to make its sockets.
const START: Duration = Duration::from_secs(20);
/// How long gdb may take to say that the machine is gone, and to run what commands are left.
const AFTER: Duration = Duration::from_secs(5);

/// A machine under gdb.
pub struct Live<'a> {
    /// Where things lie.
    pub workspace: &'a Workspace,
    /// The QEMU line, program first, wired as for a run of its own.
    pub argv: Vec<String>,
    /// Folder of this session.
    pub dir: &'a Path,
    /// Whether something may be typed into COM1.
    pub typed: bool,
    /// The debugger.
    pub gdb: &'a Gdb<'a>,
}

impl Live<'_> {
    /// Runs until gdb or QEMU ends.
    ///
    /// # Errors
    /// `Host` when one of them cannot be started.
    pub fn run(&self, artifacts: &Artifacts, places: &mut Places) -> anyhow::Result<Exit> {
        let sockets = tempfile::tempdir()?;
        let (gdb_socket, com1) = (sockets.path().join("gdb"), sockets.path().join("com1"));
        let wires = Wires {
            console: &self.dir.join("console.log"),
            frames: &self.dir.join("com2.log"),
            typed: self.typed.then_some(&*com1),
            gdb: &gdb_socket,
        };
        let argv = wires.put_into(&self.argv, artifacts);
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]);
        write_script(&self.dir.join("qemu-cmd"), &script(&command))?;
        let errors = self.dir.join("qemu-stderr.log");
        let mut command = tied_to_us(command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        let mut qemu = apart(&mut command)?;
        let end = Instant::now() + START;
        while !gdb_socket.exists() {
            if qemu.0.try_wait()?.is_some() || Instant::now() >= end {
                let said = std::fs::read_to_string(&errors).unwrap_or_default();
                return Err(stop(Exit::Host, format!("QEMU does not start: {}", said.trim())));
            }
            std::thread::sleep(POLL);
        }
        eprintln!("grange: console in {}", self.workspace.short(wires.console).display());
        if self.typed {
            eprintln!(
                "grange: to type into it, in another terminal: socat -,raw,echo=0,escape=0x1d UNIX:{}",
                com1.display()
            );
        }
        eprintln!("grange: gdbstub at {}", gdb_socket.display());
        let setup = self.gdb.script(&artifacts.kernel, &artifacts.loader, &places.script(&gdb_socket));
        let mut gdb = Owned::start(&mut self.gdb.command(self.dir, &setup)?)?;
        let mut gone = None;
        self.gdb.wait(&mut gdb, || {
            if let Some(status) = qemu.0.try_wait()?.filter(|_| gone.is_none()) {
                eprintln!("\ngrange: the machine is gone: QEMU ended with {status}");
                gone = Some(Instant::now() + AFTER);
            }
            Ok(gone.is_some_and(|end| Instant::now() >= end))
        })
    }
}

/// Where the serial lines and the gdbstub of a session are.
struct Wires<'a> {
    console: &'a Path,
    frames: &'a Path,
    typed: Option<&'a Path>,
    gdb: &'a Path,
}

impl Wires<'_> {
    /// The same machine with these wires, stopped at its first instruction, and nobody who holds it when it dies: a
    /// breakpoint does.
    fn put_into(&self, argv: &[String], artifacts: &Artifacts) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().replace(',', ",,");
        let console = match self.typed {
            Some(socket) => {
                format!("socket,id=com1,path={},server=on,wait=off,logfile={}", path(socket), path(self.console))
            }
            None => format!("file,id=com1,path={}", path(self.console)),
        };
        let mut out = Vec::new();
        let mut words = argv.iter();
        while let Some(word) = words.next() {
            if !["-chardev", "-kernel", "-initrd", "-action", "-mon"].contains(&word.as_str()) {
                out.push(word.clone());
                continue;
            }
            let old = words.next().map_or("", String::as_str);
            let (option, value) = match word.as_str() {
                "-chardev" if old.contains("id=com1") => ("-chardev", console.clone()),
                "-chardev" if old.contains("id=com2") => {
                    ("-chardev", format!("file,id=com2,path={}", path(self.frames)))
                }
                "-kernel" => ("-kernel", artifacts.loader.display().to_string()),
                "-initrd" => ("-initrd", artifacts.kernel.display().to_string()),
                "-action" => ("-action", "panic=none".to_owned()),
                // The monitor was on COM1, which nobody sits before.
                "-mon" => ("-monitor", "none".to_owned()),
                other => (other, old.to_owned()),
            };
            out.extend([option.to_owned(), value]);
        }
        out.extend(["-S".to_owned(), "-gdb".to_owned(), format!("unix:{},server=on,wait=off", path(self.gdb))]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_run_gets_the_wires_of_a_session_and_stays_the_same_machine() {
        let old = "qemu -m 512M -action panic=pause -chardev stdio,id=com1,mux=on,logfile=/old/console.log -serial \
                   chardev:com1 -mon chardev=com1 -chardev file,id=com2,path=/old/com2.log -serial chardev:com2 -kernel \
                   /old/boot -initrd /old/grange -append grange.seed=7 -no-reboot";
        let argv: Vec<String> = old.split_whitespace().map(str::to_owned).collect();
        let artifacts =
            Artifacts { kernel: "/kept/grange".into(), loader: "/kept/grange-boot".into(), profile: "kept" };
        let wires = |typed| Wires {
            console: Path::new("/new,/console.log"),
            frames: Path::new("/new/com2.log"),
            typed,
            gdb: Path::new("/tmp/s/gdb"),
        };
        let line = wires(None).put_into(&argv, &artifacts).join(" ");
        assert_eq!(
            line,
            "qemu -m 512M -action panic=none -chardev file,id=com1,path=/new,,/console.log -serial chardev:com1 -monitor \
             none -chardev file,id=com2,path=/new/com2.log -serial chardev:com2 -kernel /kept/grange-boot -initrd \
             /kept/grange -append grange.seed=7 -no-reboot -S -gdb unix:/tmp/s/gdb,server=on,wait=off"
        );
        let typed = wires(Some(Path::new("/tmp/s/com1"))).put_into(&argv, &artifacts).join(" ");
        assert!(typed.contains("socket,id=com1,path=/tmp/s/com1,server=on,wait=off,logfile=/new,,/console.log"));
        assert!(!line.contains("/old"), "nothing of the old run is written to or read");
    }
}
