//! Lab 6: callbacks and the grace periods that they wait for. The task is told in docs/labs/06-callbacks.md.

use alloc::collections::VecDeque;

/// The callbacks of a CPU.
pub struct Callbacks<T> {
    all: VecDeque<T>,
    /// What all of them wait for.
    gp: Option<u64>,
    is_ready: bool,
}

impl<T> Callbacks<T> {
    /// None.
    pub fn new() -> Self {
        Self { all: VecDeque::new(), gp: None, is_ready: false }
    }

    /// Adds one for which no grace period has been chosen.
    pub fn enqueue(&mut self, callback: T) {
        self.all.push_back(callback);
    }

    /// Chooses grace period `gp` for all that have none; a later one if one that came before them waits for that.
    pub fn accelerate(&mut self, gp: u64) {
        self.gp = Some(gp);
    }

    /// Grace periods up to this one are over.
    pub fn advance(&mut self, over: u64) {
        self.is_ready = self.gp.is_some_and(|gp| gp <= over);
    }

    /// Takes out the oldest, if its grace period is over.
    pub fn pop_ready(&mut self) -> Option<T> {
        if self.is_ready { self.all.pop_front() } else { None }
    }

    /// The grace period that the oldest of those that are not ready waits for; none if none has been chosen.
    pub fn waits_for(&self) -> Option<u64> {
        self.gp
    }

    /// Callbacks, ready and not.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}
