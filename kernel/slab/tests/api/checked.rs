//! The same calls on caches that check everything: none of them is a report.

use arch::hosted::in_own_process;
use grange_slab::constructed::{Construct, CtorCache};
use grange_slab::debug::reports;
use grange_slab::typed::{Cache, TypedLayout};
use grange_slab::{KBox, kfree, kfree_sensitive, kmalloc, krealloc, ksize};
use mm::AllocFlags;

use super::boot;

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;

#[test]
fn every_byte_of_a_resized_block_is_its_holders_and_no_other() {
    in_own_process(|| {
        boot("slab_debug=FZPU", |_| {
            for zero in [AllocFlags::ZERO, NOWAIT] {
                let (mut block, mut held) = (kmalloc(33, zero).unwrap(), 33);
                for size in [40, 64, 20, 21, 65, 3000, 9000, 12_000, 100] {
                    // SAFETY: held, written within its size, and replaced by the answer.
                    unsafe {
                        block.write_bytes(0xdd, held);
                        block = krealloc(Some(block), size, zero).unwrap();
                        assert!(ksize(block) >= size);
                        let kept = core::slice::from_raw_parts(block.as_ptr(), size.min(held));
                        assert!(kept.iter().all(|&byte| byte == 0xdd), "from {held} to {size}");
                        if zero == AllocFlags::ZERO {
                            let added = core::slice::from_raw_parts(block.as_ptr(), size);
                            assert!(added[size.min(held)..].iter().all(|&byte| byte == 0), "from {held} to {size}");
                        }
                    }
                    held = size;
                }
                // SAFETY: held, and given up here.
                unsafe { kfree(block) };
            }
            let secret = kmalloc(50, NOWAIT).unwrap();
            // SAFETY: held, and given up here.
            unsafe {
                secret.write_bytes(0xa5, 50);
                kfree_sensitive(secret);
            }
            drop(KBox::try_new([1_u8; 100], NOWAIT).unwrap());
            assert_eq!(reports(), 0);
        });
    });
}

/// An object that is 7 in every place while it is free.
struct Sevens([u32; 40]);

impl Construct for Sevens {
    fn construct() -> Self {
        Sevens([7; 40])
    }
}

#[test]
fn typed_objects_are_used_again_and_their_caches_destroyed() {
    in_own_process(|| {
        boot("slab_debug=FZPU", |cx| {
            let sevens: CtorCache<Sevens> = CtorCache::create(TypedLayout::new("sevens")).unwrap();
            let words: Cache<[u64; 21]> = Cache::create(TypedLayout::new("words").align(32)).unwrap();
            for _ in 0..3 {
                let mut held: Vec<_> = (0..50).map(|_| sevens.alloc(NOWAIT).unwrap()).collect();
                assert!(held.iter().all(|object| object.0 == [7; 40]), "it keeps its state, checked or not");
                held.iter_mut().for_each(|object| object.0[0] = 7);
                words.free_array(words.alloc_array([[1; 21]; 30], NOWAIT).unwrap());
                let mut promised = words.prefill(4, NOWAIT).unwrap();
                drop([2, 3].map(|n| promised.alloc([n; 21]).unwrap()));
            }
            assert!(sevens.destroy(cx).is_ok() && words.destroy(cx).is_ok());
            assert_eq!(reports(), 0);
        });
    });
}
