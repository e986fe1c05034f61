//! Time: the time-stamp counter, in nanoseconds since boot.
//!
//! Calibrated in three steps against a reference counter, each from the same first sample on: half a millisecond when
//! discovery has found one, ten milliseconds and one second later, from the first timer interrupt of the boot CPU that is
//! late enough. So nothing waits but the first step. Each changes the rate a little ahead in time, so that the line
//! is continuous (CLOCK-1) and every CPU changes at the same cycle.
//!
//! The APIC timer is measured against the time-stamp counter: it runs free from the first sample until the boot CPU arms
//! it, and its rate follows from that ratio whenever the time-stamp counter's rate is known better.
//!
//! - CLOCK-2: there are two copies of the line, and `GENERATION` says which is in force. The one
//!   writer changes the other copy and then turns the generation; so a reader that interrupts the
//!   writer, even by NMI, reads a whole line at once.
//! - CLOCK-3: all CPUs count alike (one counter in the emulator; checked nowhere).
//!
//! Context: reads in any context, wait-free unless a calibration ends at that moment. Answers to
//! `arch/x86/kernel/tsc.c` and `kernel/time/timekeeping.c` (latch) of Linux.

use core::arch::x86_64::_rdtsc;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use spin::Once;

use super::reference::Reference;
use super::timescale::{Rate, Timeline, frequency};
use super::{irq, timer};
use crate::{CpuId, cpu};

/// What the counter is taken to run at until the first calibration.
const ASSUMED_HZ: u64 = 2_000_000_000;
/// Length of the first calibration.
const QUICK_NS: u64 = 500_000;
/// Length of the second.
const SECOND_NS: u64 = 10_000_000;
/// Length of the third, and when it is too late for any (the reference may have wrapped).
const LONG_NS: u64 = 1_000_000_000;
const TOO_LATE_NS: u64 = 4_000_000_000;
/// How far ahead a new rate takes effect.
const AHEAD_NS: u64 = 50_000;

/// One copy of the line, field by field. Written by the boot CPU only (CLOCK-2).
struct Copy {
    switch: AtomicU64,
    at_switch: AtomicU64,
    before: AtomicU64,
    after: AtomicU64,
}

impl Copy {
    const fn new() -> Self {
        let rate = Rate::from_hz(ASSUMED_HZ).bits();
        Self {
            switch: AtomicU64::new(0),
            at_switch: AtomicU64::new(0),
            before: AtomicU64::new(rate),
            after: AtomicU64::new(rate),
        }
    }

    fn load(&self) -> Timeline {
        Timeline {
            switch: self.switch.load(Ordering::Relaxed),
            at_switch: self.at_switch.load(Ordering::Relaxed),
            before: Rate::from_bits(self.before.load(Ordering::Relaxed)),
            after: Rate::from_bits(self.after.load(Ordering::Relaxed)),
        }
    }

    fn store(&self, line: Timeline) {
        self.switch.store(line.switch, Ordering::Relaxed);
        self.at_switch.store(line.at_switch, Ordering::Relaxed);
        self.before.store(line.before.bits(), Ordering::Relaxed);
        self.after.store(line.after.bits(), Ordering::Relaxed);
    }
}

static COPIES: [Copy; 2] = [Copy::new(), Copy::new()];
/// Parity says which copy is in force.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Counters read at one moment.
#[derive(Copy, Clone)]
struct Sample {
    cycles: u64,
    reference: u64,
    /// Current count of the boot CPU's APIC timer, which counts down.
    apic: u32,
}

/// The reference and the moment that all calibrations measure from.
static ORIGIN: Once<(Reference, Sample)> = Once::new();
/// What has been measured so far, one of the values below. Written by the boot CPU with interrupts off.
static STAGE: AtomicU8 = AtomicU8::new(QUICK);
const QUICK: u8 = 0;
const SECOND: u8 = 1;
/// The long calibration is done, or its time has passed.
const DONE: u8 = 2;

/// Ticks of the APIC timer, and cycles in the same time. Written once by the boot CPU.
static APIC_RATIO: Once<(u64, u64)> = Once::new();

/// Cycles of the time-stamp counter.
///
/// Context: any. Neither a barrier nor serialising.
#[inline]
pub fn cycles() -> u64 {
    // SAFETY: the instruction reads a counter.
    unsafe { _rdtsc() }
}

/// Nanoseconds since boot. Does not fall.
///
/// Context: any, NMI included.
#[inline]
pub fn now_ns() -> u64 {
    at_cycles(cycles)
}

/// The time at which the counter had the value that `cycles` returns.
#[inline]
fn at_cycles(cycles: impl Fn() -> u64) -> u64 {
    loop {
        // Acquire: pairs with the Release in `publish`: the copy is as complete as the generation.
        let generation = GENERATION.load(Ordering::Acquire);
        let line = COPIES[(generation & 1) as usize].load();
        let now = line.nanoseconds(cycles());
        // Acquire: pairs with the fence in `publish`: if the copy was being changed, then the
        // generation is seen to have turned.
        fence(Ordering::Acquire);
        if GENERATION.load(Ordering::Relaxed) == generation {
            return now;
        }
    }
}

/// Nanoseconds since boot at which the counter had the value `cycles`.
pub fn cycles_to_ns(cycles: u64) -> u64 {
    at_cycles(|| cycles)
}

/// Cycles that this many nanoseconds take at the present rate.
pub fn ns_to_cycles(ns: u64) -> u64 {
    current_line().after.cycles(ns)
}

/// Frequency of the time-stamp counter as far as it is known, in Hz.
pub fn frequency_hz() -> u64 {
    ns_to_cycles(1_000_000_000)
}

