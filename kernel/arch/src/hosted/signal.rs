//! Signals: how interrupts, NMIs and exceptions reach a hosted CPU.
//!
//! | signal | is | blocked meanwhile | stack |
//! |---|---|---|---|
//! | `SIGUSR1`, `SIGALRM` | interrupt, timer | nothing: the flag is off instead, and the handler may switch threads | the interrupted one |
//! | `SIGUSR2` | NMI | all of the machine's signals | the interrupted one |
//! | `SIGTRAP` | #DB, #BP | all of the machine's signals | the interrupted one |
//! | `SIGSEGV`, `SIGBUS`, `SIGFPE`, `SIGILL` | other exceptions | itself | the CPU's alternate stack |
//! | `SIGABRT` | the end of a panic that cannot unwind | all of the machine's signals | the interrupted one |
//!
//! A standard signal that is already pending merges with a second one, which is what the hardware does too.
//!
//! The frame of an interrupt stays on the interrupted thread's stack while another thread runs, and `rt_sigreturn` may
//! be executed by another OS thread than the one that took the signal: it restores registers and signal mask from that
//! stack, and does not touch the FS and GS bases. All switches happen with the machine's signals unblocked, so the mask is
//! the same everywhere.
//!
//! Handlers are installed once per process and stay. On a thread that is not a CPU, interrupts are ignored and exceptions
//! go to whoever handled them before.

use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use libc::{c_int, c_void, sigaction, siginfo_t, sigset_t, ucontext_t};

use super::{hold, irq, machine, step};
use crate::cpu::{self, CpuId, MAX_CPUS};
use crate::trap::{self, Exception, ExceptionKind, TrapFrame};
use crate::vector;

/// An interrupt from another CPU.
const SIG_IRQ: c_int = libc::SIGUSR1;
/// The timer's interrupt.
pub(super) const SIG_TIMER: c_int = libc::SIGALRM;
/// An NMI, or the order to leave the machine.
const SIG_NMI: c_int = libc::SIGUSR2;
/// Exceptions that may come with a bad stack.
const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

crate::per_cpu! {
    /// The running thread is a CPU of the machine. False in the template, true in every area in use.
    pub(super) static IS_CPU: bool = false;
}

/// Thread id of each CPU; 0: not up. Written by the CPU's own thread.
static TIDS: [AtomicI32; MAX_CPUS] = [const { AtomicI32::new(0) }; MAX_CPUS];

/// Who handled [`FAULTS`], `SIGTRAP` and `SIGABRT` before.
static BEFORE: OnceLock<std::vec::Vec<(c_int, sigaction)>> = OnceLock::new();

/// Says which OS thread is `cpu`; `None`: no longer any.
pub(super) fn set_thread(cpu: CpuId, tid: Option<libc::pid_t>) {
    // Release: pairs with the load in `kill`: the CPU is ready for signals when its id is seen.
    TIDS[cpu.index()].store(tid.unwrap_or(0), Ordering::Release);
}

fn kill(cpu: CpuId, signal: c_int) {
    // Acquire: pairs with `set_thread`.
    let tid = TIDS[cpu.index()].load(Ordering::Acquire);
    if tid != 0 {
        // The handler that this may run at once must find errno as it was. The call fails only if the thread has just ended.
        // SAFETY: sends a signal that has a handler to a thread of this process.
        keep_errno(|| unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) });
    }
}

/// Signals an interrupt to `cpu`; its vector has been marked.
pub(super) fn send_irq(cpu: CpuId) {
    kill(cpu, SIG_IRQ);
}

/// Sends an NMI to `cpu`.
pub(super) fn send_nmi(cpu: CpuId) {
    kill(cpu, SIG_NMI);
}

/// The machine's asynchronous signals.
fn machine_signals() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set; the signal numbers are valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [SIG_IRQ, SIG_TIMER, SIG_NMI] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Runs `f` with the machine's signals blocked. `f` gets the mask to [`wait`] with.
pub(super) fn with_blocked(f: impl FnOnce(&sigset_t)) {
    let (blocked, mut before) = (machine_signals(), MaybeUninit::uninit());
    // SAFETY: valid sets; the call fills `before`.
    let before = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &blocked, before.as_mut_ptr());
        before.assume_init()
    };
    f(&before);
    // SAFETY: a set that the host gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
}

/// Waits for a signal, with this mask meanwhile.
pub(super) fn wait(mask: &sigset_t) {
    // SAFETY: a valid set. Returns -1 with EINTR, always.
    keep_errno(|| unsafe { libc::sigsuspend(mask) });
}

