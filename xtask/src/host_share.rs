//! How much of the host's CPUs QEMU got of what it wanted: whether a guest that did not get on was starved.
//!
//! The threads of QEMU are looked at ten times a second (`/proc/PID/task/*/stat`). A thread that is runnable at two looks
//! in a row wanted all the time between them; any other wanted what it used. A guest that idles wants nothing, and so is
//! not starved.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);

/// What CPU times in `/proc` are counted in: `USER_HZ` is 100 wherever QEMU and we run.
pub const TICK: Duration = Duration::from_millis(10);

/// A guest that got less than this of what it wanted was starved by the host.
const STARVED_BELOW_PERCENT: u32 = 50;

/// However starved a guest is, its time runs at this part of the host's at least: a hang must come to an end.
const SLOWEST: f64 = 0.05;

/// A thread of QEMU at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadTime {
    /// Its number.
    pub tid: u64,
    /// It runs, or would if it had a CPU.
    pub runnable: bool,
    /// CPU time it has used so far.
    pub used: Duration,
}

/// What QEMU got and wanted in some window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    got: Duration,
    wanted: Duration,
}

impl Share {
    /// In percent of what was wanted.
    #[must_use]
    pub fn percent(self) -> u32 {
        (self.fraction() * 100.0).round() as u32
    }

    /// Whether the host is to blame for a guest that did not get on.
    #[must_use]
    pub fn is_starved(self) -> bool {
        self.percent() < STARVED_BELOW_PERCENT
    }

    /// The line that stands beside a report.
    #[must_use]
    pub fn line(self) -> String {
        let judgement = if self.is_starved() { "starved by the host" } else { "not the host's fault" };
        format!("host: the guest got {} % of its cores in this window: {judgement}", self.percent())
    }

    fn fraction(self) -> f64 {
        if self.wanted.is_zero() { 1.0 } else { (self.got.as_secs_f64() / self.wanted.as_secs_f64()).min(1.0) }
    }
}

/// One look: sums since the start, and how much of the console was there.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    sums: Share,
    console: u64,
}

/// All looks at one QEMU.
#[derive(Debug)]
pub struct HostShare {
    started: Instant,
    threads: HashMap<u64, ThreadTime>,
    looks: Vec<Look>,
    /// Time that has passed for a guest that gets its CPUs.
    fed: Duration,
}

impl HostShare {
    /// A QEMU that starts now.
    #[must_use]
    pub fn new(now: Instant) -> HostShare {
        HostShare {
            started: now,
            threads: HashMap::new(),
            looks: vec![Look { at: now, sums: Share::default(), console: 0 }],
            fed: Duration::ZERO,
        }
    }

    /// Looks at the threads of `pid` and at the length of the console's log, if it is time.
    pub fn look(&mut self, pid: u32, console: &Path, now: Instant) {
        if now.duration_since(self.last().at) >= PERIOD {
            let length = console.metadata().map_or(0, |meta| meta.len());
            self.take(&threads_of(pid), length, now);
        }
    }

    fn last(&self) -> Look {
        self.looks[self.looks.len() - 1]
    }

    /// Takes what was seen in.
    fn take(&mut self, threads: &[ThreadTime], console: u64, now: Instant) {
        let Look { at, mut sums, .. } = self.last();
        let passed = now.duration_since(at);
        let mut here = Share::default();
        for thread in threads {
            let before = self.threads.insert(thread.tid, *thread);
            let Some(before) = before else { continue };
            let used = thread.used.saturating_sub(before.used).min(passed);
            here.got += used;
            here.wanted += if thread.runnable && before.runnable { passed } else { used };
        }
        sums.got += here.got;
        sums.wanted += here.wanted;
        self.fed += passed.mul_f64(here.fraction().max(SLOWEST));
        self.looks.push(Look { at: now, sums, console });
    }

    /// The time as it is for the guest: it stands still for as much as the host did not run it.
    #[must_use]
    pub fn guest_time(&self, now: Instant) -> Instant {
        self.started + self.fed + now.saturating_duration_since(self.last().at)
    }

