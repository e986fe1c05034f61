//! Readers against `kfree_rcu` in a [`Field`]; and a flood does not run the machine out of memory.
//!
//! How long a test goes on is counted in objects, since a host may be slow.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arch::{clock, cpu, irq};
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::kvfree_rcu_barrier;
use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache};
use sync::{ATOMIC, MaySleep, Rng};

use crate::field::{Field, LIVE};
use crate::kfree::{Way, cache, ensure_all_back, stamp, with_each_back_end};
use crate::together::Urgent;
use crate::toggle::{MS, off, on, others, spawn};
use crate::{Failure, Test, ensure, ensure_eq, ktest};

/// Objects that each updater replaces.
const TURNS: usize = 1_000;
/// The same where there is time.
const LONG_TURNS: usize = 50_000;
/// Sections that judge them at least.
const MIN_SECTIONS: u64 = 50;
/// Bytes of the objects, and of the areas, of a flood.
const OBJECT: usize = 1024;
const AREA: usize = 20_000;
/// Bytes of a short flood.
const FLOOD: usize = 6 << 20;
/// Pages that may be in use after a flood and were not before, such as page tables of areas: after a short one, and after one
/// that lasts.
const FEW: usize = 8;
const MANY: usize = 256;

/// What goes on beside readers and updaters.
type Meanwhile = fn(&mut Test<'_>) -> Result<(), Failure>;

fn torture(t: &mut Test<'_>, name: &'static str, turns: usize, meanwhile: Meanwhile) -> Result<(), Failure> {
    let cache = cache(name)?;
    let field = Field::new(cache);
    let cpus: Vec<_> = cpu::online().iter().collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut readers, mut updaters) = (Vec::new(), Vec::new());
    for n in 0..2 * cpus.len() {
        let (field, stop, rng) = (field.clone(), stop.clone(), Rng::new(t.rng.next_u64()));
        // Some may move from CPU to CPU.
        let on = (n % 4 != 3).then(|| cpus[n % cpus.len()]);
        readers.push(spawn(t.cx, on, move |cx| field.read(rng, cx, |_| stop.load(Relaxed)))?);
    }
    let each = turns * 4 / cpus.len().max(4);
    for (n, &on) in cpus.iter().enumerate() {
        let (field, rng) = (field.clone(), Rng::new(t.rng.next_u64()));
        let on = (n % 4 != 2).then_some(on);
        updaters.push(spawn(t.cx, on, move |cx| {
            let mut left = each;
            field.update(rng, cx, |_| {
                // On until readers have had as many sections as judge them.
                let over = left == 0 && field.sections.load(Relaxed) >= MIN_SECTIONS;
                left = left.saturating_sub(1);
                over
            });
        })?);
    }
    let result = meanwhile(t);
    updaters.into_iter().for_each(|thread| thread.join(t.cx));
    stop.store(true, Relaxed);
    readers.into_iter().for_each(|thread| thread.join(t.cx));
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    ensure_eq!(
        count(&field.broken),
        0,
        "sections whose object changed, of {}, after {} objects; the first from {:#x} to {:#x}",
        count(&field.sections),
        count(&field.replaced),
        count(&field.was),
        count(&field.became)
    );
    result?;
    field.clear(t.cx);
    t.note(format_args!(
        "{} sections, {} objects replaced, {} times no memory",
        count(&field.sections),
        count(&field.replaced),
        count(&field.misses)
    ));
    ensure!(count(&field.replaced) + count(&field.misses) >= (each * cpus.len()) as u64, "updaters ended early");
    ensure_all_back(cache, t.cx)?;
    // SAFETY: nobody uses the cache any more.
    ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
    Ok(())
}

