//! Allocations that fail on purpose: plans and selections, and pieces of work each of whose allocations fails in turn ([`nth`](crate::nth)).

use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::{PAGE_SIZE, cpu};
use kfree_rcu::pending::{GivenUp, NotMade, Pending, TreeRcu};
use kfree_rcu::{RcuPtr, kfree_rcu, kfree_rcu_mightsleep, kvfree_rcu_barrier};
use mm::AllocFlags;
use sched::work::{Kind, WorkQueue};
use sched::{HotplugError, Prio};
use slab::fail::{self, FailError, Plan, Rule};
use slab::{CacheFlags, Layout, Prefilled, RawCache, Stat};
use sync::MaySleep;

use crate::nth::{busy, me, sweep};
use crate::outcome::needs_sheaves;
use crate::toggle::{on, others};
use crate::{Failure, ensure, ensure_eq, ktest};

const QUIET: AllocFlags = AllocFlags::NOWARN;

fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, 64).flags(CacheFlags::NO_MERGE)).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: each test knows its cache alone, and is done with it.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{}: {leaked:?}", cache.name()))
}

/// Which of `count` allocations one after the other fail.
fn failures(cache: &RawCache, count: usize) -> Vec<usize> {
    let mut failed = Vec::with_capacity(count);
    for number in 1..=count {
        match cache.alloc(QUIET) {
            // SAFETY: just allocated.
            Some(object) => unsafe { cache.free(object) },
            None => failed.push(number),
        }
    }
    failed
}

/// Objects of prefilled sheaves that were not to be had.
static UNKEPT: AtomicU64 = AtomicU64::new(0);

fn unkept() {
    UNKEPT.fetch_add(1, Relaxed);
}

