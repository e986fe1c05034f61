//! Threads: what the scheduler knows about one.
//!
//! Key types: [`Thread`], [`ThreadRcu`] (plain data that RCU keeps in each thread), [`Prio`], [`current`].
//!
//! Invariants:
//!
//! * `SCHED-3` **Type-stable**: a `Thread` is made once and never freed. When its body has returned it goes to a
//!   pool ([`crate::spawn`]) and becomes another thread later. So `&'static Thread` is always sound, and a wake-up that
//!   comes too late is at worst a spurious wake-up of the next tenant, which every sleeper tolerates. [`Thread::tid`]
//!   tells tenants apart.
//! * `SCHED-4`: `cpu` names the run queue whose lock guards `rq` (links, place, priority, slice, set of CPUs). It changes only
//!   under that lock, while the thread is off every queue and not on a CPU.
//! * `SCHED-5`: a thread's stack and register context belong to the CPU that runs it from the moment that
//!   `on_cpu` is set until the *next* thread on that CPU has cleared it in `finish_switch`. Nobody runs it on another
//!   CPU before.
//!
//! Contexts: [`current`] works anywhere, NMI included. The accessors are plain loads.
//!
//! Linux: `struct task_struct` in `include/linux/sched.h`; R-13 for [`ThreadRcu`].

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr;

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::task::Context;
use arch::{CpuId, CpuMask, MAX_CPUS, cpu};
use mm::stack::Stack;
use sync::lock_order::{HeldLock, ThreadLocks};

use crate::affinity;
use crate::rq::RqEntry;
use crate::spawn::Body;
use crate::state::{State, StateWord};
use crate::timer::Timer;
use crate::watchdog::TaskWatch;
use crate::work::Worker;

/// Bytes of a thread's name; longer names are cut.
pub const NAME_BYTES: usize = 24;

/// `Thread::reach` of a thread that may run anywhere.
const ANY_CPU: u16 = u16::MAX;
/// `Thread::reach` of a thread that may run on some CPUs: the set says on which.
const SOME_CPUS: u16 = u16::MAX - 1;
/// `Thread::home` of a thread that belongs to no CPU.
const NO_CPU: u16 = u16::MAX;

/// Added to `Thread::stays` of idle threads and stoppers, which never leave their CPU, nor does it wait for them.
pub(crate) const STAYS_FOR_EVER: u32 = 1 << 31;

/// How urgent a thread is. A runnable thread of a higher level always runs before one of a lower level; equals take
/// turns.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Prio(u8);

impl Prio {
    /// Number of levels.
    pub const LEVELS: usize = 8;
    /// Runs when nothing else wants to: reclaim, statistics.
    pub const BACKGROUND: Prio = Prio(1);
    /// Ordinary threads: tests, the shell, work items.
    pub const NORMAL: Prio = Prio(3);
    /// Threads others wait for.
    pub const HIGH: Prio = Prio(5);
    /// Grace-period threads and boosted readers: they must run under any load of the levels below.
    pub const RCU: Prio = Prio(6);
    /// Nothing may hold these up: watchdogs, CPU stopping.
    pub const CRITICAL: Prio = Prio(7);

    /// The level of this priority; 0 is the least urgent.
    pub const fn level(self) -> usize {
        // The mask changes nothing, and tells the compiler that an array of LEVELS holds the level.
        const _: () = assert!(Prio::LEVELS.is_power_of_two());
        self.0 as usize & (Prio::LEVELS - 1)
    }

    /// The priority of a level.
    ///
    /// # Panics
    ///
    /// When `level` is not below [`Prio::LEVELS`].
    pub const fn from_level(level: usize) -> Prio {
        assert!(level < Prio::LEVELS, "no such priority level");
        Prio(level as u8)
    }
}

/// What RCU keeps in each thread. The scheduler looks at `boost` only; a new tenant of the `Thread` finds it as
/// [`ThreadRcu::new`] left it, because RCU's `thread_exit` hook must leave it so.
#[derive(Debug)]
pub struct ThreadRcu {
    /// Where the per-CPU reader nesting word is kept while the thread is off its CPU. Written by the context switch
    /// hook on the CPU that the thread leaves or enters; read there and by reports.
    pub nesting: AtomicU32,
    /// The special work of its last reader has been put off. Used by the CPU that runs it.
    pub deferred: AtomicBool,
    /// The `rcu_node` on whose list of blocked readers this thread is, or null. Written under that node's lock.
    pub blocked_node: AtomicPtr<()>,
    /// Link of that list. Guarded by the node's lock.
    pub blocked_next: AtomicPtr<Thread>,
    /// Link of that list. Guarded by the node's lock.
    pub blocked_prev: AtomicPtr<Thread>,
    /// The level below which the thread is not to run, because a grace period waits for it; 0 if none does. Written under
    /// that node's lock; [`crate::follow_boost`] has the scheduler act on it.
    pub boost: AtomicU8,
    /// Snapshot for the voluntary-switch flavour.
    pub holdout: AtomicU64,
}

