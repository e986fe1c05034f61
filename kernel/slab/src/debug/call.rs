//! Frees that are wrong in themselves, to whatever cache: what is asked before an object goes anywhere.
//!
//! | | in builds with assertions | in others |
//! |---|---|---|
//! | debug caches | at the slab, with all that is known there | the same |
//! | ordinary caches | on every free, also whether the object is in use ([`shadow`](super::shadow)) | of another node, or where this CPU's sheaves cannot take it, the cache; on the way to its slab the place there, too; out of a sheaf that is flushed the cache alone |
//!
//! In each case the free is reported and not carried out: the object leaks, and nothing is corrupted (M-21). The
//! exception is an ordinary cache of a build without assertions: what sheaves take of this CPU's node is not looked at,
//! and may come out of them again before it meets its slab. To look there would cost every free another look-up. There, too, [`RawCache::free`] of an address that is no
//! memory at all is a page fault; [`kfree`](crate::kfree) reports it.

use core::ptr::{self, NonNull};

use super::report::{Cure, Fault, Kind, report};
use super::waits::waits;
use crate::cache::RawCache;
use crate::slab_ref::SlabRef;

impl Fault {
    /// A free of `object` that is wrong in itself.
    pub(super) fn of_call(kind: Kind, object: NonNull<u8>) -> Self {
        Self { kind, object: object.as_ptr(), offset: 0, len: 0, found: 0, expected: 0 }
    }

    /// A free of `address`, which lies in `slab` and begins no object of it.
    pub(super) fn of_address(slab: SlabRef, address: NonNull<u8>) -> Self {
        let object = slab.object_at(address.as_ptr());
        // SAFETY: both lie in the slab.
        let offset = unsafe { address.offset_from(object) };
        Self { offset, ..Self::of_call(Kind::InsideObject, object) }
    }
}

/// Reports a free of `address`, which lies in no slab.
#[cold]
pub(crate) fn report_no_object(cache: Option<&RawCache>, address: NonNull<u8>) {
    report(cache, Fault::of_call(Kind::NoObject, address), Cure::NotFreed);
}

/// Reports a second free of `object`, found by `cache`.
#[cold]
pub(crate) fn report_double_free(cache: &RawCache, object: NonNull<u8>) {
    report(Some(cache), Fault::of_call(Kind::DoubleFree, object), Cure::NotFreed);
}

impl RawCache {
    /// Whether `object` in `slab` may be freed to this cache, asked once on every free: after it the object counts as free.
    /// Reports what may not.
    ///
    /// Context: any.
    #[inline(always)]
    pub(crate) fn may_free(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        !cfg!(debug_assertions) || (self.is_mine(slab, object) && (self.is_checked() || self.mark_free(object)))
    }

    /// The same for an object whose slab is not known yet; for any cache that is not told.
    ///
    /// Context: any.
    #[inline(always)]
    pub(crate) fn may_free_at(cache: Option<&RawCache>, object: NonNull<u8>) -> bool {
        !cfg!(debug_assertions) || Self::may_free_looked_up(cache, object)
    }

    #[inline(never)]
    fn may_free_looked_up(cache: Option<&RawCache>, object: NonNull<u8>) -> bool {
        match (SlabRef::of(object), cache) {
            (Some(slab), cache) => cache.unwrap_or(slab.cache()).may_free(slab, object),
            // No slab: a large block, perhaps.
            (None, None) => Self::may_free_large(object),
            (None, Some(_)) => {
                report_no_object(cache, object);
                false
            }
        }
    }

    /// Whether `block`, a large one, may be freed, asked in builds with assertions. Reports one that waits for a grace period.
    ///
    /// Context: any.
    pub(crate) fn may_free_large(block: NonNull<u8>) -> bool {
        let free = !cfg!(debug_assertions) || !waits(block);
        if !free {
            report(None, Fault::of_call(Kind::FreedWaiting, block), Cure::NotFreed);
        }
        free
    }

    /// Whether `object` in `slab` is one of this cache's, asked on the slow path.
    #[inline(never)]
    pub(crate) fn is_mine(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        if !self.is_my_slab(slab, object) {
            return false;
        }
        // Objects of debug caches are looked at under the list lock.
        let sound = self.is_checked() || slab.is_object(object);
        if !sound {
            report(Some(self), Fault::of_address(slab, object), Cure::NotFreed);
        }
        sound
    }

    fn is_my_slab(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        let mine = ptr::eq(slab.cache(), self);
        if !mine {
            report(Some(self), Fault::of_call(Kind::WrongCache, object), Cure::NotFreed);
        }
        mine
    }

    /// The slab of `object`, which comes out of one of this cache's sheaves; nothing, and a report, if it does not
    /// belong there.
    pub(crate) fn slab_of_mine(&self, object: NonNull<u8>) -> Option<SlabRef> {
        match SlabRef::of(object) {
            Some(slab) => self.is_my_slab(slab, object).then_some(slab),
            None => {
                report_no_object(Some(self), object);
                None
            }
        }
    }

    /// Whether `object` in `slab`, which the caller gives up, may be put on a deferred list. Of a debug cache this takes its
    /// deferral word (DEBUG-2), and reports where that is not to be had.
    pub(crate) fn may_defer(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        if !self.is_checked() {
            return true;
        }
        let fault = if !slab.is_object(object) {
            Fault::of_address(slab, object)
        } else if !self.claim_deferral(object) {
            Fault::of_call(Kind::DoubleFree, object)
        } else {
            return true;
        };
        report(Some(self), fault, Cure::NotFreed);
        false
    }
}
