//! When callbacks come in a flood: by number and by rate, on one CPU of one domain.
//!
//! | what | limit | then |
//! |---|---|---|
//! | callbacks that wait | [`config::FLOOD`], and for every as many more | the grace period that the latest needs is expedited |
//! | callbacks that came in one millisecond | [`config::FLOOD_RATE`] | the same, once in that millisecond |
//!
//! By number it notices what piles up behind a slow reader or a slow grace period; by rate it notices before there is a pile.
//!
//! Pure. Row S3-29: callbacks should make grace periods hurry before memory runs short.

use super::config;

/// Nanoseconds in which callbacks are counted for the rate: about a millisecond, so that a shift finds the window.
const WINDOW_SHIFT: u32 = 20;

/// What one CPU remembers.
pub(crate) struct Flood {
    /// Number of waiting callbacks at which it is a flood the next time; 0: at the limit.
    next: usize,
    /// Which window `in_window` counts.
    window: u64,
    in_window: u32,
}

impl Flood {
    pub(crate) const fn new() -> Flood {
        Flood { next: 0, window: 0, in_window: 0 }
    }

    /// A callback was queued at `now_ns`, and now `waiting` wait. True if the flood has come to a limit by this one.
    pub(crate) fn queued(&mut self, waiting: usize, now_ns: u64) -> bool {
        let limit = config::FLOOD.get() as usize;
        if waiting < limit {
            self.next = limit;
        }
        let by_number = waiting >= self.next.max(limit);
        if by_number {
            self.next = waiting + limit;
        }
        let window = now_ns >> WINDOW_SHIFT;
        if self.window != window {
            (self.window, self.in_window) = (window, 0);
        }
        self.in_window = self.in_window.saturating_add(1);
        by_number || self.in_window == config::FLOOD_RATE.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far enough apart that no rate is reached.
    const SLOW: u64 = 1 << 21;

    #[test]
    fn every_limit_more_callbacks_are_one_flood_more() {
        let limit = config::FLOOD.get() as usize;
        let mut flood = Flood::new();
        let floods = (1..=3 * limit).filter(|&n| flood.queued(n, n as u64 * SLOW)).count();
        assert_eq!(floods, 3);
        // They have run: it begins anew.
        assert!(!flood.queued(1, 0));
        assert!(flood.queued(limit, 0));
    }

    #[test]
    fn many_in_a_millisecond_are_a_flood_once() {
        let rate = config::FLOOD_RATE.get() as u64;
        let mut flood = Flood::new();
        let count = |flood: &mut Flood, from: u64, n: u64| (0..n).filter(|i| flood.queued(1, from + i)).count();
        assert_eq!(count(&mut flood, 0, rate - 1), 0);
        assert_eq!(count(&mut flood, rate, 10 * rate), 1);
        assert_eq!(count(&mut flood, 1 << WINDOW_SHIFT, rate - 1), 0);
        assert_eq!(count(&mut flood, (1 << WINDOW_SHIFT) + rate, 1), 1);
    }
}
