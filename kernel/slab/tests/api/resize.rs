//! `krealloc`, `kvmalloc`, wiping, and size 0 everywhere.

use core::ptr::NonNull;

use arch::hosted::in_own_process;
use grange_slab::{
    KBox, ZERO_SIZE, kfree, kfree_nolock, kfree_sensitive, kmalloc, kmalloc_nolock, krealloc, krealloc_aligned, ksize,
    kvfree, kvfree_sleep, kvmalloc, kvmalloc_array, kzalloc, object_of,
};
use mm::inject::{Plan, arm};
use mm::{AllocFlags, is_vmalloc};
use sync::{ATOMIC, IrqGuard};

use super::boot;

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;
const ZERO: AllocFlags = AllocFlags::ZERO;

/// The first `len` bytes of a block of at least as many.
fn bytes<'a>(block: NonNull<u8>, len: usize) -> &'a mut [u8] {
    // SAFETY: the tests hold the block, use one such slice at a time, and look at what they have written or had zeroed.
    unsafe { core::slice::from_raw_parts_mut(block.as_ptr(), len) }
}

#[test]
fn a_block_stays_while_it_fits_and_else_moves_with_its_content() {
    in_own_process(|| {
        boot("", |_| {
            let block = krealloc_of(None, 33, NOWAIT);
            bytes(block, 33).fill(0xab);
            assert_eq!(krealloc_of(Some(block), 64, NOWAIT), block, "inside its class");
            assert_eq!(krealloc_of(Some(block), 5, NOWAIT), block, "smaller");
            let moved = krealloc_of(Some(block), 65, NOWAIT);
            assert_ne!(moved, block);
            assert!(bytes(moved, 33).iter().all(|&byte| byte == 0xab));
            let large = krealloc_of(Some(moved), 10_000, NOWAIT);
            assert!(bytes(large, 33).iter().all(|&byte| byte == 0xab));
            assert_eq!(krealloc_of(Some(large), 16_384, NOWAIT), large, "its block has so many pages");
            let page = mm::page_of(large.as_ptr()).unwrap();
            assert_eq!(page.large_size(), 16_384);
            assert_eq!(krealloc_of(Some(large), 0, NOWAIT), ZERO_SIZE);
            assert_eq!(object_of(large), None, "size 0 freed it");
        });
    });
}

/// [`krealloc`], which must not fail.
fn krealloc_of(block: Option<NonNull<u8>>, size: usize, flags: AllocFlags) -> NonNull<u8> {
    // SAFETY: the tests hold the block, and go on with the answer.
    unsafe { krealloc(block, size, flags) }.expect("memory")
}

#[test]
fn every_byte_that_is_added_with_zero_is_zero() {
    in_own_process(|| {
        boot("", |_| {
            // Memory that was used before.
            for size in [32, 64, 96, 128, 20_000] {
                let dirty: Vec<_> = (0..70).map(|_| kmalloc(size, NOWAIT).unwrap()).collect();
                for block in dirty {
                    // SAFETY: allocated above, given up here.
                    unsafe {
                        bytes(block, ksize(block)).fill(0xff);
                        kfree(block);
                    }
                }
            }
            let mut block = kzalloc(20, ZERO).unwrap();
            let mut held = 20;
            // Up and down, inside of classes and across them.
            for size in [25, 21, 32, 40, 33, 64, 90, 70, 96, 128, 10_000, 9_000, 17_000, 30_000] {
                bytes(block, held).fill(0xcd);
                block = krealloc_of(Some(block), size, ZERO);
                assert!(bytes(block, size)[held.min(size)..].iter().all(|&byte| byte == 0), "from {held} to {size}");
                assert!(bytes(block, held.min(size)).iter().all(|&byte| byte == 0xcd), "from {held} to {size}");
                held = size;
            }
            // SAFETY: held, and given up here.
            unsafe { kfree(block) };
        });
    });
}

#[test]
fn without_memory_a_block_stays_as_it_was() {
    in_own_process(|| {
        boot("", |_| {
            let block = kmalloc(100, NOWAIT).unwrap();
            bytes(block, 100).fill(0x77);
            let armed = arm(Plan::From(1)).unwrap();
            // SAFETY: held; on failure it stays ours.
            assert_eq!(unsafe { krealloc(Some(block), 100_000, AllocFlags::NOWARN) }, None);
            assert_eq!(armed.failed(), 1);
            drop(armed);
            // SAFETY: as above.
            assert_eq!(unsafe { krealloc(Some(block), usize::MAX, AllocFlags::NOWARN) }, None);
            assert!(bytes(block, 100).iter().all(|&byte| byte == 0x77));
            // SAFETY: held, and given up here.
            unsafe { kfree(block) };
        });
    });
}

