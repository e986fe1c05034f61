//! Parked threads: a thread that is to stand still until it is told otherwise, and says when it does.
//!
//! For threads that belong to a CPU, while the CPU is offline. The thread looks at [`should_park`] wherever it waits, and
//! calls [`park_me`] when it is true; [`park`] returns when it has.
//!
//! Invariants:
//!
//! * `SCHED-27`: `Thread::parking` goes `NO` → `ASKED` by [`park`], → `PARKED` by the thread, → `NO` by [`unpark`].
//!
//! Contexts: task; one controlling thread at a time for each parked thread.
//!
//! Linux: `kthread_park`, `kthread_parkme`, `kthread_unpark` in `kernel/kthread.c`.

use core::sync::atomic::Ordering;

use sync::MaySleep;

use crate::thread::{Thread, current};
use crate::wait::{self, WaitQueue};
use crate::{wake, watchdog};

const NO: u8 = 0;
const ASKED: u8 = 1;
const PARKED: u8 = 2;

/// Where those wait who have asked a thread to park.
static ASKERS: WaitQueue = WaitQueue::new();

/// Shall the running thread park? It looks whenever it has been woken, before it waits for anything else.
///
/// Context: task.
pub fn should_park() -> bool {
    // Relaxed: whoever asks wakes afterwards, which is a full barrier (SCHED-1).
    current().parking.load(Ordering::Relaxed) == ASKED
}

/// Parks the running thread, which has been asked to, until [`unpark`].
///
/// Context: task, sleeps; the thread holds nothing that others wait for.
pub fn park_me(cx: &mut MaySleep) {
    let parking = &current().parking;
    // Release: pairs with the Acquire in `park`: what the thread did before is seen. It fails if `unpark` came first.
    let _ = parking.compare_exchange(ASKED, PARKED, Ordering::Release, Ordering::Relaxed);
    ASKERS.wake_all();
    let _idling = watchdog::idling();
    while parking.load(Ordering::Relaxed) == PARKED {
        wait::sleep_until_woken(cx, || parking.load(Ordering::Relaxed) != PARKED);
    }
}

/// Asks `thread` to park and waits until it has. The thread must be one that looks, and must not end.
///
/// Context: task, sleeps; not from the thread itself.
pub fn park(thread: &'static Thread, cx: &mut MaySleep) {
    thread.parking.store(ASKED, Ordering::Relaxed);
    wake(thread);
    // Acquire: pairs with the Release in `park_me`.
    ASKERS.wait_until(cx, || thread.parking.load(Ordering::Acquire) == PARKED);
}

/// Lets a parked thread go on.
///
/// Context: task, softirq, hardirq.
pub fn unpark(thread: &'static Thread) {
    // Release: what the caller did before is seen by the thread, by way of the wake-up at the latest.
    thread.parking.store(NO, Ordering::Release);
    wake(thread);
}
