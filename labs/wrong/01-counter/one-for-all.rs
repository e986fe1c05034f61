//! One word for all CPUs, changed by one instruction: loses nothing, and knows nothing about CPUs.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::CpuId;

static EVENTS: AtomicU64 = AtomicU64::new(0);

pub fn count() {
    EVENTS.fetch_add(1, Relaxed);
}

pub fn of(_cpu: CpuId) -> u64 {
    total()
}

pub fn total() -> u64 {
    EVENTS.load(Relaxed)
}