/// What a flood counts.
struct Flood {
    /// Bytes that threads have yet to give up.
    left: AtomicUsize,
    /// Objects that were given up.
    given: AtomicU64,
    /// Allocations that may sleep, and failed all the same.
    failed: AtomicU64,
    /// Allocations that may not sleep, and failed.
    refused: AtomicU64,
    /// The fewest pages that were free.
    least_free: AtomicUsize,
}

impl Flood {
    /// Gives up until nothing is left, as fast as this CPU can.
    fn pour(&self, cache: &RawCache, mut rng: Rng, cx: &mut MaySleep) {
        let mut n = 0_u64;
        while self.left.load(Relaxed) != 0 {
            n += 1;
            let quietly = AllocFlags::NOWAIT | AllocFlags::NOWARN;
            let (bytes, object, failures) = match rng.below(64) {
                0 => (AREA, mm::vmalloc(AREA, cx).ok(), &self.failed),
                1..16 => (cache.size(), cache.alloc(quietly), &self.refused),
                _ => (cache.size(), cache.alloc_sleep(AllocFlags::MAY_SLEEP, cx), &self.failed),
            };
            match object {
                Some(object) => {
                    // SAFETY: allocated above, and nobody else knows it.
                    unsafe { Way::Head.give_up(stamp(object, LIVE | n), cx) };
                    self.given.fetch_add(1, Relaxed);
                }
                None => _ = failures.fetch_add(1, Relaxed),
            }
            let _ = self.left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(bytes)));
            if n.is_multiple_of(16) {
                self.least_free.fetch_min(mm::stats::free_pages(), Relaxed);
                // Where one host thread runs all CPUs, this is where another one gets its turn.
                irq::relax();
                sched::cond_resched(cx);
            }
        }
    }

    /// Sections one after the other, so that no grace period is short.
    fn read(&self, cx: &mut MaySleep) {
        while self.left.load(Relaxed) != 0 {
            let section = rcu::read_lock(ATOMIC);
            let end = clock::now_ns() + 2 * MS;
            while clock::now_ns() < end {
                irq::relax();
            }
            drop(section);
            sched::sleep_ns(cx, MS);
        }
    }
}

/// Pages that somebody has, when nothing waits and caches keep nothing for later.
fn pages_in_use(cx: &mut MaySleep) -> usize {
    kvfree_rcu_barrier(cx);
    slab::registry::for_each_unlocked(cx, |cache| _ = cache.shrink());
    rcu::rcu_barrier(cx);
    mm::vmalloc::purge(cx);
    mm::stats::nodes().map(|node| node.in_use()).sum()
}

/// Floods until one has left nothing behind; what a flood needs and keeps, such as page tables, is there after a few. Then
/// perhaps one that lasts `ns`.
fn flood(t: &mut Test<'_>, back_end: BackEnd, ns: u64) -> Result<(), Failure> {
    let layout = Layout::new("test_flood", OBJECT).flags(CacheFlags::NO_MERGE);
    let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
    let mut pages = Vec::from([pages_in_use(t.cx)]);
    while pages.len() < 2 || pages[pages.len() - 1] > pages[pages.len() - 2] + FEW {
        ensure!(pages.len() < 10, "pages in use before and after each flood: {pages:?}");
        pour(t, cache, FLOOD, 0)?;
        pages.push(pages_in_use(t.cx));
    }
    if ns != 0 {
        // The first half leaves the page tables of all the areas that were there at once.
        for _ in 0..2 {
            pour(t, cache, 0, ns / 2)?;
            pages.push(pages_in_use(t.cx));
        }
    }
    t.note(format_args!("{}: pages in use before and after each flood: {pages:?}", back_end.name()));
    let [.., before, after] = pages[..] else { unreachable!("at least two") };
    ensure!(after <= before + MANY, "{before} pages in use before the last flood, {after} after it");
    ensure_all_back(cache, t.cx)?;
    // SAFETY: nobody uses the cache any more.
    ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
    Ok(())
}

