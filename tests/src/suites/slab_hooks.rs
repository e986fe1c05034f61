//! At every hook inside a locked section of the allocator somebody steps in and allocates and frees, as an NMI would that hits
//! there; and as one that does. In the profile `mutants` alone: the other builds have no hooks.

use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{cpu, ipi};
use mm::AllocFlags;
use slab::{CacheFlags, Layout};
use sync::mutants::{SITES, Site, attach};
use sync::nmi::{NmiHandler, as_nmi};
use sync::{ATOMIC, IrqGuard, MaySleep, Once, PreemptGuard};

use crate::nolock::{self, Bed, PATHS, ensure_all_back};
use crate::run::Test;
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
                objects.into_iter().for_each(|object| unsafe { kfree_rcu::kfree_rcu(object.cast()) });
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
            let Some(before) = nolock::operations_before(path, &mut bed) else { break };
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

/// What is no path of one operation, with somebody who steps in: caches come and go, and the back end of `kfree_rcu` gets
/// something to do.
fn work_around(cx: &mut MaySleep) -> Result<(), Failure> {
    LEFT.store(2_000, Relaxed);
    let attached = attach(step_in);
    ensure!(attached.is_some(), "somebody else is attached");
    let layout = Layout::new("test_hooks", 200).flags(CacheFlags::NO_MERGE);
    let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
    for _ in 0..10 {
        let Some(large) = slab::kmalloc(50_000, AllocFlags::NOWAIT) else { continue };
        // SAFETY: allocated above, given up here; the head lies at its start.
        unsafe { kfree_rcu::kfree_rcu(large.cast()) };
    }
    let mut bed = Bed::new(cache);
    bed.take(500);
    bed.give_rcu(300);
    bed.give(200);
    drop(bed);
    drop(attached);
    // SAFETY: nobody else knows the cache.
    unsafe { slab::flush::destroy(cache, cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
}
