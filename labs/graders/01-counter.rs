//! Grades lab 1: what happens on another CPU, or in an NMI, between any two instructions of a count.

use arch::{CpuId, cpu};
use sched::{cpu_off, cpu_on};
use sync::{ATOMIC, PreemptGuard, smp};
use tests::stepping::{NOWHERE, Visit, only, step};
use tests::{ensure, ensure_eq, ktest};

use super::answer::{count, of, total};
use crate::elsewhere;

/// An NMI handler that counts too.
struct Counts;

impl Visit for Counts {
    fn visit() {
        count();
    }
}

/// The other CPU counts.
struct OtherCounts;

impl Visit for OtherCounts {
    fn visit() {
        elsewhere::ask();
    }
}

/// A CPU that can go: the last one.
fn other() -> CpuId {
    cpu::online().iter().last().unwrap_or(CpuId::BOOT)
}

ktest! {
    /// What a CPU counts is in its count.
    #[budget_ms(2_000)]
    fn a_cpu_counts_what_happens_on_it(_t: &mut Test) {
        let _here = PreemptGuard::new(ATOMIC);
        let (before, cpu) = (of(cpu::current()), cpu::current());
        (0..100).for_each(|_| count());
        ensure_eq!(of(cpu), before + 100, "100 events on CPU {cpu}");
        Ok(())
    }

    /// Nobody else's count moves.
    #[budget_ms(2_000)]
    fn a_cpu_does_not_count_what_happens_on_another(_t: &mut Test) {
        let (here, other) = (CpuId::BOOT, other());
        let before = [of(here), of(other)];
        smp::run_on(other, || (0..100).for_each(|_| count()));
        ensure_eq!([of(here), of(other)], [before[0], before[1] + 100], "100 events on CPU {other}");
        Ok(())
    }

    /// The total is what all counted, each as often as it is numbered high.
    #[budget_ms(2_000)]
    fn the_total_is_the_sum_over_all_cpus(_t: &mut Test) {
        let before = total();
        smp::run_on_mask(&cpu::online(), |cpu| (0..=cpu.index()).for_each(|_| count()));
        let counted: u64 = cpu::online().iter().map(|cpu| cpu.index() as u64 + 1).sum();
        ensure_eq!(total(), before + counted, "{counted} events");
        Ok(())
    }

    /// The other CPU counts once between every two instructions of a count.
    #[budget_ms(5_000)]
    fn two_cpus_that_count_at_the_same_time_lose_nothing(t: &mut Test) {
        elsewhere::with(t.cx, other(), count, |_| {
            let boundaries = step::<OtherCounts>(NOWHERE, count);
            for boundary in 0..boundaries {
                let before = total();
                step::<OtherCounts>(only(boundary as usize), count);
                ensure_eq!(total(), before + 2, "a count, and one elsewhere at boundary {boundary} of {boundaries}");
            }
            Ok(())
        })?
    }

    /// An NMI comes once between every two instructions of a count, and counts too.
    #[budget_ms(5_000)]
    fn an_nmi_between_any_two_instructions_is_counted(_t: &mut Test) {
        let boundaries = step::<Counts>(NOWHERE, count);
        for boundary in 0..boundaries {
            let before = total();
            step::<Counts>(only(boundary as usize), count);
            ensure_eq!(total(), before + 2, "a count, and one in an NMI at boundary {boundary} of {boundaries}");
        }
        Ok(())
    }

    /// A CPU that went offline has counted all the same.
    #[budget_ms(5_000)]
    fn what_a_cpu_counted_stays_when_it_goes(t: &mut Test) {
        let other = other();
        smp::run_on(other, count);
        let before = (of(other), total());
        ensure!(cpu_off(other, t.cx).is_ok(), "CPU {other} does not go");
        let after = (of(other), total());
        let came = cpu_on(other, t.cx);
        ensure_eq!(after, before, "the count of CPU {other}, and the total");
        ensure!(came.is_ok(), "CPU {other} does not come back");
        Ok(())
    }
}
