//! Where a thread may run: its set of CPUs, and how it gets off a CPU that is not in it (any more).
//!
//! Key types: [`MigrateGuard`], [`AffinityError`]; [`set_affinity`].
//!
//! A thread is *misplaced* on a CPU that it may not use: its set was changed, or the CPU is on its way offline. It is moved
//! by the stopper thread of that CPU ([`crate::stop`]), which preempts it: then it is queued and nothing uses its
//! stack, so it can be put elsewhere like any queued thread ([`push_misplaced`]).
//!
//! Invariants:
//!
//! * `SCHED-23`: a thread is queued only where it may run, except while its last CPU is still leaving its stack (`SCHED-5`);
//!   whoever queues it there asks that CPU's stopper to look.
//! * `SCHED-24`: a thread that stays ([`MigrateGuard`]) is queued where it was and nowhere else, whatever its set says.
//!   When the last guard goes it asks for a look itself. Whoever changes the set or closes the CPU has had the stopper
//!   run there meanwhile, so either the stopper has seen that the thread no longer stays, or the thread sees the change.
//!
//! Contexts: see each function; nothing allocates.
//!
//! Linux: `set_cpus_allowed_ptr`, `migrate_disable`, `select_fallback_rq`, `balance_push` in `kernel/sched/core.c`.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, compiler_fence};

use arch::{AtomicCpuMask, CpuId, CpuMask, MAX_CPUS, cpu};
use sync::{ATOMIC, Cx, IrqGuard, MaySleep, PreemptGuard, SpinGuard};

use crate::rq::{IDLE_CPUS, Inner, Place, RunQueue, lock_of};
use crate::stop;
use crate::thread::{self, STAYS_FOR_EVER, Thread, current};
use crate::wait::WaitQueue;
use crate::wake::queue_on;

/// CPUs that take threads: online and not on their way down. Set and cleared with the run queue's own mark, under its
/// lock; read without it as a hint.
pub(crate) static ACTIVE: AtomicCpuMask = AtomicCpuMask::new();

/// Where who takes a CPU down waits for threads that stay there.
static LEFT: WaitQueue = WaitQueue::new();

/// Why a thread's set of CPUs was not changed. Nothing has happened.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum AffinityError {
    /// The set is empty.
    Empty,
    /// No CPU of the set is online.
    NoneOnline,
    /// The thread belongs to its CPU: an idle thread, a worker, a stopper.
    PerCpu,
}

impl fmt::Display for AffinityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AffinityError::Empty => "the set of CPUs is empty",
            AffinityError::NoneOnline => "no CPU of the set is online",
            AffinityError::PerCpu => "the thread belongs to its CPU",
        })
    }
}

/// All CPUs, present or not.
pub(crate) fn anywhere() -> CpuMask {
    CpuMask::first_n(MAX_CPUS)
}

impl Thread {
    /// The CPUs that it may run on, online or not.
    ///
    /// Context: task, softirq, hardirq; takes the run-queue lock.
    pub fn affinity(&'static self) -> CpuMask {
        let _pin = PreemptGuard::new(ATOMIC);
        let _irqs = IrqGuard::new(ATOMIC);
        lock_of(self).1.allowed(self) & cpu::present()
    }
}

/// Says on which CPUs `thread` may run. When this returns it runs on no other, and will not, except that a thread that
/// holds a [`MigrateGuard`] stays where it is until it drops that; this does not wait for it.
///
/// If all CPUs of the set go offline later, the thread may run anywhere.
///
/// Context: task, sleeps. `thread` may be the caller.
///
/// # Errors
///
/// [`AffinityError`]; nothing has changed.
pub fn set_affinity(thread: &'static Thread, mask: &CpuMask, cx: &mut MaySleep) -> Result<(), AffinityError> {
    cx.assert_may_sleep();
    if mask.is_empty() {
        return Err(AffinityError::Empty);
    }
    if (*mask & ACTIVE.load()).is_empty() {
        return Err(AffinityError::NoneOnline);
    }
    if !assign(thread, None, *mask) {
        return Err(AffinityError::PerCpu);
    }
    settle(thread, cx);
    Ok(())
}

/// Writes down the set of a thread that belongs to CPU `home`, or to none; false if it does not.
pub(crate) fn assign(thread: &'static Thread, home: Option<CpuId>, mask: CpuMask) -> bool {
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (_, mut inner) = lock_of(thread);
    // Under the lock, because the thread may have ended, and be another that belongs elsewhere, by now.
    let is_home = thread.home() == home;
    if is_home {
        inner.set_allowed(thread, mask);
    }
    is_home
}

/// Writes down where a thread that nobody runs belongs and may run.
pub(crate) fn settle_in(thread: &'static Thread, home: Option<CpuId>, mask: CpuMask) {
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (_, mut inner) = lock_of(thread);
    thread.set_home(home);
    inner.set_allowed(thread, mask);
}

/// Waits until `thread` is nowhere that it may not be.
pub(crate) fn settle(thread: &'static Thread, cx: &mut MaySleep) {
    while let Some(on) = misplaced_on(thread) {
        // False: that CPU has just gone, and all its threads with it.
        let _gone = stop::stop_one_cpu(cx, on, push_misplaced);
    }
}

/// The CPU that the thread has to leave, if it does. One that sleeps or is on its way to a queue has to leave none: whoever
/// queues it finds it a CPU.
fn misplaced_on(thread: &'static Thread) -> Option<CpuId> {
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (_, mut inner) = lock_of(thread);
    let nowhere = matches!(inner.place(thread), Place::Off | Place::Moving) && !thread.on_cpu.load(Ordering::Acquire);
    (!nowhere && !inner.suits(thread)).then(|| thread.cpu())
}

