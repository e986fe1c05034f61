//! What `slab_debug=` does to the caches of a machine, each in a process of its own.

use core::ptr::NonNull;

use arch::hosted::in_own_process;
use mm::AllocFlags;

use super::report::{Cure, Kind, Report};
use crate::slab_ref::SlabRef;
use crate::test_machine::{assert_all_back, cache, machine, spawn};
use crate::{CacheFlags, Harden, Layout, fail, kfree, kmalloc, kmalloc_nolock, ksize, registry};

/// A machine with this command line.
fn with(line: &'static str, body: impl FnOnce() + Send) {
    sync::param::parse(line).unwrap();
    machine(1, 1, |_| body());
}

fn last_report() -> Option<Report> {
    let mut last = None;
    super::with_reports(|report| last = Some(*report));
    last
}

fn poke(object: NonNull<u8>, offset: usize) {
    // SAFETY: inside the object's slab.
    unsafe { object.add(offset).write_volatile(0x41) };
}

#[test]
fn what_kmalloc_was_not_asked_for_is_red_zone() {
    in_own_process(|| {
        with("slab_debug=FZPU,kmalloc-64", || {
            for alloc in [kmalloc, kmalloc_nolock] {
                for size in [33, 40, 63, 64] {
                    let object = alloc(size, AllocFlags::ZERO).unwrap();
                    // SAFETY: ours.
                    assert_eq!(unsafe { ksize(object) }, size);
                    // SAFETY: `size` bytes are ours.
                    let content = unsafe { core::slice::from_raw_parts(object.as_ptr(), size) };
                    assert!(content.iter().all(|&byte| byte == 0));
                    poke(object, size - 1);
                    let before = super::reports();
                    poke(object, size);
                    // SAFETY: from kmalloc, given up here.
                    unsafe { kfree(object) };
                    assert_eq!(super::reports() - before, 1);
                    let report = last_report().unwrap();
                    assert_eq!(
                        (report.kind, report.cure, report.cache),
                        (Kind::RightRedZone, Cure::NotFreed, "kmalloc-64")
                    );
                    assert_eq!((report.offset, report.found, report.expected), (size as isize, 0x41, 0xcc));
                    // SAFETY: it was not freed, and its red zone is whole again.
                    unsafe { kfree(object) };
                    assert_eq!(super::reports() - before, 1);
                }
            }
        });
    });
}

#[test]
fn the_command_line_makes_debug_caches_of_those_it_names() {
    in_own_process(|| {
        with("slab_debug=FP,kmalloc-*;Z,sheaf-64,kmem*", || {
            for (name, letters) in [("kmalloc-64", "FP"), ("sheaf-64", "Z"), ("kmem_cache", "Z"), ("sheaf-128", "")] {
                let cache = registry::find(name).unwrap();
                let flags: super::DebugFlags = letters.chars().filter_map(super::DebugFlags::of_letter).collect();
                assert_eq!(cache.debug(), flags, "{name}");
                assert_eq!(cache.sheaf_capacity(), 0, "{name}");
            }
            let object = kmalloc(64, AllocFlags::NOWAIT).unwrap();
            // SAFETY: from kmalloc, given up here.
            unsafe { kfree(object) };
            assert_eq!(super::reports(), 0);
        });
    });
}

#[test]
fn caches_marked_by_a_are_the_ones_that_fail() {
    in_own_process(|| {
        sync::param::parse("slab_debug=A,kmalloc-64;FA,kmalloc-128").unwrap();
        machine(1, 1, |cx| {
            let fails = |size| {
                let object = kmalloc(size, AllocFlags::NOWAIT | AllocFlags::NOWARN);
                // SAFETY: from kmalloc, given up here.
                object.inspect(|&object| unsafe { kfree(object) }).is_none()
            };
            assert!(registry::find("kmalloc-64").unwrap().sheaf_capacity() != 0, "the mark alone is no debugging");
            let failed = fail::with("", cx, |selection, _| {
                let _armed = selection.arm(fail::Plan::From(1), None);
                [32, 64, 128, 256].map(fails)
            });
            assert_eq!(failed, Ok([false, true, true, false]));
            assert_eq!([32, 64, 128, 256].map(fails), [false; 4]);
        });
    });
}

