//! Time: the host's.

use super::irq;

/// Nanoseconds since some start; the same on all CPUs, never backwards. Context: any, NMI included (a vDSO call).
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the timespec; cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The time-stamp counter. Context: any.
#[inline(always)]
pub fn cycles() -> u64 {
    // SAFETY: user space may read the counter on Linux.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Waits actively for at least `us` microseconds.
pub fn udelay(us: u64) {
    let until = now_ns() + us * 1000;
    while now_ns() < until {
        irq::relax();
    }
}