/// Runs `f` and puts errno back, of whichever OS thread runs then.
fn keep_errno<R>(f: impl FnOnce() -> R) -> R {
    #[inline(never)]
    fn errno() -> *mut c_int {
        // SAFETY: no arguments. Not inlined, so that its result is not reused on another OS thread.
        unsafe { libc::__errno_location() }
    }
    // SAFETY: the location belongs to the running OS thread.
    let before = unsafe { errno().read() };
    let result = f();
    // SAFETY: as above.
    unsafe { errno().write(before) };
    result
}

/// Installs the handlers, once per process.
pub(super) fn install() {
    BEFORE.get_or_init(|| {
        let nothing = {
            let mut set = MaybeUninit::uninit();
            // SAFETY: initialises the set.
            unsafe {
                libc::sigemptyset(set.as_mut_ptr());
                set.assume_init()
            }
        };
        let ours = machine_signals();
        set_action(SIG_IRQ, on_interrupt, nothing, libc::SA_NODEFER);
        set_action(SIG_TIMER, on_interrupt, nothing, libc::SA_NODEFER);
        set_action(SIG_NMI, on_nmi, ours, 0);
        let mut before = std::vec![(libc::SIGTRAP, set_action(libc::SIGTRAP, on_trap, ours, 0))];
        before.push((libc::SIGABRT, set_action(libc::SIGABRT, on_abort, ours, 0)));
        for signal in FAULTS {
            before.push((signal, set_action(signal, on_fault, nothing, libc::SA_ONSTACK)));
        }
        before
    });
}

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn set_action(signal: c_int, handler: Handler, mask: sigset_t, flags: c_int) -> sigaction {
    let action = sigaction {
        sa_sigaction: handler as *const () as usize,
        sa_mask: mask,
        sa_flags: libc::SA_SIGINFO | libc::SA_RESTART | flags,
        sa_restorer: None,
    };
    let mut before = MaybeUninit::uninit();
    // SAFETY: a complete action whose handler has the signature that SA_SIGINFO asks for; the call fills `before`.
    unsafe {
        let result = libc::sigaction(signal, &action, before.as_mut_ptr());
        assert_eq!(result, 0, "sigaction({signal}): {}", std::io::Error::last_os_error());
        before.assume_init()
    }
}

/// `SIGUSR1` and `SIGALRM`.
extern "C" fn on_interrupt(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if !IS_CPU.get() {
        return;
    }
    keep_errno(|| {
        // SAFETY: the kernel passes a ucontext that is ours until we return.
        let context = unsafe { &mut *context.cast::<ucontext_t>() };
        machine::leave_if_ending(context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize);
        if signal == SIG_TIMER {
            // SAFETY: a valid siginfo; the timer was made with the CPU's number as its value.
            let of = CpuId::new(unsafe { (*info).si_value() }.sival_ptr.addr());
            irq::mark(of, vector::TIMER);
            if of != cpu::current() {
                // Another signal came on top of this one and its handler moved the thread here (HIRQ-3).
                send_irq(of);
            }
        }
        if hold::is_held() {
            hold::note_irq();
        } else if irq::enabled() {
            hold::flush();
            let mut frame = TrapFrame::of_signal(context);
            irq::deliver(&mut frame);
            frame.write_back(context);
        } else {
            irq::REPLAY.set(true);
        }
    });
}

/// `SIGUSR2`.
extern "C" fn on_nmi(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    if !IS_CPU.get() {
        return;
    }
    keep_errno(|| {
        // SAFETY: as in `on_interrupt`.
        let context = unsafe { &mut *context.cast::<ucontext_t>() };
        machine::leave_if_ending(context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize);
        if hold::is_held() {
            hold::note_nmi();
            return;
        }
        let mut frame = TrapFrame::of_signal(context);
        irq::IRQ_ON.set(false);
        if let Some(handlers) = trap::handlers() {
            or_end(|| (handlers.nmi)(&mut frame));
        }
        irq::IRQ_ON.set(frame.irqs_were_on());
        frame.write_back(context);
    });
}

/// `SIGTRAP`: single-step and breakpoints.
extern "C" fn on_trap(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as in `on_interrupt`.
    let code = unsafe { (*info).si_code };
    if !IS_CPU.get() {
        return pass_on(signal, info, context);
    }
    keep_errno(|| {
        // SAFETY: as in `on_interrupt`.
        let context = unsafe { &mut *context.cast::<ucontext_t>() };
        let mut frame = TrapFrame::of_signal(context);
        irq::IRQ_ON.set(false);
        // A breakpoint instruction has the code SI_KERNEL. Every other one is a debug exception, whose code tells its
        // cause; a virtual machine may lose the cause of a step on its way, and then it is not TRAP_TRACE.
        let breakpoint = code == libc::SI_KERNEL;
        if !breakpoint && step::is_stepping() {
            if !hold::is_held() {
                or_end(|| step::on_step(&frame));
            }
        } else {
            let kind = if breakpoint { ExceptionKind::Breakpoint } else { ExceptionKind::Debug };
            raise(Exception { kind, error_code: 0, address: 0 }, &mut frame);
        }
        irq::IRQ_ON.set(frame.irqs_were_on());
        frame.write_back(context);
    });
}

