//! Lists through heads on a hosted machine.

use core::sync::atomic::Ordering::SeqCst;

use arch::hosted::in_own_process;
use rcu::FullCookie;
use sync::ATOMIC;

use super::Heads;
use crate::bnode_tests::{TOLD, cache, given_up, listen};
use crate::test_machine::machine;

/// K-6: as for pages.
#[test]
fn a_list_is_not_freed_inside_its_grace_period_but_leaks() {
    in_own_process(|| {
        machine(1, 1, |cx| {
            listen();
            let cache = cache();
            let mut heads = Heads::new();
            heads.push(given_up(cache).cast(), FullCookie::completed());
            assert_eq!(heads.free_all(), 1);
            let section = rcu::read_lock(ATOMIC);
            let mut heads = Heads::new();
            heads.push(given_up(cache).cast(), rcu::get_state_full());
            assert!(heads.take_expired().is_empty());
            assert_eq!(heads.free_all(), 0);
            drop(section);
            rcu::synchronize_rcu(cx);
            cache.shrink();
            assert_eq!((cache.info().active_objs, TOLD.load(SeqCst)), (1, 1), "objects, lines");
        });
    });
}
