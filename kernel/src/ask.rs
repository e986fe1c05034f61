//! Asking other CPUs where they are, while the machine goes on: an NMI, an answer, and nobody stops.
//!
//! - `ASK-1` A CPU's answer is written by its own NMI handler while the CPU is in `ASKED`, and read only while it is not.
//!   Nobody asks a CPU again before the one who asked has read: the shell is the only one who asks, from one thread.
//!
//! Context: task; the answer is given in NMI context. Linux: `lib/nmi_backtrace.c`.

use core::cell::Cell;

use arch::trap::TrapFrame;
use arch::{AtomicCpuMask, CpuId, CpuMask, clock, cpu, ipi};
use sync::Once;
use sync::nmi::NmiHandler;

use crate::whereabouts::{Context, Whereabouts};

/// How long an answer may take, in nanoseconds. An emulated CPU may be kept waiting by its host for seconds.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Frames of a backtrace that an answer holds.
pub(crate) const FRAMES: usize = 32;

/// CPUs that shall say where they are when the next NMI comes. Set by who asks; each takes itself out when its `ANSWER`
/// is written.
static ASKED: AtomicCpuMask = AtomicCpuMask::new();
/// CPUs that shall only answer, by taking themselves out.
static PINGED: AtomicCpuMask = AtomicCpuMask::new();

arch::per_cpu! {
    /// What this CPU has answered (`ASK-1`).
    static ANSWER: Cell<Option<Answer>> = Cell::new(None);
}

static HANDLER: NmiHandler = NmiHandler::new("ask", on_nmi);

/// What a CPU was doing, and who had called.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    /// In the middle of what.
    pub(crate) context: Context,
    /// The instruction and the return addresses; 0 behind the last.
    frames: [u64; FRAMES],
}

impl Answer {
    fn new(here: &Whereabouts) -> Self {
        let mut frames = [0; FRAMES];
        frames[0] = here.ip;
        let mut rest = frames[1..].iter_mut();
        arch::backtrace::walk(here.rbp, &mut |ip| {
            if let Some(slot) = rest.next() {
                *slot = ip;
            }
        });
        Self { context: here.context, frames }
    }

    /// The instruction that was next, then the return addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.frames.into_iter().take_while(|&address| address != 0)
    }
}

fn on_nmi(frame: &mut TrapFrame) -> bool {
    let me = cpu::current();
    let asked = ASKED.test(me);
    if asked {
        // SAFETY: this CPU's copy, and the CPU is in ASKED (ASK-1).
        unsafe { (*ANSWER.this_ptr()).set(Some(Answer::new(&Whereabouts::in_nmi(frame)))) };
        ASKED.clear(me);
    }
    asked | PINGED.clear(me)
}

fn register() {
    static DONE: Once<()> = Once::new();
    DONE.call_once(|| sync::nmi::register(&HANDLER));
}

/// Asks all of `targets`, which may include this CPU, and waits until they have answered. Returns those that have not.
///
/// Context: task.
pub(crate) fn where_are(targets: &CpuMask) -> CpuMask {
    register();
    for target in targets.iter() {
        ASKED.set(target);
        ipi::send_nmi(target);
    }
    wait_until(|| (ASKED.load() & *targets).is_empty());
    ASKED.load() & *targets
}

/// What `cpu` has answered last.
///
/// # Panics
///
/// If it has not answered [`where_are`].
pub(crate) fn answer(cpu: CpuId) -> Answer {
    assert!(!ASKED.test(cpu), "ASK-1: CPU {cpu} has not answered yet");
    // SAFETY: the CPU is not in ASKED, so it does not write; what it wrote before is seen (ASK-1).
    unsafe { (*ANSWER.ptr_on(cpu)).get() }.expect("ASK-1: a CPU that was asked has answered")
}

/// Sends an NMI that asks nothing, and waits until it was taken; false if it was not.
///
/// Context: task.
pub(crate) fn ping(cpu: CpuId) -> bool {
    register();
    PINGED.set(cpu);
    ipi::send_nmi(cpu);
    wait_until(|| !PINGED.test(cpu))
}

fn wait_until(answered: impl Fn() -> bool) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    while !answered() {
        if clock::now_ns() > end {
            return false;
        }
        arch::irq::relax();
    }
    true
}
