//! What is counted on the way of an object through sheaves.

use arch::hosted::in_own_process;
use mm::AllocFlags;
use sync::MaySleep;

use super::*;
use crate::test_machine::{cache, machine};
use crate::{Spin, rcu_free};

fn give(cache: &'static RawCache, n: usize) {
    for _ in 0..n {
        let object = cache.alloc(AllocFlags::NOWAIT).expect("memory");
        // SAFETY: allocated here, and nobody else knows it.
        assert!(unsafe { rcu_free::free(object, Spin::May) });
    }
}

fn objects(cache: &RawCache) -> [u64; STAGES] {
    Stage::ALL.map(|stage| cache.waiting().at(stage).objects)
}

fn on_one_cpu(body: impl FnOnce(&'static RawCache, &mut MaySleep) + Send) {
    machine(1, 1, |cx| body(cache("waits"), cx));
}

#[test]
fn an_object_counts_in_its_sheaf_then_in_the_detached_one_then_no_more() {
    in_own_process(|| {
        on_one_cpu(|cache, cx| {
            let capacity = cache.sheaf_capacity();
            let before = residence(Stage::Detached).count;
            // What is detached in a section of ours stays so.
            let section = rcu::read_lock(cx);
            give(cache, 2 * capacity + 5);
            assert_eq!(objects(cache), [5, 2 * capacity as u64, 0, 0, 0, 0]);
            let (held, all) = (cache.waiting(), snapshot());
            for stage in [Stage::Sheaf, Stage::Detached] {
                let waiting = held.at(stage);
                assert_eq!(waiting.bytes, waiting.objects * cache.size() as u64);
                assert!(waiting.oldest_ns.is_some() && all.at(stage).oldest_ns >= waiting.oldest_ns, "{stage:?}");
                assert!(all.at(stage).bytes >= waiting.bytes);
            }
            drop(section);
            rcu::rcu_barrier(cx);
            assert_eq!(objects(cache), [5, 0, 0, 0, 0, 0], "what is in a sheaf that is not full has no callback");
            assert_eq!(residence(Stage::Detached).count - before, 2);
            cache.flush_cpus();
            assert_eq!(objects(cache)[0], 0, "a flush submits that too");
            rcu::rcu_barrier(cx);
            assert_eq!(cache.waiting().total(), Waiting::default());
        })
    });
}

#[test]
fn what_is_counted_by_the_object_counts_with_all_its_bytes() {
    in_own_process(|| {
        on_one_cpu(|cache, cx| {
            let object = cache.alloc(AllocFlags::NOWAIT).expect("memory");
            let large = crate::kmalloc(50_000, AllocFlags::NOWAIT).expect("memory");
            let area = mm::vmalloc(9_000, cx).expect("memory");
            for stage in Stage::ALL.into_iter().skip(FIRST_COUNTED) {
                for (block, bytes) in [(object, cache.size()), (large, 65_536), (area, 3 * PAGE_SIZE)] {
                    // SAFETY: inside the block.
                    let inside = unsafe { block.add(40) };
                    let before = snapshot().at(stage);
                    enter(stage, inside);
                    let with = snapshot().at(stage);
                    assert_eq!(
                        (with.objects, with.bytes),
                        (before.objects + 1, before.bytes + bytes as u64),
                        "{stage:?}"
                    );
                    leave(stage, block);
                    assert_eq!(snapshot().at(stage), before, "{stage:?}");
                }
            }
            enter_many(cache, Stage::Bulk, 7);
            leave_many(cache, Stage::Bulk, 3);
            assert_eq!(cache.waiting().at(Stage::Bulk).objects, 4);
            leave_many(cache, Stage::Bulk, 4);
        })
    });
}
