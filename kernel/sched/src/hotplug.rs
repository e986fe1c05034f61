//! CPUs that go and come at run time: who is told, when, and how to hold it off.
//!
//! Key types: [`Notifier`] with its [`Order`], [`CpusGuard`], [`HotplugError`].
//!
//! | when, on the way down | where | what |
//! |---|---|---|
//! | [`Notifier::dying`] | on the CPU, interrupts off on all CPUs | the CPU has left `cpu::online()` and runs no thread any more |
//! | `Hooks::cpu_down` | on the CPU, in its idle thread, interrupts off | the last thing before it parks |
//! | [`Notifier::dead`] | the controlling thread, may sleep | the CPU is parked; its timers and softirqs are elsewhere |
//!
//! | when, on the way up | where | what |
//! |---|---|---|
//! | [`Notifier::prepare`] | the controlling thread, may sleep | the CPU is still parked; may fail |
//! | `Hooks::cpu_up` | on the CPU, in its idle thread, interrupts off | it is in `cpu::online()` and has a run queue again |
//! | [`Notifier::online`] | the controlling thread, may sleep | the CPU runs threads |
//!
//! # The way down
//!
//! 1. the controlling thread has the CPU to itself and waits until nobody keeps the CPUs;
//! 2. the run queue is closed: wake-ups go elsewhere, the stopper pushes out what is queued, threads that stay
//!    ([`MigrateGuard`](crate::MigrateGuard)) are waited for ([`crate::affinity`]);
//! 3. the machine is stopped. The CPU leaves `cpu::online()`, its last threads are pushed out, its tick stops, the notifiers
//!    run: `dying`. Then the others go on;
//! 4. the stopper gives up the CPU to the idle thread for good, which answers what calls and `irq_work` have reached the CPU
//!    ([`sync::irq::close`]), stops the clock event, tells RCU (`Hooks::cpu_down`), and parks ([`be_parked`]);
//! 5. the controlling thread takes over the timers and pending softirqs, parks `ksoftirqd/N`; the notifiers run: `dead`.
//!
//! A parked CPU halts, or PAUSEs with `idle=poll`, until its wake word changes; an interrupt makes it look, and is not
//! handled. NMIs are, and the CPU parks on: `irq_work` that one queues runs on a CPU that is online, a softirq that one
//! raises runs when this CPU is back.
//!
//! The way up is [`cpu_on`]: `prepare`, the wake word and an interrupt, the same entry as at boot
//! (`join` in `init.rs`), the threads that belong to the CPU come home, `online`.
//!
//! Invariants:
//!
//! * `SCHED-22`: while anybody keeps the CPUs, none goes or comes; one thread at a time has one go or come.
//! * `SCHED-28`: a CPU parks only with an empty run queue, and with nobody about to ask it for anything: it left
//!   `cpu::online()` while every other CPU was in its stopper, and whoever asks is pinned from the look to the asking.
//!
//! Contexts: task.
//!
//! Linux: `kernel/cpu.c` (`_cpu_down`, `take_cpu_down`, `cpus_read_lock`), `play_dead` in `arch/x86/kernel/smpboot.c`.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use arch::{CpuId, CpuMask, cpu, ipi, irq, paging, vector};
use sync::{ATOMIC, LockClass, MaySleep, SpinLock};

use crate::hooks::hooks;
use crate::notifier::{self, Chain};
use crate::rq::{IDLE_CPUS, RunQueue};
use crate::switch::yield_now;
use crate::thread::{Thread, current};
use crate::wait::WaitQueue;
use crate::{affinity, init, park, softirq, stop, tick, timer};

pub use crate::notifier::{Notifier, Order, register};

arch::per_cpu! {
    /// How far this CPU is, as one of the constants below: its wake word while it is parked.
    static STAGE: AtomicU8 = AtomicU8::new(UP);
}

/// Takes part, or was never started.
const UP: u8 = 0;
/// Has left; its idle thread shall park. Set by the CPU in the stop.
const LEAVING: u8 = 1;
/// Is parked. Set by the CPU.
const PARKED: u8 = 2;
/// Shall come back. Set by the controlling thread; the CPU makes it `UP`.
const RETURNING: u8 = 3;

/// Why a CPU did not go or come. Nothing has changed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum HotplugError {
    /// The boot CPU stays.
    BootCpu,
    /// The machine has no such CPU.
    NotPresent,
    /// It was left off at boot, and only a CPU that has run can be woken.
    NeverStarted,
    /// It is online already.
    IsOnline,
    /// It is offline already.
    IsOffline,
    /// The caller may not leave this very CPU: it holds a `MigrateGuard`.
    CallerStays,
    /// A subsystem has no memory for it. Trying again later is sensible.
    NoMemory,
}

