//! At every hook inside a locked section of the allocator somebody steps in and allocates and frees, as an NMI would that hits
//! there; and as one that does. In the profile `mutants` alone: the other builds have no hooks.

use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{cpu, ipi};
use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::kfree_rcu;
use mm::AllocFlags;
use slab::rcu_return::MOST;
use slab::{CacheFlags, Layout, RawCache};
use sync::mutants::{SITES, Site, attach};
use sync::nmi::{NmiHandler, as_nmi};
use sync::{ATOMIC, IrqGuard, MaySleep, Once, PreemptGuard};

use crate::nolock::{self, Bed, Kind, PATHS, ensure_all_back};
use crate::run::Test;
use crate::toggle::{MS, spawn};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

ktest! {
    /// On every path, and where there is no path of one operation; and no hook is left out.
    #[budget_ms(60_000)]
    fn a_visit_at_any_hook_loses_nothing(t: &mut Test) {
        walk_all(step_in, t)?;
        work_around(t.cx)?;
        for site in SITES {
            t.note(format_args!("{:9} calls at {:24} {}:{}", site.calls(), site.name, site.file, site.line));
        }
        let missed = SITES.iter().filter(|site| site.calls() == 0).fold(String::new(), |line, site| line + " " + site.name);
        ensure_eq!(missed, "", "hooks that were not reached");
        Ok(())
    }

    /// The same with an NMI that a CPU sends to itself.
    #[budget_ms(60_000)]
    fn a_real_nmi_at_any_hook_of_any_path_loses_nothing(t: &mut Test) {
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        HANDLED.store(0, SeqCst);
        walk_all(strike, t)?;
        let handled = HANDLED.load(Relaxed);
        t.note(format_args!("{handled} NMIs handled"));
        ensure!(handled > 100, "only {handled} NMIs came");
        Ok(())
    }

    /// A barrier waits for a sheaf that was partly filled when it began, and that an NMI fills and defers in its midst.
    fn a_barrier_waits_for_a_sheaf_that_is_deferred_in_its_midst(t: &mut Test) {
        const SIZE: usize = 200;
        let layout = Layout::new("test_barrier_hook", SIZE).flags(CacheFlags::NO_MERGE);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        let capacity = cache.sheaf_capacity();
        let mut hits = 0;
        for _ in 0..100 {
            let mut objects: Vec<_> = (0..capacity).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
            ensure_eq!(objects.len(), capacity);
            let Some(last) = objects.pop() else { skip!("no sheaves") };
            {
                let _pin = PreemptGuard::new(ATOMIC);
                LAST_ON.store(cpu::current().index(), Relaxed);
                LAST.store(last.as_ptr(), Relaxed);
                // SAFETY: allocated above, each given up once; the head lies at its start.
                objects.into_iter().for_each(|object| unsafe { kfree_rcu(object.cast()) });
            }
            let attached = attach(fill_and_defer);
            ensure!(attached.is_some(), "somebody else is attached");
            kfree_rcu::kvfree_rcu_barrier(t.cx);
            drop(attached);
            match NonNull::new(LAST.swap(ptr::null_mut(), Relaxed)) {
                // The thread went on on another CPU.
                // SAFETY: nobody has given it up.
                Some(last) => unsafe { cache.free(last) },
                None => hits += 1,
            }
            cache.shrink();
            ensure_eq!(cache.info().active_objs, 0, "objects whose barrier is over wait for a grace period");
        }
        ensure!(hits > 0, "no barrier met a full sheaf");
        // SAFETY: nobody else knows the cache.
        unsafe { slab::flush::destroy(cache, t.cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
    }

    /// While a sheaf was made another one became the CPU's, with an object in it: that one stays.
    fn a_new_rcu_free_sheaf_gives_way_to_one_that_came_meanwhile(t: &mut Test) {
        let cache = unlocked_cache(t.cx)?;
        let objects = [cache.alloc(AllocFlags::NOWAIT), cache.alloc(AllocFlags::NOWAIT)];
        let [Some(first), Some(second)] = objects else { return Err(crate::__failed!("no memory")) };
        SECOND.store(second.as_ptr(), Relaxed);
        let free_second = |site: &'static Site| {
            if makes_rcu_free(site) && let Some(second) = NonNull::new(SECOND.swap(ptr::null_mut(), Relaxed)) {
                // SAFETY: allocated above, given up here.
                unsafe { kfree_rcu(second.cast()) };
            }
        };
        free_with(free_second, first)?;
        ensure!(SECOND.load(Relaxed).is_null(), "nobody came by");
        let fill = cpu::online().iter().filter_map(|on| cache.sheaves_on(on)?.rcu_free).map(|fill| fill.size).sum::<usize>();
        ensure_eq!(fill, 2, "objects in rcu_free sheaves");
        ensure_all_back(cache, t.cx)
    }

    /// While a sheaf was made the capacity was changed: the object goes another way.
    fn a_new_rcu_free_sheaf_of_an_old_capacity_is_not_used(t: &mut Test) {
        let here = cpu::current();
        let Some(other) = cpu::online().iter().find(|&other| other != here) else { skip!("needs 2 CPUs") };
        let cache = unlocked_cache(t.cx)?;
        let capacity = cache.sheaf_capacity();
        STAGE.store(SET_UP, SeqCst);
        let tuner = spawn(t.cx, Some(other), move |cx| {
            while STAGE.load(SeqCst) == SET_UP {
                sched::sleep_ns(cx, MS);
            }
            let new = cache.set_capacity(2 * capacity, cx);
            STAGE.store(CHANGED, SeqCst);
            new
        })?;
        let wait_for_change = |site: &'static Site| {
            // Interrupts are on here, so the other CPU can have this one's sheaves emptied.
            if makes_rcu_free(site) && STAGE.compare_exchange(SET_UP, MADE, SeqCst, SeqCst).is_ok() {
                while STAGE.load(SeqCst) != CHANGED {
                    arch::irq::relax();
                }
            }
        };
        let freed = spawn(t.cx, Some(here), move |_| match cache.alloc(AllocFlags::NOWAIT) {
            Some(object) => free_with(wait_for_change, object),
            None => Err(crate::__failed!("no memory")),
        })?
        .join(t.cx);
        let came_by = STAGE.compare_exchange(SET_UP, MADE, SeqCst, SeqCst).is_err();
        let new = tuner.join(t.cx).map_err(|error| crate::__failed!("{error}"))?;
        freed?;
        let stale = cpu::online().iter().filter_map(|on| cache.sheaves_on(on)?.rcu_free).find(|fill| fill.capacity != new);
        cache.set_capacity(capacity, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        ensure_all_back(cache, t.cx)?;
        ensure!(came_by, "nobody came by");
        ensure!(new != capacity, "the capacity stays {capacity}");
        ensure_eq!(stale, None, "a sheaf of the old capacity");
        Ok(())
    }
}

/// The object that fills a CPU's rcu_free sheaf, and that CPU.
static LAST: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static LAST_ON: AtomicUsize = AtomicUsize::new(0);

/// Gives the object to `kfree_rcu_nolock`, as an NMI would that comes while a barrier goes through the caches.
fn fill_and_defer(site: &'static Site) {
    let _off = IrqGuard::new(ATOMIC);
    if site.name != "slab.caches" || cpu::current().index() != LAST_ON.load(Relaxed) {
        return;
    }
    if let Some(last) = NonNull::new(LAST.swap(ptr::null_mut(), Relaxed)) {
        // SAFETY: the test gave the object up to who takes it from here; the head lies at its start.
        as_nmi(|| unsafe { kfree_rcu::kfree_rcu_nolock(last.cast()) });
    }
}

/// What the handler frees.
static SECOND: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// How far the change of a capacity has come.
static STAGE: AtomicUsize = AtomicUsize::new(MADE);
const SET_UP: usize = 0;
const MADE: usize = 1;
const CHANGED: usize = 2;

/// A cache that has no sheaf left over which could become rcu_free.
fn unlocked_cache(cx: &mut MaySleep) -> Result<&'static RawCache, Failure> {
    let cache = Kind::Small.cache();
    ensure_all_back(cache, cx)?;
    Ok(cache)
}

