//! Stoppers: per CPU a thread `migration/N` that nothing holds up, and stopping all CPUs at once with them.
//!
//! Key functions: [`stop_machine`], [`stop_one_cpu`].
//!
//! A stopper runs at [`Prio::CRITICAL`] and stays on its CPU for ever. While it runs, the thread that it has preempted is
//! queued and its stack at rest, which is what moving a thread takes.
//!
//! Stopping the machine is a walk of all stoppers through phases ([`Phases`]); none enters a phase before all have been
//! through the one before it:
//!
//! | phase | each CPU |
//! |---|---|
//! | gather | is in its stopper, preemption off; interrupts are still on, so a slow CPU keeps nobody from answering calls |
//! | quiet | interrupts off: now nothing but NMIs runs anywhere |
//! | act | the CPUs that were asked run the function |
//! | done | interrupts on again |
//!
//! Invariants:
//!
//! * `SCHED-25`: at most one stop of the machine is under way, and no CPU goes or comes beside it.
//! * `SCHED-26`: a stopper takes no work once its CPU is on its way into the idle thread for good; who asks is told.
//!
//! Locks: `sched.stop` protects a stopper's list; nothing is taken inside it.
//!
//! Contexts: task.
//!
//! Linux: `kernel/stop_machine.c`.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use arch::{CpuId, CpuMask, cpu, irq};
use sync::{LockClass, MaySleep, PreemptGuard, SpinLock};

use crate::hotplug::keep_cpus;
use crate::mutex::Mutex;
use crate::spawn::{self, SpawnError};
use crate::thread::{Prio, STAYS_FOR_EVER, Thread, current};
use crate::wait::{self, Completion};
use crate::{NumberedName, affinity, wake, watchdog};

/// Nothing is taken inside it. Protects [`Works`]. Taken with interrupts off.
static STOP_CLASS: LockClass = LockClass::new("sched.stop");

/// Outermost of the storey. Protects nothing but the turn.
static TURN_CLASS: LockClass = LockClass::new("sched.stop_turn");
/// One stop at a time (`SCHED-25`).
static TURN: Mutex<()> = Mutex::new((), &TURN_CLASS);

/// A CPU's stopper and what it has to do.
struct Stopper {
    /// The thread. Written at boot, before anybody asks.
    thread: AtomicPtr<Thread>,
    /// Threads may be misplaced here. Set by anyone, taken by the stopper.
    push: AtomicBool,
    /// The stop of the machine to take part in, or null. Set by who holds `TURN`, taken by the stopper.
    stop: AtomicPtr<Stop<'static>>,
    works: SpinLock<Works>,
}

/// Functions to be run, last come first.
struct Works {
    first: *const Work<'static>,
    /// The CPU is offline, or as good as (`SCHED-26`).
    closed: bool,
}

// SAFETY: each work stays in place until it has been run, by `stop_one_cpu`.
unsafe impl Send for Works {}

/// A function that a stopper shall run; on the stack of who waits for it.
struct Work<'a> {
    func: &'a (dyn Fn() + Sync),
    done: Completion,
    /// Guarded by the lock of the list.
    next: Cell<*const Work<'static>>,
}

arch::per_cpu! {
    /// This CPU's stopper; asked from any CPU through `ptr_on`.
    static STOPPER: Stopper = Stopper {
        thread: AtomicPtr::new(ptr::null_mut()),
        push: AtomicBool::new(false),
        stop: AtomicPtr::new(ptr::null_mut()),
        works: SpinLock::new(Works { first: ptr::null(), closed: false }, &STOP_CLASS),
    };
}

