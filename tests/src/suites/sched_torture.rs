//! All that the scheduler and the calls between CPUs promise, at once: see [`bustle`](crate::bustle).

use alloc::vec::Vec;

use crate::bustle::{Bustle, Watch};
use crate::toggle::{others, toggle};
use crate::torture::control;
use crate::{Failure, Test, ktest};

/// Steps that each must have made.
const MIN_STEPS: u64 = 20;

/// Lets threads bustle until each has got somewhere, and then while `meanwhile` runs.
fn torture(t: &mut Test<'_>, meanwhile: fn(&mut Test<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut threads = Vec::new();
    control::begin();
    let bustle = Bustle::start(t.seed, |prio, on, life| {
        let thread = sched::spawn(t.cx, "bustle", prio, on, life);
        threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        Ok(())
    })?;
    let mut watch = Watch::new();
    // A failure leaves the threads as they are: who stands cannot be joined.
    while bustle.steps().any(|steps| steps < MIN_STEPS) {
        watch.look(&bustle, t.cx)?;
    }
    meanwhile(t)?;
    watch.look(&bustle, t.cx)?;
    control::end();
    threads.into_iter().for_each(|thread| thread.join(t.cx));
    t.note(format_args!(
        "{} steps, {} at the slowest post",
        bustle.steps().sum::<u64>(),
        bustle.steps().min().unwrap_or(0)
    ));
    bustle.finish(t.cx)
}

ktest! {
    /// Nobody stands, nothing is early, and nobody is where another is.
    #[tags(race)]
    fn threads_that_need_each_other_all_get_on(t: &mut Test) {
        torture(t, |_| Ok(()))
    }

    /// The same while CPUs go and come.
    #[tags(race)]
    fn threads_that_need_each_other_get_on_while_cpus_go_and_come(t: &mut Test) {
        others(t.cx)?;
        torture(t, |t| toggle(&others(t.cx)?, 3, &mut t.rng, t.cx))
    }
}
