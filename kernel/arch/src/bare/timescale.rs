//! From counter cycles to nanoseconds, without a step when the rate is found out more exactly.
//!
//! Pure arithmetic, tested on the host.
//!
//! - CLOCK-1: a [`Timeline`] is continuous and never falls: before its switch point it runs at the
//!   rate that held before, from there on at the new one.
//!
//! Context: any. Answers to `arch/x86/kernel/tsc.c` (`cyc2ns`) of Linux.

/// A rate as nanoseconds a cycle, in units of 2^-32 ns.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Rate(u64);

impl Rate {
    /// The rate of a counter with this frequency, in Hz. 0 counts as 1.
    pub(super) const fn from_hz(hz: u64) -> Self {
        let hz = if hz == 0 { 1 } else { hz };
        Self(((1_000_000_000u128 << 32) / hz as u128) as u64)
    }

    /// Nanoseconds that this many cycles take, rounded down.
    #[inline]
    pub(super) const fn nanoseconds(self, cycles: u64) -> u64 {
        ((cycles as u128 * self.0 as u128) >> 32) as u64
    }

    /// Cycles that this many nanoseconds take, rounded up.
    pub(super) const fn cycles(self, nanoseconds: u64) -> u64 {
        let cycles = ((nanoseconds as u128) << 32).div_ceil(self.0 as u128);
        if cycles > u64::MAX as u128 { u64::MAX } else { cycles as u64 }
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// Two rates that meet at a switch point.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Timeline {
    /// Counter value at which the rate changes.
    pub switch: u64,
    /// Time at that point, in nanoseconds.
    pub at_switch: u64,
    /// Rate before it.
    pub before: Rate,
    /// Rate after it.
    pub after: Rate,
}

impl Timeline {
    /// Starts at 0 ns when the counter has the value `start`.
    pub(super) const fn starting(start: u64, rate: Rate) -> Self {
        Self { switch: start, at_switch: 0, before: rate, after: rate }
    }

    /// Time at counter value `cycles`, in nanoseconds; 0 for what lies before the start.
    #[inline]
    pub(super) const fn nanoseconds(&self, cycles: u64) -> u64 {
        if cycles >= self.switch {
            self.at_switch.wrapping_add(self.after.nanoseconds(cycles - self.switch))
        } else {
            self.at_switch.saturating_sub(self.before.nanoseconds(self.switch - cycles))
        }
    }

    /// The same line up to `switch`, and at `rate` from there on. `switch` is not before the
    /// line's own switch point.
    pub(super) const fn change_rate(&self, switch: u64, rate: Rate) -> Self {
        Self { switch, at_switch: self.nanoseconds(switch), before: self.after, after: rate }
    }
}

/// Frequency in Hz of a counter that made `cycles` while a reference of `reference_hz` made `ticks`.
pub(super) const fn frequency(cycles: u64, ticks: u64, reference_hz: u64) -> u64 {
    let ticks = if ticks == 0 { 1 } else { ticks };
    (cycles as u128 * reference_hz as u128 / ticks as u128) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gigahertz_counter_counts_nanoseconds() {
        let rate = Rate::from_hz(1_000_000_000);
        assert_eq!((rate.nanoseconds(12_345), rate.cycles(12_345)), (12_345, 12_345));
    }

    #[test]
    fn a_year_at_five_gigahertz_does_not_overflow() {
        let rate = Rate::from_hz(5_000_000_000);
        let year = 365 * 24 * 3600 * 5_000_000_000u64;
        let error = rate.nanoseconds(year).abs_diff(365 * 24 * 3600 * 1_000_000_000);
        assert!(error < 100_000_000, "off by {error} ns");
    }

    #[test]
    fn cycles_are_rounded_up_so_that_a_wait_is_never_short() {
        let rate = Rate::from_hz(2_300_000_000);
        for ns in [1, 7, 100, 12_345, 1_000_000_007] {
            assert!(rate.nanoseconds(rate.cycles(ns) + 1) >= ns);
        }
    }

    #[test]
    fn a_change_of_rate_makes_no_step_and_no_fall() {
        let old = Timeline::starting(1_000, Rate::from_hz(2_000_000_000));
        let new = old.change_rate(5_001_000, Rate::from_hz(2_300_000_000));
        assert_eq!(new.nanoseconds(5_001_000), old.nanoseconds(5_001_000));
        for cycles in [0, 1_000, 4_000_000, 5_000_999] {
            assert!(old.nanoseconds(cycles).abs_diff(new.nanoseconds(cycles)) <= 1);
        }
        let mut last = 0;
        for cycles in (4_990_000..5_010_000).step_by(7) {
            let now = new.nanoseconds(cycles);
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn before_the_start_it_is_zero() {
        assert_eq!(Timeline::starting(1_000, Rate::from_hz(1_000_000_000)).nanoseconds(10), 0);
    }

    #[test]
    fn the_frequency_follows_from_the_reference() {
        assert_eq!(frequency(23_000_000, 35_795, 3_579_545), 2_300_028_914);
        assert_eq!(frequency(5, 0, 3_579_545), 5 * 3_579_545);
    }
}
