//! Readers: they may sleep, move from CPU to CPU, and in some flavours end where somebody else is.
//!
//! A reader counts itself at the index that is current when it begins, on the CPU where it is; at its end at the same index, on
//! the CPU where it is then. The guard remembers the place of the counters, which is the same on all CPUs.
//!
//! Invariants
//! - SRD-1: for each lock that was counted at an index one unlock is counted at that index. By the guards: each has one place,
//!   and is dropped once. One that is forgotten holds up all later grace periods of its domain.
//!
//! Contexts: see [`super::flavour`]. Row R-21. Answers to Linux include/linux/srcu.h (`srcu_read_lock`, `srcu_down_read`).

use core::fmt;
use core::marker::PhantomData;

use arch::percpu::DynPlace;

use super::domain::SrcuDomain;
use super::flavour::{Flavour, HandsOver};

/// A reader's domain and where it is counted.
struct Counted<'d, F: Flavour> {
    domain: &'d SrcuDomain<F>,
    pair: DynPlace,
}

impl<'d, F: Flavour> Counted<'d, F> {
    #[inline(always)]
    fn begin(domain: &'d SrcuDomain<F>) -> Self {
        let pair = domain.core().current();
        // SAFETY: a domain's pair, as long as it lives.
        unsafe { F::begin(pair) };
        Counted { domain, pair }
    }
}

impl<F: Flavour> Drop for Counted<'_, F> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: as in `begin`, and the domain is borrowed. SRD-1.
        unsafe { F::end(self.pair) };
    }
}

/// A section of a reader of SRCU; it ends when the guard goes, in the thread or handler where it began.
///
/// While it lives, no grace period of its domain that began after it ends. Its thread may sleep.
///
/// ```compile_fail,E0277
/// use grange_rcu::srcu::{Normal, SrcuDomain, srcu_read_lock};
/// fn needs_send<T: Send>(_: T) {}
/// fn reader(domain: &SrcuDomain<Normal>) {
///     needs_send(srcu_read_lock(domain));
/// }
/// ```
#[must_use = "the section ends as soon as the guard is dropped"]
pub struct SrcuReadGuard<'d, F: Flavour> {
    counted: Counted<'d, F>,
    _stays: PhantomData<*mut ()>,
}

/// A section of a reader of SRCU that may end in another context than the one in which it began.
#[must_use = "the section ends as soon as the guard is dropped"]
pub struct SrcuDownGuard<'d, F: HandsOver> {
    counted: Counted<'d, F>,
}

/// Begins a section of a reader. Sections nest.
///
/// Context: as the flavour says ([`super::flavour`]). Wait-free, three instructions with the end, or five.
///
/// ```no_run
/// # fn thread(cx: &mut sync::MaySleep, domain: &grange_rcu::srcu::SrcuDomain<grange_rcu::srcu::Normal>) {
/// let guard = grange_rcu::srcu::srcu_read_lock(domain);
/// sched::sleep_ns(cx, 1_000);
/// drop(guard);
/// # }
/// ```
#[inline(always)]
pub fn srcu_read_lock<F: Flavour>(domain: &SrcuDomain<F>) -> SrcuReadGuard<'_, F> {
    SrcuReadGuard { counted: Counted::begin(domain), _stays: PhantomData }
}

/// Begins a section of a reader that is handed over: to another thread, or to an interrupt handler, which ends it.
///
/// Context: as the flavour says. Wait-free.
#[inline(always)]
pub fn srcu_down_read<F: HandsOver>(domain: &SrcuDomain<F>) -> SrcuDownGuard<'_, F> {
    SrcuDownGuard { counted: Counted::begin(domain) }
}

/// Ends a section that was handed over. (To drop the guard is the same.)
///
/// Context: as the flavour says. Wait-free.
#[inline(always)]
pub fn srcu_up_read<F: HandsOver>(guard: SrcuDownGuard<'_, F>) {
    drop(guard);
}

/// Proof of a section in a domain: either kind of guard. Sealed.
pub trait InSection<F: Flavour>: sealed::Sealed {
    /// The domain.
    #[doc(hidden)]
    fn domain(&self) -> &SrcuDomain<F>;
}

mod sealed {
    pub trait Sealed {}
}

impl<F: Flavour> sealed::Sealed for SrcuReadGuard<'_, F> {}
impl<F: HandsOver> sealed::Sealed for SrcuDownGuard<'_, F> {}

impl<F: Flavour> InSection<F> for SrcuReadGuard<'_, F> {
    #[inline(always)]
    fn domain(&self) -> &SrcuDomain<F> {
        self.counted.domain
    }
}

impl<F: HandsOver> InSection<F> for SrcuDownGuard<'_, F> {
    #[inline(always)]
    fn domain(&self) -> &SrcuDomain<F> {
        self.counted.domain
    }
}

impl<F: Flavour> fmt::Debug for SrcuReadGuard<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SrcuReadGuard({})", self.domain().core().name)
    }
}

impl<F: HandsOver> fmt::Debug for SrcuDownGuard<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SrcuDownGuard({})", self.domain().core().name)
    }
}
