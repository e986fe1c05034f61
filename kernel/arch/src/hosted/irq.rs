//! The interrupt flag of a hosted CPU, what is pending, and the replay.
//!
//! A sender sets the vector's bit in `PENDING[target]` and then signals the target's thread. The signal handler looks at
//! the target's flag: on, it delivers everything pending; off, it sets `REPLAY`, and whoever switches the flag on
//! delivers.
//!
//! Invariants:
//!
//! - `HIRQ-1` A pending bit whose signal has been consumed while the flag was off implies `REPLAY` on that CPU. So after
//!   switching the flag on it is enough to look at `REPLAY`: bits without it have their signal still to come.
//! - `HIRQ-2` `REPLAY` is cleared only before the pending set is read, and set again when a bit is left in it. (The handler
//!   of one vector may switch to another thread, which enables interrupts and must find the rest.)
//! - `HIRQ-3` Between two instructions of this file the thread may be moved to another CPU whenever the flag is on;
//!   so each step is one gs-relative instruction, and no CPU number is kept.
//!
//! Context: any; `deliver` and `replay` not in NMI.

use core::hint;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::{hold, machine, signal};
use crate::cpu::{self, CpuId, MAX_CPUS};
use crate::trap::TrapFrame;

crate::per_cpu! {
    /// The interrupt flag. Written by this CPU only.
    pub(super) static IRQ_ON: bool = false;
    /// An interrupt was marked pending while it could not be handled (HIRQ-1). Written by this CPU only.
    pub(super) static REPLAY: bool = false;
    /// Calls of [`relax`], to give the core away at every 64th.
    static RELAXED: u32 = 0;
}

/// How often a parked CPU looks whether its machine ends.
const PARKED: Duration = Duration::from_millis(1);

/// 256 vectors, on a cache line of their own, since every other CPU writes here.
#[repr(align(64))]
struct Pending([AtomicU64; 4]);

/// Vectors sent to each CPU and not taken yet. Set by any CPU, cleared by the CPU itself.
static PENDING: [Pending; MAX_CPUS] = [const { Pending([const { AtomicU64::new(0) }; 4]) }; MAX_CPUS];

/// The interrupt flag as [`save`] found it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use = "interrupts stay off until the flags are restored"]
pub struct Flags(bool);

impl Flags {
    /// Whether interrupts were on when the flags were saved.
    #[inline(always)]
    pub fn were_enabled(self) -> bool {
        self.0
    }
}

/// Whether interrupts are on.
#[inline(always)]
pub fn enabled() -> bool {
    IRQ_ON.get()
}

/// Switches interrupts off.
#[inline(always)]
pub fn disable() {
    IRQ_ON.set(false);
}

/// Switches interrupts on, and handles what came meanwhile.
#[inline(always)]
pub fn enable() {
    IRQ_ON.set(true);
    if REPLAY.get() {
        replay();
    }
}

/// Switches interrupts off and tells what they were.
#[inline(always)]
pub fn save() -> Flags {
    // An interrupt between the two finds the flag on and leaves it on, wherever this thread is afterwards (HIRQ-3).
    let flags = Flags(IRQ_ON.get());
    IRQ_ON.set(false);
    flags
}

/// Back to what [`save`] found.
#[inline(always)]
pub fn restore(flags: Flags) {
    if flags.0 {
        enable();
    }
}

/// Waits for an interrupt or an NMI. Called with interrupts off, returns with them on; may return early (ARCH-4).
pub fn halt_with_irqs() {
    signal::with_blocked(|unblocked| {
        IRQ_ON.set(true);
        // A signal that comes now stays with the host until `wait`. One that came before has set REPLAY (HIRQ-1).
        if !REPLAY.get() {
            signal::wait(unblocked);
        }
    });
    leave_if_ending();
    if REPLAY.get() {
        replay();
    }
}

/// Stops this CPU for good. An NMI is handled and the CPU stops again; the end of the machine takes it along.
///
/// Context: any.
pub fn park() -> ! {
    disable();
    loop {
        leave_if_ending();
        std::thread::sleep(PARKED);
    }
}

/// A turn of a waiting loop: PAUSE, and now and then the core goes to another OS thread, which may be the CPU that is
/// waited for.
#[inline]
pub fn relax() {
    hint::spin_loop();
    RELAXED.inc();
    if RELAXED.get().is_multiple_of(64) {
        std::thread::yield_now();
        leave_if_ending();
    }
}

/// A CPU that waits is in a system call most of the time, where a signal does not make it leave the machine.
fn leave_if_ending() {
    if machine::is_ending() && signal::IS_CPU.get() && !hold::is_held() {
        machine::leave();
    }
}

/// Marks `vector` pending on `cpu`; whether it was not yet.
pub(super) fn mark(cpu: CpuId, vector: u8) -> bool {
    let bit = 1 << (vector % 64);
    // AcqRel: Release pairs with the exchange in `take` (ARCH-5: the handler sees what the sender wrote before);
    // Acquire orders it after a `take` that cleared the bit, when the sender goes on to skip the signal.
    PENDING[cpu.index()].0[usize::from(vector / 64)].fetch_or(bit, Ordering::AcqRel) & bit == 0
}

/// Takes the highest vector that is pending on this CPU; notes in `REPLAY` if there are more (HIRQ-2).
fn take() -> Option<u8> {
    let words = &PENDING[cpu::current().index()].0;
    let mut taken = None;
    for (index, word) in words.iter().enumerate().rev() {
        // Relaxed: a hint; the exchange below orders.
        let seen = word.load(Ordering::Relaxed);
        if seen == 0 {
            continue;
        }
        if taken.is_some() {
            REPLAY.set(true);
            break;
        }
        let bit = 63 - seen.leading_zeros();
        // AcqRel: pairs with `mark`.
        word.fetch_and(!(1 << bit), Ordering::AcqRel);
        taken = Some(index as u8 * 64 + bit as u8);
        if seen & !(1 << bit) != 0 {
            REPLAY.set(true);
            break;
        }
    }
    taken
}

/// Handles everything pending. The flag is on before and after, off meanwhile.
pub(super) fn deliver(frame: &mut TrapFrame) {
    loop {
        IRQ_ON.set(false);
        REPLAY.set(false);
        while let Some(vector) = take() {
            signal::call_irq_handler(vector, frame);
        }
        // Now perhaps on another CPU (ARCH-2), whose interrupts are off as well.
        IRQ_ON.set(true);
        if !REPLAY.get() {
            return;
        }
    }
}

/// Handles what was held back while the flag was off. The flag is on.
#[cold]
#[inline(never)]
pub(super) fn replay() {
    if !hold::is_held() {
        deliver(&mut TrapFrame::here());
    }
}

/// An empty pending set for every CPU: a new machine.
pub(super) fn forget() {
    for word in PENDING.iter().flat_map(|pending| &pending.0) {
        word.store(0, Ordering::Relaxed);
    }
}
