//! The tick: slices, the heartbeat, RCU's look at a busy CPU. It runs while a CPU is busy and stops while it idles.
//!
//! The tick is a deadline on the CPU's one-shot clock event ([`crate::timer`]), not a periodic interrupt, so that timers
//! between two ticks are precise. Ticks of different CPUs are spread over the period, so that they do not all want
//! the same locks at once.
//!
//! Contexts: [`interrupt`] in hardirq context; starting and stopping by the idle thread with interrupts off.
//!
//! Linux: `kernel/time/tick-sched.c`, `scheduler_tick` in `kernel/sched/core.c`.

use arch::trap::TrapFrame;
use arch::{CpuId, clock, cpu};
use sync::context;

use crate::config::tick_ns;
use crate::hooks::{TickFrom, hooks};
use crate::rq::RunQueue;
use crate::thread::current;
use crate::timer::{self, NEVER};

arch::per_cpu! {
    /// Ticks that this CPU has taken; its heartbeat.
    static TICKS: u64 = 0;
}

arch::per_cpu! {
    /// This CPU's tick runs. Written with interrupts off; read in any context, NMI included: a lazy `irq_work` relies on
    /// the tick only while this is true.
    static RUNS: bool = false;
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
    if from == TickFrom::Busy && RunQueue::this().lock().charge_tick(thread) {
        context::set_need_resched();
    }
    if let Some(hooks) = hooks() {
        (hooks.tick)(from);
    }
}

/// Starts this CPU's tick if it is stopped. Interrupts are off.
pub(crate) fn start() {
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