/// Puts every queued thread that may not run on this CPU elsewhere.
///
/// Context: this CPU's stopper, so that no other thread is current and none on its way off.
pub(crate) fn push_misplaced() {
    let rq = RunQueue::this();
    loop {
        let _irqs = IrqGuard::new(ATOMIC);
        let mut inner = rq.lock();
        let Some(thread) = inner.first_misplaced() else {
            return;
        };
        inner.dequeue(rq, thread);
        place_elsewhere(inner, thread);
    }
}

/// Queues an `Off` or `Moving`, runnable thread, which may not run where it belongs, on a CPU where it may. Breaks its set
/// if none of that takes threads. `inner` is the lock of the run queue it belongs to.
#[cold]
#[inline(never)]
pub(crate) fn place_elsewhere(mut inner: SpinGuard<'static, Inner>, thread: &'static Thread) {
    // Again, if that CPU is closed or the set changed between the two locks.
    while !inner.suits(thread) {
        let from = thread.cpu();
        let (target, broken) = choose(&mut inner, thread);
        inner.send_to(thread, target);
        drop(inner);
        // Threads that belong to their CPU get it back with it.
        if broken && thread.home().is_none() {
            log::warn!("thread {}/{} may run anywhere now: CPU {from} is offline", thread.name(), thread.tid());
        }
        inner = RunQueue::of(target).lock();
    }
    let cpu = thread.cpu();
    queue_on(RunQueue::of(cpu), inner, thread, cpu);
}

/// A CPU of the thread's set that takes threads: one that idles, else the one with the fewest. True if there was none and
/// the set had to be broken.
fn choose(inner: &mut Inner, thread: &Thread) -> (CpuId, bool) {
    let active = ACTIVE.load();
    let mut choice = inner.allowed(thread) & active;
    let broken = choice.is_empty();
    if broken {
        inner.set_allowed(thread, anywhere());
        choice = active;
    }
    let idle = choice & IDLE_CPUS.load();
    let emptiest = || choice.iter().min_by_key(|cpu| RunQueue::of(*cpu).queued());
    (idle.first().or_else(emptiest).expect("the boot CPU takes threads"), broken)
}

/// The running thread stays on its CPU while it lives: it may sleep and be preempted, and always comes back to the same
/// CPU. That CPU does not go offline meanwhile.
///
/// Nests. It does not borrow the thread's token, so the thread may sleep under it; it must not wait for a CPU to go or
/// come, nor keep the CPUs ([`keep_cpus`](crate::keep_cpus)), under it.
#[derive(Debug)]
#[must_use = "the thread may move again as soon as the guard is dropped"]
pub struct MigrateGuard {
    _thread: PhantomData<*mut ()>,
}

impl MigrateGuard {
    /// Keeps the running thread on the CPU that it runs on.
    ///
    /// Context: task.
    pub fn new(_cx: &impl Cx) -> MigrateGuard {
        let stays = &current().stays;
        stays.store(stays.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // What follows relies on the CPU. Who would move the thread reads the count under the run-queue lock, which this
        // CPU takes on the way to another thread.
        compiler_fence(Ordering::SeqCst);
        MigrateGuard { _thread: PhantomData }
    }
}

impl Drop for MigrateGuard {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        let thread = current();
        let left = thread.stays.load(Ordering::Relaxed) - 1;
        thread.stays.store(left, Ordering::Relaxed);
        // See SCHED-24.
        compiler_fence(Ordering::SeqCst);
        if left == 0 && !(ACTIVE.test(thread.cpu()) && thread.is_unbound()) {
            leave_if_misplaced(thread);
        }
    }
}

/// The running thread stays no longer and may have to leave: at once if it can be preempted, else as soon as it can.
#[cold]
fn leave_if_misplaced(thread: &'static Thread) {
    let _pin = PreemptGuard::new(ATOMIC);
    if misplaced_on(thread).is_some() {
        stop::ask_for_push(cpu::current());
        LEFT.wake_all();
    }
}

/// `cpu` takes no more threads, and those that are there leave it, except who stays. Returns when nobody stays.
pub(crate) fn vacate(cpu: CpuId, cx: &mut MaySleep) {
    close(cpu);
    let pushed = stop::stop_one_cpu(cx, cpu, push_misplaced);
    debug_assert!(pushed, "CPU {cpu} went although its controller is here");
    LEFT.wait_until(cx, || !anybody_stays(cpu));
}

fn close(cpu: CpuId) {
    let _irqs = IrqGuard::new(ATOMIC);
    let mut inner = RunQueue::of(cpu).lock();
    inner.set_closed(true);
    ACTIVE.clear(cpu);
}

/// Does a thread hold a [`MigrateGuard`] on `cpu`? The CPU's own threads count as all others do, but those that stay for
/// ever.
pub(crate) fn anybody_stays(cpu: CpuId) -> bool {
    let mut found = false;
    thread::for_each(|thread| {
        found |= (1..STAYS_FOR_EVER).contains(&thread.stays.load(Ordering::Relaxed)) && thread.cpu() == cpu;
    });
    found
}

/// Gives the threads that belong to `cpu`, which takes threads again, their CPU back.
pub(crate) fn bring_home(cpu: CpuId, cx: &mut MaySleep) {
    thread::for_each(|thread| {
        if thread.home() == Some(cpu) && assign(thread, Some(cpu), CpuMask::of(cpu)) {
            settle(thread, cx);
        }
    });
}
