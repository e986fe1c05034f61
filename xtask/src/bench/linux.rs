//! rcuscale's test of `kfree_rcu` on a Linux image: the same emulator with the same settings, and the line that it prints.
//!
//! The image has rcuscale built in and an initial file system whose first program sleeps; docs/linux.md tells how to make
//! both. The test powers the machine off when it is done.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::artifact::Artifacts;
use crate::exit::{Exit, stop, usage};
use crate::process::{Owned, interrupted, tied_to_us};
use crate::qemu::{Machine, Wiring, script};
use crate::rundir::{write, write_script};

use super::plan::Scale;
use super::record::LinuxLine;

/// A test that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(900);

/// Whether both files are there.
///
/// # Errors
/// `Usage` for one that is not.
pub fn check_files(bzimage: &Path, initrd: &Path) -> anyhow::Result<()> {
    for (option, path) in [("--bzimage", bzimage), ("--initrd", initrd)] {
        if !path.is_file() {
            return Err(usage(format!(
                "{option} {}: there is no such file; docs/linux.md tells how to make it",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Boots the image on `machine`, whose logs go into `dir`, and reads the line.
///
/// # Errors
/// `Incomplete` when it ends without the line, `Hung` when it does not end.
pub fn measure(
    machine: &Machine,
    bzimage: &Path,
    initrd: &Path,
    scale: &Scale,
    dir: &Path,
) -> anyhow::Result<LinuxLine> {
    let console = dir.join("console.log");
    let wiring = Wiring {
        terminal: false,
        console: Some(console.clone()),
        frames: dir.join("com2.log"),
        qmp: None,
        reboots: false,
        memory: None,
    };
    // To QEMU one kernel is as good as another.
    let image = Artifacts { loader: bzimage.to_owned(), kernel: initrd.to_owned(), profile: "linux" };
    let command = machine.command(&image, &kernel_line(scale), 0, &wiring);
    write_script(&dir.join("qemu-cmd"), &script(&command))?;
    write(&console, "")?;
    let mut command = tied_to_us(command);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = Owned::start(&mut command)?;
    let ended = child.wait_for(Some(LIMIT))?;
    child.kill();
    if interrupted() {
        return Err(stop(Exit::Interrupted, "interrupted".to_owned()));
    }
    let said = std::fs::read(&console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    match (read_line(&said, scale), ended) {
        (Some(line), _) => Ok(line),
        (None, None) => {
            Err(stop(Exit::Hung, format!("Linux: no end after {} s; see {}", LIMIT.as_secs(), dir.display())))
        }
        (None, Some(_)) => Err(stop(
            Exit::Incomplete,
            format!("Linux: no line of rcuscale's; is CONFIG_RCU_SCALE_TEST built in? See {}", console.display()),
        )),
    }
}

/// What the image is told. On a busy host Linux measures the TSC's rate wrong, by a factor of ten at times: the HPET's is known.
fn kernel_line(scale: &Scale) -> String {
    let test = "rcuscale.kfree_rcu_test=1 rcuscale.shutdown=1";
    format!("console=ttyS0 tsc=unstable clocksource=hpet {test} {}", scale.words())
}

/// The line among all that the console says.
fn read_line(console: &str, scale: &Scale) -> Option<LinuxLine> {
    let after = |key: &str, text: &str| {
        let (_, rest) = text.split_once(key)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<f64>().ok()
    };
    let line = console.lines().find(|line| line.contains("Total time taken by all kfree'ers"))?;
    let release = console.split_once("Linux version ").and_then(|(_, rest)| rest.split_whitespace().next());
    Some(LinuxLine {
        leg: scale.leg(),
        release: release.unwrap_or_default().to_owned(),
        ns: after("kfree'ers: ", line)?,
        batches: after("batches: ", line)?,
        footprint: after("footprint: ", line)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    0.000000] Linux version 6.12.1 (builder) #1 SMP\r\n\
        [    3.100000] rcu-scale: Total time taken by all kfree'ers: 1100123456 ns, loops: 2000, batches: 116, memory footprint: 20MB\r\n\
        [    3.200000] reboot: Power down\r\n";

    #[test]
    fn the_line_is_found_among_what_the_console_says() {
        let (leg, release) = ("rcuscale-2".to_owned(), "6.12.1".to_owned());
        let line = LinuxLine { leg, release, ns: 1_100_123_456.0, batches: 116.0, footprint: 20.0 };
        assert_eq!(read_line(CONSOLE, &Scale::ALL[0]), Some(line));
        assert_eq!(read_line("Linux version 6.12.1\nVFS: Unable to mount root fs", &Scale::ALL[0]), None);
    }

    #[test]
    fn the_image_is_told_the_same_numbers_as_our_kernel() {
        let line = kernel_line(&Scale { cpus: 2, loops: 2_000, objects: 1_000 });
        assert!(
            line.contains("rcuscale.kfree_nthreads=2 rcuscale.kfree_loops=2000 rcuscale.kfree_alloc_num=1000"),
            "{line}"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named_with_its_option() {
        let error = check_files(Path::new("/none/bzImage"), Path::new("/none/initrd")).unwrap_err();
        assert!(error.to_string().contains("--bzimage /none/bzImage"), "{error}");
    }
}