impl ThreadRcu {
    /// A thread that is in no reader and on no list.
    pub const fn new() -> ThreadRcu {
        ThreadRcu {
            nesting: AtomicU32::new(0),
            deferred: AtomicBool::new(false),
            blocked_node: AtomicPtr::new(ptr::null_mut()),
            blocked_next: AtomicPtr::new(ptr::null_mut()),
            blocked_prev: AtomicPtr::new(ptr::null_mut()),
            boost: AtomicU8::new(0),
            holdout: AtomicU64::new(0),
        }
    }
}

impl Default for ThreadRcu {
    fn default() -> Self {
        ThreadRcu::new()
    }
}

/// A kernel thread. See the module text for what guards what.
#[repr(C, align(64))]
pub struct Thread {
    /// Saved registers while the thread is off its CPU (`SCHED-5`).
    pub(crate) context: UnsafeCell<MaybeUninit<Context>>,
    /// RCU's part.
    pub rcu: ThreadRcu,
    /// The mutexes it holds, in checking builds.
    pub(crate) locks: ThreadLocks,
    /// What its watchdog needs.
    pub(crate) watch: TaskWatch,
    /// The thread's will; [`crate::state`].
    pub(crate) state: StateWord,
    /// `SCHED-5`. Set under the run-queue lock by the CPU that picks the thread, cleared (Release) by
    /// `finish_switch`; wakers and idle CPUs in search of work read it (Acquire) before they move the thread.
    pub(crate) on_cpu: AtomicBool,
    /// Boot or idle thread: never on a queue, never in the pool.
    pub(crate) is_idle: AtomicBool,
    /// `SCHED-4`.
    pub(crate) cpu: AtomicU16,
    /// The set of CPUs in short: the one CPU, [`ANY_CPU`] or [`SOME_CPUS`]. Written with the set, under the lock of run queue
    /// `cpu`; read without it as a hint.
    reach: AtomicU16,
    /// The CPU that the thread belongs to, for which it was made; [`NO_CPU`] for most. Written for each tenant, under the lock
    /// of run queue `cpu`; read without it as a hint.
    home: AtomicU16,
    /// How many [`MigrateGuard`](crate::MigrateGuard)s the thread holds, and [`STAYS_FOR_EVER`]. Written by the thread;
    /// read under the lock of run queue `cpu`.
    pub(crate) stays: AtomicU32,
    /// Whether the thread shall park, and has; [`crate::park`].
    pub(crate) parking: AtomicU8,
    /// Guarded by the lock of run queue `cpu`.
    pub(crate) rq: UnsafeCell<RqEntry>,
    /// Bytes of the name, zero-padded. Written by `spawn` while nobody runs the thread; a report that reads it at
    /// that moment may see a mixture, which is why they are atomics.
    name: [AtomicU8; NAME_BYTES],
    /// Number of this tenant; 0 for a `Thread` in the pool.
    tid: AtomicU64,
    /// Voluntary passes through `schedule()` that gave up the CPU.
    pub(crate) voluntary: AtomicU64,
    /// Involuntary ones.
    pub(crate) involuntary: AtomicU64,
    /// Ends sleeps and time-outs. One is enough, a thread sleeps once at a time.
    pub(crate) alarm: Timer,
    /// The alarm has gone off since it was set. Written by the alarm's function and, before arming it, by the thread.
    pub(crate) alarm_rang: AtomicBool,
    /// How many [`CpusGuard`](crate::CpusGuard)s the thread holds. Used by the thread alone.
    pub(crate) keeps_cpus: AtomicU32,
    /// The stack, kept for the next tenant. Written under the pool's ownership only.
    pub(crate) stack: UnsafeCell<Option<Stack>>,
    /// `STACK-2` ([`crate::stack_depth`]). Written by whoever owns the stack, read by reports.
    pub(crate) stack_bottom: AtomicUsize,
    /// What to run; taken by the thread when it first runs.
    pub(crate) body: UnsafeCell<Option<Body>>,
    /// What a worker of a work queue knows of itself, on its stack, or null. Written and read by the thread itself.
    pub(crate) worker: AtomicPtr<Worker>,
    /// Link in the pool of dead threads. Guarded by the pool's lock.
    pub(crate) pool_next: AtomicPtr<Thread>,
    /// Link in the list of all threads. Written once, before the thread is published.
    pub(crate) all_next: AtomicPtr<Thread>,
}

