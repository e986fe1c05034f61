//! The stall clock: nanoseconds in which somebody was there to look.
//!
//! Everybody who looks at grace periods regularly, the ticks of all busy CPUs and the grace-period thread, moves it on by the
//! time since anybody did so last, but by no more than one and a half of his own periods or of an eighth of the limit: if
//! nobody came for longer, the machine stood still, and what it has not done in that time says nothing (so it is with
//! [`sched::watchdog::Pace`], which has one looker). It also stands still while no grace period is wanted.
//!
//! Context: any but NMI. Answers to Linux kernel/rcu/tree_stall.h, where `rcu_cpu_stall_reset` does it from outside.

use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds counted.
static CLOCK: AtomicU64 = AtomicU64::new(0);
/// The time of the guest when it was last moved on. Who moves this on moves the clock on.
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds that were not counted, since [`restart`].
static LOST: AtomicU64 = AtomicU64::new(0);

/// The time now, after the caller, who is to look every `period_ns`, has moved it on.
pub(super) fn advance(period_ns: u64) -> u64 {
    let (now, last) = (arch::clock::now_ns(), LOOKED_AT.load(Ordering::Relaxed));
    if now > last && LOOKED_AT.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let since = now - last;
        let counted = since.min(period_ns + period_ns / 2);
        LOST.fetch_add(since - counted, Ordering::Relaxed);
        CLOCK.fetch_add(counted, Ordering::Relaxed);
    }
    self::now()
}

/// The time when it was last moved on.
pub(super) fn now() -> u64 {
    CLOCK.load(Ordering::Relaxed)
}

/// Begins anew: the time since it was last moved on does not count. The time.
pub(super) fn restart() -> u64 {
    LOOKED_AT.fetch_max(arch::clock::now_ns(), Ordering::Relaxed);
    LOST.store(0, Ordering::Relaxed);
    now()
}

/// Nanoseconds since [`restart`] that were not counted.
pub(super) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}
