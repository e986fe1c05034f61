//! Torture by want of memory: each allocation of a piece of work fails in turn, the first, the second and so on, until none is left;
//! the work may then succeed or say that it could not be done, and nothing is lost.
//!
//! Objects fail for this kind's thread alone. Alone on the machine, without CPUs that go or memory that is held, pages fail, too,
//! and every cache and every page is accounted for after each sweep. Beside other kinds, each piece of work looks after the
//! caches of its own, whose end says whether an object was lost.

use alloc::sync::Arc;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kfree_rcu::pending::{Pending, TreeRcu};
use kfree_rcu::{RcuPtr, has_rcu_ptr, kvfree_rcu_barrier};
use mm::AllocFlags;
use sched::Prio;
use sched::work::{Kind, WorkQueue};
use slab::{CacheFlags, KBox, Layout, RawCache};
use sync::{MaySleep, Rng};

use super::{Ongoing, Stat, config, control};
use crate::kfree::{Way, cache, ensure_none_in_use, give_up_large, node};
use crate::nth::Sweep;
use crate::{Failure, ensure, ensure_eq, torture};

const QUIET: AllocFlags = AllocFlags::NOWARN;

/// A piece of work; true if it could be done.
type Work = fn(&mut MaySleep) -> Result<bool, Failure>;

/// Each with the caches whose objects fail.
const WORKS: [(&str, &str, Work); 8] = [
    ("cache", "kmem_cache*,kmalloc-*,sheaf-*", make_cache),
    ("burst", "sheaf-*,nth-burst,kmalloc-*", burst),
    ("promise", "sheaf-*,nth-promise", promise),
    ("resize", "kmalloc-*,sheaf-*", resize),
    ("kfree_rcu", "nth-rcu,sheaf-*,kmalloc-*", by_rcu),
    ("tracker", "kmalloc-*,sheaf-*", track),
    ("thread", "kmalloc-*", start_thread),
    ("queue", "kmalloc-*", make_queue),
];

struct FailNth {
    alone: bool,
    sweeps: AtomicU64,
    /// Failures that each piece of work met, of objects and of pages.
    objects: [AtomicU64; WORKS.len()],
    pages: [AtomicU64; WORKS.len()],
}

impl FailNth {
    fn sweep(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        let mut at = rng.index(WORKS.len());
        while !control::stutter(cx) {
            let (name, caches, work) = WORKS[at];
            let sweep = Sweep { caches, alone: self.alone, over: control::should_stop };
            let (objects, pages) = sweep.run(cx, work).map_err(|failure| crate::__failed!("{name}: {failure:?}"))?;
            self.objects[at].fetch_add(objects, Relaxed);
            self.pages[at].fetch_add(pages, Relaxed);
            self.sweeps.fetch_add(1, Relaxed);
            at = (at + 1) % WORKS.len();
        }
        Ok(())
    }
}

impl Ongoing for Arc<FailNth> {
    fn stat(&self, out: &mut Stat) {
        let met = |counts: &[AtomicU64]| counts.iter().map(|count| count.load(Relaxed)).sum::<u64>();
        out.work_of("sweeps", self.sweeps.load(Relaxed), if self.alone { WORKS.len() as u64 } else { 1 });
        out.work("points", met(&self.objects) + met(&self.pages));
        for (at, (name, ..)) in WORKS.iter().enumerate() {
            out.text(name, format_args!("{}+{}", self.objects[at].load(Relaxed), self.pages[at].load(Relaxed)));
        }
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        Ok(())
    }
}

torture! {
    /// Each allocation of a piece of work fails in turn, and nothing is lost
    fn failnth(run: &mut Run) {
        let disturbed = config::ONOFF_INTERVAL.get() != 0 || config::PRESSURE.get() != 0;
        let counts = || core::array::from_fn(|_| AtomicU64::new(0));
        let fail_nth = Arc::new(FailNth {
            alone: run.is_alone() && !disturbed,
            sweeps: AtomicU64::new(0),
            objects: counts(),
            pages: counts(),
        });
        let (shared, rng) = (fail_nth.clone(), run.rng("order"));
        run.spawn("failnth", Prio::NORMAL, None, move |cx| shared.sweep(rng, cx))?;
        Ok(fail_nth)
    }
}

