//! The slab allocator: content, accounting, sheaves and barns, and calls from NMI at every instruction.
//!
//! Each test has a cache of its own, so that the accounting at its end is exact: [`ensure_all_back`] asks for every slab.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{CpuId, cpu};
use mm::AllocFlags;
use sched::Prio;
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::nmi::NmiHandler;
use sync::{Once, Rng};

use crate::outcome::needs_sheaves;
use crate::stepping::{self, Visit};
use crate::storm::Storm;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Bytes of the objects of these tests, all of which are filled and checked.
const SIZE: usize = 64;
const WORDS: usize = SIZE / 8;

/// A cache for one test.
fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn fill(object: NonNull<u8>, stamp: u64) {
    for word in 0..WORDS {
        // SAFETY: the object has SIZE bytes and is ours.
        unsafe { object.cast::<u64>().add(word).write_volatile(stamp ^ word as u64) };
    }
}

fn is_filled(object: NonNull<u8>, stamp: u64) -> bool {
    // SAFETY: as in `fill`.
    (0..WORDS).all(|word| unsafe { object.cast::<u64>().add(word).read_volatile() } == stamp ^ word as u64)
}

/// Every object is free again, and every page has gone back.
fn ensure_all_back(cache: &'static RawCache) -> Result<(), Failure> {
    cache.shrink();
    let info = cache.info();
    ensure_eq!(info.active_objs, 0, "objects of {} are lost", cache.name());
    ensure_eq!(info.num_slabs, 0, "slabs of {} stay although they are empty", cache.name());
    Ok(())
}

