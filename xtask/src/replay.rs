//! Whether two boots were one: what they said on both serial lines, byte by byte, and where they parted.
//!
//! A deterministic boot is a function of the kernel, the command line and the seed. The logs say whether it was; the
//! points of the rolling hash of events (frames `V`, which kernels with the feature `events` send) say where it began not
//! to be, long before a line of a log is another.

use std::fmt;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use crate::frames::Kind;
use crate::verdict::Stream;

/// The two logs of a boot, as they lie in its folder.
const LOGS: [&str; 2] = ["console.log", "com2.log"];

/// What a boot left to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What each of [`LOGS`] holds.
    logs: [Vec<u8>; 2],
    /// The points of the rolling hash, in their order.
    points: Vec<Point>,
}

/// The rolling hash after so many events.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    events: u64,
    /// Eight digits.
    hash: String,
    /// The last event, in words.
    last: String,
}

impl Trace {
    /// Reads the folder of a boot.
    ///
    /// # Errors
    /// When a log is not there.
    pub fn read(dir: &Path) -> anyhow::Result<Trace> {
        let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| dir.join(name).display().to_string());
        Ok(Trace::of(read(LOGS[0])?, read(LOGS[1])?))
    }

    fn of(console: Vec<u8>, frames: Vec<u8>) -> Trace {
        let stream = Stream::read(&frames);
        let events = stream.frames.iter().filter(|frame| frame.kind == Kind::Events);
        let points = events.flat_map(|frame| points(&frame.payload)).collect();
        Trace { logs: [console, frames], points }
    }

    /// In what the other boot differs from this one, in a line or more; `None` if they were one.
    #[must_use]
    pub fn difference(&self, other: &Trace) -> Option<Vec<String>> {
        if self == other {
            return None;
        }
        let logs = LOGS.iter().zip(self.logs.iter().zip(&other.logs));
        let lines = logs.filter_map(|(name, (a, b))| Some(format!("{name}: {}", first_difference(a, b)?)));
        Some(self.divergence(other).into_iter().chain(lines).collect())
    }

    /// Between which events the two parted, as far as there are points.
    fn divergence(&self, other: &Trace) -> Option<String> {
        let (a, b) = (&self.points, &other.points);
        let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        let after = if at == 0 { 0 } else { a[at - 1].events };
        match (a.get(at), b.get(at)) {
            (Some(a), Some(b)) => {
                let (from, to) = (grouped(after + 1), grouped(a.events.min(b.events)));
                Some(format!("diverged at event {from} .. {to} ({} before, {} now)", a.last, b.last))
            }
            (None, None) => None,
            _ => Some(format!("alike up to event {}, then one of them ends", grouped(after))),
        }
    }
}

/// How much was compared: what equal runs are summed up with.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [console, frames] = self.logs.each_ref().map(|log| grouped(log.len() as u64));
        write!(f, "{console} bytes on COM1, {frames} on COM2")?;
        match self.points.last() {
            Some(last) => write!(f, ", {} events with hash {}", grouped(last.events), last.hash),
            None => Ok(()),
        }
    }
}

/// The points of a frame; those that cannot be read are left out, as the bytes of the log are compared anyway.
fn points(payload: &str) -> Vec<Point> {
    let value: Value = serde_json::from_str(payload).unwrap_or_default();
    let (Some(first), Some(period), Some(points)) =
        (value["first"].as_u64(), value["period"].as_u64(), value["points"].as_str())
    else {
        return Vec::new();
    };
    let numbered = (0..).zip(points.split(' ')).filter_map(|(at, point)| {
        let (hash, last) = point.split_at_checked(8)?;
        Some(Point { events: first + at * period, hash: hash.to_owned(), last: in_words(last)? })
    });
    numbered.collect()
}

/// `i2`: an interrupt on CPU 2.
fn in_words(last: &str) -> Option<String> {
    let (kind, cpu) = last.split_at_checked(1)?;
    let kind = match kind {
        "s" => "context switch",
        "i" => "interrupt",
        "n" => "NMI",
        "w" => "wake-up",
        "l" => "wait for a lock",
        _ => "event",
    };
    Some(format!("{kind} on CPU {cpu}"))
}

