//! Non-maskable interrupts: registered handlers, and what surrounds them.
//!
//! Every handler sees every NMI, because two causes that come at once are one NMI. It says whether
//! the NMI was (also) its own. One that nobody claims came from outside, from somebody who wants to know what this
//! machine is doing: hook `nmi_unknown` answers.
//!
//! # Invariants
//!
//! - `NM-1` A handler is registered at most once and stays registered. Enforced by the once-only
//!   flag in [`NmiHandler`].
//! - `NM-2` Nothing that spins for a lock is called here; checking builds panic at the lock.
//!
//! Linux 6.12: arch/x86/kernel/nmi.c, include/linux/hardirq.h (`nmi_enter`, `nmi_exit`).

use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
};

use arch::trap::TrapFrame;

use crate::{
    context::{self, HARDIRQ_OFFSET, NMI_OFFSET},
    events,
    hooks::HOOKS,
};

/// A handler and its link in the list of all.
#[derive(Debug)]
pub struct NmiHandler {
    /// For reports.
    pub name: &'static str,
    /// True if the NMI was for it. Context: NMI.
    func: fn(&mut TrapFrame) -> bool,
    /// The handler registered before; constant once this one is in the list.
    next: AtomicPtr<NmiHandler>,
    registered: AtomicBool,
}

impl NmiHandler {
    /// A handler; see [`register`].
    #[must_use]
    pub const fn new(name: &'static str, func: fn(&mut TrapFrame) -> bool) -> Self {
        Self { name, func, next: AtomicPtr::new(ptr::null_mut()), registered: AtomicBool::new(false) }
    }
}

/// The handler registered last.
static FIRST: AtomicPtr<NmiHandler> = AtomicPtr::new(ptr::null_mut());

/// NMIs that no handler knew, on any CPU.
static UNKNOWN: AtomicU64 = AtomicU64::new(0);

arch::per_cpu! {
    static COUNT: u64 = 0;
}

/// Adds a handler: it is called for every NMI on every CPU from now on.
///
/// Context: any. Lock-free.
///
/// # Panics
/// If it is registered already (`NM-1`).
pub fn register(handler: &'static NmiHandler) {
    assert!(!handler.registered.swap(true, Ordering::Relaxed), "NM-1: \"{}\" twice", handler.name);
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        handler.next.store(first, Ordering::Relaxed);
        let new = ptr::from_ref(handler).cast_mut();
        // Release: pairs with the acquire in `on_nmi`: the link is there before the handler is.
        match FIRST.compare_exchange(first, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// NMIs taken by `cpu`.
///
/// Context: any.
pub fn count(cpu: arch::cpu::CpuId) -> u64 {
    // SAFETY: the copy is valid as long as the machine runs; an aligned u64 is read whole.
    unsafe { COUNT.ptr_on(cpu).read_volatile() }
}

/// NMIs that no handler knew.
///
/// Context: any.
pub fn unknown_count() -> u64 {
    UNKNOWN.load(Ordering::Relaxed)
}

/// Runs `f` as if it were an NMI handler: counted as one, between the same hooks.
///
/// The single-step helper calls this at every instruction boundary.
///
/// Context: any.
pub fn as_nmi<R>(f: impl FnOnce() -> R) -> R {
    context::count_add(NMI_OFFSET + HARDIRQ_OFFSET);
    HOOKS.nmi_enter.call();
    let result = f();
    HOOKS.nmi_exit.call();
    context::count_sub(NMI_OFFSET + HARDIRQ_OFFSET);
    result
}

pub(crate) fn on_nmi(frame: &mut TrapFrame) {
    as_nmi(|| {
        COUNT.inc();
        events::event(events::Kind::Nmi, 0);
        let mut known = false;
        // Acquire: pairs with the release in `register`.
        let mut at = FIRST.load(Ordering::Acquire);
        // SAFETY: handlers are statics.
        while let Some(handler) = unsafe { at.as_ref() } {
            known |= (handler.func)(frame);
            // Relaxed: the acquire above covers the links of all that were registered before.
            at = handler.next.load(Ordering::Relaxed);
        }
        if !known {
            UNKNOWN.fetch_add(1, Ordering::Relaxed);
            if let Some(unknown) = HOOKS.nmi_unknown.get() {
                unknown(frame);
            }
        }
    });
}