ktest! {
    /// Sizes around every class border, and large ones: aligned as promised, not overlapping, all usable.
    fn kmalloc_of_every_size_is_aligned_and_holds_its_content(_t: &mut Test) {
        let mut sizes: Vec<usize> = (0..16).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]).collect();
        sizes.extend([96, 97, 192, 193, 100_000]);
        let mut held = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            let Some(object) = slab::kmalloc(size, AllocFlags::NOWAIT) else {
                return Err(crate::__failed!("no memory for {size} bytes"));
            };
            if size.is_power_of_two() {
                ensure!(object.as_ptr().addr() % size.min(4096) == 0, "{object:p} for {size}");
            }
            // SAFETY: `size` bytes are ours.
            unsafe { object.as_ptr().write_bytes(index as u8, size) };
            held.push((object, size));
        }
        for (index, &(object, size)) in held.iter().enumerate() {
            // SAFETY: still ours; written above.
            let bytes = unsafe { core::slice::from_raw_parts(object.as_ptr(), size) };
            ensure!(bytes.iter().all(|&byte| byte == index as u8), "content of {size} bytes");
            // SAFETY: from kmalloc, and given up here.
            unsafe { slab::kfree(object) };
        }
        Ok(())
    }

    /// An object that asks for zeroes gets them, whatever was there before.
    fn a_reused_object_is_zeroed_if_asked_for(_t: &mut Test) {
        let cache = cache("test_zero")?;
        for _ in 0..3 {
            let Some(object) = cache.alloc(AllocFlags::ZERO) else { return Err(crate::__failed!("no memory")) };
            ensure!(is_filled_with_zero(object));
            fill(object, 0x5a5a);
            // SAFETY: allocated above, given up here.
            unsafe { cache.free(object) };
        }
        ensure_all_back(cache)
    }

    /// A burst of allocations and frees moves whole sheaves through the barn: few slow paths, few barn visits.
    fn a_burst_moves_whole_sheaves_through_the_barn(t: &mut Test) {
        const BURST: usize = 1000;
        let cache = cache("test_burst")?;
        needs_sheaves(cache)?;
        let burst = sched::spawn(t.cx, "burst", Prio::NORMAL, Some(cpu::current()), move |_| {
            let mut least = usize::MAX;
            for _ in 0..4 {
                let held: Vec<_> = (0..BURST).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
                least = least.min(held.len());
                // SAFETY: allocated above, each given up once.
                held.into_iter().for_each(|object| unsafe { cache.free(object) });
            }
            least
        });
        ensure_eq!(burst.map_err(|error| crate::__failed!("{error}"))?.join(t.cx), BURST);
        let (get, put) = (cache.stat(Stat::BarnGet), cache.stat(Stat::BarnPut));
        let capacity = cache.sheaf_capacity() as u64;
        ensure!(put > 0, "no full sheaf reached the barn");
        ensure!(get > 0, "no full sheaf came from the barn");
        ensure!(get + put <= 2 * 4 * BURST as u64 / capacity, "{get} gets and {put} puts for sheaves of {capacity}");
        ensure_all_back(cache)
    }

    /// All CPUs allocate, pass on, and free at random; each object carries a stamp that its holder checks.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_is_ever_handed_out_twice(t: &mut Test) {
        const OPERATIONS: usize = 20_000;
        const SLOTS: usize = 64;
        let cache = cache("test_twice")?;
        let slots: Arc<Vec<AtomicPtr<u8>>> = Arc::new((0..SLOTS).map(|_| AtomicPtr::new(ptr::null_mut())).collect());
        let damaged = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let (slots, damaged, mut rng) = (slots.clone(), damaged.clone(), Rng::new(t.rng.next_u64()));
            let thread = sched::spawn(t.cx, "slab", Prio::NORMAL, Some(on), move |_| {
                for _ in 0..OPERATIONS {
                    exchange_one(cache, &slots[rng.index(SLOTS)], &damaged, &mut rng);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        for slot in slots.iter() {
            drop_one(cache, slot.swap(ptr::null_mut(), SeqCst), &damaged);
        }
        ensure_eq!(damaged.load(Relaxed), 0, "objects with two holders");
        ensure_all_back(cache)
    }

    /// What one node's CPU allocates and another's frees goes home to its slabs.
    #[tags(race)]
    fn objects_freed_on_another_node_return_to_their_own(t: &mut Test) {
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&other| cpu::node_of(other) != cpu::node_of(here)) else {
            skip!("needs CPUs on two nodes")
        };
        let cache = cache("test_remote")?;
        let held: Vec<usize> =
            (0..500).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).map(|object| object.as_ptr().addr()).collect();
        let freed = held.len() as u64;
        let thread = sched::spawn(t.cx, "remote", Prio::NORMAL, Some(there), move |_| {
            // These leave a sheaf with room behind, where the others must not go.
            let own: Vec<_> = (0..40).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
            for address in held {
                let object = NonNull::new(ptr::with_exposed_provenance_mut(address)).expect("not null");
                // SAFETY: allocated by the other thread, which gave it away.
                unsafe { cache.free(object) };
            }
            let elsewhere = cache.stat(Stat::FreeSlowpath) + cache.stat(Stat::FreeRemote);
            // SAFETY: allocated above, each given up once.
            own.into_iter().for_each(|object| unsafe { cache.free(object) });
            elsewhere
        });
        let elsewhere = thread.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        ensure_eq!(elsewhere, freed, "the others went into this node's sheaf");
        ensure_all_back(cache)
    }

    /// A cache goes only when its last object has; until then it works on.
    fn a_cache_with_a_leaked_object_is_not_destroyed(t: &mut Test) {
        let cache = cache("test_leak")?;
        let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Err(slab::flush::Leaked(1)));
        // SAFETY: allocated above, given up here.
        unsafe { cache.free(object) };
        // SAFETY: as above.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }

    /// An "NMI" at every instruction of allocations and frees, fast and slow, that itself allocates and frees.
    #[budget_ms(120_000)]
    fn nolock_calls_at_every_instruction_of_alloc_and_free(t: &mut Test) {
        let cache = *STEPPED.call_once(|| cache("test_step").expect("a cache"));
        // Without them there are millions of instructions to step over.
        needs_sheaves(cache)?;
        let mut held = Vec::with_capacity(200);
        let mut boundaries = 0;
        for run in stepping::runs(&[1, 2, 3, 5, 17]) {
            boundaries += stepping::step::<NolockPair>(run, || {
                // More than two sheaves, so that every exchange is stepped over: spare, barn, slabs, and back.
                while held.len() < 200 {
                    held.extend(cache.alloc(AllocFlags::NOWAIT));
                }
                // SAFETY: allocated above, each given up once.
                held.drain(..).for_each(|object| unsafe { cache.free(object) });
            });
        }
        t.note(format_args!("{boundaries} instruction boundaries, {} of the calls found no object", MISSES.load(Relaxed)));
        ensure!(boundaries > 5_000, "only {boundaries} boundaries");
        ensure_eq!(DAMAGED.load(Relaxed), 0, "objects with two holders");
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        ensure_all_back(cache)
    }

    /// NMIs from another CPU hit a CPU that allocates and frees; the handlers do the same without locks.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn nolock_calls_from_an_nmi_storm_lose_nothing(t: &mut Test) {
        const OPERATIONS: usize = 100_000;
        let cpus: Vec<CpuId> = cpu::online().iter().collect();
        let [target, sender, ..] = cpus[..] else { skip!("needs two CPUs") };
        let cache = *STORMED.call_once(|| cache("test_storm").expect("a cache"));
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        HANDLER_ON.store(true, SeqCst);
        let storm = Storm::start(t.cx, sender, target)?;
        let mut rng = Rng::new(t.rng.next_u64());
        let work = sched::spawn(t.cx, "target", Prio::NORMAL, Some(target), move |cx| {
            let mut held: Vec<NonNull<u8>> = Vec::with_capacity(256);
            let mut damaged = 0;
            for _ in 0..OPERATIONS {
                if held.len() < 256 && (held.is_empty() || rng.chance(1, 2)) {
                    if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
                        fill(object, object.as_ptr().addr() as u64);
                        held.push(object);
                    }
                } else {
                    let object = held.swap_remove(rng.index(held.len()));
                    damaged += u64::from(!is_filled(object, object.as_ptr().addr() as u64));
                    // SAFETY: allocated above, given up here.
                    unsafe { cache.free(object) };
                }
                if rng.chance(1, 16) {
                    // Where one host thread runs all CPUs, this is where another one gets its turn.
                    arch::irq::relax();
                }
                sched::cond_resched(cx);
            }
            // SAFETY: as above.
            held.into_iter().for_each(|object| unsafe { cache.free(object) });
            damaged
        });
        let damaged: u64 = work.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        let sent = storm.stop(t.cx);
        HANDLER_ON.store(false, SeqCst);
        t.note(format_args!("{sent} NMIs sent, {} handled", HANDLED.load(Relaxed)));
        ensure!(HANDLED.load(Relaxed) > 0, "no NMI arrived");
        ensure_eq!(damaged + DAMAGED.load(Relaxed), 0, "objects with two holders");
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        ensure_all_back(cache)
    }
}

