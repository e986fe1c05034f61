//! Memory: what a million objects cost beside themselves, and whether all of it comes back.

use core::ptr;

use mm::AllocFlags;
use slab::RawCache;
use sync::MaySleep;

use super::slab::{SIZE, cache, destroy};
use crate::{Failure, bench, ensure, ensure_eq};

const OBJECTS: u64 = 1_000_000;
/// Slabs may be so much larger than the objects in them, in thousandths.
const MOST: u64 = 1_030;

/// Allocates [`OBJECTS`] objects, looks at what they lie in, and frees them.
fn fill_and_empty(cache: &'static RawCache) -> Result<(), Failure> {
    let (mut last, mut count) = (ptr::null_mut::<*mut u8>(), 0);
    while count < OBJECTS
        && let Some(object) = cache.alloc(AllocFlags::NOWAIT)
    {
        // SAFETY: a fresh object with room for a pointer: each names the one before.
        unsafe { object.cast().write(last) };
        (last, count) = (object.as_ptr().cast(), count + 1);
    }
    let info = cache.info();
    while let Some(object) = ptr::NonNull::new(last) {
        // SAFETY: written above; allocated above, given up here.
        unsafe {
            last = object.cast().read();
            cache.free(object.cast());
        }
    }
    ensure_eq!(count, OBJECTS, "no memory for more objects");
    let (held, needed) = (info.num_slabs * (info.pagesperslab * arch::PAGE_SIZE) as u64, OBJECTS * SIZE as u64);
    ensure!(held * 1_000 <= needed * MOST, "slabs of {held} bytes for objects of {needed}");
    Ok(())
}

/// Gives all pages back that can be, and says how many are in use then.
fn settle(cache: &'static RawCache, cx: &mut MaySleep) -> Result<usize, Failure> {
    cache.shrink();
    ensure_eq!(cache.info().num_slabs, 0, "slabs without objects stay");
    mm::drain_all(cx);
    Ok(mm::stats::nodes().map(|node| node.in_use()).sum())
}

bench! {
    /// A million objects at once, each allocated and freed; the memory they take is within 3 percent of theirs, and is back
    /// to the page after a shrink.
    fn a_million_objects(b: &mut Bencher) {
        let cache = cache("bench_million")?;
        fill_and_empty(cache)?;
        let before = settle(cache, b.cx)?;
        fill_and_empty(cache)?;
        ensure_eq!(settle(cache, b.cx)?, before, "pages in use after a shrink");
        let mut outcome = Ok(());
        b.samples = 5;
        b.sections(OBJECTS, |_| (), |_, ()| {
            if let Err(failure) = fill_and_empty(cache) {
                outcome = Err(failure);
            }
        });
        outcome?;
        destroy(cache, b.cx)
    }
}
