//! An "NMI" between any two instructions of a piece of code: single steps, some of whose boundaries are visited.
//!
//! A visit at every boundary also clears away what the visit at the next one might have found, so a window may stay shut
//! for all of them. Therefore the same code is stepped again with visits at every second boundary, at every third and so
//! on, beginning at each ([`runs`]): every boundary is then also the first that is visited for a while.
//!
//! One test steps at a time; the runner sees to that.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sync::{ATOMIC, PreemptGuard};

/// What is done at a boundary, in NMI context.
pub trait Visit {
    /// Does it.
    fn visit();
}

/// Every how many boundaries there is a visit, and the boundaries so far.
static STRIDE: AtomicUsize = AtomicUsize::new(1);
static STEP: AtomicUsize = AtomicUsize::new(0);

/// For [`step`]: no visit at all.
pub const NOWHERE: (usize, usize) = only(usize::MAX / 4);

/// For [`step`]: one visit, at this boundary.
pub const fn only(boundary: usize) -> (usize, usize) {
    (usize::MAX / 2, boundary)
}

/// For each stride every place to begin: pairs for [`step`].
pub fn runs(strides: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    strides.iter().flat_map(|&stride| (0..stride).map(move |first| (stride, first)))
}

/// Single-steps `code`, with a visit at boundary `first`, counted from 0, and at every `stride`-th after it; returns the
/// number of boundaries.
///
/// Context: task.
pub fn step<V: Visit>((stride, first): (usize, usize), code: impl FnOnce()) -> u64 {
    STRIDE.store(stride, Relaxed);
    STEP.store(stride - first, Relaxed);
    // The trap flag belongs to the CPU: another thread must not inherit it.
    let _pin = PreemptGuard::new(ATOMIC);
    arch::step::single_step(code, at_boundary::<V>)
}

fn at_boundary<V: Visit>() {
    if STEP.fetch_add(1, Relaxed).is_multiple_of(STRIDE.load(Relaxed)) {
        sync::nmi::as_nmi(V::visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_boundary_below_a_stride_begins_a_run() {
        let found: alloc::vec::Vec<_> = runs(&[1, 3]).collect();
        assert_eq!(found, [(1, 0), (3, 0), (3, 1), (3, 2)]);
    }
}
