//! Asking CPUs by NMI where they are, while the machine goes on: a question, an answer, and nobody stops.
//!
//! Key types: [`where_is`], [`Answer`], [`Activity`].
//!
//! Any number of contexts may ask about the same CPU at once. What a CPU answered last stands in its area under a count
//! that is odd while it writes; an asker takes an answer that was begun after it asked.
//!
//! Invariants:
//!
//! * `ASK-1`: for each time that a CPU gets into [`ASKED`] one NMI is sent to it, and each such NMI finds it there, since
//!   only that NMI's handler takes it out. So no NMI of ours is left over for the handlers of unknown NMIs. Enforced by
//!   [`knock`]: who puts the CPU in sends the NMI, with interrupts off in between.
//! * `ASK-2`: an answer is written by its own CPU's NMI handler, which does not nest.
//!
//! Context: asking from task, softirq or hardirq context; the answer is given in NMI context. Linux: `lib/nmi_backtrace.c`,
//! where one asks at a time and the others give up.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

use arch::trap::TrapFrame;
use arch::{AtomicCpuMask, CpuId, clock, cpu, ipi, irq};
use sync::context::{self, HARDIRQ_OFFSET, NMI_OFFSET, SOFTIRQ_DISABLE_OFFSET, SOFTIRQ_OFFSET};
use sync::nmi::NmiHandler;
use sync::{ATOMIC, IrqGuard};

use crate::thread::{Thread, current};

/// How long an answer may take, in nanoseconds. An emulated CPU may be kept waiting by its host for seconds.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Frames of a backtrace that are told.
pub const MAX_FRAMES: usize = 32;

/// Where `preempt_count` counts what.
const PREEMPT_BITS: u32 = SOFTIRQ_OFFSET - 1;
const SOFTIRQS_OFF_BITS: u32 = 0x7f * SOFTIRQ_DISABLE_OFFSET;
const HARDIRQ_BITS: u32 = 0xf * HARDIRQ_OFFSET;
const NMI_BITS: u32 = 0xf * NMI_OFFSET;

/// What a CPU is in the middle of. It prints as `an interrupt over task name/7, irqs on, preempt 1`.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// The thread that runs or was interrupted.
    pub thread: &'static Thread,
    /// Its number then: by the time that this is told it may have ended.
    pub tid: u64,
    /// Its interrupts are on.
    pub irqs_on: bool,
    /// Of what the NMI, if there is one, interrupted.
    pub preempt_count: u32,
}

impl Activity {
    /// Of the code that runs now. Context: any.
    pub fn here() -> Activity {
        let thread = current();
        Activity { thread, tid: thread.tid(), irqs_on: irq::enabled(), preempt_count: context::preempt_count() }
    }

    /// Of the code that an exception has interrupted.
    pub fn under_exception(frame: &TrapFrame) -> Activity {
        Activity { irqs_on: frame.irqs_were_on(), ..Activity::here() }
    }

    /// Of the code that an NMI has interrupted. Context: NMI.
    pub fn under_nmi(frame: &TrapFrame) -> Activity {
        // An NMI counts as one and as an interrupt; what it interrupted is the rest.
        let preempt_count = context::preempt_count() - (NMI_OFFSET + HARDIRQ_OFFSET);
        Activity { preempt_count, ..Activity::under_exception(frame) }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = match self.preempt_count {
            count if count & NMI_BITS != 0 => "an NMI over ",
            count if count & HARDIRQ_BITS != 0 => "an interrupt over ",
            count if count & SOFTIRQ_OFFSET != 0 => "a softirq over ",
            _ => "",
        };
        let irqs = if self.irqs_on { "on" } else { "off" };
        let softirqs = if self.preempt_count & SOFTIRQS_OFF_BITS != 0 { ", softirqs off" } else { "" };
        let preempt = self.preempt_count & PREEMPT_BITS;
        let name = self.thread.name();
        match self.tid {
            0 => write!(f, "{over}early boot")?,
            tid if tid == self.thread.tid() => write!(f, "{over}task {name}/{tid}")?,
            tid => write!(f, "{over}task {tid}, which has ended since")?,
        }
        write!(f, ", irqs {irqs}{softirqs}, preempt {preempt}")
    }
}

/// Frames of a backtrace as they are found, innermost first; those that are too many are dropped.
#[derive(Clone, Copy)]
pub struct Frames {
    addresses: [u64; MAX_FRAMES],
    len: usize,
}

impl Frames {
    /// None.
    pub const fn new() -> Frames {
        Frames { addresses: [0; MAX_FRAMES], len: 0 }
    }

    /// Takes the next.
    pub fn push(&mut self, address: u64) {
        if let Some(slot) = self.addresses.get_mut(self.len) {
            *slot = address;
            self.len += 1;
        }
    }