// SAFETY: every field that is not an atomic has one writer at a time by SCHED-4 and SCHED-5: `rq` by the run-queue
// lock, `context` by whoever owns the CPU side, `stack` and `body` by the pool or by the thread itself.
unsafe impl Sync for Thread {}
// SAFETY: a `Thread` has no tie to the CPU it was made on.
unsafe impl Send for Thread {}

impl Thread {
    /// A thread that nobody has started.
    pub(crate) const fn new() -> Thread {
        Thread {
            context: UnsafeCell::new(MaybeUninit::uninit()),
            rcu: ThreadRcu::new(),
            locks: ThreadLocks::new(),
            watch: TaskWatch::new(),
            state: StateWord::new(),
            on_cpu: AtomicBool::new(false),
            is_idle: AtomicBool::new(false),
            cpu: AtomicU16::new(0),
            reach: AtomicU16::new(ANY_CPU),
            home: AtomicU16::new(NO_CPU),
            stays: AtomicU32::new(0),
            parking: AtomicU8::new(0),
            rq: UnsafeCell::new(RqEntry::new()),
            name: [const { AtomicU8::new(0) }; NAME_BYTES],
            tid: AtomicU64::new(0),
            voluntary: AtomicU64::new(0),
            involuntary: AtomicU64::new(0),
            alarm: Timer::new(crate::wait::alarm_rings),
            alarm_rang: AtomicBool::new(false),
            keeps_cpus: AtomicU32::new(0),
            stack: UnsafeCell::new(None),
            stack_bottom: AtomicUsize::new(0),
            body: UnsafeCell::new(None),
            worker: AtomicPtr::new(ptr::null_mut()),
            pool_next: AtomicPtr::new(ptr::null_mut()),
            all_next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Number of the thread, unique since boot; 1 is the boot thread. 0 means that nobody lives here now.
    pub fn tid(&self) -> u64 {
        self.tid.load(Ordering::Relaxed)
    }

    /// The CPU the thread runs on or ran on last.
    pub fn cpu(&self) -> CpuId {
        CpuId::new(usize::from(self.cpu.load(Ordering::Relaxed)))
    }

    /// May it run anywhere?
    pub(crate) fn is_unbound(&self) -> bool {
        self.reach.load(Ordering::Relaxed) == ANY_CPU
    }

    /// Is it plain that it may run on the CPU of this number? If not, its set may still have it.
    pub(crate) fn is_free_on(&self, cpu: u16) -> bool {
        let reach = self.reach.load(Ordering::Relaxed);
        reach == ANY_CPU || reach == cpu
    }

    /// The one CPU that it may run on, if it is only one.
    pub(crate) fn bound_to(&self) -> Option<CpuId> {
        let reach = usize::from(self.reach.load(Ordering::Relaxed));
        (reach < MAX_CPUS).then(|| CpuId::new(reach))
    }

    /// Writes the set of CPUs down in short.
    pub(crate) fn note_affinity(&self, mask: &CpuMask) {
        let reach = match mask.first() {
            _ if (cpu::present() - *mask).is_empty() => ANY_CPU,
            Some(only) if *mask == CpuMask::of(only) => cpu_number(only),
            _ => SOME_CPUS,
        };
        self.reach.store(reach, Ordering::Relaxed);
    }

    /// The CPU that the thread was made for and belongs to, if any.
    pub(crate) fn home(&self) -> Option<CpuId> {
        let home = usize::from(self.home.load(Ordering::Relaxed));
        (home < MAX_CPUS).then(|| CpuId::new(home))
    }

    /// Says to which CPU it belongs, if any. The caller holds the lock of its run queue.
    pub(crate) fn set_home(&self, home: Option<CpuId>) {
        self.home.store(home.map_or(NO_CPU, cpu_number), Ordering::Relaxed);
    }

    /// Must it come back to the CPU where it was?
    pub(crate) fn stays(&self) -> bool {
        self.stays.load(Ordering::Relaxed) != 0
    }

    /// Its state, which may be another by the time the caller looks at it.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Does a CPU run it, or is one still leaving its stack?
    pub fn on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::Relaxed)
    }

