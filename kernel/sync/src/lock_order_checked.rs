//! The checks of builds with debug assertions; see the parent module.

use core::{
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU16, Ordering},
};

use arch::cpu::{self, CpuId};

use super::{
    HeldLock, LockClass, STUCK_AFTER_NS, Usage, checks_off,
    graph::GRAPH,
    held::{HeldList, MAX_HELD},
    switch_off,
};
use crate::context;

pub(super) type Place = &'static Location<'static>;

/// A lock's class and, for reports, its last holder.
#[derive(Debug)]
pub(crate) struct Tracked {
    class: &'static LockClass,
    /// Where it was last taken; written by the holder, read by whoever reports.
    holder_place: AtomicPtr<Location<'static>>,
    /// The CPU that last took it; as above.
    holder_cpu: AtomicU16,
}

arch::per_cpu! {
    /// The spin locks that this CPU holds.
    static HELD: HeldList = HeldList::new();
    /// The sleeping locks of the thread that this CPU runs; null before there are threads. Written by the context
    /// switch.
    static THREAD: *const ThreadLocks = ptr::null();
}

/// The sleeping locks that a thread holds, across sleeps and CPUs. Part of each thread.
///
/// Changed by the thread itself, in task context; read by whoever reports.
#[derive(Debug)]
pub struct ThreadLocks(HeldList);

/// What a sleeping lock remembers, and its checks: those of a spin lock, with the thread as the holder.
#[derive(Debug)]
pub struct SleepTracked(Tracked);

impl Tracked {
    pub(crate) const fn new(class: &'static LockClass) -> Self {
        Self { class, holder_place: AtomicPtr::new(ptr::null_mut()), holder_cpu: AtomicU16::new(0) }
    }

    fn address(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// All checks, then the push (`LO-2`). The caller is pinned.
    #[track_caller]
    pub(crate) fn before_lock(&self) {
        if checks_off() {
            return;
        }
        let place = Location::caller();
        if context::in_nmi() {
            fail(format_args!(
                "spinning in NMI for lock \"{}\" at {place}; last taken at {}",
                self.class.name,
                Shown(self.holder_place.load(Ordering::Relaxed))
            ));
        }
        self.check_usage(place);
        this_cpu().for_each(|held| self.check_against(held, place, "CPU"));
        self.push(this_cpu(), place);
    }

    /// A successful try cannot deadlock, but what is taken inside it can.
    #[track_caller]
    pub(crate) fn after_try_lock(&self) {
        if !checks_off() {
            self.push(this_cpu(), Location::caller());
        }
    }

    pub(crate) fn before_unlock(&self) {
        if !checks_off() {
            self.pop(this_cpu(), format_args!("CPU {}", cpu::current()));
        }
    }

    fn pop(&self, list: &HeldList, holder: core::fmt::Arguments<'_>) {
        if !list.pop(self.address()) {
            fail(format_args!(
                "lock \"{}\" is released on {holder}, which does not hold it; last taken at {} on CPU {}",
                self.class.name,
                Shown(self.holder_place.load(Ordering::Relaxed)),
                self.holder_cpu.load(Ordering::Relaxed)
            ));
        }
    }

    pub(crate) fn stuck_watch(&self) -> StuckWatch<'_> {
        StuckWatch { lock: self, spins: 0, since_ns: 0 }
    }

    fn push(&self, list: &HeldList, place: Place) {
        if !list.push(HeldLock { class: self.class, address: self.address(), place }) {
            fail(format_args!("more than {MAX_HELD} locks held at once, at {place}"));
        }
        self.holder_place.store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        self.holder_cpu.store(cpu::current().index() as u16, Ordering::Relaxed);
    }

    fn check_against(&self, held: HeldLock, place: Place, holder: &str) {
        let HeldLock { address, class: outer, place: outer_place } = held;
        let inner = self.class;
        if address == self.address() {
            fail(format_args!(
                "self-deadlock on lock \"{}\": taken at {place}, held by this {holder} since {outer_place}",
                inner.name
            ));
        }
        if ptr::eq(outer, inner) {
            if !(inner.by_address && address < self.address()) {
                fail(format_args!(
                    "lock order: two locks of class \"{}\" nest: inner at {place}, outer at {outer_place}",
                    inner.name
                ));
            }
            return;
        }
        if outer.innermost {
            fail(format_args!(
                "lock order: \"{}\" taken at {place} inside \"{}\", which is innermost and held since {outer_place}",
                inner.name, outer.name
            ));
        }
        if outer.rank != 0 && inner.rank != 0 && inner.rank <= outer.rank {
            fail(format_args!(
                "lock order: \"{}\" (rank {}) taken at {place} while \"{}\" (rank {}) is held since {outer_place}",
                inner.name, inner.rank, outer.name, outer.rank
            ));
        }
        if let Err(circle) = GRAPH.draw(outer, inner, place) {
            fail(format_args!(
                "lock order: \"{}\" taken at {place} while \"{}\" is held since {outer_place}; \
                 the opposite order was seen: \"{}\" taken at {} inside \"{}\"",
                inner.name,
                outer.name,
                circle.inner,
                Shown(circle.place),
                inner.name
            ));
        }
    }

    /// The rows "hard interrupt against interrupts on", and the same for soft interrupts.
    fn check_usage(&self, place: Place) {
        let irqs_on = arch::irq::enabled();
        if context::in_hardirq() {
            self.check_use(Usage::InHardirq, Usage::IrqsOn, place);
        } else if irqs_on {
            self.check_use(Usage::IrqsOn, Usage::InHardirq, place);
        }
        if context::in_softirq() {
            self.check_use(Usage::InSoftirq, Usage::SoftirqsOn, place);
        } else if irqs_on && context::softirq_count() == 0 && !context::in_hardirq() {
            self.check_use(Usage::SoftirqsOn, Usage::InSoftirq, place);
        }
    }

