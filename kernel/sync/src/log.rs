//! The log: `log::info!` and its sisters, from any context, NMI included.
//!
//! A line goes into a [ring](crate::log_ring) and from there to the console. Whoever logs also
//! prints what has not been printed yet, if nobody else is at it; an NMI handler leaves that to an
//! [`irq_work`](crate::irq_work). So the order of lines is the order of the ring, and no line waits
//! for a lock.
//!
//! A line longer than [`TEXT_MAX`] bytes becomes several records; each but the first begins with
//! `…`. A record is never torn. Records are lost only when the ring comes round, and the loss is
//! told in its place: `** 12 log lines lost **`.
//!
//! It answers to printk (Linux 6.12, kernel/printk/printk.c).
//!
//! # Invariants
//!
//! - `LG-1` At most one context prints at a time: it holds [`PRINTER`], which is only tried for.
//!   In an emergency that is the CPU that declared it, whatever became of the last printer.
//! - `LG-2` A line that is in the ring before the printer lets go is printed by it, or by whoever
//!   put it there: the printer looks again after letting go.
//! - `LG-3` Nothing here allocates, takes a lock or waits, so there is no context that may not log.

use core::{
    fmt::{self, Write as _},
    sync::atomic::{AtomicU16, AtomicU64, Ordering, fence},
};

use ::log::{Level, LevelFilter, Metadata, Record};
use arch::cpu;

use crate::{
    context::{self, PreemptGuard},
    cx::ATOMIC,
    hooks::Slot,
    irq_work::IrqWork,
    log_ring::{Read, Ring},
};

/// Bytes of text in one record.
pub const TEXT_MAX: usize = 8 * TEXT_WORDS;
const TEXT_WORDS: usize = 28;
/// A record: time, [`Meta`], text.
const WORDS: usize = 2 + TEXT_WORDS;
/// Records in the ring, 256 bytes each.
pub const RECORDS: usize = 1024;

/// How long [`drain`] waits at most, in nanoseconds.
const DRAIN_NS: u64 = 1_000_000_000;

/// All that has been logged lately.
static RING: Ring<RECORDS, WORDS> = Ring::new();

/// The next position to be printed; written by the printer (`LG-1`).
static PRINTED: AtomicU64 = AtomicU64::new(0);

/// Who prints: 0 nobody, else the number of a CPU plus one (`LG-1`).
static PRINTER: AtomicU16 = AtomicU16::new(0);

/// The CPU whose emergency it is, plus one; 0 for none. Set once.
static EMERGENCY: AtomicU16 = AtomicU16::new(0);

/// Where lines go.
static CONSOLE: Slot<fn(&[u8])> = Slot::new();

arch::per_cpu! {
    /// Prints what NMI handlers logged on this CPU.
    static PRINT_WORK: IrqWork = IrqWork::new(|_| flush());
}

/// The sink of the `log` facade.
struct Sink;

impl ::log::Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut line = Line::new(record.level());
        if let Some(storey) = storey_of(record.target()) {
            let _ = write!(line, "{storey}: ");
        }
        match record.level() {
            Level::Error => line.put_str("error: "),
            Level::Warn => line.put_str("warning: "),
            _ => {}
        }
        let _ = line.write_fmt(*record.args());
        line.finish();
        print_soon();
    }

    fn flush(&self) {
        flush();
    }
}

/// `mm` for the target `grange_mm::buddy`; nothing for the kernel's own.
fn storey_of(target: &str) -> Option<&str> {
    let name = target.split("::").next().unwrap_or(target);
    let name = name.strip_prefix("grange_").unwrap_or(name);
    (!name.is_empty() && name != "kernel" && name != "grange").then_some(name)
}

/// Makes this the log of the program, for records of `level` and what is graver.
///
/// Context: any, at set-up. Later calls change the level only.
pub fn init(level: LevelFilter) {
    // An error means it has been set before, by us: there is no other logger.
    let _ = ::log::set_logger(&Sink);
    ::log::set_max_level(level);
}

/// Sets where lines go, and prints what has been logged before. `console` gets whole lines, one
/// call a line, in any context but NMI (in an emergency there, too), one at a time.
///
/// Context: any, at set-up.
///
/// # Panics
/// If there is a console already.
pub fn set_console(console: fn(&[u8])) {
    CONSOLE.set(console);
    flush();
}

