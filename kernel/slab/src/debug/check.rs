//! What a debug cache looks at: objects on their way out of a slab, and on their way in.
//!
//! Context: any but NMI with [`Spin::May`], any with [`Spin::Never`]; all under the list lock of the slab's node (DEBUG-1).

use core::ptr::NonNull;

use mm::AllocFlags;

use super::cell::{Cell, State as Is};
use super::report::{Cure, Fault, Kind, report};
use super::track::Track;
use super::waits::waits;
use super::{DebugFlags, poison};
use crate::Spin;
use crate::cache::RawCache;
use crate::node::Partial;
use crate::slab_ref::{SlabRef, State};
use crate::slow::Taken;

impl RawCache {
    /// Whether this is a debug cache.
    #[inline]
    pub(crate) fn is_checked(&self) -> bool {
        self.debug().intersects(DebugFlags::CHECKS)
    }

    /// Lays out a new slab, before its objects are constructed and linked.
    pub(crate) fn lay_out(&self, slab: SlabRef) {
        let objects = slab.state().objects as usize;
        for object in (0..objects).map(|index| slab.object(index)) {
            let cell = Cell { slab, object };
            cell.lay_out(Is::Free);
            cell.lay_out_deferral();
            cell.set_track(Is::Used, || Track::NONE);
            cell.set_track(Is::Free, || Track::NONE);
        }
        if self.debug().contains(DebugFlags::POISON) {
            slab_rest(slab).fill(poison::UNUSED);
        }
    }

    /// Puts a new slab on its node's list, and takes an object of it.
    pub(crate) fn list_and_pop_checked(&self, taken: Taken, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        let slab = taken.slab;
        let home = self.node(slab.node()).expect("a node with memory has a CacheNode");
        let Some(mut partial) = home.lock(spin) else {
            self.drop_slab(slab, spin);
            return None;
        };
        let old = slab.state();
        let new = State { freelist: taken.head, inuse: old.inuse - taken.count as u32, ..old };
        slab.swap(old, new).expect("a slab that nobody knows changed");
        partial.push_front(slab);
        self.pop_checked(&mut partial, flags)
    }

    /// Takes an object off the first partial slab that is sound.
    pub(crate) fn pop_checked(&self, partial: &mut Partial, flags: AllocFlags) -> Option<NonNull<u8>> {
        loop {
            let slab = partial.first_for(flags)?;
            let old = slab.state();
            if let Some(fault) = self.inspect_next(slab, old) {
                self.quarantine(partial, slab, fault);
                continue;
            }
            let object = NonNull::new(old.freelist).expect("inspected");
            let new = State { freelist: self.link(object), inuse: old.inuse + 1, ..old };
            slab.swap(old, new).expect("DEBUG-1: a slab changed under the list lock");
            if new.freelist.is_null() {
                partial.remove(slab);
                partial.full.push(slab);
            }
            let cell = Cell { slab, object };
            cell.lay_out(Is::Used);
            if let Some(ctor) = self.ctor().filter(|_| self.delays_frees()) {
                ctor(object);
            }
            self.prepare(object);
            cell.set_track(Is::Used, Track::here);
            self.trace("allocated", cell);
            return Some(object);
        }
    }

    /// What is wrong with a slab from which the next object is to be taken.
    fn inspect_next(&self, slab: SlabRef, state: State) -> Option<Fault> {
        let fault = |found| {
            let expected = slab.base() as u64;
            Fault { kind: Kind::Freelist, object: slab.base(), offset: 0, len: 8, found, expected }
        };
        let Some(object) = NonNull::new(state.freelist).filter(|&object| slab.is_object(object)) else {
            return Some(fault(state.freelist as u64));
        };
        let cell = Cell { slab, object };
        self.follow(slab, state, self.depth(state), |_| {}).err().or_else(|| cell.inspect(Is::Free))
    }

    /// How many links of a freelist are looked at on each call: without `F` the first.
    fn depth(&self, state: State) -> u32 {
        if self.debug().contains(DebugFlags::CONSISTENCY) { state.free() } else { state.free().min(1) }
    }

