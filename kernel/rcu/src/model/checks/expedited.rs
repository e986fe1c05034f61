//! Expedited grace periods.

use super::*;
use crate::model::sync::smp;

/// Runs `reader` as CPU 1, which then idles, and two requests meanwhile, each of which frees what it replaced before.
fn expedite(reader: fn(&Element)) {
    machine(&[1]);
    let elements = [Element::new(), Element::new()];
    let theirs = elements[0].clone();
    let cpu = on_cpu(1, move |cx| {
        reader(&theirs);
        eqs::idle_enter();
        while smp::halt(cx, eqs::irq_enter, eqs::irq_exit) {}
    });
    let request = |element: &Element, cx: &mut MaySleep| {
        element.replace();
        exp::wait(cx);
        element.free();
    };
    let second = elements[1].clone();
    let other = on_cpu(2, move |cx| request(&second, cx));
    request(&elements[0], &mut token());
    other.join().unwrap();
    sched::end_waiting();
    smp::wake_halted();
    cpu.join().unwrap();
}

#[test]
fn loom_an_interrupted_reader_answers_at_its_end() {
    model(2, || {
        expedite(|element| {
            let reading = read_lock(ATOMIC);
            let found = element.find();
            smp::answer();
            found.use_it();
            drop(reading);
        });
    });
}

#[test]
fn loom_a_reader_that_is_switched_out_answers_for_itself() {
    model(2, || {
        expedite(|element| {
            let (me, other) = (sched::current(), new_thread());
            let reading = read_lock(ATOMIC);
            let found = element.find();
            switch(me, other);
            smp::answer();
            switch(other, me);
            found.use_it();
            drop(reading);
        });
    });
}

#[test]
fn loom_a_section_with_preemption_off_answers_when_it_is_on() {
    model(2, || {
        expedite(|element| {
            context::counted(1, || {
                let found = element.find();
                smp::answer();
                found.use_it();
            });
            if context::take_need_resched() {
                switch(sched::current(), sched::current());
            }
        });
    });
}
