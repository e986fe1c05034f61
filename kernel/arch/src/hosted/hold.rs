//! Holding signals off around code of the host (HOST-2).
//!
//! A depth counter per CPU instead of the OS thread's signal mask: two instructions instead of two system calls. A handler
//! that finds the counter above zero notes what came (`REPLAY`, `NMI_HELD`, `HELD`) and returns; the end of the outermost
//! [`host_call`] makes up for it. Nothing moves a thread to another CPU inside, because nothing is delivered.

use super::{irq, machine, signal};
use crate::cpu;

crate::per_cpu! {
    /// Nested [`host_call`]s on this CPU.
    static DEPTH: u32 = 0;
    /// Something came while `DEPTH` was above zero.
    static HELD: bool = false;
    /// An NMI was among it.
    static NMI_HELD: bool = false;
}

/// Runs `f`, code of the host such as the allocator or `println!`, without being interrupted by the machine's
/// interrupts, NMIs or end. They are delivered afterwards.
///
/// Context: any; outside a machine it just runs `f`. `f` does not switch threads.
#[inline]
pub fn host_call<R>(f: impl FnOnce() -> R) -> R {
    struct Hold;
    impl Drop for Hold {
        #[inline]
        fn drop(&mut self) {
            DEPTH.dec();
            if HELD.get() && DEPTH.get() == 0 {
                release();
            }
        }
    }
    DEPTH.inc();
    let _hold = Hold;
    f()
}

/// Whether this CPU is in a [`host_call`].
#[inline]
pub(super) fn is_held() -> bool {
    DEPTH.get() != 0
}

/// Notes that an interrupt could not be delivered for a [`host_call`].
pub(super) fn note_irq() {
    irq::REPLAY.set(true);
    HELD.set(true);
}

/// Notes that an NMI could not be delivered for a [`host_call`].
pub(super) fn note_nmi() {
    NMI_HELD.set(true);
    HELD.set(true);
}

/// Notes that the CPU could not leave the machine for a [`host_call`].
pub(super) fn note_end() {
    HELD.set(true);
}

/// The end of the outermost [`host_call`], when something came. A signal that arrives before the notes are read flushes
/// them itself, so they are not forgotten if it also moves this thread to another CPU.
#[cold]
#[inline(never)]
fn release() {
    if machine::is_ending() {
        machine::leave();
    }
    flush();
    if irq::enabled() && irq::REPLAY.get() {
        irq::replay();
    }
}

/// Sends again, to this CPU, the NMI that was held. Interrupts are in `REPLAY` as any others.
pub(super) fn flush() {
    if HELD.get() {
        HELD.set(false);
        if NMI_HELD.xchg(false) {
            signal::send_nmi(cpu::current());
        }
    }
}

/// Nothing held on `cpu`: a new machine.
pub(super) fn reset(cpu: cpu::CpuId) {
    // SAFETY: `cpu` does not run yet; its area is the caller's alone.
    unsafe {
        DEPTH.ptr_on(cpu).write(0);
        HELD.ptr_on(cpu).write(false);
        NMI_HELD.ptr_on(cpu).write(false);
    }
}
