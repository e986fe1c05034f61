//! A look at all slabs of a cache, while it is in use: what `slab CACHE validate` does.
//!
//! Of a debug cache each object is looked at, those in use included; of another cache the freelists of its partial slabs,
//! since nothing else is on a list. What is found is reported and counted, and left as it is: whoever allocates or frees
//! there next takes care of it. Slabs that are quarantined already are on no list and are not seen.
//!
//! Context: any but NMI. A node's list lock is held over all of its slabs.
//!
//! Linux: `validate_slab_cache` in `mm/slub.c` (7.x).

use core::ops::{Add, AddAssign};

use sync::MaySleep;

use super::cell::{Cell, State as Is};
use super::check::inspect_rest;
use super::report::{Cure, Fault, report};
use crate::Spin;
use crate::cache::RawCache;
use crate::order::MAX_OBJECTS;
use crate::registry;
use crate::slab_ref::{SlabRef, State};

/// What was looked at, and how much of it is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "whether anything is wrong is in here"]
pub struct Validation {
    /// Slabs.
    pub slabs: u64,
    /// Objects: all of a debug cache's, else those on freelists.
    pub objects: u64,
    /// Objects, freelists and slabs that are damaged.
    pub errors: u64,
}

impl Add for Validation {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            slabs: self.slabs + other.slabs,
            objects: self.objects + other.objects,
            errors: self.errors + other.errors,
        }
    }
}

impl AddAssign for Validation {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Which objects of a slab are free.
pub(super) type IsFree = [u64; MAX_OBJECTS / 64];

impl RawCache {
    /// Looks at all slabs of this cache.
    ///
    /// Context: any but NMI, interrupts off for as long as a node's slabs take.
    pub fn validate(&self) -> Validation {
        let mut seen = Validation::default();
        for node in self.nodes() {
            let partial = node.lock(Spin::May).expect("waited for");
            for slab in partial.iter().chain(partial.full.iter()) {
                seen += self.validate_slab(slab);
            }
        }
        seen
    }

    /// One slab, under its node's list lock.
    fn validate_slab(&self, slab: SlabRef) -> Validation {
        let state = settled(slab);
        let mut is_free: IsFree = [0; _];
        let followed = self.follow(slab, state, state.free(), |object| {
            let index = (object.addr().get() - slab.base().addr()) / self.size();
            is_free[index / 64] |= 1 << (index % 64);
        });
        let mut seen = Validation { slabs: 1, objects: state.free().into(), errors: 0 };
        if let Err(fault) = followed {
            seen.errors += self.tell(fault);
        } else if self.is_checked() {
            seen.objects = state.objects.into();
            for index in 0..state.objects as usize {
                let is = if is_free[index / 64] >> (index % 64) & 1 != 0 { Is::Free } else { Is::Used };
                let cell = Cell { slab, object: slab.object(index) };
                seen.errors += cell.inspect(is).map_or(0, |fault| self.tell(fault));
            }
            seen.errors += inspect_rest(slab).map_or(0, |fault| self.tell(fault));
        }
        seen
    }

    fn tell(&self, fault: Fault) -> u64 {
        report(Some(self), fault, Cure::None);
        1
    }
}

/// Freelist and counters that belong together. Frees only ever push, so the list below stays as it is while the lock is
/// held (SLAB-3).
pub(super) fn settled(slab: SlabRef) -> State {
    let mut state = slab.state();
    while let Err(now) = slab.swap(state, state) {
        state = now;
    }
    state
}

/// Looks at all slabs of all caches.
///
/// Context: task; sleeps.
pub fn validate_all(cx: &mut MaySleep) -> Validation {
    let mut seen = Validation::default();
    registry::for_each_unlocked(cx, |cache| seen += cache.validate());
    seen
}
