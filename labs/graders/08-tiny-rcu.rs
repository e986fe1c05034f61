//! Grades lab 8: readers that stay for as long as they like, on every CPU, and readers that follow each other.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arch::{CpuId, CpuMask, cpu, irq};
use sched::{cpu_off, cpu_on, current, set_affinity};
use sync::MaySleep;
use tests::together::{MS, Steps, soon, spawn, spin_until, two_cpus};
use tests::{Failure, ensure, ensure_eq, ktest};

use super::answer::{read_lock, synchronize};

/// Where the running thread may be.
fn go(cpus: CpuMask, cx: &mut MaySleep) -> Result<(), Failure> {
    ensure!(set_affinity(current(), &cpus, cx).is_ok(), "no way to {cpus:?}");
    Ok(())
}

/// `waits` while a reader is on `on` that stays for 60 ms after that began; false if the reader was still there at the end.
fn outlasts(
    on: CpuId,
    cx: &mut MaySleep,
    waits: impl FnOnce(&mut MaySleep),
) -> Result<bool, Failure> {
    let others = cpu::online() - CpuMask::of(on);
    let Some(helper) = others.iter().last() else { tests::skip!("needs two CPUs") };
    let (began, leaves, is_in) = (Steps::new(), Steps::new(), Arc::new(AtomicBool::new(true)));
    let reader = {
        let (began, leaves, is_in) = (began.clone(), leaves.clone(), is_in.clone());
        spawn(cx, Some(on), move |cx| {
            let guard = read_lock(cx);
            began.reach(1);
            spin_until(|| leaves.is_at(1));
            // Release: pairs with the Acquire below.
            is_in.store(false, Release);
            drop(guard);
        })?
    };
    go(others, cx)?;
    ensure!(soon(cx, || began.is_at(1)), "the reader begins");
    let timer = {
        let leaves = leaves.clone();
        spawn(cx, Some(helper), move |cx| {
            sched::sleep_ns(cx, 60 * MS);
            leaves.reach(1);
        })?
    };
    waits(cx);
    let is_over = !is_in.load(Acquire);
    leaves.reach(1);
    timer.join(cx);
    reader.join(cx);
    go(cpu::online(), cx)?;
    Ok(is_over)
}

ktest! {
    /// Nobody reads, and it comes back: again and again, and from each CPU.
    #[budget_ms(3_000)]
    fn it_returns_where_nobody_reads(t: &mut Test) {
        for cpu in cpu::online().iter() {
            go(CpuMask::of(cpu), t.cx)?;
            (0..5).for_each(|_| synchronize(t.cx));
        }
        go(cpu::online(), t.cx)
    }

    /// A reader that spins on a CPU, on each in turn.
    #[budget_ms(3_000)]
    fn it_waits_for_a_reader_on_any_cpu(t: &mut Test) {
        for cpu in cpu::online().iter() {
            let is_over = outlasts(cpu, t.cx, synchronize)?;
            ensure!(is_over, "synchronize was back while the reader on CPU {cpu} was still there");
        }
        Ok(())
    }

    /// Two readers that hand over to each other: at each moment one of them is there, and none stays.
    #[budget_ms(1_000)]
    fn readers_that_follow_each_other_do_not_hold_it_up(t: &mut Test) {
        static SECTIONS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
        static OVER: AtomicBool = AtomicBool::new(false);
        let (a, b) = two_cpus()?;
        SECTIONS.iter().for_each(|sections| sections.store(0, Relaxed));
        OVER.store(false, Relaxed);
        let mut readers = alloc::vec::Vec::new();
        for (at, on) in [a, b].into_iter().enumerate() {
            readers.push(spawn(t.cx, Some(on), move |cx| {
                while !OVER.load(Relaxed) {
                    let _guard = read_lock(cx);
                    let other = SECTIONS[1 - at].load(Relaxed);
                    SECTIONS[at].fetch_add(1, Relaxed);
                    // The other one has begun a section since this one did.
                    while SECTIONS[1 - at].load(Relaxed) == other && !OVER.load(Relaxed) {
                        irq::relax();
                    }
                }
            })?);
        }
        ensure!(soon(t.cx, || SECTIONS.iter().all(|sections| sections.load(Relaxed) > 10)), "the readers begin");
        synchronize(t.cx);
        OVER.store(true, Relaxed);
        readers.into_iter().for_each(|reader| reader.join(t.cx));
        Ok(())
    }

    /// A guard inside of a guard changes nothing.
    #[budget_ms(3_000)]
    fn readers_nest(t: &mut Test) {
        let (_, other) = two_cpus()?;
        let (began, leaves, is_in) = (Steps::new(), Steps::new(), Arc::new(AtomicBool::new(true)));
        let reader = {
            let (began, leaves, is_in) = (began.clone(), leaves.clone(), is_in.clone());
            spawn(t.cx, Some(other), move |cx| {
                let outer = read_lock(cx);
                drop(read_lock(cx));
                began.reach(1);
                let until = arch::clock::now_ns() + 60 * MS;
                spin_until(|| leaves.is_at(1) || arch::clock::now_ns() > until);
                // Release: pairs with the Acquire below.
                is_in.store(false, Release);
                drop(outer);
            })?
        };
        go(cpu::online() - CpuMask::of(other), t.cx)?;
        ensure!(soon(t.cx, || began.is_at(1)), "the reader begins");
        synchronize(t.cx);
        let is_over = !is_in.load(Acquire);
        leaves.reach(1);
        reader.join(t.cx);
        go(cpu::online(), t.cx)?;
        ensure!(is_over, "synchronize was back while the outer section was still there");
        Ok(())
    }

    /// Two threads wait for the same reader.
    #[budget_ms(3_000)]
    fn two_can_wait_at_the_same_time(t: &mut Test) {
        let (_, other) = two_cpus()?;
        let is_over = outlasts(other, t.cx, |cx| {
            let second = spawn(cx, Some(CpuId::BOOT), synchronize);
            synchronize(cx);
            if let Ok(second) = second {
                second.join(cx);
            }
        })?;
        ensure!(is_over, "synchronize was back while a reader was still there");
        Ok(())
    }

    /// CPUs that are not there have no readers.
    #[budget_ms(5_000)]
    fn it_works_while_a_cpu_is_offline(t: &mut Test) {
        let last = cpu::online().iter().last().unwrap_or(CpuId::BOOT);
        ensure!(cpu_off(last, t.cx).is_ok(), "CPU {last} does not go");
        synchronize(t.cx);
        ensure!(cpu_on(last, t.cx).is_ok(), "CPU {last} does not come back");
        synchronize(t.cx);
        Ok(())
    }

    /// It leaves no trace.
    #[budget_ms(3_000)]
    fn the_caller_may_run_where_it_could_before(t: &mut Test) {
        let (a, b) = two_cpus()?;
        for cpus in [CpuMask::of(b), CpuMask::of(a), cpu::online()] {
            go(cpus, t.cx)?;
            synchronize(t.cx);
            ensure_eq!(current().affinity(), cpus, "where the caller may run");
        }
        Ok(())
    }
}
