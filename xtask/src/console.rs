//! What the kernel said on COM1: read raw, made readable, cut to what matters.

use std::fmt::Write as _;
use std::path::Path;

use crate::symbols::{Symbols, addresses};

/// How a line begins that says why the kernel died.
const CRASH_MARKS: [&str; 2] = ["PANIC cpu ", "STALL cpu "];

/// What is in a line that says why nothing was booted: of the kernel about its command line, of the loader.
const REFUSAL_MARKS: [&str; 2] = ["command line refused", "grange-boot: "];

/// Reads a log that may hold any bytes.
#[must_use]
pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// The log with the functions written below each line that holds kernel addresses.
#[must_use]
pub fn symbolized(log: &str, symbols: Option<&Symbols>) -> String {
    let mut out = String::with_capacity(log.len());
    let (mut last, mut again) = (None, 0);
    for line in log.lines() {
        // Of a recursion that never ends one step is enough.
        let step = text_of(line).strip_prefix('#').and_then(|rest| rest.split_once(' ')).map(|(_, address)| address);
        if step.is_some() && step == last {
            again += 1;
            continue;
        }
        if again > 0 {
            let _ = writeln!(out, "        … the same {again} times more");
            again = 0;
        }
        last = step;
        let _ = writeln!(out, "{line}");
        let Some(symbols) = symbols else { continue };
        for (position, address) in addresses(line).enumerate() {
            // In a backtrace all but the first are return addresses: the call is the instruction before.
            let returns = text_of(line).strip_prefix('#').is_some_and(|rest| !rest.starts_with("0 ")) && position == 0;
            for frame in symbols.frames(address - u64::from(returns)) {
                let _ = writeln!(out, "        {frame}");
            }
        }
    }
    if again > 0 {
        let _ = writeln!(out, "        … the same {again} times more");
    }
    out
}

/// A line without the time that the log puts before it.
fn text_of(line: &str) -> &str {
    let text = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map_or(line, |(_, text)| text);
    text.trim_start()
}

/// The last `limit` lines of the part of the log from byte `from` to byte `to`; a line that is cut at the beginning is
/// shown whole.
#[must_use]
pub fn around(log: &[u8], from: usize, to: usize, limit: usize) -> String {
    let lines = lines(log, from, to);
    let skipped = lines.len().saturating_sub(limit);
    let mut out = if skipped > 0 { format!("… {skipped} lines before\n") } else { String::new() };
    lines[skipped..].iter().for_each(|line| out.push_str(line));
    out
}

/// The log of a crash: the last `before` lines up to the one that says what happened, beginning at byte `from` at most,
/// and `after` lines from that one on. Without such a line, the last `after` lines from byte `from` on.
#[must_use]
pub fn of_crash(log: &[u8], from: usize, before: usize, after: usize) -> String {
    let find = |start: usize| {
        let marks = CRASH_MARKS.iter().filter_map(|mark| {
            log.get(start..)?.windows(mark.len()).position(|part| part == mark.as_bytes()).map(|at| start + at)
        });
        marks.min()
    };
    let Some(at) = find(from).or_else(|| find(0)) else {
        return around(log, from, log.len(), after);
    };
    let at = line_start(log, at);
    let mut out = around(log, from.min(at), at, before);
    let rest = lines(log, at, log.len());
    rest.iter().take(after).for_each(|line| out.push_str(line));
    if rest.len() > after {
        let _ = writeln!(out, "… {} lines more", rest.len() - after);
    }
    out
}

/// Where the line begins that holds byte `at`.
fn line_start(log: &[u8], at: usize) -> usize {
    log[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1)
}

/// The lines between two bytes, each with its newline.
fn lines(log: &[u8], from: usize, to: usize) -> Vec<String> {
    let to = to.min(log.len());
    let from = line_start(log, from.min(to));
    String::from_utf8_lossy(&log[from..to]).replace('\r', "").lines().map(|line| format!("{line}\n")).collect()
}

