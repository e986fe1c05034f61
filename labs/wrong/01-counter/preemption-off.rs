//! The same with preemption off, which keeps threads out and interrupts in.

use arch::{CpuId, cpu};
use sync::{ATOMIC, PreemptGuard};

arch::per_cpu! {
    static EVENTS: u64 = 0;
}

pub fn count() {
    let _pinned = PreemptGuard::new(ATOMIC);
    EVENTS.set(EVENTS.get() + 1);
}

pub fn of(cpu: CpuId) -> u64 {
    // SAFETY: an aligned word that lives as long as the machine.
    unsafe { EVENTS.ptr_on(cpu).read_volatile() }
}

pub fn total() -> u64 {
    cpu::present().iter().map(of).sum()
}
