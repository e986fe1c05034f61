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
use sync::context::{self, HARDIRQ_OFFSET, NMI_OFFSET, SOFTIRQ_OFFSET};
use sync::hooks::HOOKS;

use crate::console::{self, Raw};
use crate::panic;

/// How long a CPU waits for its turn, in nanoseconds; then it speaks all the same.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Where `preempt_count` counts interrupts and NMIs: four bits each.
const HARDIRQ_BITS: u32 = 0xf * HARDIRQ_OFFSET;
const NMI_BITS: u32 = 0xf * NMI_OFFSET;

/// Somebody is answering. Taken and given back by the CPU that speaks.
static SPEAKING: AtomicBool = AtomicBool::new(false);

/// What a CPU was doing when it was interrupted.
#[derive(Clone, Copy)]
pub(crate) struct Whereabouts {
    cpu: CpuId,
    ip: u64,
    rbp: u64,
    count: u32,
    thread: &'static Thread,
}

impl Whereabouts {
    /// Of this CPU, which an NMI has interrupted.
    pub(crate) fn in_nmi(frame: &TrapFrame) -> Self {
        Self {
            cpu: cpu::current(),
            ip: frame.ip(),
            rbp: frame.regs.rbp,
            // An NMI counts as one and as an interrupt; what it interrupted is the rest.
            count: context::preempt_count() - (NMI_OFFSET + HARDIRQ_OFFSET),
            thread: sched::current(),
        }
    }

    /// Says it, with a backtrace. Another CPU may do so if this one stands still.
    pub(crate) fn tell(&self, out: &mut dyn Write) -> fmt::Result {
        let Self { cpu, ip, rbp, count, thread } = self;
        writeln!(out, "cpu {cpu} was in {} at {ip:#018x}", Context { count: *count, thread })?;
        report::callers_from(out, *ip, *rbp)
    }
}

/// What a CPU is in the middle of, in words.
pub(crate) struct Context {
    count: u32,
    thread: &'static Thread,
}

impl Context {
    /// Of the code that runs now.
    pub(crate) fn current() -> Self {
        Self { count: context::preempt_count(), thread: sched::current() }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.count {
            count if count & NMI_BITS != 0 => "an NMI over task",
            count if count & HARDIRQ_BITS != 0 => "an interrupt over task",
            count if count & SOFTIRQ_OFFSET != 0 => "a softirq over task",
            _ => "task",
        };
        write!(f, "{name} {}/{}, preempt_count {:#x}", self.thread.name(), self.thread.tid(), self.count)
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
