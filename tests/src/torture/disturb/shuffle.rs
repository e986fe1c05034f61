//! Threads that are moved: all that may run anywhere leave one CPU after another, which then idles
//! (`torture.shuffle_interval`).
//!
//! Linux: `torture_shuffle` in `kernel/torture.c` (6.12).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::{CpuMask, cpu};
use sched::{Prio, set_affinity};
use sync::MaySleep;

use crate::together::MS;
use crate::torture::run::MOVABLE;
use crate::torture::{Ongoing, Stat, config, control};
use crate::{Failure, skip, torture};

#[derive(Default)]
struct Shuffles {
    shuffles: AtomicU64,
    moved: AtomicU64,
}

impl Shuffles {
    fn torture(&self, interval_ns: u64, cx: &mut MaySleep) -> Result<(), Failure> {
        let mut turn = 0;
        while !control::rest(cx, interval_ns) {
            // A CPU that goes meanwhile leaves those that may run nowhere else free to run anywhere.
            let online = cpu::online();
            let idle = online.iter().nth(turn % online.count()).map_or(CpuMask::EMPTY, CpuMask::of);
            let rest = if online.count() > 1 { online - idle } else { online };
            for &thread in MOVABLE.lock(cx).iter() {
                let moved = set_affinity(thread, &rest, cx);
                self.moved.fetch_add(u64::from(moved.is_ok()), Relaxed);
            }
            self.shuffles.fetch_add(1, Relaxed);
            turn += 1;
        }
        Ok(())
    }
}

impl Ongoing for Arc<Shuffles> {
    fn stat(&self, out: &mut Stat) {
        out.count("shuffles", self.shuffles.load(Relaxed));
        out.count("moved", self.moved.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        Ok(())
    }
}

torture! {
    /// Threads leave one CPU after another, every torture.shuffle_interval milliseconds
    #[disturber]
    fn shuffle(run: &mut Run) {
        let interval = u64::from(config::SHUFFLE_INTERVAL.get()) * MS;
        if interval == 0 || cpu::online_count() == 1 {
            skip!("torture.shuffle_interval=0, or one CPU");
        }
        let shuffles = Arc::new(Shuffles::default());
        let mine = shuffles.clone();
        run.spawn("shuffle", Prio::HIGH, None, move |cx| mine.torture(interval, cx))?;
        Ok(shuffles)
    }
}
