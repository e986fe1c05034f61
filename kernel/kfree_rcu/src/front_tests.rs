//! Calls that come too early, or from the wrong place, on a hosted machine.

use std::string::ToString;

use arch::hosted::in_own_process;
use mm::AllocFlags;
use sync::{ATOMIC, MaySleep, PreemptGuard};

use crate::backend::BackEnd;
use crate::bnode::RECORDS;
use crate::test_machine::try_machine;
use crate::{kfree_rcu, kfree_rcu_mightsleep};

const MS: u64 = 1_000_000;

/// S2-7: before there are timers and threads objects are kept, and nothing is armed; then that is made up for.
#[test]
fn what_is_given_up_before_timers_run_is_freed_when_they_do() {
    in_own_process(|| {
        // More than a page of pointers, which is to be drained at once.
        let early = || {
            for _ in 0..=RECORDS {
                let block = slab::kmalloc(16 << 10, AllocFlags::NOWAIT).expect("memory");
                // SAFETY: a fresh block with room for a head.
                unsafe { kfree_rcu(block.cast()) };
            }
            assert!(crate::backend::reclaim_queue().is_none());
            assert_eq!(BackEnd::Bulk.waiting().objects, RECORDS + 1);
        };
        let body = |cx: &mut MaySleep| {
            let is_over = |cx: &mut MaySleep| {
                sched::sleep_ns(cx, MS);
                BackEnd::Bulk.waiting().objects == 0
            };
            assert!((0..20_000).any(|_| is_over(cx)), "{:?}", BackEnd::Bulk.waiting());
        };
        try_machine(1, 1, early, body).unwrap_or_else(|stopped| panic!("{stopped}"));
    });
}

/// S0-3: a call without a head is refused where it may not sleep, also when a sheaf would take the object.
#[test]
fn a_call_without_a_head_asserts_that_it_may_sleep_before_it_tries_the_sheaf() {
    in_own_process(|| {
        let body = |cx: &mut MaySleep| {
            let object = |size| slab::kmalloc(size, AllocFlags::NOWAIT).expect("memory");
            // SAFETY: a fresh object; it leaves a sheaf behind that has room for the next.
            unsafe { kfree_rcu_mightsleep(object(64), cx) };
            let _pin = PreemptGuard::new(ATOMIC);
            // SAFETY: as above.
            unsafe { kfree_rcu_mightsleep(object(64), cx) };
        };
        let stopped = try_machine(1, 1, || (), body).expect_err("it may not sleep there");
        assert!(stopped.to_string().contains("blocking in atomic context"), "{stopped}");
    });
}
