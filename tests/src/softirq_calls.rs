//! The soft interrupt of tests, [`Softirq::Test`]: whoever wants to be called in it says so once, and is called each time.

use core::sync::atomic::{AtomicUsize, Ordering};

use sched::softirq::{self, Softirq};
use sync::Once;

/// Who is called. An empty place is followed by empty ones only.
static CALLS: [Once<fn()>; 8] = [const { Once::new() }; 8];
/// Places that are taken, or about to be.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Has `call` called in every soft interrupt of tests from now on, for ever.
///
/// Context: any but NMI.
pub(crate) fn add(call: fn()) {
    static REGISTERED: Once<()> = Once::new();
    REGISTERED.call_once(|| softirq::register(Softirq::Test, handler));
    CALLS[TAKEN.fetch_add(1, Ordering::Relaxed)].call_once(|| call);
}

fn handler() {
    CALLS.iter().filter_map(Once::get).for_each(|call| call());
}
