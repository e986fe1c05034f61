//! Readers that are switched out, and reports that are put off.

use super::*;

/// It goes on on a CPU of the other leaf, which was idle till then.
#[test]
fn loom_a_reader_that_is_switched_out_holds_the_grace_period_up_and_takes_its_section_along() {
    model(3, || {
        machine(&[1, 2]);
        run_as(2);
        eqs::idle_enter();
        run_as(0);
        let element = Element::new();
        let theirs = element.clone();
        let reader = on_cpu(1, move |_| {
            let (me, other) = (sched::current(), new_thread());
            let reading = read_lock(ATOMIC);
            let found = theirs.find();
            switch(me, other);
            retire();
            // This thread of the model is the second CPU from here on: the scheduler orders the one before the other.
            run_as(2);
            eqs::idle_exit();
            switch(other, me);
            found.use_it();
            drop(reading);
            retire();
        });
        update(&element);
        reader.join().unwrap();
    });
}

/// The section ends with preemption off, after the tick has asked for a report: it goes on until preemption is on.
#[test]
fn loom_a_reader_that_ends_with_preemption_off_goes_on_till_it_is_on() {
    model(3, || {
        machine(&[1]);
        let element = Element::new();
        let theirs = element.clone();
        let reader = on_cpu(1, move |_| {
            let reading = read_lock(ATOMIC);
            let found = theirs.find();
            tick();
            context::counted(1, || {
                drop(reading);
                tick();
                found.use_it();
            });
            if context::take_need_resched() {
                switch(sched::current(), sched::current());
            }
            qs::core();
            retire();
        });
        update(&element);
        reader.join().unwrap();
    });
}

/// The same with interrupts off, and a reader that had been switched out: the self-interrupt takes it off its list.
#[test]
fn loom_a_reader_that_ends_with_interrupts_off_goes_on_till_they_are_on() {
    model(3, || {
        machine(&[1]);
        let element = Element::new();
        let theirs = element.clone();
        let reader = on_cpu(1, move |_| {
            let (me, other) = (sched::current(), new_thread());
            let reading = read_lock(ATOMIC);
            let found = theirs.find();
            switch(me, other);
            switch(other, me);
            let off = IrqGuard::new(ATOMIC);
            drop(reading);
            found.use_it();
            drop(off);
            retire();
        });
        update(&element);
        reader.join().unwrap();
    });
}
