//! A word a CPU, read and then written: an interrupt in between counts for nothing.

use arch::{CpuId, cpu};

arch::per_cpu! {
    static EVENTS: u64 = 0;
}

pub fn count() {
    EVENTS.set(EVENTS.get() + 1);
}

pub fn of(cpu: CpuId) -> u64 {
    // SAFETY: an aligned word that lives as long as the machine.
    unsafe { EVENTS.ptr_on(cpu).read_volatile() }
}

pub fn total() -> u64 {
    cpu::present().iter().map(of).sum()
}
