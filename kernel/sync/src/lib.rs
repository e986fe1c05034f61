#![no_std]
//! What code that runs on several CPUs, in several contexts, needs before there are threads.
//!
//! Lowest first:
//!
//! | module | what it is |
//! |---|---|
//! | [`atomic`] | the facade over atomics through which lists and the log ring also run under loom |
//! | [`cx`] | what the type system knows about context: [`MaySleep`], [`Atomic`], [`Cx`] |
//! | [`context`] | the `preempt_count`, and the guards for preemption, soft interrupts and interrupts |
//! | [`hooks`] | where later storeys are called from here |
//! | [`callback`], [`llist`], [`seqcount`] | callback heads, lock-less list, sequence counter |
//! | [`spinlock`], [`lock_order`], [`local_trylock`] | locks, and the checks behind them |
//! | [`irq`], [`nmi`], [`irq_work`], [`smp`], [`tlb`] | interrupts, and calls from one CPU to others |
//! | [`log`], [`log_ring`] | the log, callable up to NMI |
//! | [`mod@trace`], [`trace_ring`] | trace points, and a ring of records for each CPU |
//! | [`explore`], [`events`] | places where another CPU may come in between; what happened, hashed: for test builds |
//! | [`fault`] | which allocations fail on purpose |
//! | [`mod@glob`] | names by pattern |
//! | [`mutants`] | hooks inside locked sections, and bugs made on purpose: for one build |
//! | [`param`], [`rng`], [`percpu_dyn`] | command line parameters, seeded random numbers, dynamic per-CPU variables |
//!
//! Nothing here allocates. What may be called in which context stands at each function under *Context*;
//! "any" includes NMI.
//!
//! # Order of bring-up
//!
//! Everything but interrupts works from the first instruction on (per-CPU variables then live in
//! the template). [`init`] installs the interrupt, NMI and exception handlers once the boot CPU's
//! area is in place; before it no interrupt may be enabled.

#[cfg(any(test, loom))]
extern crate std;

pub mod atomic;
pub mod callback;
pub mod cx;
pub mod glob;
pub mod llist;
pub mod log_ring;
pub mod rng;
pub mod seqcount;
pub mod trace_ring;

// What follows uses per-CPU variables and statics with atomics in them, which loom does not have.
#[cfg(not(loom))]
pub mod context;
#[cfg(not(loom))]
pub mod events;
#[cfg(not(loom))]
pub mod explore;
#[cfg(not(loom))]
pub mod fault;
#[cfg(not(loom))]
pub mod hooks;
#[cfg(not(loom))]
pub mod irq;
#[cfg(not(loom))]
pub mod irq_work;
#[cfg(not(loom))]
pub mod local_trylock;
#[cfg(not(loom))]
pub mod lock_order;
#[cfg(not(loom))]
pub mod log;
#[cfg(not(loom))]
pub mod mutants;
#[cfg(not(loom))]
pub mod nmi;
#[cfg(not(loom))]
pub mod param;
#[cfg(not(loom))]
pub mod percpu_dyn;
#[cfg(not(loom))]
#[cfg_attr(not(debug_assertions), allow(dead_code, reason = "only the checks remember places"))]
mod places;
#[cfg(not(loom))]
pub mod smp;
#[cfg(not(loom))]
pub mod spinlock;
#[cfg(not(loom))]
pub mod tlb;
#[cfg(not(loom))]
pub mod trace;

pub use callback::CallbackHead;
pub use cx::{ATOMIC, Atomic, Cx, MaySleep};
pub use glob::glob;
pub use llist::{LlistChain, LlistHead, LlistNode};
pub use rng::Rng;
pub use seqcount::SeqCount;
pub use spin::Once;

#[cfg(not(loom))]
pub use self::{
    context::{IrqGuard, PreemptGuard, SoftirqGuard},
    irq_work::IrqWork,
    local_trylock::{FirstGuard, LocalGuard, LocalTryLock},
    lock_order::LockClass,
    percpu_dyn::DynPerCpu,
    spinlock::{SpinGuard, SpinIrqGuard, SpinLock},
};
#[cfg(not(loom))]
pub use arch::per_cpu;

/// What the exported macros of this crate name in their expansions; not for direct use.
#[doc(hidden)]
pub mod private {
    pub use arch::static_branch;
    pub use arch::static_branch::StaticKey;
    pub use linkme;
    #[cfg(loom)]
    pub use loom;
}

/// Under loom there are no trace points.
#[cfg(loom)]
#[macro_export]
macro_rules! trace {
    ($name:literal $(, $field:ident = $value:expr)* $(,)?) => {
        if false {
            let _: &[u64] = &[$(($value) as u64),*];
        }
    };
}

/// Under loom there are no bugs but those that it finds.
#[cfg(loom)]
#[macro_export]
macro_rules! bug {
    ($name:literal, $what:literal, $found_by:literal) => {
        false
    };
}

/// Installs the interrupt, NMI and exception handlers of this storey with the machine.
///
/// Context: boot CPU, once a machine, interrupts off. (A process may host one machine after another.)
#[cfg(not(loom))]
pub fn init() {
    irq::install();
}
