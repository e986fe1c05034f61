//! Threads: where they run, and that everybody gets their turn.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::cpu;

use crate::{ensure_eq, ktest};

ktest! {
    /// A thread that is bound to a CPU runs there, also after it has slept.
    fn a_bound_thread_stays_on_its_cpu(t: &mut Test) {
        for id in cpu::online().iter() {
            let thread = sched::spawn(t.cx, "bound", sched::Prio::NORMAL, Some(id), |cx| {
                let before = cpu::current();
                sched::sleep_ns(cx, 1_000_000);
                (before, cpu::current())
            });
            let thread = thread.map_err(|error| crate::__failed!("{error}"))?;
            ensure_eq!(thread.join(t.cx), (id, id));
        }
        Ok(())
    }

    /// Many threads that yield all come to an end.
    #[tags(race)]
    fn threads_that_yield_all_finish(t: &mut Test) {
        static TURNS: AtomicU64 = AtomicU64::new(0);
        const THREADS: u64 = 32;
        TURNS.store(0, Ordering::Relaxed);
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let thread = sched::spawn(t.cx, "yielder", sched::Prio::NORMAL, None, |cx| {
                for _ in 0..10 {
                    TURNS.fetch_add(1, Ordering::Relaxed);
                    sched::yield_now(cx);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_eq!(TURNS.load(Ordering::Relaxed), THREADS * 10);
        Ok(())
    }
}
