//! Emptying sheaves and barns: for a barrier, to shrink, to destroy a cache.
//!
//! A CPU's sheaves are detached by that CPU, in a call-function interrupt that only moves pointers and hands rcu_free to RCU;
//! whoever asked then flushes the others in its own context. If the interrupt hits a holder of the sheaf lock it gives up and
//! is sent again: the holder runs with preemption off and is soon done.
//!
//! A CPU that goes offline takes its sheaves with it until it is parked, and whoever took it offline flushes them
//! ([`hotplug`](crate::hotplug)). So a walk over the online CPUs finds all sheaves only while nobody goes: where that matters,
//! the walk asks for the [`CpusGuard`] as a proof (S5-2).
//!
//! Context of everything here: task or softirq, interrupts on, no lock held.
//!
//! Linux flushes from a work item on each CPU (`flush_all_cpus_locked`, `mm/slub.c`, 7.x).

use arch::CpuId;
use sched::hotplug::{CpusGuard, keep_cpus};
use sync::{MaySleep, bug, hook, smp};

use crate::Spin;
use crate::cache::{CacheFlags, RawCache};
use crate::cpu::Sheaves;
use crate::leaks;
use crate::node::CacheNode;
use crate::registry;
use crate::sheaf::{Chain, SheafRef};
use crate::slab_ref::SlabRef;

/// The sheaves of one CPU, taken off it.
#[derive(Default)]
struct Detached {
    main: Option<SheafRef>,
    spare: Option<SheafRef>,
    remote: Option<SheafRef>,
}

/// What to take off a CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    All,
    RcuFree,
}

/// Takes the sheaves of `cpu`, which are `held`; rcu_free has then been submitted (RCUF-1).
fn detach(cpu: CpuId, held: &mut Sheaves, what: What) -> Detached {
    if bug!(
        "kfree_rcu.flush_unused",
        "a flush passes over a CPU that has nothing but an rcu_free sheaf",
        "kfree_rcu_barrier.*nothing_but*"
    ) && held.main.is_bootstrap()
    {
        return Detached::default();
    }
    held.submit_rcu_free(cpu);
    if what == What::RcuFree {
        return Detached::default();
    }
    let main = if held.main.is_empty()
        && bug!(
            "kfree_rcu.empty_main_stays",
            "a flush leaves a main sheaf that is empty with its CPU",
            "kfree_rcu_barrier.*empty_sheaf*"
        ) {
        SheafRef::bootstrap()
    } else {
        core::mem::replace(&mut held.main, SheafRef::bootstrap())
    };
    Detached {
        main: Some(main).filter(|main| !main.is_bootstrap()),
        spare: held.spare.take(),
        remote: held.remote.take(),
    }
}

/// Takes the sheaves of `cache` on `cpu`; nothing is taken from a CPU that is offline.
fn detach_on(cache: &'static RawCache, cpu: CpuId, what: What) -> Detached {
    loop {
        // Nothing if somebody there is using them right now.
        match smp::run_on(cpu, || cache.sheaves().map(|mut held| detach(cpu, &mut held, what))) {
            Some(Some(detached)) => {
                hook!("slab.unlocked.flushed");
                return detached;
            }
            Some(None) => arch::irq::relax(),
            None => return Detached::default(),
        }
    }
}

impl RawCache {
    /// Submits every CPU's partly filled rcu_free sheaf (S0-12): what a barrier does before it waits.
    pub fn flush_rcu_free(&'static self, _cpus: &CpusGuard) {
        for cpu in arch::cpu::online().iter() {
            detach_on(self, cpu, What::RcuFree);
        }
    }

    /// Gives all objects in CPUs' sheaves back to their slabs; rcu_free sheaves go to RCU. Without a [`CpusGuard`] it may
    /// return before what was on a CPU that goes offline meanwhile has gone back. Returns how many pages went back to
    /// the page allocator.
    pub fn flush_cpus(&'static self) -> usize {
        if self.flags().contains(CacheFlags::NO_SHEAVES) {
            return 0;
        }
        arch::cpu::online().iter().map(|cpu| self.put_away(detach_on(self, cpu, What::All))).sum()
    }

    /// The same for a CPU that is offline.
    ///
    /// # Safety
    /// `cpu` is parked, and stays so meanwhile.
    pub(crate) unsafe fn flush_parked(&'static self, cpu: CpuId) {
        // SAFETY: the copy was made with the cache and lives as long.
        let sheaves = unsafe { &(*self.cpu().ptr_on(cpu)).sheaves };
        debug_assert!(!sheaves.is_locked(), "CPU-3: CPU {cpu} went offline inside of {}", self.name());
        // SAFETY: by the caller nobody uses them but us, who clean up after a dead CPU (CPU-1).
        self.put_away(detach(cpu, unsafe { &mut *sheaves.as_ptr() }, What::All));
    }

