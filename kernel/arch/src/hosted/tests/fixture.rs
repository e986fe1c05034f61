//! Handlers that count, for the tests of this folder. One machine runs at a time, so they share their statics.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::format;
use std::string::String;

use crate::hosted::{Stopped, boot};
use crate::trap::{self, Exception, Handlers, TrapFrame};
use crate::{CpuId, MAX_CPUS, cpu, irq};

/// Bytes of RAM per node: tests of arch need next to none.
pub(super) const MEM: usize = 4 << 20;

/// Interrupts by CPU.
pub(super) static IRQS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// NMIs by CPU.
pub(super) static NMIS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// The last vectors that were handled, the newest in the lowest byte.
pub(super) static VECTORS: AtomicU64 = AtomicU64::new(0);
/// What a test wants done in the handlers: `fn(&mut TrapFrame)`.
static ON_IRQ: AtomicPtr<()> = AtomicPtr::new(nothing as *mut ());
static ON_NMI: AtomicPtr<()> = AtomicPtr::new(nothing as *mut ());
static ON_EXCEPTION: AtomicPtr<()> = AtomicPtr::new(nothing as *mut ());

fn nothing(_: &mut TrapFrame) {}

fn call(hook: &AtomicPtr<()>, frame: &mut TrapFrame) {
    // SAFETY: only functions of this type are stored.
    let hook: fn(&mut TrapFrame) = unsafe { core::mem::transmute(hook.load(Ordering::Acquire)) };
    hook(frame);
}

static HANDLERS: Handlers = Handlers {
    irq: |vector, frame| {
        assert!(!irq::enabled(), "ARCH-2: interrupts are off in a handler");
        assert!(frame.irqs_were_on(), "ARCH-1: no interrupt where they are off");
        IRQS[cpu::current().index()].fetch_add(1, Ordering::AcqRel);
        VECTORS.fetch_update(Ordering::AcqRel, Ordering::Acquire, |v| Some(v << 8 | u64::from(vector))).unwrap();
        call(&ON_IRQ, frame);
    },
    nmi: |frame| {
        assert!(!irq::enabled(), "interrupts are off in an NMI");
        NMIS[cpu::current().index()].fetch_add(1, Ordering::AcqRel);
        call(&ON_NMI, frame);
    },
    exception: |exception: Exception, frame| {
        EXCEPTION.store(exception.kind as u64 | exception.address << 8, Ordering::Release);
        call(&ON_EXCEPTION, frame);
    },
};

/// The last exception: its number in the lowest byte, and the address.
pub(super) static EXCEPTION: AtomicU64 = AtomicU64::new(0);

pub(super) fn on_irq(hook: fn(&mut TrapFrame)) {
    ON_IRQ.store(hook as *mut (), Ordering::Release);
}

pub(super) fn on_nmi(hook: fn(&mut TrapFrame)) {
    ON_NMI.store(hook as *mut (), Ordering::Release);
}

pub(super) fn on_exception(hook: fn(&mut TrapFrame)) {
    ON_EXCEPTION.store(hook as *mut (), Ordering::Release);
}

/// A machine with the counting handlers, all counters 0. CPUs other than 0 idle with interrupts on.
pub(super) fn machine<R: Send>(cpus: usize, main: impl FnOnce() -> R + Send) -> R {
    try_machine(cpus, |_| (), main).unwrap()
}

pub(super) fn try_machine<R: Send>(
    cpus: usize,
    ap_main: fn(CpuId),
    main: impl FnOnce() -> R + Send,
) -> Result<R, Stopped> {
    boot(cpus, 1, MEM, ap_main, || {
        for counter in IRQS.iter().chain(&NMIS).chain([&VECTORS, &EXCEPTION]) {
            counter.store(0, Ordering::Release);
        }
        for hook in [&ON_IRQ, &ON_NMI, &ON_EXCEPTION] {
            hook.store(nothing as *mut (), Ordering::Release);
        }
        // SAFETY: the handlers count, assert, and call what a test gives them.
        unsafe { trap::set_handlers(&HANDLERS) };
        main()
    })
}

/// CPU number `index`.
pub(super) fn cpu_no(index: usize) -> CpuId {
    CpuId::new(index)
}

pub(super) fn irqs_on(index: usize) -> u64 {
    IRQS[index].load(Ordering::Acquire)
}

pub(super) fn nmis_on(index: usize) -> u64 {
    NMIS[index].load(Ordering::Acquire)
}

/// Waits until `done`; a very long wait is a failure.
pub(super) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = crate::clock::now_ns();
    while !done() {
        irq::relax();
        assert!(crate::clock::now_ns() - start < 20_000_000_000, "waited 20 s in vain until {what}");
    }
}

/// The message of a machine that panicked.
pub(super) fn panic_of<R: core::fmt::Debug>(result: Result<R, Stopped>) -> String {
    match result {
        Err(Stopped::Panicked { cpu, message }) => format!("CPU {cpu} {message}"),
        other => panic!("the machine should have panicked, but: {other:?}"),
    }
}
