//! What builds with assertions find: objects that are given to `kfree_rcu` twice, or freed while they wait, and where.
//!
//! Each object is freed after all, once, so every test ends with all of them back.

use alloc::string::String;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use arch::trap::TrapFrame;
use arch::{cpu, ipi};
use kfree_rcu::{RcuPtr, kfree_rcu, kfree_rcu_mightsleep, kfree_rcu_nolock, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::debug::{Cure, Kind, Report};
use slab::{CacheFlags, DebugFlags, Layout, RawCache};
use sync::nmi::NmiHandler;
use sync::{ATOMIC, IrqGuard, MaySleep, Once};

use crate::outcome::needs_sheaves;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

const SIZE: usize = 64;
/// Larger than any cache serves.
const LARGE: usize = 50_000;

fn cache(name: &'static str, debug: DebugFlags) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, SIZE).debug(debug).flags(CacheFlags::NO_MERGE))
        .map_err(|error| crate::__failed!("{name}: {error}"))
}

fn alloc(cache: &RawCache) -> Result<NonNull<u8>, Failure> {
    cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory for an object of {}", cache.name()))
}

/// Gives `object` up, its first word being the head.
#[track_caller]
fn give(object: NonNull<u8>) {
    // SAFETY: what is wrong with it is what the test is about; the checks are there to notice.
    unsafe { kfree_rcu(object.cast::<RcuPtr>()) };
}

/// The one report that `code` causes.
fn the_report(code: impl FnOnce()) -> Result<Report, Failure> {
    let before = slab::debug::reports();
    code();
    let mut last = None;
    slab::debug::with_reports(|report| last = Some(*report));
    match (last, slab::debug::reports() - before) {
        (Some(report), 1) => Ok(report),
        (report, count) => Err(crate::__failed!("{count} reports, the last {report:?}")),
    }
}

/// What `code` is found to do to `object`, and that it is told who gave that up, in this file at `line`.
fn ensure_found(object: NonNull<u8>, kind: Kind, line: u32, code: impl FnOnce()) -> Result<(), Failure> {
    let report = the_report(code)?;
    ensure_eq!((report.kind, report.cure), (kind, Cure::NotFreed));
    ensure_eq!(report.object, object.as_ptr().addr());
    let given = report.given.map(|given| given.location());
    ensure!(given.is_some_and(|at| at.file() == file!() && at.line() == line), "{given:?}, not line {line}");
    ensure!(report.call.is_some(), "the second call is not known");
    Ok(())
}

/// Gives `object` up twice, by each call, and frees it while it waits, by each call; only the first does anything.
fn misuse(object: NonNull<u8>, cx: &mut MaySleep) -> Result<(), Failure> {
    // It waits as long as this.
    let section = rcu::read_lock(ATOMIC);
    give(object);
    let line = line!() - 1;
    ensure_found(object, Kind::WaitsTwice, line, || give(object))?;
    // SAFETY: as in `give`.
    ensure_found(object, Kind::WaitsTwice, line, || unsafe { kfree_rcu_nolock(object.cast()) })?;
    // SAFETY: as in `give`.
    ensure_found(object, Kind::FreedWaiting, line, || unsafe { slab::kfree(object) })?;
    // SAFETY: as in `give`.
    ensure_found(object, Kind::FreedWaiting, line, || unsafe { slab::kfree_nolock(object) })?;
    drop(section);
    kvfree_rcu_barrier(cx);
    Ok(())
}

fn ensure_all_back(cache: &'static RawCache) -> Result<(), Failure> {
    cache.shrink();
    let info = cache.info();
    ensure_eq!((info.active_objs, info.num_slabs), (0, 0), "{}", cache.name());
    Ok(())
}

ktest! {
    /// Wherever it waits: in a sheaf, or in the back end.
    fn an_object_that_waits_is_neither_given_up_again_nor_freed(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let in_sheaf = cache("waits_sheaf", DebugFlags::empty())?;
        let in_back_end = cache("waits_bulk", DebugFlags::empty())?;
        in_back_end.set_capacity(0, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        for cache in [in_sheaf, in_back_end] {
            // The second one has gone through sheaf, barn or slab before.
            for _ in 0..2 {
                misuse(alloc(cache)?, t.cx)?;
            }
            ensure_all_back(cache)?;
        }
        Ok(())
    }

    /// What has no sheaves and no bit of its use: large blocks.
    fn a_large_block_that_waits_is_neither_given_up_again_nor_freed(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        for _ in 0..2 {
            let large = slab::kmalloc(LARGE, AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?;
            misuse(large, t.cx)?;
        }
        Ok(())
    }

    /// Objects of a debug cache, which looks at its slabs, and not at the bits.
    fn an_object_of_a_debug_cache_that_waits_is_not_given_up_again(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let flags = DebugFlags::CONSISTENCY.union(DebugFlags::RED_ZONE).union(DebugFlags::STORE_USER);
        let cache = cache("waits_debug", flags)?;
        let object = alloc(cache)?;
        give(object);
        let line = line!() - 1;
        ensure_found(object, Kind::WaitsTwice, line, || give(object))?;
        // SAFETY: as in `give`.
        ensure_found(object, Kind::FreedWaiting, line, || unsafe { slab::kfree(object) })?;
        kvfree_rcu_barrier(t.cx);
        ensure_all_back(cache)
    }

    /// An object that is free may not be given up, and its report names who gave it up the time before.
    fn an_object_that_is_free_is_not_given_up(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let cache = cache("waits_free", DebugFlags::empty())?;
        needs_sheaves(cache)?;
        let object = alloc(cache)?;
        // SAFETY: ours, and given up here.
        unsafe { cache.free(object) };
        let report = the_report(|| give(object))?;
        ensure_eq!((report.kind, report.cure), (Kind::DoubleFree, Cure::NotFreed));
        let report = the_report(|| {
            // SAFETY: as in `give`.
            unsafe { kfree_rcu_mightsleep(object, t.cx) };
        })?;
        ensure_eq!(report.kind, Kind::DoubleFree);
        let object = alloc(cache)?;
        give(object);
        let line = line!() - 1;
        kvfree_rcu_barrier(t.cx);
        // SAFETY: as in `give`.
        ensure_found(object, Kind::DoubleFree, line, || unsafe { slab::kfree(object) })?;
        ensure_all_back(cache)
    }

    /// Also what an NMI gave up, on a CPU that cannot do it yet, and what it gives up twice (S1-13).
    fn an_nmi_that_gives_an_object_up_twice_is_found(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let cache = cache("waits_nmi", DebugFlags::empty())?;
        // No sheaf will take it: it goes to the deferred list.
        cache.set_capacity(0, t.cx).map_err(|error| crate::__failed!("{error}"))?;
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        let object = alloc(cache)?;
        let deferred = IrqGuard::new(ATOMIC);
        let in_nmi = || {
            let before = CALLS.load(Relaxed);
            OBJECT.store(object.as_ptr(), Relaxed);
            ipi::send_nmi(cpu::current());
            while CALLS.load(Relaxed) == before {
                arch::irq::relax();
            }
        };
        in_nmi();
        let line = NMI_LINE;
        ensure_found(object, Kind::WaitsTwice, line, in_nmi)?;
        // SAFETY: as in `give`.
        ensure_found(object, Kind::FreedWaiting, line, || unsafe { slab::kfree(object) })?;
        drop(deferred);
        kvfree_rcu_barrier(t.cx);
        ensure_all_back(cache)
    }

    /// The log has both places: where the object was given up, in the source, and the calls that lead to the second one.
    fn the_report_names_both_places(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let cache = cache("waits_log", DebugFlags::empty())?;
        let object = alloc(cache)?;
        give(object);
        let place = alloc::format!("given to kfree_rcu at {}:{}:", file!(), line!() - 1);
        let report = the_report(|| give(object))?;
        ensure!(alloc::format!("{report}").contains("Object already given to kfree_rcu"), "{report}");
        let mut log = String::new();
        // What is longer than a line goes on behind a `…` in the next.
        sync::log::for_each_line(|line| log.push_str(String::from_utf8_lossy(line).trim_start_matches('…')));
        ensure!(log.contains(&place), "the log does not say: {place}");
        ensure!(log.contains("this call on CPU"), "the log does not tell the second call");
        kvfree_rcu_barrier(t.cx);
        ensure_all_back(cache)
    }
}

/// What the NMI gives up; null for nothing.
static OBJECT: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static CALLS: AtomicUsize = AtomicUsize::new(0);
static HANDLER: NmiHandler = NmiHandler::new("kfree-rcu-debug", on_nmi);
static REGISTERED: Once<()> = Once::new();
/// Where it does.
const NMI_LINE: u32 = line!() + 6;

fn on_nmi(_: &mut TrapFrame) -> bool {
    let Some(object) = NonNull::new(OBJECT.swap(core::ptr::null_mut(), Relaxed)) else { return false };
    // SAFETY: as in `give`.
    unsafe {
        kfree_rcu_nolock(object.cast());
    }
    CALLS.fetch_add(1, Relaxed);
    true
}
