//! Threads: switching, waking, timers, work.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::cpu;
use sched::{Prio, Thread, Timer, WorkItem};
use sync::MaySleep;

use crate::bench::Bencher;
use crate::{Failure, bench};

/// A thread that a bench needs beside itself.
struct Other {
    stop: Arc<AtomicBool>,
    thread: sched::JoinHandle<()>,
}

impl Other {
    /// A thread on this CPU that does `turn` again and again until it is told to stop.
    fn start(
        b: &mut Bencher<'_>,
        turn: impl Fn(&mut MaySleep, &AtomicBool) + Send + 'static,
    ) -> Result<Other, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let over = stop.clone();
        let thread = sched::spawn(b.cx, "other", Prio::NORMAL, Some(cpu::current()), move |cx| {
            while !over.load(Ordering::Relaxed) {
                turn(cx, &over);
            }
        });
        Ok(Other { stop, thread: thread.map_err(|error| crate::__failed!("{error}"))? })
    }

    fn thread(&self) -> &'static Thread {
        self.thread.thread()
    }

    fn stop(self, b: &mut Bencher<'_>) {
        self.stop.store(true, Ordering::Relaxed);
        sched::wake(self.thread());
        self.thread.join(b.cx);
    }
}

bench! {
    /// From one thread to another that is ready, by `yield_now`. The other's loop counts.
    #[goal(counted = 150)]
    fn context_switch(b: &mut Bencher) {
        let other = Other::start(b, |cx, _| sched::yield_now(cx))?;
        b.each(2, sched::yield_now);
        other.stop(b);
        Ok(())
    }

    /// Waking a thread that sleeps, of this CPU and no more urgent than the waker.
    #[goal(counted = 200)]
    fn wake_local(b: &mut Bencher) {
        let other = Other::start(b, |cx, over| {
            sched::wait::sleep_until_woken(cx, || over.load(Ordering::Relaxed));
        })?;
        let sleeper = other.thread();
        // The thread goes to sleep in its turn.
        b.sections(1, sched::yield_now, |_, ()| {
            sched::wake(sleeper);
        });
        other.stop(b);
        Ok(())
    }

    /// A timer that is taken back before its time.
    fn timer_arm_cancel(b: &mut Bencher) {
        static TIMER: Timer = Timer::new(|_| {});
        b.each(1, |_| {
            TIMER.arm_in(1_000_000_000);
            TIMER.cancel();
        });
        Ok(())
    }

    /// An item queued, run by this CPU's worker, and waited for.
    fn work_queue_run(b: &mut Bencher) {
        static ITEM: WorkItem = WorkItem::new(|_, _| {});
        b.each(1, |cx| {
            sched::queue_work(&ITEM);
            ITEM.flush(cx);
        });
        Ok(())
    }
}
