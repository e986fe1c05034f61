//! Trace points: what they record, in which context, and what becomes of it.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arch::cpu;
use sync::trace::{self, Event};
use sync::{ATOMIC, IrqGuard, PreemptGuard, smp};

use crate::stepping::{self, Visit};
use crate::{ensure, ensure_eq, ktest, skip};

/// The points of a test that fit `glob` are on while this lives; what was recorded before is not looked at.
struct Tracing {
    glob: &'static str,
    since_ns: u64,
}

impl Tracing {
    fn on(glob: &'static str) -> Self {
        mm::trace::bring_memory().expect("memory for the rings");
        // The rings may be full of others' records, and must take ours all the same.
        trace::clear();
        assert!(trace::switch(glob, true) > 0, "no point fits {glob}");
        Self { glob, since_ns: arch::clock::now_ns() }
    }

    /// The records of `cpu`.
    fn of(&self, cpu: arch::CpuId) -> Vec<Event> {
        let ours = |event: &Event| event.at_ns >= self.since_ns && trace::fits(self.glob, event.point.name);
        trace::read(cpu).into_iter().flatten().filter(ours).collect()
    }

    /// The records of all CPUs.
    fn all(&self) -> Vec<Event> {
        cpu::present().iter().flat_map(|cpu| self.of(cpu)).collect()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        trace::switch(self.glob, false);
    }
}

/// The outer events of the stepped test, and those of its visits.
static VISITS: AtomicU64 = AtomicU64::new(0);

struct Inner;

impl Visit for Inner {
    fn visit() {
        let number = VISITS.fetch_add(1, Relaxed);
        sync::trace!("test_trace.inner", number = number, turned = !number);
    }
}

fn outer(number: u64) {
    sync::trace!("test_trace.outer", number = number, turned = !number, third = number * 3, fourth = number * 5);
}

static STOP: AtomicBool = AtomicBool::new(false);
/// How often each CPU has passed the point.
static PASSED: [AtomicU64; arch::MAX_CPUS] = [const { AtomicU64::new(0) }; arch::MAX_CPUS];

/// Passes a point until it is told to stop.
fn passer(_: &mut sync::MaySleep) {
    while !STOP.load(Relaxed) {
        let _pin = PreemptGuard::new(ATOMIC);
        let count = &PASSED[cpu::current().index()];
        let number = count.load(Relaxed) + 1;
        sync::trace!("test_trace.everywhere", number = number);
        count.store(number, Relaxed);
    }
}

/// Waits for a pass of `cpu` that has begun after this was called, and returns its number.
fn next_pass(cx: &mut sync::MaySleep, cpu: arch::CpuId) -> u64 {
    let passed = || PASSED[cpu.index()].load(Relaxed);
    // One may be under way.
    let next = passed() + 2;
    while passed() < next {
        sched::yield_now(cx);
    }
    next
}

