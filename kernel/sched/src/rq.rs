//! Run queues: one per CPU, a list for each priority level.
//!
//! Key types: [`RunQueue`], [`RqEntry`] (the part of a thread that belongs to its run queue).
//!
//! Invariants:
//!
//! * `SCHED-6`: a thread is `Queued` exactly while it is linked into `lists[prio]` of the run queue that
//!   `Thread::cpu` names; `Current` exactly while that run queue's `current` is it; `Moving` exactly while somebody
//!   who holds no run-queue lock is about to queue it; else `Off`. Only who has made it `Moving` queues it.
//! * `SCHED-7`: bit `n` of `levels` is set exactly when `lists[n]` is not empty.
//! * `SCHED-8`: the idle thread is never `Queued`; it is what is left when no list holds anything.
//!
//! Contexts: everything here is called with the run-queue lock held, from task, softirq or hardirq context, never
//! from NMI. Picking, queueing and unlinking take constant time.
//!
//! Linux: the real-time class, `kernel/sched/rt.c`, without its bandwidth limits: strict levels, turns within one.

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

use arch::{AtomicCpuMask, CpuId, CpuMask, cpu, ipi, irq, vector};
use sync::{ATOMIC, IrqGuard, LockClass, PreemptGuard, SpinGuard, SpinLock, bug, context};

use crate::config;
use crate::thread::{Prio, Thread, cpu_number};

/// Innermost lock of the storey: nothing is taken inside it. Outside it may be: wait-queue, mutex, work pool and
/// timer base locks. It protects everything in [`Inner`] and the [`RqEntry`] of each thread that belongs to the
/// run queue. Taken with interrupts off, never held across a context switch.
static RQ_CLASS: LockClass = LockClass::new("sched.rq");

/// Where a thread is, seen from its run queue.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Neither queued nor running: asleep, dead, or not started.
    Off,
    /// On its way from one run queue to another, the one that `Thread::cpu` names already. Its state may be `Sleeping`: a
    /// thread that was preempted on its way to sleep is moved like any other. Who wakes it leaves the queueing to who
    /// moves it.
    Moving,
    /// Linked into a list.
    Queued,
    /// The run queue's current thread.
    Current,
}

/// The part of a thread that its run queue's lock guards.
pub(crate) struct RqEntry {
    /// Next in the list of the level, null at the end.
    next: *const Thread,
    /// Previous in the list of the level, null at the front.
    prev: *const Thread,
    /// See [`Place`].
    pub(crate) place: Place,
    /// The level that counts now: `base`, or the thread's boost where that is higher.
    pub(crate) prio: Prio,
    /// The level that the thread has of its own.
    base: Prio,
    /// Ticks left until an equal gets its turn; 0 asks for a new slice and the back of the queue.
    pub(crate) slice: u32,
    /// Where the thread may run.
    allowed: CpuMask,
}

impl RqEntry {
    pub(crate) const fn new() -> RqEntry {
        RqEntry {
            next: ptr::null(),
            prev: ptr::null(),
            place: Place::Off,
            prio: Prio::NORMAL,
            base: Prio::NORMAL,
            slice: 0,
            allowed: CpuMask::EMPTY,
        }
    }
}

/// Threads of one level, first come first.
#[derive(Copy, Clone)]
struct List {
    first: *const Thread,
    last: *const Thread,
}

/// What the run-queue lock protects.
pub(crate) struct Inner {
    /// Bit `n`: `lists[n]` has threads (`SCHED-7`).
    levels: u32,
    lists: [List; Prio::LEVELS],
    /// The thread this CPU runs; null until the CPU has entered the scheduler.
    current: *const Thread,
    /// The CPU takes part: a queued thread deserves an IPI.
    online: bool,
    /// The CPU is on its way offline, or is: only threads that stay are queued here.
    closed: bool,
    /// Where this run queue belongs.
    cpu: u16,
}

/// A CPU's run queue.
pub(crate) struct RunQueue {
    inner: SpinLock<Inner>,
    /// Threads in all lists; written under the lock, read without it by CPUs that look for work or for a place to put some.
    queued: AtomicUsize,
}

arch::per_cpu! {
    /// This CPU's run queue; other CPUs reach it through `ptr_on`.
    static RUN_QUEUE: RunQueue = RunQueue::new();
}