impl fmt::Display for HotplugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HotplugError::BootCpu => "the boot CPU stays online",
            HotplugError::NotPresent => "the machine has no such CPU",
            HotplugError::NeverStarted => "it was not started at boot, only CPUs that were can come back",
            HotplugError::IsOnline => "it is online",
            HotplugError::IsOffline => "it is offline",
            HotplugError::CallerStays => "the caller may not leave it now",
            HotplugError::NoMemory => "no memory for its per-CPU parts",
        })
    }
}

/// Takes `cpu` offline: its threads, timers and work go elsewhere, and it parks. Returns when it has.
///
/// Waits for threads that hold a [`MigrateGuard`](crate::MigrateGuard) there.
///
/// Context: task, sleeps; the caller may run on `cpu`. Not from a notifier.
///
/// # Errors
///
/// [`HotplugError`]; the CPU is as it was.
///
/// # Panics
///
/// When the caller keeps the CPUs.
pub fn cpu_off(cpu: CpuId, cx: &mut MaySleep) -> Result<(), HotplugError> {
    let _control = Control::take(cx);
    if cpu == CpuId::BOOT {
        return Err(HotplugError::BootCpu);
    }
    check_started(cpu)?;
    if !cpu::is_online(cpu) {
        return Err(HotplugError::IsOffline);
    }
    if current().stays() && current().cpu() == cpu {
        return Err(HotplugError::CallerStays);
    }
    let chain = notifier::chain();
    let gone = AtomicBool::new(false);
    while !gone.load(Ordering::Relaxed) {
        affinity::vacate(cpu, cx);
        stop::stop_machine(cx, &CpuMask::of(cpu), |here| gone.store(leave(here, &chain), Ordering::Relaxed));
    }
    wait_for_stage(cpu, PARKED, cx);
    timer::adopt(cpu);
    softirq::adopt(cpu);
    park::park(softirq::daemon_of(cpu), cx);
    chain.dead(cpu, cx);
    log::debug!("CPU {cpu} is offline");
    Ok(())
}

/// Brings `cpu`, which was online before, back. Returns when it runs threads.
///
/// Context: task, sleeps. Not from a notifier.
///
/// # Errors
///
/// [`HotplugError`]; the CPU is as it was.
///
/// # Panics
///
/// When the caller keeps the CPUs.
pub fn cpu_on(cpu: CpuId, cx: &mut MaySleep) -> Result<(), HotplugError> {
    let _control = Control::take(cx);
    check_started(cpu)?;
    if cpu::is_online(cpu) {
        return Err(HotplugError::IsOnline);
    }
    let chain = notifier::chain();
    chain.prepare(cpu, cx)?;
    // Release: pairs with the Acquire in `be_parked`: what the notifiers prepared is seen there.
    stage_of(cpu).store(RETURNING, Ordering::Release);
    ipi::send(cpu, vector::RESCHEDULE);
    wait_for_stage(cpu, UP, cx);
    affinity::bring_home(cpu, cx);
    park::unpark(softirq::daemon_of(cpu));
    chain.online(cpu, cx);
    log::debug!("CPU {cpu} is online");
    Ok(())
}

fn check_started(cpu: CpuId) -> Result<(), HotplugError> {
    if !cpu::present().contains(cpu) {
        return Err(HotplugError::NotPresent);
    }
    if !cpu::has_started(cpu) {
        return Err(HotplugError::NeverStarted);
    }
    Ok(())
}

fn stage_of(cpu: CpuId) -> &'static AtomicU8 {
    // SAFETY: per-CPU areas of present CPUs live for ever, and the word is atomic.
    unsafe { &*STAGE.ptr_on(cpu) }
}

/// Waits for what the CPU does next by itself, a matter of microseconds of its own.
fn wait_for_stage(cpu: CpuId, stage: u8, cx: &mut MaySleep) {
    // Acquire: pairs with the Release stores in `be_parked`: what the CPU did before is seen.
    while stage_of(cpu).load(Ordering::Acquire) != stage {
        irq::relax();
        yield_now(cx);
    }
}

/// Step 3: on the CPU that goes, the machine stopped. False if a thread has come to stay meanwhile; then nothing has
/// happened.
fn leave(here: CpuId, chain: &Chain) -> bool {
    if affinity::anybody_stays(here) {
        return false;
    }
    cpu::set_online(here, false);
    stop::close();
    RunQueue::this().lock().take_offline();
    affinity::push_misplaced();
    tick::stop();
    chain.dying(here);
    stage_of(here).store(LEAVING, Ordering::Relaxed);
    true
}

/// Shall this CPU's idle thread park? The caller is pinned.
pub(crate) fn is_leaving() -> bool {
    stage_of(cpu::current()).load(Ordering::Relaxed) == LEAVING
}