ktest! {
    /// A plan fails what it says, of the selected cache alone, and nothing once it is over; then the sheaves are back.
    fn a_plan_fails_what_it_says_of_the_selected_cache_alone(t: &mut Test) {
        let (cache, other) = (cache("fault_plan")?, cache("fault_spared")?);
        let capacity = cache.sheaf_capacity();
        ensure_eq!(failures(cache, 100), []);
        let looks = fail::with("fault_p*", t.cx, |selection, cx| {
            let nth = selection.arm(Plan::Nth(3), me());
            let looks = (failures(cache, 10), failures(other, 10), cache.sheaf_capacity(), fail::with("*", cx, |_, _| ()));
            let counts = (nth.seen(), nth.failed());
            drop(nth);
            let rule = Rule { interval: 2, probability: 100, space: 128, times: Some(2) };
            let rule = selection.arm(Plan::Rule { rule, seed: 1 }, me());
            let of_rule = failures(cache, 10);
            drop(rule);
            (looks, counts, of_rule, failures(cache, 10))
        });
        let ((of_nth, of_other, without, second), counts, of_rule, unarmed) = looks.map_err(busy)?;
        ensure_eq!(of_nth, [3]);
        ensure_eq!(counts, (10, 1));
        ensure_eq!(of_other, [], "it is not selected");
        ensure_eq!((without, second), (0, Err(FailError::Busy)));
        // One object of 64 bytes lies within the space, the second reaches its end.
        ensure_eq!(of_rule, [3, 5]);
        ensure_eq!(unarmed, []);
        ensure_eq!(cache.sheaf_capacity(), capacity);
        ensure_eq!(failures(cache, 100), []);
        ensure_eq!(fail::with("fault_none", t.cx, |_, _| ()), Err(FailError::NoCache));
        destroy(cache, t.cx)?;
        destroy(other, t.cx)
    }

    /// The same seed fails the same allocations, another one others; another thread's are not looked at.
    fn a_seed_and_a_thread_decide_what_fails(t: &mut Test) {
        let cache = cache("fault_seed")?;
        let looks = fail::with("fault_seed", t.cx, |selection, _| {
            let run = |seed, tid| {
                let armed = selection.arm(Plan::Fraction { per_million: 200_000, seed }, tid);
                let failed = failures(cache, 200);
                drop(armed);
                failed
            };
            (run(7, me()), run(7, me()), run(8, me()), run(7, Some(u64::MAX - 1)))
        });
        let (first, again, other, nobody) = looks.map_err(busy)?;
        ensure!((10..80).contains(&first.len()), "{} of 200 failed", first.len());
        ensure_eq!(first, again);
        ensure!(first != other, "both seeds: {first:?}");
        ensure_eq!(nobody, []);
        destroy(cache, t.cx)
    }

    /// Making and destroying a cache.
    fn a_cache_is_made_or_not_whatever_allocation_fails(t: &mut Test) {
        let met = sweep("kmem_cache*,kmalloc-*,sheaf-*", t.cx, |cx| {
            match slab::create(Layout::new("fault_made", 200).flags(CacheFlags::NO_MERGE)) {
                Ok(cache) => destroy(cache, cx).map(|()| true),
                Err(slab::CreateError::NoMemory) => Ok(false),
                Err(error) => Err(crate::__failed!("{error}")),
            }
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        // The cache itself, and what it has on each node.
        ensure!(met.0 > cpu::nodes_online().count_ones().into(), "{met:?} failures");
        Ok(())
    }

    /// A burst through sheaves, none of which is to be had in turn; the objects are.
    fn objects_come_and_go_whatever_sheaf_fails(t: &mut Test) {
        let cache = cache("fault_burst")?;
        needs_sheaves(cache)?;
        let mut held: Vec<NonNull<u8>> = Vec::with_capacity(400);
        let met = sweep("sheaf-*", t.cx, |_| {
            cache.shrink();
            held.extend((0..400).filter_map(|_| cache.alloc(QUIET)));
            let got = held.len();
            // SAFETY: allocated above, each given up once.
            held.drain(..).for_each(|object| unsafe { cache.free(object) });
            Ok(got >= 399)
        })?;
        t.note(format_args!("{met:?} sheaves and pages failed"));
        ensure!(met.0 > 2 && met.1 > 2, "{met:?} failures");
        ensure!(cache.stat(Stat::AllocSlowpath) > 0, "no object came past the sheaves");
        destroy(cache, t.cx)
    }

    /// Objects for `kfree_rcu`, with and without a head: what remembers them fails, they are freed all the same.
    fn what_waits_for_a_grace_period_is_freed_whatever_allocation_fails(t: &mut Test) {
        let cache = cache("fault_rcu")?;
        let met = sweep("fault_rcu,sheaf-*,kmalloc-*", t.cx, |cx| {
            let mut all = true;
            for number in 0..40 {
                match cache.alloc(QUIET) {
                    // SAFETY: room for a head in front; given up here.
                    Some(object) if number % 8 != 0 => unsafe { kfree_rcu(object.cast::<RcuPtr>()) },
                    // SAFETY: given up here.
                    Some(object) => unsafe { kfree_rcu_mightsleep(object, cx) },
                    None => all = false,
                }
            }
            kvfree_rcu_barrier(cx);
            Ok(all)
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure!(met.0 >= 40, "{met:?} failures");
        destroy(cache, t.cx)
    }

    /// A tracker of what waits for grace periods is made and ended, or there is none.
    fn a_tracker_is_made_or_not_whatever_allocation_fails(t: &mut Test) {
        let met = sweep("kmalloc-*", t.cx, |cx| match Pending::<GivenUp>::new("fault", TreeRcu) {
            Ok(tracker) => {
                tracker.exit(cx);
                Ok(true)
            }
            Err(NotMade::NoMemory) => Ok(false),
            Err(error) => Err(crate::__failed!("{error}")),
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure!(met.0 >= 1, "{met:?} failures");
        Ok(())
    }

    /// A thread starts and ends, or there is none.
    fn a_thread_is_started_or_not_whatever_allocation_fails(t: &mut Test) {
        let met = sweep("kmalloc-*", t.cx, |cx| {
            // Its closure and its result are boxes.
            let payload = [7_u64; 20];
            match sched::spawn(cx, "fault", Prio::NORMAL, None, move |_| payload) {
                Ok(thread) => {
                    ensure_eq!(thread.join(cx), payload);
                    Ok(true)
                }
                Err(_) => Ok(false),
            }
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure!(met.0 >= 2, "{met:?} failures");
        Ok(())
    }

    /// A work queue is made and destroyed, or there is none.
    fn a_work_queue_is_made_or_not_whatever_allocation_fails(t: &mut Test) {
        let met = sweep("kmalloc-*", t.cx, |cx| {
            let Ok(queue) = WorkQueue::create(cx, "fault", Kind::PerCpu { max_active: 1 }) else { return Ok(false) };
            queue.destroy(cx);
            Ok(true)
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure!(met.0 >= 2, "{met:?} failures");
        Ok(())
    }

    /// Objects in bulk, and prefilled sheaves that are refilled: all that was asked for or nothing, and what is promised holds.
    fn a_promise_is_kept_or_not_made_whatever_allocation_fails(t: &mut Test) {
        const PROMISED: usize = 70;
        let cache = cache("fault_promise")?;
        let met = sweep("fault_promise,sheaf-*", t.cx, |_| {
            let mut places = [const { MaybeUninit::uninit() }; 100];
            let bulk = cache.alloc_bulk(&mut places, QUIET);
            let mut all = bulk.is_some();
            // SAFETY: just allocated.
            bulk.into_iter().for_each(|objects| unsafe { cache.free_bulk(objects) });
            let Some(mut sheaf) = cache.prefill(PROMISED, QUIET) else { return Ok(false) };
            let taken = |sheaf: &mut Prefilled| match sheaf.alloc(QUIET) {
                // SAFETY: just allocated.
                Some(object) => unsafe { cache.free(object) },
                None => unkept(),
            };
            (0..30).for_each(|_| taken(&mut sheaf));
            let promised = match sheaf.refill(PROMISED, QUIET) {
                Ok(more) => {
                    sheaf = more;
                    PROMISED
                }
                Err(same) => {
                    all = false;
                    sheaf = same;
                    PROMISED - 30
                }
            };
            ensure!(sheaf.size() >= promised, "{} objects of {promised}", sheaf.size());
            (0..promised).for_each(|_| taken(&mut sheaf));
            Ok(all)
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure_eq!(UNKEPT.load(Relaxed), 0, "objects that were promised and not to be had");
        ensure!(met.0 >= 4, "{met:?} failures");
        destroy(cache, t.cx)
    }

    /// A block grows through the size classes to whole pages and shrinks again; one that cannot stays as it is.
    fn a_block_is_resized_or_keeps_its_content_whatever_allocation_fails(t: &mut Test) {
        let met = sweep("kmalloc-*,sheaf-*", t.cx, |cx| {
            let mut block: Option<NonNull<u8>> = None;
            let mut all = true;
            for size in [40, 100, 700, 5_000, 20_000, 50] {
                // SAFETY: ours, and given up only if there is a new one.
                match unsafe { slab::krealloc(block, size, QUIET) } {
                    Some(new) => {
                        // SAFETY: of its 40 bytes at the least the first is ours.
                        let marked = block.is_none() || unsafe { new.read() } == 0xa7;
                        ensure!(marked, "the content is lost at {size} bytes");
                        // SAFETY: as above.
                        unsafe { new.write(0xa7) };
                        block = Some(new);
                    }
                    None => all = false,
                }
            }
            // SAFETY: ours, and given up here.
            block.into_iter().for_each(|block| unsafe { slab::kfree(block) });
            match slab::kvmalloc(100_000, QUIET, cx) {
                // SAFETY: just allocated.
                Some(block) => unsafe { slab::kvfree_sleep(block, cx) },
                None => all = false,
            }
            Ok(all)
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure!(met.0 >= 4 && met.1 >= 2, "{met:?} failures");
        Ok(())
    }

    /// Pages side by side in addresses alone.
    fn an_area_is_mapped_or_not_whatever_allocation_fails(t: &mut Test) {
        let met = sweep("*", t.cx, |cx| {
            let Ok(area) = mm::vmalloc::vmalloc_with(10 * PAGE_SIZE, None, QUIET, cx) else { return Ok(false) };
            mm::vfree(area, cx);
            Ok(true)
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        ensure!(met.1 >= 10, "{met:?} failures");
        Ok(())
    }

    /// A CPU goes and comes back, or says that it cannot and does at the next try.
    fn a_cpu_goes_and_comes_whatever_allocation_fails(t: &mut Test) {
        let others = others(t.cx)?;
        let id = others[t.rng.index(others.len())];
        let met = sweep("*", t.cx, |cx| {
            let result = sched::cpu_off(id, cx).and_then(|()| sched::cpu_on(id, cx));
            match result {
                Ok(()) => Ok(true),
                Err(HotplugError::NoMemory) => {
                    if !cpu::online().contains(id) {
                        on(id, cx)?;
                    }
                    Ok(false)
                }
                Err(error) => Err(crate::__failed!("CPU {id}: {error}")),
            }
        })?;
        t.note(format_args!("{met:?} objects and pages failed"));
        Ok(())
    }
}