    fn check_use(&self, this: Usage, excluded: Usage, place: Place) {
        let used = &self.class.used;
        if used[this as usize].load(Ordering::Relaxed).is_null() {
            // SeqCst: this store before the load below, against the same pair for the opposite
            // use on another CPU (`LO-3`); at least one of the two then sees the other.
            used[this as usize].store(ptr::from_ref(place).cast_mut(), Ordering::SeqCst);
        }
        let other = used[excluded as usize].load(Ordering::SeqCst);
        if !other.is_null() {
            fail(format_args!(
                "lock \"{}\" is used {} at {place} and {} at {}: an interrupt could deadlock",
                self.class.name,
                this.in_words(),
                excluded.in_words(),
                Shown(other)
            ));
        }
    }
}

impl Usage {
    fn in_words(self) -> &'static str {
        match self {
            Self::InHardirq => "in a hard interrupt",
            Self::IrqsOn => "with interrupts on",
            Self::InSoftirq => "in a soft interrupt",
            Self::SoftirqsOn => "with soft interrupts on",
        }
    }
}

impl SleepTracked {
    /// Of a lock of this class.
    #[must_use]
    pub const fn new(class: &'static LockClass) -> Self {
        Self(Tracked::new(class))
    }

    /// All checks, before the thread waits for the lock.
    ///
    /// Context: task.
    #[track_caller]
    pub fn before_lock(&self) {
        if !checks_off()
            && let Some(thread) = this_thread()
        {
            let place = Location::caller();
            thread.0.for_each(|held| self.0.check_against(held, place, "thread"));
        }
    }

    /// The running thread has the lock now.
    ///
    /// Context: task.
    #[track_caller]
    pub fn locked(&self) {
        if !checks_off()
            && let Some(thread) = this_thread()
        {
            self.0.push(&thread.0, Location::caller());
        }
    }

    /// The running thread is about to release the lock.
    ///
    /// Context: task.
    pub fn before_unlock(&self) {
        if !checks_off()
            && let Some(thread) = this_thread()
        {
            self.0.pop(&thread.0, format_args!("a thread of CPU {}", cpu::current()));
        }
    }
}

impl ThreadLocks {
    /// No locks.
    #[must_use]
    pub const fn new() -> Self {
        Self(HeldList::new())
    }

    /// Calls `f` with each lock that the thread holds, oldest first.
    ///
    /// Context: any. Exact while the thread does not run or is the caller; else what was so a moment ago.
    pub fn for_each(&self, f: impl FnMut(HeldLock)) {
        self.0.for_each(f);
    }
}

impl Default for ThreadLocks {
    fn default() -> Self {
        Self::new()
    }
}

/// This CPU runs the thread with these locks from now on.
///
/// Context: interrupts off.
pub fn set_thread(locks: &'static ThreadLocks) {
    THREAD.set(ptr::from_ref(locks));
}

/// Calls `f` with each spin lock that `cpu` holds, oldest first.
///
/// Context: any. Exact for this CPU and for one that stands still; else what was so a moment ago.
pub fn for_each_held(cpu: CpuId, f: impl FnMut(HeldLock)) {
    // SAFETY: areas of present CPUs live for ever, and the list is made of atomics.
    unsafe { &*HELD.ptr_on(cpu) }.for_each(f);
}

/// Calls `f` with each "taken while holding" that was ever seen, as (outer class, inner class): what a stated order is held
/// against.
///
/// Context: any.
pub fn for_each_edge(f: impl FnMut(&'static str, &'static str)) {
    GRAPH.for_each(f);
}

/// This CPU's locks; the caller is pinned.
fn this_cpu() -> &'static HeldList {
    // SAFETY: as in `for_each_held`.
    unsafe { &*HELD.this_ptr() }
}

/// The locks of the thread that this CPU runs. They are the caller's own, also after it has moved to another CPU.
fn this_thread() -> Option<&'static ThreadLocks> {
    // SAFETY: null, or of a thread, which lives for ever.
    unsafe { THREAD.get().as_ref() }
}

/// Reports a lock that is spun for too long.
pub(crate) struct StuckWatch<'l> {
    lock: &'l Tracked,
    spins: u32,
    since_ns: u64,
}

impl StuckWatch<'_> {
    pub(crate) fn spun(&mut self) {
        self.spins = self.spins.wrapping_add(1);
        if !self.spins.is_multiple_of(4096) || checks_off() {
            return;
        }
        let now_ns = arch::clock::now_ns();
        if self.since_ns == 0 {
            self.since_ns = now_ns;
        } else if now_ns.saturating_sub(self.since_ns) > STUCK_AFTER_NS {
            fail(format_args!(
                "stuck: CPU {} spins for lock \"{}\", last taken at {} on CPU {}",
                cpu::current(),
                self.lock.class.name,
                Shown(self.lock.holder_place.load(Ordering::Relaxed)),
                self.lock.holder_cpu.load(Ordering::Relaxed)
            ));
        }
    }
}

/// A place that may be unknown.
struct Shown(*mut Location<'static>);

impl core::fmt::Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // SAFETY: a non-null value was a `&'static Location`.
        match unsafe { self.0.as_ref() } {
            Some(place) => place.fmt(f),
            None => f.write_str("(never)"),
        }
    }
}

#[cold]
#[inline(never)]
pub(super) fn fail(report: core::fmt::Arguments<'_>) -> ! {
    switch_off();
    panic!("{report}");
}
