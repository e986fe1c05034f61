//! [`ReuseCache`]: a cache that allocates from what waits for a grace period (S3-16).
//!
//! Objects whose readers bear that they change hands ([`slab::typesafe`]) need not wait to be used again, only to be given back
//! to the allocator. So freed ones wait in a tracker, and an allocation looks there first: what it finds is warm, was freed
//! on this CPU, and has cost no grace period. Only what nobody wants again for a grace period goes back.
//!
//! Objects are of two kinds, such as those whose lock counts its readers on each CPU and those whose lock does not. Readers from
//! before may be using the lock, so the kind must not change while they may: there is a tracker for each, and an object
//! becomes of the other kind only by way of the allocator.
//!
//! An allocation asks, in this order:
//! 1. what waits on this CPU, of its kind;
//! 2. the allocator, for an object that nobody has looked at since a grace period;
//! 3. if there is no memory, what waits on any CPU.
//!
//! Answers to the key cache of bcachefs (`fs/bcachefs/btree_key_cache.c`, Linux 6.12).

use mm::AllocFlags;
use slab::constructed::Construct;
use slab::typesafe::{TypesafeBox, TypesafeCache};
use sync::MaySleep;

use super::{GracePeriods, NotMade, Pending, Radix, Store, Waiting};
use crate::head::HasRcuPtr;

/// What a [`ReuseCache`] is of.
pub trait TwoKinds: Construct + HasRcuPtr + Send + Sync + 'static {
    /// Of which kind the object is: 0 or 1.
    fn kind(&self) -> usize;

    /// Makes the object one of a kind. No reader looks at it.
    fn set_kind(&self, kind: usize);
}

/// Where an object was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It waited on this CPU.
    Here,
    /// In the allocator: readers from before are gone.
    Allocator,
    /// It waited on some CPU, and there was no memory.
    Anywhere,
}

/// See the [module](self). It ends with [`exit`](Self::exit).
pub struct ReuseCache<T: TwoKinds, D: GracePeriods = super::TreeRcu, S: Store = Radix> {
    cache: &'static TypesafeCache<T>,
    waiting: [Pending<TypesafeBox<'static, T>, D, S>; 2],
}

impl<T: TwoKinds, D: GracePeriods, S: Store> ReuseCache<T, D, S> {
    /// Puts trackers in front of `cache`, whose readers are those of `domain`.
    ///
    /// Context: task; allocates, sleeps.
    ///
    /// # Errors
    /// As [`Pending::new`].
    pub fn new(cache: &'static TypesafeCache<T>, domain: D, cx: &mut MaySleep) -> Result<Self, NotMade> {
        let name = cache.raw().name();
        let first = Pending::new(name, domain)?;
        let second = match Pending::new(name, domain) {
            Ok(second) => second,
            Err(full) => {
                first.exit(cx);
                return Err(full);
            }
        };
        Ok(Self { cache, waiting: [first, second] })
    }

    /// An object of `kind` as its last holder left it, or as it was constructed; and where it was found. Readers may be looking
    /// at it unless that was the allocator. Nothing if there is no memory and no object waits.
    ///
    /// Context: any but NMI; never sleeps.
    ///
    /// # Panics
    /// If there is no such kind.
    pub fn alloc(&self, kind: usize, flags: AllocFlags) -> Option<(TypesafeBox<'static, T>, Origin)> {
        let waiting = &self.waiting[kind];
        if let Some(object) = waiting.dequeue() {
            return Some((object, Origin::Here));
        }
        if let Some(object) = self.cache.alloc(flags) {
            object.set_kind(kind);
            return Some((object, Origin::Allocator));
        }
        waiting.dequeue_from_all().map(|object| (object, Origin::Anywhere))
    }

    /// Gives an object of the cache back: to the next who wants one of its kind, or after a grace period to the allocator.
    ///
    /// Context: any but NMI.
    pub fn free(&self, object: TypesafeBox<'static, T>) {
        let kind = object.kind();
        self.waiting[kind].enqueue(object).unwrap_or_else(|_| unreachable!("it has a link"));
    }

    /// What waits of a kind.
    ///
    /// Context: any but NMI.
    pub fn waiting(&self, kind: usize) -> Waiting {
        self.waiting[kind].waiting()
    }

    /// Objects of a kind that wait on this CPU.
    ///
    /// Context: any but NMI.
    pub fn waiting_here(&self, kind: usize) -> usize {
        self.waiting[kind].waiting_here()
    }

    /// Waits until all that was freed before and not used again is back in the allocator.
    ///
    /// Context: as [`Pending::flush`].
    pub fn flush(&self, cx: &mut MaySleep) {
        self.waiting.iter().for_each(|waiting| waiting.flush(cx));
    }

    /// Gives everything back to the allocator, and takes the trackers away.
    ///
    /// Context: as [`Pending::exit`].
    pub fn exit(self, cx: &mut MaySleep) {
        self.waiting.into_iter().for_each(|waiting| waiting.exit(cx));
    }
}
