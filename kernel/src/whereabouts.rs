//! Where a CPU is: what is said of each CPU when the kernel ends, and when somebody outside asks with an NMI.
//!
//! The machine's NMI button (QMP `inject-nmi`) interrupts all CPUs at once. Nobody claims that NMI, so it means a
//! question. A kernel that goes about its business answers, one CPU after the other, and goes on. One that runs tests and
//! has stopped getting on ends there, as stalled, after all CPUs have been heard.
//!
//! Context: NMI. Linux: `arch/x86/kernel/nmi.c` (`unknown_nmi_error`), `lib/nmi_backtrace.c`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arch::bare::report;
use arch::trap::TrapFrame;
use arch::{CpuId, clock, cpu, irq};
use sched::ask::Activity;
use sync::hooks::HOOKS;
use sync::lock_order::{self, HeldLock};

use crate::console::{self, Raw};
use crate::panic;

/// How long a CPU waits for its turn, in nanoseconds; then it speaks all the same.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Locks that are told of.
const LOCKS: usize = 8;

/// Somebody is answering. Taken and given back by the CPU that speaks.
static SPEAKING: AtomicBool = AtomicBool::new(false);

/// What a CPU was doing when it was interrupted.
#[derive(Clone, Copy)]
pub(crate) struct Whereabouts {
    /// The instruction that was next.
    pub(crate) ip: u64,
    /// The frame pointer.
    pub(crate) rbp: u64,
    /// In the middle of what.
    pub(crate) context: Context,
}

impl Whereabouts {
    /// Of this CPU, which an NMI has interrupted.
    pub(crate) fn in_nmi(frame: &TrapFrame) -> Self {
        let context = Context::new(Activity::under_nmi(frame));
        Self { ip: frame.ip(), rbp: frame.regs.rbp, context }
    }

    /// Says it, with a backtrace. Another CPU may do so if this one stands still.
    pub(crate) fn tell(&self, out: &mut dyn Write) -> fmt::Result {
        let Self { ip, rbp, context } = self;
        writeln!(out, "cpu {} was in {context}, at {ip:#018x}", context.cpu)?;
        context.tell_locks(out)?;
        report::callers_from(out, *ip, *rbp)
    }
}

/// What a CPU is in the middle of, in words.
#[derive(Clone, Copy)]
pub(crate) struct Context {
    cpu: CpuId,
    activity: Activity,
    /// The locks that the CPU and its thread hold, as far as there is room; known where locks are checked.
    locks: [Option<HeldLock>; LOCKS],
}

impl Context {
    /// Of this CPU, which is in the middle of this.
    fn new(activity: Activity) -> Self {
        let cpu = cpu::current();
        let mut locks = [None; LOCKS];
        let mut free = locks.iter_mut();
        let mut add = |lock| {
            if let Some(place) = free.next() {
                *place = Some(lock);
            }
        };
        lock_order::for_each_held(cpu, &mut add);
        activity.thread.for_each_lock(&mut add);
        Self { cpu, activity, locks }
    }

    /// Of the code that runs now.
    pub(crate) fn current() -> Self {
        Self::new(Activity::here())
    }

    /// Of the code that an exception has interrupted.
    pub(crate) fn of(frame: &TrapFrame) -> Self {
        Self::new(Activity::under_exception(frame))
    }

    /// Says it in lines of a report.
    pub(crate) fn tell(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "  in {self}")?;
        self.tell_locks(out)
    }

    fn tell_locks(&self, out: &mut dyn Write) -> fmt::Result {
        self.locks.iter().flatten().try_for_each(|lock| writeln!(out, "  holds {lock}"))
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.activity.fmt(f)
    }
}

/// Lets NMIs that nobody claims be answered.
///
/// Context: boot CPU, once.
pub(crate) fn init() {
    HOOKS.nmi_unknown.set(on_question);
}

fn on_question(frame: &mut TrapFrame) {
    let here = Whereabouts::in_nmi(frame);
    if run_is_stuck() {
        panic::stall(&here)
    }
    let end = clock::now_ns() + PATIENCE_NS;
    // Acquire: pairs with the release below: what the last one said is out.
    while SPEAKING.swap(true, Ordering::Acquire) && clock::now_ns() < end {
        irq::relax();
    }
    {
        let _console = console::hold();
        // Nothing to be done about an error of what is printed.
        let _ = writeln!(Raw, "an NMI asks where everybody is").and_then(|()| here.tell(&mut Raw));
    }
    // Release: pairs with the acquire above.
    SPEAKING.store(false, Ordering::Release);
}

/// Whether this boot is for tests and they do not get on.
#[cfg(feature = "suites")]
fn run_is_stuck() -> bool {
    crate::cmdline::RUN.get() == "test" && tests::com2::seems_stuck()
}

#[cfg(not(feature = "suites"))]
fn run_is_stuck() -> bool {
    false
}
