//! Many values at once.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use arch::hosted::in_own_process;
use grange_slab::OutOfMemory;
use grange_slab::typed::{Cache, TypedLayout};
use mm::AllocFlags;
use mm::inject::{Plan, arm};

use super::{Dropped, boot};

const NOWAIT: AllocFlags = AllocFlags::NOWAIT;

#[test]
fn promised_values_need_no_memory() {
    in_own_process(|| {
        boot("", |cx| {
            let words: Cache<[u64; 131]> = Cache::create(TypedLayout::new("words")).unwrap();
            assert!(words.prefill(0, NOWAIT).is_none());
            let mut few = words.prefill_sleep(5, NOWAIT, cx).unwrap();
            let mut many = words.prefill(500, NOWAIT).unwrap();
            let armed = arm(Plan::From(1)).unwrap();
            let held: Vec<_> = (0..500).map(|n| many.alloc([n; 131]).unwrap()).collect();
            assert_eq!(many.alloc([7; 131]).unwrap_err(), OutOfMemory([7; 131]));
            assert!(held.iter().enumerate().all(|(n, word)| **word == [n as u64; 131]));
            let [_, _] = [1, 2].map(|n| few.alloc([n; 131]).unwrap());
            let few = few.refill(3, NOWAIT).expect("three are left");
            let few = few.refill(2000, AllocFlags::NOWARN).expect_err("no memory for so many");
            drop(armed);
            let mut few = few.refill(600, NOWAIT).unwrap();
            (0..600).for_each(|n| drop(few.alloc([n; 131]).unwrap()));
            drop((held, few, many));
            assert!(words.destroy(cx).is_ok());
        });
    });
}

#[test]
fn an_array_of_values_is_allocated_whole_or_comes_back() {
    in_own_process(|| {
        boot("", |cx| {
            let values: Cache<Dropped> = Cache::create(TypedLayout::new("dropped")).unwrap();
            let drops = Arc::new(AtomicUsize::new(0));
            let value = |n: usize| Dropped(drops.clone(), [n as u64; 20]);
            let boxes: [_; 100] = values.alloc_array(core::array::from_fn(value), NOWAIT).unwrap();
            assert!(boxes.iter().enumerate().all(|(n, value)| value.1 == [n as u64; 20]));
            let armed = arm(Plan::From(1)).unwrap();
            let OutOfMemory(back) =
                values.alloc_array::<200>(core::array::from_fn(value), AllocFlags::NOWARN).unwrap_err();
            assert_eq!((back[199].1, drops.load(Relaxed)), ([199; 20], 0));
            drop((armed, back));
            assert_eq!(drops.load(Relaxed), 200);
            values.free_array(boxes);
            assert_eq!(drops.load(Relaxed), 300);
            assert!(values.destroy(cx).is_ok(), "every object is back");
        });
    });
}

#[test]
fn values_without_size_are_always_there() {
    in_own_process(|| {
        boot("", |_| {
            let armed = arm(Plan::From(1)).unwrap();
            let nothings: Cache<()> = Cache::create(TypedLayout::new("nothing")).unwrap();
            let mut promised = nothings.prefill(1, NOWAIT).unwrap().refill(1000, NOWAIT).unwrap();
            (0..10).for_each(|_| drop(promised.alloc(()).unwrap()));
            nothings.free_array(nothings.alloc_array([(); 50], NOWAIT).unwrap());
            assert_eq!(armed.seen(), 0);
        });
    });
}