#[test]
fn a_block_that_is_not_aligned_as_asked_for_moves() {
    in_own_process(|| {
        boot("", |_| {
            let blocks = [(); 30].map(|()| kmalloc(96, NOWAIT).unwrap());
            let odd =
                blocks.into_iter().find(|block| !block.as_ptr().addr().is_multiple_of(64)).expect("every other one");
            bytes(odd, 96).fill(0x11);
            // SAFETY: held, and replaced by the answer.
            let even = unsafe { krealloc_aligned(Some(odd), 96, 64, NOWAIT) }.unwrap();
            assert!(even != odd && even.as_ptr().addr().is_multiple_of(64));
            assert!(bytes(even, 96).iter().all(|&byte| byte == 0x11));
        });
    });
}

#[test]
fn size_zero_is_a_block_that_every_call_takes() {
    in_own_process(|| {
        boot("", |cx| {
            assert_eq!(kmalloc(0, NOWAIT), Some(ZERO_SIZE));
            assert_eq!(kzalloc(0, NOWAIT), Some(ZERO_SIZE));
            assert_eq!(kmalloc_nolock(0, NOWAIT), Some(ZERO_SIZE));
            assert_eq!(kvmalloc(0, NOWAIT, cx), Some(ZERO_SIZE));
            assert_eq!(kvmalloc_array(0, 8, NOWAIT, cx), Some(ZERO_SIZE));
            assert_eq!(krealloc_of(None, 0, NOWAIT), ZERO_SIZE);
            assert_eq!(krealloc_of(Some(ZERO_SIZE), 0, NOWAIT), ZERO_SIZE);
            let grown = krealloc_of(Some(ZERO_SIZE), 10, NOWAIT);
            assert_ne!(grown, ZERO_SIZE);
            // SAFETY: all of these take the block of size 0, as often as one likes, and `grown` is given up.
            unsafe {
                assert_eq!(ksize(ZERO_SIZE), 0);
                kfree(ZERO_SIZE);
                kfree_nolock(ZERO_SIZE);
                kfree_sensitive(ZERO_SIZE);
                kvfree(ZERO_SIZE);
                kvfree_sleep(ZERO_SIZE, cx);
                kfree(grown);
            }
            drop(KBox::try_new((), NOWAIT).unwrap());
        });
    });
}

#[test]
fn a_secret_is_wiped_to_the_end_of_its_block() {
    in_own_process(|| {
        boot("", |_| {
            let block = kmalloc(70, NOWAIT).unwrap();
            bytes(block, 96).fill(0xa5);
            // SAFETY: held, and given up here.
            unsafe { kfree_sensitive(block) };
            let again = kmalloc(96, NOWAIT).unwrap();
            assert_eq!(again, block, "the last one freed is the next one taken");
            assert!(bytes(again, 96).iter().all(|&byte| byte == 0));
        });
    });
}

#[test]
fn what_pages_in_a_row_cannot_serve_comes_from_vmalloc_and_goes_back_there() {
    in_own_process(|| {
        boot("", |cx| {
            let (before, _) = mm::vmalloc::usage();
            for (size, paged) in [(100, false), (20_000, false), (5 << 20, true)] {
                let block = kvmalloc(size, ZERO, cx).unwrap();
                assert_eq!(is_vmalloc(block.as_ptr()), paged, "{size} bytes");
                assert!(bytes(block, size).iter().all(|&byte| byte == 0));
                bytes(block, size).fill(0x42);
                let again = kvmalloc_array(size / 4, 4, NOWAIT, cx).unwrap();
                // SAFETY: held, and given up here, the one with interrupts off.
                unsafe {
                    kvfree_sleep(again, cx);
                    let irqs_off = IrqGuard::new(ATOMIC);
                    kvfree(block);
                    drop(irqs_off);
                }
            }
            mm::vmalloc::purge(cx);
            assert_eq!(mm::vmalloc::usage().0, before, "areas");
            // One block of pages is refused, single pages are not.
            let armed = arm(Plan::Nth(1)).unwrap();
            let block = kvmalloc(20_000, NOWAIT, cx).unwrap();
            assert!(armed.failed() == 1 && is_vmalloc(block.as_ptr()));
            drop(armed);
            // SAFETY: held, and given up here.
            unsafe { kvfree(block) };
            assert_eq!(kvmalloc(1 << 40, AllocFlags::NOWARN, cx), None, "more than all memory");
            assert_eq!(kvmalloc_array(usize::MAX, 2, NOWAIT, cx), None);
        });
    });
}