/// Step 4, and the way back.
///
/// Context: idle thread, interrupts off before and after, the run queue empty.
pub(crate) fn be_parked(here: CpuId, poll: bool) {
    IDLE_CPUS.clear(here);
    // Again: if the idle thread came here by way of a pass, it has started it. Before the last look at lazy `irq_work`.
    tick::stop();
    sync::irq::close();
    timer::stop_event();
    if let Some(hooks) = hooks() {
        (hooks.cpu_down)(here);
    }
    let stage = stage_of(here);
    // Release: pairs with the Acquire in `wait_for_stage`.
    stage.store(PARKED, Ordering::Release);
    // Acquire: pairs with the Release in `cpu_on`.
    while stage.load(Ordering::Acquire) == PARKED {
        if poll {
            irq::relax();
        } else {
            // The word was looked at with interrupts off; the interrupt that follows a change of it ends the halt.
            irq::halt_with_irqs();
            irq::disable();
        }
    }
    sync::irq::open();
    cpu::set_online(here, true);
    // Nobody has told this CPU what was unmapped meanwhile. From here on it is told, so that nothing falls in between.
    paging::flush_all_local();
    init::join(here, current());
    // Release: pairs with the Acquire in `wait_for_stage`.
    stage.store(UP, Ordering::Release);
}

/// The right to have CPUs go and come (`SCHED-22`).
struct Control;

impl Control {
    fn take(cx: &mut MaySleep) -> Control {
        let me = current();
        assert!(me.keeps_cpus.load(Ordering::Relaxed) == 0, "SCHED-22: a thread that keeps the CPUs changes them");
        FREE.wait_until(cx, || {
            let mut keepers = KEEPERS.lock_irqsave(ATOMIC);
            assert!(!ptr::eq(keepers.controller, me), "SCHED-22: a notifier has a CPU go or come");
            let free = keepers.controller.is_null();
            if free {
                keepers.controller = me;
            }
            free
        });
        let control = Control;
        // New ones wait from here on.
        FREE.wait_until(cx, || KEEPERS.lock_irqsave(ATOMIC).count == 0);
        control
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        KEEPERS.lock_irqsave(ATOMIC).controller = ptr::null();
        FREE.wake_all();
    }
}

/// Nothing is taken inside it. Protects [`Keepers`].
static KEEPERS_CLASS: LockClass = LockClass::new("sched.hotplug");
static KEEPERS: SpinLock<Keepers> = SpinLock::new(Keepers { count: 0, controller: ptr::null() }, &KEEPERS_CLASS);
/// Where keepers wait for the controller to end, and controllers for the keepers.
static FREE: WaitQueue = WaitQueue::new();

/// Who keeps the CPUs as they are, and who changes them (`SCHED-22`).
struct Keepers {
    /// Guards of threads other than the controller.
    count: usize,
    /// The thread that has a CPU go or come; null if there is none.
    controller: *const Thread,
}

// SAFETY: `controller` is only compared.
unsafe impl Send for Keepers {}

/// No CPU goes or comes while it lives.
#[derive(Debug)]
#[must_use = "CPUs may go and come again as soon as the guard is dropped"]
pub struct CpusGuard {
    /// The controller's own guards are not counted: it holds more than they.
    counted: bool,
    /// It stays with its thread, which counts its guards.
    _thread: PhantomData<*mut ()>,
}

/// Keeps CPUs from going and coming until the guard is dropped; waits for one that is on its way.
///
/// Nests. In a notifier it does nothing: the controlling thread holds more already.
///
/// Context: task, sleeps; not under a [`MigrateGuard`](crate::MigrateGuard), which the one that is waited for may wait for.
/// The guard may be held over sleeps.
pub fn keep_cpus(cx: &mut MaySleep) -> CpusGuard {
    let me = current();
    let mut counted = true;
    FREE.wait_until(cx, || {
        let mut keepers = KEEPERS.lock_irqsave(ATOMIC);
        let mine = ptr::eq(keepers.controller, me);
        // Who keeps them already may do so again, though a controller waits for it.
        if keepers.controller.is_null() || me.keeps_cpus.load(Ordering::Relaxed) > 0 {
            keepers.count += 1;
            return true;
        }
        counted = !mine;
        mine
    });
    if counted {
        let nested = me.keeps_cpus.load(Ordering::Relaxed) > 0;
        debug_assert!(nested || !me.stays(), "keep_cpus under a MigrateGuard can wait for who waits for that guard");
        me.keeps_cpus.store(me.keeps_cpus.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    CpusGuard { counted, _thread: PhantomData }
}

impl Drop for CpusGuard {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let me = current();
        me.keeps_cpus.store(me.keeps_cpus.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        let last = {
            let mut keepers = KEEPERS.lock_irqsave(ATOMIC);
            keepers.count -= 1;
            keepers.count == 0
        };
        if last {
            FREE.wake_all();
        }
    }
}
