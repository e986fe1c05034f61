//! The life of a hosted machine: threads become CPUs, run, and stop.
//!
//! Each CPU is an OS thread that sets itself up on its own stack (the *base*) and then switches, by the kernel's context
//! switch, to a stack of the machine. Leaving the machine is a switch back to the base from wherever the CPU happens to
//! be: in a thread, an interrupt or an NMI. What was on the machine's stacks is abandoned, as when a computer is
//! switched off: destructors do not run.
//!
//! The end, in steps:
//! 1. Somebody *claims* it (HMCH-1): the boot closure returned, a panic, an exit, an exception without handler.
//! 2. That CPU stores the outcome, sets `ENDING`, wakes the thread that called [`boot`], and leaves.
//! 3. That thread sends NMIs to CPUs that are still in, until all have left. A CPU does not leave from within a
//!    [`host_call`](super::host_call) nor from code outside the executable, where a lock of the host may be held; it does
//!    so at the end of the call, or at one of the next NMIs.
//!
//! Invariants:
//!
//! - `HMCH-1` One outcome: the first to exchange `CLAIMED` decides, everybody else just leaves.
//! - `HMCH-2` `BASE` of a CPU is a saved context from the moment `IS_CPU` is set until it is cleared, and is switched to
//!   once, by that CPU.
//!
//! Lock order: `ONE_AT_A_TIME` → any other; the others are leaves, and machine code takes them in a `host_call` only.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::any::Any;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::string::{String, ToString};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;
use std::vec::Vec;

use super::memory::Memory;
use super::paging::Window;
use super::signal::IS_CPU;
use super::smp::Stack;
use super::topology::Shape;
use super::{console, host_call, irq, signal, smp, step, timer, topology};
use crate::cpu::{self, CpuId};
use crate::exit::Verdict;
use crate::task::{self, Context};
use crate::trap::{self, Exception};
use crate::{hosted::hold, percpu};

/// How long CPUs may take to stop before the whole process is given up.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Why a machine stopped before its boot closure returned.
#[derive(Clone, PartialEq, Debug)]
pub enum Stopped {
    /// Code of the machine panicked.
    Panicked {
        /// On this CPU.
        cpu: CpuId,
        /// Message and place.
        message: String,
    },
    /// [`debug_exit`](crate::exit::debug_exit) was called.
    Exit(Verdict),
    /// [`power_off`](crate::exit::power_off) was called.
    PowerOff,
    /// [`reboot`](crate::exit::reboot) was called.
    Reboot,
    /// An exception, and no handlers were set.
    Exception {
        /// On this CPU.
        cpu: CpuId,
        /// What it was.
        exception: Exception,
        /// Where.
        ip: u64,
    },
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { cpu, message } => write!(f, "CPU {cpu} {message}"),
            Self::Exit(verdict) => write!(f, "exit: {verdict:?}"),
            Self::PowerOff => f.write_str("power off"),
            Self::Reboot => f.write_str("reboot"),
            Self::Exception { cpu, exception, ip } => write!(f, "CPU {cpu}: {exception:?} at {ip:#x}"),
        }
    }
}

impl core::error::Error for Stopped {}

/// Held by the thread that runs a machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// The machine is being switched off. Set by the claimer, read by everybody.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Somebody decided how the machine ends (HMCH-1).
static CLAIMED: AtomicBool = AtomicBool::new(false);
/// Why the machine stopped; `None`: the boot closure returned. Written by the claimer.
static OUTCOME: Mutex<Option<Stopped>> = Mutex::new(None);
/// The thread in [`boot`].
static BOOTER: Mutex<Option<Thread>> = Mutex::new(None);
/// Text of the last panic on a CPU, from the panic hook.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

