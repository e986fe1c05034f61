//! Torture of timers: each runs once for each time that it was armed and not taken back, and never early.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::{clock, cpu};
use sched::{Prio, Timer};
use sync::{MaySleep, Rng};

use super::{Ongoing, Stat, control};
use crate::{Failure, torture};

/// Timers of a thread.
const EACH: usize = 16;
/// The longest that one is armed for.
const LONGEST_NS: u64 = 2_000_000;

#[derive(Default)]
struct Counts {
    armed: AtomicU64,
    fired: AtomicU64,
    /// Taken back before they ran, by being cancelled or armed anew.
    taken: AtomicU64,
    early: AtomicU64,
    lost: AtomicU64,
}

/// A timer that counts. It is taken back before it is dropped.
#[repr(C)]
struct Alarm {
    timer: Timer,
    counts: Arc<Counts>,
    /// The earliest time that it may run at. Written by its thread while it is not armed, or to an earlier time.
    due_ns: AtomicU64,
}

impl Alarm {
    fn new(counts: Arc<Counts>) -> Arc<Alarm> {
        Arc::new(Alarm { timer: Timer::new(ring), counts, due_ns: AtomicU64::new(0) })
    }

    fn arm(&self, at_ns: u64, again: bool) {
        let due = if again { at_ns.min(self.due_ns.load(Relaxed)) } else { at_ns };
        self.due_ns.store(due, Relaxed);
        // SAFETY: its thread keeps it until `cancel` has returned.
        let was_armed = unsafe { self.timer.arm_at_raw(at_ns) };
        self.counts.armed.fetch_add(1, Relaxed);
        self.counts.taken.fetch_add(u64::from(was_armed), Relaxed);
    }

    fn cancel(&self) {
        let was_armed = self.timer.cancel_sync();
        self.counts.taken.fetch_add(u64::from(was_armed), Relaxed);
    }
}

fn ring(timer: &Timer) {
    // SAFETY: every timer with this function is the first field of an `Alarm`, which lives until it is taken back.
    let alarm = unsafe { &*ptr::from_ref(timer).cast::<Alarm>() };
    if clock::now_ns() < alarm.due_ns.load(Relaxed) {
        alarm.counts.early.fetch_add(1, Relaxed);
    }
    alarm.counts.fired.fetch_add(1, Relaxed);
}

fn turn(alarms: &[Arc<Alarm>], mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        for _ in 0..EACH {
            let alarm = &alarms[rng.index(alarms.len())];
            match rng.below(4) {
                0 => alarm.cancel(),
                1 => {
                    alarm.cancel();
                    alarm.arm(clock::now_ns() + rng.below(LONGEST_NS), false);
                }
                _ => alarm.arm(clock::now_ns() + rng.below(LONGEST_NS), true),
            }
        }
        sched::sleep_ns(cx, rng.below(LONGEST_NS));
    }
    alarms.iter().for_each(|alarm| alarm.cancel());
    Ok(())
}

impl Ongoing for Arc<Counts> {
    fn stat(&self, out: &mut Stat) {
        out.work("armed", self.armed.load(Relaxed));
        out.work("fired", self.fired.load(Relaxed));
        out.work("taken", self.taken.load(Relaxed));
        out.error("early", self.early.load(Relaxed));
        out.error("lost", self.lost.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        // No thread and no timer of ours runs any more, so these are exact.
        let ended = self.fired.load(Relaxed) + self.taken.load(Relaxed);
        self.lost.store(self.armed.load(Relaxed).abs_diff(ended), Relaxed);
        Ok(())
    }
}

torture! {
    /// Timers that are armed, armed anew and taken back: none is lost, runs twice or early
    fn timers(run: &mut Run) {
        let counts = Arc::new(Counts::default());
        for cpu in cpu::online().iter() {
            let alarms: Vec<_> = (0..EACH).map(|_| Alarm::new(counts.clone())).collect();
            let rng = Rng::stream(run.rng("threads").next_u64(), cpu.index() as u64);
            run.spawn("timers", Prio::NORMAL, None, move |cx| turn(&alarms, rng, cx))?;
        }
        Ok(counts)
    }
}
