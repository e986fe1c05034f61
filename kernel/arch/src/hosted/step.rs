//! Single-step: the trap flag, and `SIGTRAP` after each instruction.
//!
//! Context: task, pinned; one at a time on a CPU. Code inside [`host_call`](super::host_call) is stepped through
//! without being reported.

use core::any::Any;
use core::arch::naked_asm;
use core::cell::Cell;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::cpu::CpuId;
use crate::trap::TrapFrame;

crate::per_cpu! {
    /// What to call at each boundary on this CPU, a `fn()`; 0: not stepping.
    static AT_EACH: usize = 0;
    /// Boundaries so far.
    static BOUNDARIES: u64 = 0;
}

/// Runs `f` one instruction at a time and calls `at_each` between any two, as an NMI would: interrupts off, on the same
/// stack. Returns how often.
///
/// # Panics
///
/// If this CPU is stepping already; or with the panic of `f`.
pub fn single_step(f: impl FnOnce(), at_each: fn()) -> u64 {
    assert!(!is_stepping(), "single_step() does not nest");
    BOUNDARIES.set(0);
    AT_EACH.set(at_each as usize);
    let mut job = Job { f: Some(f), panic: Cell::new(None) };
    // SAFETY: `run_job` gets the job that it is made for.
    unsafe { with_trap_flag(run_job_of(&job), (&raw mut job).cast()) };
    AT_EACH.set(0);
    if let Some(payload) = job.panic.take() {
        resume_unwind(payload);
    }
    BOUNDARIES.get()
}

struct Job<F> {
    f: Option<F>,
    panic: Cell<Option<Box<dyn Any + Send>>>,
}

fn run_job_of<F: FnOnce()>(_: &Job<F>) -> extern "C" fn(*mut u8) {
    run_job::<F>
}

extern "C" fn run_job<F: FnOnce()>(job: *mut u8) {
    // SAFETY: `single_step` passes its own job, and waits.
    let job = unsafe { &mut *job.cast::<Job<F>>() };
    if let Some(f) = job.f.take() {
        // A panic must not unwind through `with_trap_flag`.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
            job.panic.set(Some(payload));
        }
    }
}

/// Bytes of `with_trap_flag`, which pads itself to them.
const HELPER_BYTES: u64 = 64;

/// Calls `f(arg)` with the trap flag set.
#[unsafe(naked)]
unsafe extern "C" fn with_trap_flag(f: extern "C" fn(*mut u8), arg: *mut u8) {
    naked_asm!(
        "2:",
        "push rbx",
        "mov rax, rdi",
        "mov rdi, rsi",
        "pushfq",
        "or qword ptr [rsp], 0x100",
        "popfq",
        "call rax",
        "pushfq",
        "and qword ptr [rsp], ~0x100",
        "popfq",
        "pop rbx",
        "ret",
        ".skip {bytes} - (. - 2b)",
        bytes = const HELPER_BYTES,
    )
}

/// Whether this CPU is stepping.
pub(super) fn is_stepping() -> bool {
    AT_EACH.get() != 0
}

/// An instruction has ended. Interrupts are off.
pub(super) fn on_step(frame: &TrapFrame) {
    let helper = with_trap_flag as *const () as u64;
    if (helper..helper + HELPER_BYTES).contains(&frame.ip()) {
        return;
    }
    BOUNDARIES.inc();
    // SAFETY: `single_step` stored a `fn()`, and steps.
    let at_each: fn() = unsafe { core::mem::transmute(AT_EACH.get()) };
    at_each();
}

/// `cpu` is not stepping: a new machine.
pub(super) fn reset(cpu: CpuId) {
    // SAFETY: `cpu` does not run yet.
    unsafe { AT_EACH.ptr_on(cpu).write(0) };
}
