//! What can be changed of a cache while everybody uses it: sheaf capacity, barn limits, and what slabs are kept.
//!
//! The capacity is changed in three steps, each of which leaves the cache whole:
//! 1. the cache's capacity is written: sheaves that are made from here on have it;
//! 2. each barn is told, and gives out all that it has, under one hold of its lock (BARN-3);
//! 3. each CPU gives up its sheaves, in an interrupt that finds nobody using them (as every flush).
//!
//! Why no sheaf of the old capacity is in use after it:
//! - **TUNE-1** A barn that was told takes none (BARN-3).
//! - **TUNE-2** A CPU that was through step 3 has none and gets none: from barns it cannot, they were told before; from
//!   elsewhere only if it looks at the capacity in the section of the sheaf lock in which it installs the sheaf (SHEAF-5), and
//!   every section that began after step 3 sees what step 1 wrote, as the interrupt came in between.
//! - **TUNE-3** No CPU comes or goes meanwhile ([`keep_cpus`]): one that goes takes its sheaves past step 3.
//!
//! A sheaf of the old capacity that waits for a grace period, or that a caller has prefilled, is emptied into slabs when
//! it comes back.
//!
//! Everything here: context task, sleeps; concurrent calls wait for each other.
//!
//! Linux has fixed capacities and limits, and `min_partial` and `remote_node_defrag_ratio` in sysfs (`mm/slub.c`, 7.x). Rows:
//! M-1, M-4, S5-14, S5-15.

use core::fmt;

use sched::Mutex;
use sched::hotplug::keep_cpus;
use sync::{LockClass, MaySleep};

use crate::cache::{CacheFlags, RawCache};
use crate::sheaf::{self, MAX_CAPACITY};

/// One change at a time, of whatever cache. Inside CPU hotplug and `slab.walk`, outside all other locks of this storey
/// (M-10).
static CLASS: LockClass = LockClass::new("slab.tune");
static TUNE: Mutex<()> = Mutex::new((), &CLASS);

/// The most that [`RawCache::set_remote_node_defrag_ratio`] takes: always.
pub const MAX_DEFRAG_RATIO: u32 = 1024;

/// Why something was not changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TuneError {
    /// More objects than a sheaf can hold.
    Capacity(usize),
    /// The cache cannot have sheaves: it is what sheaves are made of, a debug cache, or one that zeroes objects.
    NoSheaves(&'static str),
    /// More than [`MAX_DEFRAG_RATIO`].
    DefragRatio(u32),
}

impl fmt::Display for TuneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(objects) => {
                write!(f, "sheaf capacity {objects}: 1 to {MAX_CAPACITY}, or 0 for no sheaves")
            }
            Self::NoSheaves(name) => write!(f, "{name} cannot have sheaves: only capacity 0"),
            Self::DefragRatio(ratio) => write!(f, "remote_node_defrag_ratio {ratio}: 0 to {MAX_DEFRAG_RATIO}"),
        }
    }
}

impl core::error::Error for TuneError {}

impl RawCache {
    /// Gives the cache sheaves of `objects` objects, or of as many more as fill the power of two that such a sheaf lies in
    /// (M-1); 0 switches them off. Returns the new capacity. All sheaves of the old one are emptied into slabs; no object
    /// that anybody holds is touched.
    ///
    /// Context: task, sleeps. Nobody destroys the cache meanwhile: of one found by its name that is so under
    /// [`registry::with`](crate::registry::with).
    ///
    /// # Errors
    /// [`TuneError::Capacity`], [`TuneError::NoSheaves`]; nothing has changed.
    pub fn set_capacity(&'static self, objects: usize, cx: &mut MaySleep) -> Result<usize, TuneError> {
        cx.assert_may_sleep();
        if objects > MAX_CAPACITY {
            return Err(TuneError::Capacity(objects));
        }
        if objects != 0
            && (self.flags().contains(CacheFlags::NO_SHEAVES)
                || self.is_checked()
                || self.hardening().sees_each_object())
        {
            return Err(TuneError::NoSheaves(self.name()));
        }
        let capacity = sheaf::round_capacity(objects);
        // TUNE-3.
        let _cpus = keep_cpus(cx);
        let _tune = TUNE.lock(cx);
        if capacity != self.sheaf_capacity() {
            self.store_sheaf_capacity(capacity);
            for node in self.nodes() {
                self.put_away_chains(node.barn.set_capacity(capacity));
            }
            self.flush_cpus();
        }
        Ok(capacity)
    }

    /// Has each barn keep at most `full` full and `empty` empty sheaves, until [`RawCache::reset_barn_limits`]. What is over
    /// that goes to slabs now. The limits are soft: they may be overshot for a moment by what CPUs bring at once (BARN-2).
    ///
    /// Context: task, sleeps.
    pub fn set_barn_limits(&'static self, full: u32, empty: u32, cx: &mut MaySleep) {
        self.change_barn_limits(Some((full, empty)), cx);
    }

    /// Has the barns' limits follow the CPUs of their nodes again, as in a new cache.
    ///
    /// Context: task, sleeps.
    pub fn reset_barn_limits(&'static self, cx: &mut MaySleep) {
        self.change_barn_limits(None, cx);
    }

    fn change_barn_limits(&'static self, limits: Option<(u32, u32)>, cx: &mut MaySleep) {
        let _tune = TUNE.lock(cx);
        for node in self.nodes() {
            self.put_away_chains(node.barn.set_limits(limits));
        }
    }

    /// A CPU went or came: barn limits that nobody has set follow.
    pub(crate) fn follow_cpus(&self) {
        for node in self.nodes() {
            self.put_away_chains(node.barn.follow_cpus());
        }
    }

    /// How many slabs each node keeps although they are empty: a free that empties one more gives its pages back. Those that
    /// are there already stay until [`RawCache::shrink`].
    ///
    /// Context: any.
    pub fn set_min_partial(&self, slabs: usize) {
        self.store_min_partial(slabs);
    }

    /// Of [`MAX_DEFRAG_RATIO`] refills that find no partial slab on their own node, how many look at other nodes' before they
    /// ask for pages (M-8).
    ///
    /// Context: any.
    ///
    /// # Errors
    /// [`TuneError::DefragRatio`].
    pub fn set_remote_node_defrag_ratio(&self, ratio: u32) -> Result<(), TuneError> {
        if ratio > MAX_DEFRAG_RATIO {
            return Err(TuneError::DefragRatio(ratio));
        }
        self.store_remote_node_defrag_ratio(ratio);
        Ok(())
    }
}

#[cfg(test)]
#[path = "tune_tests.rs"]
pub(crate) mod tests;