/// CPUs that run their idle thread with nothing queued. A hint: set by the idle loop, cleared when it leaves or by who
/// claims the CPU for a thread, and who then makes it look (by queueing there, or a reschedule), so that the loop sets it again.
pub(crate) static IDLE_CPUS: AtomicCpuMask = AtomicCpuMask::new();

impl RunQueue {
    const fn new() -> RunQueue {
        RunQueue {
            inner: SpinLock::new(
                Inner {
                    levels: 0,
                    lists: [List { first: ptr::null(), last: ptr::null() }; Prio::LEVELS],
                    current: ptr::null(),
                    online: false,
                    closed: false,
                    cpu: 0,
                },
                &RQ_CLASS,
            ),
            queued: AtomicUsize::new(0),
        }
    }

    /// The run queue of a CPU.
    pub(crate) fn of(cpu: CpuId) -> &'static RunQueue {
        // SAFETY: per-CPU areas of present CPUs live for ever; the shared parts of a RunQueue are Sync by its lock
        // and its atomics.
        unsafe { &*RUN_QUEUE.ptr_on(cpu) }
    }

    /// This CPU's run queue. The caller is pinned.
    pub(crate) fn this() -> &'static RunQueue {
        // SAFETY: as in `of`.
        unsafe { &*RUN_QUEUE.this_ptr() }
    }

    /// Locks it. The caller has interrupts off.
    #[inline]
    pub(crate) fn lock(&self) -> SpinGuard<'_, Inner> {
        debug_assert!(!irq::enabled(), "run-queue lock with interrupts on");
        self.inner.lock(ATOMIC)
    }

    /// Threads that wait here for the CPU; a hint.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Counts a thread that has been linked in (1) or unlinked (-1); called with the lock held.
    fn count(&self, change: isize) {
        self.queued.store(self.queued().wrapping_add_signed(change), Ordering::Relaxed);
    }
}

/// Locks the run queue that `thread` belongs to. The caller has interrupts off.
pub(crate) fn lock_of(thread: &Thread) -> (&'static RunQueue, SpinGuard<'static, Inner>) {
    loop {
        let cpu = thread.cpu();
        let rq = RunQueue::of(cpu);
        let inner = rq.lock();
        // `cpu` changes only under this lock (SCHED-4), so once they agree they stay so.
        if thread.cpu() == cpu {
            // Acquire: pairs with the Release in `send_to`; what was done to the thread under its last lock comes before.
            fence(Ordering::Acquire);
            return (rq, inner);
        }
    }
}

impl Inner {
    /// The thread's entry, whose owner is this lock.
    #[allow(clippy::mut_from_ref, reason = "the lock, of which `self` is the proof, is what makes it unique")]
    fn entry<'a>(&'a mut self, thread: &'a Thread) -> &'a mut RqEntry {
        debug_assert_eq!(thread.cpu.load(Ordering::Relaxed), self.cpu, "SCHED-4: another CPU's thread");
        // SAFETY: SCHED-4: this lock guards the entry, and `&mut self` proves that we hold it and look at no other.
        unsafe { &mut *thread.rq.get() }
    }

    /// Where `thread` is.
    pub(crate) fn place(&mut self, thread: &Thread) -> Place {
        self.entry(thread).place
    }

    /// The thread's level.
    pub(crate) fn prio(&mut self, thread: &Thread) -> Prio {
        self.entry(thread).prio
    }

    /// May `thread`, which belongs here, be queued here (`SCHED-23`)?
    #[inline]
    pub(crate) fn suits(&mut self, thread: &Thread) -> bool {
        (!self.closed && thread.is_free_on(self.cpu)) || self.suits_all_the_same(thread)
    }

    #[inline(never)]
    fn suits_all_the_same(&mut self, thread: &Thread) -> bool {
        thread.stays() || (!self.closed && self.allowed(thread).contains(CpuId::new(usize::from(self.cpu))))
    }

    /// Where `thread`, which belongs here, may run.
    pub(crate) fn allowed(&mut self, thread: &Thread) -> CpuMask {
        self.entry(thread).allowed
    }

    /// Says where `thread`, which belongs here, may run.
    pub(crate) fn set_allowed(&mut self, thread: &Thread, mask: CpuMask) {
        self.entry(thread).allowed = mask;
        thread.note_affinity(&mask);
    }

