//! Chooses again for those that have a grace period, which moves away from them each time.

use alloc::collections::VecDeque;

/// Callbacks that wait for the same grace period, one behind the other.
struct Segment {
    /// The grace period; none has been chosen for those that came last.
    gp: Option<u64>,
    count: usize,
}

/// The callbacks of a CPU.
pub struct Callbacks<T> {
    all: VecDeque<T>,
    /// How many of them, at the front, may be called.
    ready: usize,
    /// What the others wait for. None is empty.
    segments: VecDeque<Segment>,
}

impl<T> Callbacks<T> {
    /// None.
    pub fn new() -> Self {
        Self { all: VecDeque::new(), ready: 0, segments: VecDeque::new() }
    }

    /// Adds one for which no grace period has been chosen.
    pub fn enqueue(&mut self, callback: T) {
        self.all.push_back(callback);
        match self.segments.back_mut() {
            Some(segment) if segment.gp.is_none() => segment.count += 1,
            _ => self.segments.push_back(Segment { gp: None, count: 1 }),
        }
    }

    /// Chooses grace period `gp` for all that have none; a later one if one that came before them waits for that.
    pub fn accelerate(&mut self, gp: u64) {
        let Some(last) = self.segments.pop_back() else { return };
        let gp = match self.segments.back_mut() {
            Some(before) if before.gp.is_some_and(|earlier| is_over(gp, earlier)) => {
                before.count += last.count;
                return;
            }
            _ => gp,
        };
        self.segments.push_back(Segment { gp: Some(gp), ..last });
    }

    /// Grace periods up to this one are over.
    pub fn advance(&mut self, over: u64) {
        while let Some(first) = self.segments.pop_front_if(|segment| segment.gp.is_some_and(|gp| is_over(gp, over))) {
            self.ready += first.count;
        }
    }

    /// Takes out the oldest, if its grace period is over.
    pub fn pop_ready(&mut self) -> Option<T> {
        self.ready = self.ready.checked_sub(1)?;
        self.all.pop_front()
    }

    /// The grace period that the oldest of those that are not ready waits for; none if none has been chosen.
    pub fn waits_for(&self) -> Option<u64> {
        self.segments.front()?.gp
    }

    /// Callbacks, ready and not.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}

/// Whether `gp` is over when all up to `over` are. Numbers wrap around; they are less than half of all numbers apart.
fn is_over(gp: u64, over: u64) -> bool {
    over.wrapping_sub(gp) as i64 >= 0
}
