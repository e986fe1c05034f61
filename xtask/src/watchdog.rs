//! Reports of the kernel's watchdogs in its log, judged by what the host gave the guest.
//!
//! A report of a guest that the host starved is told and counted, but fails nothing; one of a guest that ran is a stall.
//! Reports that a test provoked say "(drill)" and do not count.

use std::time::Duration;

use serde::Serialize;

use crate::host_share::HostShare;

/// What is in the first line of a report; both parts, where there are two.
const MARKS: [(&str, &str); 5] = [
    ("watchdog: BUG: soft lockup - CPU#", ""),
    ("Watchdog detected hard LOCKUP on cpu ", ""),
    ("watchdog: BUG: lost timer - CPU#", ""),
    ("INFO: task ", " blocked for more than "),
    ("INFO: task ", " got no CPU for more than "),
];

/// What stands before the age of what is reported, in one of the first two lines.
const AGES: [&str; 3] = [" stuck for ", " for more than ", " has not beaten for "];

/// The window of a report that does not tell an age.
const USUAL: Duration = Duration::from_secs(10);

/// A report, and what the host gave the guest in the time that it tells of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Its first line, as it stands in the log.
    pub line: String,
    /// How long what it reports had lasted.
    pub window_s: u64,
    /// What the guest got of the host's CPUs meanwhile, in percent of what it wanted.
    pub host_percent: u32,
    /// It does not count: the host is to blame.
    pub starved: bool,
    /// The same in words.
    pub host: String,
}

/// The reports in the console's log.
#[must_use]
pub fn reports(console: &[u8], host: &HostShare) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut offset = 0_u64;
    let mut lines = console.split_inclusive(|&byte| byte == b'\n').peekable();
    while let Some(bytes) = lines.next() {
        let line = String::from_utf8_lossy(bytes);
        let line = line.trim_end();
        if begins_one(line) {
            let next = lines.peek().map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
            let window = age(line).or_else(|| age(&next)).unwrap_or(USUAL);
            let share = host.before_byte(offset, window);
            reports.push(Report {
                line: line.to_owned(),
                window_s: window.as_secs(),
                host_percent: share.percent(),
                starved: share.is_starved(),
                host: share.line(),
            });
        }
        offset += bytes.len() as u64;
    }
    reports
}

/// Where the first report in the console's log begins, in bytes.
#[must_use]
pub fn first(console: &[u8]) -> Option<usize> {
    let mut offset = 0;
    console.split_inclusive(|&byte| byte == b'\n').find_map(|line| {
        let at = offset;
        offset += line.len();
        begins_one(String::from_utf8_lossy(line).trim_end()).then_some(at)
    })
}

/// Whether a line is the first of a report that counts.
fn begins_one(line: &str) -> bool {
    let marked = MARKS.iter().any(|(first, second)| line.contains(first) && line.contains(second));
    marked && !line.ends_with("(drill)")
}

/// The log with the host's share below the first line of each report.
#[must_use]
pub fn annotated(log: &str, reports: &[Report]) -> String {
    let mut out = String::with_capacity(log.len());
    let mut reports = reports.iter().peekable();
    for line in log.lines() {
        out.push_str(line);
        out.push('\n');
        if let Some(report) = reports.next_if(|report| report.line == line) {
            out.push_str(&format!("  {}\n", report.host));
        }
    }
    out
}

/// `stuck for 23s`, `for more than 120 seconds`, `has not beaten for 12.3 s`: at least a second.
fn age(line: &str) -> Option<Duration> {
    let rest = AGES.iter().find_map(|mark| line.split_once(mark)).map(|(_, rest)| rest)?;
    let seconds: String = rest.chars().take_while(char::is_ascii_digit).collect();
    seconds.parse().ok().map(|seconds: u64| Duration::from_secs(seconds.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LOG: &str = "\
[    1.0] grange up\n\
[   30.1] sched: error: watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [burn/17]\n\
[   30.1]   CPU 3 takes interrupts\n\
[   31.1] sched: error: watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 3\n\
[   31.1]   CPU 3 has not beaten for 12.3 s, since 18.8 s after boot\n\
[   32.0] sched: error: INFO: task a b:12 blocked for more than 120 seconds.\n\
[   33.0] sched: error: INFO: task drilled:13 blocked for more than 0 seconds. (drill)\n\
[   34.0] INFO: task of nobody\n";

    #[test]
    fn reports_are_found_with_their_ages_and_drills_are_left_out() {
        let found = reports(LOG.as_bytes(), &HostShare::new(Instant::now()));
        assert_eq!(found.iter().map(|report| report.window_s).collect::<Vec<_>>(), [23, 12, 120]);
        assert!(found[2].line.contains("a b:12") && !found[2].starved);
        assert_eq!(first(LOG.as_bytes()), LOG.find("[   30.1] sched"));
        assert_eq!(first(b"[    1.0] grange up\n"), None);
    }

    #[test]
    fn the_hosts_share_stands_below_the_line_it_is_about() {
        let found = reports(LOG.as_bytes(), &HostShare::new(Instant::now()));
        let log = annotated(LOG, &found);
        assert_eq!(log.matches("  host: the guest got 100 %").count(), 3);
        assert!(log.contains("[burn/17]\n  host: "), "{log}");
    }
}
