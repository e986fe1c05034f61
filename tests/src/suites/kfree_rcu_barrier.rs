//! The barriers of `kfree_rcu`: what they wait for, in whatever stage it is, and what they leave alone; and that a cache may
//! be destroyed with its objects in any stage.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use arch::cpu;
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::{kfree_rcu_object, kvfree_rcu_barrier, kvfree_rcu_barrier_on_cache};
use sched::Prio;
use slab::{CacheFlags, Layout, RawCache};
use sync::{ATOMIC, IrqGuard, MaySleep};

use crate::kfree::{
    Node, Way, cache, ensure_all_back, ensure_none_in_use, give_up_large, give_up_many, node, with_each_back_end,
};
use crate::outcome::needs_sheaves;
use crate::together::{BoostDelay, soon};
use crate::toggle::{MS, off, on, others, spawn};
use crate::{Failure, Test, ensure, ensure_eq, ktest};

/// Bytes of a block that no sheaf takes.
const LARGE: usize = 40_000;

/// Has the CPUs' sheaves of a cache flushed.
type Flush = fn(&'static RawCache, &mut Test<'_>) -> Result<(), Failure>;

/// A cache of nodes that has no sheaves.
fn plain_cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, size_of::<Node>()).flags(CacheFlags::NO_MERGE | CacheFlags::NO_SHEAVES);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// Objects in rcu_free sheaves of CPUs.
fn in_rcu_free(cache: &'static RawCache) -> usize {
    cpu::online().iter().filter_map(|on| cache.sheaves_on(on)?.rcu_free).map(|fill| fill.size).sum()
}

/// A thread that is inside a reader from before [`new`](Self::new) returns until [`leave`](Self::leave).
struct Reader {
    leave: Arc<AtomicBool>,
    thread: sched::JoinHandle<()>,
    /// None: it waits for who may have one CPU with it.
    _unboosted: BoostDelay,
}