    /// The share in the `window` that ended when byte `offset` of the console's log had come.
    #[must_use]
    pub fn before_byte(&self, offset: u64, window: Duration) -> Share {
        let end = self.looks.iter().find(|look| look.console > offset).copied().unwrap_or(self.last());
        let begin = self.looks.iter().rev().find(|look| look.at + window <= end.at).unwrap_or(&self.looks[0]);
        Share { got: end.sums.got - begin.sums.got, wanted: end.sums.wanted - begin.sums.wanted }
    }
}

/// The threads of a process; none if it is gone.
#[must_use]
pub fn threads_of(pid: u32) -> Vec<ThreadTime> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let stats = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| parse(&stat)).collect()
}

/// A line of `/proc/PID/task/TID/stat`: number, name in parentheses, state; the 14th and 15th fields are CPU time.
fn parse(stat: &str) -> Option<ThreadTime> {
    let (before, after) = (stat.split_once(" (")?.0, stat.rsplit_once(") ")?.1);
    let fields: Vec<&str> = after.split(' ').collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let used = TICK * u32::try_from(ticks(14)? + ticks(15)?).ok()?;
    Some(ThreadTime { tid: before.parse().ok()?, runnable: fields.first() == Some(&"R"), used })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second at threads that are always runnable and use so many milliseconds of each second.
    fn shares(seconds: &[&[u64]]) -> (HostShare, Instant) {
        let start = Instant::now();
        let mut host = HostShare::new(start);
        let mut used = [0; 4];
        for (second, each) in seconds.iter().enumerate() {
            let threads: Vec<ThreadTime> = (0..each.len())
                .map(|n| {
                    used[n] += each[n];
                    ThreadTime { tid: n as u64, runnable: true, used: Duration::from_millis(used[n]) }
                })
                .collect();
            host.take(&threads, 100 * (second as u64 + 1), start + Duration::from_secs(second as u64 + 1));
        }
        (host, start)
    }

    #[test]
    fn a_guest_that_got_little_of_what_it_wanted_was_starved() {
        let (host, _) = shares(&[&[0, 0], &[1000, 1000], &[400, 420], &[410, 410]]);
        let share = host.before_byte(350, Duration::from_secs(2));
        assert_eq!((share.percent(), share.is_starved()), (41, true));
        assert_eq!(share.line(), "host: the guest got 41 % of its cores in this window: starved by the host");
        let share = host.before_byte(150, Duration::from_secs(1));
        assert_eq!((share.percent(), share.is_starved()), (100, false));
        assert!(share.line().ends_with("100 % of its cores in this window: not the host's fault"));
    }

    #[test]
    fn a_guest_that_sleeps_wants_nothing_and_is_not_starved() {
        let start = Instant::now();
        let mut host = HostShare::new(start);
        for second in 0..5 {
            let idle = ThreadTime { tid: 1, runnable: false, used: Duration::from_millis(second * 10) };
            host.take(&[idle], 0, start + Duration::from_secs(second + 1));
        }
        let share = host.before_byte(0, Duration::from_secs(3));
        assert_eq!((share.percent(), share.is_starved()), (100, false));
        assert_eq!(host.guest_time(start + Duration::from_secs(5)), start + Duration::from_secs(5));
    }

    #[test]
    fn the_guests_time_runs_as_fast_as_the_host_lets_it_but_never_stands_still() {
        let (host, start) = shares(&[&[0], &[1000], &[250], &[0]]);
        let passed = host.guest_time(start + Duration::from_secs(4)).duration_since(start);
        // The first look finds a new thread, of which nothing is known.
        assert_eq!(passed, Duration::from_millis(1000 + 1000 + 250 + 50));
    }

    #[test]
    fn a_thread_is_read_from_proc_whatever_it_is_called() {
        let stat = "77 (a ) R (b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 1";
        let read = parse(stat).unwrap();
        assert_eq!((read.tid, read.runnable, read.used), (77, false, Duration::from_secs(2)));
        assert!(parse("").is_none() && parse("77 (x) R 1 2").is_none());
        let mine = threads_of(std::process::id());
        assert!(mine.iter().any(|thread| thread.runnable), "{mine:?}");
    }
}