/// Prints what has not been printed, unless another context is at it.
///
/// Context: any but NMI. Lock-free; takes as long as the console does.
pub fn flush() {
    let Some(console) = CONSOLE.get() else { return };
    let _pin = PreemptGuard::new(ATOMIC);
    let me = cpu::current().index() as u16 + 1;
    loop {
        let emergency = EMERGENCY.load(Ordering::Relaxed);
        if emergency == 0 {
            // Acquire: pairs with the release below: what the last printer printed is known here.
            if PRINTER.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
                return;
            }
        } else if emergency != me {
            return;
        }
        print_all(console, emergency != 0);
        if emergency != 0 {
            return;
        }
        // Release: pairs with the acquire above.
        PRINTER.store(0, Ordering::Release);
        // SeqCst: letting go before looking again, against "in the ring before trying for the
        // printer" in `print_soon` (`LG-2`).
        fence(Ordering::SeqCst);
        if !more_to_print() {
            return;
        }
    }
}

/// Prints what was logged before this call, and waits for another context that is printing it; gives
/// up after a second, for what prints may be what this context has interrupted.
///
/// Context: any but NMI; spins.
pub fn drain() {
    let due = RING.end();
    let end = arch::clock::now_ns() + DRAIN_NS;
    while PRINTED.load(Ordering::Relaxed) < due && CONSOLE.get().is_some() {
        flush();
        if arch::clock::now_ns() > end {
            return;
        }
        arch::irq::relax();
    }
}

/// Declares an emergency: from now on this CPU alone prints, at once and in any context, even if
/// the last printer was stopped in the middle of a line. The panic path calls it.
///
/// Context: any, NMI included. Only the first CPU to call it has an effect.
pub fn emergency() {
    let me = cpu::current().index() as u16 + 1;
    if EMERGENCY.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        && PRINTER.load(Ordering::Relaxed) != 0
        && let Some(console) = CONSOLE.get()
    {
        // The last printer may have stopped inside a line, which will be printed again.
        console(b"\n");
    }
    flush();
}

/// Calls `f` with each line of the log that is still there, oldest first, as the console shows it.
///
/// Context: any. Lines that come meanwhile may be among them.
pub fn for_each_line(mut f: impl FnMut(&[u8])) {
    let mut cursor = Cursor::at(RING.oldest());
    let end = RING.end();
    while cursor.position < end {
        match cursor.next() {
            Next::Line => cursor.entry.show(&mut f),
            Next::Lost(count) => show_lost(count, &mut f),
            Next::BeingWritten => cursor.position += 1,
            Next::Empty => return,
        }
    }
}

/// Records lost so far that no line has told of yet.
///
/// Context: any.
pub fn lost_at_end() -> u64 {
    RING.dropped_at_end()
}

fn print_soon() {
    // SeqCst: the record is in the ring before we look whether there is a printer (`LG-2`).
    fence(Ordering::SeqCst);
    if !context::in_nmi() || EMERGENCY.load(Ordering::Relaxed) != 0 {
        flush();
    } else if CONSOLE.get().is_some() {
        // SAFETY: NMI context: pinned; items in per-CPU memory live as long as the machine runs.
        let work: &'static IrqWork = unsafe { &*PRINT_WORK.this_ptr() };
        work.queue();
    }
}

fn more_to_print() -> bool {
    let mut out = [0; WORDS];
    let next = RING.read(PRINTED.load(Ordering::Relaxed), &mut out);
    // A record that is being written is printed by its own producer.
    matches!(next, Read::Record { .. } | Read::Overwritten)
}

/// Prints from `PRINTED` on. The caller is the printer (`LG-1`).
fn print_all(console: fn(&[u8]), emergency: bool) {
    let mut cursor = Cursor::at(PRINTED.load(Ordering::Relaxed));
    loop {
        match cursor.next() {
            Next::Line => cursor.entry.show(console),
            Next::Lost(count) => show_lost(count, console),
            // Its producer is on a CPU that has been stopped, or is what we interrupted.
            Next::BeingWritten if emergency => {
                cursor.position += 1;
                show_lost(1, console);
            }
            Next::BeingWritten | Next::Empty => return,
        }
        PRINTED.store(cursor.position, Ordering::Relaxed);
    }
}

/// A reader's place in the ring.
struct Cursor {
    position: u64,
    /// What was read last.
    entry: Entry,
}

enum Next {
    /// A line, in `entry`.
    Line,
    /// This many lines are gone.
    Lost(u64),
    BeingWritten,
    Empty,
}

