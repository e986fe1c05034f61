//! A bound on how long a sheaf that is not full holds objects back, and on how long a barn keeps what nobody wants (S0-18, G-4).
//!
//! A sheaf's grace period begins when it is full. Where no more objects come that would be never; so each CPU has a
//! *keeper*: a work item that submits what has been in rcu_free for longer than [`bound`], and takes out of the barns what is over
//! their limits and was not wanted meanwhile (BARN-4).
//!
//! # Invariants
//! - **BOUND-1** While a CPU has an rcu_free sheaf, and there is a bound, or while a barn that a callback on it found over its
//!   limit is so, the CPU's keeper is marked, and armed or about to be, or runs and will look again. Whoever makes one of these says
//!   so ([`watch`]) before it lets go of the sheaves, or after; the keeper looks after it has taken the mark off.
//! - **BOUND-2** Where neither is so, its time does not run, but for one that was armed when there was: it finds nothing and is
//!   not armed again. So a CPU that idles and holds nothing is not woken.
//! - **BOUND-3** An object waits for a submission for at most the bound and the time until the keeper gets to run. So while the
//!   keeper looks nobody else sets its time: what is oldest then decides.
//!
//! [`watch`] is called under the sheaf lock, in any context, NMI included, so it arms no timer and wakes nobody: it has the CPU
//! drain soon, once until the keeper has looked, and the drain of what was [deferred](crate::deferred) arms the keeper.
//!
//! Linux has no such bound: a sheaf waits for a flush.

use core::mem::offset_of;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst, fence,
};

use arch::{CpuId, clock};
use sched::{DelayedWork, WorkItem};
use sync::{ATOMIC, MaySleep, PreemptGuard, bug, smp};

use crate::cache::RawCache;
use crate::{deferred, registry};

const NS_PER_MS: u64 = 1_000_000;
/// How often barns are looked at where sheaves have no bound.
const TRIM_MS: u64 = 1_000;

sync::param! {
    /// The longest that a sheaf which does not get full holds objects given to kfree_rcu; 0: until it is full, or flushed.
    static RCU_SHEAF_MAX_MS: u32 = "grange.rcu_sheaf_max_ms", default 1_000, in 0..=3_600_000, unit "milliseconds";
}

/// In milliseconds; 0 for none.
static BOUND_MS: AtomicU64 = AtomicU64::new(TRIM_MS);
/// Whether timers and work items may be used yet.
static UP: AtomicBool = AtomicBool::new(false);

/// [`Keeper::mark`]: nothing is to be watched.
const AT_REST: u8 = 0;
/// Something is, since the last look; the next drain arms the keeper.
const ASKED: u8 = 1;
/// Its time runs, or a look that is under way sees to that at its end.
const ARMED: u8 = 2;

/// What looks after one CPU.
struct Keeper {
    /// BOUND-1. Written by the CPU in any context, by the look, and by who changes the bound.
    mark: AtomicU8,
    /// A look is under way, which sets the time of the next one. Written by the look.
    looks: AtomicBool,
    look: DelayedWork,
    /// Sheaves that it has submitted.
    submitted: AtomicU64,
}

sync::per_cpu! {
    static KEEPER: Keeper = Keeper {
        mark: AtomicU8::new(AT_REST),
        looks: AtomicBool::new(false),
        look: DelayedWork::new(look),
        submitted: AtomicU64::new(0),
    };
}

/// The keeper whose item is `item`: [`look`] is called with those items only.
fn keeper_with(item: &WorkItem) -> &'static Keeper {
    // SAFETY: the item lies in a Keeper in a per-CPU area, which is never freed; a DelayedWork begins with its item.
    unsafe { &*core::ptr::from_ref(item).byte_sub(offset_of!(Keeper, look)).cast() }
}

fn keeper_of(cpu: CpuId) -> &'static Keeper {
    // SAFETY: per-CPU areas are never freed; a Keeper is shared by atomics.
    unsafe { &*KEEPER.ptr_on(cpu) }
}

/// Does what the command line says; from here on keepers do their work.
///
/// Context: boot, after `sched::init`.
pub fn init() {
    BOUND_MS.store(u64::from(RCU_SHEAF_MAX_MS.get()), Relaxed);
    // Release, with the acquire in `Keeper::arm`: whoever sees it may use the scheduler.
    UP.store(true, Release);
    // What was asked for before.
    for cpu in arch::cpu::online().iter() {
        smp::call_on(cpu, |_| deferred::raise(), 0, true);
    }
}

/// The longest that a sheaf which is not full holds objects, in milliseconds; none where there is no bound.
///
/// Context: any.
pub fn bound() -> Option<u64> {
    Some(BOUND_MS.load(Relaxed)).filter(|&ms| ms != 0)
}

/// Changes the bound, also for the sheaves there are.
///
/// Context: task, softirq, hardirq; not under a run-queue lock.
pub fn set_bound(ms: Option<u64>) {
    BOUND_MS.store(ms.unwrap_or(0), Relaxed);
    if UP.load(Acquire) {
        for keeper in arch::cpu::present().iter().map(keeper_of) {
            keeper.mark.store(ARMED, Relaxed);
            keeper.look.modify(0);
        }
    }
}

/// Sheaves that were submitted because their time was over.
///
/// Context: any.
pub fn submitted() -> u64 {
    arch::cpu::present().iter().map(|cpu| keeper_of(cpu).submitted.load(Relaxed)).sum()
}