/// A cache, or none where there is no memory for one.
fn try_cache(name: &'static str, size: usize) -> Result<Option<&'static RawCache>, Failure> {
    match slab::create(Layout::new(name, size).flags(CacheFlags::NO_MERGE)) {
        Ok(cache) => Ok(Some(cache)),
        Err(slab::CreateError::NoMemory) => Ok(None),
        Err(error) => Err(crate::__failed!("{error}")),
    }
}

fn destroy(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: of the caches here nobody but the work that made it knows, and it is done with it.
    ensure_eq!(unsafe { slab::flush::destroy(cache, cx) }, Ok(()), "{}", cache.name());
    Ok(())
}

fn make_cache(cx: &mut MaySleep) -> Result<bool, Failure> {
    let Some(cache) = try_cache("nth-cache", 200)? else { return Ok(false) };
    destroy(cache, cx).map(|()| true)
}

/// Objects through sheaves and the barn.
fn burst(cx: &mut MaySleep) -> Result<bool, Failure> {
    let Some(cache) = try_cache("nth-burst", 256)? else { return Ok(false) };
    let mut places = [const { MaybeUninit::uninit() }; 60];
    let mut all = true;
    let mut held = [None; 60];
    for place in &mut held {
        *place = cache.alloc(QUIET);
        all &= place.is_some();
    }
    match cache.alloc_bulk(&mut places, QUIET) {
        // SAFETY: just allocated.
        Some(objects) => unsafe { cache.free_bulk(objects) },
        None => all = false,
    }
    // SAFETY: allocated above, each given up once.
    held.into_iter().flatten().for_each(|object| unsafe { cache.free(object) });
    destroy(cache, cx).map(|()| all)
}

/// Prefilled sheaves keep what they promise.
fn promise(cx: &mut MaySleep) -> Result<bool, Failure> {
    const PROMISED: usize = 70;
    let Some(cache) = try_cache("nth-promise", 96)? else { return Ok(false) };
    let mut all = false;
    let mut unkept = 0;
    if let Some(sheaf) = cache.prefill(PROMISED, QUIET) {
        let mut sheaf = match sheaf.refill(PROMISED + 10, QUIET) {
            Ok(more) => {
                all = true;
                more
            }
            Err(same) => same,
        };
        for _ in 0..PROMISED {
            match sheaf.alloc(QUIET) {
                // SAFETY: just allocated.
                Some(object) => unsafe { cache.free(object) },
                None => unkept += 1,
            }
        }
    }
    destroy(cache, cx)?;
    ensure_eq!(unkept, 0, "objects that were promised and not to be had");
    Ok(all)
}

/// A block grows through the size classes to whole pages, shrinks, and keeps its content; then an area.
fn resize(cx: &mut MaySleep) -> Result<bool, Failure> {
    let mut block: Option<NonNull<u8>> = None;
    let (mut all, mut whole) = (true, true);
    for size in [40, 100, 700, 5_000, 20_000, 50] {
        // SAFETY: ours, and given up only if there is a new one.
        let Some(new) = (unsafe { slab::krealloc(block, size, QUIET) }) else {
            all = false;
            continue;
        };
        // SAFETY: the first of its 40 bytes at the least is ours; as below.
        whole &= block.is_none() || unsafe { new.read() } == 0xa7;
        // SAFETY: as above.
        unsafe { new.write(0xa7) };
        block = Some(new);
    }
    // SAFETY: ours, and given up here.
    block.into_iter().for_each(|block| unsafe { slab::kfree(block) });
    match slab::kvmalloc(100_000, QUIET, cx) {
        // SAFETY: just allocated.
        Some(block) => unsafe { slab::kvfree_sleep(block, cx) },
        None => all = false,
    }
    ensure!(whole, "content is lost");
    Ok(all)
}

/// Objects in every way to `kfree_rcu`, and what no sheaf takes.
fn by_rcu(cx: &mut MaySleep) -> Result<bool, Failure> {
    // Without memory for a cache there is nothing to look at.
    let Ok(cache) = cache("nth-rcu") else { return Ok(false) };
    let mut all = true;
    for (at, way) in Way::ALL.into_iter().cycle().take(60).enumerate() {
        match node(cache) {
            // One that needs a grace period is enough.
            // SAFETY: allocated above, and nobody else knows it; as below.
            Some(node) if at < Way::ALL.len() => unsafe { way.give_up(node, cx) },
            // SAFETY: as above.
            Some(node) => unsafe { Way::Head.give_up(node, cx) },
            None => all = false,
        }
    }
    all &= give_up_large(20_000, false, cx);
    all &= give_up_large(20_000, true, cx);
    kvfree_rcu_barrier(cx);
    ensure_none_in_use(cache, cx)?;
    destroy(cache, cx).map(|()| all)
}

/// What waits in a tracker.
struct Tracked {
    rcu: RcuPtr,
    content: [u64; 3],
}

has_rcu_ptr!(Tracked, rcu);

fn track(cx: &mut MaySleep) -> Result<bool, Failure> {
    let Ok(tracker) = Pending::<KBox<Tracked>>::new("nth-tracker", TreeRcu) else { return Ok(false) };
    let (mut all, mut refused) = (true, 0);
    for n in 0..40 {
        match KBox::try_new(Tracked { rcu: RcuPtr::new(), content: [n; 3] }, QUIET) {
            Ok(tracked) if tracked.content == [n; 3] => refused += usize::from(tracker.enqueue(tracked).is_err()),
            Ok(_) => return Err(crate::__failed!("a fresh box has other content")),
            Err(_) => all = false,
        }
    }
    let waiting = tracker.waiting().objects;
    tracker.exit(cx);
    ensure_eq!(refused, 0, "objects with a link that were not taken, {waiting} were");
    Ok(all)
}

fn start_thread(cx: &mut MaySleep) -> Result<bool, Failure> {
    // Its closure and its result are boxes.
    let payload = [7_u64; 20];
    let Ok(thread) = sched::spawn(cx, "nth", Prio::NORMAL, None, move |_| payload) else { return Ok(false) };
    ensure_eq!(thread.join(cx), payload);
    Ok(true)
}

fn make_queue(cx: &mut MaySleep) -> Result<bool, Failure> {
    let Ok(queue) = WorkQueue::create(cx, "nth", Kind::PerCpu { max_active: 1 }) else { return Ok(false) };
    queue.destroy(cx);
    Ok(true)
}