impl Stopper {
    fn of(cpu: CpuId) -> &'static Stopper {
        // SAFETY: per-CPU areas of present CPUs live for ever; a Stopper is shared by its lock and its atomics.
        unsafe { &*STOPPER.ptr_on(cpu) }
    }

    fn wake(&self) {
        // SAFETY: null before boot is that far, else a type-stable thread (SCHED-3).
        if let Some(thread) = unsafe { self.thread.load(Ordering::Relaxed).as_ref::<'static>() } {
            wake(thread);
        }
    }

    /// False if the CPU is offline.
    fn add(&self, work: &Work<'_>) -> bool {
        let mut works = self.works.lock_irqsave(sync::ATOMIC);
        if works.closed {
            return false;
        }
        work.next.set(works.first);
        works.first = ptr::from_ref(work).cast();
        true
    }

    fn pop(&self) -> Option<&'static Work<'static>> {
        let mut works = self.works.lock_irqsave(sync::ATOMIC);
        // SAFETY: null, or in place until it has been run, as who waits for it does not return before.
        let work = unsafe { works.first.as_ref() }?;
        works.first = work.next.get();
        Some(work)
    }

    fn has_work(&self) -> bool {
        // Relaxed: the announcement of the sleep and the wake-up are full barriers (SCHED-1).
        self.push.load(Ordering::Relaxed)
            || !self.stop.load(Ordering::Relaxed).is_null()
            || !self.works.lock_irqsave(sync::ATOMIC).first.is_null()
    }

    /// Does what there is to do.
    fn serve(&self, cx: &mut MaySleep) {
        if self.push.swap(false, Ordering::Relaxed) {
            affinity::push_misplaced();
        }
        while let Some(work) = self.pop() {
            {
                let _pin = PreemptGuard::new(&*cx);
                (work.func)();
            }
            // The last touch: it may be gone after this.
            work.done.complete();
        }
        // Acquire: pairs with the Release in `stop_machine`: the stop is complete.
        let stop = self.stop.swap(ptr::null_mut(), Ordering::Acquire);
        // SAFETY: null, or in place until this CPU has taken part.
        if let Some(stop) = unsafe { stop.as_ref() } {
            stop.take_part(cx);
        }
    }
}

/// The life of `migration/N`.
fn stopper(cx: &mut MaySleep) {
    // For good: it is what is left when all others have to go.
    current().stays.store(STAYS_FOR_EVER, Ordering::Relaxed);
    let me = Stopper::of(cpu::current());
    loop {
        me.serve(cx);
        let _idling = watchdog::idling();
        wait::sleep_until_woken(cx, || me.has_work());
    }
}

/// Makes the stopper of a CPU.
pub(crate) fn start_stopper(cx: &mut MaySleep, cpu: CpuId) -> Result<(), SpawnError> {
    let name = NumberedName::new("migration/", cpu);
    let thread = spawn::per_cpu(cx, name.as_str(), Prio::CRITICAL, cpu, stopper)?;
    Stopper::of(cpu).thread.store(ptr::from_ref(thread).cast_mut(), Ordering::Relaxed);
    Ok(())
}

/// Has `cpu`'s stopper run `f`, and waits for it. False if the CPU is offline: then `f` has not run.
///
/// `f` runs in the stopper thread with preemption off. The thread that ran there is queued meanwhile.
///
/// Context: task, sleeps. The caller may be on that CPU.
#[must_use = "an offline CPU runs nothing"]
pub fn stop_one_cpu(cx: &mut MaySleep, cpu: CpuId, f: impl Fn() + Sync) -> bool {
    let work = Work { func: &f, done: Completion::new(), next: Cell::new(ptr::null()) };
    let stopper = Stopper::of(cpu);
    if !stopper.add(&work) {
        return false;
    }
    stopper.wake();
    work.done.wait(cx);
    true
}

/// Has `cpu`'s stopper look for misplaced threads as soon as it can.
///
/// Context: any but NMI; not under a run-queue lock.
pub(crate) fn ask_for_push(cpu: CpuId) {
    let stopper = Stopper::of(cpu);
    stopper.push.store(true, Ordering::Relaxed);
    stopper.wake();
}