/// Whether the time of a CPU's keeper runs, or is about to: for reports and tests.
///
/// Context: any.
pub fn is_armed_on(cpu: CpuId) -> bool {
    keeper_of(cpu).mark.load(Relaxed) != AT_REST
}

/// There is something here that its keeper has to look at in time (BOUND-1).
///
/// Context: any.
pub(crate) fn watch() {
    let _pin = PreemptGuard::new(ATOMIC);
    // SAFETY: pinned; as in `keeper_of`.
    let here: &'static Keeper = unsafe { &*KEEPER.this_ptr() };
    // Pairs with the fence in `look`: either the mark is seen off here, or what is to be watched is seen there.
    fence(SeqCst);
    if here.mark.load(Relaxed) != AT_REST
        || bug!("rcu_bound.unwatched", "nobody looks at a sheaf that does not get full", "rcu_sheaf.*full*")
    {
        return;
    }
    here.mark.store(ASKED, Relaxed);
    deferred::raise();
}

/// Arms the keeper of `cpu` if that was asked for.
///
/// Context: any but NMI; on `cpu`, or it is parked.
pub(crate) fn arm(cpu: CpuId) {
    keeper_of(cpu).arm();
}

impl Keeper {
    fn arm(&'static self) {
        // Acquire, with the release in `init`.
        if self.mark.load(Relaxed) != ASKED || !UP.load(Acquire) {
            return;
        }
        self.mark.store(ARMED, Relaxed);
        // Pairs with the fence at the end of `look`: either the look is seen to be over here, or the mark is seen there.
        fence(SeqCst);
        if !self.looks.load(Relaxed)
            || bug!(
                "rcu_bound.late",
                "a sheaf that comes while the keeper looks sets the time of all",
                "rcu_bound_hooks"
            )
        {
            self.look.queue(period_ns());
        }
    }
}

fn period_ns() -> u64 {
    bound().unwrap_or(TRIM_MS) * NS_PER_MS
}

/// The keeper's look.
fn look(item: &WorkItem, cx: &mut MaySleep) {
    let keeper = keeper_with(item);
    keeper.looks.store(true, Relaxed);
    // Release: who finds the mark off and has the keeper armed then sees, after the fence in `arm`, that it looks.
    keeper.mark.store(AT_REST, Release);
    // Pairs with the fence in `watch`.
    fence(SeqCst);
    let cpu = arch::cpu::present().iter().find(|&cpu| core::ptr::eq(keeper_of(cpu), keeper)).expect("a CPU's keeper");
    let due_ns = bound().map(|ms| clock::now_ns().saturating_sub(ms * NS_PER_MS));
    let mut rest = Rest { since_ns: None, over: false };
    registry::for_each_unlocked(cx, |cache| {
        if cache.sheaf_capacity() == 0 {
            return;
        }
        match due_ns.and_then(|due_ns| look_at(cache, cpu, due_ns)) {
            Some(Found::Due) => _ = keeper.submitted.fetch_add(1, Relaxed),
            Some(Found::Since(ns)) => rest.since_ns = Some(rest.since_ns.map_or(ns, |other| other.min(ns))),
            None => {}
        }
        for node in cache.nodes().filter(|node| node.barn.is_over()) {
            cache.put_away_chains(node.barn.trim(clock::now_ns(), period_ns()));
            rest.over |= node.barn.is_over();
        }
    });
    if let Some(in_ns) = rest.next_look_in() {
        keeper.mark.store(ARMED, Relaxed);
        keeper.look.queue_on(cpu, in_ns);
    }
    keeper.looks.store(false, Relaxed);
    // Pairs with the fence in `arm`.
    fence(SeqCst);
    if keeper.mark.load(Relaxed) == ARMED {
        // For what came meanwhile; nothing where its time runs already.
        keeper.look.queue_on(cpu, period_ns());
    }
}

/// What a look has found to remain.
struct Rest {
    /// Since when the oldest sheaf has not been full.
    since_ns: Option<u64>,
    /// A barn is over its limits.
    over: bool,
}

impl Rest {
    fn next_look_in(&self) -> Option<u64> {
        let sheaf = self.since_ns.map(|since| (since + period_ns()).saturating_sub(clock::now_ns()));
        sheaf.or_else(|| self.over.then(period_ns))
    }
}

/// An rcu_free sheaf.
enum Found {
    /// Its time was over; it has been submitted.
    Due,
    /// There since then.
    Since(u64),
}

/// Submits the rcu_free sheaf of `cache` on `cpu` if it has been there since `due_ns`.
fn look_at(cache: &'static RawCache, cpu: CpuId, due_ns: u64) -> Option<Found> {
    let look = || {
        let mut held = cache.sheaves()?;
        let since_ns = cache.collecting(cpu).since_ns();
        Some(match held.rcu_free {
            Some(_) if since_ns > due_ns => Some(Found::Since(since_ns)),
            _ => held.submit_rcu_free(cpu).then_some(Found::Due),
        })
    };
    loop {
        // Nothing if somebody there is using the sheaves right now.
        match smp::run_on(cpu, look) {
            Some(Some(found)) => return found,
            Some(None) => arch::irq::relax(),
            // It is offline, and has taken them with it.
            None => return None,
        }
    }
}