impl Cursor {
    fn at(position: u64) -> Self {
        let entry = Entry { words: [0; WORDS], dropped_before: 0 };
        Self { position, entry }
    }

    fn next(&mut self) -> Next {
        match RING.read(self.position, &mut self.entry.words) {
            Read::Record { dropped_before } => {
                self.entry.dropped_before = dropped_before;
                self.position += 1;
                Next::Line
            }
            Read::BeingWritten => Next::BeingWritten,
            Read::Empty => Next::Empty,
            Read::Overwritten => {
                let oldest = RING.oldest().max(self.position + 1);
                let lost = oldest - self.position;
                self.position = oldest;
                Next::Lost(lost)
            }
        }
    }
}

/// A record that has been copied out of the ring.
struct Entry {
    words: [u64; WORDS],
    dropped_before: u64,
}

/// The second word of a record.
struct Meta {
    cpu: u16,
    level: u8,
    /// Goes on from the record before.
    continued: bool,
    len: u16,
}

impl Meta {
    fn to_word(&self) -> u64 {
        u64::from(self.cpu) | u64::from(self.level) << 16 | u64::from(self.continued) << 24 | u64::from(self.len) << 32
    }

    fn from_word(word: u64) -> Self {
        Self { cpu: word as u16, level: (word >> 16) as u8, continued: word >> 24 & 1 != 0, len: (word >> 32) as u16 }
    }
}

impl Entry {
    /// Calls `f` with the line (or two, if lines were lost before it).
    fn show(&self, mut f: impl FnMut(&[u8])) {
        if self.dropped_before != 0 {
            show_lost(self.dropped_before, &mut f);
        }
        let meta = Meta::from_word(self.words[1]);
        let us = self.words[0] / 1_000;
        let mut out = Buffer::<{ TEXT_MAX + 48 }>::new();
        let more = if meta.continued { "…" } else { "" };
        let _ = write!(out, "[{:5}.{:06}] {more}", us / 1_000_000, us % 1_000_000);
        for (n, chunk) in self.words[2..].iter().enumerate() {
            let left = usize::from(meta.len).min(TEXT_MAX).saturating_sub(8 * n).min(8);
            out.put(&chunk.to_le_bytes()[..left]);
        }
        out.put(b"\n");
        f(out.bytes());
    }
}

fn show_lost(count: u64, mut f: impl FnMut(&[u8])) {
    let mut out = Buffer::<64>::new();
    let lines = if count == 1 { "line" } else { "lines" };
    let _ = writeln!(out, "** {count} log {lines} lost **");
    f(out.bytes());
}

/// Collects text and pushes it to the ring, a record a line.
struct Line {
    now_ns: u64,
    level: Level,
    text: Buffer<TEXT_MAX>,
    continued: bool,
    pushed: bool,
}

impl Line {
    fn new(level: Level) -> Self {
        Self { now_ns: arch::clock::now_ns(), level, text: Buffer::new(), continued: false, pushed: false }
    }

    fn put_str(&mut self, text: &str) {
        for (n, part) in text.split('\n').enumerate() {
            if n > 0 {
                self.push();
                self.continued = false;
            }
            for character in part.chars() {
                let mut utf8 = [0; 4];
                let utf8 = character.encode_utf8(&mut utf8).as_bytes();
                if !self.text.put(utf8) {
                    self.push();
                    self.continued = true;
                    self.text.put(utf8);
                }
            }
        }
    }

    fn push(&mut self) {
        let mut words = [0; WORDS];
        let meta = Meta {
            cpu: cpu::current().index() as u16,
            level: self.level as u8,
            continued: self.continued,
            len: self.text.len as u16,
        };
        words[0] = self.now_ns;
        words[1] = meta.to_word();
        for (word, chunk) in words[2..].iter_mut().zip(self.text.bytes().chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(bytes);
        }
        // A dropped record is counted in the ring.
        let _ = RING.push(&words);
        self.text.len = 0;
        self.pushed = true;
    }

    fn finish(mut self) {
        if self.text.len != 0 || !self.pushed {
            self.push();
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put_str(text);
        Ok(())
    }
}

/// Bytes on the stack.
struct Buffer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Buffer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends all of `bytes`, or nothing and says so.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(to) = self.bytes.get_mut(self.len..self.len + bytes.len()) else {
            return false;
        };
        to.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }
}

impl<const N: usize> fmt::Write for Buffer<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.put(text.as_bytes()) { Ok(()) } else { Err(fmt::Error) }
    }
}