/// The exceptions in [`FAULTS`].
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if !IS_CPU.get() {
        return pass_on(signal, info, context);
    }
    keep_errno(|| {
        // SAFETY: as in `on_interrupt`; si_addr is valid for these four signals.
        let (context, address) = unsafe { (&mut *context.cast::<ucontext_t>(), (*info).si_addr()) };
        let greg = |index: c_int| context.uc_mcontext.gregs[index as usize] as u64;
        let kind = match (signal, greg(libc::REG_TRAPNO)) {
            (_, 14) | (libc::SIGBUS, _) => ExceptionKind::PageFault,
            (libc::SIGSEGV, _) => ExceptionKind::GeneralProtection,
            (libc::SIGFPE, 0) => ExceptionKind::DivideError,
            (libc::SIGFPE, _) => ExceptionKind::Simd,
            _ => ExceptionKind::InvalidOpcode,
        };
        let address = if kind == ExceptionKind::PageFault { address.addr() as u64 } else { 0 };
        let exception = Exception { kind, error_code: greg(libc::REG_ERR), address };
        let mut frame = TrapFrame::of_signal(context);
        irq::IRQ_ON.set(false);
        raise(exception, &mut frame);
        irq::IRQ_ON.set(frame.irqs_were_on());
        frame.write_back(context);
    });
}

/// `SIGABRT`: on a CPU, `std` has called `abort()` because a panic cannot unwind. The panic has been through the hook.
extern "C" fn on_abort(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if !IS_CPU.get() {
        return pass_on(signal, info, context);
    }
    machine::stop_after_panic(std::boxed::Box::new("abort() was called"));
}

/// Calls the exception handler; without one the machine ends.
fn raise(exception: Exception, frame: &mut TrapFrame) {
    match trap::handlers() {
        Some(handlers) => or_end(|| (handlers.exception)(exception, frame)),
        None => machine::stop(machine::Stopped::Exception { cpu: cpu::current(), exception, ip: frame.ip() }),
    }
}

/// Calls the interrupt handler. May return on another CPU.
pub(super) fn call_irq_handler(vector: u8, frame: &mut TrapFrame) {
    if let Some(handlers) = trap::handlers() {
        or_end(|| (handlers.irq)(vector, frame));
    }
}

/// Runs a handler; if it panics the machine ends, because an unwinder cannot walk through interrupted code.
fn or_end(f: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(f)) {
        machine::stop_after_panic(payload);
    }
}

/// The exception did not happen on a CPU of the machine: whoever handled it before does so now.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().and_then(|all| all.iter().find(|(of, _)| *of == signal));
    let Some((_, action)) = before.filter(|(_, action)| action.sa_flags & libc::SA_SIGINFO != 0) else {
        // SAFETY: back to the default action; the instruction faults again when we return, or abort() goes on, and the
        // process ends.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    // SAFETY: with SA_SIGINFO the field holds a handler of this type.
    let handler: Handler = unsafe { core::mem::transmute(action.sa_sigaction) };
    handler(signal, info, context);
}

/// An alternate stack of the calling OS thread, for exceptions: its own may be at fault. Dropping it puts back the one
/// from before.
pub(super) struct FaultStack {
    _memory: std::boxed::Box<[MaybeUninit<u8>]>,
    before: libc::stack_t,
}

/// Room for a signal frame, the handlers and the formatting of a panic.
const FAULT_STACK_BYTES: usize = 128 * 1024;

impl FaultStack {
    pub(super) fn install() -> Self {
        let mut memory = std::boxed::Box::new_uninit_slice(FAULT_STACK_BYTES);
        let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: FAULT_STACK_BYTES };
        let mut before = MaybeUninit::uninit();
        // SAFETY: the stack stays allocated until `drop` has replaced it; the call fills `before`.
        let before = unsafe {
            libc::sigaltstack(&stack, before.as_mut_ptr());
            before.assume_init()
        };
        Self { _memory: memory, before }
    }
}

impl Drop for FaultStack {
    fn drop(&mut self) {
        // SAFETY: what was in force before.
        unsafe { libc::sigaltstack(&self.before, ptr::null_mut()) };
    }
}
