//! What can be seen of memory that waits on RCU: by cache and stage, to the byte, and in the out-of-memory report.

use alloc::string::String;

use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::{kfree_rcu_object, kvfree_rcu_barrier};
use slab::RawCache;
use slab::waiting::{Stage, Waiting};
use sync::MaySleep;

use crate::kfree::{cache, node};
use crate::together::{MS, soon, spin_until};
use crate::{Failure, ensure, ensure_eq, ktest};

/// Gives `count` objects up while a reader of RCU keeps all of them; what then waits of the cache.
fn give(cache: &'static RawCache, count: usize, t: &mut MaySleep) -> Result<slab::waiting::ByStage, Failure> {
    let section = rcu::read_lock(sync::ATOMIC);
    for _ in 0..count {
        let node = node(cache).ok_or_else(|| crate::__failed!("no memory"))?;
        // SAFETY: allocated here, and nobody else knows it.
        unsafe { kfree_rcu_object(node) };
    }
    let seen = cache.waiting();
    drop(section);
    kvfree_rcu_barrier(t);
    Ok(seen)
}

ktest! {
    /// Whatever the back end, every object that was given counts with its bytes until it is free, at its stage.
    fn every_byte_that_waits_is_counted_where_it_is_until_it_is_free(t: &mut Test) {
        let in_use = backend::current();
        let cache = cache("test_view_stages")?;
        let mut result = Ok(());
        for back_end in BackEnd::ALL {
            backend::switch(back_end, t.cx);
            let count = 3 * cache.sheaf_capacity() + 5;
            let seen = give(cache, count, t.cx)?;
            let stages: &[Stage] = match back_end {
                BackEnd::Sheaf if cache.sheaf_capacity() != 0 => &[Stage::Sheaf, Stage::Detached],
                BackEnd::Sheaf | BackEnd::Bulk => &[Stage::Bulk],
                BackEnd::Pending => &[Stage::Pending],
                BackEnd::CallRcu => &[Stage::CallRcu],
            };
            let total = seen.total();
            let there: u64 = stages.iter().map(|&stage| seen.at(stage).objects).sum();
            let right = (total.objects, total.bytes, there) == (count as u64, (count * cache.size()) as u64, count as u64);
            let after = cache.waiting().total();
            if !right || after != Waiting::default() {
                result = Err(crate::__failed!("{}: {count} objects; {seen:?}, then {after:?}", back_end.name()));
                break;
            }
        }
        backend::switch(in_use, t.cx);
        result
    }

    /// And since when, which only the back ends know.
    fn the_out_of_memory_report_says_since_when_objects_wait(t: &mut Test) {
        let (in_use, cache) = (backend::current(), cache("test_view_since")?);
        let mut result = Ok(());
        for back_end in BackEnd::ENGINES {
            backend::switch(back_end, t.cx);
            let node = node(cache).ok_or_else(|| crate::__failed!("no memory"))?;
            let mut report = String::new();
            let section = rcu::read_lock(sync::ATOMIC);
            // SAFETY: allocated here, and nobody else knows it.
            unsafe { kfree_rcu_object(node) };
            let since_ns = arch::clock::now_ns();
            while arch::clock::now_ns() - since_ns < 2_000_000 {
                arch::irq::relax();
            }
            let written = mm::oom::write_report(&mut report);
            drop(section);
            let name = alloc::format!("  {}: ", back_end.name());
            let mut lines = report.lines().filter(|line| line.starts_with(&name));
            let is_there = lines.any(|line| line.contains("the oldest for") && !line.contains("for 0 ms"));
            if written.is_err() || !is_there {
                result = Err(crate::__failed!("nothing of {} in:\n{report}", back_end.name()));
                break;
            }
        }
        backend::switch(in_use, t.cx);
        result
    }

    /// The report of a machine without memory says what waits, of whom, and at what stage.
    fn the_out_of_memory_report_says_what_waits_on_rcu(t: &mut Test) {
        let cache = cache("test_view_oom")?;
        let section = rcu::read_lock(sync::ATOMIC);
        // More than anything else that waits.
        let count = 20_000;
        for _ in 0..count {
            let node = node(cache).ok_or_else(|| crate::__failed!("no memory"))?;
            // SAFETY: allocated here, and nobody else knows it.
            unsafe { kfree_rcu_object(node) };
        }
        let mut report = String::new();
        let written = mm::oom::write_report(&mut report);
        drop(section);
        kvfree_rcu_barrier(t.cx);
        ensure!(written.is_ok());
        ensure!(report.contains("memory that waits on RCU:"), "{report}");
        let line = alloc::format!("of test_view_oom: {count} objects, {} bytes", count * cache.size());
        ensure!(report.contains(&line), "no `{line}` in:\n{report}");
        ensure_eq!(cache.waiting().total(), Waiting::default());
        Ok(())
    }

    /// S3-17: of a grace period that takes unusually long the report says so, and for whom it waits.
    fn the_out_of_memory_report_tells_of_a_grace_period_that_takes_long(t: &mut Test) {
        let section = rcu::read_lock(sync::ATOMIC);
        let cookie = rcu::start_poll();
        let is_old = spin_until(|| rcu::age_ns().is_some_and(|ns| ns > 600 * MS));
        let mut report = String::new();
        let written = mm::oom::write_report(&mut report);
        drop(section);
        ensure!(is_old && written.is_ok());
        ensure!(report.contains("which is unusually long: it waits for"), "{report}");
        ensure!(!report.contains("waits for 0 CPUs and 0 preempted readers"), "{report}");
        ensure!(soon(t.cx, || rcu::poll(cookie)));
        Ok(())
    }
}
