//! A list of held locks, of a CPU or of a thread; see the parent module.

use core::{
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering},
};

use super::{HeldLock, LockClass};

/// Locks one CPU (over all contexts), or one thread, can hold at once.
pub(super) const MAX_HELD: usize = 32;

/// Stands in `Slot::class` for a lock that was released while a later one is still held.
static HOLE: LockClass = LockClass::new("(released)");

/// Changed by its owner alone, in any context; read by anybody (`LO-1`).
#[derive(Debug)]
pub(super) struct HeldList {
    /// Slots in use.
    depth: AtomicU32,
    slots: [Slot; MAX_HELD],
}

/// One held lock.
#[derive(Debug)]
struct Slot {
    /// Null at or above the depth, and while the slot is being filled; [`HOLE`] for a lock that is gone. Written last.
    class: AtomicPtr<LockClass>,
    address: AtomicUsize,
    place: AtomicPtr<Location<'static>>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            class: AtomicPtr::new(ptr::null_mut()),
            address: AtomicUsize::new(0),
            place: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn get(&self) -> Option<HeldLock> {
        // Acquire: pairs with the release in `push`: address and place are this lock's, or a later one's.
        let class = self.class.load(Ordering::Acquire);
        if ptr::eq(class, &HOLE) {
            return None;
        }
        // SAFETY: null, or a static.
        let class = unsafe { class.as_ref() }?;
        // SAFETY: written before the class, and a static; null where there never was a lock.
        let place = unsafe { self.place.load(Ordering::Relaxed).as_ref() }?;
        Some(HeldLock { class, address: self.address.load(Ordering::Relaxed), place })
    }

    fn is_hole(&self) -> bool {
        ptr::eq(self.class.load(Ordering::Relaxed), &HOLE)
    }
}

impl HeldList {
    pub(super) const fn new() -> Self {
        Self { depth: AtomicU32::new(0), slots: [const { Slot::new() }; MAX_HELD] }
    }

    /// Adds a lock; false if there is no room.
    pub(super) fn push(&self, lock: HeldLock) -> bool {
        if self.depth.load(Ordering::Relaxed) as usize >= MAX_HELD {
            return false;
        }
        let slot = &self.slots[self.depth.fetch_add(1, Ordering::Relaxed) as usize];
        slot.address.store(lock.address, Ordering::Relaxed);
        slot.place.store(ptr::from_ref(lock.place).cast_mut(), Ordering::Relaxed);
        // Release: pairs with the acquire in `Slot::get`.
        slot.class.store(ptr::from_ref(lock.class).cast_mut(), Ordering::Release);
        true
    }

    /// Takes a lock out; false if it is not there.
    pub(super) fn pop(&self, address: usize) -> bool {
        let depth = self.depth.load(Ordering::Relaxed) as usize;
        let Some(slot) =
            self.slots[..depth].iter().rfind(|slot| slot.get().is_some_and(|held| held.address == address))
        else {
            return false;
        };
        slot.class.store(ptr::from_ref(&HOLE).cast_mut(), Ordering::Relaxed);
        // Trim: the slot reads null before the depth falls below it (`LO-1`).
        loop {
            let depth = self.depth.load(Ordering::Relaxed);
            if depth == 0 || !self.slots[depth as usize - 1].is_hole() {
                return true;
            }
            self.slots[depth as usize - 1].class.store(ptr::null_mut(), Ordering::Relaxed);
            // An interrupt since the look at the slot may have trimmed this hole already: then the depth has changed,
            // and it must not fall twice.
            let _ = self.depth.compare_exchange(depth, depth - 1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Calls `f` with each lock, oldest first.
    pub(super) fn for_each(&self, f: impl FnMut(HeldLock)) {
        let depth = (self.depth.load(Ordering::Relaxed) as usize).min(MAX_HELD);
        self.slots[..depth].iter().filter_map(Slot::get).for_each(f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    static CLASS: LockClass = LockClass::new("test.held");

    fn lock(address: usize) -> HeldLock {
        HeldLock { class: &CLASS, address, place: Location::caller() }
    }

    fn addresses(list: &HeldList) -> Vec<usize> {
        let mut all = Vec::new();
        list.for_each(|held| all.push(held.address));
        all
    }

    #[test]
    fn locks_leave_the_list_in_any_order_and_make_room() {
        let list = HeldList::new();
        for _ in 0..3 {
            for address in 1..=MAX_HELD {
                assert!(list.push(lock(address)));
            }
            assert!(!list.push(lock(99)), "full");
            for address in (1..MAX_HELD).step_by(2).chain((2..=MAX_HELD).step_by(2)) {
                assert!(list.pop(address));
                assert!(!list.pop(address), "only once");
            }
            assert!(addresses(&list).is_empty());
        }
    }

    #[test]
    fn what_is_held_is_told_oldest_first_without_what_was_released() {
        let list = HeldList::new();
        for address in 1..=3 {
            assert!(list.push(lock(address)));
        }
        list.pop(2);
        assert_eq!(addresses(&list), [1, 3]);
    }
}
