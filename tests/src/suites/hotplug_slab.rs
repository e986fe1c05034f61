//! Objects while CPUs go and come: what a CPU had in sheaves and on deferred lists goes back, and not too early.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{CpuId, cpu};
use kfree_rcu::{RcuPtr, kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::nmi::NmiHandler;
use sync::{ATOMIC, Once, Rng};

use crate::kfree::ensure_all_back;
use crate::outcome::needs_sheaves;
use crate::storm::Storm;
use crate::together::BoostDelay;
use crate::toggle::{Load, off, on, others, spawn, threads, toggle, toggle_all};
use crate::{Failure, ensure, ensure_eq, ktest};

const WORDS: usize = 8;
const SIZE: usize = WORDS * 8;

/// A cache for one test.
fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, SIZE).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// An object full of a pattern, but for its first word, where a head for `kfree_rcu` has its place.
fn object(cache: &RawCache, pattern: u64) -> Option<NonNull<u8>> {
    let object = cache.alloc(AllocFlags::NOWAIT)?;
    for word in 1..WORDS {
        // SAFETY: the object has SIZE bytes and is ours.
        unsafe { object.cast::<u64>().add(word).write_volatile(pattern) };
    }
    Some(object)
}

/// Whether the pattern is still there.
///
/// # Safety
/// The object is the caller's, or a reader keeps it from being freed.
unsafe fn is_whole(object: NonNull<u8>, pattern: u64) -> bool {
    // SAFETY: by the caller.
    (1..WORDS).all(|word| unsafe { object.cast::<u64>().add(word).read_volatile() } == pattern)
}

/// Gives an object of [`object`] to `kfree_rcu`.
fn give_up(object: NonNull<u8>) {
    // SAFETY: the first word of an object is room for a head; the caller gives the object up.
    unsafe { kfree_rcu(object.cast::<RcuPtr>()) };
}

/// Objects that a thread has; what is left at its end goes back then.
struct Held {
    cache: &'static RawCache,
    objects: [Option<(NonNull<u8>, u64)>; 64],
}

// SAFETY: objects belong to whoever has them, on whatever CPU.
unsafe impl Send for Held {}

impl Held {
    fn turn(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let place = rng.index(self.objects.len());
        if let Some((object, pattern)) = self.objects[place].take() {
            // SAFETY: ours.
            ensure!(unsafe { is_whole(object, pattern) }, "the content of {object:p} has changed");
            match rng.below(8) {
                0..=2 => give_up(object),
                // SAFETY: ours, and nobody else's.
                3 => unsafe { slab::kfree_nolock(object) },
                // SAFETY: as above.
                _ => unsafe { self.cache.free(object) },
            }
        }
        let pattern = rng.next_u64();
        self.objects[place] = object(self.cache, pattern).map(|object| (object, pattern));
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for (object, _) in self.objects.iter_mut().filter_map(Option::take) {
            // SAFETY: ours, and nobody else's.
            unsafe { self.cache.free(object) };
        }
    }
}

static STORMED: Once<&'static RawCache> = Once::new();
static FROM_NMI: AtomicU64 = AtomicU64::new(0);
static HANDLER_ON: AtomicBool = AtomicBool::new(false);
static HANDLER: NmiHandler = NmiHandler::new("hotplug-storm", on_nmi);

/// Allocates and gives up two objects, one for good and one after a grace period.
fn on_nmi(_: &mut TrapFrame) -> bool {
    let Some(cache) = STORMED.get().filter(|_| HANDLER_ON.load(SeqCst)) else { return false };
    if let Some(object) = cache.alloc_nolock(AllocFlags::NOWAIT) {
        // SAFETY: allocated above, and nobody else's.
        unsafe { slab::kfree_nolock(object) };
    }
    if let Some(object) = cache.alloc_nolock(AllocFlags::NOWAIT) {
        // SAFETY: as above; room for a head is in every object.
        unsafe { kfree_rcu::kfree_rcu_nolock(object.cast()) };
    }
    FROM_NMI.fetch_add(1, Relaxed);
    true
}

