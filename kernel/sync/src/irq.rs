//! Interrupts: who handles which vector, what surrounds every handler, and counts.
//!
//! The way of one interrupt:
//!
//! 1. `arch` saves registers, acknowledges, and calls here with interrupts off;
//! 2. hook `irq_enter` (RCU must watch before anything else), then the hard interrupt is counted;
//! 3. the handler of the vector;
//! 4. the count goes back; if this was the outermost interrupt: hook `irq_exit_softirq`, then lazy
//!    [`irq_work`](crate::irq_work);
//! 5. hook `irq_exit`;
//! 6. if nothing is counted any more, a reschedule is wanted and the interrupted code had
//!    interrupts on: hook `preempt_schedule_irq`.
//!
//! # Invariants
//!
//! - `IQ-1` A vector has at most one handler, for good. Enforced by [`register`].
//! - `IQ-2` A handler leaves the `preempt_count` as it found it (`PC-3`), and interrupts off.
//!   Checked after each handler in checking builds, with the vector in the report.
//! - `IQ-3` Between [`close`] and [`open`] a CPU handles no interrupt. Nobody asks anything of it meanwhile (`CF-4`, `IW-4`).
//!
//! Linux 6.12: kernel/softirq.c (`irq_enter`, `irq_exit`), arch/x86/kernel/irq.c.

use core::sync::atomic::{AtomicBool, Ordering};

use arch::{
    cpu::{self, CpuId},
    trap::{self, Exception, TrapFrame},
    vector,
};

use crate::{
    context::{self, HARDIRQ_OFFSET},
    events,
    hooks::{HOOKS, Slot},
    irq_work, nmi, smp,
};

/// Handles one vector. Context: hardirq, interrupts off.
pub type Handler = fn(&mut TrapFrame);

/// Looks at an exception; true if it has dealt with it. Context: that of the faulting code.
pub type ExceptionHandler = fn(Exception, &mut TrapFrame) -> bool;

/// Vectors of the machine.
pub const VECTORS: usize = 256;

/// Most exception handlers that can be registered.
const MAX_EXCEPTION_HANDLERS: usize = 4;

static HANDLERS: [Slot<Handler>; VECTORS] = [const { Slot::new() }; VECTORS];
static EXCEPTION_HANDLERS: [Slot<ExceptionHandler>; MAX_EXCEPTION_HANDLERS] =
    [const { Slot::new() }; MAX_EXCEPTION_HANDLERS];

arch::per_cpu! {
    /// Interrupts taken by this CPU; written in hard interrupts on this CPU only.
    static COUNTS: [u64; VECTORS] = [0; VECTORS];
    /// This CPU takes interrupts to be woken by them and handles none (`IQ-3`). Written by it with interrupts off.
    static DEAF: bool = false;
}

static MACHINE_HANDLERS: trap::Handlers = trap::Handlers { irq: on_irq, nmi: nmi::on_nmi, exception: on_exception };

/// See [`crate::init`].
pub(crate) fn install() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        register_own();
    }
    // SAFETY: the handlers are statics, and they expect what `arch` promises: interrupts off, a
    // valid frame, the interrupt acknowledged already.
    unsafe { trap::set_handlers(&MACHINE_HANDLERS) };
}

/// The vectors that this storey handles itself.
fn register_own() {
    register(vector::IRQ_WORK, |_| irq_work::run_raised());
    register(vector::CALL_FUNCTION, |_| smp::answer());
    register(vector::TLB, |_| smp::answer());
    register(vector::RESCHEDULE, |_| context::set_need_resched());
}

/// Makes `handler` the handler of `vector`.
///
/// Context: any, at set-up.
///
/// # Panics
/// If the vector has one (`IQ-1`).
#[track_caller]
pub fn register(vector: u8, handler: Handler) {
    HANDLERS[usize::from(vector)].set(handler);
}

/// Adds a handler that sees exceptions, after those that were added before.
///
/// Context: any, at set-up, one at a time.
///
/// # Panics
/// If there are too many.
pub fn register_exception(handler: ExceptionHandler) {
    let free = EXCEPTION_HANDLERS.iter().find(|slot| slot.get().is_none());
    free.expect("IQ: too many exception handlers: raise MAX_EXCEPTION_HANDLERS").set(handler);
}

/// How many interrupts `cpu` has taken on `vector`.
///
/// Context: any. Exact for the CPU itself, a moment old for others.
pub fn count(cpu: CpuId, vector: u8) -> u64 {
    // SAFETY: the copy is valid as long as the machine runs; a reader on another CPU may see a
    // count that is a moment old, and an aligned u64 is read whole.
    unsafe { (&raw const (*COUNTS.ptr_on(cpu))[usize::from(vector)]).read_volatile() }
}

/// An interrupt begins: what comes before any handler.
///
/// Context: interrupts off. For code that plays an interrupt; `arch`'s go through here by themselves.
#[inline]
pub fn irq_enter() {
    HOOKS.irq_enter.call();
    context::count_add(HARDIRQ_OFFSET);
}

/// An interrupt ends: what comes after any handler. `irqs_were_on` is the state of the code that
/// was interrupted.
///
/// Context: hardirq, interrupts off, after [`irq_enter`].
#[inline]
pub fn irq_exit(irqs_were_on: bool) {
    context::count_sub(HARDIRQ_OFFSET);
    if !context::in_interrupt() {
        HOOKS.irq_exit_softirq.call();
        irq_work::run_lazy();
    }
    HOOKS.irq_exit.call();
    if irqs_were_on && context::should_resched() {
        HOOKS.preempt_schedule_irq.call();
    }
}

/// This CPU goes offline: handles what others have asked of it so far, calls and `irq_work`, and from then on no
/// interrupt any more; one that comes only ends the `hlt` it finds the CPU in.
///
/// Context: idle thread, interrupts off; the CPU is not in [`cpu::online`] and nobody is in the middle of asking it.
pub fn close() {
    debug_assert!(!cpu::is_online(cpu::current()), "IQ-3: an online CPU handles interrupts");
    irq_enter();
    smp::answer();
    irq_work::run_raised();
    irq_exit(false);
    DEAF.set(true);
}

/// This CPU comes back: handles interrupts again.
///
/// Context: as [`close`].
pub fn open() {
    DEAF.set(false);
}

fn on_irq(vector: u8, frame: &mut TrapFrame) {
    if DEAF.get() {
        return;
    }
    irq_enter();
    events::event(events::Kind::Interrupt, vector.into());
    let at_entry = context::preempt_count();
    // SAFETY: this CPU's own copy, interrupts are off, and NMIs do not count here.
    unsafe { (*COUNTS.this_ptr())[usize::from(vector)] += 1 };
    match HANDLERS[usize::from(vector)].get() {
        Some(handler) => handler(frame),
        None if vector == vector::SPURIOUS => {}
        None => ::log::warn!("unexpected interrupt {vector:#x} on CPU {}", cpu::current()),
    }
    debug_assert!(
        context::preempt_count() == at_entry && !arch::irq::enabled(),
        "IQ-2: the handler of vector {vector:#x} found preempt_count {at_entry:#x} and left {}",
        context::State::now(),
    );
    irq_exit(frame.irqs_were_on());
}

fn on_exception(exception: Exception, frame: &mut TrapFrame) {
    let handled = EXCEPTION_HANDLERS.iter().map_while(Slot::get).any(|handler| handler(exception, frame));
    assert!(handled, "exception {exception:?} at {:#x} on CPU {}", frame.ip(), cpu::current());
}
