//! Pages of pointers on a hosted machine, with cookies that the tests choose.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use arch::hosted::in_own_process;
use mm::AllocFlags;
use rcu::FullCookie;
use slab::debug::may_wait;
use slab::waiting::{self, Stage};
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::ATOMIC;

use crate::bnode::{Bnode, Pages};
use crate::test_machine::machine;

/// Lines of the log that tell of objects that are leaked.
pub(crate) static TOLD: AtomicUsize = AtomicUsize::new(0);

/// Counts these lines.
struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        TOLD.fetch_add(usize::from(std::format!("{}", record.args()).contains("they are leaked")), SeqCst);
    }

    fn flush(&self) {}
}

/// From here on [`TOLD`] counts.
pub(crate) fn listen() {
    log::set_logger(&Log).expect("a process of its own");
    log::set_max_level(log::LevelFilter::Error);
}

pub(crate) fn cache() -> &'static RawCache {
    slab::create(Layout::new("bnode", 64).flags(CacheFlags::NO_MERGE)).expect("memory for a cache")
}

/// An object that was given up.
pub(crate) fn given_up(cache: &RawCache) -> NonNull<u8> {
    let object = cache.alloc(AllocFlags::NOWAIT).expect("memory");
    assert!(may_wait(object));
    waiting::enter(Stage::Bulk, object);
    object
}

fn add_page(pages: &mut Pages, object: NonNull<u8>, cookie: FullCookie) {
    pages.add(Bnode::alloc().expect("memory"));
    assert!(pages.push(object, cookie));
}

/// K-4: the oldest first, those that have expired alone, and none behind the first that has not.
#[test]
fn pages_come_oldest_first_and_none_behind_one_that_has_not_expired() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            let (cache, mut pages) = (cache(), Pages::new());
            let section = rcu::read_lock(ATOMIC);
            let later = rcu::get_state_full();
            for cookie in [FullCookie::completed(), later, FullCookie::completed()] {
                add_page(&mut pages, given_up(cache), cookie);
            }
            let before = rcu::stats().gps;
            assert_eq!(pages.pop_expired().map(Bnode::free_all), Some(1));
            assert!(pages.pop_expired().is_none());
            assert_eq!((pages.objects(), rcu::stats().gps), (2, before), "freed without a grace period of its own");
            drop(section);
            rcu::synchronize_rcu(cx);
            assert_eq!(pages.pop_expired().map(Bnode::free_all), Some(1));
            assert_eq!(pages.pop_expired().map(Bnode::free_all), Some(1));
            assert!(pages.is_empty());
        });
    });
}

/// K-6: an object is rather lost than freed under its reader, and the log says so.
#[test]
fn a_page_is_not_freed_inside_its_grace_period_but_leaks() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            listen();
            let cache = cache();
            let section = rcu::read_lock(ATOMIC);
            let mut page = Bnode::alloc().expect("memory");
            page.push(given_up(cache), rcu::get_state_full());
            assert_eq!(page.free_all(), 0);
            drop(section);
            rcu::synchronize_rcu(cx);
            cache.shrink();
            assert_eq!((cache.info().active_objs, TOLD.load(SeqCst)), (1, 1), "objects, lines");
        });
    });
}

/// S2-6: the objects of a page are freed by cache, and those of a slab that came one after the other together.
#[test]
fn the_objects_of_a_page_are_freed_slab_by_slab() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let flags = CacheFlags::NO_SHEAVES.union(CacheFlags::NO_MERGE);
            let caches =
                ["one", "other"].map(|name| slab::create(Layout::new(name, 256).flags(flags)).expect("memory"));
            let mut page = Bnode::alloc().expect("memory");
            for cache in caches {
                (0..200).for_each(|_| page.push(given_up(cache), FullCookie::completed()));
            }
            caches.iter().for_each(|cache| cache.set_min_partial(0));
            let before = caches.map(|cache| cache.stat(Stat::FreeAddPartial));
            assert_eq!(page.free_all(), 400);
            for (cache, before) in caches.into_iter().zip(before) {
                let slabs = cache.stat(Stat::AllocSlab);
                assert!(slabs > 1);
                assert_eq!((cache.info().active_objs, cache.stat(Stat::FreeSlab)), (0, slabs));
                // One by one, each full slab would have gone on the partial list with its first object. One may be divided,
                // where the objects of the other cache are sorted out.
                assert!(cache.stat(Stat::FreeAddPartial) <= before + 1);
            }
        });
    });
}