impl Reader {
    fn new(cx: &mut MaySleep) -> Result<Reader, Failure> {
        let unboosted = BoostDelay::new(0);
        let (entered, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (is_in, go) = (entered.clone(), leave.clone());
        let thread = spawn(cx, None, move |cx| {
            let _section = rcu::read_lock(cx);
            is_in.store(true, SeqCst);
            while !go.load(SeqCst) {
                arch::irq::relax();
            }
        })?;
        while !entered.load(SeqCst) {
            sched::yield_now(cx);
        }
        Ok(Reader { leave, thread, _unboosted: unboosted })
    }

    fn leave(self, cx: &mut MaySleep) {
        self.leave.store(true, SeqCst);
        self.thread.join(cx);
    }
}

/// Has each CPU leave objects of `cache` in every stage: sheaves on their way through a grace period, one that is not full,
/// the deferred lists, and the back end.
fn leave_in_every_stage(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    for on in cpu::online().iter() {
        spawn(cx, Some(on), move |cx| {
            // Two sheaves and some.
            give_up_many(cache, 2 * cache.sheaf_capacity() + 7, cx);
            give_up_large(LARGE, false, cx);
            give_up_large(LARGE, true, cx);
            // What is given up last stays deferred until interrupts are on again, and perhaps for a while longer.
            let _irqs_off = IrqGuard::new(ATOMIC);
            for _ in 0..cache.sheaf_capacity() + 3 {
                let Some(node) = crate::kfree::node_nolock(cache) else { return };
                // SAFETY: allocated above, and nobody else knows it.
                unsafe { kfree_rcu::kfree_rcu_nolock(crate::kfree::head(node)) };
            }
        })?
        .join(cx);
    }
    Ok(())
}

/// While a reader is in its section, does `before` and then starts `waits`, which must not end before the reader does. Returns
/// what it returned.
fn outlasts_a_reader<T: Send + 'static>(
    cx: &mut MaySleep,
    before: impl FnOnce(&mut MaySleep) -> Result<(), Failure>,
    waits: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<T, Failure> {
    let reader = Reader::new(cx)?;
    let (begun, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_begun, is_done) = (begun.clone(), done.clone());
    let waits = move |cx: &mut MaySleep| {
        is_begun.store(true, SeqCst);
        let result = waits(cx);
        is_done.store(true, SeqCst);
        result
    };
    // More urgent than the reader, which may have the only CPU.
    let thread = before(cx)
        .and_then(|()| sched::spawn(cx, "waits", Prio::HIGH, None, waits).map_err(|error| crate::__failed!("{error}")));
    if thread.is_ok() {
        soon(cx, || begun.load(SeqCst));
        sched::sleep_ns(cx, 10 * MS);
    }
    let too_early = done.load(SeqCst);
    reader.leave(cx);
    let result = thread?.join(cx);
    ensure!(!too_early, "it did not wait for the reader");
    Ok(result)
}

ktest! {
    /// Whatever stage the objects are in.
    fn the_barrier_waits_for_a_reader_and_then_nothing_is_left(t: &mut Test) {
        let (with, without) = (cache("test_bar_stages")?, plain_cache("test_bar_plain")?);
        with_each_back_end(t, |t, _| {
            outlasts_a_reader(
                t.cx,
                |cx| {
                    leave_in_every_stage(with, cx)?;
                    leave_in_every_stage(without, cx)
                },
                kvfree_rcu_barrier,
            )?;
            ensure_eq!(backend::waiting().objects, 0, "objects wait in the back end");
            ensure_none_in_use(with, t.cx)?;
            ensure_none_in_use(without, t.cx)
        })?;
        ensure_all_back(with, t.cx)?;
        ensure_all_back(without, t.cx)
    }

    /// With objects in every stage on every CPU, and a reader that may still look at them.
    fn a_cache_is_destroyed_with_objects_in_every_stage(t: &mut Test) {
        with_each_back_end(t, |t, _| {
            for make in [cache, plain_cache] {
                let cache = make("test_bar_destroy")?;
                let destroyed = outlasts_a_reader(
                    t.cx,
                    |cx| leave_in_every_stage(cache, cx),
                    // SAFETY: nobody uses the cache any more.
                    move |cx| unsafe { slab::flush::destroy(cache, cx) },
                )?;
                ensure_eq!(destroyed, Ok(()));
            }
            Ok(())
        })
    }

    /// While a switch waits for a reader, and new objects go elsewhere already, a barrier waits for those in the old back end.
    fn a_barrier_in_the_midst_of_a_switch_waits_for_the_old_back_end(t: &mut Test) {
        let (cache, before) = (cache("test_bar_switch")?, backend::current());
        let pairs = [(BackEnd::Bulk, BackEnd::CallRcu), (BackEnd::CallRcu, BackEnd::Pending), (BackEnd::Pending, BackEnd::Sheaf)];
        for (from, to) in pairs {
            backend::switch(from, t.cx);
            let mut switching = None;
            let waited = outlasts_a_reader(
                t.cx,
                |cx| {
                    ensure!(give_up_many(cache, 50, cx) > 0, "no memory");
                    let switch = move |cx: &mut MaySleep| backend::switch(to, cx);
                    switching = Some(sched::spawn(cx, "switch", Prio::HIGH, None, switch));
                    soon(cx, || backend::current() == to);
                    Ok(())
                },
                kvfree_rcu_barrier,
            );
            if let Some(Ok(thread)) = switching {
                thread.join(t.cx);
            }
            backend::switch(before, t.cx);
            waited?;
            ensure_none_in_use(cache, t.cx)?;
        }
        ensure_all_back(cache, t.cx)
    }

    /// A CPU whose main sheaf is empty has that one taken as well (S0-13).
    fn a_cache_is_destroyed_with_an_empty_sheaf_on_a_cpu(t: &mut Test) {
        let cache = cache("test_bar_empty")?;
        needs_sheaves(cache)?;
        let here = cpu::current();
        let given = spawn(t.cx, Some(here), move |cx| {
            let mut nodes = Vec::new();
            // As many as there are in main after the first.
            nodes.extend(node(cache));
            let rest = cache.sheaves_on(here).map_or(0, |fill| fill.main.size);
            nodes.extend((0..rest).filter_map(|_| node(cache)));
            // SAFETY: allocated here, and nobody else knows them.
            nodes.into_iter().for_each(|node| unsafe { Way::Head.give_up(node, cx) });
        })?;
        given.join(t.cx);
        let main = cache.sheaves_on(here).map(|fill| fill.main);
        ensure!(main.is_some_and(|main| main.size == 0 && main.capacity != 0), "the main sheaf is not empty: {main:?}");
        // SAFETY: nobody uses the cache any more.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }

    /// A sheaf that is on its way when the barrier begins is waited for even if there is nothing to submit (S0-22).
    fn the_barrier_waits_for_sheaves_that_are_under_way_when_no_other_is(t: &mut Test) {
        let cache = cache("test_bar_flight")?;
        needs_sheaves(cache)?;
        outlasts_a_reader(
            t.cx,
            |cx| {
                let given = spawn(cx, Some(cpu::current()), move |_| {
                    let nodes: Vec<_> = (0..3 * cache.sheaf_capacity()).filter_map(|_| node(cache)).collect();
                    // SAFETY: allocated here, and nobody else knows them.
                    nodes.into_iter().for_each(|node| unsafe { kfree_rcu_object(node) });
                })?;
                given.join(cx);
                ensure_eq!(in_rcu_free(cache), 0, "the last sheaf is full");
                Ok(())
            },
            move |cx| kvfree_rcu_barrier_on_cache(cache, cx),
        )?;
        ensure_none_in_use(cache, t.cx)?;
        ensure_all_back(cache, t.cx)
    }

    /// `rcu_barrier` may return with objects waiting: they are in a sheaf, or a page, that is not full (S2-4).
    fn the_barrier_of_callbacks_leaves_what_is_no_callback_yet(t: &mut Test) {
        let (cache, before) = (cache("test_bar_callbacks")?, backend::current());
        needs_sheaves(cache)?;
        for (back_end, which) in [(BackEnd::Sheaf, "sheaf"), (BackEnd::Bulk, "page")] {
            let waiting = || if back_end == BackEnd::Sheaf { in_rcu_free(cache) } else { back_end.waiting().objects };
            backend::switch(back_end, t.cx);
            let Some(node) = node(cache) else { return Err(crate::__failed!("no memory")) };
            // SAFETY: allocated here, and nobody else knows it.
            unsafe { kfree_rcu_object(node) };
            rcu::rcu_barrier(t.cx);
            let left = waiting();
            kvfree_rcu_barrier(t.cx);
            let after = waiting();
            backend::switch(before, t.cx);
            ensure_eq!(left, 1, "a {which} that is not full was submitted by itself");
            ensure_eq!(after, 0, "objects in a {which}");
            ensure_none_in_use(cache, t.cx)?;
        }
        Ok(())
    }

    /// The barrier of a cache submits no sheaf of another (S5-6).
    fn the_barrier_of_a_cache_leaves_the_sheaves_of_others_alone(t: &mut Test) {
        let (mine, other) = (cache("test_bar_mine")?, cache("test_bar_other")?);
        needs_sheaves(mine)?;
        for cache in [mine, other] {
            let Some(node) = node(cache) else { return Err(crate::__failed!("no memory")) };
            // SAFETY: allocated here, and nobody else knows it.
            unsafe { kfree_rcu_object(node) };
        }
        kvfree_rcu_barrier_on_cache(mine, t.cx);
        ensure_eq!(in_rcu_free(other), 1, "objects in sheaves of a cache that nobody asked about");
        ensure_none_in_use(mine, t.cx)?;
        kvfree_rcu_barrier(t.cx);
        ensure_none_in_use(other, t.cx)
    }

    /// A CPU that has nothing of a cache but an rcu_free sheaf is not passed over: by a barrier, a shrink, a destroy, and when it
    /// goes offline (S0-12).
    fn a_cpu_that_has_nothing_but_an_rcu_free_sheaf_is_flushed(t: &mut Test) {
        let ways: [Flush; 3] = [
            |cache, t| {
                kvfree_rcu_barrier_on_cache(cache, t.cx);
                Ok(())
            },
            |cache, t| {
                cache.shrink();
                rcu::rcu_barrier(t.cx);
                Ok(())
            },
            |cache, t| {
                // On a machine with one CPU there are none.
                for cpu in others(t.cx).unwrap_or_default() {
                    off(cpu, t.cx)?;
                    on(cpu, t.cx)?;
                }
                // The boot CPU does not go.
                cache.shrink();
                rcu::rcu_barrier(t.cx);
                Ok(())
            },
        ];
        for way in ways {
            let cache = cache("test_bar_only")?;
            needs_sheaves(cache)?;
            leave_an_rcu_free_sheaf_alone(cache, t.cx)?;
            way(cache, t)?;
            ensure_eq!(in_rcu_free(cache), 0, "objects in rcu_free sheaves");
            ensure_none_in_use(cache, t.cx)?;
            leave_an_rcu_free_sheaf_alone(cache, t.cx)?;
            // SAFETY: nobody uses the cache any more.
            ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        }
        Ok(())
    }

    /// Each waits for what its own thread gave up, whatever back end that went to, and none hangs (S1-17).
    #[tags(race)]
    #[budget_ms(30_000)]
    fn many_barriers_at_once_each_wait_for_their_own(t: &mut Test) {
        const ROUNDS: usize = 8;
        let names = ["test_bar_many_1", "test_bar_many_2", "test_bar_many_3", "test_bar_many_4", "test_bar_many_5"];
        let mut threads = Vec::new();
        let rounds = Arc::new(AtomicUsize::new(0));
        for (n, name) in names.into_iter().enumerate() {
            let (cache, mut rng) = (cache(name)?, sync::Rng::new(t.rng.next_u64()));
            let rounds = rounds.clone();
            threads.push(spawn(t.cx, None, move |cx| {
                for _ in 0..ROUNDS {
                    for _ in 0..rng.below(100) {
                        // SAFETY: allocated here, and nobody else knows it.
                        node(cache).into_iter().for_each(|node| unsafe { Way::any(&mut rng).give_up(node, cx) });
                    }
                    match n % 2 {
                        0 => kvfree_rcu_barrier(cx),
                        _ => kvfree_rcu_barrier_on_cache(cache, cx),
                    }
                    ensure_none_in_use(cache, cx)?;
                    rounds.fetch_add(1, SeqCst);
                }
                Ok::<_, Failure>(())
            })?);
        }
        let before = backend::current();
        for back_end in BackEnd::ALL {
            backend::switch(back_end, t.cx);
            sched::sleep_ns(t.cx, MS);
        }
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join(t.cx)).collect();
        backend::switch(before, t.cx);
        results.into_iter().collect::<Result<(), Failure>>()?;
        ensure_eq!(rounds.load(SeqCst), ROUNDS * names.len());
        Ok(())
    }
}

/// Leaves each CPU with an rcu_free sheaf that has one object, and no other sheaf of `cache`.
fn leave_an_rcu_free_sheaf_alone(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    let mut nodes = Vec::new();
    for on in cpu::online().iter() {
        let node = spawn(cx, Some(on), move |_| Some(node(cache)?.as_ptr().expose_provenance()))?.join(cx);
        nodes.push((on, node.ok_or_else(|| crate::__failed!("no memory"))?));
    }
    cache.flush_cpus();
    for (on, node) in nodes {
        let give_up = |node| {
            let node = NonNull::new(ptr::with_exposed_provenance_mut::<Node>(node)).expect("an object");
            // SAFETY: allocated above, and nobody else knows it.
            unsafe { kfree_rcu_object(node) };
        };
        sync::smp::call_on(on, give_up, node, true);
    }
    ensure_eq!(in_rcu_free(cache), cpu::online_count(), "objects in rcu_free sheaves");
    Ok(())
}
