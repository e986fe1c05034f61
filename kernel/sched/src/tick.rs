//! The tick: slices, the heartbeat, RCU's look at a busy CPU, and idle CPUs called to help. It runs while a CPU is busy and
//! stops while it idles, unless somebody wants it on ([`keep_on`]).
//!
//! The tick is a deadline on the CPU's one-shot clock event ([`crate::timer`]), not a periodic interrupt, so that timers
//! between two ticks are precise. Ticks of different CPUs are spread over the period, so that they do not all want
//! the same locks at once.
//!
//! Contexts: [`interrupt`] in hardirq context; starting and stopping by the idle thread with interrupts off.
//!
//! Linux: `kernel/time/tick-sched.c`, `scheduler_tick` in `kernel/sched/core.c`.

use core::sync::atomic::{AtomicBool, Ordering};

use arch::trap::TrapFrame;
use arch::{CpuId, clock, cpu};
use sync::context;

use crate::config::tick_ns;
use crate::hooks::{TickFrom, hooks};
use crate::rq::{RunQueue, resched_cpu};
use crate::thread::current;
use crate::timer::{self, NEVER};
use crate::wake;

arch::per_cpu! {
    /// Ticks that this CPU has taken; its heartbeat.
    static TICKS: u64 = 0;
}

arch::per_cpu! {
    /// This CPU's tick runs. Written with interrupts off; read in any context, NMI included: a lazy `irq_work` relies on
    /// the tick only while this is true.
    static RUNS: bool = false;
}

arch::per_cpu! {
    /// The tick goes on while this CPU idles. Written by any CPU, read by this one.
    static KEPT: AtomicBool = AtomicBool::new(false);
}

/// The timer interrupt.
pub(crate) fn interrupt(_frame: &mut TrapFrame) {
    if timer::interrupt(tick_ns()) {
        tick();
    }
}

fn tick() {
    TICKS.inc();
    let thread = current();
    let from = if thread.is_idle() { TickFrom::Idle } else { TickFrom::Busy };
    if from == TickFrom::Busy {
        let rq = RunQueue::this();
        let mut inner = rq.lock();
        if inner.charge_tick(thread) {
            context::set_need_resched();
        }
        if rq.queued() > 0 {
            wake::call_idle(&mut inner, cpu::current());
        }
    }
    if let Some(hooks) = hooks() {
        (hooks.tick)(from);
    }
}

/// Starts this CPU's tick if it is stopped. Public for the test that steps over the stop.
///
/// Context: pinned, interrupts off.
pub fn start() {
    if RUNS.get() {
        return;
    }
    timer::set_tick(first_after(clock::now_ns(), cpu::current(), tick_ns()));
    RUNS.set(true);
}

/// Stops this CPU's tick. Interrupts are off. After it a lazy `irq_work` sends a self-IPI, one that was queued before it
/// does not: the caller looks for those afterwards.
pub(crate) fn stop() {
    if !RUNS.get() {
        return;
    }
    RUNS.set(false);
    timer::set_tick(NEVER);
}

/// Stops this CPU's tick because it idles, and then does what relied on the tick: case 4 of [`idle`](crate::idle). Public for
/// the test that steps over it.
///
/// Context: idle thread, or pinned; interrupts off before and after.
pub fn stop_to_idle() {
    if RUNS.get() {
        stop();
        // All that may have relied on it is done at an interrupt's exit.
        sync::irq::irq_enter();
        sync::irq::irq_exit(false);
    }
}

/// Has the tick of `cpu` run from now on, though the CPU idles; starts it if it is stopped. An offline CPU starts it when it
/// comes back.
///
/// One user at a time, which is RCU: nothing counts.
///
/// Context: task, softirq, hardirq; takes the run-queue lock. Not NMI. Does not wait for it.
pub fn keep_on(cpu: CpuId) {
    kept(cpu).store(true, Ordering::Relaxed);
    // The CPU leaves its idle loop, which starts the tick, and finds the word when it idles again: the reschedule orders them.
    resched_cpu(cpu);
}

/// Takes [`keep_on`] back: the tick stops when the CPU idles next, at the latest with the tick after this.
///
/// Context: any.
pub fn let_stop(cpu: CpuId) {
    kept(cpu).store(false, Ordering::Relaxed);
}

/// Is this CPU's tick to go on while it idles? The caller is pinned.
pub(crate) fn is_kept() -> bool {
    kept(cpu::current()).load(Ordering::Relaxed)
}

fn kept(cpu: CpuId) -> &'static AtomicBool {
    // SAFETY: per-CPU areas of present CPUs live for ever, and the word is atomic.
    unsafe { &*KEPT.ptr_on(cpu) }
}

/// Does this CPU's tick run?
///
/// Context: any; the caller is pinned.
pub fn runs_here() -> bool {
    RUNS.get()
}

/// Ticks that a CPU has taken: it stands still while the CPU idles, and when the CPU is stuck with interrupts off.
///
/// Context: any.
pub fn count_on(cpu: CpuId) -> u64 {
    // SAFETY: areas of present CPUs live for ever; a torn read cannot happen on an aligned word, and the only writer
    // is the CPU's own one-instruction increment.
    unsafe { TICKS.ptr_on(cpu).read_volatile() }
}

/// Ticks that all CPUs have taken, those that are offline now included.
///
/// Context: any.
pub fn count() -> u64 {
    cpu::present().iter().map(count_on).sum()
}

/// Does a CPU's tick run? For reports and tests; it may change at once.
///
/// Context: any.
pub fn runs_on(cpu: CpuId) -> bool {
    // SAFETY: as in `count_on`; a bool that the owner writes with one store.
    unsafe { RUNS.ptr_on(cpu).read_volatile() }
}

/// The first tick of `cpu` after `now`: periods are cut into 16 phases that CPUs take in turn.
fn first_after(now: u64, cpu: CpuId, period: u64) -> u64 {
    let phase = period / 16 * (cpu.index() as u64 % 16);
    let since = now.saturating_sub(phase);
    (since / period + 1) * period + phase
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tick_lies_in_the_next_period_and_keeps_its_phase() {
        let period = 4_000_000;
        for cpu in [0, 1, 15, 17] {
            for now in [0, 1, 3_999_999, 4_000_000, 123_456_789] {
                let at = first_after(now, CpuId::new(cpu), period);
                assert!(at > now && at <= now + 2 * period, "CPU {cpu} at {now}: {at}");
                assert_eq!(at % period, period / 16 * (cpu as u64 % 16));
            }
        }
    }
}