    fn put_away(&self, detached: Detached) -> usize {
        [detached.main, detached.spare, detached.remote]
            .into_iter()
            .flatten()
            .map(|sheaf| self.flush_and_free(sheaf))
            .sum()
    }

    /// Gives all objects in barns back to their slabs. Returns how many pages went back to the page allocator.
    pub fn flush_barns(&self) -> usize {
        self.nodes().map(|node| self.put_away_chains(node.barn.drain())).sum()
    }

    /// Gives sheaves that left a barn, (full, empty), back to their slabs. Returns how many pages went back.
    pub(crate) fn put_away_chains(&self, (full, empty): (Chain, Chain)) -> usize {
        full.map(|sheaf| self.flush_and_free(sheaf)).sum::<usize>()
            + empty.map(|sheaf| sheaf.free(Spin::May)).sum::<usize>()
    }

    /// Gives back every page that holds no object in use, and moves the fullest partial slabs to the front (M-15).
    /// Returns how many pages went back to the page allocator.
    pub fn shrink(&'static self) -> usize {
        self.flush_cpus() + self.flush_barns() + self.shrink_slabs()
    }

    /// The last step of [`RawCache::shrink`]: slabs that are empty go, the fullest partial ones come first.
    pub(crate) fn shrink_slabs(&self) -> usize {
        self.nodes().map(|node| self.shrink_node(node)).sum()
    }

    fn shrink_node(&self, node: &CacheNode) -> usize {
        /// Slabs with more free objects than this are not sorted.
        const PROMOTED: usize = 32;
        let mut empty: Option<SlabRef> = None;
        let mut by_free: [Option<SlabRef>; PROMOTED + 1] = [None; PROMOTED + 1];
        let mut partial = node.lock(Spin::May).expect("waited for");
        let mut next = partial.first();
        while let Some(slab) = next {
            next = slab.next();
            let state = slab.state();
            let free = state.free() as usize;
            let pile = if state.inuse == 0 {
                &mut empty
            } else if free <= PROMOTED {
                &mut by_free[free]
            } else {
                continue;
            };
            partial.remove(slab);
            slab.set_next(*pile);
            *pile = Some(slab);
        }
        for pile in by_free.into_iter().rev() {
            for slab in chain(pile) {
                partial.push_front(slab);
            }
        }
        drop(partial);
        chain(empty).map(|slab| self.drop_slab(slab, Spin::May)).sum()
    }

    /// Objects that are neither free in slabs nor in sheaves of CPUs and barns: what users hold, plus what waits on RCU.
    fn leaked(&'static self) -> u64 {
        let total: u64 = self.nodes().map(CacheNode::total_objects).sum();
        let free: u64 = self.nodes().map(|node| node.free_in_partial()).sum();
        total - free
    }

    /// Whether any CPU, online or not, has a sheaf of the cache, which nobody uses any more.
    fn is_on_any_cpu(&self) -> bool {
        arch::cpu::present().iter().any(|cpu| {
            // SAFETY: the copy was made with the cache and lives as long; by the caller of `destroy` nobody has the
            // sheaves, and what CPUs did with them before is seen since they answered the flush.
            let Sheaves { main, spare, rcu_free, remote, .. } = unsafe { &*(*self.cpu().ptr_on(cpu)).sheaves.as_ptr() };
            !main.is_bootstrap() || spare.is_some() || rcu_free.is_some() || remote.is_some()
        })
    }
}

/// The slabs of a private chain. Each is read before it is given out, so it may be relinked.
fn chain(first: Option<SlabRef>) -> impl Iterator<Item = SlabRef> {
    let mut next = first;
    core::iter::from_fn(move || {
        let slab = next?;
        next = slab.next();
        Some(slab)
    })
}

/// So many objects of a cache were still in use when it was to be destroyed; the cache lives on. None, where somebody has a
/// prefilled sheaf that is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaked(pub u64);

