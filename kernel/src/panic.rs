//! The end: one CPU says what happened, the others are stopped by NMI and each says where it was.
//!
//! Whatever ends the kernel comes through [`die`]: a panic, an exception nobody handles, a test that
//! is stuck. The first CPU to come is the speaker. It prints with no lock held by anybody in its way,
//! sends NMIs to all others at once, and then gives them the word one after the other, so that
//! reports do not run into each other. A CPU that does not answer is named.
//!
//! Context: any, NMI included. Linux: `kernel/panic.c`, `nmi_shootdown_cpus`.

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::bare::report;
use arch::exit::{Verdict, debug_exit};
use arch::trap::{Exception, TrapFrame};
use arch::{AtomicCpuMask, clock, cpu, ipi, irq};
use sync::context::{self, HARDIRQ_OFFSET, NMI_OFFSET, SOFTIRQ_OFFSET};
use sync::nmi::NmiHandler;

use crate::console::Raw;

/// How long a CPU has to stop, and then to speak, in nanoseconds. An emulated CPU may be kept waiting
/// by its host for seconds.
const PATIENCE_NS: u64 = 3_000_000_000;

/// Where `preempt_count` counts interrupts and NMIs: four bits each.
const HARDIRQ_BITS: u32 = 0xf * HARDIRQ_OFFSET;
const NMI_BITS: u32 = 0xf * NMI_OFFSET;

/// Nobody, as a CPU number plus one.
const NOBODY: usize = 0;

/// Who is speaking, as a CPU number plus one. Taken by the first CPU to come to [`die`], never given
/// back.
static SPEAKER: AtomicUsize = AtomicUsize::new(NOBODY);

/// Who has the word, as a CPU number plus one. Set by the speaker, cleared by the CPU that spoke.
static WORD: AtomicUsize = AtomicUsize::new(NOBODY);

/// CPUs that have stopped. Set by each, read by the speaker.
static STOPPED: AtomicCpuMask = AtomicCpuMask::new();

static STOP: NmiHandler = NmiHandler::new("stop", on_nmi);

/// Lets the kernel die in good order.
///
/// Context: boot CPU, once, after `sync::init`.
pub(crate) fn init() {
    sync::nmi::register(&STOP);
    sync::irq::register_exception(on_exception);
    #[cfg(feature = "suites")]
    tests::com2::on_stuck(|| {
        die(Verdict::Stall, &mut |out| {
            writeln!(out, "STALL cpu {}: a test takes far longer than it may", cpu::current())?;
            backtrace(out)
        })
    });
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(Verdict::Panic, &mut |out| {
        writeln!(out, "PANIC cpu {}: {}", cpu::current(), info.message())?;
        if let Some(place) = info.location() {
            writeln!(out, "  at {place}")?;
        }
        writeln!(out, "  in {}", Context(context::preempt_count()))?;
        backtrace(out)
    })
}

/// An exception that nobody else wanted.
fn on_exception(exception: Exception, frame: &mut TrapFrame) -> bool {
    die(Verdict::Panic, &mut |out| {
        let reason = report::Reason(&exception, frame.sp());
        writeln!(out, "PANIC cpu {}: {reason}", cpu::current())?;
        writeln!(out, "  in {}", Context(context::preempt_count()))?;
        report::registers(out, frame)?;
        report::callers(out, frame)
    })
}

/// Ends the machine with `verdict` after `say` has said why.
pub(crate) fn die(verdict: Verdict, say: &mut dyn FnMut(&mut dyn Write) -> fmt::Result) -> ! {
    irq::disable();
    sync::lock_order::switch_off();
    let me = cpu::current().index() + 1;
    match SPEAKER.compare_exchange(NOBODY, me, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            sync::log::emergency();
            // Nothing to be done about an error of what is printed.
            let _ = say(&mut Raw);
            hear_the_others();
            debug_exit(verdict)
        }
        Err(speaker) if speaker == me => {
            // Again, on the way out: say as little as possible, and go.
            let _ = Raw.write_str("\nand again, while saying so: ");
            let _ = say(&mut Raw);
            debug_exit(verdict)
        }
        Err(_) => wait_for_the_word(say),
    }
}

/// The speaker's part: stops all other CPUs and lets each speak.
fn hear_the_others() {
    let me = cpu::current();
    let mut others = cpu::online();
    others.remove(me);
    if others.is_empty() {
        return;
    }
    ipi::send_nmi_all_but_self();
    for other in others.iter() {
        if !wait_until(|| STOPPED.test(other)) {
            let _ = writeln!(Raw, "cpu {other} does not answer an NMI");
            continue;
        }
        // Release: pairs with the acquire in `wait_for_the_word`; what was printed before is out.
        WORD.store(other.index() + 1, Ordering::Release);
        // Acquire: pairs with the release there: the other's lines are out.
        if !wait_until(|| WORD.load(Ordering::Acquire) == NOBODY) {
            let _ = writeln!(Raw, "cpu {other} did not finish");
        }
    }
}

fn wait_until(done: impl Fn() -> bool) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    while !done() {
        if clock::now_ns() > end {
            return false;
        }
        irq::relax();
    }
    true
}

/// The others' part: stops, speaks when it is its turn, and never returns.
fn wait_for_the_word(say: &mut dyn FnMut(&mut dyn Write) -> fmt::Result) -> ! {
    let me = cpu::current();
    STOPPED.set(me);
    // Acquire: pairs with the release in `hear_the_others`.
    while WORD.load(Ordering::Acquire) != me.index() + 1 {
        irq::relax();
    }
    let _ = say(&mut Raw);
    // Release: pairs with the acquire in `hear_the_others`.
    WORD.store(NOBODY, Ordering::Release);
    loop {
        irq::relax();
    }
}

/// The NMI that stops this CPU, if somebody is dying.
fn on_nmi(frame: &mut TrapFrame) -> bool {
    let speaker = SPEAKER.load(Ordering::Relaxed);
    let me = cpu::current();
    if speaker == NOBODY || speaker == me.index() + 1 || STOPPED.test(me) {
        return speaker != NOBODY;
    }
    // An NMI counts as one and as an interrupt; what it interrupted is the rest.
    let interrupted = context::preempt_count() - (NMI_OFFSET + HARDIRQ_OFFSET);
    wait_for_the_word(&mut |out| {
        writeln!(out, "cpu {me} was in {} at {:#018x}", Context(interrupted), frame.ip())?;
        report::callers(out, frame)
    })
}

/// Writes the return addresses of the caller, one a line.
pub(crate) fn backtrace(out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "backtrace:")?;
    let mut depth = 0;
    let mut result = Ok(());
    arch::backtrace::current(&mut |ip| {
        if result.is_ok() {
            result = writeln!(out, "  #{depth} {ip:#018x}");
        }
        depth += 1;
    });
    result
}

/// What a CPU with this `preempt_count` is in the middle of, in words.
struct Context(u32);

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            count if count & NMI_BITS != 0 => "an NMI",
            count if count & HARDIRQ_BITS != 0 => "an interrupt",
            count if count & SOFTIRQ_OFFSET != 0 => "a softirq",
            _ => "a task",
        };
        write!(f, "{name}, preempt_count {:#x}", self.0)
    }
}
