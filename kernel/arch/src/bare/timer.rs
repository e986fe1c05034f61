//! The timer of each CPU: the APIC timer, or the TSC deadline where CPUID names it.
//!
//! The emulator that CI runs has no TSC deadline, so that half is covered by reading only.
//!
//! - TIMER-1: each function acts on the CPU that calls it; the caller is pinned.
//!
//! Answers to `arch/x86/kernel/apic/apic.c` (clock events) of Linux.

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId as CpuidReader;
use spin::Once;
use x86_64::registers::model_specific::Msr;

use super::apic_regs::{DIVIDE_BY_1, LVT_MASKED, Reg, TimerMode, lvt_timer};
use super::{apic, clock};
use crate::{CpuId, cpu, vector};

const TSC_DEADLINE: u32 = 0x6e0;

/// Ticks of the APIC timer in a second. Written by the boot CPU's calibration, again when it knows better.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
static HAS_DEADLINE: Once<bool> = Once::new();

crate::per_cpu! {
    /// TSC deadline only: cycles of a period, 0 if not periodic. Written by this CPU.
    static PERIOD: u64 = 0;
    /// TSC deadline only: when the next period ends. Written by this CPU.
    static DEADLINE: u64 = 0;
}

fn has_deadline() -> bool {
    *HAS_DEADLINE
        .call_once(|| CpuidReader::new().get_feature_info().is_some_and(|features| features.has_tsc_deadline()))
}

/// Raises [`vector::TIMER`] on this CPU `hz` times a second.
///
/// Context: any but NMI; pinned.
///
/// # Panics
/// If `hz` is 0.
pub fn start_periodic(hz: u32) {
    assert!(hz > 0, "a timer needs a rate");
    if has_deadline() {
        let period = clock::ns_to_cycles(1_000_000_000 / u64::from(hz));
        PERIOD.set(period);
        arm_deadline(clock::cycles() + period);
    } else {
        arm_apic(TimerMode::Periodic, frequency_for_arming() / u64::from(hz));
    }
}

/// Raises [`vector::TIMER`] on this CPU once, after this many nanoseconds (about four seconds at
/// most: then it comes early, and the caller asks again).
///
/// Context: any but NMI; pinned.
pub fn oneshot_ns(ns: u64) {
    if has_deadline() {
        PERIOD.set(0);
        arm_deadline(clock::cycles().saturating_add(clock::ns_to_cycles(ns)));
    } else {
        let ticks = u128::from(ns) * u128::from(frequency_for_arming()) / 1_000_000_000;
        arm_apic(TimerMode::OneShot, u64::try_from(ticks).unwrap_or(u64::MAX));
    }
}

/// No more timer interrupts on this CPU. One that is on its way may still come.
///
/// Context: any but NMI; pinned.
pub fn stop() {
    PERIOD.set(0);
    if has_deadline() {
        arm_deadline(0);
    } else {
        apic::write(Reg::TimerInitial, 0);
    }
    apic::write(Reg::LvtTimer, LVT_MASKED);
}

/// The rate that times are turned into ticks by. What is armed first ends the measurement of this very timer.
fn frequency_for_arming() -> u64 {
    clock::end_free_run();
    FREQUENCY.load(Ordering::Relaxed)
}

fn arm_apic(mode: TimerMode, ticks: u64) {
    let count = ticks.clamp(1, u64::from(u32::MAX)) as u32;
    apic::write(Reg::TimerDivide, DIVIDE_BY_1);
    apic::write(Reg::LvtTimer, lvt_timer(mode, vector::TIMER));
    apic::write(Reg::TimerInitial, count);
}

fn arm_deadline(cycles: u64) {
    apic::write(Reg::LvtTimer, lvt_timer(TimerMode::TscDeadline, vector::TIMER));
    // The mode must be in force before the deadline is written, else the write is lost.
    core::sync::atomic::fence(Ordering::SeqCst);
    DEADLINE.set(cycles);
    // SAFETY: CPUID names this register; it raises an interrupt and touches no memory.
    unsafe { Msr::new(TSC_DEADLINE).write(cycles) };
}

/// What every timer interrupt begins with.
pub(super) fn on_interrupt() {
    let period = PERIOD.get();
    if period != 0 {
        // Periods that were missed altogether are left out.
        let next = DEADLINE.get() + period;
        arm_deadline(next.max(clock::cycles()));
    }
    if cpu::current() == CpuId::BOOT {
        clock::refine();
    }
}

/// Lets the APIC timer count down from the top without interrupts, to be measured.
pub(super) fn run_free() {
    apic::write(Reg::TimerDivide, DIVIDE_BY_1);
    apic::write(Reg::LvtTimer, LVT_MASKED);
    apic::write(Reg::TimerInitial, u32::MAX);
}

/// Current count of the APIC timer.
pub(super) fn remaining() -> u32 {
    apic::read(Reg::TimerCurrent)
}

/// Sets what was measured.
pub(super) fn set_frequency(hz: u64) {
    FREQUENCY.store(hz, Ordering::Relaxed);
}

/// Ticks of the APIC timer in a second, as measured; 0 before.
pub fn frequency_hz() -> u64 {
    FREQUENCY.load(Ordering::Relaxed)
}
