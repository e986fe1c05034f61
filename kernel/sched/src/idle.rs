//! What a CPU does when no thread wants it: its idle thread halts until an interrupt, tick stopped, or polls.
//!
//! # The idle window
//!
//! The idle thread must not halt when there is something to do. It looks for the last time with interrupts off, then
//! executes `sti; hlt`. Everything that gives it something to do comes in one of four ways:
//!
//! 1. *An interrupt on this CPU before the last look*: its effect (`need_resched`, a pending softirq) is seen there.
//! 2. *A maskable interrupt after the last look*: it is pending while interrupts are off and ends the `hlt`, because
//!    `sti` takes effect only after the next instruction, which is the `hlt` itself.
//! 3. *Another CPU that queues a thread here after the last look*: it sends RESCHEDULE after it has queued the thread
//!    ([`crate::rq::kick`]), which is case 2.
//! 4. *An NMI after the last look*: it may not wake, raise or queue by itself; all it can do is queue an `IrqWork` or
//!    raise a softirq. Both send a self-IPI, which is pending while interrupts are off: case 2. A lazy `IrqWork` sends
//!    one unless the tick runs ([`crate::tick::runs_here`]); the tick is marked stopped *before* the look at lazy work, so
//!    one queued before the mark is found by that look, and one queued after it sends the IPI. If the tick is left running,
//!    the tick itself ends the `hlt`. A softirq that is raised quietly does as a lazy `IrqWork` does.
//!
//! There is one hole in case 2: an NMI *between* `sti` and `hlt` uses up the one-instruction shadow of `sti` on its way
//! back, on machines (and emulators) that take NMIs there. A maskable interrupt is then taken before the `hlt`, sets
//! `need_resched`, and returns to the `hlt`, which waits for an interrupt that has been. `arch::irq::halt_with_irqs`
//! closes it: an interrupt that finds its return address at that `hlt` moves it behind. So every interrupt since the last
//! look makes `halt_with_irqs` return, and the loop looks again. Single-stepping over the window is the test.
//!
//! The idle thread runs with preemption count 1, so that an interrupt's exit never switches away from it inside RCU's
//! extended quiescent state: it leaves by its own loop only.
//!
//! Linux: `kernel/sched/idle.c`; for the hole, the return-address fix-up in `arch/loongarch/kernel/genex.S`.

use arch::{CpuId, cpu, irq};
use sync::bug;
use sync::context::{self, PREEMPT_OFFSET};

use crate::config;
use crate::hooks::hooks;
use crate::rq::{IDLE_CPUS, RunQueue};
use crate::switch::{Pass, pass};
use crate::thread::current;
use crate::{hotplug, softirq, tick, wake};

/// The life of an idle thread. It comes here with interrupts off and preemption count 1.
pub(crate) fn run() -> ! {
    debug_assert!(current().is_idle() && context::preempt_count() == PREEMPT_OFFSET && !irq::enabled());
    let here = cpu::current();
    let poll = config::IDLE.get() == "poll";
    loop {
        while !context::need_resched() {
            idle_once(here, poll);
        }
        IDLE_CPUS.clear(here);
        if !bug!("sched.tick_not_restarted", "the tick stays off when a CPU idles no more", "sched_prio.a_busy_loop*") {
            tick::start();
        }
        pass(Pass::Voluntary);
    }
}

/// Halts or polls once, unless there is something to do. Interrupts are off before and after.
fn idle_once(here: CpuId, poll: bool) {
    if hotplug::is_leaving() && RunQueue::this().queued() == 0 {
        hotplug::be_parked(here, poll);
        return;
    }
    IDLE_CPUS.set(here);
    if RunQueue::this().queued() > 0 {
        context::set_need_resched();
        return;
    }
    if wake::pull_to_idle(here) {
        return;
    }
    if softirq::pending() {
        softirq::run_pending();
        return;
    }
    let hooks = hooks();
    if tick::is_kept() || hooks.is_some_and(|hooks| (hooks.needs_tick)()) {
        tick::start();
    } else {
        tick::stop_to_idle();
    }
    if let Some(hooks) = hooks {
        (hooks.idle_enter)();
    }
    wait_for_interrupt(poll);
    if let Some(hooks) = hooks {
        (hooks.idle_exit)();
    }
}

/// The last look, and the wait of an idle CPU if there is nothing to do. See the module text; public for the test that steps
/// over it, in an ordinary thread.
///
/// Context: idle thread, or pinned; interrupts off before and after.
pub fn wait_for_interrupt(poll: bool) {
    // Whatever the caller has started is here or sends an interrupt.
    if (context::need_resched() || softirq::pending())
        && !bug!("sched.halts_blind", "a CPU halts without a last look", "sched_idle.nothing_is_slept_over*")
    {
        return;
    }
    if poll {
        poll_until_work();
    } else {
        irq::halt_with_irqs();
        irq::disable();
    }
}

/// `idle=poll`: the CPU never halts, it waits for an interrupt to make work.
fn poll_until_work() {
    irq::enable();
    while !context::need_resched() {
        irq::relax();
    }
    irq::disable();
}
