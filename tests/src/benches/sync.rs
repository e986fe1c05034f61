//! Guards and calls.

use arch::cpu;
use sync::PreemptGuard;

use crate::{bench, skip};

bench! {
    /// A section without preemption, when nothing becomes due in it.
    #[goal(counted = 5)]
    fn preempt_off_on(b: &mut Bencher) {
        b.each(1, |cx| drop(PreemptGuard::new(cx)));
        Ok(())
    }

    /// A function called on another CPU, and back: an interrupt there, awaited here.
    fn ipi_round_trip(b: &mut Bencher) {
        let here = cpu::current();
        let Some(there) = cpu::online().iter().find(|&cpu| cpu != here) else { skip!("needs two CPUs") };
        b.waits(|_| sync::smp::call_on(there, |_| {}, 0, true));
        Ok(())
    }
}
