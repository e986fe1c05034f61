//! Backtraces of threads that do not run, while the machine goes on.
//!
//! The run queue's lock is held over the walk. A thread is taken onto a CPU under that lock, and leaves one with its
//! context saved before `on_cpu` is cleared (`SCHED-5`), so a thread that is found queued or asleep under the lock stays
//! as it is until the walk is over: what is shown is one moment of it.
//!
//! Linux: `show_stack` of another task, and `arch_stack_walk` in `arch/x86/kernel/stacktrace.c`, which promise less.

use core::sync::atomic::Ordering;

use arch::CpuId;
use sync::{ATOMIC, IrqGuard, PreemptGuard};

use crate::rq::{Place, lock_of};
use crate::state::State;
use crate::thread::Thread;

/// Why a thread has no backtrace here.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NotAtRest {
    /// A CPU runs it, or is still leaving it: only that CPU can say where it is.
    OnCpu(CpuId),
    /// It is being made, or is about to be queued after a sleep; or it is the idle thread of a CPU that has not come up.
    OnItsWay,
    /// It has ended.
    Gone,
}

/// Calls `visit` with the place where `thread` will go on and then with the return addresses of its callers, innermost
/// first, as far as they lie on its stack. `tid` says which tenant is meant (`SCHED-3`).
///
/// Context: task, softirq, hardirq; takes the run-queue lock and holds it, with interrupts off, while it calls `visit`,
/// at most 65 times with different addresses. Not NMI. `visit` wakes nobody and does not allocate.
///
/// # Errors
///
/// [`NotAtRest`]; `visit` has not been called.
pub fn backtrace_of(thread: &'static Thread, tid: u64, visit: &mut dyn FnMut(u64)) -> Result<(), NotAtRest> {
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (_, mut inner) = lock_of(thread);
    if thread.tid() != tid || thread.state() == State::Dead {
        return Err(NotAtRest::Gone);
    }
    // Acquire: pairs with the Release in `finish_switch`: the saved context is complete.
    if thread.on_cpu.load(Ordering::Acquire) {
        return Err(NotAtRest::OnCpu(thread.cpu()));
    }
    // An idle thread is never queued and never sleeps; that of a CPU that has not come up has no context.
    let idled = || thread.is_idle() && thread.voluntary_switches() + thread.involuntary_switches() > 0;
    let rests = match inner.place(thread) {
        // On its way to a queue: who moves it needs this lock to get it there.
        Place::Queued | Place::Moving => true,
        Place::Off => thread.state() == State::Sleeping || idled(),
        Place::Current => false,
    };
    if !rests {
        return Err(NotAtRest::OnItsWay);
    }
    // SAFETY: the thread has left a CPU, is queued or about to be, so it has a context; it was written before `on_cpu` was
    // cleared or before somebody sent the thread to this queue or queued it under this lock, and is not written
    // before somebody takes this lock and runs the thread.
    let context = unsafe { (*thread.context.get()).assume_init_ref() };
    // SAFETY: the stack is written only while the thread is nobody's tenant, which it is not before it has run again.
    let stack = unsafe { (*thread.stack.get()).as_ref() };
    // The first threads of the CPUs run on stacks that are not theirs to give back.
    let stack = stack.map_or(0..u64::MAX, |stack| stack.bottom().addr() as u64..stack.top().addr() as u64);
    context.walk(stack, visit);
    Ok(())
}
