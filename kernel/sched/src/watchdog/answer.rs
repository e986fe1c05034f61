//! Asking another CPU by NMI where it is.
//!
//! Invariant `WATCH-1`: a CPU writes its answer while it is in [`ASKED`]; others read it while it is not. One CPU asks a
//! given other one at a time: the one before it.
//!
//! Context: asking from hardirq or task context with interrupts off or on; the answer is given in NMI context.

use core::cell::Cell;

use arch::trap::TrapFrame;
use arch::{AtomicCpuMask, CpuId, clock, cpu, ipi, irq};
use sync::context::{self, HARDIRQ_OFFSET, NMI_OFFSET};
use sync::nmi::NmiHandler;

use crate::thread::{Thread, current};

/// How long an answer may take, in nanoseconds of guest time: an emulated CPU may be waiting for its host.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Frames of a backtrace that are told.
pub(super) const MAX_FRAMES: usize = 24;

/// Return addresses, innermost first; 0 behind the last.
pub(super) type Frames = [u64; MAX_FRAMES];

/// Where a CPU was when an NMI asked it.
#[derive(Copy, Clone)]
pub(super) struct Answer {
    pub(super) thread: &'static Thread,
    pub(super) irqs_on: bool,
    /// Of what the NMI interrupted.
    pub(super) preempt_count: u32,
    pub(super) frames: Frames,
}

/// CPUs that shall say where they are. Set by who asks, cleared by the CPU when its answer is there.
static ASKED: AtomicCpuMask = AtomicCpuMask::new();

arch::per_cpu! {
    /// `WATCH-1`.
    static ANSWER: Cell<Option<Answer>> = Cell::new(None);
}

static HANDLER: NmiHandler = NmiHandler::new("watchdog", on_nmi);

/// Context: boot, once.
pub(super) fn init() {
    sync::nmi::register(&HANDLER);
}

/// Where `cpu` is; `None` if it does not answer in time.
pub(super) fn ask(cpu: CpuId) -> Option<Answer> {
    ASKED.set(cpu);
    ipi::send_nmi(cpu);
    let end = clock::now_ns() + PATIENCE_NS;
    while ASKED.test(cpu) {
        if clock::now_ns() > end {
            return None;
        }
        irq::relax();
    }
    // SAFETY: WATCH-1: it is not in ASKED, whose load saw what was written before; areas live for ever.
    unsafe { (*ANSWER.ptr_on(cpu)).get() }
}

fn on_nmi(frame: &mut TrapFrame) -> bool {
    let me = cpu::current();
    if !ASKED.test(me) {
        return false;
    }
    let mut frames = Collected::new();
    frames.push(frame.ip());
    arch::backtrace::walk(frame.regs.rbp, &mut |ip| frames.push(ip));
    let answer = Answer {
        thread: current(),
        irqs_on: frame.irqs_were_on(),
        preempt_count: context::preempt_count() - (NMI_OFFSET + HARDIRQ_OFFSET),
        frames: frames.done(),
    };
    // SAFETY: WATCH-1: this CPU's copy, and this CPU is in ASKED.
    unsafe { (*ANSWER.this_ptr()).set(Some(answer)) };
    ASKED.clear(me);
    true
}

/// Frames as they are found.
pub(super) struct Collected {
    frames: Frames,
    len: usize,
}

impl Collected {
    pub(super) const fn new() -> Collected {
        Collected { frames: [0; MAX_FRAMES], len: 0 }
    }

    /// Takes the next; those that are too many are dropped.
    pub(super) fn push(&mut self, ip: u64) {
        if let Some(slot) = self.frames.get_mut(self.len) {
            *slot = ip;
            self.len += 1;
        }
    }

    pub(super) fn done(self) -> Frames {
        self.frames
    }
}
