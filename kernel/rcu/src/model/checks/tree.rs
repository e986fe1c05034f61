//! Reports of CPUs, up a tree of two leaves.

use super::*;

/// A busy CPU: the tick learns and reports without a lock but the leaf's.
#[test]
fn loom_a_cpu_reports_what_came_after_it_learned_of_the_grace_period() {
    model(3, || {
        machine(&[1]);
        let element = Element::new();
        let theirs = element.clone();
        let cpu = on_cpu(1, move |_| {
            section(&theirs);
            tick();
            section(&theirs);
            tick();
            section(&theirs);
            retire();
        });
        update(&element);
        cpu.join().unwrap();
    });
}

/// One CPU in each leaf. One reads before and after it learns of the grace period, the other before; both idle in the end.
#[test]
fn loom_reports_of_two_leaves_end_a_grace_period_after_their_readers() {
    model(1, || {
        machine(&[1, 2]);
        let element = Element::new();
        let cpus = [1, 2].map(|cpu| {
            let element = element.clone();
            on_cpu(cpu, move |_| {
                section(&element);
                tick();
                if cpu == 1 {
                    section(&element);
                }
                retire();
            })
        });
        update(&element);
        cpus.into_iter().for_each(|cpu| cpu.join().unwrap());
    });
}

/// Two CPUs of one leaf, one of which idles meanwhile and reads in an interrupt; the thread may look too early.
#[test]
fn loom_looks_at_a_cpu_that_idles_count_as_its_report() {
    model(4, || {
        machine(&[0, 1]);
        sched::allow_time_outs(1);
        let element = Element::new();
        let theirs = element.clone();
        let cpu = on_cpu(1, move |_| {
            section(&theirs);
            eqs::idle_enter();
            eqs::irq_enter();
            section(&theirs);
            eqs::irq_exit();
            gp::hurry();
        });
        update(&element);
        cpu.join().unwrap();
    });
}

/// A CPU that never idles, and that nobody looks at: what it sees with the number has to say that it is asked.
#[test]
fn loom_a_busy_cpu_that_learns_of_a_grace_period_knows_that_it_is_asked() {
    model(2, || {
        machine(&[1]);
        let element = Element::new();
        let over = Arc::new(AtomicUsize::new(0));
        let (theirs, stop) = (element.clone(), over.clone());
        let cpu = on_cpu(1, move |_| {
            section(&theirs);
            while stop.load(Ordering::Relaxed) == 0 {
                tick();
                thread::yield_now();
            }
        });
        update(&element);
        over.store(1, Ordering::Relaxed);
        cpu.join().unwrap();
    });
}
