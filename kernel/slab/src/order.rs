//! How large a slab is: pages for `size`-byte objects (M-9). Pure arithmetic.
//!
//! Answers to `calculate_order` in Linux `mm/slub.c` (7.x).

use arch::PAGE_SIZE;

/// Largest order that is tried for the sake of more objects a slab.
const MAX_PREFERRED_ORDER: usize = 3;

/// The most objects in a slab: of the smallest size.
pub(crate) const MAX_OBJECTS: usize = (PAGE_SIZE << MAX_PREFERRED_ORDER) / size_of::<usize>();

/// Orders of a cache's slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Orders {
    /// What a slab should be.
    pub(crate) preferred: usize,
    /// What it may be when memory is short: one object fits.
    pub(crate) minimum: usize,
}

/// Smallest order whose pages hold `bytes`.
pub(crate) const fn order_for(bytes: usize) -> usize {
    let pages = bytes.div_ceil(PAGE_SIZE);
    pages.next_power_of_two().trailing_zeros() as usize
}

/// Objects of `size` that fit in a slab of `order`.
pub(crate) const fn objects(order: usize, size: usize) -> usize {
    (PAGE_SIZE << order) / size
}

/// Partial slabs a node keeps although they are empty.
pub(crate) fn min_partial(size: usize) -> usize {
    (size.ilog2() as usize / 2).clamp(5, 10)
}

/// The orders for objects of `size` bytes on a machine of `cpus` CPUs, or nothing if no order holds one.
///
/// At least `4 * (bits in cpus + 1)` objects where order 3 holds as many; among the orders that do, the
/// first that wastes no more than a sixteenth, else an eighth, a quarter, a half.
pub(crate) fn orders(size: usize, cpus: usize) -> Option<Orders> {
    let minimum = order_for(size);
    if minimum > mm::MAX_ORDER {
        return None;
    }
    let bits = (usize::BITS - cpus.leading_zeros()) as usize;
    let wanted = (4 * (bits + 1)).min(objects(MAX_PREFERRED_ORDER, size)).max(1);
    let first = order_for(wanted * size).max(minimum);
    let tolerable = |order: usize, fraction: usize| {
        let slab = PAGE_SIZE << order;
        slab % size <= slab / fraction
    };
    let preferred = [16, 8, 4, 2]
        .into_iter()
        .find_map(|fraction| (first..=MAX_PREFERRED_ORDER).find(|&order| tolerable(order, fraction)))
        .unwrap_or(minimum);
    Some(Orders { preferred, minimum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_at_least_one_object_and_wastes_at_most_half() {
        for size in (8..40_000).step_by(8) {
            for cpus in [1, 2, 4, 64, 256] {
                let orders = orders(size, cpus).unwrap();
                assert!(objects(orders.minimum, size) >= 1);
                assert!(orders.preferred >= orders.minimum);
                let slab = PAGE_SIZE << orders.preferred;
                assert!(slab % size <= slab / 2, "{size}");
            }
        }
    }

    #[test]
    fn small_objects_of_a_power_of_two_take_one_page_on_a_small_machine() {
        assert_eq!(orders(64, 4), Some(Orders { preferred: 0, minimum: 0 }));
        assert_eq!(orders(8, 256), Some(Orders { preferred: 0, minimum: 0 }));
    }

    #[test]
    fn large_objects_share_slabs_of_order_three() {
        assert_eq!(orders(1024, 4), Some(Orders { preferred: 2, minimum: 0 }));
        assert_eq!(orders(8192, 4), Some(Orders { preferred: 3, minimum: 1 }));
    }

    #[test]
    fn what_no_order_holds_is_refused() {
        assert_eq!(orders(PAGE_SIZE << (mm::MAX_ORDER + 1), 4), None);
    }

    #[test]
    fn min_partial_stays_between_five_and_ten() {
        assert_eq!(min_partial(8), 5);
        assert_eq!(min_partial(4096), 6);
        assert_eq!(min_partial(1 << 30), 10);
    }
}
