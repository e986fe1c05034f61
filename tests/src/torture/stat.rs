//! A line of statistics, shaped as rcutorture's, and what in it fails the run.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};

/// What a kind says about itself at one moment: counts in the order in which they are given.
///
/// The log gets `timers-torture: arms: 512 fired: 498 early: 0`, and a line for each histogram; COM2 gets the same as JSON. A
/// line that has an error begins with `!!!`, as rcutorture's do.
#[derive(Debug, Default)]
pub struct Stat {
    line: String,
    json: String,
    histograms: Vec<String>,
    wrong: Vec<String>,
    idle: Vec<String>,
}

impl Stat {
    /// Adds a count.
    pub fn count(&mut self, name: &str, n: u64) {
        self.put(name, n, n);
    }

    /// Adds a count of work. The run goes on until it is not 0, and a kind for which it stays 0 fails: it tortured nothing.
    pub fn work(&mut self, name: &str, n: u64) {
        self.work_of(name, n, 1);
    }

    /// Adds a count of work of which there has to be so much.
    pub fn work_of(&mut self, name: &str, n: u64, least: u64) {
        self.put(name, n, n);
        if n < least {
            self.idle.push(alloc::format!("{name} is {n} of at least {least}"));
        }
    }

    /// Adds a count that has to stay 0.
    pub fn error(&mut self, name: &str, n: u64) {
        self.put(name, n, n);
        if n != 0 {
            self.wrong.push(alloc::format!("{name} is {n}"));
        }
    }

    /// Adds several counts under one name, in rcutorture's forms: `barrier: 12/12:0`.
    pub fn text(&mut self, name: &str, value: fmt::Arguments<'_>) {
        self.put(name, value, format_args!("\"{value}\""));
    }

    /// Adds a line of its own: how many of each age, from 0.
    pub fn histogram(&mut self, name: &str, counts: &[u64]) {
        let mut line = alloc::format!("{name}:");
        let mut list = String::new();
        for (at, count) in counts.iter().enumerate() {
            // Writing to a string cannot fail, here and below.
            let _ = write!(line, " {count}");
            let _ = write!(list, "{}{count}", if at == 0 { "" } else { "," });
        }
        self.histograms.push(line);
        self.json_pair(name, format_args!("[{list}]"));
    }

    /// Something is wrong that no single count says.
    pub fn fail(&mut self, what: fmt::Arguments<'_>) {
        self.wrong.push(alloc::fmt::format(what));
    }

    /// All that is wrong.
    pub fn wrong(&self) -> Option<String> {
        (!self.wrong.is_empty()).then(|| self.wrong.join(", "))
    }

    /// The work that has not been done yet.
    pub fn idle(&self) -> Option<String> {
        (!self.idle.is_empty()).then(|| self.idle.join(", "))
    }

    /// The lines for the log.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        core::iter::once(self.line.trim_start()).chain(self.histograms.iter().map(String::as_str))
    }

    /// The counts as the inside of a JSON object.
    pub fn json(&self) -> &str {
        &self.json
    }

    fn put(&mut self, name: &str, value: impl fmt::Display, json: impl fmt::Display) {
        let _ = write!(self.line, " {name}: {value}");
        self.json_pair(name, json);
    }

    fn json_pair(&mut self, name: &str, value: impl fmt::Display) {
        let comma = if self.json.is_empty() { "" } else { "," };
        let _ = write!(self.json, "{comma}\"{name}\":{value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Stat {
        let mut stat = Stat::default();
        stat.work("rtc", 7);
        stat.error("rtmbe", 0);
        stat.text("barrier", format_args!("{}/{}:{}", 3, 3, 0));
        stat.histogram("Reader Pipe", &[5, 0]);
        stat
    }

    #[test]
    fn a_line_is_in_the_order_of_its_counts_and_histograms_have_their_own() {
        let stat = sample();
        assert_eq!(stat.lines().collect::<Vec<_>>(), ["rtc: 7 rtmbe: 0 barrier: 3/3:0", "Reader Pipe: 5 0"]);
        assert_eq!(stat.json(), r#""rtc":7,"rtmbe":0,"barrier":"3/3:0","Reader Pipe":[5,0]"#);
        assert_eq!((stat.wrong(), stat.idle()), (None, None));
    }

    #[test]
    fn an_error_that_is_not_0_is_wrong_and_work_that_is_too_little_is_idle() {
        let mut stat = sample();
        stat.error("rtbe", 2);
        stat.fail(format_args!("a reader outlasts"));
        stat.work("nt", 0);
        stat.work_of("rtb", 3, 4);
        assert_eq!(stat.wrong().as_deref(), Some("rtbe is 2, a reader outlasts"));
        assert_eq!(stat.idle().as_deref(), Some("nt is 0 of at least 1, rtb is 3 of at least 4"));
    }
}
