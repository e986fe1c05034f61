//! COM1: where the log goes, what the shell writes and what it reads.
//!
//! The log prints whole lines, one at a time, from any context; the shell prints from its thread.
//! [`OUTPUT`] keeps the two from printing into each other. A terminal wants a carriage return before
//! each newline, so that is added here and nowhere else.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use sync::{ATOMIC, MaySleep, SpinLock, lock_class};

/// How often the log tries for the lock before it prints anyway: the holder may have been stopped.
const PATIENCE: u32 = 100_000;

/// How long the shell sleeps when nothing has been typed, in nanoseconds.
const POLL_NS: u64 = 5_000_000;

/// Held while a line is written. Interrupts off; nests in nothing but the log's own callers, and
/// nothing nests in it.
static OUTPUT: SpinLock<()> = SpinLock::new((), lock_class!("kernel.console"));

/// Nobody is waited for any more. Set once, by the CPU on which the kernel dies.
static SEIZED: AtomicBool = AtomicBool::new(false);

/// Makes COM1 the console of the log.
///
/// Context: boot CPU, once.
pub(crate) fn init() {
    sync::log::set_console(log_line);
}

/// Takes a line from the log. Context: any but NMI; in an emergency there, too.
fn log_line(bytes: &[u8]) {
    let _guard = hold();
    write(bytes);
}

/// Keeps others from printing, or gives up after a while: the holder may be what this context has interrupted.
///
/// Context: any.
pub(crate) fn hold() -> Option<impl Sized> {
    let tries = if SEIZED.load(Ordering::Relaxed) { 1 } else { PATIENCE };
    (0..tries).find_map(|_| {
        let guard = OUTPUT.try_lock_irqsave(ATOMIC);
        if guard.is_none() {
            arch::irq::relax();
        }
        guard
    })
}

/// Whether somebody is printing.
///
/// Context: any.
pub(crate) fn is_held() -> bool {
    OUTPUT.is_locked()
}

/// The kernel is dying on this CPU, and the others are being stopped: from now on nobody waits for who holds the console.
/// That may have been stopped in the middle of a line, so a new one begins.
///
/// Context: any.
pub(crate) fn seize() {
    SEIZED.store(true, Ordering::Relaxed);
    if is_held() {
        write(b"\n");
    }
}

/// Writes for people, with carriage returns, under no lock. Context: any.
pub(crate) fn write(bytes: &[u8]) {
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                arch::console::write_com1(line);
                arch::console::write_com1(b"\r\n");
            }
            None => arch::console::write_com1(line),
        }
    }
}

/// Writes text from a thread, a line at a time, so that interrupts are not off for long.
pub(crate) fn print(text: &str) {
    for line in text.split_inclusive('\n') {
        let _lock = OUTPUT.lock_irqsave(ATOMIC);
        write(line.as_bytes());
    }
}

/// A byte that was typed, seen by [`quits_within`] and not yet read; `NOTHING` for none. The shell's thread alone uses it.
static PEEKED: AtomicU16 = AtomicU16::new(NOTHING);
const NOTHING: u16 = u16::MAX;

/// The next byte that was typed; sleeps until there is one.
pub(crate) fn read(cx: &mut MaySleep) -> u8 {
    loop {
        match u8::try_from(PEEKED.swap(NOTHING, Ordering::Relaxed)).ok().or_else(arch::console::read_com1) {
            Some(byte) => return byte,
            None => sched::sleep_ns(cx, POLL_NS),
        }
    }
}

/// Sleeps for so long, or until the next thing that is typed is `q` or the interrupt key; whether that was so. Anything
/// else stays to be read: it is the next line of who typed ahead, or of a script.
pub(crate) fn quits_within(cx: &mut MaySleep, ns: u64) -> bool {
    const INTERRUPT: u8 = 3;
    let end = arch::clock::now_ns() + ns;
    while arch::clock::now_ns() < end {
        if PEEKED.load(Ordering::Relaxed) == NOTHING {
            match arch::console::read_com1() {
                Some(b'q' | INTERRUPT) => return true,
                Some(byte) => PEEKED.store(byte.into(), Ordering::Relaxed),
                None => {}
            }
        }
        sched::sleep_ns(cx, POLL_NS);
    }
    false
}

/// [`fmt::Write`] on COM1 under no lock, for reports of a kernel that is dying.
pub(crate) struct Raw;

impl fmt::Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}
