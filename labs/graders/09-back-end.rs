//! Grades lab 9: objects that know whether they are free, given up under readers, in interrupts, by thousands.

use alloc::vec::Vec;

use arch::{CpuId, CpuMask, cpu};
use rcu::{rcu_barrier, read_lock, synchronize_rcu};
use sched::{cpu_off, cpu_on, current, set_affinity};
use sync::{ATOMIC, IrqGuard, MaySleep, smp};
use tests::stepping::{Visit, runs, step};
use tests::together::{MS, Steps, reader_between, spin_until};
use tests::{Failure, ensure, ensure_eq, ktest};

use super::answer::{barrier, free_later, waiting};
use crate::elsewhere;
use crate::pool::{self, Object};

/// Gives up so many.
fn give_up(count: usize) {
    (0..count).for_each(|_| free_later(pool::alloc()));
}

/// Gives up these.
fn give_up_these(objects: &[&'static Object]) {
    objects.iter().for_each(|object| free_later(object));
}

fn some(count: usize) -> Vec<&'static Object> {
    (0..count).map(|_| pool::alloc()).collect()
}

fn used(objects: &[&Object]) -> usize {
    objects.iter().filter(|object| object.is_used()).count()
}

/// How many of them are in use when there was time for several grace periods, and for whoever looks now and then.
fn left(objects: &[&Object], cx: &mut MaySleep) -> usize {
    for _ in 0..5 {
        synchronize_rcu(cx);
        rcu_barrier(cx);
        sched::sleep_ns(cx, 30 * MS);
    }
    used(objects)
}

/// Nothing was freed twice.
fn no_free_twice() -> Result<(), Failure> {
    ensure_eq!(pool::freed().1, 0, "frees of objects that were free");
    Ok(())
}

/// Three CPUs: where the test runs from now on, and two others.
fn three_cpus(cx: &mut MaySleep) -> Result<[CpuId; 3], Failure> {
    let online: Vec<CpuId> = cpu::online().iter().collect();
    let [here, a, b, ..] = online[..] else { tests::skip!("needs three CPUs") };
    ensure!(set_affinity(current(), &CpuMask::of(here), cx).is_ok(), "no way to CPU {here}");
    Ok([here, a, b])
}

/// The other CPU does its work.
struct Elsewhere;

impl Visit for Elsewhere {
    fn visit() {
        elsewhere::ask();
    }
}