crate::per_cpu! {
    /// The OS thread's own stack (HMCH-2).
    static BASE: Context = Context::RUNNING;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a machine with `cpus` CPUs on `nodes` nodes of `mem_per_node` bytes each: CPU 0 runs `main`, all others run
/// `ap_main` at the same time and idle with interrupts on after it. Returns when `main` has.
///
/// Each CPU begins with interrupts off and its timer stopped. Waits while another machine runs in this process (HOST-1).
///
/// # Errors
///
/// [`Stopped`] if the machine ended otherwise.
///
/// # Panics
///
/// If the shape is impossible, the host refuses memory or threads, or the caller is itself in a machine.
pub fn boot<R: Send>(
    cpus: usize,
    nodes: usize,
    mem_per_node: usize,
    ap_main: fn(CpuId),
    main: impl FnOnce() -> R + Send,
) -> Result<R, Stopped> {
    let stacks: Vec<Stack> = (1..cpus).map(|_| Stack::new()).collect();
    let tops: Vec<usize> = stacks.iter().map(|stack| stack.top().addr()).collect();
    boot_cold(cpus, nodes, mem_per_node, || {
        let mut stack_of = |cpu: CpuId| core::ptr::with_exposed_provenance_mut(tops[cpu.index() - 1]);
        let missing = smp::start_all(ap_main, &mut stack_of);
        assert!(missing.is_empty(), "CPUs {missing} did not start");
        main()
    })
}

/// Like [`boot`], but leaves the other CPUs off until `main` calls [`smp::start_all`](crate::smp::start_all), as a kernel
/// does on bare metal.
///
/// # Errors
///
/// As [`boot`].
///
/// # Panics
///
/// As [`boot`].
pub fn boot_cold<R: Send>(
    cpus: usize,
    nodes: usize,
    mem_per_node: usize,
    main: impl FnOnce() -> R + Send,
) -> Result<R, Stopped> {
    assert!(!IS_CPU.get(), "a machine cannot boot another one");
    let shape = Shape::new(cpus, nodes, mem_per_node);
    let _alone = lock(&ONE_AT_A_TIME);
    signal::install();
    install_panic_hook();

    let memory = Memory::new(shape.bytes());
    let window = Window::new();
    topology::describe(&shape);
    shape.cpus().for_each(reset_cpu);
    // Relaxed: threads are spawned afterwards.
    ENDING.store(false, Ordering::Relaxed);
    CLAIMED.store(false, Ordering::Relaxed);
    *lock(&OUTCOME) = None;
    *lock(&BOOTER) = Some(thread::current());

    let result = run_cpus(&shape, main);

    trap::forget_handlers();
    console::forget();
    irq::forget();
    smp::forget();
    topology::forget();
    drop((window, memory));
    match lock(&OUTCOME).take() {
        Some(stopped) => Err(stopped),
        None => Ok(result.expect("HMCH-1: no outcome means that the boot closure returned")),
    }
}

/// One thread for each CPU, until all have left the machine.
fn run_cpus<R: Send>(shape: &Shape, main: impl FnOnce() -> R + Send) -> Option<R> {
    let (mut main, mut result) = (Some(main), None);
    let mut run_main = || {
        if let Some(main) = main.take() {
            result = Some(main());
        }
    };
    let stack = Stack::new();
    thread::scope(|scope| {
        let named = |cpu: CpuId| thread::Builder::new().name(std::format!("cpu{cpu}"));
        let refused = "the host refuses a thread";
        let mut threads: Vec<_> = shape
            .cpus()
            .skip(1)
            .map(|cpu| (cpu, named(cpu).spawn_scoped(scope, move || ap_thread(cpu)).expect(refused)))
            .collect();
        smp::set_threads(threads.iter().map(|(_, thread)| thread.thread().clone()).collect());
        let (run_main, top) = (&mut run_main, stack.top().addr());
        let cpu0 = move || be_cpu(CpuId::BOOT, core::ptr::with_exposed_provenance_mut(top), run_main);
        threads.push((CpuId::BOOT, named(CpuId::BOOT).spawn_scoped(scope, cpu0).expect(refused)));

        while !is_ending() {
            thread::park_timeout(Duration::from_millis(50));
        }
        let since = Instant::now();
        while let Some((cpu, thread)) = threads.iter().find(|(_, thread)| !thread.is_finished()) {
            if since.elapsed() > STOP_DEADLINE {
                std::eprintln!("CPU {cpu} of the hosted machine does not stop; giving up the process");
                std::process::abort();
            }
            thread.thread().unpark();
            signal::send_nmi(*cpu);
            thread::sleep(Duration::from_micros(200));
        }
    });
    result
}

/// The arch's own per-CPU variables as they are to begin: threads outside machines may have used the template (HOST-3).
fn reset_cpu(cpu: CpuId) {
    // SAFETY: `cpu` does not run yet.
    unsafe {
        irq::IRQ_ON.ptr_on(cpu).write(false);
        irq::REPLAY.ptr_on(cpu).write(false);
        IS_CPU.ptr_on(cpu).write(false);
    }
    hold::reset(cpu);
    step::reset(cpu);
}

/// The thread of a CPU other than 0: waits to be started.
fn ap_thread(cpu: CpuId) {
    if let Some((entry, stack_top)) = smp::wait_for_start(cpu) {
        be_cpu(cpu, stack_top, &mut || {
            entry(cpu);
            loop {
                irq::disable();
                irq::halt_with_irqs();
            }
        });
    }
}

/// What a CPU is told on its new stack.
struct Start<'a> {
    cpu: CpuId,
    run: &'a mut (dyn FnMut() + Send),
}