/// What must be waited for before a cache's objects are counted. Called with the cache; set by kfree_rcu.
pub static BEFORE_DESTROY: sync::hooks::Slot<fn(&'static RawCache, &mut MaySleep)> = sync::hooks::Slot::new();

/// Destroys a cache of which all objects have been freed, or given to `kfree_rcu` (M-14, S0-13). If it has other users
/// ([`merge`](crate::merge)) it just has one less.
///
/// Only this cache's sheaves are flushed (S5-6). Frees that have returned are over, those that an NMI deferred included: whoever
/// is the last to free may say so at once, on whatever CPU, and have the cache destroyed.
///
/// Context: task; sleeps: it waits for a grace period.
///
/// # Errors
/// [`Leaked`] objects keep the cache alive; it is reported in the log.
///
/// # Safety
/// Of this user's, who is one of those that `create` gave the cache to, nobody allocates from the cache any more, and nobody
/// frees to it.
pub unsafe fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Leaked> {
    cx.assert_may_sleep();
    // A CPU that goes offline gives back what it has of the caches on the list: none goes from before this one leaves the
    // list until nothing of it is on any CPU.
    let cpus = keep_cpus(cx);
    if !registry::remove(cache, cx) {
        return Ok(());
    }
    crate::deferred::flush(&cpus, cx);
    if let Some(hook) = BEFORE_DESTROY.get()
        && !bug!(
            "kfree_rcu.destroy_no_barrier",
            "a cache is destroyed while its objects wait in the back end",
            "kfree_rcu_barrier.*destroyed*"
        )
    {
        hook(cache, cx);
    }
    cache.flush_cpus();
    drop(cpus);
    // Sheaves that were under way before, and those just submitted (S0-22).
    crate::rcu_return::wait(cx);
    if cache.srcu().is_some() {
        // Objects of a debug cache.
        cache.barrier_of_readers(cx);
    }
    cache.shrink();
    let (leaked, lent) = (cache.leaked(), cache.lent());
    if leaked != 0 || lent.sheaves != 0 {
        leaks::report(cache, leaked, lent);
        registry::add(cache);
        // While it was off the list it was not told of CPUs.
        cache.follow_cpus();
        return Err(Leaked(leaked));
    }
    if cache.flags().contains(CacheFlags::TYPESAFE_BY_RCU) {
        // Its last slabs' pages wait for a grace period.
        cache.barrier_of_readers(cx);
    }
    assert!(!cache.is_on_any_cpu(), "CPU-5: {} is destroyed while a CPU has sheaves of it", cache.name());
    // SAFETY: no objects, so no slabs are left; all sheaves were flushed; the caller vouches for the rest.
    unsafe { crate::boot::dismantle(cache) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use core::ptr::NonNull;
    use std::vec::Vec;

    use arch::hosted::in_own_process;
    use mm::AllocFlags;

    use super::*;
    use crate::test_machine::machine;
    use crate::{Layout, create};

    #[test]
    fn shrinking_drops_empty_slabs_and_puts_the_fullest_partial_ones_first() {
        in_own_process(|| {
            machine(1, 1, |cx| {
                /// How many objects of each slab are freed; all of the last.
                const FREED: [usize; 7] = [40, 3, 32, 17, 33, 1, usize::MAX];
                let cache = create(Layout::new("sorted", 64).flags(CacheFlags::NO_MERGE)).expect("a cache");
                cache.set_capacity(0, cx).expect("no sheaves");
                cache.set_min_partial(FREED.len() + 1);
                let mut slabs: Vec<(SlabRef, Vec<NonNull<u8>>)> = Vec::new();
                while cache.info().num_slabs < FREED.len() as u64 || cache.nr_partial() != 0 {
                    let object = cache.alloc(AllocFlags::NOWAIT).expect("memory");
                    let slab = SlabRef::of(object).expect("an object lies in a slab");
                    match slabs.iter_mut().find(|(other, _)| *other == slab) {
                        Some((_, objects)) => objects.push(object),
                        None => slabs.push((slab, Vec::from([object]))),
                    }
                }
                for ((_, objects), freed) in slabs.iter_mut().zip(FREED) {
                    let kept = objects.len().saturating_sub(freed);
                    // SAFETY: allocated above, each given up once.
                    objects.drain(kept..).for_each(|object| unsafe { cache.free(object) });
                }
                let pages = 1 << cache.orders().preferred;
                assert_eq!(cache.shrink(), pages, "one slab was empty");
                let node = cache.nodes().next().expect("a node");
                let free = || {
                    node.lock(Spin::May).expect("waited for").iter().map(|slab| slab.state().free()).collect::<Vec<_>>()
                };
                assert_eq!(
                    free(),
                    [1, 3, 17, 32, 40, 33],
                    "up to 32 free objects sorted, the others behind as they were"
                );
                for object in slabs.into_iter().flat_map(|(_, objects)| objects) {
                    // SAFETY: as above.
                    unsafe { cache.free(object) };
                }
                // SAFETY: nobody else knows the cache.
                assert_eq!(unsafe { destroy(cache, cx) }, Ok(()));
            });
        });
    }
}
