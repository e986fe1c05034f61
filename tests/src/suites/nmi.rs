//! NMIs: they come whatever is switched off, and may log.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::trap::TrapFrame;
use arch::{clock, cpu, ipi, irq};
use sched::Prio;
use sync::nmi::NmiHandler;
use sync::{IrqGuard, Once, PreemptGuard, SpinLock, context, lock_class};

use crate::{ensure, ensure_eq, ktest, skip};

/// How long an NMI may take, in nanoseconds.
const PATIENCE_NS: u64 = 5_000_000_000;

/// NMIs that are ours and have not come yet.
static DUE: AtomicU64 = AtomicU64::new(0);
/// NMIs that came.
static CAME: AtomicU64 = AtomicU64::new(0);
/// What the handler saw of its context: in an NMI, interrupts off.
static SAW_NMI: AtomicU64 = AtomicU64::new(0);

static HANDLER: NmiHandler = NmiHandler::new("tests", on_nmi);

fn on_nmi(_: &mut TrapFrame) -> bool {
    if DUE.load(Ordering::Relaxed) == 0 {
        return false;
    }
    DUE.fetch_sub(1, Ordering::Relaxed);
    if context::in_nmi() && !irq::enabled() {
        SAW_NMI.fetch_add(1, Ordering::Relaxed);
    }
    log::debug!("an NMI of the tests on CPU {}", cpu::current());
    // Release: pairs with the acquire in `wait`: what the handler did is seen.
    CAME.fetch_add(1, Ordering::Release);
    true
}

/// Makes ready for one NMI.
fn expect_one() {
    static DONE: Once<()> = Once::new();
    DONE.call_once(|| sync::nmi::register(&HANDLER));
    CAME.store(0, Ordering::Relaxed);
    SAW_NMI.store(0, Ordering::Relaxed);
    DUE.store(1, Ordering::Relaxed);
}

/// Waits for it.
fn wait() -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    // Acquire: pairs with the release in `on_nmi`.
    while CAME.load(Ordering::Acquire) == 0 {
        if clock::now_ns() > end {
            return false;
        }
        irq::relax();
    }
    true
}

ktest! {
    /// An NMI to this very CPU comes while its interrupts are off.
    fn an_nmi_comes_while_interrupts_are_off(t: &mut Test) {
        expect_one();
        let came = {
            let _off = IrqGuard::new(t.cx);
            ipi::send_nmi(cpu::current());
            wait()
        };
        ensure!(came, "no NMI within {PATIENCE_NS} ns");
        ensure_eq!(SAW_NMI.load(Ordering::Relaxed), 1);
        ensure!(!context::in_nmi() && irq::enabled());
        Ok(())
    }

    /// An NMI comes while a spin lock is held, and its handler logs.
    fn an_nmi_comes_while_a_spin_lock_is_held(t: &mut Test) {
        static LOCK: SpinLock<u32> = SpinLock::new(0, lock_class!("tests.nmi"));
        expect_one();
        let came = {
            let mut value = LOCK.lock_irqsave(t.cx);
            ipi::send_nmi(cpu::current());
            let came = wait();
            *value += 1;
            came
        };
        ensure!(came, "no NMI within {PATIENCE_NS} ns");
        ensure!(!LOCK.is_locked());
        Ok(())
    }

    /// Every other CPU takes an NMI while it handles an interrupt.
    fn an_nmi_comes_while_another_cpu_is_in_an_interrupt(_t: &mut Test) {
        let here = cpu::current();
        let others = cpu::online().iter().filter(|&id| id != here);
        let mut count = 0;
        for other in others {
            count += 1;
            expect_one();
            let came = sync::smp::run_on(other, || {
                ipi::send_nmi(cpu::current());
                wait() && context::in_hardirq() && !context::in_nmi()
            });
            ensure_eq!(came, Some(true), "CPU {other}");
        }
        if count == 0 {
            skip!("needs 2 CPUs");
        }
        Ok(())
    }

    /// The log takes lines from an NMI in the middle of a line of this CPU.
    fn a_line_of_the_log_survives_an_nmi_that_logs(_t: &mut Test) {
        struct Interrupted;
        impl core::fmt::Display for Interrupted {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                ipi::send_nmi(cpu::current());
                let came = wait();
                write!(f, "{}", if came { "and went on" } else { "without an NMI" })
            }
        }
        expect_one();
        log::info!("a line was begun {}", Interrupted);
        let mut whole = false;
        sync::log::for_each_line(|line| {
            let sought = b"a line was begun and went on";
            whole |= line.windows(sought.len()).any(|window| window == sought);
        });
        ensure!(whole, "the line is not in the log in one piece");
        Ok(())
    }

    /// Threads on all CPUs ask all CPUs where they are, each itself among them: every answer was begun after its question,
    /// and no NMI is left over.
    #[tags(race)]
    fn any_number_may_ask_one_cpu_at_once_and_nobody_gets_an_old_answer(t: &mut Test) {
        const ROUNDS: usize = 20;
        let unknown = sync::nmi::unknown_count();
        let mut askers = alloc::vec::Vec::new();
        for on in cpu::online().iter() {
            let asker = sched::spawn(t.cx, "asker", Prio::NORMAL, Some(on), move |cx| {
                let mut wrong = 0;
                for _ in 0..ROUNDS {
                    for other in cpu::online().iter() {
                        wrong += usize::from(sched::ask::where_is(other).is_none());
                    }
                    // Who ran here before has been asked, too.
                    let _pin = PreemptGuard::new(cx);
                    let me = sched::current().tid();
                    wrong += usize::from(sched::ask::where_is(on).is_none_or(|it| it.activity.tid != me));
                }
                wrong
            });
            askers.push(asker.map_err(|error| crate::__failed!("{error}"))?);
        }
        let wrong: usize = askers.into_iter().map(|asker| asker.join(t.cx)).sum();
        ensure_eq!(wrong, 0);
        ensure_eq!(sync::nmi::unknown_count(), unknown);
        Ok(())
    }

    /// By the time that an answer is told its thread may have ended, and another may live in its place.
    fn a_thread_that_has_ended_since_it_was_found_is_told_by_its_number(t: &mut Test) {
        let short = sched::spawn(t.cx, "short", Prio::NORMAL, None, |_| sched::ask::Activity::here());
        let found = short.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        while found.thread.tid() == found.tid {
            sched::sleep_ns(t.cx, 1_000_000);
        }
        let told = alloc::format!("{found}");
        let expected = alloc::format!("task {}, which has ended since, irqs on", found.tid);
        ensure!(told.starts_with(&expected), "{told}");
        Ok(())
    }
}
