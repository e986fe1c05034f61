//! `KBox`, aligned `kmalloc`, arrays.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use arch::hosted::in_own_process;
use grange_slab::{KBox, OutOfMemory, ZERO_SIZE, kcalloc, kfree, kmalloc_aligned, kmalloc_array, ksize};
use mm::AllocFlags;
use mm::inject::{Plan, arm};

use super::boot;

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;

#[repr(align(256))]
struct Wide(u8);

#[repr(align(16384))]
struct WiderThanAPage(u8);

/// Counts how often it is dropped.
#[derive(Debug)]
struct Dropped(Rc<Cell<usize>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_box_holds_values_of_every_size_and_alignment() {
    in_own_process(|| {
        boot("", |_| {
            let mut number = KBox::try_new(7_u64, NOWAIT).unwrap();
            *number += 1;
            assert_eq!((*number, format!("{number} {number:?}")), (8, "8 8".into()));
            let wide = KBox::try_new(Wide(1), NOWAIT).unwrap();
            let wider = KBox::try_new(WiderThanAPage(2), NOWAIT).unwrap();
            assert_eq!((wide.0, (&raw const *wide).addr() % 256), (1, 0));
            assert_eq!((wider.0, (&raw const *wider).addr() % 16384), (2, 0));
            let large = KBox::try_new([3_u8; 20_000], NOWAIT).unwrap();
            assert!(large.iter().all(|&byte| byte == 3));
            assert_eq!(KBox::into_inner(large)[19_999], 3);
        });
    });
}

#[test]
fn a_value_is_dropped_once_by_the_box_or_by_whom_it_is_given_to() {
    in_own_process(|| {
        boot("", |_| {
            let count = Rc::new(Cell::new(0));
            drop(KBox::try_new(Dropped(count.clone()), NOWAIT).unwrap());
            assert_eq!(count.get(), 1);
            let value = KBox::into_inner(KBox::try_new(Dropped(count.clone()), NOWAIT).unwrap());
            assert_eq!(count.get(), 1);
            drop(value);
            assert_eq!(count.get(), 2);
            let boxed = KBox::try_new(Dropped(count.clone()), NOWAIT).unwrap();
            let raw = KBox::into_raw(boxed);
            assert_eq!(count.get(), 2);
            // SAFETY: from `into_raw`, once.
            drop(unsafe { KBox::<dyn std::any::Any>::from_raw(raw) });
            assert_eq!(count.get(), 3);
        });
    });
}

#[test]
fn a_value_without_size_needs_no_memory() {
    #[repr(align(32))]
    struct Nothing;
    in_own_process(|| {
        boot("", |_| {
            let nothing = KBox::try_new(Nothing, NOWAIT).unwrap();
            assert_eq!((&raw const *nothing).addr(), 32, "dangling but aligned");
            KBox::into_inner(nothing);
        });
    });
}

#[test]
fn without_memory_the_value_comes_back() {
    in_own_process(|| {
        boot("", |_| {
            let count = Rc::new(Cell::new(0));
            let armed = arm(Plan::From(1)).unwrap();
            let OutOfMemory((value, _)) =
                KBox::try_new((Dropped(count.clone()), [0_u8; 10_000]), AllocFlags::NOWARN).unwrap_err();
            assert_eq!((armed.failed(), count.get()), (1, 0));
            drop((armed, value));
            assert_eq!(count.get(), 1);
        });
    });
}

#[test]
fn a_pinned_value_stays_where_it_is() {
    struct Fixed(usize, std::marker::PhantomPinned);
    in_own_process(|| {
        boot("", |_| {
            let pinned: Pin<KBox<Fixed>> = KBox::try_pin(Fixed(9, std::marker::PhantomPinned), NOWAIT).unwrap();
            let place = &raw const *pinned;
            let moved = pinned;
            assert_eq!((&raw const *moved, moved.0), (place, 9));
        });
    });
}

#[test]
fn blocks_of_every_alignment_are_aligned_and_no_larger_than_need_be() {
    in_own_process(|| {
        boot("", |_| {
            for (size, align, usable) in [
                (1, 1, 8),
                (70, 32, 96),
                (100, 64, 128),
                (150, 64, 192),
                (8, 4096, 4096),
                (5000, 4096, 8192),
                (8193, 16, 16384),
                (20_000, 64, 32768),
                (1, 8192, 8192),
                (1, 65536, 65536),
            ] {
                let block = kmalloc_aligned(size, align, NOWAIT).unwrap();
                assert!(block.as_ptr().addr().is_multiple_of(align), "{size} bytes aligned to {align}: {block:p}");
                // SAFETY: allocated above.
                assert_eq!(unsafe { ksize(block) }, usable, "{size} bytes aligned to {align}");
                // SAFETY: as above, given up here.
                unsafe { kfree(block) };
            }
            assert_eq!(kmalloc_aligned(0, 4096, NOWAIT), Some(ZERO_SIZE));
            assert_eq!(kmalloc_aligned(usize::MAX, 4096, AllocFlags::NOWARN), None);
            assert_eq!(kmalloc_aligned(1, 1 << 40, AllocFlags::NOWARN), None);
        });
    });
}

#[test]
fn arrays_are_as_large_as_the_product_and_refused_where_it_overflows() {
    in_own_process(|| {
        boot("", |_| {
            for _ in 0..2 {
                let array = kcalloc(12, 8, NOWAIT).unwrap();
                // SAFETY: allocated above; 96 bytes are ours.
                let bytes = unsafe { core::slice::from_raw_parts_mut(array.as_ptr(), ksize(array)) };
                assert_eq!(bytes.len(), 96);
                assert!(bytes.iter().all(|&byte| byte == 0));
                bytes.fill(0xff);
                // SAFETY: as above, given up here.
                unsafe { kfree(array) };
            }
            assert_eq!(kmalloc_array(usize::MAX / 8 + 1, 16, NOWAIT), None, "the product wraps to 8");
            assert_eq!(kcalloc(usize::MAX, usize::MAX, NOWAIT), None);
            assert_eq!(kmalloc_array(0, 16, NOWAIT), Some(ZERO_SIZE));
            assert_eq!(kcalloc(16, 0, NOWAIT), Some(ZERO_SIZE));
        });
    });
}

#[test]
fn a_dropped_box_gives_its_memory_back() {
    in_own_process(|| {
        boot("", |_| {
            // Several times what the machine has.
            for _ in 0..20_000 {
                drop(KBox::try_new([0_u64; 1024], NOWAIT).unwrap());
                KBox::into_inner(KBox::try_new([0_u64; 1025], NOWAIT).unwrap());
            }
        });
    });
}
