//! One boot of the experiment.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::artifact::Artifacts;
use crate::console;
use crate::exit::{Exit, stop};
use crate::kernel_args::KernelLine;
use crate::process::{Owned, interrupted, tied_to_us};
use crate::qemu::{Machine, Wiring, script};
use crate::rundir::{write, write_script};
use crate::spread::{Spread, median};

/// The views that the shell is asked for, in their form for programs.
const VIEWS: &str = "cpus --json; nodes --json; ipi --json";
/// How often COM1 is looked at: the resolution of the figure.
const LOOK: Duration = Duration::from_millis(1);
/// A boot that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(180);

/// What to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Loader and kernel.
    pub artifacts: &'a Artifacts,
    /// Folder of this boot.
    pub dir: &'a Path,
}

/// What one boot gave.
#[derive(Debug)]
pub struct Figures {
    /// From QEMU's start to the line that says how many CPUs are online.
    pub online: Duration,
    /// The kernel's own clock at that line.
    pub guest_ms: u64,
    /// The views by their names.
    pub views: Value,
}

impl Figures {
    /// Milliseconds to the line that says that all CPUs are online.
    #[must_use]
    pub fn online_ms(&self) -> f64 {
        self.online.as_secs_f64() * 1e3
    }

    /// Middle over the CPUs of the middle time of a call and back, in ns.
    #[must_use]
    pub fn call_ns(&self) -> Option<f64> {
        median(self.column("ipi", "call p50 ns"))
    }

    /// The same for an NMI.
    #[must_use]
    pub fn nmi_ns(&self) -> Option<f64> {
        median(self.column("ipi", "nmi p50 ns"))
    }

    /// When the CPUs that the boot CPU started came into the kernel: the first, the one in the middle and the last, in µs
    /// after reset. `None` with one CPU.
    #[must_use]
    pub fn arrived_us(&self) -> Option<[f64; 3]> {
        spread(self.column("cpus", "arrived us"))
    }

    /// The same for when they were up.
    #[must_use]
    pub fn up_us(&self) -> Option<[f64; 3]> {
        spread(self.column("cpus", "up us"))
    }

    /// Memory of each node in MiB.
    #[must_use]
    pub fn memory(&self) -> Vec<String> {
        self.rows("nodes").iter().map(|node| node["memory MiB"].to_string()).collect()
    }

    /// The distances from each node to all.
    #[must_use]
    pub fn distances(&self) -> Vec<String> {
        let nodes = self.rows("nodes");
        let from = |node: &Value| {
            let all = nodes.iter().map(|to| node[format!("to {}", to["node"])].to_string());
            all.collect::<Vec<_>>().join(" ")
        };
        nodes.iter().map(from).collect()
    }

    fn rows(&self, view: &str) -> &[Value] {
        self.views[view].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn column(&self, view: &str, column: &str) -> Vec<f64> {
        self.rows(view).iter().filter_map(|row| row[column].as_f64()).collect()
    }
}

/// Least, middle and greatest.
fn spread(values: Vec<f64>) -> Option<[f64; 3]> {
    Spread::of(&values).map(|all| [all.least, all.middle, all.most])
}

impl Boot<'_> {
    /// Boots, waits for the end, and reads the figures.
    ///
    /// # Errors
    /// With the status of what went wrong: a CPU that is missing, a panic, a hang, output that lacks a view.
    pub fn measure(&self) -> anyhow::Result<Figures> {
        let shape = &self.machine.shape;
        let mut line = KernelLine::new(&self.machine.append);
        line.set("grange.exec", VIEWS)?;
        let console_log = self.dir.join("console.log");
        let wiring = Wiring {
            terminal: false,
            console: Some(console_log.clone()),
            frames: self.dir.join("com2.log"),
            qmp: None,
            reboots: false,
            memory: None,
        };
        let command = self.machine.command(self.artifacts, line.finish()?, 0, &wiring);
        write_script(&self.dir.join("qemu-cmd"), &script(&command))?;
        write(&console_log, "")?;
        let mut command = tied_to_us(command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.dir.join("qemu-stderr.log"))?);
        let mut file = File::open(&console_log).with_context(|| console_log.display().to_string())?;
        let started = Instant::now();
        let mut child = Owned::start(&mut command)?;
        let (mut log, mut online) = (Vec::new(), None);
        let status = loop {
            let status = child.0.try_wait()?;
            file.read_to_end(&mut log)?;
            if online.is_none() && online_line(&log).is_some() {
                online = Some(started.elapsed());
            }
            if status.is_some() || started.elapsed() > LIMIT || interrupted() {
                break status;
            }
            std::thread::sleep(LOOK);
        };
        let told = |exit, what: String| stop(exit, format!("{shape}: {what}; see {}", self.dir.display()));
        let Some(status) = status else {
            return Err(told(Exit::Hung, format!("no end after {} s", LIMIT.as_secs())));
        };
        match status.code() {
            Some(33) => {}
            Some(37) => {
                let text = String::from_utf8_lossy(&log).into_owned();
                let why = console::crash_line(&text).unwrap_or("the kernel panicked");
                return Err(told(Exit::Panicked, why.to_owned()));
            }
            _ => return Err(told(Exit::Host, format!("QEMU ended with {status}"))),
        }
        let (Some(online), Some((cpus, guest_ms))) = (online, online_line(&log)) else {
            return Err(told(Exit::Incomplete, "no line that says which CPUs are online".into()));
        };
        if cpus != shape.cpus() {
            return Err(told(Exit::Incomplete, format!("only {cpus} CPUs came online")));
        }
        Ok(Figures { online, guest_ms, views: views(&log) })
    }
}

