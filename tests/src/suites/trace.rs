//! Backtraces of threads that do not run.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sched::trace::{NotAtRest, backtrace_of};
use sched::{Completion, Prio, Thread};
use sync::MaySleep;

use crate::{Failure, ensure, ensure_eq, ktest};

/// Traces that are taken of threads on the move.
const TRACES: u32 = 2_000;

/// Most addresses that are looked at.
const ROOM: usize = 64;

/// The trace of a thread at rest.
fn trace(thread: &'static Thread, tid: u64) -> Result<Vec<u64>, NotAtRest> {
    let mut addresses = Vec::with_capacity(ROOM);
    backtrace_of(thread, tid, &mut |ip| {
        if addresses.len() < ROOM {
            addresses.push(ip);
        }
    })?;
    Ok(addresses)
}

fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(cx, "traced", Prio::NORMAL, None, f).map_err(|error| crate::__failed!("traced: {error}"))
}

/// Goes to sleep this many calls deep.
#[inline(never)]
fn sleep_deep(cx: &mut MaySleep, depth: u32, until: &Completion) -> u32 {
    if depth == 0 {
        until.wait(cx);
        return 0;
    }
    1 + core::hint::black_box(sleep_deep(cx, core::hint::black_box(depth - 1), until))
}

ktest! {
    /// The trace leads through the function that it sleeps in, as often as that has been called.
    fn a_sleeping_thread_is_traced_to_where_it_sleeps(t: &mut Test) {
        let until = Arc::new(Completion::new());
        let theirs = until.clone();
        let handle = spawn(t.cx, move |cx| sleep_deep(cx, 7, &theirs))?;
        let (thread, tid) = (handle.thread(), handle.thread().tid());
        let addresses = loop {
            // Before the trace: a thread that has not run yet has one, too.
            let sleeps = thread.state() == sched::State::Sleeping;
            match trace(thread, tid) {
                Ok(addresses) if sleeps => break addresses,
                _ => sched::sleep_ns(t.cx, 1_000_000),
            }
        };
        until.complete_all();
        ensure_eq!(handle.join(t.cx), 7);
        let start = sleep_deep as fn(&mut MaySleep, u32, &Completion) -> u32 as usize as u64;
        let inside = addresses.iter().filter(|&&ip| (start..start + 256).contains(&ip)).count();
        ensure!(inside >= 7, "{inside} frames of sleep_deep at {start:#x} in {addresses:x?}");
        Ok(())
    }

    /// A trace that is torn by its thread running on would not lead back to where all threads begin.
    #[tags(race)]
    #[budget_ms(30_000)]
    fn threads_on_the_move_are_traced_whole_or_not_at_all(t: &mut Test) {
        let over = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU32::new(0));
        let mut handles = Vec::new();
        for _ in 0..3 {
            let (over, turns) = (over.clone(), turns.clone());
            handles.push(spawn(t.cx, move |cx| {
                while !over.load(Ordering::Relaxed) {
                    turns.fetch_add(1, Ordering::Relaxed);
                    sched::yield_now(cx);
                    sched::sleep_ns(cx, 20_000);
                }
            })?);
        }
        let threads: Vec<_> = handles.iter().map(|handle| (handle.thread(), handle.thread().tid())).collect();
        let (mut whole, mut bottoms, mut empty) = (0, Vec::new(), 0);
        for round in 0..TRACES {
            let (thread, tid) = threads[round as usize % threads.len()];
            if let Ok(addresses) = trace(thread, tid) {
                whole += 1;
                match addresses.last() {
                    Some(&bottom) if !bottoms.contains(&bottom) => bottoms.push(bottom),
                    Some(_) => {}
                    None => empty += 1,
                }
            }
            if round % 16 == 0 {
                sched::sleep_ns(t.cx, 50_000);
            }
        }
        over.store(true, Ordering::Relaxed);
        handles.into_iter().for_each(|handle| handle.join(t.cx));
        t.note(format_args!("{whole} of {TRACES} traces, {} turns", turns.load(Ordering::Relaxed)));
        ensure!(whole > 0, "no thread was ever found at rest");
        // A thread that has not run yet begins with the trampoline, which is also where all others lead back to.
        ensure!(empty == 0 && bottoms.len() <= 2, "{empty} empty traces; they end at {bottoms:x?}");
        Ok(())
    }

    /// Who has gone is not taken for the next tenant of its structure.
    fn a_thread_that_has_ended_has_no_trace(t: &mut Test) {
        // It must not be gone before its number is read.
        let until = Arc::new(Completion::new());
        let theirs = until.clone();
        let handle = spawn(t.cx, move |cx| theirs.wait(cx))?;
        let (thread, tid) = (handle.thread(), handle.thread().tid());
        until.complete_all();
        handle.join(t.cx);
        while thread.tid() == tid {
            sched::sleep_ns(t.cx, 1_000_000);
        }
        ensure_eq!(trace(thread, tid), Err(NotAtRest::Gone));
        Ok(())
    }
}
