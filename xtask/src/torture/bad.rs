//! What looks bad in a console's log. A run that passed by its own words, and whose log has such a line, did not pass.
//!
//! Linux: `tools/testing/selftests/rcutorture/bin/console-badness.sh` (6.12).

use crate::watchdog::Report;

/// What is in a line that looks bad.
const MARKS: [&str; 15] = [
    "BUG",
    "WARNING",
    "Oops",
    "!!!",
    "???",
    "PANIC cpu ",
    "STALL cpu ",
    "detected stalls on CPUs/tasks",
    "self-detected stall on CPU",
    "starved for ",
    "lost timer",
    "blocked for more than ",
    "got no CPU for more than ",
    "detected hard LOCKUP",
    "objects are still in use",
];

/// Lines are shown up to so many.
const SHOWN: usize = 20;

/// How a kind announces one line that it provokes (`control::on_purpose`); what follows is in that line.
const ON_PURPOSE: &str = "on purpose: ";

/// Ends the first line of a report that somebody wanted.
const DRILL: &str = "(drill)";

/// The lines of a log that look bad. Those that a drill or a kind asked for do not count, nor do reports of watchdogs about a
/// guest that the host starved.
#[must_use]
pub fn lines(log: &str, reports: &[Report]) -> Vec<String> {
    let mut announced: Vec<&str> = Vec::new();
    let mut bad = Vec::new();
    // A report's further lines are indented, and are a drill's if its first one is.
    let mut is_drill = false;
    for line in log.lines().map(str::trim_end) {
        let goes_on = line.split_once("] ").is_some_and(|(_, text)| text.starts_with("  "));
        is_drill = line.contains(DRILL) || (is_drill && goes_on);
        if let Some((_, text)) = line.split_once(ON_PURPOSE) {
            announced.push(text);
        } else if let Some(at) = announced.iter().position(|text| line.contains(text)) {
            announced.remove(at);
        } else if MARKS.iter().any(|mark| line.contains(mark))
            && !is_drill
            && !reports.iter().any(|report| report.starved && report.line == line)
        {
            bad.push(line.to_owned());
        }
    }
    bad.truncate(SHOWN);
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_bad_is_found_unless_a_drill_or_the_host_is_to_blame() {
        let starved = "[ 7.1] watchdog: BUG: soft lockup - CPU#1 stuck for 5s!";
        let log = format!(
            "[ 1.0] rcu-torture: rtc: 1\n[ 2.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks (drill)\n\
             [ 2.0]   rcu_preempt kthread starved for 3997 ms!\n{starved}\n\
             [ 8.0] BUG: RCU: callback is queued again\n[ 9.0] rcu-torture: !!! rtmbe: 1\n"
        );
        let report = |starved_by_host| Report {
            line: starved.to_owned(),
            window_s: 5,
            host_percent: 10,
            starved: starved_by_host,
            host: String::new(),
        };
        let found = |reports: &[Report]| lines(&log, reports).len();
        assert_eq!((found(&[report(true)]), found(&[report(false)]), found(&[])), (2, 3, 3));
    }

    #[test]
    fn a_line_that_a_kind_announced_is_excused_once() {
        let log = "[ 1.0] torture: on purpose: BUG: RCU: callback\n[ 1.1] BUG: RCU: callback 0x1 is queued again\n";
        assert_eq!(lines(log, &[]), [] as [&str; 0]);
        assert_eq!(lines(&format!("{log}[ 1.2] BUG: RCU: callback 0x2 is queued again\n"), &[]).len(), 1);
    }
}