    /// Is it a CPU's idle thread?
    pub fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }

    /// Voluntary switches so far (R-22 takes snapshots of it).
    pub fn voluntary_switches(&self) -> u64 {
        self.voluntary.load(Ordering::Relaxed)
    }

    /// Involuntary switches so far.
    pub fn involuntary_switches(&self) -> u64 {
        self.involuntary.load(Ordering::Relaxed)
    }

    /// Calls `f` with each sleeping lock that the thread holds, oldest first; known in checking builds only.
    ///
    /// Context: any. Exact while the thread does not run or is the caller; else what was so a moment ago.
    pub fn for_each_lock(&self, f: impl FnMut(HeldLock)) {
        self.locks.for_each(f);
    }

    /// The name, for messages: `{}` prints it.
    pub fn name(&self) -> Name {
        let mut bytes = [0; NAME_BYTES];
        for (byte, from) in bytes.iter_mut().zip(&self.name) {
            *byte = from.load(Ordering::Relaxed);
        }
        Name(bytes)
    }

    /// Eight letters of the name, the first or the second, as a field of a trace record.
    pub(crate) fn name_word(&self, which: usize) -> u64 {
        let bytes: [u8; 8] = core::array::from_fn(|at| self.name().0.get(8 * which + at).copied().unwrap_or(0));
        u64::from_le_bytes(bytes)
    }

    /// Gives a thread that nobody runs its identity.
    pub(crate) fn set_identity(&'static self, name: &str, on: CpuMask, home: Option<CpuId>) {
        static NEXT_TID: AtomicU64 = AtomicU64::new(1);
        let mut end = name.len().min(NAME_BYTES);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let bytes = name.as_bytes()[..end].iter().copied().chain(core::iter::repeat(0));
        for (to, byte) in self.name.iter().zip(bytes) {
            to.store(byte, Ordering::Relaxed);
        }
        affinity::settle_in(self, home, on);
        self.stays.store(0, Ordering::Relaxed);
        self.parking.store(0, Ordering::Relaxed);
        self.tid.store(NEXT_TID.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.voluntary.store(0, Ordering::Relaxed);
        self.involuntary.store(0, Ordering::Relaxed);
    }

    /// The thread has left; its number is free of meaning from here on.
    pub(crate) fn clear_identity(&self) {
        self.tid.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on CPU {} {:?}", self.name(), self.tid(), self.cpu(), self.state())
    }
}

/// A copy of a thread's name.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Name([u8; NAME_BYTES]);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        core::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The number of a CPU as the thread's small fields store it.
pub(crate) fn cpu_number(cpu: CpuId) -> u16 {
    // MAX_CPUS is far below u16::MAX, which ANY_CPU and its like need.
    const _: () = assert!(MAX_CPUS < SOME_CPUS as usize);
    cpu.index() as u16
}

/// The thread that the machine boots in, before and after `init` made it one.
pub(crate) static BOOT_THREAD: Thread = Thread::new();

arch::per_cpu! {
    /// The thread this CPU runs. Written by the context switch with interrupts off; read by one instruction.
    pub(crate) static CURRENT: *mut Thread = &raw const BOOT_THREAD as *mut Thread;
}

/// The running thread. In interrupt and NMI context: the interrupted one.
///
/// Context: any, from the first instruction on (before [`crate::init`] it is the boot thread). One gs-relative
/// load; a thread that migrates right after it still finds itself.
#[inline]
pub fn current() -> &'static Thread {
    // SAFETY: CURRENT always holds a pointer to a type-stable thread (SCHED-3).
    unsafe { &*CURRENT.get() }
}

/// First of the list of all threads, newest first. Threads are only ever added (`SCHED-3`).
static ALL: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

/// Puts a new `Thread` on the list of all.
pub(crate) fn publish(thread: &'static Thread) {
    let mut head = ALL.load(Ordering::Relaxed);
    loop {
        thread.all_next.store(head, Ordering::Relaxed);
        let new = ptr::from_ref(thread).cast_mut();
        // Release: pairs with the Acquire in `for_each`, so that the link and the thread are seen whole.
        match ALL.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

/// Calls `f` for each live thread, idle threads included, newest structure first.
///
/// Context: any. Threads may come and go meanwhile; one that does so may be missed or seen.
pub fn for_each(mut f: impl FnMut(&'static Thread)) {
    // Acquire: pairs with the Release in `publish`. Links below are written before publication and never again.
    let mut next = ALL.load(Ordering::Acquire);
    // SAFETY: null, or a type-stable thread (SCHED-3).
    while let Some(thread) = unsafe { next.as_ref::<'static>() } {
        if thread.tid() != 0 {
            f(thread);
        }
        next = thread.all_next.load(Ordering::Relaxed);
    }
}
