//! What the kernel said on COM1: read raw, made readable, cut to what matters.

use std::fmt::Write as _;
use std::path::Path;

use crate::symbols::{Symbols, addresses};

/// Reads a log that may hold any bytes.
#[must_use]
pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).replace('\r', "")
}

/// The log with the functions written below each line that holds kernel addresses.
#[must_use]
pub fn symbolized(log: &str, symbols: Option<&Symbols>) -> String {
    let mut out = String::with_capacity(log.len());
    for line in log.lines() {
        let _ = writeln!(out, "{line}");
        let Some(symbols) = symbols else { continue };
        for (position, address) in addresses(line).enumerate() {
            // In a backtrace all but the first are return addresses: the call is the instruction before.
            let returns =
                line.trim_start().strip_prefix('#').is_some_and(|rest| !rest.starts_with("0 ")) && position == 0;
            for frame in symbols.frames(address - u64::from(returns)) {
                let _ = writeln!(out, "        {frame}");
            }
        }
    }
    out
}

/// The last `limit` lines of the part of the log that begins at byte `from`.
#[must_use]
pub fn around(log: &[u8], from: usize, to: usize, limit: usize) -> String {
    let to = to.min(log.len());
    let start = log[..from.min(to)].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&log[start..to]).replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(limit);
    let mut out = if skipped > 0 { format!("… {skipped} lines before\n") } else { String::new() };
    for line in &lines[skipped..] {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// The line that tells the reason of a crash, if the log has one.
#[must_use]
pub fn crash_line(log: &str) -> Option<&str> {
    log.lines()
        .map(str::trim)
        .find(|line| ["PANIC", "STALL", "command line refused"].iter().any(|mark| line.contains(mark)))
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
    fn the_reason_of_a_crash_is_found_among_other_lines() {
        assert_eq!(crash_line("boot\n  PANIC cpu 3: oops\nbacktrace:\n"), Some("PANIC cpu 3: oops"));
        assert_eq!(crash_line("all is well\n"), None);
    }

    #[test]
    fn a_log_without_symbols_stays_as_it_is() {
        assert_eq!(symbolized("a 0xffffffff80001234\nb\n", None), "a 0xffffffff80001234\nb\n");
    }
}