    /// The CPU takes no threads any more, or does again.
    pub(crate) fn set_closed(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// A thread that is queued here and may not be.
    pub(crate) fn first_misplaced(&mut self) -> Option<&'static Thread> {
        self.find(|inner, thread| !inner.suits(thread))
    }

    /// Sends a thread that is `Off` and to run, and whose stack is free, to another CPU's queue: the last that is done to
    /// it under this lock. The caller queues it there, or sends it on, under that queue's.
    pub(crate) fn send_to(&mut self, thread: &Thread, to: CpuId) {
        self.entry(thread).place = Place::Moving;
        // Release: pairs with the Acquire in `lock_of`.
        thread.cpu.store(cpu_number(to), Ordering::Release);
    }

    /// Links an `Off` or `Moving` thread in, at the back of its level or at the front.
    pub(crate) fn enqueue(&mut self, rq: &RunQueue, thread: &'static Thread, at_front: bool) {
        let entry = self.entry(thread);
        assert!(entry.place != Place::Queued, "SCHED-6: {thread:?} is queued twice");
        entry.place = Place::Queued;
        let level = entry.prio.level();
        let List { first, last } = self.lists[level];
        let this = ptr::from_ref(thread);
        let (prev, next) = if at_front { (ptr::null(), first) } else { (last, ptr::null()) };
        let entry = self.entry(thread);
        entry.prev = prev;
        entry.next = next;
        self.set_next(prev, level, this);
        self.set_prev(next, level, this);
        self.levels |= 1 << level;
        rq.count(1);
    }

    /// Unlinks a `Queued` thread and leaves it `Off`.
    pub(crate) fn dequeue(&mut self, rq: &RunQueue, thread: &Thread) {
        let entry = self.entry(thread);
        assert!(entry.place == Place::Queued, "SCHED-6: {thread:?} is not queued");
        entry.place = Place::Off;
        let level = entry.prio.level();
        let (prev, next) = (entry.prev, entry.next);
        self.set_next(prev, level, next);
        self.set_prev(next, level, prev);
        if self.lists[level].first.is_null() {
            self.levels &= !(1 << level);
        }
        rq.count(-1);
    }

    /// The current thread goes to the back of its level's list, which is not empty, and the first of that list comes off:
    /// [`Inner::put_current`], [`Inner::enqueue`] and [`Inner::pop_best`] in one, where that leaves the level's bit and the
    /// length as they are.
    pub(crate) fn rotate(&mut self, current: &'static Thread) -> &'static Thread {
        let level = self.prio(current).level();
        let List { first, last } = self.lists[level];
        debug_assert!(!first.is_null(), "SCHED-7: level {level} has no thread to change with");
        // SAFETY: the list has threads, says the caller, and those are type-stable (SCHED-3).
        let (first, last): (&'static Thread, &'static Thread) = unsafe { (&*first, &*last) };
        let entry = self.entry(current);
        entry.place = Place::Queued;
        entry.prev = last;
        entry.next = ptr::null();
        // In this order: there is a second one when the first comes off, whether it was the last or not.
        self.entry(last).next = current;
        let entry = self.entry(first);
        entry.place = Place::Off;
        let second = entry.next;
        // SAFETY: on the list, so type-stable (SCHED-3).
        self.entry(unsafe { &*second }).prev = ptr::null();
        self.lists[level] = List { first: second, last: current };
        first
    }

    /// What follows `at` (the head of the list when null) becomes `next`.
    fn set_next(&mut self, at: *const Thread, level: usize, next: *const Thread) {
        // SAFETY: null, or a thread on this queue (SCHED-6), whose entry this lock guards.
        match unsafe { at.as_ref() } {
            None => self.lists[level].first = next,
            Some(at) => self.entry(at).next = next,
        }
    }

    /// What precedes `at` (the tail of the list when null) becomes `prev`.
    fn set_prev(&mut self, at: *const Thread, level: usize, prev: *const Thread) {
        // SAFETY: as in `set_next`.
        match unsafe { at.as_ref() } {
            None => self.lists[level].last = prev,
            Some(at) => self.entry(at).prev = prev,
        }
    }

    /// The level of the most urgent thread that waits.
    pub(crate) fn best_level(&self) -> Option<usize> {
        self.levels.checked_ilog2().map(|level| level as usize)
    }

    /// Takes the most urgent thread off its list.
    pub(crate) fn pop_best(&mut self, rq: &RunQueue) -> Option<&'static Thread> {
        let level = self.best_level()?;
        // SAFETY: SCHED-7: the list has a first thread, which is type-stable (SCHED-3).
        let thread: &'static Thread = unsafe { &*self.lists[level].first };
        self.dequeue(rq, thread);
        Some(thread)
    }

