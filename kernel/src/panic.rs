//! The end: one CPU says what happened, the others are stopped by NMI, and where each was is told.
//!
//! Whatever ends the kernel comes through [`die`]: a panic, an exception nobody handles, a test that
//! is stuck. The first CPU to come is the speaker. It stops all others with NMIs, lets out what the log has not printed
//! yet, and says what happened, with no lock held by anybody in its way. Each of the others writes down where it was and
//! halts for good, so that an emulator spends nothing on it; the speaker tells it for them, stacks included. A CPU that
//! dies of something of its own at the same time says that itself, when the speaker gives it the word. A CPU that does
//! not answer is named.
//!
//! Invariants:
//!
//! - `END-1` The speaker goes through each [`STAGE`] at most once. If it panics or faults in one, it says so in a few
//!   words, at most [`MAX_AGAIN`] times, and goes on with the next; so the machine ends whatever is broken.
//! - `END-2` Nothing here waits for a lock, allocates, or waits for another CPU for longer than [`PATIENCE_NS`].
//!
//! Context: any, NMI included, from the kernel's first instruction on. Linux: `kernel/panic.c`, `nmi_shootdown_cpus`.

use core::cell::Cell;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::bare::report;
use arch::exit::{Verdict, announce_death, debug_exit};
use arch::trap::{Exception, TrapFrame};
use arch::{AtomicCpuMask, CpuId, CpuMask, clock, cpu, ipi, irq};
use sync::nmi::NmiHandler;

use crate::build_id::BuildId;
use crate::console::{self, Raw};
use crate::whereabouts::{self, Context, Whereabouts};

/// How long the other CPUs have to stop, and one of them to speak, in nanoseconds. An emulated CPU may be kept waiting
/// by its host for seconds.
const PATIENCE_NS: u64 = 3_000_000_000;

/// How often the speaker says what has gone wrong in its own report.
const MAX_AGAIN: usize = 3;

/// Nobody, as a CPU number plus one.
const NOBODY: usize = 0;

/// Who is speaking, as a CPU number plus one. Taken by the first CPU to come to [`die`], never given
/// back.
static SPEAKER: AtomicUsize = AtomicUsize::new(NOBODY);

/// When the speaker came to [`die`]. Touched by it alone.
static DIED_NS: AtomicU64 = AtomicU64::new(0);

/// The next thing for the speaker to do (`END-1`). Touched by it alone.
static STAGE: AtomicUsize = AtomicUsize::new(0);

/// How often the speaker came here again. Touched by it alone.
static AGAIN: AtomicUsize = AtomicUsize::new(0);

/// Who has the word, as a CPU number plus one. Set by the speaker, cleared by the CPU that spoke.
static WORD: AtomicUsize = AtomicUsize::new(NOBODY);

/// CPUs that have stopped. Set by each when its `WHERE` is written, read by the speaker.
static STOPPED: AtomicCpuMask = AtomicCpuMask::new();

/// CPUs that want to say something themselves. Set by each before it stops.
static HAS_WORDS: AtomicCpuMask = AtomicCpuMask::new();

arch::per_cpu! {
    /// Where this CPU stopped. Written by it before it is in `STOPPED`, read by the speaker after that.
    static WHERE: Cell<Option<Whereabouts>> = Cell::new(None);
}

static STOP: NmiHandler = NmiHandler::new("stop", on_nmi);

/// Lets the kernel die in good order.
///
/// Context: boot CPU, once, after `sync::init`.
pub(crate) fn init() {
    sync::nmi::register(&STOP);
    whereabouts::init();
    sync::irq::register_exception(on_exception);
    #[cfg(feature = "suites")]
    tests::com2::on_stuck(|| {
        let here = Context::current();
        die(Verdict::Stall, &mut |out| {
            writeln!(out, "STALL cpu {}: a test takes far longer than it may", cpu::current())?;
            here.tell(out)?;
            backtrace(out)
        })
    });
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // Before interrupts go off, which is told, too.
    let here = Context::current();
    die(Verdict::Panic, &mut |out| {
        writeln!(out, "PANIC cpu {}: {}", cpu::current(), info.message())?;
        if let Some(place) = info.location() {
            writeln!(out, "  at {place}")?;
        }
        here.tell(out)?;
        backtrace(out)
    })
}

/// An exception that nobody else wanted.
fn on_exception(exception: Exception, frame: &mut TrapFrame) -> bool {
    let here = Context::of(frame);
    die(Verdict::Panic, &mut |out| {
        let thread = sched::current();
        let whose = format_args!("task {}/{}", thread.name(), thread.tid());
        let reason = report::Reason { exception: &exception, sp: frame.sp(), whose: &whose };
        writeln!(out, "PANIC cpu {}: {reason}", cpu::current())?;
        here.tell(out)?;
        report::registers(out, frame)?;
        report::callers(out, frame)
    })
}

/// The kernel is stuck, and somebody has noticed: ends the machine after all CPUs have been heard.
///
/// Context: NMI; any number of CPUs may come here at once.
pub(crate) fn stall(here: &Whereabouts) -> ! {
    sync::lock_order::switch_off();
    if !claim() {
        stop(here);
    }
    speak(Verdict::Stall, &mut |out| {
        writeln!(out, "STALL cpu {}: no progress, and an NMI asks where everybody is", cpu::current())?;
        here.tell(out)
    })
}