/// CPUs and milliseconds from `grange 0.1.0: CPUs 0-3 online, 2 nodes, 499 MiB, 116 ms after reset`.
fn online_line(log: &[u8]) -> Option<(u32, u64)> {
    let text = String::from_utf8_lossy(log);
    let (before, rest) = text.split_once(" online, ")?;
    let cpus = before.rsplit_once("CPUs ")?.1;
    let time = rest.split_once(" ms after reset")?.0.rsplit(' ').next()?;
    Some((count(cpus)?, time.parse().ok()?))
}

/// How many numbers a list such as `0-3,6` names.
fn count(list: &str) -> Option<u32> {
    let mut total = 0;
    for part in list.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        total += last.checked_sub(first)? + 1;
    }
    Some(total)
}

/// The JSON objects of the log, one a line, as one object.
fn views(log: &[u8]) -> Value {
    let mut all = serde_json::Map::new();
    for line in String::from_utf8_lossy(log).lines() {
        if let Ok(Value::Object(view)) = serde_json::from_str(line.trim()) {
            all.extend(view);
        }
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"[    0.106688] rcu: 4 CPUs, 1 levels: 1\r\n\
        [    0.116411] grange 0.1.0: CPUs 0-3,6 online, 2 nodes, 499 MiB, 116 ms after reset\r\n\
        {\"nodes\":[{\"node\":0,\"memory MiB\":249,\"to 0\":10,\"to 1\":20},{\"node\":1,\"memory MiB\":250,\"to 0\":20,\"to 1\":10}]}\r\n\
        {\"cpus\":[{\"cpu\":0,\"arrived us\":null,\"up us\":null},{\"cpu\":1,\"arrived us\":30,\"up us\":35},\
        {\"cpu\":2,\"arrived us\":10,\"up us\":38}]}\r\n\
        {\"ipi\":[{\"cpu\":1,\"call p50 ns\":3500,\"nmi p50 ns\":2500},{\"cpu\":2,\"call p50 ns\":3600,\"nmi p50 ns\":null}]}\r\n";

    #[test]
    fn the_line_is_found_and_its_cpus_counted() {
        assert_eq!(online_line(LOG), Some((5, 116)));
        assert_eq!(online_line(&LOG[..100]), None);
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("3-1"), None);
    }

    #[test]
    fn the_views_give_times_memory_and_distances() {
        let figures = Figures { online: Duration::ZERO, guest_ms: 0, views: views(LOG) };
        assert_eq!((figures.call_ns(), figures.nmi_ns()), (Some(3550.0), Some(2500.0)));
        assert_eq!(figures.arrived_us(), Some([10.0, 20.0, 30.0]));
        assert_eq!(figures.up_us(), Some([35.0, 36.5, 38.0]));
        assert_eq!(figures.memory(), ["249", "250"]);
        assert_eq!(figures.distances(), ["10 20", "20 10"]);
    }
}
