//! What is shown while tests run: a bar on a terminal, plain lines elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::ktap::Outcome;

/// The display.
#[derive(Debug)]
pub struct Progress {
    /// Nothing is shown at all.
    silent: bool,
    bar: Option<ProgressBar>,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    place: String,
    since: Instant,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Progress {
    /// A bar if somebody watches.
    #[must_use]
    pub fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} {wide_msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let state = State { place: String::new(), since: Instant::now(), passed: 0, failed: 0, skipped: 0 };
        Progress { silent: false, bar, state: RefCell::new(state) }
    }

    /// One that shows nothing: for tests whose failure is wanted.
    #[must_use]
    pub fn silent() -> Progress {
        Progress { silent: true, ..Progress::new() }
    }

    /// Tests begin in a place; `tests` is 0 where their number is not known.
    pub fn place(&self, name: &str, tests: usize) {
        self.close_place();
        let mut state = self.state.borrow_mut();
        *state = State { place: name.to_owned(), since: Instant::now(), passed: 0, failed: 0, skipped: 0 };
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(tests as u64);
            bar.set_message(name.to_owned());
        }
    }

    /// A test has a result. Only failures get a line of their own.
    pub fn test(&self, id: &str, outcome: Outcome) {
        let place = {
            let mut state = self.state.borrow_mut();
            match outcome {
                Outcome::Passed => state.passed += 1,
                Outcome::Failed => state.failed += 1,
                Outcome::Skipped => state.skipped += 1,
            }
            state.place.clone()
        };
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(format!("{place}: {id}"));
        }
        if outcome == Outcome::Failed {
            self.line(&format!("FAIL {id}  [{place}]"));
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if self.silent {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// All is done: the last place gets its line, the bar goes.
    pub fn finish(&self) {
        self.close_place();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// The tests of a place are over: it gets its line. Nothing to do where none began.
    pub fn close_place(&self) {
        let state = self.state.borrow();
        if state.place.is_empty() {
            return;
        }
        let word = match (state.failed, state.passed + state.skipped) {
            (0, 0) => "none",
            (0, _) => "ok  ",
            _ => "FAIL",
        };
        let counts = format!("{} passed, {} failed, {} skipped", state.passed, state.failed, state.skipped);
        let line = format!("{word} {}: {counts}, {:.1} s", state.place, state.since.elapsed().as_secs_f64());
        drop(state);
        self.line(&line);
        self.state.borrow_mut().place.clear();
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}
