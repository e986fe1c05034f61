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
//! Invariants:
//!
//! * `SCHED-22`: while anybody keeps the CPUs, none goes or comes; one thread at a time has one go or come.
//!
//! Contexts: task.
//!
//! Linux: `cpus_read_lock` in `kernel/cpu.c`.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::Ordering;

use sync::{ATOMIC, LockClass, MaySleep, SpinLock};

use crate::thread::{Thread, current};
use crate::wait::WaitQueue;

pub use crate::notifier::{Notifier, Order, register};

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

/// Innermost but for the wait queue's and what nests in that. Protects [`Keepers`].
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
/// Context: task, sleeps. The guard may be held over sleeps.
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
