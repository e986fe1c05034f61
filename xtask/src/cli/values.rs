//! Values with a form of their own: times, seeds, ranges of seeds.

use std::time::Duration;

/// A time: bare numbers are seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    parsed.or_else(|| humantime::parse_duration(text).ok()).ok_or_else(|| "a time such as 30, 30s or 5m".to_owned())
}

/// Seeds that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedRange {
    /// The first.
    pub first: u64,
    /// The last, not before the first.
    pub last: u64,
}

/// Seeds as Rust writes a range.
pub(super) fn seed_range(text: &str) -> Result<SeedRange, String> {
    let what = || "seeds such as 1..100 (without the 100) or 1..=100, at least one".to_owned();
    let (first, end) = text.split_once("..").ok_or_else(what)?;
    let first = number(first)?;
    let last = match end.strip_prefix('=') {
        Some(last) => number(last)?,
        None => number(end)?.checked_sub(1).ok_or_else(what)?,
    };
    if first <= last { Ok(SeedRange { first, last }) } else { Err(what()) }
}

/// A number, decimal or with 0x.
pub(super) fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a number below 2^64 such as 24301 or 0x5eed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_seeds_are_read_in_their_usual_forms() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("5m"), Ok(Duration::from_secs(300)));
        assert!(seconds("-1").is_err());
        assert_eq!(number("0x5eed"), Ok(0x5eed));
        assert!(number("seed").is_err());
        assert_eq!(seed_range("1..100"), Ok(SeedRange { first: 1, last: 99 }));
        assert_eq!(seed_range("0x10..=16"), Ok(SeedRange { first: 16, last: 16 }));
        for bad in ["7", "5..5", "1..0", "0..0", "a..3", "2..=1", "1...3"] {
            assert!(seed_range(bad).is_err(), "{bad}");
        }
    }
}
