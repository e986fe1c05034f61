//! Torture of the scheduler and of the calls between CPUs: threads that need each other, see [`bustle`](crate::bustle).

use sched::Prio;
use sync::MaySleep;

use super::{Ongoing, Stat, control};
use crate::bustle::{Bustle, POSTS, Watch};
use crate::{Failure, torture};

impl Ongoing for Bustle {
    fn stat(&self, out: &mut Stat) {
        POSTS.into_iter().zip(self.steps()).for_each(|(post, steps)| out.work(post, steps));
        self.errors().into_iter().for_each(|(name, count)| out.error(name, count));
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        self.finish(cx)
    }
}

torture! {
    /// Threads that need each other's wake-ups, timers, work, calls and turns: none stands
    fn sched(run: &mut Run) {
        let seed = run.rng("bustle").next_u64();
        let bustle = Bustle::start(seed, |prio, on, life| {
            run.spawn("bustle", prio, on, |cx| {
                life(cx);
                Ok(())
            })
        })?;
        let watched = bustle.clone();
        run.spawn("watch", Prio::NORMAL, None, move |cx| {
            let mut watch = Watch::new();
            while !control::stutter(cx) {
                watch.look(&watched, cx)?;
            }
            Ok(())
        })?;
        Ok(bustle)
    }
}
