//! The back ends: where an object waits that no sheaf took, chosen at boot and exchanged at run time.
//!
//! | [`BackEnd`] | sheaves first | then |
//! |---|---|---|
//! | `Sheaf` | yes | as `Bulk` |
//! | `Bulk` | | pages of pointers, a batch of pages a callback ([`crate::bulk`]) |
//! | `Pending` | | trackers: a bucket for each cookie that can be live ([`crate::pending`]) |
//! | `CallRcu` | | a callback an object ([`crate::call`]) |
//!
//! Each is an [`Engine`]. All of them are up at all times: what the choice decides is only where a new object goes. So
//! [`switch`] is a store and a barrier, barriers drain them all, and one whose turn has ended frees what it has by itself.
//!
//! # Invariants
//! - **BE-1** An engine that has accepted an object frees it after a grace period whatever the choice is then.
//! - **BE-2** The choice is read with preemption off by whoever then calls the engine: a grace period after a switch, nobody
//!   is on the way into the old one.
//! - **BE-3** Every event is counted once, in the row of the engine where it happens.
//!
//! Context: of each function at it. Lock: `kfree_rcu.switch`, outside everything of CPU hotplug. Linux has one back end, chosen
//! at build time (`CONFIG_KVFREE_RCU_BATCHED` in `mm/slab_common.c`, 7.x). Rows: S0-16, S3-22, S3-23, S3-31.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use arch::CpuId;
use mm::Shrinker;
use mm::oom::Section;
use sched::hotplug::{Notifier, Order};
use sched::{Mutex, WorkQueue, work};
use sync::{ATOMIC, CallbackHead, LockClass, MaySleep, Once, PreemptGuard, bug};

use crate::bulk::Bulk;
use crate::call::CallRcu;
use crate::head::RcuPtr;
use crate::pending::ByCookie;
use crate::{kvfree_rcu_barrier, page_cache};

sync::param! {
    /// Where `kfree_rcu` puts objects.
    static CHOICE: choice = "grange.kfree_rcu", default "sheaf", one of ["sheaf", "bulk", "pending", "call_rcu"];
}

/// What becomes of an object that is given to `kfree_rcu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BackEnd {
    /// Into an rcu_free sheaf; what no sheaf takes goes where `Bulk` puts it.
    Sheaf,
    /// Into a page of pointers.
    Bulk,
    /// Into a tracker, by its cookie.
    Pending,
    /// To `call_rcu`, by itself.
    CallRcu,
}

/// Where an object can be linked, by the head that it carries.
#[derive(Clone, Copy, Debug)]
pub enum Head {
    /// 8 bytes: a link.
    Link(NonNull<RcuPtr>),
    /// 16 bytes: a callback's head, the first half of which serves as a link.
    Callback(NonNull<CallbackHead>),
}

impl Head {
    /// The link, which every head has.
    #[must_use]
    pub fn link(self) -> NonNull<RcuPtr> {
        match self {
            Head::Link(link) => link,
            Head::Callback(head) => head.cast(),
        }
    }
}

/// What waits in a back end, at some moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Waiting {
    /// Objects.
    pub objects: usize,
    /// Since when the oldest of them waits, at most, in nanoseconds before now; 0 if there is none.
    pub oldest_ns: u64,
}

impl Waiting {
    /// Both together.
    #[must_use]
    pub(crate) fn and(self, other: Waiting) -> Waiting {
        Waiting { objects: self.objects + other.objects, oldest_ns: self.oldest_ns.max(other.oldest_ns) }
    }
}

/// One way to keep objects until their grace period is over, on all CPUs.
pub(crate) trait Engine {
    /// Takes `object` in (BE-1). False if that needs memory, there is none, and the object has no head.
    ///
    /// Context: task, softirq, hardirq; preemption off, interrupts on or off, also with a run queue locked. Never waits for
    /// memory.
    fn enqueue(object: NonNull<u8>, head: Option<Head>) -> bool;

    /// The same for an object without a head, where it may wait for locks to get memory, but not for memory (K-8).
    ///
    /// Context: task; sleeps.
    fn enqueue_headless(object: NonNull<u8>, _: &mut MaySleep) -> bool {
        let _pin = PreemptGuard::new(ATOMIC);
        Self::enqueue(object, None)
    }

    /// Waits until every object that was taken in before is free. Cheap if there is none.
    ///
    /// Context: task; sleeps.
    fn drain(cx: &mut MaySleep);

    /// `cpu` is parked: what waits there must not wait for it.
    ///
    /// Context: notifier, task; sleeps.
    fn dead(cpu: CpuId, cx: &mut MaySleep);

    /// Frees what has expired, waits for who is freeing some of it already, and frees what is kept for speed; says how many
    /// pages of its own it gave back.
    ///
    /// Context: task; sleeps, and allocates nothing. What it waits for allocates nothing either.
    fn reclaim(cx: &mut MaySleep) -> usize;

    /// What waits here.
    ///
    /// Context: task, softirq, hardirq.
    fn waiting() -> Waiting;
}