/// The log's backtraces, each with the line before it, which says whose it is.
#[must_use]
pub fn backtraces(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let mut out = String::new();
    for (at, _) in lines.iter().enumerate().filter(|&(_, &line)| line == "backtrace:") {
        let frames = lines[at + 1..].iter().take_while(|line| line.starts_with("  ")).count();
        for line in &lines[at.saturating_sub(1)..=at + frames] {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

/// The line that tells the reason of a crash, if the log has one.
#[must_use]
pub fn crash_line(log: &str) -> Option<&str> {
    log.lines().map(str::trim).find(|line| CRASH_MARKS.iter().chain(&REFUSAL_MARKS).any(|mark| line.contains(mark)))
}

/// The line by which the kernel or its loader says why it does not boot, if there is one.
#[must_use]
pub fn refusal(log: &str) -> Option<&str> {
    log.lines().map(str::trim).find(|line| REFUSAL_MARKS.iter().any(|mark| line.contains(mark)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_around_starts_at_a_line_and_is_limited() {
        let log = b"one\ntwo\nthree\r\nfour\nfive\n";
        assert_eq!(around(log, 5, 18, 10), "two\nthree\nfou\n");
        assert_eq!(around(log, 0, 999, 2), "… 3 lines before\nfour\nfive\n");
    }

    #[test]
    fn a_crash_is_shown_from_its_own_line_on_and_not_by_its_last_lines() {
        let log = b"boot\nbegin\ntold\nPANIC cpu 1: oops\n  at a.rs:1\nstack\nstack\n";
        assert_eq!(of_crash(log, 5, 9, 2), "begin\ntold\nPANIC cpu 1: oops\n  at a.rs:1\n… 2 lines more\n");
        assert_eq!(of_crash(log, 5, 1, 1), "… 1 lines before\ntold\nPANIC cpu 1: oops\n… 3 lines more\n");
        // Never later than the line itself, wherever one was told that the test begins.
        assert_eq!(of_crash(log, 45, 1, 1), "PANIC cpu 1: oops\n… 3 lines more\n");
        assert_eq!(of_crash(b"boot\nbegin\n", 5, 9, 9), "begin\n");
    }

    #[test]
    fn backtraces_are_taken_out_with_what_they_are_of() {
        let log = "boot\ncpu 1: x\nbacktrace:\n  #0 0x1\n  … the same frame once more\ndone\ntask a/2: y\nbacktrace:\n";
        let expected = "cpu 1: x\nbacktrace:\n  #0 0x1\n  … the same frame once more\ntask a/2: y\nbacktrace:\n";
        assert_eq!(backtraces(log), expected);
        assert_eq!(backtraces("boot\n"), "");
    }

    #[test]
    fn a_refusal_is_no_crash_but_a_reason() {
        assert_eq!(refusal("a\ngrange-boot: no kernel\n"), Some("grange-boot: no kernel"));
        assert_eq!(crash_line("a\ngrange-boot: no kernel\n"), Some("grange-boot: no kernel"));
        assert_eq!(refusal("PANIC cpu 0: no\n"), None);
    }

    #[test]
    fn the_reason_of_a_crash_is_found_among_other_lines() {
        assert_eq!(crash_line("boot\n  PANIC cpu 3: oops\nbacktrace:\n"), Some("PANIC cpu 3: oops"));
        assert_eq!(crash_line("all is well\n"), None);
    }

    #[test]
    fn a_recursion_is_written_once() {
        let log = "backtrace:\n  #0 0xffffffff80001234\n  #1 0xffffffff80001234\n  #2 0xffffffff80001234\ncpu 1\n";
        let short = "backtrace:\n  #0 0xffffffff80001234\n        … the same 2 times more\ncpu 1\n";
        assert_eq!(symbolized(log, None), short);
    }

    #[test]
    fn a_log_without_symbols_stays_as_it_is() {
        assert_eq!(symbolized("a 0xffffffff80001234\nb\n", None), "a 0xffffffff80001234\nb\n");
    }
}