/// Every CPU gives up objects of `cache` and areas; returns when all threads have ended.
fn pour(t: &mut Test<'_>, cache: &'static RawCache, bytes: usize, ns: u64) -> Result<(), Failure> {
    kvfree_rcu_barrier(t.cx);
    let free = mm::stats::free_pages();
    let flood = Arc::new(Flood {
        left: AtomicUsize::new(if ns == 0 { bytes } else { usize::MAX / 2 }),
        given: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        least_free: AtomicUsize::new(free),
    });
    let reader = flood.clone();
    let mut threads = Vec::from([spawn(t.cx, None, move |cx| reader.read(cx))?]);
    for on in cpu::online().iter() {
        let (flood, rng) = (flood.clone(), Rng::new(t.rng.next_u64()));
        threads.push(spawn(t.cx, Some(on), move |cx| flood.pour(cache, rng, cx))?);
    }
    if ns != 0 {
        sched::sleep_ns(t.cx, ns);
        flood.left.store(0, Relaxed);
    }
    threads.into_iter().for_each(|thread| thread.join(t.cx));
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    let peak = free.saturating_sub(flood.least_free.load(Relaxed));
    t.note(format_args!(
        "{} objects given up, {} allocations that may not wait failed; at most {peak} of {free} free pages were in use",
        count(&flood.given),
        count(&flood.refused)
    ));
    ensure_eq!(count(&flood.failed), 0, "allocations that may wait failed");
    Ok(())
}

/// With that back end.
fn torture_with(t: &mut Test<'_>, back_end: BackEnd, turns: usize) -> Result<(), Failure> {
    let before = backend::current();
    backend::switch(back_end, t.cx);
    let result = torture(t, "test_torture", turns, |_| Ok(()));
    backend::switch(before, t.cx);
    result
}

ktest! {
    /// Sheaves, and pages of pointers for what they do not take.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_changes_under_a_reader_with_sheaves(t: &mut Test) {
        torture_with(t, BackEnd::Sheaf, TURNS)
    }

    /// Pages of pointers.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_changes_under_a_reader_with_pages_of_pointers(t: &mut Test) {
        torture_with(t, BackEnd::Bulk, TURNS)
    }

    /// A tracker of objects by the grace period that they wait for.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_changes_under_a_reader_with_the_tracker(t: &mut Test) {
        torture_with(t, BackEnd::Pending, TURNS)
    }

    /// A callback for each object.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_changes_under_a_reader_with_callbacks(t: &mut Test) {
        torture_with(t, BackEnd::CallRcu, TURNS)
    }

    /// While the back end is exchanged, and a CPU goes and comes with each.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn no_object_changes_under_a_reader_while_back_ends_and_cpus_change(t: &mut Test) {
        torture(t, "test_torture_change", TURNS, |t| {
            let _urgent = Urgent::new();
            with_each_back_end(t, |t, _| {
                let Ok(cpus) = others(t.cx) else { return Ok(()) };
                let cpu = cpus[t.rng.index(cpus.len())];
                off(cpu, t.cx)?;
                on(cpu, t.cx)
            })
        })
    }

    /// Each back end for longer.
    #[tags(race, slow)]
    #[budget_ms(900_000)]
    fn no_object_changes_under_a_reader_in_the_long_run(t: &mut Test) {
        BackEnd::ALL.into_iter().try_for_each(|back_end| torture_with(t, back_end, LONG_TURNS))
    }

    /// A short flood with each back end.
    #[budget_ms(60_000)]
    fn memory_is_back_when_a_flood_is_over(t: &mut Test) {
        with_each_back_end(t, |t, back_end| flood(t, back_end, 0))
    }

    /// A minute of flood with each back end.
    #[tags(slow)]
    #[budget_ms(900_000)]
    fn a_flood_of_a_minute_runs_nobody_out_of_memory(t: &mut Test) {
        with_each_back_end(t, |t, back_end| flood(t, back_end, 60_000 * MS))
    }
}