    /// The current thread stops being it: its place becomes `Off`.
    pub(crate) fn put_current(&mut self, thread: &Thread) {
        debug_assert!(ptr::eq(self.current, thread), "SCHED-6: {thread:?} is not current");
        self.entry(thread).place = Place::Off;
    }

    /// `thread` becomes current, with a fresh slice if it has none left.
    pub(crate) fn set_current(&mut self, thread: &'static Thread) {
        let entry = self.entry(thread);
        entry.place = Place::Current;
        if entry.slice == 0 {
            entry.slice = config::slice_ticks();
        }
        self.current = ptr::from_ref(thread);
        // Relaxed: this lock publishes it. Whoever moves threads looks at it under the lock.
        thread.on_cpu.store(true, Ordering::Relaxed);
    }

    /// Has the thread used up its slice? Then the next one is due.
    pub(crate) fn slice_is_over(&mut self, thread: &Thread) -> bool {
        self.entry(thread).slice == 0
    }

    /// Gives up the rest of the slice.
    pub(crate) fn end_slice(&mut self, thread: &Thread) {
        self.entry(thread).slice = 0;
    }

    /// A tick while `thread` runs; true if somebody else's turn has come.
    pub(crate) fn charge_tick(&mut self, thread: &Thread) -> bool {
        let best = self.best_level();
        let entry = self.entry(thread);
        entry.slice = entry.slice.saturating_sub(1);
        if entry.slice > 0 {
            return false;
        }
        let due = best.is_some_and(|level| level >= entry.prio.level());
        if !due {
            entry.slice = config::slice_ticks();
        }
        due
    }

    /// Is `thread`, just queued, more urgent than what runs?
    pub(crate) fn should_preempt(&mut self, thread: &Thread) -> bool {
        let prio = self.prio(thread);
        // SAFETY: null, or a type-stable thread (SCHED-3).
        match unsafe { self.current.as_ref() } {
            None => true,
            Some(current) if current.is_idle() => true,
            Some(current) => prio > self.prio(current),
        }
    }

    /// Does the CPU run its idle thread, or nothing yet?
    fn idles(&self) -> bool {
        // SAFETY: null, or a type-stable thread (SCHED-3).
        unsafe { self.current.as_ref() }.is_none_or(Thread::is_idle)
    }

    /// Brings the level of a thread of this run queue, wherever it is, up to date with its own level and its boost; true if
    /// the CPU should think again.
    pub(crate) fn update_prio(&mut self, rq: &RunQueue, thread: &'static Thread) -> bool {
        let entry = self.entry(thread);
        // Relaxed: see `follow_boost`.
        let boost = Prio::from_level(usize::from(thread.rcu.boost.load(Ordering::Relaxed)));
        let (old, prio) = (entry.prio, entry.base.max(boost));
        if prio == old {
            return false;
        }
        match self.place(thread) {
            Place::Off | Place::Moving => {
                self.entry(thread).prio = prio;
                false
            }
            Place::Current => {
                self.entry(thread).prio = prio;
                prio < old && self.best_level().is_some_and(|best| best > prio.level())
            }
            Place::Queued => {
                self.dequeue(rq, thread);
                self.entry(thread).prio = prio;
                self.enqueue(rq, thread, false);
                self.should_preempt(thread)
            }
        }
    }

