//! Watchdogs: they find what does not get on, and say who, where, since when, and which locks are held.
//!
//! | what is wrong | who finds it | after |
//! |---|---|---|
//! | a CPU takes interrupts but does not schedule (*soft lockup*) | its own watchdog timer | twice `watchdog_thresh` |
//! | a CPU takes no interrupts (*hard lockup*) | the CPU before it, which asks it by NMI | `watchdog_thresh` |
//! | a CPU's clock event does not come though interrupts are on (*lost timer*) | the same | `watchdog_thresh` |
//! | a thread sleeps in a wait that must end (*hung task*) | `khungtaskd` | `hung_task_timeout_secs` |
//! | a thread is runnable and gets no CPU (*starved task*) | `khungtaskd` | `hung_task_timeout_secs` |
//!
//! Every CPU has a timer that beats four times per `watchdog_thresh`, also while the CPU idles, and looks after the next
//! CPU online: so of a machine that idles but for one stuck CPU, one always looks. `khungtaskd` looks at all threads four
//! times per time-out. That is all they cost when nothing is wrong, and all depends on the guest's clock alone.
//!
//! A report is an error in the log: first a line in Linux's wording, then sentences. It comes once when the limit is
//! reached and again each time the age has doubled. An emulated machine may be starved by its host: therefore ages are
//! counted by looks, none of which counts for more than one and a half periods ([`pace`]), and each report says how late
//! the watchdog itself was in the same time.
//!
//! Limits come from the command line and can be changed by [`set_limits`]; under limits that are marked as a *drill*
//! reports say so and are counted apart.
//!
//! Contexts: timers in hardirq context, `khungtaskd` is a thread.
//! Nothing allocates.
//!
//! Linux: `kernel/watchdog.c`, `kernel/watchdog_buddy.c`, `kernel/hung_task.c`.

mod cpu;
mod pace;
mod report;
mod task;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sync::{MaySleep, param};

use crate::spawn::SpawnError;

pub use cpu::{Beat, beat_of};
pub use pace::Pace;
pub(crate) use task::TaskWatch;
pub use task::{Idling, idling};

param! {
    /// A CPU that takes no timer interrupt for so long, or does not schedule for twice as long, is reported; 0: never.
    pub static WATCHDOG_THRESH: u32 = "watchdog_thresh", default 10, in 0..=60, unit "seconds";
}
param! {
    /// A thread that sleeps in a wait that must end, or gets no CPU, for so long is reported; 0: never.
    pub static HUNG_TASK_TIMEOUT: u32 = "hung_task_timeout_secs", default 120, in 0..=86400, unit "seconds";
}
param! {
    /// Panic after the report of a CPU that does not schedule.
    pub static SOFTLOCKUP_PANIC: bool = "softlockup_panic", default false;
}
param! {
    /// Panic after the report of a CPU that takes no interrupts.
    pub static HARDLOCKUP_PANIC: bool = "hardlockup_panic", default false;
}
param! {
    /// Panic after the report of a thread that sleeps for too long.
    pub static HUNG_TASK_PANIC: bool = "hung_task_panic", default false;
}

const NS_PER_S: u64 = 1_000_000_000;

/// What is reported.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A CPU that takes interrupts does not schedule.
    SoftLockup = 0,
    /// A CPU takes no interrupts.
    HardLockup = 1,
    /// A CPU's clock event does not come.
    LostTimer = 2,
    /// A thread sleeps for too long.
    HungTask = 3,
    /// A runnable thread gets no CPU.
    StarvedTask = 4,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 5] = [Kind::SoftLockup, Kind::HardLockup, Kind::LostTimer, Kind::HungTask, Kind::StarvedTask];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::SoftLockup => "soft lockup",
            Kind::HardLockup => "hard lockup",
            Kind::LostTimer => "lost timer",
            Kind::HungTask => "hung task",
            Kind::StarvedTask => "starved task",
        }
    }

    /// Reported after so many nanoseconds; 0: never.
    pub fn limit_ns(self) -> u64 {
        let limits = limits();
        match self {
            Kind::SoftLockup => 2 * limits.cpu_ns,
            Kind::HardLockup | Kind::LostTimer => limits.cpu_ns,
            Kind::HungTask | Kind::StarvedTask => limits.task_ns,
        }
    }

    /// Whether a report of it ends the kernel.
    fn panics(self) -> bool {
        match self {
            Kind::SoftLockup => SOFTLOCKUP_PANIC.get(),
            Kind::HardLockup | Kind::LostTimer => HARDLOCKUP_PANIC.get(),
            Kind::HungTask => HUNG_TASK_PANIC.get(),
            Kind::StarvedTask => false,
        }
    }
}

/// When something is reported.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// A CPU without a timer interrupt, in nanoseconds; it may go without a switch for twice as long. 0: never.
    pub cpu_ns: u64,
    /// A thread that sleeps or gets no CPU, in nanoseconds; 0: never.
    pub task_ns: u64,
    /// Reports are wanted: they say "(drill)" and are counted apart.
    pub drill: bool,
}

/// The limits in force. Written by [`set_limits`]; a look that sees some of the old ones is one look too late or early.
static CPU_NS: AtomicU64 = AtomicU64::new(0);
static TASK_NS: AtomicU64 = AtomicU64::new(0);
static DRILL: AtomicBool = AtomicBool::new(false);

/// Reports by kind, in earnest and as drills. Written by who reports.
static REPORTS: [[AtomicU64; 2]; Kind::ALL.len()] = [const { [const { AtomicU64::new(0) }; 2] }; Kind::ALL.len()];

/// The limits in force.
///
/// Context: any.
pub fn limits() -> Limits {
    Limits {
        cpu_ns: CPU_NS.load(Ordering::Relaxed),
        task_ns: TASK_NS.load(Ordering::Relaxed),
        drill: DRILL.load(Ordering::Relaxed),
    }
}

/// Changes the limits, at once and everywhere; ages begin anew. Returns those that were in force.
///
/// Context: task, sleeps.
pub fn set_limits(limits: Limits, cx: &mut MaySleep) -> Limits {
    cx.assert_may_sleep();
    let old = self::limits();
    CPU_NS.store(limits.cpu_ns, Ordering::Relaxed);
    TASK_NS.store(limits.task_ns, Ordering::Relaxed);
    DRILL.store(limits.drill, Ordering::Relaxed);
    cpu::restart_everywhere();
    task::look_again();
    old
}

/// Reports of `kind` so far: in earnest, and as drills.
///
/// Context: any.
pub fn reports(kind: Kind) -> (u64, u64) {
    let [earnest, drills] = &REPORTS[kind as usize];
    (earnest.load(Ordering::Relaxed), drills.load(Ordering::Relaxed))
}

/// Starts the watchdogs, with the limits of the command line.
///
/// Context: boot thread, once, when all CPUs are up.
///
/// # Errors
///
/// [`SpawnError`] when there is no memory for `khungtaskd`.
pub fn start(cx: &mut MaySleep) -> Result<(), SpawnError> {
    cpu::init();
    task::start(cx)?;
    let ns = |seconds: u32| u64::from(seconds) * NS_PER_S;
    let limits = Limits { cpu_ns: ns(WATCHDOG_THRESH.get()), task_ns: ns(HUNG_TASK_TIMEOUT.get()), drill: false };
    set_limits(limits, cx);
    Ok(())
}