/// Frees an object by `kfree_rcu`, on this CPU, with `handler` attached.
fn free_with(handler: fn(&'static Site), object: NonNull<u8>) -> Result<(), Failure> {
    let attached = attach(handler);
    // SAFETY: the caller gives the object up, which has room for a head.
    unsafe { kfree_rcu(object.cast()) };
    ensure!(attached.is_some(), "somebody else is attached");
    Ok(())
}

/// Whether a sheaf has just been made here, with the sheaf lock dropped.
fn makes_rcu_free(site: &Site) -> bool {
    site.name == "slab.unlocked.rcu_free"
}

/// Visits that are left. What a visit defers is drained past hooks, where it would be deferred again, without an end.
static LEFT: AtomicUsize = AtomicUsize::new(0);

fn may_visit() -> bool {
    LEFT.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// A visit as if in an NMI.
fn step_in(_: &'static Site) {
    if !may_visit() {
        return;
    }
    let _off = IrqGuard::new(ATOMIC);
    as_nmi(nolock::visit);
}

static HANDLER: NmiHandler = NmiHandler::new("slab-hooks", on_nmi);
static REGISTERED: Once<()> = Once::new();
static DUE: AtomicBool = AtomicBool::new(false);
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// A visit in an NMI. It comes a few instructions later, still inside the section or right behind it.
fn strike(_: &'static Site) {
    if !may_visit() || DUE.swap(true, SeqCst) {
        // One is on its way, perhaps to another CPU.
        return;
    }
    let before = HANDLED.load(SeqCst);
    ipi::send_nmi(cpu::current());
    for _ in 0..100_000 {
        if HANDLED.load(SeqCst) != before {
            return;
        }
        arch::irq::relax();
    }
}

fn on_nmi(_: &mut TrapFrame) -> bool {
    if !DUE.swap(false, SeqCst) {
        return false;
    }
    nolock::visit();
    HANDLED.fetch_add(1, SeqCst);
    true
}

/// Takes every path three times, with `handler` attached while the operation runs and another call first each time.
fn walk_all(handler: fn(&'static Site), t: &mut Test<'_>) -> Result<(), Failure> {
    for path in PATHS {
        let cache = path.kind.cache();
        nolock::use_cache(cache);
        let mut bed = Bed::new(cache);
        for turn in 0..3 {
            let Some(before) = nolock::operations_before(path, &mut bed)? else { break };
            bed.begin();
            let _pin = PreemptGuard::new(ATOMIC);
            if !(path.set_up)(&mut bed) {
                break;
            }
            (0..before).for_each(|_| (path.operation)(&mut bed));
            nolock::begin_with(turn);
            LEFT.store(200, Relaxed);
            let attached = attach(handler);
            (path.operation)(&mut bed);
            ensure!(attached.is_some(), "somebody else is attached");
        }
        drop(bed);
        ensure_all_back(cache, t.cx).inspect_err(|_| log::error!("on the path: {}", path.name))?;
    }
    Ok(())
}

/// What is no path of one operation, with somebody who steps in: caches come and go, and the back ends of `kfree_rcu` get
/// something to do.
fn work_around(cx: &mut MaySleep) -> Result<(), Failure> {
    LEFT.store(2_000, Relaxed);
    let attached = attach(step_in);
    ensure!(attached.is_some(), "somebody else is attached");
    let layout = Layout::new("test_hooks", 200).flags(CacheFlags::NO_MERGE);
    let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
    let at_first = backend::current();
    for back_end in BackEnd::ALL {
        backend::switch(back_end, cx);
        for _ in 0..10 {
            let Some(large) = slab::kmalloc(50_000, AllocFlags::NOWAIT) else { continue };
            // SAFETY: allocated above, given up here; the head lies at its start.
            unsafe { kfree_rcu(large.cast()) };
        }
    }
    backend::switch(at_first, cx);
    let mut bed = Bed::new(cache);
    bed.take(500);
    bed.give_rcu(300);
    bed.give(200);
    // A sheaf that comes back large, because nobody filled it: it is left to a worker.
    cache.set_capacity(8 * MOST, cx).map_err(|error| crate::__failed!("{error}"))?;
    bed.take(4 * MOST);
    bed.give_rcu(4 * MOST);
    drop(bed);
    kfree_rcu::kvfree_rcu_barrier(cx);
    drop(attached);
    // SAFETY: nobody else knows the cache.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
}
