//! Merging, and layouts that cannot be.

use arch::hosted::in_own_process;
use grange_slab::flush::destroy;
use grange_slab::{CacheFlags, CreateError, Layout, create, registry};
use mm::AllocFlags;

use super::machine::{spawn, try_machine_with};
use super::{boot, up};

const PLAIN: Layout = Layout::new("plain", 1048);

/// How many caches are listed.
fn caches() -> usize {
    let mut count = 0;
    registry::for_each(|_| count += 1);
    count
}

#[test]
fn like_caches_are_one_until_the_last_user_destroys_it() {
    in_own_process(|| {
        boot("", |cx| {
            let before = caches();
            let first = create(PLAIN).unwrap();
            let second = create(Layout::new("other", 1043).align(4)).unwrap();
            let again = create(Layout::new("other", 1048)).unwrap();
            assert!(core::ptr::eq(first, second) && core::ptr::eq(first, again));
            assert_eq!((first.aliases(), first.name(), caches()), (2, "plain", before + 1));
            assert!(first.alias_names().eq(["other"]), "a name is kept once");
            assert!(core::ptr::eq(registry::find("other").unwrap(), first));
            let object = second.alloc(AllocFlags::NOWAIT).unwrap();
            for left in [1, 0] {
                // SAFETY: a user's, of which the test has three.
                assert_eq!(unsafe { destroy(first, cx) }, Ok(()), "others go on with it");
                assert_eq!(first.aliases(), left);
            }
            // SAFETY: from this cache, which is alive.
            unsafe { first.free(object) };
            // SAFETY: the last user's.
            assert_eq!(unsafe { destroy(first, cx) }, Ok(()));
            assert_eq!(caches(), before);
        });
    });
}

#[test]
fn an_alias_with_a_larger_object_has_all_of_it_zeroed() {
    in_own_process(|| {
        boot("", |_| {
            let small = create(Layout::new("small", 1041)).unwrap();
            let whole = create(Layout::new("whole", 1048)).unwrap();
            assert!(core::ptr::eq(small, whole));
            for _ in 0..2 {
                let object = whole.alloc(AllocFlags::ZERO).unwrap();
                // SAFETY: 1048 bytes are ours.
                let bytes = unsafe { core::slice::from_raw_parts_mut(object.as_ptr(), 1048) };
                assert!(bytes.iter().all(|&byte| byte == 0));
                bytes.fill(0xff);
                // SAFETY: allocated above, given up here.
                unsafe { whole.free(object) };
            }
        });
    });
}

#[test]
fn what_differs_in_a_way_that_matters_is_kept_apart() {
    in_own_process(|| {
        boot("", |_| {
            let plain = create(PLAIN).unwrap();
            let apart = [
                Layout::new("smaller", 1040),
                Layout::new("aligned", 1048).align(16),
                Layout::new("many", 1048).capacity(60),
                Layout::new("ctor", 1048).ctor(|_| {}),
                Layout::new("rcu", 1048).flags(CacheFlags::TYPESAFE_BY_RCU),
                Layout::new("alone", 1048).flags(CacheFlags::NO_MERGE),
                Layout::new("kmalloc", 1024),
            ];
            for layout in apart {
                for _ in 0..2 {
                    let cache = create(layout).unwrap();
                    assert!(!core::ptr::eq(cache, plain), "{layout:?}");
                }
            }
            assert_eq!(plain.aliases(), 0);
            for name in ["many", "aligned", "smaller", "kmalloc"] {
                assert_eq!(registry::find(name).unwrap().aliases(), 1, "{name} merges with its like");
            }
            for name in ["ctor", "rcu", "alone", "kmalloc-1k"] {
                assert_eq!(registry::find(name).unwrap().aliases(), 0, "{name} never merges");
            }
            // More than is asked for does no harm.
            let many = registry::find("many").unwrap();
            assert!(many.sheaf_capacity() > plain.sheaf_capacity());
            let indifferent = Layout::new("indifferent", 1024).flags(CacheFlags::PANIC | CacheFlags::HWCACHE_ALIGN);
            assert!(core::ptr::eq(create(indifferent).unwrap(), registry::find("kmalloc").unwrap()));
        });
    });
}

#[test]
fn a_cache_that_is_debugged_shares_with_nobody() {
    in_own_process(|| {
        boot("slab_debug=F,plain", |_| {
            let caches = [PLAIN, PLAIN, Layout::new("other", 1048), Layout::new("third", 1048)];
            let [first, second, other, third] = caches.map(|layout| create(layout).unwrap());
            assert!(!core::ptr::eq(first, second) && !core::ptr::eq(first, other));
            assert!(core::ptr::eq(other, third));
        });
    });
}

#[test]
fn slab_nomerge_keeps_like_caches_apart() {
    in_own_process(|| {
        boot("slab_nomerge", |_| {
            let (first, second) = (create(PLAIN).unwrap(), create(PLAIN).unwrap());
            assert!(!core::ptr::eq(first, second));
        });
    });
}

#[test]
fn a_layout_that_cannot_be_is_refused_by_name() {
    in_own_process(|| {
        boot("", |_| {
            assert_eq!(create(Layout::new("none", 0)).err(), Some(CreateError::BadSize(0)));
            assert_eq!(create(Layout::new("huge", 1 << 40)).err(), Some(CreateError::BadSize(1 << 40)));
            assert_eq!(create(Layout::new("huger", usize::MAX)).err(), Some(CreateError::BadSize(usize::MAX)));
            assert_eq!(create(Layout::new("odd", 8).align(24)).err(), Some(CreateError::BadAlign(24)));
            assert_eq!(create(Layout::new("wide", 8).align(8192)).err(), Some(CreateError::BadAlign(8192)));
        });
    });
}

#[test]
fn a_cache_that_must_be_panics_with_its_name_and_the_reason() {
    in_own_process(|| {
        let stopped = try_machine_with(1, up, |_| {
            let _ = create(Layout::new("needed", 0).flags(CacheFlags::PANIC));
        });
        let text = format!("{:?}", stopped.unwrap_err());
        assert!(text.contains("cache needed: object size 0: not between 1 and the largest slab"), "{text}");
    });
}

#[test]
fn users_come_and_go_on_two_cpus_and_none_loses_its_cache() {
    in_own_process(|| {
        boot("", |cx| {
            let before = caches();
            let threads = [0, 1].map(|cpu| {
                spawn(cx, Some(cpu), |cx| {
                    for _ in 0..20 {
                        let cache = create(PLAIN).unwrap();
                        let object = cache.alloc(AllocFlags::ZERO).unwrap();
                        sched::sleep_ns(cx, 10_000);
                        // SAFETY: allocated above, given up here; the cache is this user's until the line after.
                        unsafe {
                            cache.free(object);
                            destroy(cache, cx).unwrap();
                        }
                    }
                })
            });
            threads.into_iter().for_each(|thread| thread.join(cx));
            assert_eq!(caches(), before);
        });
    });
}