/// Makes the calling OS thread `cpu`, running `run` on the given stack, until it leaves the machine.
fn be_cpu(cpu: CpuId, stack_top: *mut u8, run: &mut (dyn FnMut() + Send)) {
    let fault_stack = signal::FaultStack::install();
    // SAFETY: the area was made by `topology::describe`, and this thread alone becomes `cpu`.
    unsafe { percpu::load(cpu) };
    timer::create(cpu);
    // SAFETY: no arguments.
    signal::set_thread(cpu, Some(unsafe { libc::gettid() }));
    let mut start = Start { cpu, run };
    // SAFETY: the stack is this CPU's, says whoever provided it; `start` stays here until the machine is left.
    unsafe {
        let machine = task::prepare(stack_top, cpu_main, (&raw mut start).expose_provenance());
        // From here on signals are taken seriously, on this stack at first, which is no harm: the flag is off, and leaving
        // the machine is not possible before CPU 0 runs or, here, has to wait for the next NMI.
        task::switch(BASE.this_ptr(), &machine);
    }
    // Left. `IS_CPU` is clear, so signals that still come are ignored.
    signal::set_thread(cpu, None);
    cpu::set_online(cpu, false);
    timer::delete();
    // SAFETY: back to the template; nothing of the machine runs here any more.
    unsafe { super::set_gs_base(0) };
    drop(fault_stack);
}

/// First code of a CPU in the machine, on a stack of the machine.
extern "C" fn cpu_main(start: usize) -> ! {
    IS_CPU.set(true);
    // SAFETY: `be_cpu` passes the address of its own `Start` and waits.
    let start = unsafe { &mut *core::ptr::with_exposed_provenance_mut::<Start<'_>>(start) };
    cpu::set_online(start.cpu, true);
    match catch_unwind(AssertUnwindSafe(&mut start.run)) {
        // Only the boot closure returns. By now it may run on another CPU.
        Ok(()) => end(None),
        Err(payload) => stop_after_panic(payload),
    }
}

/// Whether the machine is being switched off.
#[inline]
pub(super) fn is_ending() -> bool {
    // Acquire: pairs with the store in `end`.
    ENDING.load(Ordering::Acquire)
}

/// Ends the machine for this reason; ends the process if there is no machine.
pub(super) fn stop(why: Stopped) -> ! {
    if !IS_CPU.get() {
        std::eprintln!("exit outside a machine: {why}");
        std::process::exit(if let Stopped::Exit(verdict) = why { verdict as i32 * 2 + 1 } else { 1 });
    }
    end(Some(why))
}

/// Ends the machine because of a panic that was caught with this payload.
pub(super) fn stop_after_panic(payload: Box<dyn Any + Send>) -> ! {
    let message = host_call(|| {
        lock(&LAST_PANIC).take().unwrap_or_else(|| match payload.downcast_ref::<&str>() {
            Some(text) => text.to_string(),
            None => payload.downcast_ref::<String>().cloned().unwrap_or_default(),
        })
    });
    stop(Stopped::Panicked { cpu: cpu::current(), message })
}

fn end(why: Option<Stopped>) -> ! {
    // AcqRel: decides between CPUs (HMCH-1); what it protects is read after the threads were joined.
    if !CLAIMED.swap(true, Ordering::AcqRel) {
        host_call(|| {
            *lock(&OUTCOME) = why;
            // Release: pairs with `is_ending`: who sees it sees the outcome.
            ENDING.store(true, Ordering::Release);
            if let Some(booter) = lock(&BOOTER).take() {
                booter.unpark();
            }
        });
    }
    leave()
}

/// Takes this CPU out of the machine, for good.
pub(super) fn leave() -> ! {
    // From here on no signal does anything, so this thread stays on this CPU.
    IS_CPU.set(false);
    let mut abandoned = Context::RUNNING;
    // SAFETY: the base is saved and was not switched to yet (HMCH-2). Nobody switches back to `abandoned`.
    unsafe { task::switch(&mut abandoned, BASE.this_ptr()) };
    unreachable!("HMCH-2: nobody switches back to a CPU that left")
}

/// Called with a signal that interrupted the code at `ip`: leaves if the machine is ending and this is a safe place.
pub(super) fn leave_if_ending(ip: usize) {
    if !is_ending() {
        return;
    }
    if hold::is_held() {
        hold::note_end();
    } else if is_own_text(ip) {
        leave();
    }
}

/// Whether `ip` lies in the executable, and not in a library or the vDSO.
fn is_own_text(ip: usize) -> bool {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    ((&raw const __executable_start).addr()..(&raw const etext).addr()).contains(&ip)
}

/// Lets the place of a panic on a CPU be remembered. Once per process.
fn install_panic_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !IS_CPU.get() {
                return before(info);
            }
            // What core says when a panic reaches an `extern "C"` function or leaves a destructor while unwinding. The
            // panic that did so has been through here, and is the one to report.
            let is_sequel = info.payload_as_str().is_some_and(|text| {
                text.starts_with("panic in a function that cannot unwind") || text.starts_with("panic in a destructor")
            });
            if !is_sequel {
                host_call(|| {
                    *lock(&LAST_PANIC) = Some(info.to_string());
                    before(info);
                });
            }
        }));
    });
}
