//! The timer of a hosted CPU: a POSIX timer that signals the CPU's own thread.
//!
//! Invariant `HTMR-1`: a CPU's timer is made by its thread before the CPU runs, and deleted by that thread afterwards;
//! the functions here set the timer of the CPU that they run on, so the caller is pinned.
//!
//! Context: any but NMI. Ticks that find the last one still pending merge with it.

use core::ptr;

use super::signal;
use crate::cpu::CpuId;

crate::per_cpu! {
    /// The timer of this CPU (HTMR-1).
    static TIMER: *mut libc::c_void = ptr::null_mut();
}

/// Makes the timer of `cpu`, whose thread calls.
pub(super) fn create(cpu: CpuId) {
    // SAFETY: an all-zero sigevent is valid.
    let mut event: libc::sigevent = unsafe { core::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal::SIG_TIMER;
    event.sigev_value = libc::sigval { sival_ptr: ptr::without_provenance_mut(cpu.index()) };
    // SAFETY: no arguments.
    event.sigev_notify_thread_id = unsafe { libc::gettid() };
    let mut timer = ptr::null_mut();
    // SAFETY: a complete sigevent; the call fills `timer`.
    let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) };
    assert_eq!(result, 0, "timer_create: {}", std::io::Error::last_os_error());
    TIMER.set(timer);
}

/// Deletes the timer of the CPU whose thread calls.
pub(super) fn delete() {
    // SAFETY: made by `create` on this thread, and not used again.
    unsafe { libc::timer_delete(TIMER.get()) };
}

/// Ticks `hz` times a second from now on.
///
/// # Panics
///
/// If `hz` is 0.
pub fn start_periodic(hz: u32) {
    assert!(hz > 0, "a tick rate of 0 is no tick: use stop()");
    let period = 1_000_000_000 / u64::from(hz);
    set(period, period);
}

/// No more ticks. One that is pending already is still delivered.
pub fn stop() {
    set(0, 0);
}

/// One tick in `ns` nanoseconds, in place of whatever was set.
pub fn oneshot_ns(ns: u64) {
    set(ns.max(1), 0);
}

fn set(first_ns: u64, period_ns: u64) {
    let spec = |ns: u64| libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    let times = libc::itimerspec { it_interval: spec(period_ns), it_value: spec(first_ns) };
    // SAFETY: the timer of this CPU, and valid times.
    let result = unsafe { libc::timer_settime(TIMER.get(), 0, &times, ptr::null_mut()) };
    debug_assert_eq!(result, 0, "HTMR-1: this CPU has no timer");
}
