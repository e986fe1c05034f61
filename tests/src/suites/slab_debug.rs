//! Debug caches: damage of each kind, made on purpose, and what is reported, done about it, and counted.
//!
//! Each test has a cache of its own. One that has a slab quarantined keeps it until the machine stops.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::cpu;
use mm::AllocFlags;
use sched::Prio;
use slab::debug::{Cure, Kind, Report, Validation};
use slab::{CacheFlags, DebugFlags, Layout, RawCache};
use sync::{ATOMIC, Once};

use crate::outcome::needs_sheaves;
use crate::stepping::{self, Visit};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

const SIZE: usize = 64;
/// What `slab_debug=FZPU` says.
const FZPU: DebugFlags =
    DebugFlags::CONSISTENCY.union(DebugFlags::RED_ZONE).union(DebugFlags::POISON).union(DebugFlags::STORE_USER);
/// Behind an object of [`SIZE`] bytes lie a word of red zone, the freelist link and the deferral word.
const LINK: usize = SIZE + 8;

fn cache(name: &'static str, debug: DebugFlags) -> Result<&'static RawCache, Failure> {
    slab::create(Layout::new(name, SIZE).debug(debug).flags(CacheFlags::NO_MERGE))
        .map_err(|error| crate::__failed!("{name}: {error}"))
}

fn alloc(cache: &RawCache) -> Result<NonNull<u8>, Failure> {
    cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory for an object of {}", cache.name()))
}

fn free(cache: &RawCache, object: NonNull<u8>) {
    // SAFETY: what is wrong with it is what the test is about; the cache is there to notice.
    unsafe { cache.free(object) };
}

/// Writes a byte at `offset` from `object`.
fn poke(object: NonNull<u8>, offset: isize, byte: u8) {
    // SAFETY: inside the object's slab; damage, and meant to be.
    unsafe { object.as_ptr().offset(offset).write_volatile(byte) };
}

/// The reports of `cache` that `code` causes: the last, and how many.
fn reported(cache: &RawCache, code: impl FnOnce()) -> (Option<Report>, u64) {
    let (before, first) = (cache.reports(), slab::debug::reports());
    code();
    let mut last = None;
    slab::debug::with_reports(|report| {
        if report.cache == cache.name() && report.number > first {
            last = Some(*report);
        }
    });
    (last, cache.reports() - before)
}

/// The one report of `cache` that `code` causes.
fn the_report(cache: &RawCache, code: impl FnOnce()) -> Result<Report, Failure> {
    match reported(cache, code) {
        (Some(report), 1) => Ok(report),
        (report, count) => Err(crate::__failed!("{count} reports of {}, the last {report:?}", cache.name())),
    }
}

/// Whether `report` says this of bytes.
fn ensure_bytes(
    report: &Report,
    object: NonNull<u8>,
    offset: isize,
    len: usize,
    bytes: (u8, u8),
) -> Result<(), Failure> {
    ensure_eq!(report.object, object.as_ptr().addr());
    ensure_eq!((report.offset, report.len), (offset, len));
    ensure_eq!((report.found, report.expected), (bytes.0.into(), bytes.1.into()));
    Ok(())
}

/// The cache does what a cache does: hands out a few slabs' worth of objects, each once, and takes them back.
fn ensure_works(cache: &RawCache) -> Result<(), Failure> {
    let count = 3 * cache.info().objperslab;
    let (last, reports) = {
        let mut held = Vec::with_capacity(count);
        let seen = reported(cache, || held.extend((0..count).filter_map(|_| cache.alloc(AllocFlags::NOWAIT))));
        ensure_eq!(held.len(), count);
        held.sort();
        ensure!(held.windows(2).all(|pair| pair[0] != pair[1]), "an object of {} was handed out twice", cache.name());
        held.into_iter().for_each(|object| free(cache, object));
        seen
    };
    ensure_eq!(reports, 0, "{last:?}");
    Ok(())
}

/// Every page has gone back.
fn ensure_all_back(cache: &'static RawCache) -> Result<(), Failure> {
    cache.shrink();
    let info = cache.info();
    ensure_eq!((info.active_objs, info.num_slabs), (0, 0));
    Ok(())
}

ktest! {
    /// Bytes behind an object, found when it is freed.
    fn a_write_behind_an_object_is_reported_and_the_object_withheld(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_right", FZPU)?;
        let object = alloc(cache)?;
        poke(object, 64, 0x41);
        poke(object, 66, 0x42);
        let report = the_report(cache, || free(cache, object))?;
        ensure_eq!((report.kind, report.cure), (Kind::RightRedZone, Cure::NotFreed));
        ensure_bytes(&report, object, 64, 3, (0x41, 0xcc))?;
        ensure!(report.allocated.frames().count() > 2, "no backtrace: {:?}", report.allocated);
        ensure!(!report.freed.is_some(), "freed by nobody yet");
        ensure_works(cache)?;
        // The red zone has been drawn again, so the next free is a good one.
        ensure_eq!(reported(cache, || free(cache, object)).1, 0);
        ensure_all_back(cache)
    }

    /// Bytes before an object.
    fn a_write_before_an_object_is_reported_and_the_object_withheld(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_left", FZPU)?;
        let object = alloc(cache)?;
        poke(object, -1, 0);
        let report = the_report(cache, || free(cache, object))?;
        ensure_eq!((report.kind, report.cure), (Kind::LeftRedZone, Cure::NotFreed));
        ensure_bytes(&report, object, -1, 1, (0, 0xcc))?;
        ensure_works(cache)
    }

    /// Room between objects that belongs to nobody.
    fn a_write_between_objects_is_reported(t: &mut Test) {
        t.damages_slabs = true;
        let layout = Layout::new("dbg_padding", SIZE).align(256).debug(DebugFlags::POISON);
        let cache = slab::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        if cache.debug() != DebugFlags::POISON {
            skip!("slab_debug= puts something else there");
        }
        let object = alloc(cache)?;
        poke(object, 255, 7);
        let report = the_report(cache, || free(cache, object))?;
        ensure_eq!((report.kind, report.cure), (Kind::Padding, Cure::NotFreed));
        ensure_bytes(&report, object, 255, 1, (7, 0x5a))?;
        ensure_works(cache)
    }

    /// A write after free is found by the next allocation; the slab is used no more.
    fn a_write_after_free_is_found_and_its_slab_quarantined(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_poison", FZPU)?;
        let (other, object) = (alloc(cache)?, alloc(cache)?);
        free(cache, object);
        poke(object, 10, 1);
        let mut next = None;
        let report = the_report(cache, || next = cache.alloc(AllocFlags::NOWAIT))?;
        ensure_eq!((report.kind, report.cure), (Kind::Poison, Cure::Quarantined));
        ensure_bytes(&report, object, 10, 1, (1, 0x6b))?;
        ensure!(report.freed.frames().count() > 2 && report.freed != report.allocated, "no backtrace of the free");
        let next = next.ok_or_else(|| crate::__failed!("nothing was handed out instead"))?;
        let (slab, pages) = (object.as_ptr().addr() & !4095, 4096 * cache.info().pagesperslab);
        let is_in_it = |object: NonNull<u8>| object.as_ptr().addr().wrapping_sub(slab) < pages;
        ensure!(!is_in_it(next), "the damaged slab is still in use");
        // All of its objects count as in use, and frees of them are ignored.
        let before = cache.info();
        ensure_eq!(reported(cache, || free(cache, other)).1, 0);
        ensure_eq!(cache.info().active_objs, before.active_objs);
        ensure_works(cache)?;
        let mut held = Vec::new();
        for _ in 0..3 * before.objperslab {
            held.push(alloc(cache)?);
        }
        ensure!(!held.iter().copied().any(is_in_it), "the damaged slab is in use again");
        held.push(next);
        held.into_iter().for_each(|object| free(cache, object));
        cache.shrink();
        ensure_eq!(cache.info().num_slabs, 1, "the quarantined slab, and no other");
        Ok(())
    }

    /// The last byte of a free object has a mark of its own.
    fn a_write_to_the_last_byte_of_a_free_object_is_found(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_end", FZPU)?;
        let object = alloc(cache)?;
        free(cache, object);
        poke(object, 63, 0x6b);
        let report = the_report(cache, || _ = cache.alloc(AllocFlags::NOWAIT))?;
        ensure_eq!(report.kind, Kind::Poison);
        ensure_bytes(&report, object, 63, 1, (0x6b, 0xa5))?;
        ensure_works(cache)
    }

    /// New objects have a content that shows they were never written.
    fn an_object_comes_filled_as_not_yet_written(_t: &mut Test) {
        let cache = cache("dbg_unused", DebugFlags::POISON)?;
        let object = alloc(cache)?;
        // SAFETY: an object of SIZE bytes, ours.
        let content = unsafe { core::slice::from_raw_parts(object.as_ptr(), SIZE) };
        ensure!(content.iter().all(|&byte| byte == 0x5a), "{content:x?}");
        free(cache, object);
        let object = cache.alloc(AllocFlags::ZERO).ok_or_else(|| crate::__failed!("no memory"))?;
        // SAFETY: as above.
        ensure!(unsafe { core::slice::from_raw_parts(object.as_ptr(), SIZE) }.iter().all(|&byte| byte == 0));
        free(cache, object);
        ensure_all_back(cache)
    }

    /// The second free is not carried out, and the report knows the first.
    fn a_double_free_is_reported_and_not_carried_out(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_double", FZPU)?;
        let (held, object) = (alloc(cache)?, alloc(cache)?);
        free(cache, object);
        let report = the_report(cache, || free(cache, object))?;
        ensure_eq!((report.kind, report.cure), (Kind::DoubleFree, Cure::NotFreed));
        ensure_eq!(report.object, object.as_ptr().addr());
        ensure!(report.allocated.is_some() && report.freed.is_some());
        ensure_works(cache)?;
        free(cache, held);
        ensure_all_back(cache)
    }

    /// Not even where the object has a deferred free before it.
    fn a_double_free_by_nolock_calls_is_reported_and_not_carried_out(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_nolock", FZPU)?;
        let object = cache.alloc_nolock(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?;
        let deferred = sync::IrqGuard::new(t.cx);
        // SAFETY: as in `free`.
        let report = the_report(cache, || (0..2).for_each(|_| unsafe { slab::kfree_nolock(object) }))?;
        drop(deferred);
        ensure_eq!((report.kind, report.cure), (Kind::DoubleFree, Cure::NotFreed));
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        ensure_works(cache)?;
        // By the other call, too, and the list that it is on stays whole.
        let [object, behind] = [alloc(cache)?, alloc(cache)?];
        let deferred = sync::IrqGuard::new(t.cx);
        // SAFETY: as in `free`.
        [behind, object].into_iter().for_each(|object| unsafe { slab::kfree_nolock(object) });
        let report = the_report(cache, || free(cache, object))?;
        drop(deferred);
        ensure_eq!((report.kind, report.cure), (Kind::DoubleFree, Cure::NotFreed));
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        ensure_works(cache)?;
        // Its deferral is over: this one is found where it meets its slab.
        let report = the_report(cache, || {
            // SAFETY: as in `free`.
            unsafe { slab::kfree_nolock(object) };
            slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        })?;
        ensure_eq!(report.kind, Kind::DoubleFree);
        ensure_all_back(cache)
    }

    /// An object goes to its own cache or nowhere.
    fn a_free_to_another_cache_is_reported_and_not_carried_out(t: &mut Test) {
        t.damages_slabs = true;
        let (mine, other) = (cache("dbg_mine", FZPU)?, cache("dbg_other", FZPU)?);
        let object = alloc(mine)?;
        let report = the_report(other, || free(other, object))?;
        ensure_eq!((report.kind, report.cure), (Kind::WrongCache, Cure::NotFreed));
        ensure_eq!((report.object, report.allocated.is_some()), (object.as_ptr().addr(), true));
        ensure_works(mine)?;
        ensure_works(other)?;
        free(mine, object);
        ensure_all_back(mine)?;
        ensure_all_back(other)
    }

    /// A pointer into an object, and one in front of all.
    fn a_free_of_what_begins_no_object_is_reported_and_not_carried_out(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_inside", FZPU)?;
        let object = alloc(cache)?;
        for offset in [8, 63, -8] {
            // SAFETY: within the slab: a red zone lies in front of the object.
            let inside = unsafe { object.offset(offset) };
            let report = the_report(cache, || free(cache, inside))?;
            ensure_eq!((report.kind, report.cure), (Kind::InsideObject, Cure::NotFreed));
            ensure_eq!((report.object, report.offset), (object.as_ptr().addr(), offset));
        }
        // SAFETY: as in `free`.
        let report = the_report(cache, || unsafe { slab::kfree_nolock(object.add(8)) })?;
        ensure_eq!(report.kind, Kind::InsideObject);
        free(cache, object);
        ensure_all_back(cache)
    }

    /// Addresses that lie in no slab.
    fn a_free_of_what_is_no_object_is_reported_and_not_carried_out(t: &mut Test) {
        t.damages_slabs = true;
        static WORD: u64 = 0;
        let page = mm::alloc_pages(0, None, AllocFlags::NOWAIT).map_err(|error| crate::__failed!("{error}"))?;
        let cache = cache("dbg_no_slab", FZPU)?;
        for address in [page.virt(), (&raw const WORD).cast_mut().cast()] {
            let address = NonNull::new(address).expect("not null");
            let report = the_report(cache, || free(cache, address))?;
            ensure_eq!((report.kind, report.object), (Kind::NoObject, address.as_ptr().addr()));
            let before = slab::debug::reports();
            // SAFETY: as in `free`.
            unsafe { slab::kfree(address) };
            ensure_eq!(slab::debug::reports() - before, 1);
        }
        mm::free_pages(page, 0);
        ensure_all_back(cache)
    }

    /// A link that leads out of the slab, and one that ends the list too early.
    fn a_damaged_freelist_is_found_and_its_slab_quarantined(t: &mut Test) {
        t.damages_slabs = true;
        for (name, link, kind) in [("dbg_link", 0x1234_usize, Kind::Freelist), ("dbg_cut", 0, Kind::Counters)] {
            let cache = cache(name, FZPU)?;
            let (first, second) = (alloc(cache)?, alloc(cache)?);
            free(cache, first);
            // SAFETY: the link of a free object.
            unsafe { first.add(LINK).cast::<usize>().write_volatile(link) };
            let report = the_report(cache, || free(cache, second))?;
            ensure_eq!((report.kind, report.cure), (kind, Cure::Quarantined));
            ensure_eq!(report.object, first.as_ptr().addr());
            if kind == Kind::Freelist {
                ensure_eq!((report.offset, report.found), (LINK as isize, link as u64));
            }
            ensure_works(cache)?;
            cache.shrink();
            ensure_eq!(cache.info().num_slabs, 1, "the quarantined slab, and no other");
        }
        Ok(())
    }

    /// With sheaves on: two frees, one of an object that was never allocated, one into the middle, one to another cache.
    fn wrong_frees_to_ordinary_caches_are_reported_in_builds_with_assertions(t: &mut Test) {
        if !cfg!(debug_assertions) {
            skip!("needs assertions");
        }
        t.damages_slabs = true;
        let (cache, other) = (cache("dbg_sheaves", DebugFlags::empty())?, cache("dbg_sheaves_too", DebugFlags::empty())?);
        needs_sheaves(cache)?;
        let (held, object) = (alloc(cache)?, alloc(cache)?);
        free(cache, object);
        let twice: [fn(&RawCache, NonNull<u8>); 4] = [
            free,
            // SAFETY: as in `free`.
            |_, object| unsafe { slab::kfree(object) },
            // SAFETY: as above.
            |_, object| unsafe { slab::kfree_nolock(object) },
            |_, object| _ = slab::debug::may_wait(object),
        ];
        for free in twice {
            let report = the_report(cache, || free(cache, object))?;
            ensure_eq!((report.kind, report.cure), (Kind::DoubleFree, Cure::NotFreed));
            ensure_eq!(report.object, object.as_ptr().addr());
        }
        // SAFETY: inside the object.
        let report = the_report(cache, || free(cache, unsafe { held.add(8) }))?;
        ensure_eq!((report.kind, report.offset), (Kind::InsideObject, 8));
        let report = the_report(other, || free(other, held))?;
        ensure_eq!((report.kind, report.object), (Kind::WrongCache, held.as_ptr().addr()));
        ensure_works(cache)?;
        ensure_works(other)?;
        ensure_eq!(reported(cache, || free(cache, held)).1, 0, "the one good free");
        ensure_all_back(cache)?;
        ensure_all_back(other)
    }

    /// Damage that nobody has met yet: in an object in use of a full slab, in a free one, behind the last.
    fn validate_counts_slabs_objects_and_damage_and_changes_nothing(t: &mut Test) {
        t.damages_slabs = true;
        let cache = cache("dbg_validate", FZPU)?;
        let (per_slab, mut held) = (cache.info().objperslab, Vec::new());
        for _ in 0..2 * per_slab + 1 {
            held.push(alloc(cache)?);
        }
        let info = cache.info();
        let sound = Validation { slabs: info.num_slabs, objects: info.num_objs, errors: 0 };
        ensure_eq!(cache.validate(), sound);
        let (used, last) = (held[0], held[2 * per_slab]);
        free(cache, last);
        poke(used, 64, 1);
        poke(last, 5, 2);
        let mut seen = Validation::default();
        let (_, reports) = reported(cache, || seen = cache.validate());
        ensure_eq!((seen, reports), (Validation { errors: 2, ..sound }, 2));
        poke(used, 64, 0xcc);
        poke(last, 5, 0x6b);
        ensure_eq!(cache.validate(), sound);
        held[..2 * per_slab].iter().for_each(|&object| free(cache, object));
        ensure_all_back(cache)
    }

    /// Of an ordinary cache the freelists are followed.
    fn validate_follows_the_freelists_of_ordinary_caches(t: &mut Test) {
        t.damages_slabs = true;
        let cache = slab::create(Layout::new("dbg_plain", SIZE).flags(CacheFlags::NO_MERGE | CacheFlags::NO_SHEAVES));
        let cache = cache.map_err(|error| crate::__failed!("{error}"))?;
        if cache.debug() != DebugFlags::empty() {
            skip!("slab_debug= makes it a debug cache");
        }
        let (held, first) = (alloc(cache)?, alloc(cache)?);
        free(cache, first);
        let free_objects = cache.info().num_objs - 1;
        ensure_eq!(cache.validate(), Validation { slabs: 1, objects: free_objects, errors: 0 });
        // SAFETY: the link of a free object lies in its middle.
        let link = unsafe { first.add(SIZE / 2).cast::<usize>() };
        for bad in [0, 0x1234, first.as_ptr().addr(), held.as_ptr().addr() + 8] {
            // SAFETY: as above; put back below, before anybody allocates.
            let good = unsafe { link.replace(bad) };
            let report = the_report(cache, || _ = cache.validate())?;
            ensure_eq!((report.object, report.cure), (first.as_ptr().addr(), Cure::None));
            // SAFETY: as above.
            unsafe { link.write(good) };
        }
        ensure_eq!(cache.validate().errors, 0);
        free(cache, held);
        ensure_all_back(cache)
    }

    /// All caches of the machine, while it runs.
    fn no_cache_of_the_machine_is_damaged(t: &mut Test) {
        let seen = slab::debug::validate_all(t.cx);
        ensure_eq!(seen.errors, 0, "{seen:?}");
        ensure!(seen.slabs > 0 && seen.objects > 0);
        Ok(())
    }

    /// `O`: no debugging at the price of larger slabs.
    fn what_would_need_a_higher_order_is_left_off_if_asked_for(_t: &mut Test) {
        let flags = FZPU | DebugFlags::NO_HIGHER_ORDER;
        let large = slab::create(Layout::new("dbg_order", 4096).debug(flags)).map_err(|error| crate::__failed!("{error}"))?;
        ensure_eq!(large.debug() & FZPU, DebugFlags::CONSISTENCY);
        let small = cache("dbg_fits", flags)?;
        ensure_eq!(small.debug() & FZPU, FZPU);
        Ok(())
    }

    /// S5-3: in NMI, whatever the interrupted code holds, a call ends; it fails where it cannot have the lock.
    #[budget_ms(60_000)]
    fn nolock_calls_at_every_instruction_of_a_debug_cache(t: &mut Test) {
        // One letter that makes it a debug cache: there is less to step over, and the locks are the same.
        let cache = *STEPPED.call_once(|| cache("dbg_step", DebugFlags::CONSISTENCY).expect("a cache"));
        let mut boundaries = 0;
        for run in stepping::runs(&[13]) {
            boundaries += stepping::step::<NolockPair>(run, || {
                if let Some(object) = cache.alloc(AllocFlags::NOWAIT) {
                    free(cache, object);
                }
            });
        }
        t.note(format_args!("{boundaries} boundaries, {} calls found no object", MISSES.load(Relaxed)));
        ensure!(boundaries > 1_000 && MISSES.load(Relaxed) > 0, "the lock was never met");
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        ensure_works(cache)?;
        ensure_all_back(cache)
    }

    /// All CPUs at once, with every check on: no false report, nothing lost.
    #[tags(race)]
    fn a_debug_cache_bears_all_cpus_at_once(t: &mut Test) {
        let cache = cache("dbg_race", FZPU)?;
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let thread = sched::spawn(t.cx, "debug", Prio::NORMAL, Some(on), move |_| {
                for round in 0..200 {
                    let held: Vec<_> = (0..1 + round % 20).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
                    held.into_iter().for_each(|object| free(cache, object));
                    if round % 32 == 0 {
                        _ = cache.validate();
                    }
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_all_back(cache)
    }

    /// Reports of all CPUs at the same time: each is counted, and each is whole in the log.
    #[tags(race)]
    fn reports_of_several_cpus_are_counted_and_not_mixed(t: &mut Test) {
        t.damages_slabs = true;
        const EACH: u64 = 4;
        let cache = cache("dbg_reports", FZPU)?;
        let before = (slab::debug::reports(), cache.reports());
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let thread = sched::spawn(t.cx, "damage", Prio::NORMAL, Some(on), move |_| {
                let objects: Vec<_> = (0..EACH).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
                for object in objects {
                    poke(object, 64, 1);
                    free(cache, object);
                    free(cache, object);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        let count = threads.len() as u64 * EACH;
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_eq!((slab::debug::reports() - before.0, cache.reports() - before.1), (count, count));
        let mut numbers = Vec::with_capacity(16);
        slab::debug::with_reports(|report| numbers.push((report.number, report.offset)));
        ensure!(numbers.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{numbers:?}");
        ensure_all_back(cache)
    }

    /// `T`: one line a call.
    fn a_traced_cache_logs_each_call(_t: &mut Test) {
        let cache = cache("dbg_trace", DebugFlags::TRACE)?;
        let object = alloc(cache)?;
        free(cache, object);
        let mut lines = [0; 2];
        sync::log::for_each_line(|line| {
            let line = core::str::from_utf8(line).unwrap_or_default();
            if line.contains("TRACE dbg_trace ") {
                lines[usize::from(line.contains("freed"))] += 1;
            }
        });
        ensure_eq!(lines, [1, 1]);
        ensure_all_back(cache)
    }

    /// M-13: who found an object of a type-safe cache before it was freed may look at it to the end of its section; nobody
    /// gets it meanwhile, and a second free is one too many.
    fn a_freed_object_of_a_type_safe_cache_is_left_alone_until_its_readers_have_ended(t: &mut Test) {
        t.damages_slabs = true;
        let cache = typesafe_cache("dbg_typesafe")?;
        let object = alloc(cache)?;
        ensure_eq!(content(object), [MADE; SIZE]);
        let reader = rcu::read_lock(ATOMIC);
        free(cache, object);
        let held: Vec<_> = (0..100).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
        ensure!(!held.contains(&object), "handed out while a reader may look at it");
        ensure_eq!(content(object), [MADE; SIZE]);
        let second = the_report(cache, || free(cache, object))?;
        ensure_eq!((second.kind, second.cure), (Kind::DoubleFree, Cure::NotFreed));
        drop(reader);
        held.into_iter().for_each(|object| free(cache, object));
        rcu::rcu_barrier(t.cx);
        ensure_eq!(content(object)[..8], [0x6b; 8]);
        let third = the_report(cache, || free(cache, object))?;
        ensure_eq!(third.kind, Kind::DoubleFree);
        ensure!(third.freed.is_some(), "nobody remembers the free");
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }

    /// M-13: who looks at an object in a later section than it was found in, and writes to it, is found.
    fn a_write_by_a_later_reader_of_a_type_safe_cache_is_found(t: &mut Test) {
        t.damages_slabs = true;
        let cache = typesafe_cache("dbg_later")?;
        let object = alloc(cache)?;
        free(cache, object);
        rcu::synchronize_rcu(t.cx);
        rcu::rcu_barrier(t.cx);
        poke(object, 5, 0x41);
        let (report, _) = reported(cache, || {
            let _next = cache.alloc(AllocFlags::NOWAIT);
        });
        let Some(report) = report else { return Err(crate::__failed!("the write was not found")) };
        ensure_eq!(report.kind, Kind::Poison);
        ensure_bytes(&report, object, 5, 1, (0x41, 0x6b))
    }

    /// M-13: objects that wait for a grace period are no leak.
    fn destroying_a_type_safe_cache_waits_for_the_objects_that_wait(t: &mut Test) {
        let cache = typesafe_cache("dbg_destroyed")?;
        let held: Vec<_> = (0..100).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
        ensure_eq!(held.len(), 100);
        held.into_iter().for_each(|object| free(cache, object));
        // SAFETY: nobody else knows the cache.
        ensure_eq!(unsafe { slab::flush::destroy(cache, t.cx) }, Ok(()));
        Ok(())
    }
}

/// What the constructor of type-safe caches writes.
const MADE: u8 = 0x3c;

/// A type-safe cache that checks everything.
fn typesafe_cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    fn ctor(object: NonNull<u8>) {
        // SAFETY: an object of this cache, before anybody has it.
        unsafe { object.write_bytes(MADE, SIZE) };
    }
    let layout = Layout::new(name, SIZE).debug(FZPU).flags(CacheFlags::NO_MERGE | CacheFlags::TYPESAFE_BY_RCU);
    slab::create(layout.ctor(ctor)).map_err(|error| crate::__failed!("{name}: {error}"))
}

fn content(object: NonNull<u8>) -> [u8; SIZE] {
    // SAFETY: inside the object's slab, which its cache keeps; free or not is what the tests are about.
    unsafe { object.cast::<[u8; SIZE]>().read_volatile() }
}

static STEPPED: Once<&'static RawCache> = Once::new();
static MISSES: AtomicU64 = AtomicU64::new(0);

struct NolockPair;

impl Visit for NolockPair {
    fn visit() {
        let Some(cache) = STEPPED.get() else { return };
        match cache.alloc_nolock(AllocFlags::empty()) {
            // SAFETY: allocated above, given up here.
            Some(object) => unsafe { slab::kfree_nolock(object) },
            None => _ = MISSES.fetch_add(1, Relaxed),
        }
    }
}
