//! The kinds `rcu`, `srcu` and `tasks` of torture, in short: that each comes through, and that what is broken on purpose is caught.
//!
//! A run that is worth something is `cargo xtask torture`; see `tests/src/torture/rcu/`.

use crate::outcome::Failure;
use crate::run::Test;
use crate::torture::kind::ROLE_LOAD;
use crate::torture::rcu::flavours::BUSTED;
use crate::torture::rcu::ops::Ops;
use crate::torture::rcu::setup::{Setup, StallWay};
use crate::torture::rcu::{Torture, fwd};
use crate::torture::session::rehearse;
use crate::torture::{Kind, Request};
use crate::{ensure, ktest};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// How long a kind runs here at least; longer, until it has done something of everything.
const DURATION_MS: u32 = 200;

static ONLY_BUSTED: [&Ops; 1] = [&BUSTED];

/// A kind that is not registered.
macro_rules! kind {
    ($name:literal, $setup:expr) => {{
        static KIND: Kind = Kind {
            name: $name,
            about: "",
            file: file!(),
            line: line!(),
            role: ROLE_LOAD,
            start: |run| Torture::start(run, $setup).map(|it| alloc::boxed::Box::new(it) as _),
        };
        &KIND
    }};
}

/// Readers, updaters and barriers of RCU, and nothing that takes seconds.
fn brief() -> Setup {
    Setup { fwd_holdoff_ns: 0, boost_interval_ns: 0, gp_delay_ns: 2 * MS, read_exit_delay_ns: 50 * MS, ..Setup::rcu() }
}

fn run(t: &mut Test<'_>, kind: &'static Kind) -> Result<(), Failure> {
    let request = Request { kinds: "", duration_ms: DURATION_MS, seed: t.seed };
    rehearse(kind, &request, t.cx)
}

/// Fails unless the torture fails with these words.
fn is_caught(t: &mut Test<'_>, kind: &'static Kind, words: &str) -> Result<(), Failure> {
    match run(t, kind) {
        Err(Failure::Failed { message, .. }) => {
            t.note(format_args!("{message}"));
            ensure!(message.contains(words));
            Ok(())
        }
        other => Err(crate::__failed!("not caught: {other:?}")),
    }
}

ktest! {
    /// C-2 to C-4 and C-6: updates of all kinds, each cookie checked, readers in every context, barriers, order of memory.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn rcu_comes_through_updates_of_all_kinds_at_random(t: &mut Test) {
        run(t, kind!("rcu", brief()))
    }

    /// The same for SRCU, and sections that end in another thread or in an interrupt.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn srcu_comes_through_updates_of_all_kinds_at_random(t: &mut Test) {
        run(t, kind!("srcu", Setup { read_exit_delay_ns: 50 * MS, ..Setup::srcu() }))
    }

    /// The same for Tasks RCU.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn tasks_rcu_comes_through_updates_of_all_kinds_at_random(t: &mut Test) {
        run(t, kind!("tasks", Setup { read_exit_delay_ns: 50 * MS, ..Setup::tasks() }))
    }

    /// C-7: who waits for nobody is seen by readers that hold on to what was replaced.
    #[budget_ms(60_000)]
    fn an_updater_that_waits_for_nobody_is_caught(t: &mut Test) {
        is_caught(t, kind!("rcu", Setup { ops: &ONLY_BUSTED, barrier_callbacks: 0, ..brief() }), "readers outlast")
    }

    /// C-7: so are readers that use what they found when their section is over.
    #[budget_ms(60_000)]
    fn a_leaked_pointer_is_caught(t: &mut Test) {
        is_caught(t, kind!("rcu", Setup { leak_pointers: true, ..brief() }), "readers outlast")
    }

    /// C-5: callbacks come back beside readers as fast as they are queued, and grace periods pass beside a thread that reads.
    #[budget_ms(60_000)]
    fn a_flood_of_callbacks_does_not_outrun_grace_periods(t: &mut Test) {
        run(t, kind!("rcu", Setup { fwd_holdoff_ns: MS, ..brief() }))
    }

    /// C-5: a flood that reclaim asks to stop gives back all it has.
    #[budget_ms(60_000)]
    fn a_flood_stops_when_memory_is_short(t: &mut Test) {
        let reclaim = sched::spawn(t.cx, "reclaim", sched::Prio::HIGH, None, |cx| {
            let mut asked = 0;
            while fwd::stopped_floods() == 0 && asked < 2_000 {
                // Nothing is what it needs, so every shrinker is asked for everything.
                mm::shrinker::reclaim_until(1, cx, || None::<()>);
                asked += 1;
                sched::sleep_ns(cx, MS);
            }
        });
        let reclaim = reclaim.map_err(|error| crate::__failed!("{error}"))?;
        let result = run(t, kind!("rcu", Setup { fwd_holdoff_ns: MS, ..brief() }));
        reclaim.join(t.cx);
        result?;
        ensure!(fwd::stopped_floods() != 0, "no flood was stopped");
        Ok(())
    }

    /// C-7: a reader behind more urgent threads on all CPUs gets one, with all else going on.
    #[budget_ms(60_000)]
    fn boosting_works_under_torture(t: &mut Test) {
        let _delay = crate::together::BoostDelay::new(20);
        run(t, kind!("rcu", Setup { boost_interval_ns: 10 * MS, ..brief() }))
    }

    /// C-7: CPUs are offloaded and not, with all else going on.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn offloading_is_switched_under_torture(t: &mut Test) {
        run(t, kind!("rcu", Setup { toggle_ns: 5 * MS, ..brief() }))
    }

    /// C-7: stalls of each sort are reported, with all else going on.
    #[tags(slow)]
    #[budget_ms(120_000)]
    fn stalls_on_purpose_are_reported_under_torture(t: &mut Test) {
        fn stalling(way: StallWay) -> Setup {
            Setup { stall: Some(way), stall_ns: 400 * MS, stall_holdoff_ns: 10 * MS, gp_delay_ns: 0, ..brief() }
        }
        run(t, kind!("rcu", stalling(StallWay::NoPreemption)))?;
        run(t, kind!("rcu", stalling(StallWay::NoInterrupts)))?;
        run(t, kind!("rcu", stalling(StallWay::LostCpu)))?;
        run(t, kind!("rcu", stalling(StallWay::GpThread)))
    }
}
