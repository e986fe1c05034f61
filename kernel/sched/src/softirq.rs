//! Deferred work at interrupt exit: short functions that run with interrupts on, on the CPU that asked for them.
//!
//! Key types: [`Softirq`] (what there is), [`raise`], [`raise_quietly`], [`register`].
//!
//! Invariants:
//!
//! * `SCHED-14`: a raised softirq runs on the CPU that raised it, after the raise (elsewhere if that CPU goes offline first);
//!   raises before it runs are merged.
//! * `SCHED-15`: softirqs do not nest. They run with preemption off.
//! * `SCHED-16`: an interrupt's exit runs at most [`SOFTIRQ_MAX_ROUNDS`] rounds and about [`SOFTIRQ_MAX_NS`]; the rest
//!   is `ksoftirqd/N`'s, a thread of normal priority, so that a flood of them cannot starve threads.
//!
//! Contexts: [`raise`] from any context, NMI included, under any lock: it takes none, wakes nobody and allocates nothing.
//!
//! Linux: `kernel/softirq.c`. There a raise in task context wakes `ksoftirqd`; here it sends a self-IPI, which needs no
//! run-queue lock, and so is allowed under one.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::{CpuId, clock, ipi, irq, vector};
use sync::context::{self, PREEMPT_OFFSET};
use sync::hooks::Slot;
use sync::{ATOMIC, MaySleep, PreemptGuard, bug};

use crate::config::{SOFTIRQ_MAX_NS, SOFTIRQ_MAX_ROUNDS};
use crate::park::{park_me, should_park};
use crate::spawn::{self, SpawnError};
use crate::switch::cond_resched;
use crate::thread::{Prio, Thread};
use crate::tick;
use crate::wait::sleep_until_woken;
use crate::wake::wake;
use crate::watchdog;

/// What can be raised; the order is the order in which they run.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Softirq {
    /// Grace-period requests and callbacks.
    Rcu = 0,
    /// What the allocator deferred.
    Free = 1,
    /// The in-kernel tests' own.
    Test = 2,
}

const KINDS: usize = 3;

/// What runs for each; set once at boot.
static HANDLERS: [Slot<fn()>; KINDS] = [const { Slot::new() }; KINDS];

arch::per_cpu! {
    /// Bit `n`: softirq `n` wants to run here. Set in any context by one instruction, taken with interrupts off.
    static PENDING: u32 = 0;
}

arch::per_cpu! {
    /// This CPU's `ksoftirqd`; null until it exists.
    static DAEMON: *mut Thread = core::ptr::null_mut();
}

/// Says what runs when `softirq` is raised. `handler` runs in softirq context: interrupts on, preemption off.
///
/// Context: boot.
///
/// # Panics
///
/// When it has a handler already.
pub fn register(softirq: Softirq, handler: fn()) {
    HANDLERS[softirq as usize].set(handler);
}

/// Has `softirq`'s handler run on this CPU soon: at the exit of the interrupt we are in, at the end of the section
/// that holds softirqs off, else by a self-IPI at once, or as soon as interrupts are on.
///
/// Context: any, NMI included. Wait-free; takes no lock.
pub fn raise(softirq: Softirq) {
    let _pin = PreemptGuard::new(ATOMIC);
    PENDING.or(1 << softirq as u32);
    // In an interrupt the exit looks at the bit. An NMI may have come after that look, so it always sends the IPI.
    if context::in_nmi() || !context::in_interrupt() {
        ipi::send_self(vector::IRQ_WORK);
    }
}

/// As [`raise`] without the self-IPI in task context: it runs at the next interrupt exit or before the CPU idles, a
/// tick later at most.
///
/// Context: any but NMI. One instruction.
pub fn raise_lazy(softirq: Softirq) {
    let _pin = PreemptGuard::new(ATOMIC);
    PENDING.or(1 << softirq as u32);
}

