//! Whether a guest hangs, judged by its own progress.
//!
//! A slow host must not look like a hang, and a hang must not wait for the whole time limit. So a running test is timed
//! by the guest's clock, which its heartbeats carry; only a guest that has stopped to say anything at all, and a boot
//! that takes absurdly long, are judged by the host's clock, which stands still for a guest that the host does not run
//! (`host_share`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::frames::{Frame, Kind};
use crate::verdict::{TestId, begun};

/// What a test may take when it does not say, in the guest's time.
const DEFAULT_BUDGET: Duration = Duration::from_secs(10);
/// How many times its budget a test is let go before it is ended. The kernel itself ends a test at four times, and says
/// more about it: this is for a kernel that cannot.
const GRACE: u32 = 6;

/// When a boot counts as hung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From QEMU's start to the first frame.
    pub boot: Duration,
    /// Between two frames.
    pub silence: Duration,
    /// For the whole boot.
    pub wall: Duration,
    /// Multiplies the tests' budgets, in percent.
    pub budget_percent: u32,
}

impl Limits {
    /// The usual limits times `scale`.
    #[must_use]
    pub fn scaled(scale: f64) -> Limits {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds * scale).unwrap_or(Duration::MAX);
        Limits {
            boot: seconds(60.0),
            silence: seconds(20.0),
            wall: seconds(900.0),
            budget_percent: (100.0 * scale).clamp(1.0, 1e9) as u32,
        }
    }
}

/// Follows the frames of one boot.
#[derive(Debug)]
pub struct Pulse {
    limits: Limits,
    started: Instant,
    last_frame: Option<Instant>,
    /// The guest's clock at the last heartbeat.
    guest: Duration,
    running: Option<(TestId, Option<Duration>)>,
    budgets: HashMap<TestId, Duration>,
}

impl Pulse {
    /// A guest that starts now.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Pulse {
        Pulse { limits, started: now, last_frame: None, guest: Duration::ZERO, running: None, budgets: HashMap::new() }
    }

    /// Takes a frame.
    pub fn frame(&mut self, frame: &Frame, now: Instant) {
        self.last_frame = Some(now);
        match frame.kind {
            Kind::Heartbeat => {
                let ns = serde_json::from_str::<Value>(&frame.payload).ok().and_then(|beat| beat["ns"].as_u64());
                self.guest = self.guest.max(Duration::from_nanos(ns.unwrap_or(0)));
                if let Some((_, since @ None)) = &mut self.running {
                    // The first beat inside the test starts its clock: the beat before may be long ago.
                    *since = Some(self.guest);
                }
            }
            Kind::Begin => {
                self.running = begun(&frame.payload).map(|id| (id, None));
                let budget =
                    serde_json::from_str::<Value>(&frame.payload).ok().and_then(|begin| begin["budget_ms"].as_u64());
                if let (Some((id, _)), Some(budget @ 1..)) = (&self.running, budget) {
                    self.budgets.insert(id.clone(), Duration::from_millis(budget));
                }
            }
            Kind::Ktap => self.running = None,
            _ => {}
        }
    }

    /// Why the guest counts as hung, if it does.
    #[must_use]
    pub fn hang(&self, now: Instant) -> Option<String> {
        let whole = now.duration_since(self.started);
        let seconds = |time: Duration| format!("{:.0} s", time.as_secs_f64());
        let Some(last) = self.last_frame else {
            return (whole > self.limits.boot)
                .then(|| format!("the kernel did not start its tests within {}", seconds(whole)));
        };
        if let Some((id, Some(since))) = &self.running {
            let budget = self.budgets.get(id).copied().unwrap_or(DEFAULT_BUDGET) * GRACE;
            let took = self.guest.saturating_sub(*since);
            if took.as_millis() * 100 > budget.as_millis() * u128::from(self.limits.budget_percent) {
                return Some(format!("{id} still runs after {} of the guest's time", seconds(took)));
            }
        }
        let silent = now.duration_since(last);
        if silent > self.limits.silence {
            return Some(format!("no sign of life for {}", seconds(silent)));
        }
        (whole > self.limits.wall).then(|| format!("still running after {}", seconds(whole)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, payload: &str) -> Frame {
        Frame { seq: 0, kind, payload: payload.to_owned() }
    }

    fn beat(seconds: u64) -> Frame {
        frame(Kind::Heartbeat, &format!("{{\"ticks\":1,\"ns\":{}}}", seconds * 1_000_000_000))
    }

    const BEGIN: &str = r#"{"suite":"nmi","name":"nested"}"#;

    #[test]
    fn a_kernel_that_never_starts_its_tests_hangs_after_the_boot_limit() {
        let start = Instant::now();
        let pulse = Pulse::new(Limits::scaled(1.0), start);
        assert_eq!(pulse.hang(start + Duration::from_secs(59)), None);
        assert!(pulse.hang(start + Duration::from_secs(61)).unwrap().contains("did not start"));
    }

    #[test]
    fn silence_is_a_hang_and_heartbeats_are_not() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Limits::scaled(1.0), start);
        for second in (0..100).step_by(10) {
            pulse.frame(&beat(second), start + Duration::from_secs(second));
        }
        assert_eq!(pulse.hang(start + Duration::from_secs(100)), None);
        assert!(pulse.hang(start + Duration::from_secs(111)).unwrap().contains("no sign of life"));
    }

    #[test]
    fn a_test_is_timed_by_the_guests_clock_and_not_by_the_hosts() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Limits::scaled(1.0), start);
        pulse.frame(&beat(5), start);
        pulse.frame(&frame(Kind::Begin, BEGIN), start);
        // A slow host: ten minutes pass, the guest sees ten seconds.
        for second in 0..10 {
            let now = start + Duration::from_secs(second * 60);
            pulse.frame(&beat(6 + second), now);
            assert_eq!(pulse.hang(now), None);
        }
        // The guest's own clock runs on: this is a loop.
        pulse.frame(&beat(6 + 61), start + Duration::from_secs(601));
        assert!(pulse.hang(start + Duration::from_secs(601)).unwrap().contains("nmi.nested still runs"));
    }

    #[test]
    fn a_tests_own_budget_and_the_scale_count() {
        let start = Instant::now();
        for (scale, hangs) in [(1.0, true), (10.0, false)] {
            let mut pulse = Pulse::new(Limits::scaled(scale), start);
            pulse.frame(&frame(Kind::Begin, r#"{"suite":"nmi","name":"nested","budget_ms":1000}"#), start);
            pulse.frame(&beat(0), start);
            pulse.frame(&beat(7), start);
            assert_eq!(pulse.hang(start).is_some(), hangs, "scale {scale}");
        }
    }

    #[test]
    fn between_tests_no_budget_runs() {
        let start = Instant::now();
        let mut pulse = Pulse::new(Limits::scaled(1.0), start);
        pulse.frame(&frame(Kind::Begin, BEGIN), start);
        pulse.frame(&beat(1), start);
        pulse.frame(&frame(Kind::Ktap, "  ok 1 nested"), start);
        pulse.frame(&beat(100), start);
        assert_eq!(pulse.hang(start), None);
    }
}
