//! Allocations of objects that fail (`torture.failslab`). Only caches that belong to kinds which bear it are named there: others
//! are used by code that cannot go on without memory.

use alloc::sync::Arc;

use slab::fail;
use sync::fault::Plan;
use sync::{ATOMIC, MaySleep, SpinLock, lock_class};

use crate::torture::{Ongoing, Stat, config};
use crate::{Failure, ensure, skip, torture};

/// What became of the plan, once it is over. Read and written by the thread of the run.
struct Faults(SpinLock<Option<fail::Report>>);

impl Ongoing for Arc<Faults> {
    fn stat(&self, out: &mut Stat) {
        if let Some(report) = *self.0.lock_irqsave(ATOMIC) {
            out.work("seen", report.seen);
            out.work("failed", report.failed);
        }
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        let report = fail::stop(cx);
        ensure!(report.is_some(), "somebody else ended it");
        *self.0.lock_irqsave(ATOMIC) = report;
        Ok(())
    }
}

torture! {
    /// Allocations from the caches that torture.failslab names fail by its rule
    #[disturber]
    fn failslab(run: &mut Run) {
        let Some((rule, caches)) = fail::parse(config::FAIL_SLAB.get()) else {
            skip!("torture.failslab is empty");
        };
        let plan = Plan::Rule { rule, seed: run.rng("failslab").next_u64() };
        fail::start(plan, caches, None, run.cx).map_err(|error| crate::__failed!("torture.failslab: {error}"))?;
        let class = lock_class!("tests.torture_failslab");
        Ok(Arc::new(Faults(SpinLock::new(None, class))))
    }
}