/// As [`raise`] without the self-IPI wherever the CPU comes here soon anyway: it runs at the exit of the interrupt we are in or
/// of the next one, at the end of the outermost guard, or before the CPU idles; a tick later at most, in a thread that has
/// interrupts or preemption off that long. Only where no tick runs, so for an idle CPU, is there an IPI; then the answer is true.
///
/// Context: any, NMI included. Wait-free; takes no lock.
pub fn raise_quietly(softirq: Softirq) -> bool {
    let _pin = PreemptGuard::new(ATOMIC);
    PENDING.or(1 << softirq as u32);
    // As in `raise`.
    if !context::in_nmi() && context::in_interrupt() {
        return false;
    }
    if tick::runs_here()
        || bug!(
            "softirq.no_interrupt",
            "a quiet raise relies on a tick that is stopped",
            "sched_softirq.*tick_that_stops kfree_rcu_nolock.*idle_cpu*"
        )
    {
        if !bug!("softirq.no_look", "no guard's end looks for what was raised quietly", "sched_softirq.*end_of_a_guard")
        {
            context::want_softirqs();
        }
        return false;
    }
    // The idle thread marks the tick stopped before its last look (`idle.rs`): what was raised before the mark is found by the
    // look, what is raised after it ends the halt.
    ipi::send_self(vector::IRQ_WORK);
    true
}

/// Does any softirq want to run here? The caller is pinned.
pub(crate) fn pending() -> bool {
    PENDING.get() != 0
}

/// Hook: runs what is pending, within the budget, with interrupts on. At an interrupt's exit or with preemption off; not
/// nested.
pub(crate) fn run_pending() {
    if !pending() {
        return;
    }
    let flags = irq::save();
    let overload = context::serving_softirq(serve);
    if overload {
        // SAFETY: null, or a type-stable thread (SCHED-3).
        if let Some(daemon) = unsafe { DAEMON.get().as_ref::<'static>() } {
            wake(daemon);
        }
    }
    irq::restore(flags);
}

/// The rounds. Interrupts are off before and after. True if something is left to do.
fn serve() -> bool {
    let until = clock::now_ns() + SOFTIRQ_MAX_NS;
    for _ in 0..SOFTIRQ_MAX_ROUNDS {
        let pending = PENDING.xchg(0);
        if pending == 0 {
            return false;
        }
        irq::enable();
        for (bit, handler) in HANDLERS.iter().enumerate() {
            if pending & 1 << bit != 0 {
                handler.call();
            }
        }
        irq::disable();
        if context::need_resched() || clock::now_ns() > until {
            break;
        }
    }
    pending()
}

/// The life of `ksoftirqd/N`. It parks while its CPU is offline, so all it finds pending is that CPU's.
fn daemon(cx: &mut MaySleep) {
    loop {
        let idling = watchdog::idling();
        sleep_until_woken(cx, || pending() || should_park());
        drop(idling);
        if should_park() {
            park_me(cx);
        }
        context::count_add(PREEMPT_OFFSET);
        run_pending();
        context::preempt_enable();
        cond_resched(cx);
    }
}

/// Makes the `ksoftirqd` of a CPU.
pub(crate) fn start_daemon(cx: &mut MaySleep, cpu: CpuId) -> Result<(), SpawnError> {
    let name = crate::NumberedName::new("ksoftirqd/", cpu);
    let thread = spawn::per_cpu(cx, name.as_str(), Prio::NORMAL, cpu, daemon)?;
    // SAFETY: areas of present CPUs live for ever; one aligned word, read by its CPU as null or as this.
    unsafe { DAEMON.ptr_on(cpu).write_volatile(core::ptr::from_ref(thread).cast_mut()) };
    Ok(())
}

/// The `ksoftirqd` of a CPU.
pub(crate) fn daemon_of(cpu: CpuId) -> &'static Thread {
    // SAFETY: written at boot; a type-stable thread (SCHED-3).
    unsafe { &*DAEMON.ptr_on(cpu).read_volatile() }
}

/// Raises here what was pending on `from`, which is parked and has not got round to it.
///
/// Context: task.
pub(crate) fn adopt(from: CpuId) {
    let _pin = PreemptGuard::new(ATOMIC);
    // SAFETY: areas of present CPUs live for ever; the owner is parked, so but for an NMI's `or` nobody else accesses it.
    let pending = unsafe { AtomicU32::from_ptr(PENDING.ptr_on(from)) };
    // An NMI's `or` is no atomic access to us. It may read before this and write after it: then what we have taken is pending
    // there once more, which is harmless, and its own bit is served when the CPU is back.
    // Relaxed: Acquire and Release are those of the CPU's wake word.
    let bits = pending.swap(0, Ordering::Relaxed);
    if bits != 0 {
        PENDING.or(bits);
        ipi::send_self(vector::IRQ_WORK);
    }
}

/// For reports: the bits that are pending on `cpu`.
///
/// Context: any.
pub fn pending_on(cpu: CpuId) -> u32 {
    // SAFETY: areas of present CPUs live for ever; one aligned word that others change by single instructions.
    unsafe { PENDING.ptr_on(cpu).read_volatile() }
}
