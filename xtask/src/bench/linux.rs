//! rcuscale's tests on a Linux image, of `kfree_rcu` and of grace periods under load: the same emulator with the same settings,
//! and the lines that they print.
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

use super::plan::LinuxTest;
use super::record::{LinuxLine, LinuxWaits};

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

/// Boots the image on `machine`, whose logs go into `dir`, and gives what it said.
///
/// # Errors
/// `Hung` when it does not end, `Incomplete` when it ends without having run the test.
pub fn run(machine: &Machine, bzimage: &Path, initrd: &Path, test: &LinuxTest, dir: &Path) -> anyhow::Result<String> {
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
    let command = machine.command(&image, &kernel_line(test), 0, &wiring);
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
    if ended.is_none() {
        return Err(stop(Exit::Hung, format!("Linux: no end after {} s; see {}", LIMIT.as_secs(), dir.display())));
    }
    let said = std::fs::read(&console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    if !said.contains("rcu-scale:--- Start of test") {
        return Err(stop(
            Exit::Incomplete,
            format!("Linux: rcuscale did not start; is CONFIG_RCU_SCALE_TEST built in? See {}", console.display()),
        ));
    }
    Ok(said)
}

/// What the image is told. On a busy host Linux measures the TSC's rate wrong, by a factor of ten at times: the HPET's is known.
fn kernel_line(test: &LinuxTest) -> String {
    format!("console=ttyS0 tsc=unstable clocksource=hpet rcuscale.shutdown=1 {}", test.words())
}

/// The line of the test of `kfree_rcu` among all that the console says.
#[must_use]
pub fn line(console: &str, leg: &str) -> Option<LinuxLine> {
    let after = |key: &str, text: &str| {
        let (_, rest) = text.split_once(key)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<f64>().ok()
    };
    let line = console.lines().find(|line| line.contains("Total time taken by all kfree'ers"))?;
    Some(LinuxLine {
        leg: leg.to_owned(),
        release: release(console),
        ns: after("kfree'ers: ", line)?,
        batches: after("batches: ", line)?,
        footprint: after("footprint: ", line)?,
    })
}

/// All waits that writers tell of at the end of a test of grace periods.
#[must_use]
pub fn waits(console: &str, leg: &str, kind: &str) -> Option<LinuxWaits> {
    let wait = |line: &str| line.split_once("writer-duration:")?.1.split_whitespace().nth(1)?.parse().ok();
    let waits: Vec<f64> = console.lines().filter_map(wait).collect();
    let (leg, kind) = (leg.to_owned(), kind.to_owned());
    (!waits.is_empty()).then(|| LinuxWaits { leg, release: release(console), kind, waits })
}

fn release(console: &str) -> String {
    let release = console.split_once("Linux version ").and_then(|(_, rest)| rest.split_whitespace().next());
    release.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::Scale;

    const CONSOLE: &str = "[    0.000000] Linux version 6.12.1 (builder) #1 SMP\r\n\
        [    3.100000] rcu-scale: Total time taken by all kfree'ers: 1100123456 ns, loops: 2000, batches: 116, memory footprint: 20MB\r\n\
        [    3.200000] reboot: Power down\r\n";

    #[test]
    fn the_line_is_found_among_what_the_console_says() {
        let (leg, release) = ("rcuscale-2".to_owned(), "6.12.1".to_owned());
        let expected = LinuxLine { leg, release, ns: 1_100_123_456.0, batches: 116.0, footprint: 20.0 };
        assert_eq!(line(CONSOLE, "rcuscale-2"), Some(expected));
        assert_eq!(line("Linux version 6.12.1\nVFS: Unable to mount root fs", "rcuscale-2"), None);
    }

    #[test]
    fn waits_are_those_of_all_writers() {
        let console = "[ 0.0] Linux version 6.12.1 (b)\r\n[ 9.0] rcu-scale:    0 writer-duration:     0 15983840\r\n\
            [ 9.1] rcu-scale:    1 writer-duration:     0 19987950\r\n";
        let seen = waits(console, "latency-2", "normal").unwrap();
        assert_eq!((seen.release.as_str(), seen.waits), ("6.12.1", vec![15_983_840.0, 19_987_950.0]));
        assert_eq!(waits(CONSOLE, "latency-2", "normal"), None);
    }

    #[test]
    fn the_image_is_told_the_same_numbers_as_our_kernel() {
        let line = kernel_line(&LinuxTest::Kfree(Scale { cpus: 2, loops: 2_000, objects: 1_000 }));
        for word in
            ["rcuscale.kfree_rcu_test=1", "kfree_nthreads=2 rcuscale.kfree_loops=2000 rcuscale.kfree_alloc_num=1000"]
        {
            assert!(line.contains(word), "{line}");
        }
        let line = kernel_line(&LinuxTest::Waits { writers: 4, expedited: true });
        assert!(line.contains("rcuscale.nwriters=4 rcuscale.nreaders=4 rcuscale.gp_exp=1"), "{line}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named_with_its_option() {
        let error = check_files(Path::new("/none/bzImage"), Path::new("/none/initrd")).unwrap_err();
        assert!(error.to_string().contains("--bzimage /none/bzImage"), "{error}");
    }
}
