//! Allocating in a thread that may wait: reclaim, and try again.
//!
//! With [`AllocFlags::MAY_SLEEP`], an allocation for which there is no memory asks the [shrinkers](mm::shrinker) in growing
//! effort, the last of which waits for what comes back only after a grace period, and tries again after each. Without
//! the flag these calls are those that do not wait. The token is what makes sleeping legal, the flag what asks for it: so a
//! caller with the token can pass on the flags of its own caller.
//!
//! Linux: `__GFP_DIRECT_RECLAIM` (`mm/page_alloc.c`, 7.x), which takes the caller's word for the context.

use core::ptr::NonNull;

use arch::PAGE_SIZE;
use mm::{AllocFlags, shrinker};
use sync::MaySleep;

use crate::Spin;
use crate::cache::RawCache;
use crate::kmalloc;

impl RawCache {
    /// Allocates an object; reclaims memory before it gives up, if the flags have [`AllocFlags::MAY_SLEEP`].
    ///
    /// Context: thread that may sleep, with no lock held that a shrinker takes. As quick as [`RawCache::alloc`] while there
    /// is memory.
    ///
    /// ```no_run
    /// # fn example(cache: &grange_slab::RawCache, cx: &mut sync::MaySleep) -> Option<core::ptr::NonNull<u8>> {
    /// cache.alloc_sleep(mm::AllocFlags::MAY_SLEEP | mm::AllocFlags::ZERO, cx)
    /// # }
    /// ```
    pub fn alloc_sleep(&self, flags: AllocFlags, cx: &mut MaySleep) -> Option<NonNull<u8>> {
        cx.assert_may_sleep();
        let attempt = || self.alloc(flags | AllocFlags::NOWARN);
        attempt().or_else(|| self.reclaim_for(flags, cx, attempt))
    }

    #[cold]
    fn reclaim_for<T>(&self, flags: AllocFlags, cx: &mut MaySleep, attempt: impl FnMut() -> Option<T>) -> Option<T> {
        let got = flags
            .contains(AllocFlags::MAY_SLEEP)
            .then(|| shrinker::reclaim_until(1 << self.orders().minimum, cx, attempt))
            .flatten();
        if got.is_none() {
            mm::oom::warn_object(self.name(), self.size(), None, flags);
        }
        got
    }
}

/// [`kmalloc`](crate::kmalloc()) in a thread that may sleep; see [`RawCache::alloc_sleep`].
///
/// Context: thread that may sleep, with no lock held that a shrinker takes.
pub fn kmalloc_sleep(size: usize, flags: AllocFlags, cx: &mut MaySleep) -> Option<NonNull<u8>> {
    match size {
        0 => Some(kmalloc::ZERO_SIZE),
        1..=kmalloc::MAX_CACHED => {
            let cache = kmalloc::cache_for(size);
            cache.alloc_sleep(flags, cx).inspect(|&object| cache.note_asked(object, size, Spin::May))
        }
        _ => kmalloc::large_block(size, PAGE_SIZE, |order| mm::alloc_pages_sleep(order, None, flags, cx).ok()),
    }
}
