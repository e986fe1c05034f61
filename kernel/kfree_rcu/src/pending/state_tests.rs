//! One CPU's part by itself, with grace periods that a test ends.

use core::num::NonZero;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::hosted::in_own_process;
use rcu::Pollable;
use rcu::pending::LiveCookie;

use super::Radix;
use super::bucket::{Ask, Entry, State, Way};
use super::store::Stash;
use crate::test_machine::machine;

/// All cookies up to this one are over.
static OVER: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbered(u64);

impl Pollable for Numbered {
    fn is_over(&self) -> bool {
        self.0 <= OVER.load(Relaxed)
    }
}

impl LiveCookie for Numbered {
    const MAX_LIVE: usize = 4;
}

fn put(state: &mut State<Numbered, Radix>, cookie: u64) -> Ask {
    let missing = state.missing(Numbered(cookie));
    let mut nodes = Stash::new();
    assert!(nodes.fill(missing), "no memory");
    nodes.spill(0, &mut state.stash);
    let object = NonNull::without_provenance(NonZero::new(4096).expect("not 0"));
    state.push(Numbered(cookie), Entry { object, bytes: 8, way: Way::Store }, || 1)
}

#[test]
fn the_callback_is_armed_once_and_later_cookies_are_asked_for() {
    in_own_process(|| {
        machine(1, 1, |_| {
            let mut state = State::<Numbered, Radix>::new();
            assert_eq!(put(&mut state, 1), Ask::Callback, "nothing is on its way");
            assert_eq!(put(&mut state, 1), Ask::Nothing);
            assert_eq!(put(&mut state, 2), Ask::GracePeriod, "the callback may be there for the first");
            assert_eq!(put(&mut state, 2), Ask::Nothing);
            OVER.store(1, Relaxed);
            assert_eq!(state.grace_period_over(), (true, true), "something is over, and something waits");
            assert_eq!(put(&mut state, 3), Ask::GracePeriod, "the callback is on its way again");
            assert_eq!(state.take_done().objects(), 2);
            state.finished(2, 16);
            OVER.store(3, Relaxed);
            assert_eq!(state.grace_period_over(), (false, true), "nothing waits");
            assert!(!state.is_idle(), "what is over has not been finished");
            assert_eq!(state.take_done().objects(), 3);
            state.finished(3, 24);
            assert!(state.is_idle() && state.oldest().is_none());
            assert_eq!(put(&mut state, 4), Ask::Callback);
            OVER.store(4, Relaxed);
            assert_eq!(state.take_done().objects(), 1);
        });
    });
}