ktest! {
    /// A reader on another CPU, which is there when the object is given up.
    #[budget_ms(1_500)]
    fn a_reader_keeps_what_was_given_up(t: &mut Test) {
        let [_, other, _] = three_cpus(t.cx)?;
        let steps = Steps::new();
        let reader = reader_between(t.cx, other, &steps)?;
        ensure!(spin_until(|| steps.is_at(1)), "the reader begins");
        let objects = some(100);
        give_up_these(&objects);
        sched::sleep_ns(t.cx, 60 * MS);
        let still = used(&objects);
        steps.reach(2);
        reader.join(t.cx);
        ensure_eq!(still, 100, "objects that were not freed, of 100 that the reader could see");
        ensure_eq!(left(&objects, t.cx), 0, "objects, of 100, that are not free long after the reader");
        no_free_twice()
    }

    /// A reader that began while the back end was waiting already, for other objects.
    #[budget_ms(1_500)]
    fn a_reader_that_came_later_keeps_what_it_found(t: &mut Test) {
        let [_, first, second] = three_cpus(t.cx)?;
        let (early, late) = (Steps::new(), Steps::new());
        let early_reader = reader_between(t.cx, first, &early)?;
        ensure!(spin_until(|| early.is_at(1)), "the first reader begins");
        give_up(10);
        // By now a grace period waits for the first reader, and for nobody who comes later.
        sched::sleep_ns(t.cx, 30 * MS);
        let late_reader = reader_between(t.cx, second, &late)?;
        ensure!(spin_until(|| late.is_at(1)), "the second reader begins");
        let objects = some(10);
        give_up_these(&objects);
        early.reach(2);
        early_reader.join(t.cx);
        sched::sleep_ns(t.cx, 60 * MS);
        let still = used(&objects);
        late.reach(2);
        late_reader.join(t.cx);
        ensure_eq!(still, 10, "objects that were not freed, of 10 that the second reader could see");
        no_free_twice()
    }

    /// One object, and nobody comes after it.
    #[budget_ms(1_500)]
    fn what_is_given_up_is_freed_without_another_call(t: &mut Test) {
        for count in [1, 3, 70] {
            let objects = some(count);
            give_up_these(&objects);
            ensure_eq!(left(&objects, t.cx), 0, "objects, of {count}, that are never freed");
        }
        no_free_twice()
    }

    /// Batches: RCU is asked for few things.
    #[budget_ms(1_500)]
    fn a_thousand_objects_cost_a_few_callbacks(t: &mut Test) {
        let callbacks = || rcu::cpu_stats().map(|stats| stats.callbacks_run).sum::<u64>();
        barrier(t.cx);
        let before = callbacks();
        for _ in 0..10 {
            let reader = read_lock(t.cx);
            give_up(100);
            drop(reader);
        }
        barrier(t.cx);
        let cost = callbacks() - before;
        ensure!(cost <= 60, "{cost} callbacks for 1,000 objects");
        ensure_eq!(waiting(), 0, "objects left");
        no_free_twice()
    }

    /// Whatever was given before, on whatever CPU, at whatever moment of the back end.
    #[budget_ms(2_500)]
    fn after_the_barrier_all_is_free(t: &mut Test) {
        for round in 0..10 {
            let objects = some(80);
            let (first, second) = objects.split_at(40);
            smp::run_on_mask(&cpu::online(), |cpu| give_up_these(&first[cpu.index() * 10..][..10]));
            if round % 2 == 1 {
                sched::sleep_ns(t.cx, round * MS);
            }
            smp::run_on_mask(&cpu::online(), |cpu| give_up_these(&second[cpu.index() * 10..][..10]));
            barrier(t.cx);
            ensure_eq!(used(&objects), 0, "objects that are not free after the barrier, round {round}");
        }
        no_free_twice()
    }

    /// In an interrupt, with interrupts off, in a thread: all at once.
    #[budget_ms(1_500)]
    fn interrupts_give_up_objects_too(t: &mut Test) {
        let before = pool::freed().0;
        for _ in 0..20 {
            smp::run_on_mask(&cpu::online(), |_| give_up(3));
            let _irqs_off = IrqGuard::new(ATOMIC);
            give_up(3);
        }
        barrier(t.cx);
        let expected = 20 * 3 * (cpu::online_count() as u64 + 1);
        ensure_eq!(pool::freed().0 - before, expected, "objects that were freed");
        no_free_twice()
    }

    /// The other CPU gives up objects at any instruction boundary of a call.
    #[budget_ms(2_500)]
    fn two_cpus_that_give_up_at_the_same_time_lose_nothing(t: &mut Test) {
        let [_, other, _] = three_cpus(t.cx)?;
        barrier(t.cx);
        let used_before = pool::used();
        elsewhere::with(t.cx, other, || give_up(1), |_| {
            runs(&[1, 2]).for_each(|run| _ = step::<Elsewhere>(run, || give_up(1)));
        })?;
        barrier(t.cx);
        ensure_eq!(pool::used(), used_before, "objects that are in use when all were given up and are free");
        no_free_twice()
    }

    /// A CPU goes when it has just been given some, and comes back.
    #[budget_ms(2_500)]
    fn what_a_cpu_was_given_is_freed_though_it_goes(t: &mut Test) {
        let [_, _, other] = three_cpus(t.cx)?;
        let steps = Steps::new();
        let reader = reader_between(t.cx, CpuId::new(1), &steps)?;
        ensure!(spin_until(|| steps.is_at(1)), "the reader begins");
        let objects = some(60);
        smp::run_on(other, || give_up_these(&objects[..50]));
        let gone = cpu_off(other, t.cx);
        steps.reach(2);
        reader.join(t.cx);
        let kept = left(&objects[..50], t.cx);
        let back = cpu_on(other, t.cx);
        smp::run_on(other, || give_up_these(&objects[50..]));
        ensure!(gone.is_ok() && back.is_ok(), "CPU {other} goes and comes");
        ensure_eq!(kept, 0, "objects, of 50, that are not free, and their CPU has gone");
        ensure_eq!(left(&objects, t.cx), 0, "objects of a CPU that came back");
        no_free_twice()
    }

    /// A count to the object.
    #[budget_ms(1_500)]
    fn what_waits_is_counted(t: &mut Test) {
        let [_, other, _] = three_cpus(t.cx)?;
        barrier(t.cx);
        ensure_eq!(waiting(), 0, "nothing was given up since the barrier");
        let steps = Steps::new();
        let reader = reader_between(t.cx, other, &steps)?;
        ensure!(spin_until(|| steps.is_at(1)), "the reader begins");
        give_up(30);
        smp::run_on(other, || give_up(12));
        let count = waiting();
        steps.reach(2);
        reader.join(t.cx);
        barrier(t.cx);
        ensure_eq!((count, waiting()), (42, 0), "what waits behind a reader, and after a barrier");
        Ok(())
    }
}
