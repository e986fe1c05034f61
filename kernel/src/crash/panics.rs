//! The kernel ends itself: panics, by the context that they strike in.

use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::{AtomicCpuMask, CpuMask, cpu, ipi, irq};
use sched::{Softirq, softirq};
use sync::irq_work::IrqWork;
use sync::nmi::{self, NmiHandler};
use sync::{MaySleep, PreemptGuard, SpinLock, lock_class, smp};

use crate::console;

/// What is taken at a time until there is no more, in bytes.
const CHUNK: usize = 64 * 1024;

#[inline(never)]
pub(super) fn panic() {
    panic!("a panic on purpose")
}

#[inline(never)]
pub(super) fn bug() {
    assert_eq!(black_box(1) + 1, 3, "a bug on purpose");
}

#[inline(never)]
pub(super) fn array_bounds() {
    let array = black_box([0u8; 8]);
    black_box(array[black_box(8)]);
}

#[inline(never)]
pub(super) fn panic_irq(_: &mut MaySleep) {
    static WORK: IrqWork = IrqWork::new(|_| panic!("a panic on purpose, in an interrupt"));
    WORK.queue();
}

#[inline(never)]
pub(super) fn panic_softirq(_: &mut MaySleep) {
    softirq::register(Softirq::Test, || panic!("a panic on purpose, in a soft interrupt"));
    softirq::raise(Softirq::Test);
}

/// The CPUs whose next NMI is their end. Set by the kind, taken by each CPU's NMI.
static DOOMED: AtomicCpuMask = AtomicCpuMask::new();

/// Has the CPUs panic in an NMI, not before all of them are in theirs.
fn doom(cpus: CpuMask) {
    static HANDLER: NmiHandler = NmiHandler::new("crash", |_| {
        let doomed = DOOMED.clear(cpu::current());
        while doomed && !DOOMED.load().is_empty() {
            irq::relax();
        }
        assert!(!doomed, "a panic on purpose, in an NMI");
        doomed
    });
    nmi::register(&HANDLER);
    cpus.iter().for_each(|cpu| _ = DOOMED.set(cpu));
    // This CPU last: in its NMI it waits for the others.
    let me = cpu::current();
    cpus.iter().filter(|&cpu| cpu != me).for_each(ipi::send_nmi);
    ipi::send_nmi(me);
}

#[inline(never)]
pub(super) fn panic_nmi(_: &mut MaySleep) {
    doom(CpuMask::of(cpu::current()));
}

#[inline(never)]
pub(super) fn panic_all_nmi(_: &mut MaySleep) {
    doom(cpu::online());
}

#[inline(never)]
pub(super) fn panic_lock(cx: &mut MaySleep) {
    static LOCK: SpinLock<()> = SpinLock::new((), lock_class!("kernel.crash"));
    let _held = LOCK.lock_irqsave(cx);
    panic!("a panic on purpose, with a lock held")
}

#[inline(never)]
pub(super) fn panic_console(_: &mut MaySleep) {
    let _held = console::hold();
    log::info!("a line that cannot be printed at once");
    panic!("a panic on purpose, with the console held")
}

/// Panics when it is formatted.
struct Bomb;

impl fmt::Display for Bomb {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a panic on purpose, while text is put together")
    }
}

#[inline(never)]
pub(super) fn panic_log() {
    log::info!("a line that does not come to its end: {Bomb}");
}

/// An NMI at each instruction, the first of which that finds the console taken is the end.
#[inline(never)]
pub(super) fn panic_print(cx: &mut MaySleep) {
    let _pinned = PreemptGuard::new(cx);
    let hit = || nmi::as_nmi(|| assert!(!console::is_held(), "a panic on purpose, in an NMI while a line is printed"));
    arch::step::single_step(|| log::info!("a line that is interrupted"), hit);
}

#[inline(never)]
pub(super) fn panic_panic() {
    panic!("the first panic: {Bomb}")
}

#[inline(never)]
pub(super) fn panic_panics() {
    struct Bombs;
    impl fmt::Display for Bombs {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("a panic on purpose, and another: {Bombs}")
        }
    }
    panic!("the first panic: {Bombs}")
}

/// All of them begin at once; who comes first stops the others, some of which have begun to panic then.
#[inline(never)]
pub(super) fn panic_all(_: &mut MaySleep) {
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    let meet_and_panic = |_| {
        ARRIVED.fetch_add(1, Ordering::Relaxed);
        while ARRIVED.load(Ordering::Relaxed) < cpu::online_count() {
            irq::relax();
        }
        panic!("a panic on purpose, everywhere")
    };
    smp::call_all(meet_and_panic, 0, true);
}

#[inline(never)]
pub(super) fn oom(_: &mut MaySleep) {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(black_box(Vec::with_capacity(CHUNK)));
    }
}