    /// Follows the freelist of a slab over `most` objects, calling `visit` with each. Those are all that the counters speak
    /// of, or fewer; a list that goes round in a circle ends there, too.
    pub(super) fn follow(
        &self,
        slab: SlabRef,
        state: State,
        most: u32,
        mut visit: impl FnMut(NonNull<u8>),
    ) -> Result<(), Fault> {
        let (mut next, mut count) = (state.freelist, 0);
        let mut before = slab.base();
        while let Some(object) = NonNull::new(next) {
            if !slab.is_object(object) {
                let offset = self.link_offset() as isize;
                let (found, expected) = (next as u64, slab.base() as u64);
                return Err(Fault { kind: Kind::Freelist, object: before, offset, len: 8, found, expected });
            }
            if count == most {
                break;
            }
            visit(object);
            (before, next, count) = (next, self.link(object), count + 1);
        }
        let complete = most == state.free();
        if complete && (count != most || !next.is_null()) {
            let (found, expected) = (u64::from(count) + u64::from(!next.is_null()), most.into());
            return Err(Fault { kind: Kind::Counters, object: before, offset: 0, len: 8, found, expected });
        }
        Ok(())
    }

    /// Gives an object back to its slab, if it is one, is in use, and is undamaged; of a type-safe cache after a grace period.
    /// May spin on the list lock. Returns how many pages went back.
    pub(crate) fn give_back_checked(&self, slab: SlabRef, object: NonNull<u8>) -> usize {
        if self.delays_frees() && self.delay_free(slab, object) {
            return 0;
        }
        self.give_back_now(slab, object, false)
    }

    /// Gives an object back for which a grace period has passed (DEBUG-4).
    pub(super) fn finish_free(&self, slab: SlabRef, object: NonNull<u8>) {
        self.give_back_now(slab, object, true);
    }

    fn give_back_now(&self, slab: SlabRef, object: NonNull<u8>, delayed: bool) -> usize {
        let node = self.node(slab.node()).expect("a node with memory has a CacheNode");
        let mut partial = node.lock(Spin::May).expect("waited for");
        if delayed {
            // Under the lock: a second free finds the object either waiting or on its freelist.
            self.release_deferral(object);
        }
        if slab.is_frozen() {
            return 0;
        }
        let old = slab.state();
        if let Some(fault) = self.inspect_freed(slab, object, old) {
            match fault.kind {
                Kind::Freelist | Kind::Counters => self.quarantine(&mut partial, slab, fault),
                _ => {
                    report(Some(self), fault, Cure::NotFreed);
                    self.put_right(slab, object, fault);
                }
            }
            return 0;
        }
        let cell = Cell { slab, object };
        self.trace("freed", cell);
        cell.lay_out(Is::Free);
        self.wipe_freed(object);
        if !delayed {
            cell.set_track(Is::Free, Track::here);
        }
        self.set_link(object, old.freelist);
        let new = State { freelist: object.as_ptr(), inuse: old.inuse - 1, ..old };
        slab.swap(old, new).expect("DEBUG-1: a slab changed under the list lock");
        let was_full = old.freelist.is_null();
        if was_full {
            partial.full.remove(slab);
        }
        if !was_full && new.inuse != 0 {
            return 0;
        }
        self.relist(slab, partial, was_full, new.inuse == 0)
    }

    /// What is wrong with the free of `object`.
    pub(super) fn inspect_freed(&self, slab: SlabRef, object: NonNull<u8>, state: State) -> Option<Fault> {
        if !slab.is_object(object) {
            return Some(Fault::of_address(slab, object));
        }
        let cell = Cell { slab, object };
        let mut is_free = cell.is_deferred();
        match self.follow(slab, state, self.depth(state), |free| is_free |= free == object) {
            Err(fault) => Some(fault),
            Ok(()) if is_free => Some(Fault::of_call(Kind::DoubleFree, object)),
            Ok(()) if cfg!(debug_assertions) && waits(object) => Some(Fault::of_call(Kind::FreedWaiting, object)),
            Ok(()) => cell.inspect(Is::Used),
        }
    }