static STEPPED: Once<&'static RawCache> = Once::new();
static STORMED: Once<&'static RawCache> = Once::new();
static MISSES: AtomicU64 = AtomicU64::new(0);
static DAMAGED: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
static HANDLER_ON: AtomicBool = AtomicBool::new(false);
static HANDLER: NmiHandler = NmiHandler::new("slab-storm", on_nmi);
static REGISTERED: Once<()> = Once::new();

struct NolockPair;

impl Visit for NolockPair {
    fn visit() {
        STEPPED.get().into_iter().for_each(|cache| nolock_pair_of(cache));
    }
}

/// Allocates, checks and frees as an NMI handler would.
fn nolock_pair_of(cache: &RawCache) {
    let Some(object) = cache.alloc_nolock(AllocFlags::NOWAIT) else {
        MISSES.fetch_add(1, Relaxed);
        return;
    };
    fill(object, !0);
    if !is_filled(object, !0) {
        DAMAGED.fetch_add(1, Relaxed);
    }
    // SAFETY: allocated above, given up here.
    unsafe { slab::kfree_nolock(object) };
}

fn on_nmi(_: &mut TrapFrame) -> bool {
    if !HANDLER_ON.load(SeqCst) {
        return false;
    }
    if let Some(cache) = STORMED.get() {
        nolock_pair_of(cache);
        HANDLED.fetch_add(1, Relaxed);
    }
    true
}

fn is_filled_with_zero(object: NonNull<u8>) -> bool {
    // SAFETY: the object has SIZE bytes and is ours.
    (0..WORDS).all(|word| unsafe { object.cast::<u64>().add(word).read_volatile() } == 0)
}

/// Puts a new object into `slot` and frees the one that was there, after a look at its stamp.
fn exchange_one(cache: &RawCache, slot: &AtomicPtr<u8>, damaged: &AtomicU64, rng: &mut Rng) {
    let fresh = if rng.chance(3, 4) { cache.alloc(AllocFlags::NOWAIT) } else { None };
    if let Some(object) = fresh {
        fill(object, object.as_ptr().addr() as u64);
    }
    let old = slot.swap(fresh.map_or(ptr::null_mut(), NonNull::as_ptr), SeqCst);
    drop_one(cache, old, damaged);
}

fn drop_one(cache: &RawCache, object: *mut u8, damaged: &AtomicU64) {
    let Some(object) = NonNull::new(object) else { return };
    if !is_filled(object, object.as_ptr().addr() as u64) {
        damaged.fetch_add(1, Relaxed);
    }
    // SAFETY: taken out of its slot, so it is ours alone.
    unsafe { cache.free(object) };
}