/// Calls a function of the engine behind a back end.
macro_rules! engine {
    ($back_end:expr, $function:ident($($arg:expr),*)) => {
        match $back_end {
            BackEnd::Sheaf | BackEnd::Bulk => Bulk::$function($($arg),*),
            BackEnd::Pending => ByCookie::$function($($arg),*),
            BackEnd::CallRcu => CallRcu::$function($($arg),*),
        }
    };
}

impl BackEnd {
    /// All of them, as the boot parameter names them.
    pub const ALL: [BackEnd; 4] = [BackEnd::Sheaf, BackEnd::Bulk, BackEnd::Pending, BackEnd::CallRcu];
    /// Those with an engine of their own.
    pub const ENGINES: [BackEnd; 3] = [BackEnd::Bulk, BackEnd::Pending, BackEnd::CallRcu];

    /// As `grange.kfree_rcu=` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            BackEnd::Sheaf => "sheaf",
            BackEnd::Bulk => "bulk",
            BackEnd::Pending => "pending",
            BackEnd::CallRcu => "call_rcu",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<BackEnd> {
        Self::ALL.into_iter().find(|back_end| back_end.name() == name)
    }

    /// The back end whose engine it uses, and whose row of counters.
    const fn engine(self) -> BackEnd {
        match self {
            BackEnd::Sheaf => BackEnd::Bulk,
            own => own,
        }
    }

    /// What waits in its engine; not what waits in sheaves.
    ///
    /// Context: task, softirq, hardirq.
    #[must_use]
    pub fn waiting(self) -> Waiting {
        engine!(self, waiting())
    }
}

/// A [`BackEnd`] by its number. Written by [`switch`].
static CURRENT: AtomicU8 = AtomicU8::new(BackEnd::Sheaf as u8);

/// One switch at a time.
static SWITCH_CLASS: LockClass = LockClass::new("kfree_rcu.switch");
static SWITCH: Mutex<()> = Mutex::new((), &SWITCH_CLASS);

/// The one that is in use.
///
/// Context: any. Wait-free.
#[inline]
#[must_use]
pub fn current() -> BackEnd {
    BackEnd::ALL[usize::from(CURRENT.load(Relaxed))]
}

/// Whether sheaves are tried first.
#[inline]
pub(crate) fn sheaves_first() -> bool {
    CURRENT.load(Relaxed) == BackEnd::Sheaf as u8
}

/// Uses `to` from now on, and waits until everything that was given before is free. Objects that are given meanwhile are not
/// held up.
///
/// Context: task; sleeps. No lock held that CPU hotplug takes.
pub fn switch(to: BackEnd, cx: &mut MaySleep) {
    let _one = SWITCH.lock(cx);
    // Relaxed: whoever sees the old one is waited for below; engines are up at all times.
    CURRENT.store(to as u8, Relaxed);
    // BE-2.
    rcu::synchronize_rcu(cx);
    kvfree_rcu_barrier(cx);
}

/// Gives `object` to the engine in use. False as in [`Engine::enqueue`].
///
/// Context: task, softirq, hardirq. Never waits for memory.
pub(crate) fn enqueue(object: NonNull<u8>, head: Option<Head>) -> bool {
    // BE-2.
    let _pin = PreemptGuard::new(ATOMIC);
    engine!(current(), enqueue(object, head))
}

/// Gives `object`, which has no head, to the engine in use. If false there is no memory to remember it by, and the caller
/// waits for a grace period itself.
///
/// A [`switch`] does not wait for a call that is under way here (BE-2): it may sleep.
///
/// Context: task; sleeps.
pub(crate) fn enqueue_headless(object: NonNull<u8>, cx: &mut MaySleep) -> bool {
    let back_end = current();
    let taken = engine!(back_end, enqueue_headless(object, cx));
    if !taken {
        count(back_end, Event::Waited, 1);
    }
    taken
}

/// Waits until every object that any engine holds now is free.
///
/// Context: task; sleeps.
pub(crate) fn drain(cx: &mut MaySleep) {
    let only = bug!(
        "kfree_rcu.drain_current",
        "a barrier drains only the back end that is in use",
        "kfree_rcu_barrier.*switch*"
    );
    for back_end in BackEnd::ENGINES.into_iter().filter(|&one| !only || one == current().engine()) {
        engine!(back_end, drain(cx));
    }
}

/// What waits in all engines together; not what waits in sheaves.
///
/// Context: task, softirq, hardirq.
#[must_use]
pub fn waiting() -> Waiting {
    BackEnd::ENGINES.iter().fold(Waiting::default(), |sum, back_end| sum.and(back_end.waiting()))
}

