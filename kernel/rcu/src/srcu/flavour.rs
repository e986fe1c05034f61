//! The flavours of readers. A domain has one, as a parameter of its type: to mix them does not compile.
//!
//! | flavour | a reader costs | its contexts | handing over |
//! |---|---|---|---|
//! | [`Normal`] | two increments, two full barriers | task, softirq, hardirq | yes |
//! | [`NmiSafe`] | two locked increments, which are full barriers | any, NMI included | no |
//! | [`Fast`] | two increments | task, softirq, hardirq, where RCU watches | no |
//! | [`FastUpDown`] | two increments | as `Fast` | yes |
//!
//! For the fast ones the grace period pays: each of its two looks waits for a grace period of RCU.
//!
//! ```compile_fail,E0308
//! use grange_rcu::srcu::{Fast, Normal, SrcuDomain, SrcuReadGuard, srcu_read_lock};
//! fn reader<'d>(domain: &'d SrcuDomain<Fast>) -> SrcuReadGuard<'d, Normal> {
//!     srcu_read_lock(domain)
//! }
//! ```
//!
//! ```compile_fail,E0277
//! use grange_rcu::srcu::{Fast, SrcuDomain, srcu_down_read};
//! fn hands_over(domain: &SrcuDomain<Fast>) {
//!     drop(srcu_down_read(domain));
//! }
//! ```
//!
//! This processor increments a per-CPU counter by one instruction, which no NMI can cut in two, so `Normal` readers would be
//! right in NMI handlers as well; as `NmiSafe` they are right wherever the increment is not one instruction. Linux has
//! the flavours as names of functions, and reports a domain whose readers use several.
//!
//! Row R-21. Answers to Linux include/linux/srcu.h (`SRCU_READ_FLAVOR_*`).

use arch::percpu::DynPlace;
use sync::context;

use super::order;
use crate::eqs;

/// Where a pair of counters has its locks and its unlocks.
pub(crate) const LOCKS: usize = 0;
pub(crate) const UNLOCKS: usize = 8;

/// How readers of a domain count themselves. Sealed: the four flavours of this module.
pub trait Flavour: sealed::Count + Send + Sync + 'static {
    /// What reports call it.
    const NAME: &'static str;
    /// Whether its grace periods have to wait for RCU's in the place of barriers.
    #[doc(hidden)]
    const WAITS_FOR_RCU: bool;
}

/// A flavour whose readers may end in another context than they began in.
pub trait HandsOver: Flavour {}

mod sealed {
    use arch::percpu::DynPlace;

    /// The two halves of a reader.
    #[doc(hidden)]
    pub trait Count {
        /// # Safety
        /// A pair of counters lies at `pair`.
        unsafe fn begin(pair: DynPlace);
        /// # Safety
        /// As for `begin`.
        unsafe fn end(pair: DynPlace);
    }
}

/// Declares a flavour: its name, whether it waits for RCU, its barriers, its increment, and what its readers must not do.
macro_rules! flavour {
    ($(#[$doc:meta])* $name:ident, $text:literal, rcu: $rcu:literal, $order:ty, $inc:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}

        impl Flavour for $name {
            const NAME: &'static str = $text;
            const WAITS_FOR_RCU: bool = $rcu;
        }

        impl sealed::Count for $name {
            #[inline(always)]
            unsafe fn begin(pair: DynPlace) {
                $check();
                // SAFETY: by the caller; a lock is the pair's first word.
                order::begin::<$order>(|| unsafe { pair.$inc::<LOCKS>() });
            }

            #[inline(always)]
            unsafe fn end(pair: DynPlace) {
                // SAFETY: by the caller; an unlock is the pair's second word.
                order::end::<$order>(|| unsafe { pair.$inc::<UNLOCKS>() });
            }
        }
    };
}

#[inline(always)]
fn not_in_nmi() {
    debug_assert!(!context::in_nmi(), "SRCU: a reader in NMI context, in a domain that is not NmiSafe");
}

#[inline(always)]
fn watched() {
    not_in_nmi();
    debug_assert!(eqs::watching_here(), "EQS-2: a fast SRCU reader where RCU does not watch (idle loop?)");
}

flavour! {
    /// Two full barriers a reader.
    Normal, "normal", rcu: false, order::All, inc, not_in_nmi
}
flavour! {
    /// Readers may be in NMI handlers.
    NmiSafe, "nmi-safe", rcu: false, order::NoReaderFences, inc_locked, || ()
}
flavour! {
    /// No barrier, but RCU must watch.
    Fast, "fast", rcu: true, order::NoReaderFences, inc, watched
}
flavour! {
    /// No barrier, and readers can be handed over.
    FastUpDown, "fast-updown", rcu: true, order::NoReaderFences, inc, watched
}

impl HandsOver for Normal {}
impl HandsOver for FastUpDown {}
