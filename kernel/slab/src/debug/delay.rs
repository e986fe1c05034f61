//! Objects of type-safe caches, freed: each waits for a grace period of its own before anything is done to it (M-13).
//!
//! An ordinary type-safe cache hands a freed object out again at once, so its content stays, and nobody can tell a reader who
//! has the right to look from one who has not. A debug cache gives the object up in two steps:
//!
//! 1. the free is looked at as that of any object, and remembered; a second one is found while the first is under way,
//!    by the deferral word (DEBUG-2). The object is neither changed nor handed out;
//! 2. after a grace period no reader can have found it. It is looked at once more, poisoned with `P`, its red zones show
//!    that it is free, and it goes to its slab. Who writes to it now is found as with other caches.
//!
//! Poison overwrites what the constructor made, so the constructor runs on each allocation instead of once for each slab.
//!
//! The callback lies beside the object (`layout`), so that nothing is allocated. The cache is not gone before: destroying it
//! waits for all callbacks before it counts what is left, and for the pages after that.
//!
//! Invariant **DEBUG-4** An object with a callback under way has its deferral word taken, and is on no freelist.
//!
//! Linux: `CONFIG_SLUB_RCU_DEBUG` (`slab_free_after_rcu_debug` in `mm/slub.c`, 7.x), for KASAN, with an allocation for each free.

use core::ptr::NonNull;

use sync::{CallbackHead, bug};

use super::cell::{Cell, State as Is};
use super::track::Track;
use crate::Spin;
use crate::cache::{CacheFlags, RawCache};
use crate::slab_ref::SlabRef;

impl RawCache {
    /// Whether freed objects wait for a grace period, and are constructed when they are allocated.
    pub(crate) fn delays_frees(&self) -> bool {
        self.is_checked() && self.flags().contains(CacheFlags::TYPESAFE_BY_RCU)
    }

    /// Step 1; false if the free is wrong, which is left to be found and reported by who frees at once.
    ///
    /// Context: any but NMI.
    pub(super) fn delay_free(&self, slab: SlabRef, object: NonNull<u8>) -> bool {
        let Some(at) = self.parts().and_then(|parts| parts.callback) else { return false };
        let cell = Cell { slab, object };
        {
            let node = self.node(slab.node()).expect("a node with memory has a CacheNode");
            let _partial = node.lock(Spin::May).expect("waited for");
            if slab.is_frozen()
                || self.inspect_freed(slab, object, slab.state()).is_some()
                || !self.claim_deferral(object)
            {
                return false;
            }
            cell.set_track(Is::Free, Track::here);
        }
        if bug!("typesafe.no_delay", "an object of a type-safe debug cache is free at once", "slab_debug.*type_safe*") {
            self.finish_free(slab, object);
            return true;
        }
        // SAFETY: inside the object's place, laid out for it; whoever has the deferral word uses it (DEBUG-4).
        let head = unsafe { object.add(at) }.cast::<CallbackHead>();
        // SAFETY: the object was given up, its place stays while it is not on a freelist, and the function is made for it.
        unsafe {
            head.write(CallbackHead::new());
            self.call_after_readers(head.as_ptr(), after_grace_period);
        }
        true
    }
}

/// Step 2.
unsafe fn after_grace_period(head: *mut CallbackHead) {
    let head = NonNull::new(head).expect("a callback has a head");
    let slab = SlabRef::of(head.cast()).expect("DEBUG-4: an object that waits lies in its slab");
    let cache = slab.cache();
    let at = cache.parts().and_then(|parts| parts.callback).expect("only such objects wait");
    // SAFETY: the head was found by this distance in step 1.
    let object = unsafe { head.cast::<u8>().sub(at) };
    cache.finish_free(slab, object);
}