/// Has the engines free what has expired and give back the pages they keep for speed; unless `expired_only`, waits for an
/// expedited grace period first, and for RCU's callbacks: then everything that was given before is free. Says how many pages
/// came back by that: those of the engines and, as far as nobody else took them meanwhile, those of the objects.
///
/// A shrinker may wait here (SHR-2): for readers, who do not allocate; for callbacks, which do not sleep; and for who frees
/// objects, under locks inside which nobody waits for memory.
///
/// Context: task; sleeps, and allocates nothing.
pub fn reclaim(expired_only: bool, cx: &mut MaySleep) -> usize {
    let before = mm::stats::free_pages();
    if !expired_only {
        rcu::synchronize_rcu_expedited(cx);
        CallRcu::drain(cx);
    }
    let own = BackEnd::ENGINES.into_iter().map(|back_end| engine!(back_end, reclaim(cx))).sum::<usize>();
    // Areas that were freed have their frames until then.
    mm::vmalloc::purge(cx);
    // Few pages that are free are on a CPU's list, and not seen.
    own.max(mm::stats::free_pages().saturating_sub(before))
}

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted for each back end.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Event { $($(#[$doc])* $variant,)* }

        impl Event {
            /// All counters, in the order in which they are shown.
            pub const ALL: &[Event] = &[$(Event::$variant,)*];

            /// The name that users know the counter by.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Event::$variant => $name,)* }
            }
        }
    };
}

events! {
    /// Object taken in.
    Enqueued = "enqueued",
    /// Object taken in that found no memory to be remembered by, and is linked through its head.
    ByHead = "by_head",
    /// Object without a head that found no memory to be remembered by: its caller waited for a grace period.
    Waited = "waited",
    /// Object freed.
    Freed = "freed",
    /// Grace period asked for, other than by a callback.
    GracePeriods = "grace_periods",
    /// Callback queued.
    Callbacks = "callbacks",
    /// Page, or smaller block, allocated to remember objects.
    Pages = "pages",
}

const NR_EVENTS: usize = Event::ALL.len();
const NR_ROWS: usize = BackEnd::ALL.len();

sync::per_cpu! {
    /// Added to by this CPU, by whatever context.
    static COUNTERS: [[AtomicU64; NR_EVENTS]; NR_ROWS] = [const { [const { AtomicU64::new(0) }; NR_EVENTS] }; NR_ROWS];
}

/// Counts `n` events of an engine.
pub(crate) fn count(back_end: BackEnd, event: Event, n: usize) {
    // SAFETY: per-CPU areas are never freed; where it is counted does not matter, so neither does a migration.
    let row = unsafe { &(*COUNTERS.this_ptr())[back_end.engine() as usize] };
    row[event as usize].fetch_add(n as u64, Relaxed);
}

/// How often that happened in the engine of `back_end` since boot: a sum of moments.
///
/// Context: any.
#[must_use]
pub fn total(back_end: BackEnd, event: Event) -> u64 {
    let on = |cpu: CpuId| {
        // SAFETY: as in `count`.
        let row = unsafe { &(*COUNTERS.ptr_on(cpu))[back_end.engine() as usize] };
        row[event as usize].load(Relaxed)
    };
    arch::cpu::present().iter().map(on).sum()
}

/// The queue that frees memory, so that nothing of the system's queues holds it up (K-3).
static RECLAIM: Once<WorkQueue> = Once::new();

/// The queue for items that free what has expired; nothing before threads run.
pub(crate) fn reclaim_queue() -> Option<&'static WorkQueue> {
    RECLAIM.get()
}

/// Spare pages, and objects, of which nobody knows how many pages they are (K-9).
fn count_for_reclaim() -> usize {
    page_cache::total() + waiting().objects
}

static SHRINKER: Shrinker =
    Shrinker::new("kfree_rcu", count_for_reclaim, |_, cx| reclaim(true, cx)).with_settle(|cx| {
        reclaim(false, cx);
    });

/// In the out-of-memory report: since when objects wait, which only the engines know.
static SECTION: Section = Section::new("back ends of kfree_rcu", |out| {
    BackEnd::ENGINES.into_iter().map(|back_end| (back_end.name(), back_end.waiting())).try_for_each(
        |(name, waiting)| {
            let Waiting { objects, oldest_ns } = waiting;
            writeln!(out, "  {name}: {objects} objects, the oldest for {} ms", oldest_ns / 1_000_000)
        },
    )
});

static NOTIFIER: Notifier = Notifier::new("kfree_rcu", Order::KFREE_RCU).dead(|cpu, cx| {
    for back_end in BackEnd::ENGINES {
        engine!(back_end, dead(cpu, cx));
    }
});

/// Brings the engines up; what was given before gets its timers now (S2-7).
pub(crate) fn init(cx: &mut MaySleep) {
    let queue = WorkQueue::create(cx, "kfree_rcu_reclaim", work::Kind::PerCpu { max_active: 16 });
    RECLAIM.call_once(|| queue.expect("memory for a work queue"));
    let choice = BackEnd::from_name(CHOICE.get()).expect("the parameter allows names of back ends only");
    CURRENT.store(choice as u8, Relaxed);
    crate::pending::init();
    page_cache::init();
    crate::call::init();
    crate::bulk::init();
    sched::hotplug::register(&NOTIFIER);
    mm::shrinker::register(&SHRINKER);
    mm::oom::register_section(&SECTION);
}
