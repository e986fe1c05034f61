//! Prefilled sheaves and bulk calls, as anybody would use them: on every CPU, and from one CPU and node to another.
//!
//! What happens in each state of sheaves and barn is tested on the host (`kernel/slab/src/prefill/tests.rs`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::cpu;
use mm::AllocFlags;
use sched::Prio;
use slab::{CacheFlags, Layout, Prefilled, RawCache, Stat};
use sync::{ATOMIC, Rng, SpinLock, lock_class};

use crate::outcome::needs_sheaves;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Bytes of an object: sheaves of 28.
const SIZE: usize = 256;

fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn prefill(cache: &'static RawCache, n: usize) -> Result<Prefilled, Failure> {
    cache.prefill(n, AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory for {n} objects"))
}

/// Writes the object's own address all over it.
fn fill(object: NonNull<u8>) {
    for word in 0..SIZE / 8 {
        // SAFETY: the object has SIZE bytes and is ours.
        unsafe { object.cast::<usize>().add(word).write_volatile(object.as_ptr().addr() ^ word) };
    }
}

/// Whether nobody else has written to it since.
fn is_filled(object: NonNull<u8>) -> bool {
    (0..SIZE / 8).all(|word| {
        // SAFETY: as in `fill`.
        let found = unsafe { object.cast::<usize>().add(word).read_volatile() };
        found == object.as_ptr().addr() ^ word
    })
}

/// Every object is free again, every page and every sheaf has gone back.
fn ensure_all_back(cache: &'static RawCache) -> Result<(), Failure> {
    ensure_eq!(cache.lent().sheaves, 0, "prefilled sheaves are lost");
    ensure_eq!(cache.lent().objects, 0, "objects in prefilled sheaves are miscounted");
    cache.shrink();
    let info = cache.info();
    ensure_eq!(info.active_objs, 0, "objects of {} are lost", cache.name());
    ensure_eq!(info.num_slabs, 0, "slabs of {} stay although they are empty", cache.name());
    ensure_eq!(cache.stat(Stat::SheafAlloc), cache.stat(Stat::SheafFree), "sheaves of {} are lost", cache.name());
    let sum = |stats: &[Stat]| stats.iter().map(|&stat| cache.stat(stat)).sum::<u64>();
    let allocated = sum(&[Stat::AllocFastpath, Stat::AllocSlowpath]);
    let freed = sum(&[Stat::FreeFastpath, Stat::FreeSlowpath, Stat::FreeRemote]);
    ensure_eq!(allocated, freed, "allocations and frees of {}", cache.name());
    Ok(())
}

/// What threads pass to each other.
type Shelf = SpinLock<Vec<Prefilled>>;

/// One of the things that may be done with a prefilled sheaf. Returns the number of damaged objects.
fn play(cache: &'static RawCache, shelf: &Shelf, rng: &mut Rng) -> u64 {
    let taken = shelf.lock_irqsave(ATOMIC).pop();
    let n = if rng.chance(1, 8) { rng.index(100) } else { rng.index(28) } + 1;
    let mut sheaf = match taken {
        Some(sheaf) => match sheaf.refill(n, AllocFlags::NOWAIT) {
            Ok(sheaf) if sheaf.size() >= n => sheaf,
            Ok(_) => return 1,
            Err(sheaf) => sheaf,
        },
        None => match cache.prefill(n, AllocFlags::NOWAIT) {
            Some(sheaf) if sheaf.size() >= n => sheaf,
            Some(_) => return 1,
            None => return 0,
        },
    };
    let wanted = if rng.chance(1, 4) { sheaf.size() } else { rng.index(sheaf.size() + 1) };
    let mut objects: Vec<_> = (0..wanted).filter_map(|_| sheaf.alloc(AllocFlags::NOWAIT)).collect();
    let mut damaged = u64::from(objects.len() != wanted);
    objects.iter().for_each(|&object| fill(object));
    if rng.chance(1, 2) {
        let mut shelf = shelf.lock_irqsave(ATOMIC);
        if shelf.len() < shelf.capacity() {
            shelf.push(sheaf);
        }
    }
    // Where one host thread runs all CPUs, this is where another one gets its turn.
    arch::irq::relax();
    damaged += objects.iter().filter(|&&object| !is_filled(object)).count() as u64;
    if rng.chance(1, 2) {
        // SAFETY: allocated above, given up here.
        unsafe { cache.free_bulk(&mut objects) };
    } else {
        // SAFETY: as above.
        objects.into_iter().for_each(|object| unsafe { cache.free(object) });
    }
    damaged
}

ktest! {
    /// What was promised is there whatever happens to memory: with every page allocation failing, and from an interrupt's
    /// point of view too.
    fn promised_objects_are_there_when_there_is_no_memory_left(_t: &mut Test) {
        let cache = cache("test_promise")?;
        for n in [1, 28, 29, 500] {
            let mut sheaf = prefill(cache, n)?;
            let mut objects = Vec::with_capacity(n);
            let Some(armed) = mm::inject::arm(mm::inject::Plan::From(1)) else { skip!("page allocations fail already") };
            let off = sync::IrqGuard::new(ATOMIC);
            objects.extend((0..n).map_while(|_| sheaf.alloc(AllocFlags::ZERO)));
            drop(off);
            drop(armed);
            ensure_eq!(objects.len(), n);
            drop(sheaf);
            // SAFETY: allocated above, each given up once.
            unsafe { cache.free_bulk(&mut objects) };
        }
        ensure_all_back(cache)
    }

    /// The sheaf that comes back is the next one that goes out: no allocation, no slab, no lock but the CPU's own.
    fn a_sheaf_that_came_back_goes_out_again(t: &mut Test) {
        const ROUNDS: u64 = 100;
        let cache = cache("test_again")?;
        needs_sheaves(cache)?;
        let thread = sched::spawn(t.cx, "again", Prio::NORMAL, Some(cpu::current()), move |_| {
            let object = cache.alloc(AllocFlags::NOWAIT)?;
            for _ in 0..ROUNDS {
                let mut sheaf = cache.prefill(3, AllocFlags::NOWAIT)?;
                let three: [_; 3] = core::array::from_fn(|_| sheaf.alloc(AllocFlags::NOWAIT));
                drop(sheaf);
                // SAFETY: allocated above, each given up once.
                three.into_iter().flatten().for_each(|object| unsafe { cache.free(object) });
            }
            // SAFETY: as above.
            unsafe { cache.free(object) };
            Some(())
        });
        ensure!(thread.map_err(|error| crate::__failed!("{error}"))?.join(t.cx).is_some(), "no memory");
        let (fast, slow) = (cache.stat(Stat::SheafPrefillFast), cache.stat(Stat::SheafPrefillSlow));
        ensure!(fast >= ROUNDS - 10, "{fast} of {ROUNDS} prefills took the spare, {slow} did not");
        ensure_eq!(cache.stat(Stat::SheafReturnFast) + cache.stat(Stat::SheafReturnSlow), ROUNDS);
        ensure_all_back(cache)
    }

    /// A sheaf prefilled on one node, drained and returned on another.
    #[tags(race)]
    fn a_sheaf_returns_on_another_node(t: &mut Test) {
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&other| cpu::node_of(other) != cpu::node_of(here)) else {
            skip!("needs CPUs on two nodes")
        };
        let cache = cache("test_abroad")?;
        let mut threads = Vec::new();
        for n in [5, 28, 100] {
            let mut sheaf = prefill(cache, n)?;
            let thread = sched::spawn(t.cx, "abroad", Prio::NORMAL, Some(there), move |_| {
                let object = sheaf.alloc(AllocFlags::NOWAIT);
                drop(sheaf);
                // SAFETY: allocated just now, given up here.
                object.map(|object| unsafe { cache.free(object) })
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        for thread in threads {
            ensure!(thread.join(t.cx).is_some(), "a promised object was missing");
        }
        ensure_all_back(cache)
    }

    /// All CPUs prefill, refill, drain, return, and pass sheaves to each other, and free one by one and in bulk.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn sheaves_that_go_from_cpu_to_cpu_lose_no_object(t: &mut Test) {
        const OPERATIONS: usize = 1_500;
        let cache = cache("test_relay")?;
        let shelf: Arc<Shelf> = Arc::new(SpinLock::new(Vec::with_capacity(8), lock_class!("test.shelf")));
        let damaged = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let (shelf, damaged, mut rng) = (shelf.clone(), damaged.clone(), Rng::new(t.rng.next_u64()));
            let thread = sched::spawn(t.cx, "relay", Prio::NORMAL, Some(on), move |cx| {
                for _ in 0..OPERATIONS {
                    damaged.fetch_add(play(cache, &shelf, &mut rng), Relaxed);
                    sched::cond_resched(cx);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        let left = core::mem::take(&mut *shelf.lock_irqsave(ATOMIC));
        ensure_eq!(cache.lent().sheaves, left.len() as u64);
        ensure_eq!(cache.lent().objects, left.iter().map(|sheaf| sheaf.size() as u64).sum::<u64>());
        drop(left);
        ensure_eq!(damaged.load(Relaxed), 0, "objects with two holders, or promised ones that were missing");
        ensure_all_back(cache)
    }

    /// The capacity changes while sheaves are out; they come back, and none of the old capacity stays.
    #[tags(race)]
    fn sheaves_that_were_out_while_the_capacity_changed_come_back(t: &mut Test) {
        let cache = cache("test_resized")?;
        needs_sheaves(cache)?;
        let mut out = Vec::new();
        for capacity in [12, 60, 0, 28] {
            for n in [1, 5, 28, 70] {
                out.push(prefill(cache, n)?);
            }
            cache.set_capacity(capacity, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        }
        for (index, sheaf) in out.into_iter().enumerate() {
            let wanted = sheaf.size() + index;
            let sheaf = sheaf.refill(wanted, AllocFlags::NOWAIT);
            ensure!(sheaf.is_ok_and(|sheaf| sheaf.size() >= wanted), "no memory for {wanted} objects");
        }
        ensure_all_back(cache)
    }

    /// A bulk allocation that comes short leaves everything as it was, whichever page it is that is missing.
    fn a_bulk_allocation_is_all_or_nothing(_t: &mut Test) {
        const MANY: usize = 600;
        let cache = cache("test_bulk")?;
        let mut places = [MaybeUninit::uninit(); MANY];
        for nth in 1..1000 {
            let Some(armed) = mm::inject::arm(mm::inject::Plan::From(nth)) else { skip!("page allocations fail already") };
            let all = cache.alloc_bulk(&mut places, AllocFlags::NOWARN).map(|objects| {
                ensure_eq!(objects.len(), MANY);
                objects.iter().for_each(|&object| fill(object));
                ensure!(objects.iter().all(|&object| is_filled(object)), "two of the objects are one");
                // SAFETY: allocated just now, given up here.
                unsafe { cache.free_bulk(objects) };
                Ok(())
            });
            drop(armed);
            ensure_all_back(cache)?;
            if let Some(checked) = all {
                checked?;
                ensure!(nth > 10, "{MANY} objects in {nth} pages");
                return Ok(());
            }
        }
        Err(crate::__failed!("never enough memory"))
    }
}
