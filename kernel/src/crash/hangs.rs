//! Nobody ends the kernel: it does not get on, and has to be asked where it is.

use arch::{CpuMask, cpu, irq};
use sched::{Completion, Prio};
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard, SpinLock, lock_class, smp};

#[inline(never)]
pub(super) fn endless_loop() {
    loop {
        irq::relax();
    }
}

#[inline(never)]
pub(super) fn softlockup(cx: &mut MaySleep) {
    let _pinned = PreemptGuard::new(cx);
    loop {
        irq::relax();
    }
}

#[inline(never)]
pub(super) fn hardlockup() {
    let _off = IrqGuard::new(ATOMIC);
    loop {
        irq::relax();
    }
}

static LOCK: SpinLock<()> = SpinLock::new((), lock_class!("kernel.crash_hang"));

#[inline(never)]
pub(super) fn spinlockup(cx: &mut MaySleep) {
    let other = cpu::online().iter().find(|&id| id != cpu::current());
    let holder = sched::spawn(cx, "holder", Prio::NORMAL, other, |_| {
        let _held = LOCK.lock(ATOMIC);
        endless_loop();
    });
    holder.expect("memory for a thread").detach();
    while !LOCK.is_locked() {
        sched::yield_now(cx);
    }
    let _held = LOCK.lock(cx);
}

#[inline(never)]
pub(super) fn deadlock(cx: &mut MaySleep) {
    let _first = LOCK.lock(cx);
    let _second = LOCK.lock(ATOMIC);
}

/// With one CPU there is nobody to call.
#[inline(never)]
pub(super) fn smp_call_lockup(_: &mut MaySleep) {
    let others = cpu::online() - CpuMask::of(cpu::current());
    smp::call_mask(&others, |_| hardlockup(), 0, true);
}

/// With one CPU there is nobody to wait for it.
#[inline(never)]
pub(super) fn rcu_stall(cx: &mut MaySleep) {
    let other = cpu::online().iter().find(|&id| id != cpu::current());
    let waiter = sched::spawn(cx, "waiter", Prio::NORMAL, other, rcu::synchronize_rcu_expedited);
    waiter.expect("memory for a thread").detach();
    softlockup(cx);
}

#[inline(never)]
pub(super) fn hung_task(cx: &mut MaySleep) {
    static NEVER: Completion = Completion::new();
    NEVER.wait(cx);
    unreachable!("nobody completes it")
}

#[inline(never)]
pub(super) fn halt(_: &mut MaySleep) {
    smp::call_all(|_| irq::park(), 0, true);
}