/// The first line of two logs that is not the same.
fn first_difference(a: &[u8], b: &[u8]) -> Option<String> {
    let mut pairs = (1..).zip(Lines(a).zip_longest(Lines(b)));
    let (number, (a, b)) = pairs.find(|(_, (a, b))| a != b)?;
    let show = |line: Option<&[u8]>| match line {
        Some(line) => format!("{:?}", String::from_utf8_lossy(line).trim_end().chars().take(120).collect::<String>()),
        None => "nothing".to_owned(),
    };
    Some(format!("line {number} was {} and is {}", show(a), show(b)))
}

/// Lines of bytes, each with its end.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|&byte| byte == b'\n').map_or(self.0.len(), |at| at + 1);
        let (line, rest) = self.0.split_at(end);
        self.0 = rest;
        (!line.is_empty()).then_some(line)
    }
}

impl<'a> Lines<'a> {
    /// Pairs of lines until both are at their end.
    fn zip_longest(mut self, mut other: Lines<'a>) -> impl Iterator<Item = (Option<&'a [u8]>, Option<&'a [u8]>)> {
        std::iter::from_fn(move || match (self.next(), other.next()) {
            (None, None) => None,
            pair => Some(pair),
        })
    }
}

/// A number with its digits in groups of three.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::encode;

    fn trace(console: &str, payloads: &[&str]) -> Trace {
        let frames = payloads.iter().enumerate().map(|(seq, payload)| encode(seq as u32, Kind::Events, payload));
        Trace::of(console.into(), frames.collect::<String>().into_bytes())
    }

    const FIRST: &str = r#"{"first":81216,"period":64,"points":"00000001s0 00000002i3"}"#;

    #[test]
    fn equal_boots_have_no_difference_and_are_summed_up() {
        let boot = trace("a\nb\n", &[FIRST]);
        assert_eq!(boot.difference(&trace("a\nb\n", &[FIRST])), None);
        let length = boot.logs[1].len();
        assert_eq!(boot.to_string(), format!("4 bytes on COM1, {length} on COM2, 81,280 events with hash 00000002"));
        assert_eq!(trace("a\n", &[]).to_string(), "2 bytes on COM1, 0 on COM2");
    }

    #[test]
    fn the_first_hash_that_differs_names_the_events_in_question() {
        let second = r#"{"first":81344,"period":64,"points":"00000003i1"}"#;
        let other = r#"{"first":81344,"period":64,"points":"000000ffs2"}"#;
        let found = trace("a\nb\nc\n", &[FIRST, second]).difference(&trace("a\nx\nc\n", &[FIRST, other])).unwrap();
        assert_eq!(
            found[0],
            "diverged at event 81,281 .. 81,344 (interrupt on CPU 1 before, context switch on CPU 2 now)"
        );
        assert_eq!(found[1], r#"console.log: line 2 was "b" and is "x""#);
        assert!(found[2].starts_with("com2.log: line 2 was "), "{found:?}");
    }

    #[test]
    fn a_difference_before_the_first_point_is_named_from_the_first_event_on() {
        let found = trace("", &[FIRST]).difference(&trace("", &[&FIRST.replace("00000001", "00000009")])).unwrap();
        assert!(found[0].starts_with("diverged at event 1 .. 81,216 "), "{found:?}");
    }

    #[test]
    fn a_boot_that_goes_on_longer_differs() {
        let found = trace("a\n", &[FIRST]).difference(&trace("a\nb", &[])).unwrap();
        assert_eq!(found[0], "alike up to event 0, then one of them ends");
        assert_eq!(found[1], r#"console.log: line 2 was nothing and is "b""#);
        let found = trace("a\n", &[]).difference(&trace("a", &[])).unwrap();
        assert_eq!(found, [r#"console.log: line 1 was "a" and is "a""#]);
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!([0, 999, 1000, 1_074_112].map(grouped), ["0", "999", "1,000", "1,074,112"]);
    }
}
