//! Time: the time-stamp counter, in nanoseconds since boot.
//!
//! Calibrated in three steps against a reference counter: half a millisecond when discovery has
//! found one, ten milliseconds while the other CPUs start, and one second later (from the timer
//! interrupt). Each step changes the rate a little ahead in time, so that the line is continuous
//! (CLOCK-1) and every CPU changes at the same cycle.
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
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use spin::Once;

use super::reference::Reference;
use super::timer;
use super::timescale::{Rate, Timeline, frequency};

/// What the counter is taken to run at until the first calibration.
const ASSUMED_HZ: u64 = 2_000_000_000;
/// Length of the first calibration.
const QUICK_NS: u64 = 500_000;
/// Length of the second.
const SECOND_NS: u64 = 10_000_000;
/// Length of the third, and when it is too late for it (the reference may have wrapped).
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
/// The long calibration is done, or its time has passed.
static REFINED: AtomicBool = AtomicBool::new(false);
/// The second calibration is done.
static CALIBRATED: AtomicBool = AtomicBool::new(false);

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

/// Waits until ten milliseconds have passed since the first sample, if they have not, and takes the
/// rates of the time-stamp counter and the APIC timer from them.
///
/// Context: boot CPU; the first timer to be armed calls it, or the start of the other CPUs. Later calls do nothing, on
/// any CPU.
pub(super) fn finish_calibration() {
    if CALIBRATED.load(Ordering::Relaxed) || CALIBRATED.swap(true, Ordering::Relaxed) {
        return;
    }
    calibrate(SECOND_NS);
    timer::stop();
}

/// Does the long calibration when its time has come.
///
/// Context: timer interrupt of the boot CPU.
pub(super) fn refine() {
    if REFINED.load(Ordering::Relaxed) {
        return;
    }
    let Some(&(reference, origin)) = ORIGIN.get() else { return };
    let age = now_ns() - cycles_to_ns(origin.cycles);
    if age < LONG_NS || matches!(reference, Reference::Pit) {
        return;
    }
    REFINED.store(true, Ordering::Relaxed);
    if age < TOO_LATE_NS {
        let now = sample(reference);
        let ticks = reference.elapsed(origin.reference, now.reference);
        change_rate(frequency(now.cycles - origin.cycles, ticks, reference.hz()));
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
    let now = sample(reference);
    let ticks = reference.elapsed(origin.reference, now.reference);
    change_rate(frequency(now.cycles - origin.cycles, ticks, reference.hz()));
    let apic_ticks = u64::from(origin.apic.wrapping_sub(now.apic));
    timer::set_frequency(frequency(apic_ticks, ticks, reference.hz()));
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
