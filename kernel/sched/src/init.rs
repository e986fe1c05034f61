//! How CPUs enter the scheduler.
//!
//! The boot CPU's flow becomes the first thread, `boot`, and gets an idle thread beside it. The flow of every other CPU
//! becomes that CPU's idle thread, on the stack it came up with; a CPU that was offline comes back in the same place
//! ([`join`]). The threads each CPU needs (`migration/N`, `kworker/N`, `ksoftirqd/N`)
//! are made here for all present CPUs and wait in their queues until their CPU is up, so that a CPU on its way up
//! allocates nothing.
//!
//! Linux: `sched_init`, `init_idle` in `kernel/sched/core.c`, `cpu_startup_entry` in `kernel/sched/idle.c`.

use core::fmt::{Display, Write};
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::{CpuId, CpuMask, cpu, irq, vector};
use sync::MaySleep;
use sync::context::{self, PREEMPT_OFFSET};
use sync::hooks::HOOKS;

use crate::affinity::ACTIVE;
use crate::hooks::hooks;
use crate::rq::RunQueue;
use crate::spawn::{self, SpawnError};
use crate::switch::{self, IDLE_THREAD};
use crate::thread::{self, BOOT_THREAD, CURRENT, NAME_BYTES, STAYS_FOR_EVER, Thread, cpu_number};
use crate::{ask, below, config, idle, softirq, stop, tick, work};

/// Makes the boot flow the first thread and starts the boot CPU's tick. Returns that thread's token, with interrupts on.
///
/// The thread is called `boot`, bound to the boot CPU, of normal priority.
///
/// Context: boot CPU, once, interrupts off, nothing held; after `sync::init`, the per-CPU areas of all present CPUs and
/// `mm` are there.
///
/// # Errors
///
/// [`SpawnError`] when there is no memory for the first threads.
///
/// # Panics
///
/// When called twice.
///
/// # Safety
///
/// The caller's flow has no `MaySleep` left from before: the one returned is the boot thread's only one.
pub unsafe fn init() -> Result<MaySleep, SpawnError> {
    static DONE: AtomicBool = AtomicBool::new(false);
    assert!(!DONE.swap(true, Ordering::Relaxed), "sched::init runs once");
    let here = cpu::current();
    if config::PREEMPT.get() == "full" {
        HOOKS.preempt_schedule.set(switch::preempt_schedule);
        HOOKS.preempt_schedule_irq.set(switch::preempt_schedule_irq);
    }
    HOOKS.irq_exit_softirq.set(softirq::run_pending);
    HOOKS.softirq_pending.set(softirq::pending);
    HOOKS.tick_runs.set(tick::runs_here);
    HOOKS.current_tid.set(|| thread::current().tid());
    sync::irq::register(vector::TIMER, tick::interrupt);
    below::register();

    for cpu in cpu::present().iter() {
        RunQueue::of(cpu).lock().assign_cpu(cpu);
    }
    thread::publish(&BOOT_THREAD);
    BOOT_THREAD.set_identity("boot", CpuMask::of(here), None);
    enter(here, &BOOT_THREAD);
    tick::start();
    irq::enable();

    // SAFETY: the caller has none left; the boot flow is a thread now and holds nothing.
    let mut cx = unsafe { MaySleep::new() };
    spawn::make_boot_idle(&mut cx, here)?;
    for cpu in cpu::present().iter() {
        if cpu != here {
            let idle = spawn::make()?;
            name_idle(idle, cpu);
        }
        stop::start_stopper(&mut cx, cpu)?;
        softirq::start_daemon(&mut cx, cpu)?;
    }
    work::init(&mut cx)?;
    ask::init();
    Ok(cx)
}

/// Makes this CPU part of the scheduler: its flow becomes its idle thread.
///
/// Context: a CPU that has just come up and is marked online, interrupts off, on a stack that it keeps; after [`init`] has
/// returned on the boot CPU.
pub fn start_secondary(here: CpuId) -> ! {
    debug_assert!(here == cpu::current() && !irq::enabled());
    context::count_add(PREEMPT_OFFSET);
    // SAFETY: `init` made one for every present CPU, type-stable (SCHED-3).
    let idle: &'static Thread = unsafe { IDLE_THREAD.get().as_ref() }.expect("sched::init made an idle thread");
    CURRENT.set(ptr::from_ref(idle).cast_mut());
    join(here, idle);
    idle::run()
}

/// This CPU, which runs its idle thread, enters the scheduler: for the first time, or again. Interrupts are off.
pub(crate) fn join(here: CpuId, idle: &'static Thread) {
    enter(here, idle);
    if let Some(hooks) = hooks() {
        (hooks.cpu_up)(here);
    }
}

/// The CPU's run queue opens, with `thread` running. Interrupts are off.
fn enter(here: CpuId, thread: &'static Thread) {
    thread.cpu.store(cpu_number(here), Ordering::Relaxed);
    sync::lock_order::set_thread(&thread.locks);
    stop::open();
    let mut inner = RunQueue::this().lock();
    inner.bring_online(here, thread);
    ACTIVE.set(here);
    if inner.best_level().is_some() {
        context::set_need_resched();
    }
}

/// Gives an idle thread its name and its CPU. It must not have run.
pub(crate) fn name_idle(thread: &'static Thread, cpu: CpuId) {
    thread.set_identity(NumberedName::new("idle/", cpu).as_str(), CpuMask::of(cpu), Some(cpu));
    thread.stays.store(STAYS_FOR_EVER, Ordering::Relaxed);
    thread.is_idle.store(true, Ordering::Relaxed);
    thread.cpu.store(cpu_number(cpu), Ordering::Relaxed);
    // SAFETY: the CPU has no idle thread yet and looks at this only when it has nothing else to run; one aligned word.
    unsafe { IDLE_THREAD.ptr_on(cpu).write_volatile(ptr::from_ref(thread).cast_mut()) };
}

/// `kworker/3`: a thread's name with its CPU's number, without an allocation.
pub(crate) struct NumberedName {
    bytes: [u8; NAME_BYTES],
    len: usize,
}

impl NumberedName {
    pub(crate) fn new(what: &str, number: impl Display) -> NumberedName {
        let mut name = NumberedName { bytes: [0; NAME_BYTES], len: 0 };
        // A name that is too long is cut, as every thread's name is.
        let _ = write!(name, "{what}{number}");
        name
    }

    pub(crate) fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?")
    }
}

impl Write for NumberedName {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for byte in s.bytes() {
            let place = self.bytes.get_mut(self.len).ok_or(core::fmt::Error)?;
            *place = byte;
            self.len += 1;
        }
        Ok(())
    }
}