/// Runs `f` on each CPU of `mask` that is online, while all CPUs that are online have interrupts off and run nothing else,
/// NMIs excepted. Waits until all go on.
///
/// `f` is called with interrupts off, on all asked CPUs at the same time; it must not wait for another CPU other than by
/// means of `f` itself.
///
/// Context: task, sleeps; not under a [`MigrateGuard`](crate::MigrateGuard). Not from a function called here.
pub fn stop_machine(cx: &mut MaySleep, mask: &CpuMask, f: impl Fn(CpuId) + Sync) {
    let _cpus = keep_cpus(cx);
    let _turn = TURN.lock(cx);
    let cpus = cpu::online();
    let stop = Stop {
        phases: Phases::new(cpus.count()),
        left: AtomicUsize::new(cpus.count()),
        mask: *mask,
        func: &f,
        done: Completion::new(),
    };
    {
        // The first stopper to run here waits for the others: all must have been asked by then.
        let _pin = PreemptGuard::new(&*cx);
        for stopper in cpus.iter().map(Stopper::of) {
            // Release: pairs with the Acquire in `serve`.
            stopper.stop.store(ptr::from_ref(&stop).cast_mut().cast(), Ordering::Release);
            stopper.wake();
        }
    }
    stop.done.wait(cx);
}

/// The CPU is on its way into its idle thread for good.
///
/// Context: the CPU's stopper, in a stop of the machine.
pub(crate) fn close() {
    Stopper::of(cpu::current()).works.lock_irqsave(sync::ATOMIC).closed = true;
}

/// The CPU is back.
pub(crate) fn open() {
    Stopper::of(cpu::current()).works.lock_irqsave(sync::ATOMIC).closed = false;
}

/// A stop of the machine; on the stack of who waits for it.
struct Stop<'a> {
    phases: Phases,
    /// CPUs that have yet to leave; the last says that it is done.
    left: AtomicUsize,
    mask: CpuMask,
    func: &'a (dyn Fn(CpuId) + Sync),
    done: Completion,
}

impl Stop<'_> {
    fn take_part(&self, cx: &mut MaySleep) {
        {
            let _pin = PreemptGuard::new(&*cx);
            let here = cpu::current();
            self.phases.walk(|phase| match phase {
                Phases::QUIET => irq::disable(),
                Phases::ACT if self.mask.contains(here) => (self.func)(here),
                _ => {}
            });
            irq::enable();
        }
        // AcqRel: the last one's `complete` comes after everything that any CPU did here.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.complete();
        }
    }
}

/// Phases that a number of CPUs go through together.
struct Phases {
    /// The phase that all may be in. Stepped by the last to say that it has been through it.
    now: AtomicU32,
    /// Who has not said so yet.
    missing: AtomicUsize,
    cpus: usize,
}

impl Phases {
    const GATHER: u32 = 0;
    const QUIET: u32 = 1;
    const ACT: u32 = 2;
    const DONE: u32 = 3;

    fn new(cpus: usize) -> Phases {
        Phases { now: AtomicU32::new(Phases::GATHER), missing: AtomicUsize::new(cpus), cpus }
    }

    /// Goes through all phases with the others, calling `enter` at the beginning of each.
    fn walk(&self, mut enter: impl FnMut(u32)) {
        let mut next = Phases::GATHER;
        while next <= Phases::DONE {
            // Acquire: pairs with the Release below: what all did in the phase before is seen.
            if self.now.load(Ordering::Acquire) < next {
                irq::relax();
                continue;
            }
            enter(next);
            next += 1;
            if next <= Phases::DONE && self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.missing.store(self.cpus, Ordering::Relaxed);
                // Release: pairs with the Acquire above, for `missing` and for what all did (AcqRel above).
                self.now.store(next, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::sync::Mutex;
    use std::vec::Vec;
    use std::{format, thread};

    use super::*;

    #[test]
    fn nobody_enters_a_phase_before_all_have_been_through_the_one_before() {
        for cpus in [1, 2, 5] {
            let (phases, log) = (Phases::new(cpus), Mutex::new(Vec::new()));
            thread::scope(|scope| {
                for cpu in 0..cpus {
                    let (phases, log) = (&phases, &log);
                    scope.spawn(move || {
                        phases.walk(|phase| {
                            if cpu == 1 {
                                thread::sleep(core::time::Duration::from_millis(5));
                            }
                            log.lock().unwrap().push(phase);
                        });
                    });
                }
            });
            let log = log.into_inner().unwrap();
            assert!(log.is_sorted(), "{}", format!("{log:?}"));
            assert_eq!(log.len(), 4 * cpus);
        }
    }
}