    /// A queued thread that may leave for a CPU of `to`: it does not stay, may run there, and its stack is free (`SCHED-5`).
    /// The most urgent level first. Takes time in the number of queued threads; asked only for idle CPUs.
    pub(crate) fn find_movable(&mut self, to: CpuMask) -> Option<&'static Thread> {
        self.find(|inner, thread| {
            // Acquire: pairs with the Release in `finish_switch`; its saved context is complete.
            !thread.stays() && !(inner.allowed(thread) & to).is_empty() && !thread.on_cpu.load(Ordering::Acquire)
        })
    }

    /// The first queued thread, of the most urgent level first, that fits.
    fn find(&mut self, fits: impl Fn(&mut Inner, &Thread) -> bool) -> Option<&'static Thread> {
        for level in (0..Prio::LEVELS).rev() {
            let mut at = self.lists[level].first;
            // SAFETY: null, or a thread on this queue (SCHED-6).
            while let Some(thread) = unsafe { at.as_ref::<'static>() } {
                if fits(self, thread) {
                    return Some(thread);
                }
                at = self.entry(thread).next;
            }
        }
        None
    }

    /// The CPU enters the scheduler with `thread` as its current one.
    pub(crate) fn bring_online(&mut self, cpu: CpuId, thread: &'static Thread) {
        self.cpu = cpu_number(cpu);
        self.online = true;
        self.closed = false;
        self.set_current(thread);
    }

    /// The CPU leaves the scheduler: nobody tells it of threads any more.
    pub(crate) fn take_offline(&mut self) {
        self.online = false;
    }

    /// Tells a run queue of a CPU that is not up yet where it belongs.
    pub(crate) fn assign_cpu(&mut self, cpu: CpuId) {
        self.cpu = cpu_number(cpu);
    }
}

/// Makes a CPU look at its run queue soon. The caller holds that run queue's lock, with interrupts off.
pub(crate) fn kick(inner: &Inner, cpu: CpuId) {
    if !inner.online {
        return;
    }
    IDLE_CPUS.clear(cpu);
    if cpu == cpu::current() {
        if !bug!(
            "sched.resched_lost",
            "a CPU that queues a more urgent thread for itself goes on with what it does",
            "sched_prio.a_wake_up_runs* sched_prio.what_a_guard*"
        ) {
            context::set_need_resched();
        }
        return;
    }
    if bug!("sched.busy_untold", "a busy CPU is not told of a more urgent thread", "sched_prio.an_urgent_thread*")
        && !inner.idles()
    {
        return;
    }
    // Its handler sets `need_resched` there; equal ones merge on the way.
    ipi::send(cpu, vector::RESCHEDULE);
}

/// Has `cpu` pass through the scheduler soon, whatever it runs, its idle thread included. A CPU that is offline has done so.
///
/// Context: task, softirq, hardirq; takes the run-queue lock. Not NMI. Does not wait for it.
pub fn resched_cpu(cpu: CpuId) {
    // In this order: the reschedule that `kick` may ask for is looked at when interrupts are on again.
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    kick(&RunQueue::of(cpu).lock(), cpu);
}

/// Sets a thread's own priority. While RCU boosts the thread it runs at the higher one of the two.
///
/// Context: task, softirq, hardirq; takes the run-queue lock. Not NMI. Does not sleep, does not allocate.
pub fn set_prio(thread: &'static Thread, prio: Prio) {
    change_prio(thread, Some(prio));
}

/// Has the scheduler act on a change of the thread's boost ([`ThreadRcu::boost`](crate::thread::ThreadRcu::boost)).
///
/// It takes no level, it looks at the boost under the run-queue lock. So it does not matter in which order those who
/// have written the boost come here: the last one sees the last value, and a call too many changes nothing.
///
/// Context: as [`set_prio`].
pub fn follow_boost(thread: &'static Thread) {
    change_prio(thread, None);
}

fn change_prio(thread: &'static Thread, base: Option<Prio>) {
    // In this order: the reschedule that `kick` may ask for is looked at when interrupts are on again.
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (rq, mut inner) = lock_of(thread);
    if let Some(prio) = base {
        inner.entry(thread).base = prio;
    }
    if inner.update_prio(rq, thread) {
        kick(&inner, thread.cpu());
    }
}

/// A thread's present priority; another CPU may change it at once.
///
/// Context: task, softirq, hardirq; takes the run-queue lock.
pub fn prio_of(thread: &'static Thread) -> Prio {
    let _pin = PreemptGuard::new(ATOMIC);
    let _irqs = IrqGuard::new(ATOMIC);
    let (_, mut inner) = lock_of(thread);
    inner.prio(thread)
}
