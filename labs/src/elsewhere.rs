//! What another CPU does between two instructions of this one: a race that happens each time, however fast the host is.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{CpuId, irq};
use sync::MaySleep;
use tests::Failure;
use tests::together::{spawn, spin_until};

/// How often it was asked for, and how often it was done; the thread alone writes the latter.
static ASKED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
/// Nobody will ask any more.
static OVER: AtomicBool = AtomicBool::new(false);

/// Runs `body` while a thread on `cpu` does `work` whenever it is [asked](ask). One grader at a time.
///
/// Context: task on another CPU; sleeps.
///
/// # Errors
/// When there is no memory for the thread.
pub fn with<R>(
    cx: &mut MaySleep,
    cpu: CpuId,
    work: impl Fn() + Send + 'static,
    body: impl FnOnce(&mut MaySleep) -> R,
) -> Result<R, Failure> {
    OVER.store(false, Ordering::Relaxed);
    let thread = spawn(cx, Some(cpu), move |_| {
        while !OVER.load(Ordering::Relaxed) {
            // Acquire: pairs with the Release in `ask`; what the asking CPU did before is seen.
            if ASKED.load(Ordering::Acquire) > DONE.load(Ordering::Relaxed) {
                work();
                // Release: pairs with the Acquire in `ask`.
                DONE.fetch_add(1, Ordering::Release);
            }
            irq::relax();
        }
    })?;
    let result = body(cx);
    OVER.store(true, Ordering::Relaxed);
    thread.join(cx);
    Ok(result)
}

/// Has the other CPU do its work once, and waits until it has; false if it did not in 20 s.
///
/// Context: any, NMI included, within [`with`].
pub fn ask() -> bool {
    // Release: pairs with the Acquire in `with`.
    let asked = ASKED.fetch_add(1, Ordering::Release) + 1;
    // Acquire: pairs with the Release in `with`.
    spin_until(|| DONE.load(Ordering::Acquire) >= asked)
}
