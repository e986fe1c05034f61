//! Caches that check what is done to them: `slab_debug=`, or [`Layout::debug`](crate::Layout::debug) (M-16).
//!
//! | letter | the cache |
//! |---|---|
//! | `F` | follows its freelists: counters and links are right, nothing is freed twice |
//! | `Z` | has red zones before and behind each object, other ones while it is in use |
//! | `P` | fills free objects and the room between objects, so that writes there are seen |
//! | `U` | remembers who allocated and who freed each object, and how much `kmalloc` was asked for |
//! | `T` | logs every allocation and free |
//! | `A` | may be told to fail (failslab) |
//! | `O` | goes without `Z`, `P` and `U` where these would need slabs of a higher order |
//!
//! A cache with any of F, Z, P, U, T is a *debug cache*. It has no sheaves and is merged with no other: each allocation and
//! each free comes to its slab, where this module looks at it, whatever call it came by. Bulk and prefilled sheaves are
//! filled and emptied object by object, so what lies in one counts as allocated by whoever filled it.
//!
//! | module | what it is |
//! |---|---|
//! | `param` | the command line |
//! | `layout`, `poison`, `track` | what surrounds an object, with what bytes, and who had it |
//! | `call` | frees that are wrong in themselves, also of ordinary caches |
//! | `shadow` | which objects are in use, also of ordinary caches, in builds with assertions |
//! | `waits` | objects that wait for a grace period, also of ordinary caches and large blocks, in the same builds |
//! | `cell` | one object with what surrounds it |
//! | `delay` | objects of type-safe caches, which readers may be looking at when they are freed |
//! | `check` | on the way out of a slab, and on the way in |
//! | `validate`, `traces` | a look at all there is; who has it |
//! | `report` | what is said, kept and counted of what was found |
//!
//! # What becomes of the damage
//! - A free that is wrong in itself (twice, into the middle, of another cache, of no slab) is not carried out.
//! - An object that comes back with damaged red zones or padding is not freed; the bytes are put right.
//! - A slab whose freelist, counters or free objects are damaged is *quarantined*: taken off its list, all its objects
//!   counted as in use, never used again; frees of its objects are ignored. It keeps its cache from being destroyed.
//!
//! - An object that would be handed out while it is in use is left alone, and the allocation fails.
//!
//! In each case the kernel goes on.
//!
//! # Invariants
//! - **DEBUG-1** Freelist and counters of a debug cache's slab change under the list lock of its node only, and so does what
//!   surrounds an object, but for the deferral word. A slab on no list is private to one CPU or quarantined.
//! - **DEBUG-2** The deferral word is `IDLE` unless the object is on a deferred list; whoever puts it there takes
//!   the word by a compare-exchange first. So no object is on these lists twice.
//! - **DEBUG-3** With [`Spin::Never`](crate::Spin) locks are only tried for. What was quarantined is passed over, so a loop over a
//!   list ends.
//!
//! Linux: `alloc_debug_processing`, `free_debug_processing` in `mm/slub.c` (7.x). There the checks of red zones and poison
//! need `F`; here each letter checks what it lays out. Rows: M-16, S5-3, S1-5; what ordinary caches notice, M-21.

use bitflags::bitflags;

mod call;
mod cell;
mod check;
mod delay;
mod layout;
mod param;
mod poison;
mod report;
mod shadow;
mod traces;
mod track;
mod validate;
mod waits;

#[cfg(test)]
mod machine_tests;

pub(crate) use call::{report_double_free, report_no_object};
pub(crate) use layout::Parts;
pub use report::{Cure, Kind, Report, reports, with_reports};
pub(crate) use shadow::init;
pub use traces::Traces;
pub use track::Track;
pub use validate::{Validation, validate_all};
pub use waits::{Given, may_wait, wait_over};
pub(crate) use waits::{sheaf_leaves, sheaf_returns};

use crate::cache::{CacheFlags, Layout};
use crate::order::order_for;

bitflags! {
    /// What a cache checks; see the [module](self).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DebugFlags: u32 {
        /// `F`: freelists and counters.
        const CONSISTENCY = 1 << 0;
        /// `Z`: red zones.
        const RED_ZONE = 1 << 1;
        /// `P`: poison.
        const POISON = 1 << 2;
        /// `U`: who allocated and freed.
        const STORE_USER = 1 << 3;
        /// `T`: a line of the log for each call.
        const TRACE = 1 << 4;
        /// `A`: may be told to fail.
        const FAILSLAB = 1 << 5;
        /// `O`: not at the price of a higher order.
        const NO_HIGHER_ORDER = 1 << 6;
    }
}

impl DebugFlags {
    /// Those that make a debug cache.
    pub const CHECKS: Self =
        Self::CONSISTENCY.union(Self::RED_ZONE).union(Self::POISON).union(Self::STORE_USER).union(Self::TRACE);

    /// Those that need room in each object's place.
    const ROOM: Self = Self::RED_ZONE.union(Self::POISON).union(Self::STORE_USER);

    /// The flag of a letter, small or large.
    const fn of_letter(letter: char) -> Option<Self> {
        Some(match letter.to_ascii_uppercase() {
            'F' => Self::CONSISTENCY,
            'Z' => Self::RED_ZONE,
            'P' => Self::POISON,
            'U' => Self::STORE_USER,
            'T' => Self::TRACE,
            'A' => Self::FAILSLAB,
            'O' => Self::NO_HIGHER_ORDER,
            _ => return None,
        })
    }
}

/// What a cache is to check, and how its objects then lie: what its layout and the command line say, less what `O`
/// forbids. No parts for a cache that is no debug cache.
pub(crate) fn choose(layout: &Layout, align: usize) -> (DebugFlags, Option<Parts>) {
    let asked = layout.debug | param::flags_of(layout.name);
    let kind = layout::Kind {
        sized: layout.flags.contains(CacheFlags::KMALLOC),
        typesafe: layout.flags.contains(CacheFlags::TYPESAFE_BY_RCU),
    };
    let parts = |flags| layout::parts(layout.size, align, kind, flags);
    let grows = order_for(parts(asked).size) > order_for(layout.size);
    let flags = if asked.contains(DebugFlags::NO_HIGHER_ORDER) && grows { asked - DebugFlags::ROOM } else { asked };
    (flags, flags.intersects(DebugFlags::CHECKS).then(|| parts(flags)))
}
