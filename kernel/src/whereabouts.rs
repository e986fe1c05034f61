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
use sched::Thread;
use sync::context::{self, HARDIRQ_OFFSET, NMI_OFFSET, SOFTIRQ_DISABLE_OFFSET, SOFTIRQ_OFFSET};
use sync::hooks::HOOKS;
use sync::lock_order::{self, HeldLock};

use crate::console::{self, Raw};
use crate::panic;

/// How long a CPU waits for its turn, in nanoseconds; then it speaks all the same.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Locks that are told of.
const LOCKS: usize = 8;

/// Where `preempt_count` counts what.
const PREEMPT_BITS: u32 = SOFTIRQ_OFFSET - 1;
const SOFTIRQS_OFF_BITS: u32 = 0x7f * SOFTIRQ_DISABLE_OFFSET;
const HARDIRQ_BITS: u32 = 0xf * HARDIRQ_OFFSET;
const NMI_BITS: u32 = 0xf * NMI_OFFSET;

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
        // An NMI counts as one and as an interrupt; what it interrupted is the rest.
        let count = context::preempt_count() - (NMI_OFFSET + HARDIRQ_OFFSET);
        let context = Context { count, ..Context::of(frame) };
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
    count: u32,
    /// The locks that the CPU and its thread hold, as far as there is room; known where locks are checked.
    locks: [Option<HeldLock>; LOCKS],
    irqs_on: bool,
    /// The thread that runs or was interrupted.
    pub(crate) thread: &'static Thread,
}

impl Context {
    /// Of the code that runs now.
    pub(crate) fn current() -> Self {
        let (cpu, thread) = (cpu::current(), sched::current());
        let mut locks = [None; LOCKS];
        let mut free = locks.iter_mut();
        let mut add = |lock| {
            if let Some(place) = free.next() {
                *place = Some(lock);
            }
        };
        lock_order::for_each_held(cpu, &mut add);
        thread.for_each_lock(&mut add);
        Self { cpu, count: context::preempt_count(), locks, irqs_on: irq::enabled(), thread }
    }

    /// Of the code that an exception has interrupted.
    pub(crate) fn of(frame: &TrapFrame) -> Self {
        Self { irqs_on: frame.irqs_were_on(), ..Self::current() }
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
        let over = match self.count {
            count if count & NMI_BITS != 0 => "an NMI over ",
            count if count & HARDIRQ_BITS != 0 => "an interrupt over ",
            count if count & SOFTIRQ_OFFSET != 0 => "a softirq over ",
            _ => "",
        };
        let irqs = if self.irqs_on { "on" } else { "off" };
        let softirqs = if self.count & SOFTIRQS_OFF_BITS != 0 { ", softirqs off" } else { "" };
        let preempt = self.count & PREEMPT_BITS;
        match self.thread.tid() {
            0 => write!(f, "{over}early boot")?,
            tid => write!(f, "{over}task {}/{tid}", self.thread.name())?,
        }
        write!(f, ", irqs {irqs}{softirqs}, preempt {preempt}")
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