    /// Restores what a fault that was reported has damaged around an object in use.
    fn put_right(&self, slab: SlabRef, object: NonNull<u8>, fault: Fault) {
        if matches!(fault.kind, Kind::LeftRedZone | Kind::RightRedZone | Kind::Padding) {
            let cell = Cell { slab, object };
            cell.red_zones(cell.asked(), Is::Used);
            cell.pad();
        }
    }

    /// Reports `fault` and takes the slab out of use.
    fn quarantine(&self, partial: &mut Partial, slab: SlabRef, fault: Fault) {
        report(Some(self), fault, Cure::Quarantined);
        if slab.is_on_partial() {
            partial.remove(slab);
        } else {
            partial.full.remove(slab);
        }
        slab.freeze();
    }

    /// Whether a slab without users is undamaged, so that its pages may go back; else it is taken out of use.
    pub(crate) fn may_drop(&self, slab: SlabRef) -> bool {
        let state = slab.state();
        let objects = (0..state.objects as usize).map(|index| slab.object(index));
        let in_object = objects.map(|object| Cell { slab, object }).find_map(|cell| cell.inspect(Is::Free));
        let fault = in_object.or_else(|| inspect_rest(slab));
        if let Some(fault) = fault {
            report(Some(self), fault, Cure::Quarantined);
            slab.freeze();
        }
        fault.is_none()
    }

    fn trace(&self, what: &str, cell: Cell) {
        if self.debug().contains(DebugFlags::TRACE) {
            log::info!("TRACE {} {what} {:p}: {cell}, {}", self.name(), cell.object, Track::here());
        }
    }

    /// Logs who allocated `object`, which is in use, if the cache remembers it.
    pub(crate) fn log_allocation(&self, slab: SlabRef, object: NonNull<u8>) {
        let (allocated, _) = Cell { slab, object }.tracks();
        if allocated.is_some() {
            log::error!("  allocated {allocated}");
        }
    }

    /// Remembers that the user of `object`, just allocated from this cache, asked for `size` bytes: what is behind them is
    /// red zone. Where a lock may only be tried for and is busy, all of the object stays the user's.
    pub(crate) fn note_asked(&self, object: NonNull<u8>, size: usize, spin: Spin) {
        if self.parts().is_some_and(|parts| parts.asked.is_some())
            && let Some(cell) = Cell::of(object)
            && let Some(node) = self.node(cell.slab.node())
            && let Some(_partial) = node.lock(spin)
        {
            cell.set_asked(size);
            cell.red_zones(size, Is::Used);
        }
    }

    /// Bytes of `object`, which is in use, that its user may write.
    pub(crate) fn usable(&self, object: NonNull<u8>) -> usize {
        match self.parts().and_then(|_| Cell::of(object)) {
            Some(cell) => cell.asked(),
            None => self.object_size(),
        }
    }
}

/// What is wrong with the bytes of a debug cache's slab behind its last object.
pub(super) fn inspect_rest(slab: SlabRef) -> Option<Fault> {
    let (cache, rest) = (slab.cache(), slab_rest(slab));
    let damage = poison::check(rest, poison::UNUSED).filter(|_| cache.debug().contains(DebugFlags::POISON))?;
    let last = slab.object(slab.state().objects as usize - 1);
    // SAFETY: both lie in the slab.
    let offset = unsafe { rest.as_ptr().offset_from(last.as_ptr()) } + damage.at as isize;
    let (found, expected) = (damage.found.into(), damage.expected.into());
    Some(Fault { kind: Kind::Padding, object: last.as_ptr(), offset, len: damage.len, found, expected })
}

/// The bytes of a slab behind its last object.
fn slab_rest<'a>(slab: SlabRef) -> &'a mut [u8] {
    let bytes = arch::PAGE_SIZE << slab.order();
    let used = slab.state().objects as usize * slab.cache().size();
    // SAFETY: the slab's own pages, of which nobody uses this part.
    unsafe { core::slice::from_raw_parts_mut(slab.base().add(used), bytes - used) }
}
