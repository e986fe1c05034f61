//! `kfree_rcu_nolock` from NMIs on all CPUs at once, with memory and without: every object is accounted for, each of its bytes looked at.
//!
//! Each CPU's thread uses a cache by every call that there is and sends NMIs to the next CPU, a single CPU to itself; their handler
//! allocates and gives up objects of the same cache. Checking builds panic where an NMI would wait for a lock (NM-2).

use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{CpuId, clock, cpu, ipi, irq};
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::{kfree_rcu, kfree_rcu_nolock};
use mm::AllocFlags;
use mm::inject::{self, Plan};
use slab::deferred::{Counts, counts};
use slab::{CacheFlags, RawCache, Stat, kfree, kfree_nolock};
use sync::nmi::NmiHandler;
use sync::{MaySleep, Once, Rng};

use super::kfree_rcu_nolock::under_each_back_end;
use crate::nolock::{self, ensure_all_back};
use crate::run::Test;
use crate::toggle::{MS, spawn};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

ktest! {
    /// 100,000 calls from NMIs on all CPUs, while their threads use the same cache by every call that there is.
    #[tags(race)]
    #[budget_ms(300_000)]
    fn a_storm_on_all_cpus_loses_no_byte(t: &mut Test) {
        storm(t, 100_000, None)
    }

    /// The same in small under every back end.
    #[tags(race)]
    #[budget_ms(300_000)]
    fn a_storm_under_any_back_end_loses_no_byte(t: &mut Test) {
        under_each_back_end(t, |t| storm(t, 5_000, None))
    }

    /// Ten million.
    #[tags(race, slow)]
    #[budget_ms(25_000_000)]
    fn a_long_storm_on_all_cpus_loses_no_byte(t: &mut Test) {
        storm(t, 10_000_000, None)
    }

    /// The same while 1, 10, 50 and 100 % of all allocations of pages fail.
    #[tags(race)]
    #[budget_ms(300_000)]
    fn a_storm_without_memory_loses_no_byte(t: &mut Test) {
        for percent in [1, 10, 50, 100] {
            storm(t, 4_000, Some(percent))?;
        }
        Ok(())
    }
}

/// Bytes of an object in a storm.
const SIZE: usize = 200;
/// Calls in one NMI.
const BATCH: usize = 8;

static CACHE: AtomicPtr<RawCache> = AtomicPtr::new(ptr::null_mut());
/// Calls of `kfree_rcu_nolock` and of `kfree_rcu`, objects allocated, allocations without success, damaged bytes, NMIs.
static CALLS: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static MISSES: AtomicU64 = AtomicU64::new(0);
static DAMAGED: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);
/// The workers begin; they end.
static BEGIN: AtomicBool = AtomicBool::new(false);
static END: AtomicBool = AtomicBool::new(false);
/// Workers that are there, until they have sent their last NMI.
static SENDING: AtomicUsize = AtomicUsize::new(0);

fn the_cache() -> Option<&'static RawCache> {
    // SAFETY: null, or a cache that lives for ever.
    unsafe { CACHE.load(Relaxed).as_ref() }
}

/// An object of the storm's cache, each of its bytes written.
fn take(alloc: impl FnOnce(&RawCache) -> Option<NonNull<u8>>) -> Option<NonNull<u8>> {
    let Some(object) = alloc(the_cache()?) else {
        MISSES.fetch_add(1, Relaxed);
        return None;
    };
    for word in 0..SIZE / 8 {
        // SAFETY: a fresh object of SIZE bytes, which nobody else knows.
        unsafe { object.cast::<u64>().add(word).write_volatile(!(object.addr().get() as u64) ^ word as u64) };
    }
    TAKEN.fetch_add(1, Relaxed);
    Some(object)
}