ktest! {
    /// Main, spare and rcu_free: after the CPU has gone, all objects and pages can be had back while it is away.
    fn the_sheaves_of_a_cpu_that_goes_are_flushed(t: &mut Test) {
        for cpu in others(t.cx)? {
            let cache = cache("test_hp_sheaves")?;
            needs_sheaves(cache)?;
            let count = 3 * cache.sheaf_capacity();
            let held = spawn(t.cx, Some(cpu), move |_| {
                let objects: Vec<_> = (0..count).filter_map(|_| object(cache, 1)).map(|object| object.as_ptr() as usize).collect();
                let at = |address: usize| NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).expect("not null");
                // Half of them fill main and spare, some of the rest wait for a grace period in a sheaf that is not full.
                let (now, later) = objects.split_at(objects.len() / 2);
                // SAFETY: allocated above, and nobody else's.
                now.iter().for_each(|&address| unsafe { cache.free(at(address)) });
                later.iter().take(5).for_each(|&address| give_up(at(address)));
                later.iter().skip(5).copied().collect::<Vec<_>>()
            })?
            .join(t.cx);
            let (gets, puts) = (cache.stat(Stat::AllocFastpath), cache.stat(Stat::FreeFastpath));
            off(cpu, t.cx)?;
            ensure_eq!((cache.stat(Stat::AllocFastpath), cache.stat(Stat::FreeFastpath)), (gets, puts), "sums of counters");
            for address in held {
                let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).expect("not null");
                // SAFETY: allocated by the thread, which has ended, and nobody else's.
                unsafe { cache.free(object) };
            }
            ensure_all_back(cache, t.cx)?;
            on(cpu, t.cx)?;
            let usable = spawn(t.cx, Some(cpu), move |_| object(cache, 2).map(give_up).is_some())?;
            ensure!(usable.join(t.cx), "the cache is of no use on a CPU that is back");
            // SAFETY: nobody uses the cache any more.
            ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        }
        Ok(())
    }

    /// An object in the rcu_free sheaf of a CPU that goes stays what it is for a reader that found it before.
    fn a_sheaf_that_waits_for_a_grace_period_waits_when_its_cpu_goes(t: &mut Test) {
        // The reader waits for us, who may have one CPU with it.
        let _unboosted = BoostDelay::new(0);
        for cpu in others(t.cx)? {
            let cache = cache("test_hp_rcu_free")?;
            let Some(found) = spawn(t.cx, Some(cpu), move |_| object(cache, 7).map(|object| object.as_ptr() as usize))?.join(t.cx)
            else {
                return Err(crate::__failed!("no memory"));
            };
            let at = move || NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(found)).expect("not null");
            let (entered, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let (is_in, go) = (entered.clone(), leave.clone());
            let reader = spawn(t.cx, Some(CpuId::BOOT), move |_| {
                let _section = rcu::read_lock(ATOMIC);
                is_in.store(true, SeqCst);
                while !go.load(SeqCst) {
                    arch::irq::relax();
                }
                // SAFETY: in the section that the object was found in.
                unsafe { is_whole(at(), 7) }
            })?;
            while !entered.load(SeqCst) {
                sched::yield_now(t.cx);
            }
            spawn(t.cx, Some(cpu), move |_| give_up(at()))?.join(t.cx);
            off(cpu, t.cx)?;
            // Whatever is to be had on its node.
            let node = cpu::node_of(cpu);
            let mut taken = Vec::new();
            for _ in 0..4 * cache.sheaf_capacity() {
                let Some(other) = object(cache, 9) else { continue };
                ensure!(other != at(), "an object of node {node} is given out while a reader is in it");
                taken.push(other);
            }
            leave.store(true, SeqCst);
            ensure!(reader.join(t.cx), "the content changed under a reader");
            // SAFETY: allocated above, and nobody else's.
            taken.into_iter().for_each(|object| unsafe { cache.free(object) });
            ensure_all_back(cache, t.cx)?;
            on(cpu, t.cx)?;
            // SAFETY: nobody uses the cache any more.
            ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        }
        Ok(())
    }

    /// All ways to free, from threads and from NMIs, with content checks; at the end every object and page is back.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_object_is_lost_while_cpus_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        let cache = cache("test_hp_load")?;
        STORMED.call_once(|| cache);
        sync::nmi::register(&HANDLER);
        HANDLER_ON.store(true, SeqCst);
        let storm = Storm::start(t.cx, CpuId::BOOT, CpuId::BOOT)?;
        let mut load = Load::new();
        for _ in 0..threads() {
            let mut held = Held { cache, objects: [None; 64] };
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, _| (0..8).try_for_each(|_| held.turn(rng)))?;
        }
        let result = toggle_all(&cpus, &mut t.rng, t.cx);
        let turns: u64 = load.end(t.cx)?.iter().sum();
        storm.stop(t.cx);
        HANDLER_ON.store(false, SeqCst);
        result?;
        t.note(format_args!("{turns} times 8 objects, {} NMIs", FROM_NMI.load(Relaxed)));
        ensure!(turns > 100 && FROM_NMI.load(Relaxed) > 0, "too little happened");
        ensure_all_back(cache, t.cx)
    }

    /// Caches made and destroyed with objects on CPUs that go, and shrunk meanwhile.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn caches_come_and_go_while_cpus_do(t: &mut Test) {
        let cpus = others(t.cx)?;
        let mut load = Load::new();
        for name in ["test_hp_comes_1", "test_hp_comes_2"] {
            load.add(t.cx, Rng::new(t.rng.next_u64()), move |rng, cx| {
                let cache = cache(name)?;
                for _ in 0..rng.below(300) {
                    let Some(object) = object(cache, 3) else { continue };
                    // SAFETY: allocated here.
                    if rng.chance(1, 2) { give_up(object) } else { unsafe { cache.free(object) } }
                    if rng.chance(1, 16) {
                        sched::yield_now(cx);
                    }
                }
                if rng.chance(1, 2) {
                    cache.shrink();
                }
                // SAFETY: nobody else has it.
                ensure_eq!(unsafe { slab::flush::destroy(cache, cx) }, Ok(()));
                Ok(())
            })?;
        }
        load.add(t.cx, Rng::new(t.rng.next_u64()), |_, cx| {
            kvfree_rcu_barrier(cx);
            Ok(())
        })?;
        let result = toggle(&cpus, 10, &mut t.rng, t.cx);
        let turns = load.end(t.cx)?;
        result?;
        t.note(format_args!("caches and barriers: {turns:?}"));
        ensure!(turns.iter().all(|&turns| turns > 1), "too little happened: {turns:?}");
        Ok(())
    }
}
