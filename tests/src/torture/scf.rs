//! Torture of calls between CPUs: to one, to some, to all, waited for or not, from all CPUs at once. Each call runs once on each CPU
//! that it is for; it sees what was written before it, and who waited sees what it wrote.
//!
//! Linux: `kernel/scftorture.c` (6.12). Row: C-13.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed};

use arch::{CpuMask, cpu};
use sched::Prio;
use sync::{MaySleep, PreemptGuard, Rng, smp};

use super::{Ongoing, Stat, control};
use crate::together::soon;
use crate::{Failure, torture};

/// What a call finds, and what it answers.
const ASKED: u64 = 0x0a5c_ed00;
const ANSWER: u64 = 0x0a25_3e20;

#[derive(Default)]
struct Counts {
    single: AtomicU64,
    many: AtomicU64,
    all: AtomicU64,
    results: AtomicU64,
    /// Calls that nobody waits for: how often they were to run, and did.
    sent: AtomicU64,
    ran: AtomicU64,
    /// A call that did not see what was written before it; one whose answer was not seen; one that ran too often or not at all.
    before: AtomicU64,
    after: AtomicU64,
    times: AtomicU64,
}

/// A call to some CPUs. Its words are written and read without any order of their own: that is for the call to give.
struct Call {
    counts: Arc<Counts>,
    asked: AtomicU64,
    answers: [AtomicU64; arch::MAX_CPUS],
    ran: AtomicUsize,
    /// CPUs that have not run it: the last one frees a call that nobody waits for.
    left: AtomicUsize,
}

impl Call {
    fn new(counts: &Arc<Counts>, cpus: usize) -> Call {
        Call {
            counts: counts.clone(),
            asked: AtomicU64::new(ASKED),
            answers: [const { AtomicU64::new(0) }; arch::MAX_CPUS],
            ran: AtomicUsize::new(0),
            left: AtomicUsize::new(cpus),
        }
    }

    fn answer(&self) {
        if self.asked.load(Relaxed) != ASKED {
            self.counts.before.fetch_add(1, Relaxed);
        }
        self.answers[cpu::current().index()].store(ANSWER, Relaxed);
        self.ran.fetch_add(1, Relaxed);
    }
}

/// Of a call that somebody waits for.
fn answer(call: usize) {
    // SAFETY: who waits keeps it.
    unsafe { &*ptr::with_exposed_provenance::<Call>(call) }.answer();
}

/// Of one that nobody waits for.
fn answer_and_leave(call: usize) {
    let call = ptr::with_exposed_provenance_mut::<Call>(call);
    // SAFETY: it lives until the last CPU has left it, and this one has not.
    let here = unsafe { &*call };
    here.answer();
    here.counts.ran.fetch_add(1, Relaxed);
    // AcqRel: the last one frees it after all others have used it.
    if here.left.fetch_sub(1, AcqRel) == 1 {
        // SAFETY: leaked by `turn`, and the last user is here.
        drop(unsafe { Box::from_raw(call) });
    }
}

impl Counts {
    fn turn(self: &Arc<Self>, rng: &mut Rng, cx: &MaySleep) {
        // All that are online now stay so.
        let _pin = PreemptGuard::new(cx);
        let online = cpu::online();
        let one = online.iter().nth(rng.index(online.count())).expect("one is online");
        let (mask, counter) = match rng.index(4) {
            0 => (CpuMask::of(one), &self.single),
            1 => (online.iter().filter(|_| rng.chance(1, 2)).collect(), &self.many),
            2 => (online, &self.all),
            _ => {
                let answer = smp::run_on(one, || cpu::current().index());
                self.after.fetch_add(u64::from(answer != Some(one.index())), Relaxed);
                self.results.fetch_add(1, Relaxed);
                return;
            }
        };
        counter.fetch_add(1, Relaxed);
        if mask.count() == 0 {
            return;
        }
        if rng.chance(1, 3) {
            let call = Box::into_raw(Box::new(Call::new(self, mask.count())));
            self.sent.fetch_add(mask.count() as u64, Relaxed);
            smp::call_mask(&mask, answer_and_leave, call.expose_provenance(), false);
            return;
        }
        let call = Call::new(self, 0);
        smp::call_mask(&mask, answer, (&raw const call).expose_provenance(), true);
        let unseen = mask.iter().filter(|cpu| call.answers[cpu.index()].load(Relaxed) != ANSWER).count();
        self.after.fetch_add(unseen as u64, Relaxed);
        self.times.fetch_add(u64::from(call.ran.load(Relaxed) != mask.count()), Relaxed);
    }
}

impl Ongoing for Arc<Counts> {
    fn stat(&self, out: &mut Stat) {
        for (name, count) in
            [("single", &self.single), ("many", &self.many), ("all", &self.all), ("results", &self.results)]
        {
            out.work(name, count.load(Relaxed));
        }
        out.work("ran", self.ran.load(Relaxed));
        out.error("before", self.before.load(Relaxed));
        out.error("after", self.after.load(Relaxed));
        out.error("times", self.times.load(Relaxed));
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        soon(cx, || self.sent.load(Relaxed) == self.ran.load(Relaxed));
        let (sent, ran) = (self.sent.load(Relaxed), self.ran.load(Relaxed));
        self.times.fetch_add(sent.abs_diff(ran), Relaxed);
        Ok(())
    }
}

torture! {
    /// Calls between CPUs: to one, some and all, waited for or not; each runs once, and orders what is written around it
    fn scf(run: &mut Run) {
        let counts = Arc::new(Counts::default());
        let mut rng = run.rng("threads");
        for (n, cpu) in cpu::online().iter().enumerate() {
            let (counts, mut rng) = (counts.clone(), Rng::new(rng.next_u64()));
            run.spawn("scf", Prio::NORMAL, (n % 2 == 0).then_some(cpu), move |cx| {
                while !control::stutter(cx) {
                    counts.turn(&mut rng, cx);
                    if rng.chance(1, 8) {
                        sched::sleep_ns(cx, rng.below(200_000));
                    }
                    sched::cond_resched(cx);
                }
                Ok(())
            })?;
        }
        Ok(counts)
    }
}