/// Looks at every byte of an object that is about to be given up.
fn check(object: NonNull<u8>) {
    for word in 0..SIZE / 8 {
        // SAFETY: the object is the caller's.
        let found = unsafe { object.cast::<u64>().add(word).read_volatile() };
        if found != !(object.addr().get() as u64) ^ word as u64 {
            DAMAGED.fetch_add(1, Relaxed);
        }
    }
}

static ANSWERING: AtomicBool = AtomicBool::new(false);
static HANDLER: NmiHandler = NmiHandler::new("kfree-rcu-nolock-storm", on_nmi);
static REGISTERED: Once<()> = Once::new();

fn on_nmi(_: &mut TrapFrame) -> bool {
    let ours = ANSWERING.load(SeqCst);
    if ours {
        strike();
    }
    ours
}

/// What an NMI does in a storm.
fn strike() {
    NMIS.fetch_add(1, Relaxed);
    for _ in 0..BATCH {
        let Some(object) = take(|cache| cache.alloc_nolock(AllocFlags::NOWARN)) else { continue };
        check(object);
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: allocated above, given up here; a head lies in it.
        unsafe { kfree_rcu_nolock(object.add(16).cast()) };
    }
}

/// What a CPU's thread does in a storm: it uses the cache, and sends NMIs to `target`. It keeps its CPU from idling from before
/// anybody sends any until nobody does any more.
fn work(target: CpuId, mut rng: Rng, cx: &mut MaySleep) {
    SENDING.fetch_add(1, SeqCst);
    while !BEGIN.load(SeqCst) {
        sched::yield_now(cx);
    }
    let mut held: Vec<NonNull<u8>> = Vec::with_capacity(64);
    while !END.load(SeqCst) {
        ipi::send_nmi(target);
        for _ in 0..4 + rng.index(12) {
            if held.len() < 64 && rng.chance(1, 2) {
                held.extend(take(|cache| cache.alloc(AllocFlags::NOWARN)));
                continue;
            }
            let Some(object) = held.pop() else { continue };
            check(object);
            give_up(object, &mut rng);
        }
        irq::relax();
        sched::cond_resched(cx);
    }
    for object in held {
        check(object);
        give_up(object, &mut rng);
    }
    SENDING.fetch_sub(1, SeqCst);
    while SENDING.load(SeqCst) != 0 {
        sched::yield_now(cx);
    }
}

/// By any of the calls.
fn give_up(object: NonNull<u8>, rng: &mut Rng) {
    // SAFETY (of the four): the object is the caller's, who gives it up; a head lies in it.
    match rng.index(4) {
        // SAFETY: see above.
        0 => unsafe { kfree(object) },
        // SAFETY: see above.
        1 => unsafe { kfree_nolock(object) },
        2 => {
            OTHERS.fetch_add(1, Relaxed);
            // SAFETY: see above.
            unsafe { kfree_rcu(object.add(16).cast()) }
        }
        _ => {
            CALLS.fetch_add(1, Relaxed);
            // SAFETY: see above.
            unsafe { kfree_rcu_nolock(object.add(16).cast()) }
        }
    }
}