/// Ends the machine with `verdict` after `say` has said why.
pub(crate) fn die(verdict: Verdict, say: &mut dyn FnMut(&mut dyn Write) -> fmt::Result) -> ! {
    irq::disable();
    sync::lock_order::switch_off();
    if claim() {
        speak(verdict, say);
    }
    if SPEAKER.load(Ordering::Relaxed) != me() {
        wait_for_the_word(say)
    }
    let _ = Raw.write_str("\n");
    if AGAIN.fetch_add(1, Ordering::Relaxed) < MAX_AGAIN {
        let _ = Raw.write_str("and again, while saying so: ");
        let _ = say(&mut Raw);
    }
    speak(verdict, &mut |_| Ok(()))
}

/// This CPU, as a CPU number plus one.
fn me() -> usize {
    cpu::current().index() + 1
}

/// Whether this CPU is the first to end the kernel, and so the speaker.
fn claim() -> bool {
    SPEAKER.compare_exchange(NOBODY, me(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// The speaker's part: from the stage that it has come to (`END-1`).
fn speak(verdict: Verdict, say: &mut dyn FnMut(&mut dyn Write) -> fmt::Result) -> ! {
    let others = cpu::online() - CpuMask::of(cpu::current());
    let _ = DIED_NS.compare_exchange(0, clock::now_ns(), Ordering::Relaxed, Ordering::Relaxed);
    loop {
        // Nothing to be done about an error of what is printed.
        match STAGE.fetch_add(1, Ordering::Relaxed) {
            // First of all, while the others are still where they were when this happened.
            0 => announce_death(),
            1 if others.is_empty() => {}
            1 => ipi::send_nmi_all_but_self(),
            2 => let_the_log_out(),
            3 => _ = say(&mut Raw),
            4 => _ = writeln!(Raw, "up {}, build {BuildId}", Seconds(DIED_NS.load(Ordering::Relaxed))),
            5 => tell_of_the_others(others),
            6 => tell_of_the_offline(),
            7 => _ = writeln!(Raw, "end of the report, {} ms after", ms_since_death()),
            _ => debug_exit(verdict),
        }
    }
}

fn ms_since_death() -> u64 {
    (clock::now_ns() - DIED_NS.load(Ordering::Relaxed)) / 1_000_000
}

/// Prints what the log has not printed yet.
fn let_the_log_out() {
    console::seize();
    sync::log::emergency();
}

/// A time with its microseconds, as the log writes it.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0 / 1_000;
        write!(f, "{}.{:06} s", us / 1_000_000, us % 1_000_000)
    }
}

/// Tells where each of the other CPUs was or gives it the word.
fn tell_of_the_others(others: CpuMask) {
    wait_until(|| (others - STOPPED.load()).is_empty());
    for other in others.iter() {
        if !STOPPED.test(other) {
            let _ = writeln!(Raw, "cpu {other} does not answer an NMI");
        } else if HAS_WORDS.test(other) {
            give_the_word(other);
        } else {
            // SAFETY: written before the CPU was in STOPPED, whose load acquired it, and never again: it has halted.
            let stopped_at = unsafe { (*WHERE.ptr_on(other)).get() };
            let _ = stopped_at.map(|place| place.tell(&mut Raw));
        }
    }
}

/// Names the CPUs that are there and take no part. While they are being started that is all but the boot CPU.
fn tell_of_the_offline() {
    for offline in (cpu::present() - cpu::online()).iter() {
        let _ = writeln!(Raw, "cpu {offline} is offline");
    }
}

fn give_the_word(other: CpuId) {
    // Release: pairs with the acquire in `wait_for_the_word`; what was printed before is out.
    WORD.store(other.index() + 1, Ordering::Release);
    // Acquire: pairs with the release there: the other's lines are out.
    if !wait_until(|| WORD.load(Ordering::Acquire) == NOBODY) {
        let _ = writeln!(Raw, "cpu {other} did not finish");
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

/// What a CPU does that dies of something else while the speaker speaks: says it when it is its turn, and halts. If it
/// panics while it says so it comes here once more; the speaker does not wait for ever.
fn wait_for_the_word(say: &mut dyn FnMut(&mut dyn Write) -> fmt::Result) -> ! {
    HAS_WORDS.set(cpu::current());
    STOPPED.set(cpu::current());
    // Acquire: pairs with the release in `give_the_word`.
    while WORD.load(Ordering::Acquire) != me() {
        irq::relax();
    }
    let _ = say(&mut Raw);
    // Release: pairs with the acquire in `give_the_word`.
    WORD.store(NOBODY, Ordering::Release);
    irq::park()
}

/// What the others do: leave word where they were, and halt.
fn stop(here: &Whereabouts) -> ! {
    // SAFETY: this CPU's copy, which nobody reads before the CPU is in STOPPED.
    unsafe { (*WHERE.this_ptr()).set(Some(*here)) };
    STOPPED.set(cpu::current());
    irq::park()
}

/// The NMI that stops this CPU, if somebody is dying.
fn on_nmi(frame: &mut TrapFrame) -> bool {
    match SPEAKER.load(Ordering::Relaxed) {
        NOBODY => false,
        speaker if speaker == me() || STOPPED.test(cpu::current()) => true,
        _ => stop(&Whereabouts::in_nmi(frame)),
    }
}

/// Writes the return addresses of the caller, one a line.
pub(crate) fn backtrace(out: &mut dyn Write) -> fmt::Result {
    let mut frames = report::Frames::new(out);
    arch::backtrace::current(&mut |ip| frames.push(ip));
    frames.finish()
}
