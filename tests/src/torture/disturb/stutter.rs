//! Pauses: everybody stops for a while, and begins again at the same time (`torture.stutter`).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sched::Prio;
use sync::MaySleep;

use crate::together::MS;
use crate::torture::{Ongoing, Stat, config, control};
use crate::{Failure, skip, torture};

#[derive(Default)]
struct Pauses(AtomicU64);

impl Ongoing for Arc<Pauses> {
    fn stat(&self, out: &mut Stat) {
        out.count("pauses", self.0.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        Ok(())
    }
}

torture! {
    /// Everybody pauses and begins again together, every torture.stutter milliseconds
    #[disturber]
    fn stutter(run: &mut Run) {
        let ns = u64::from(config::STUTTER.get()) * MS;
        if ns == 0 {
            skip!("torture.stutter=0");
        }
        let pauses = Arc::new(Pauses::default());
        let counter = pauses.clone();
        run.spawn("stutter", Prio::HIGH, None, move |cx| {
            while !control::rest(cx, ns) {
                control::pause(true);
                counter.0.fetch_add(1, Relaxed);
                control::rest(cx, ns);
                control::pause(false);
            }
            Ok(())
        })?;
        Ok(pauses)
    }
}
