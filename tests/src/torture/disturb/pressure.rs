//! Memory that is short: so much of it is held for a moment, and given back, again and again (`torture.pressure`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm::{AllocFlags, Page, alloc_pages, free_pages};
use sched::Prio;
use sync::{MaySleep, Rng};

use crate::together::MS;
use crate::torture::{Ongoing, Stat, config, control};
use crate::{Failure, skip, torture};

/// Orders of the blocks that are held: 0 to this.
const MAX_ORDER: u64 = 6;
/// The longest that all is held.
const HELD_NS: u64 = 50 * MS;

#[derive(Default)]
struct Pressure {
    squeezes: AtomicU64,
    most_pages: AtomicU64,
    refused: AtomicU64,
}

impl Pressure {
    fn squeeze(&self, pages: usize, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::stutter(cx) {
            let (mut held, mut sum) = (Vec::<(&'static Page, usize)>::new(), 0);
            while sum < pages && !control::should_stop() {
                let order = rng.below(MAX_ORDER + 1) as usize;
                // The list itself may find no memory, too.
                match held.try_reserve(1).ok().and_then(|()| alloc_pages(order, None, AllocFlags::NOWARN).ok()) {
                    Some(page) => {
                        held.push((page, order));
                        sum += 1 << order;
                    }
                    None => {
                        self.refused.fetch_add(1, Relaxed);
                        break;
                    }
                }
                sched::cond_resched(cx);
            }
            self.most_pages.fetch_max(sum as u64, Relaxed);
            control::rest(cx, rng.below(HELD_NS));
            held.into_iter().for_each(|(page, order)| free_pages(page, order));
            self.squeezes.fetch_add(1, Relaxed);
            control::rest(cx, rng.below(HELD_NS));
        }
        Ok(())
    }
}

impl Ongoing for Arc<Pressure> {
    fn stat(&self, out: &mut Stat) {
        out.work("squeezes", self.squeezes.load(Relaxed));
        out.work("most_pages", self.most_pages.load(Relaxed));
        out.count("refused", self.refused.load(Relaxed));
    }

    fn stop(&mut self, _cx: &mut MaySleep) -> Result<(), Failure> {
        Ok(())
    }
}

torture! {
    /// So many percent of the free memory are held for a moment again and again (torture.pressure)
    #[disturber]
    fn pressure(run: &mut Run) {
        let percent = config::PRESSURE.get() as usize;
        if percent == 0 {
            skip!("torture.pressure=0");
        }
        let pages = mm::stats::free_pages() * percent / 100;
        let pressure = Arc::new(Pressure::default());
        let (mine, rng) = (pressure.clone(), run.rng("pressure"));
        run.spawn("pressure", Prio::NORMAL, None, move |cx| mine.squeeze(pages, rng, cx))?;
        Ok(pressure)
    }
}