ktest! {
    /// The branch is off again afterwards, so it was off before, too: both ways are seen.
    fn a_point_records_nothing_while_it_is_off(_t: &mut Test) {
        let pass = |number: u64| sync::trace!("test_trace.switched", number = number);
        let tracing = Tracing::on("test_trace.switched");
        pass(1);
        trace::switch(tracing.glob, false);
        pass(2);
        trace::switch(tracing.glob, true);
        pass(3);
        let numbers: Vec<_> = tracing.all().iter().map(|event| event.fields[0]).collect();
        drop(tracing);
        ensure_eq!(numbers, [1, 3]);
        Ok(())
    }

    /// Time, thread, context and fields.
    fn a_record_tells_when_and_where_it_was_made(_t: &mut Test) {
        let tracing = Tracing::on("test_trace.where");
        let here = |depth: u64| sync::trace!("test_trace.where", depth = depth, second = u64::MAX);
        let before = arch::clock::now_ns();
        {
            let _pin = PreemptGuard::new(ATOMIC);
            here(1);
            let _pin = PreemptGuard::new(ATOMIC);
            let _irqs = IrqGuard::new(ATOMIC);
            here(2);
        }
        let after = arch::clock::now_ns();
        let events = tracing.all();
        ensure_eq!(events.len(), 2, "records");
        let (first, second) = (events[0], events[1]);
        ensure!(before <= first.at_ns && first.at_ns <= second.at_ns && second.at_ns <= after, "out of time");
        ensure_eq!(u64::from(first.tid), sched::current().tid());
        ensure_eq!((first.point.name, first.point.fields), ("test_trace.where", &["depth", "second"][..]));
        ensure_eq!(first.fields, [1, u64::MAX, 0, 0]);
        ensure_eq!(first.context & 7, 0, "task, interrupts on");
        ensure_eq!(second.context & 7, 4, "task, interrupts off");
        ensure_eq!((first.context >> 4, second.context >> 4), (1, 2), "levels of no preemption");
        Ok(())
    }

    /// A call runs in hardirq, and a visit of the stepper is an NMI.
    fn interrupts_and_nmis_are_told_apart(_t: &mut Test) {
        let tracing = Tracing::on("test_trace.context");
        let here = || sync::trace!("test_trace.context");
        let in_interrupt: fn(usize) = |_| sync::trace!("test_trace.context_irq");
        let irq = Tracing::on("test_trace.context_irq");
        here();
        for other in cpu::online().iter().filter(|&other| other != cpu::current()) {
            smp::call_on(other, in_interrupt, 0, true);
            let contexts: Vec<_> = irq.of(other).iter().map(|event| event.context & 7).collect();
            ensure_eq!(contexts, [2 | 4], "hardirq on CPU {other}");
        }
        {
            // As an NMI, it is not to be interrupted.
            let _irqs = IrqGuard::new(ATOMIC);
            sync::nmi::as_nmi(here);
        }
        let contexts: Vec<_> = tracing.all().iter().map(|event| event.context & 3).collect();
        ensure_eq!(contexts, [0, 3]);
        Ok(())
    }

    /// The call that switches comes back when no CPU can execute the old instruction any more.
    #[tags(race)]
    fn all_cpus_pass_a_point_as_it_was_switched_last(t: &mut Test) {
        if trace::FULL.get() == "stop" || cpu::online().count() == 1 {
            skip!("needs 2 CPUs, and rings that go on when they are full");
        }
        STOP.store(false, Relaxed);
        let here = cpu::current();
        let others: Vec<_> = cpu::online().iter().filter(|&cpu| cpu != here).collect();
        let spawn = |&cpu| sched::spawn(t.cx, "tracer", sched::Prio::NORMAL, Some(cpu), passer);
        let threads: Vec<_> = others.iter().map(spawn).collect();
        let mut wrong = None;
        for _ in 0..20 {
            let tracing = Tracing::on("test_trace.everywhere");
            let on: Vec<_> = others.iter().map(|&cpu| next_pass(t.cx, cpu)).collect();
            drop(tracing);
            for (&cpu, on) in others.iter().zip(on) {
                let off = next_pass(t.cx, cpu);
                let of_point = |event: &Event| event.point.name == "test_trace.everywhere";
                let records = trace::read(cpu).into_iter().flatten().filter(of_point);
                let last = records.map(|event| event.fields[0]).max().unwrap_or(0);
                if !(on <= last && last < off) {
                    wrong = Some((cpu, on, last, off));
                }
            }
        }
        STOP.store(true, Relaxed);
        threads.into_iter().flatten().for_each(|thread| thread.join(t.cx));
        ensure!(wrong.is_none(), "CPU, on at, last recorded, off at: {wrong:?}");
        Ok(())
    }

    /// What an NMI handler records between any two instructions of a point is whole, and so is what it interrupts.
    fn an_nmi_between_any_two_instructions_of_a_point_records_too(_t: &mut Test) {
        let tracing = Tracing::on("test_trace.inner,test_trace.outer");
        let mut wanted = 0;
        for (turn, run) in stepping::runs(&[1, 2, 5]).enumerate() {
            let boundaries = stepping::step::<Inner>(run, || outer(turn as u64));
            ensure!(boundaries > 20, "the point was not stepped through: {boundaries} boundaries");
            wanted += 1;
        }
        let visits = VISITS.swap(0, Relaxed);
        let (inner, outer): (Vec<_>, Vec<_>) = tracing.all().into_iter().partition(|e| e.point.name.ends_with("inner"));
        let lost: u64 = cpu::present().iter().filter_map(trace::counts).map(|counts| counts.lost).sum();
        drop(tracing);
        ensure_eq!(lost, 0);
        ensure_eq!((outer.len() as u64, inner.len() as u64), (wanted, visits), "outer and inner records");
        for (number, event) in outer.iter().enumerate().map(|(number, event)| (number as u64, event)) {
            ensure_eq!(event.fields, [number, !number, number * 3, number * 5]);
        }
        for (number, event) in inner.iter().enumerate().map(|(number, event)| (number as u64, event)) {
            ensure_eq!((event.fields, event.context & 3), ([number, !number, 0, 0], 3));
        }
        Ok(())
    }

    /// `TR-2`, with a ring that comes round.
    fn the_oldest_records_give_way_and_are_counted(_t: &mut Test) {
        let tracing = Tracing::on("test_trace.many");
        let _pin = PreemptGuard::new(ATOMIC);
        let here = cpu::current();
        let room = trace::counts(here).map_or(0, |counts| counts.room);
        for number in 0..room + 7 {
            sync::trace!("test_trace.many", number = number);
        }
        let (counts, events) = (trace::counts(here), tracing.of(here));
        drop(_pin);
        let counts = counts.unwrap_or_default();
        ensure!(counts.kept + counts.overwritten + counts.lost >= room + 7, "{counts:?}");
        if trace::FULL.get() == "stop" {
            ensure!(counts.lost >= 7, "{counts:?}");
        } else {
            ensure!(counts.overwritten >= 7 && counts.kept == room, "{counts:?}");
            ensure_eq!(events.last().map(|event| event.fields[0]), Some(room + 6));
        }
        Ok(())
    }
}
