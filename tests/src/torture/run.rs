//! What a kind is given to start with, and what it gives.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::CpuId;
use sched::{JoinHandle, Mutex, Prio, thread::Thread};
use sync::{ATOMIC, MaySleep, Rng, SpinLock, lock_class};

use super::control;
use super::stat::Stat;
use crate::Failure;
use crate::run::seed_of;

/// A kind that has begun. The frame asks it for figures now and then; when the run is at its end and the threads are joined, it
/// stops it, asks for figures for the last time and drops it.
pub trait Ongoing: Send {
    /// Says how it is getting on.
    ///
    /// Context: thread that may sleep; the threads of the kind run.
    fn stat(&self, out: &mut Stat);

    /// Ends what still goes on without threads (timers, callbacks), puts back what was changed, and looks whether all is
    /// well: what [`stat`](Self::stat) says afterwards is final. A thread of its own does it, with a time limit.
    ///
    /// # Errors
    /// What is not well.
    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure>;
}

/// The first failure of a kind, which may come from any of its threads.
#[derive(Debug)]
pub(super) struct Failed(SpinLock<Option<Failure>>);

impl Failed {
    pub(super) fn new() -> Arc<Failed> {
        Arc::new(Failed(SpinLock::new(None, lock_class!("tests.torture_failed"))))
    }

    /// Whether there is one.
    pub(super) fn is_some(&self) -> bool {
        self.0.lock_irqsave(ATOMIC).is_some()
    }

    /// Keeps the failure if it is the first, and ends the run.
    pub(super) fn report(&self, failure: Failure) {
        self.0.lock_irqsave(ATOMIC).get_or_insert(failure);
        control::end();
    }

    pub(super) fn take(&self) -> Option<Failure> {
        self.0.lock_irqsave(ATOMIC).take()
    }
}

/// Threads that may run anywhere, for the disturber `shuffle`. Those that end leave it before, because afterwards they could be
/// others (`SCHED-3`). Held while their CPUs are changed, which sleeps.
pub(super) static MOVABLE: Mutex<Vec<&'static Thread>> = Mutex::new(Vec::new(), lock_class!("tests.torture_movable"));

/// What a kind is given to start with.
pub struct Run<'a> {
    /// The token of the thread that starts it.
    pub cx: &'a mut MaySleep,
    pub(super) name: &'static str,
    pub(super) seed: u64,
    pub(super) alone: bool,
    pub(super) failed: Arc<Failed>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

impl Run<'_> {
    /// Random numbers for `what`, the same in each run with this seed.
    pub fn rng(&self, what: &str) -> Rng {
        Rng::new(seed_of(self.seed, self.name, what))
    }

    /// Whether no other kind takes part.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Starts a thread, on CPU `on` alone or anywhere. It looks at [`control::stutter`] once a turn and returns when that says
    /// so; what it returns as a failure ends the run at once. The frame joins it.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn spawn(
        &mut self,
        name: &str,
        prio: Prio,
        on: Option<CpuId>,
        f: impl FnOnce(&mut MaySleep) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let failed = self.failed.clone();
        let body = move |cx: &mut MaySleep| {
            let me = sched::current();
            if on.is_none() {
                MOVABLE.lock(cx).push(me);
            }
            let result = f(cx);
            if on.is_none() {
                MOVABLE.lock(cx).retain(|&thread| !core::ptr::eq(thread, me));
            }
            result.unwrap_or_else(|failure| failed.report(failure));
        };
        let thread =
            sched::spawn(self.cx, name, prio, on, body).map_err(|error| crate::__failed!("{name}: {error}"))?;
        self.threads.push(thread);
        Ok(())
    }
}