/// NMIs on all CPUs until there were so many calls; `percent` of all allocations of pages fail meanwhile.
fn storm(t: &mut Test<'_>, calls: u64, percent: Option<u32>) -> Result<(), Failure> {
    let cache = nolock::cache("test_krn_storm_all", SIZE, CacheFlags::empty());
    nolock::use_cache(cache);
    nolock::settle(cache, t.cx);
    CACHE.store(ptr::from_ref(cache).cast_mut(), SeqCst);
    for count in [&CALLS, &OTHERS, &TAKEN, &MISSES, &DAMAGED, &NMIS] {
        count.store(0, Relaxed);
    }
    BEGIN.store(false, SeqCst);
    END.store(false, SeqCst);
    let cpus: Vec<CpuId> = cpu::online().iter().collect();
    SENDING.store(0, SeqCst);
    let mut workers = Vec::new();
    for (index, &on) in cpus.iter().enumerate() {
        let (target, rng) = (cpus[(index + 1) % cpus.len()], Rng::new(t.rng.next_u64()));
        workers.push(spawn(t.cx, Some(on), move |cx| work(target, rng, cx))?);
    }
    // Something to go round where nothing new comes.
    let stock: Vec<_> = (0..200 * cpus.len()).map_while(|_| cache.alloc(AllocFlags::NOWARN)).collect();
    // SAFETY: just allocated.
    stock.into_iter().for_each(|object| unsafe { cache.free(object) });
    let plan = |percent: u32| Plan::Fraction { per_million: percent * 10_000, seed: t.rng.next_u64() };
    let plan = percent.map(plan);
    let stats = || [Stat::FreeRcuSheaf, Stat::FreeRcuSheafFail].map(|stat| cache.stat(stat)).iter().sum::<u64>();
    let (told, counted) = (counts(), stats());
    REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
    ANSWERING.store(true, SeqCst);
    let armed = match plan.map(inject::arm) {
        Some(None) => skip!("another plan is armed"),
        armed => armed.flatten(),
    };
    while SENDING.load(SeqCst) < cpus.len() {
        sched::sleep_ns(t.cx, MS);
    }
    BEGIN.store(true, SeqCst);
    let end = clock::now_ns() + 240_000 * MS * calls.div_ceil(100_000);
    // Where nothing is to be had, as many NMIs are enough.
    let work = || CALLS.load(Relaxed).max(if percent.is_some() { NMIS.load(Relaxed) } else { 0 });
    while work() < calls && clock::now_ns() < end {
        sched::sleep_ns(t.cx, 5 * MS);
    }
    drop(armed);
    END.store(true, SeqCst);
    workers.into_iter().for_each(|worker| worker.join(t.cx));
    ANSWERING.store(false, SeqCst);
    let flushed = sched::keep_cpus(t.cx);
    slab::deferred::flush(&flushed, t.cx);
    drop(flushed);
    let now = counts();
    let since = Counts {
        frees: now.frees - told.frees,
        rcu_objects: now.rcu_objects - told.rcu_objects,
        rcu_sheaves: now.rcu_sheaves - told.rcu_sheaves,
        raises: now.raises - told.raises,
        interrupts: now.interrupts - told.interrupts,
    };
    let [calls_made, others, taken, misses, damaged, nmis] =
        [&CALLS, &OTHERS, &TAKEN, &MISSES, &DAMAGED, &NMIS].map(|count| count.load(Relaxed));
    t.note(format_args!(
        "{calls_made} calls, {nmis} NMIs, {taken} objects of {SIZE} bytes, {misses} not to be had; deferred: {} frees, {} objects, \
         {} sheaves; {} raises, {} interrupts to oneself",
        since.frees, since.rcu_objects, since.rcu_sheaves, since.raises, since.interrupts
    ));
    ensure_eq!(damaged, 0, "words of objects with two holders");
    ensure!(work() >= calls, "only {calls_made} calls of {calls}, and {nmis} NMIs");
    if backend::current() == BackEnd::Sheaf {
        // K-13: each call counts as a success or a failure of the sheaf, and one that is deferred again when it is drained.
        ensure_eq!(stats() - counted, calls_made + others + since.rcu_objects, "calls that are counted");
    } else {
        ensure_eq!(stats() - counted, 0, "calls that found a sheaf, or looked for one");
    }
    // S1-13: caches that are watched have no sheaves either.
    if backend::current() != BackEnd::Sheaf || cache.sheaf_capacity() == 0 {
        ensure_eq!(since.rcu_objects, calls_made, "calls that were deferred");
    }
    ensure!(since.interrupts * 1_000 <= calls_made, "{} of {calls_made} calls needed an interrupt", since.interrupts);
    ensure_all_back(cache, t.cx)?;
    ensure_eq!(cache.waiting().total().bytes, 0, "bytes that wait on RCU");
    Ok(())
}
