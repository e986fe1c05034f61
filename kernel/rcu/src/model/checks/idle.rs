//! Counters alone: no tree, no lock.

use super::*;
use crate::eqs::{Look, before_looks, look_at};
use crate::model::arch::CpuId;
use crate::model::sync::atomic::AtomicBool;
use crate::seq::SeqCounter;

/// One grace period of `seq` that has CPU 1 alone to look at, as set-up and scan do.
fn grace_period(seq: &SeqCounter) {
    seq.start();
    before_looks();
    let reader = shared(CpuId::new(1));
    let at_start = look_at(reader);
    while at_start != Look::Idle && look_at(reader) == at_start {
        thread::yield_now();
    }
    seq.end();
}

/// An interrupt in idle reads, an updater waits by asking, and one grace period may run already when it comes.
#[test]
fn loom_a_reader_in_idle_is_seen_or_sees_the_update() {
    model(3, || {
        machine(&[]);
        let (element, seq, asked) = (Element::new(), Arc::new(SeqCounter::new()), Arc::new(AtomicBool::new(false)));
        let theirs = element.clone();
        let reader = on_cpu(1, move |_| {
            eqs::irq_enter();
            theirs.find();
            eqs::irq_exit();
        });
        let (counter, wish) = (seq.clone(), asked.clone());
        let updater = on_cpu(2, move |_| {
            element.replace();
            let target = counter.snap();
            // Orders nothing: whoever counts on the snapshot counts on its fence.
            wish.store(true, Ordering::Relaxed);
            while !counter.done(target) {
                thread::yield_now();
            }
            element.free();
        });
        grace_period(&seq);
        while !asked.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        // The snapshot may have been taken while the first one ran.
        grace_period(&seq);
        reader.join().unwrap();
        updater.join().unwrap();
    });
}
