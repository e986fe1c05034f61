//! A storm of NMIs: one CPU interrupts another again and again, until it is told to stop.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::{CpuId, clock, ipi};
use sched::{JoinHandle, Prio};
use sync::MaySleep;

use crate::Failure;

/// A storm that blows. One that is dropped blows on.
#[must_use = "only `stop` ends it"]
pub(crate) struct Storm {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Storm {
    /// Has `sender` send NMIs to `target`, which must have a handler for them.
    ///
    /// Context: thread that may sleep.
    pub(crate) fn start(cx: &mut MaySleep, sender: CpuId, target: CpuId) -> Result<Storm, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let over = stop.clone();
        let thread = sched::spawn(cx, "storm", Prio::NORMAL, Some(sender), move |cx| {
            let mut sent = 0;
            while !over.load(Relaxed) {
                ipi::send_nmi(target);
                sent += 1;
                // Leaves the target time to get on.
                clock::udelay(50);
                sched::cond_resched(cx);
            }
            sent
        });
        Ok(Storm { stop, thread: thread.map_err(|error| crate::__failed!("{error}"))? })
    }

    /// Ends it; returns how many NMIs were sent.
    ///
    /// Context: thread that may sleep.
    pub(crate) fn stop(self, cx: &mut MaySleep) -> u64 {
        self.stop.store(true, Relaxed);
        self.thread.join(cx)
    }
}