#[test]
fn a_machine_of_debug_caches_works() {
    in_own_process(|| {
        with("slab_debug", || {
            let sizes = || (0..14).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]);
            for _ in 0..3 {
                let held: std::vec::Vec<_> = sizes().map(|size| kmalloc(size, AllocFlags::NOWAIT).unwrap()).collect();
                // SAFETY: from kmalloc, each given up once.
                held.into_iter().for_each(|object| unsafe { kfree(object) });
            }
            let mut errors = 0;
            registry::for_each(|cache| errors += cache.validate().errors);
            assert_eq!((super::reports(), errors), (0, 0));
        });
    });
}

#[test]
fn where_links_are_hidden_the_object_freed_last_is_not_freed_again() {
    in_own_process(|| {
        with("", || {
            let layout = Layout::new("hidden", 64).flags(CacheFlags::NO_SHEAVES).harden(Harden::HIDE_LINKS);
            let cache = crate::create(layout).unwrap();
            let (object, other) = (cache.alloc(AllocFlags::NOWAIT).unwrap(), cache.alloc(AllocFlags::NOWAIT).unwrap());
            let slab = SlabRef::of(object).unwrap();
            for (reports, inuse) in [(0, 1), (1, 1)] {
                // Past what builds with assertions would have noticed before.
                cache.give_back(slab, object, object, 1);
                assert_eq!((super::reports(), slab.state().inuse), (reports, inuse));
            }
            assert_eq!(last_report().unwrap().kind, Kind::DoubleFree);
            cache.give_back(slab, other, other, 1);
            assert_eq!(slab.state().inuse, 0);
        });
    });
}

#[test]
fn what_another_node_has_of_another_cache_goes_into_no_sheaf() {
    in_own_process(|| {
        machine(2, 2, |cx| {
            let (mine, other) = (cache("mine"), cache("other"));
            let there = spawn(cx, Some(1), move |_| {
                [mine, other].map(|cache| cache.alloc(AllocFlags::NOWAIT).unwrap().as_ptr().expose_provenance())
            });
            let there = there.join(cx);
            let here = spawn(cx, Some(0), move |_| {
                let object = |address| NonNull::new(core::ptr::with_exposed_provenance_mut(address)).unwrap();
                let (good, bad) = (object(there[0]), object(there[1]));
                let batch = || mine.sheaves().unwrap().remote.map(|sheaf| sheaf.size());
                // Past what builds with assertions would have noticed before; with no remote sheaf yet, and with one.
                mine.free_slow(bad);
                assert_eq!((batch(), super::reports()), (None, 1));
                // SAFETY: the other thread gave it up.
                unsafe { mine.free(good) };
                assert_eq!(batch(), Some(1));
                mine.free_slow(bad);
                assert_eq!((batch(), super::reports()), (Some(1), 2));
                assert_eq!(last_report().unwrap().kind, Kind::WrongCache);
                // SAFETY: as above; it was not freed.
                unsafe { other.free(bad) };
            });
            here.join(cx);
            assert_eq!(super::reports(), 2);
            assert_all_back(mine);
            assert_all_back(other);
        });
    });
}

#[test]
fn what_interrupts_a_reporter_says_one_line_and_waits_for_nobody() {
    in_own_process(|| {
        with("", || {
            let wrong = || super::report_no_object(None, NonNull::dangling());
            wrong();
            super::with_reports(|_| wrong());
            assert_eq!(super::reports(), 2);
            assert_eq!(last_report().unwrap().number, 1, "nobody wrote where another reads");
            wrong();
            assert_eq!(last_report().unwrap().number, 3);
        });
    });
}
