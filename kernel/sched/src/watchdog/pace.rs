//! How long something has been so, by the looks of a watchdog, and when that is worth a report.
//!
//! Key types: [`Pace`], [`Incident`]. Pure, tested on the host.
//!
//! A watchdog that was kept from looking knows nothing of the time in between: the whole machine may have stood still. So
//! the time between two looks counts for one and a half periods at most, and an age grows only as fast as the watchdog
//! looks.

/// The time that a watchdog has watched, and how late it was.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    last_ns: u64,
    /// Watched since the last [`Pace::restart`].
    watched_ns: u64,
    /// The latest that a look came after its time, since the same.
    late_ns: u64,
}

impl Pace {
    /// One that has watched nothing yet.
    #[expect(clippy::new_without_default, reason = "a default would watch from the boot on")]
    pub const fn new() -> Pace {
        Pace { last_ns: 0, watched_ns: 0, late_ns: 0 }
    }

    /// Begins anew at `now`.
    pub fn restart(&mut self, now: u64) {
        *self = Pace { last_ns: now, watched_ns: 0, late_ns: 0 };
    }

    /// A look at `now`, which was due `period_ns` after the last; the time watched so far.
    pub fn look(&mut self, now: u64, period_ns: u64) -> u64 {
        let since = now.saturating_sub(self.last_ns);
        self.watched_ns += since.min(period_ns + period_ns / 2);
        self.late_ns = self.late_ns.max(since.saturating_sub(period_ns));
        self.last_ns = now;
        self.watched_ns
    }

    /// The latest that a look has come.
    pub fn late_ns(&self) -> u64 {
        self.late_ns
    }

    /// The same, which is forgotten then.
    pub fn take_late_ns(&mut self) -> u64 {
        core::mem::take(&mut self.late_ns)
    }
}

/// Something that may be worth a report: once when its age reaches the limit, and again whenever that has doubled.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Incident {
    /// Nothing is said below this age, if that is above the limit.
    quiet_below_ns: u64,
}

impl Incident {
    pub(super) const fn new() -> Incident {
        Incident { quiet_below_ns: 0 }
    }

    /// One that was left at [`Incident::threshold`].
    pub(super) const fn quiet_below(quiet_below_ns: u64) -> Incident {
        Incident { quiet_below_ns }
    }

    /// Nothing is said below this age.
    pub(super) const fn threshold(&self) -> u64 {
        self.quiet_below_ns
    }

    /// Whether a report is due at this age; `limit_ns` 0 means never.
    pub(super) fn is_due(&mut self, age_ns: u64, limit_ns: u64) -> bool {
        let due = limit_ns != 0 && age_ns >= limit_ns.max(self.quiet_below_ns);
        if due {
            self.quiet_below_ns = age_ns.saturating_mul(2);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_stood_still_for_long_has_been_watched_for_a_period_and_a_half() {
        let mut pace = Pace::new();
        pace.restart(1_000);
        assert_eq!(pace.look(1_100, 100), 100);
        assert_eq!(pace.look(9_000_000, 100), 250);
        assert_eq!(pace.late_ns(), 9_000_000 - 1_100 - 100);
        assert_eq!(pace.look(9_000_100, 100), 350);
        pace.restart(9_000_100);
        assert_eq!((pace.look(9_000_200, 100), pace.late_ns()), (100, 0));
        pace.look(9_000_307, 100);
        assert_eq!((pace.take_late_ns(), pace.late_ns()), (7, 0));
    }

    #[test]
    fn an_incident_is_told_at_its_limit_and_again_when_its_age_has_doubled() {
        let mut incident = Incident::new();
        let told: [u64; 4] = [10, 20, 40, 80];
        for age in 0..=100 {
            assert_eq!(incident.is_due(age, 10), told.contains(&age), "{age}");
        }
        let mut another = Incident::new();
        assert!(!another.is_due(9, 10) && another.is_due(15, 10) && !another.is_due(29, 10) && another.is_due(30, 10));
    }

    #[test]
    fn without_a_limit_nothing_is_ever_due() {
        assert!(!Incident::new().is_due(u64::MAX, 0));
    }
}