    /// The instruction that was next, then the return addresses.
    pub fn addresses(&self) -> &[u64] {
        &self.addresses[..self.len]
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Frames {
    /// In lines of a report, one a frame, for `xtask` to add functions and places to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\n  backtrace:")?;
        self.addresses().iter().enumerate().try_for_each(|(depth, ip)| write!(f, "\n  #{depth} {ip:#018x}"))
    }
}

/// Where a CPU was when an NMI asked it.
#[derive(Clone, Copy)]
pub struct Answer {
    /// In the middle of what.
    pub activity: Activity,
    /// Where, and who had called.
    pub frames: Frames,
}

/// An answer as it stands in its CPU's area. Written by that CPU (`ASK-2`), read by askers.
struct Kept {
    /// Answers begun and ended: odd while one is written.
    count: AtomicU64,
    thread: AtomicPtr<Thread>,
    tid: AtomicU64,
    irqs_on: AtomicU32,
    preempt_count: AtomicU32,
    len: AtomicU32,
    addresses: [AtomicU64; MAX_FRAMES],
}

arch::per_cpu! {
    static KEPT: Kept = Kept {
        count: AtomicU64::new(0),
        thread: AtomicPtr::new(ptr::null_mut()),
        tid: AtomicU64::new(0),
        irqs_on: AtomicU32::new(0),
        preempt_count: AtomicU32::new(0),
        len: AtomicU32::new(0),
        addresses: [const { AtomicU64::new(0) }; MAX_FRAMES],
    };
}

/// CPUs that shall say where they are (`ASK-1`).
static ASKED: AtomicCpuMask = AtomicCpuMask::new();

static HANDLER: NmiHandler = NmiHandler::new("ask", on_nmi);

/// Context: boot, once.
pub(crate) fn init() {
    sync::nmi::register(&HANDLER);
}

impl Kept {
    fn of(cpu: CpuId) -> &'static Kept {
        // SAFETY: areas of present CPUs live for ever, and all fields are atomics.
        unsafe { &*KEPT.ptr_on(cpu) }
    }

    fn write(&self, answer: &Answer) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Relaxed);
        // Release: pairs with the Acquire fence in `read`: who sees a part of this answer sees that it was begun.
        fence(Ordering::Release);
        self.thread.store(ptr::from_ref(answer.activity.thread).cast_mut(), Ordering::Relaxed);
        self.tid.store(answer.activity.tid, Ordering::Relaxed);
        self.irqs_on.store(answer.activity.irqs_on.into(), Ordering::Relaxed);
        self.preempt_count.store(answer.activity.preempt_count, Ordering::Relaxed);
        let addresses = answer.frames.addresses();
        self.len.store(addresses.len() as u32, Ordering::Relaxed);
        for (slot, &address) in self.addresses.iter().zip(addresses) {
            slot.store(address, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire load in `read`.
        self.count.store(count + 2, Ordering::Release);
    }

    /// The latest answer, if it is whole and at least number `since`.
    fn read(&self, since: u64) -> Option<Answer> {
        // Acquire: pairs with the Release at the end of `write`: all of the answer.
        let count = self.count.load(Ordering::Acquire);
        if count < since || !count.is_multiple_of(2) {
            return None;
        }
        let mut frames = Frames::new();
        let len = self.len.load(Ordering::Relaxed) as usize;
        self.addresses.iter().take(len).for_each(|slot| frames.push(slot.load(Ordering::Relaxed)));
        // SAFETY: it points to a type-stable thread (SCHED-3), as the first answer has been written.
        let thread = unsafe { &*self.thread.load(Ordering::Relaxed) };
        let tid = self.tid.load(Ordering::Relaxed);
        let irqs_on = self.irqs_on.load(Ordering::Relaxed) != 0;
        let preempt_count = self.preempt_count.load(Ordering::Relaxed);
        // Acquire: pairs with the Release fence in `write`: if the count is still the same, nothing of a later answer was read.
        fence(Ordering::Acquire);
        let whole = self.count.load(Ordering::Relaxed) == count;
        whole.then_some(Answer { activity: Activity { thread, tid, irqs_on, preempt_count }, frames })
    }
}

/// Where `cpu` is; `None` if it does not answer within three seconds. It may be the CPU that asks.
///
/// Context: task, softirq, hardirq; interrupts on or off. Not NMI. Waits for the answer.
pub fn where_is(cpu: CpuId) -> Option<Answer> {
    let kept = Kept::of(cpu);
    // The first answer that is begun from here on. Acquire: nothing of the question comes before it.
    let since = 2 * kept.count.load(Ordering::Acquire).div_ceil(2) + 2;
    let end = clock::now_ns() + PATIENCE_NS;
    loop {
        let on_its_way = ASKED.test(cpu);
        if let Some(answer) = kept.read(since) {
            return Some(answer);
        }
        // Who asked before may have got an answer that is too old for us; then it is asked again.
        if !on_its_way {
            knock(cpu);
        }
        if clock::now_ns() > end {
            return None;
        }
        irq::relax();
    }
}

/// Sends the question, unless it is on its way.
fn knock(cpu: CpuId) {
    let _together = IrqGuard::new(ATOMIC);
    if !ASKED.set(cpu) {
        ipi::send_nmi(cpu);
    }
}

fn on_nmi(frame: &mut TrapFrame) -> bool {
    let me = cpu::current();
    if !ASKED.test(me) {
        return false;
    }
    let mut frames = Frames::new();
    frames.push(frame.ip());
    arch::backtrace::walk(frame.regs.rbp, &mut |ip| frames.push(ip));
    Kept::of(me).write(&Answer { activity: Activity::under_nmi(frame), frames });
    ASKED.clear(me);
    true
}
