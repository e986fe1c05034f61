//! The end and the pauses of a run, as its threads, timers and handlers see them.
//!
//! There is one run at a time, so these are statics: whoever is called in an interrupt or an NMI needs no pointer to it.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use sched::wait::WaitQueue;
use sync::MaySleep;

/// The run is at its end, or none is on. Written by the thread that runs it.
static STOP: AtomicBool = AtomicBool::new(true);
/// Everybody pauses. Written by the disturber `stutter`.
static PAUSED: AtomicBool = AtomicBool::new(false);
/// Where everybody waits for either to change.
static CHANGED: WaitQueue = WaitQueue::new();

/// Whether to end. Threads look again and again; what posts itself anew (timers, callbacks) looks before it does.
///
/// Context: any.
pub fn should_stop() -> bool {
    STOP.load(Relaxed)
}

/// Whether a pause is on.
///
/// Context: any.
pub fn is_paused() -> bool {
    PAUSED.load(Relaxed) && !should_stop()
}

/// Waits while a pause is on; returns whether to end. Every thread of a kind calls it once a turn, outside of any section.
///
/// Context: thread that may sleep.
pub fn stutter(cx: &mut MaySleep) -> bool {
    if is_paused() {
        CHANGED.wait_until(cx, || !is_paused());
    }
    should_stop()
}

/// Sleeps for `ns`, or to the end of the run; returns whether to end.
///
/// Context: thread that may sleep.
pub fn rest(cx: &mut MaySleep, ns: u64) -> bool {
    CHANGED.wait_timeout(cx, ns, should_stop)
}

/// Says that a line of the log that holds `text`, and looks bad, is coming because a kind provokes it: it does not count, once.
///
/// Context: any that may log.
pub fn on_purpose(text: &str) {
    log::info!(target: "torture", "on purpose: {text}");
}

/// A run begins. Context: the thread that runs it.
pub(crate) fn begin() {
    PAUSED.store(false, Relaxed);
    STOP.store(false, Relaxed);
}

/// Ends the run: asked for by the clock, or by a failure.
///
/// Context: task, softirq, hardirq.
pub(crate) fn end() {
    STOP.store(true, Relaxed);
    CHANGED.wake_all();
}

/// Begins or ends a pause. Context: task.
pub(super) fn pause(on: bool) {
    PAUSED.store(on, Relaxed);
    if !on {
        CHANGED.wake_all();
    }
}