/// Spins for at least this many microseconds.
///
/// Context: any.
pub fn udelay(microseconds: u64) {
    let end = now_ns().saturating_add(microseconds.saturating_mul(1_000));
    while now_ns() < end {
        spin_loop();
    }
}

fn current_line() -> Timeline {
    // Acquire: as in `at_cycles`. The caller is the writer, or does with an old rate.
    COPIES[(GENERATION.load(Ordering::Acquire) & 1) as usize].load()
}

/// Context: boot CPU; the only writer.
fn publish(line: Timeline) {
    let next = GENERATION.load(Ordering::Relaxed) + 1;
    // Release: pairs with the Acquire fence in `at_cycles`: whoever sees a word of the new copy in
    // the old one's place also sees the last turn of the generation, and reads again.
    fence(Ordering::Release);
    COPIES[(next & 1) as usize].store(line);
    // Release: pairs with the Acquire load in `at_cycles`.
    GENERATION.store(next, Ordering::Release);
}

/// Starts the clock at 0.
///
/// Context: boot CPU, first of all.
pub(super) fn init() {
    publish(Timeline::starting(cycles(), Rate::from_hz(ASSUMED_HZ)));
}

/// Takes the first sample and does the quick calibration (half a millisecond).
///
/// Context: boot CPU, once, with the APIC enabled and its timer unused.
pub(super) fn begin_calibration(pm_timer: Option<u16>) {
    let reference = Reference::choose(pm_timer);
    timer::run_free();
    let origin = sample(reference);
    ORIGIN.call_once(|| (reference, origin));
    calibrate(QUICK_NS);
}

/// Ends the measurement of the APIC timer: it is about to be armed. Does nothing the second time, nor on another CPU
/// than the one whose timer is measured.
///
/// Context: the caller is pinned.
pub(super) fn end_free_run() {
    if APIC_RATIO.is_completed() || cpu::current() != CpuId::BOOT {
        return;
    }
    let Some(&(reference, origin)) = ORIGIN.get() else { return };
    let ratio = apic_ratio(&origin, &sample(reference));
    APIC_RATIO.call_once(|| ratio);
    set_apic_rate(ratio);
}

/// Does the second calibration now if its time has come, or if the reference would not last until a timer interrupt:
/// then it waits for the ten milliseconds to pass.
///
/// Context: boot CPU, task; after the start of the other CPUs.
pub(super) fn finish_calibration() {
    let flags = irq::save();
    if matches!(ORIGIN.get(), Some((Reference::Pit, _))) && STAGE.load(Ordering::Relaxed) == QUICK {
        calibrate(SECOND_NS);
        STAGE.store(DONE, Ordering::Relaxed);
    }
    refine();
    irq::restore(flags);
}

/// Does the second and the long calibration when their time has come.
///
/// Context: boot CPU, interrupts off: its timer interrupt.
pub(super) fn refine() {
    let stage = STAGE.load(Ordering::Relaxed);
    if stage == DONE {
        return;
    }
    let Some(&(reference, origin)) = ORIGIN.get() else { return };
    let age = now_ns() - cycles_to_ns(origin.cycles);
    let next = if age >= LONG_NS { DONE } else { SECOND };
    if next == stage || age < SECOND_NS || matches!(reference, Reference::Pit) {
        return;
    }
    STAGE.store(next, Ordering::Relaxed);
    if age < TOO_LATE_NS {
        measure(reference, &origin);
    }
}

/// Waits until `length` nanoseconds have passed since the first sample, and measures. Keeps what is
/// known if the reference may have wrapped since.
fn calibrate(length: u64) {
    let Some(&(reference, origin)) = ORIGIN.get() else { return };
    let age = now_ns() - cycles_to_ns(origin.cycles);
    if age > reference.period() * 800_000_000 / reference.hz() {
        return;
    }
    let wanted = length * reference.hz() / 1_000_000_000;
    while reference.elapsed(origin.reference, reference.read()) < wanted {
        spin_loop();
    }
    measure(reference, &origin);
}

/// Takes the rates from what has passed since the first sample. The reference has not wrapped since.
fn measure(reference: Reference, origin: &Sample) {
    let now = sample(reference);
    let ticks = reference.elapsed(origin.reference, now.reference);
    change_rate(frequency(now.cycles - origin.cycles, ticks, reference.hz()));
    set_apic_rate(APIC_RATIO.get().copied().unwrap_or_else(|| apic_ratio(origin, &now)));
    log::debug!("clock: counter at {} Hz, timer at {} Hz", frequency_hz(), timer::frequency_hz());
}

/// Ticks of the APIC timer and cycles between two samples, while it runs free.
fn apic_ratio(from: &Sample, to: &Sample) -> (u64, u64) {
    (u64::from(from.apic.wrapping_sub(to.apic)), to.cycles - from.cycles)
}

fn set_apic_rate((ticks, cycles): (u64, u64)) {
    timer::set_frequency(frequency(ticks, cycles, frequency_hz()));
}

fn change_rate(hz: u64) {
    let line = current_line();
    let switch = cycles() + line.after.cycles(AHEAD_NS);
    // A rate that is to change before an earlier change has come would break CLOCK-1.
    publish(line.change_rate(switch.max(line.switch), Rate::from_hz(hz)));
}

/// Reads the counters together: the closest of a few tries, for a virtual CPU may be stopped between
/// two readings.
fn sample(reference: Reference) -> Sample {
    let mut best = (u64::MAX, Sample { cycles: 0, reference: 0, apic: 0 });
    for _ in 0..5 {
        let before = cycles();
        let reference = reference.read();
        let between = cycles();
        let apic = timer::remaining();
        let width = cycles() - before;
        if width < best.0 {
            best = (width, Sample { cycles: before.midpoint(between), reference, apic });
        }
    }
    best.1
}
