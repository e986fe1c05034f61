//! Objects that wait for a grace period: given up twice, freed meanwhile, or used again too early. In builds with assertions.
//!
//! An object that is given to `kfree_rcu` is in nobody's use ([`shadow`](super::shadow)), but not free either: a second bit of
//! its own says so until its grace period is over, wherever it waits. Then
//!
//! | who | finds |
//! |---|---|
//! | a second `kfree_rcu`, of whatever kind | that the object waits, or is free: it is not accepted |
//! | `kfree` and the like | that it waits: it is not freed |
//! | an allocation | that it waits still: it is not handed out |
//! | a sheaf that comes back | that the grace period which it was to wait for is not over: it leaks, with its objects |
//!
//! The report names the place in the source that gave the object up first, as long as that is among the last [`PLACES`] or so,
//! and the calls that lead to the second place. Debug caches and large blocks know no use, but do know who waits. What is of
//! `vmalloc` is not looked at: freeing it twice is a panic (VM-3). An object of 8 bytes has room for one bit, so that a
//! second `kfree_rcu` of it is reported as a second free.
//!
//! # Invariants
//! - **WAITS-1** The waiting bit of an object is that of its second word in the shadow, which is nobody's else: set by whoever
//!   has just cleared the bit of its use, or found it clear there, and cleared by whoever is sure of the grace period.
//! - **WAITS-2** One atomic operation each; no lock, no loop, nothing allocated: so all of it is right in an NMI, which may
//!   have interrupted any of it (S1-13).
//!
//! In Linux objects with a 16-byte head are known to debugobjects, which takes spin locks and does not see what a sheaf
//! takes (`debug_rcu_head_queue`, `kernel/rcu/rcu.h`, 7.x). Rows: S0-3, S1-13, S2-8, K-6.

use core::cell::UnsafeCell;
use core::fmt;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use rcu::FullCookie;

use super::report::{Cure, Fault, Kind, report};
use super::shadow;
use crate::kmalloc::large_page;
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;

/// Places that are remembered, each object's at one of them.
const PLACES: usize = 4096;
/// Sheaves whose grace periods are remembered.
const SHEAVES: usize = 1024;

/// Whether `object` may be given to `kfree_rcu`, which it then is. Reports one that is given up already, or is free.
///
/// Context: any. In builds without assertions nothing is asked.
#[inline(always)]
#[cfg_attr(debug_assertions, track_caller)]
pub fn may_wait(object: NonNull<u8>) -> bool {
    if !cfg!(debug_assertions) {
        return true;
    }
    begin(object, Location::caller())
}

/// The grace period of `object` is over, and it is about to be freed.
///
/// Context: any.
#[inline(always)]
pub fn wait_over(object: NonNull<u8>) {
    if cfg!(debug_assertions) {
        set_waiting(object, false);
        if let Some(slab) = SlabRef::of(object)
            && !slab.cache().is_checked()
        {
            // The free that follows takes it out of use again.
            shadow::set(object, true);
        }
    }
}

/// Whether `object`, which somebody wants to free, waits.
pub(super) fn waits(object: NonNull<u8>) -> bool {
    waiting_word(object).is_some_and(shadow::is_set)
}

fn begin(object: NonNull<u8>, place: &'static Location<'static>) -> bool {
    let Some(slab) = SlabRef::of(object) else {
        let fresh = large_page(object).is_none() || !set_waiting(object, true);
        return accept(None, object, fresh, true, place);
    };
    let cache = slab.cache();
    let waited = waits(object);
    let fresh = if cache.is_checked() { !set_waiting(object, true) } else { shadow::set(object, false) };
    if fresh {
        set_waiting(object, true);
    }
    accept(Some(slab), object, fresh, waited, place)
}

/// Remembers the place of an object that is given up for the first time; reports another.
fn accept(
    slab: Option<SlabRef>,
    object: NonNull<u8>,
    fresh: bool,
    waited: bool,
    place: &'static Location<'static>,
) -> bool {
    if fresh {
        Place::of(object).set(object, place);
    } else {
        let checked = slab.is_some_and(|slab| slab.cache().is_checked());
        let kind = if waited || checked { Kind::WaitsTwice } else { Kind::DoubleFree };
        report(slab.map(SlabRef::cache), Fault::of_call(kind, object), Cure::NotFreed);
    }
    fresh
}

/// The word of the shadow that says whether `object` waits; none if it has no room for that.
fn waiting_word(object: NonNull<u8>) -> Option<NonNull<u8>> {
    let room = match SlabRef::of(object) {
        Some(slab) => slab.cache().size() - slab.cache().left() > 8,
        None => large_page(object).is_some(),
    };
    // SAFETY: inside the object.
    room.then(|| unsafe { object.add(8) })
}

/// Whether it waited before.
fn set_waiting(object: NonNull<u8>, yes: bool) -> bool {
    waiting_word(object).is_some_and(|word| shadow::set(word, yes))
}

/// Where an object was given up. Written by any context; an object that comes later takes the place.
struct Place {
    object: AtomicUsize,
    place: AtomicPtr<Location<'static>>,
}

static REMEMBERED: [Place; PLACES] =
    [const { Place { object: AtomicUsize::new(0), place: AtomicPtr::new(ptr::null_mut()) } }; PLACES];

impl Place {
    fn of(object: NonNull<u8>) -> &'static Self {
        &REMEMBERED[slot(object.addr().get(), PLACES)]
    }

    fn set(&self, object: NonNull<u8>, place: &'static Location<'static>) {
        // So that nobody takes the new place for the old object's. Release, with the acquire in `place_of`.
        self.object.store(0, Relaxed);
        self.place.store(ptr::from_ref(place).cast_mut(), Release);
        self.object.store(object.addr().get(), Release);
    }
}

/// Where `object` was given to `kfree_rcu`, if that is remembered.
pub(super) fn place_of(object: NonNull<u8>) -> Option<Given> {
    let place = Place::of(object);
    let is_its = || place.object.load(Acquire) == object.addr().get();
    // SAFETY: null, or a place in the source, which stays for ever.
    let given = is_its().then(|| unsafe { place.place.load(Acquire).as_ref() }).flatten()?;
    is_its().then_some(Given(given))
}

/// Where an object was given to `kfree_rcu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given(&'static Location<'static>);

impl Given {
    /// The place in the source.
    pub fn location(self) -> &'static Location<'static> {
        self.0
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "given to kfree_rcu at {}", self.0)
    }
}

/// What a sheaf waits for, remembered beside it.
struct Promise {
    /// The sheaf; 0 while nothing is remembered, [`BUSY`] while it is being written.
    sheaf: AtomicUsize,
    /// Belongs to whoever owns the sheaf.
    cookie: UnsafeCell<Option<FullCookie>>,
}

const BUSY: usize = 1;

// SAFETY: the cell is written by whoever has set `sheaf` from 0, and read by the owner of the sheaf that is named there.
unsafe impl Sync for Promise {}

static PROMISES: [Promise; SHEAVES] =
    [const { Promise { sheaf: AtomicUsize::new(0), cookie: UnsafeCell::new(None) } }; SHEAVES];

/// `sheaf` goes to RCU: from here on its objects wait for the next grace period at least.
///
/// Context: any.
#[inline(always)]
pub(crate) fn sheaf_leaves(sheaf: SheafRef) {
    if !cfg!(debug_assertions) {
        return;
    }
    let address = sheaf.as_ptr().addr();
    let promise = &PROMISES[slot(address, SHEAVES)];
    // Acquire, with the release in `sheaf_returns`: who had the cell before is done with it.
    if promise.sheaf.compare_exchange(0, BUSY, Acquire, Relaxed).is_ok() {
        // SAFETY: the place was free, and is ours.
        unsafe { *promise.cookie.get() = Some(rcu::get_state_full()) };
        // Release, with the acquire in `sheaf_returns`.
        promise.sheaf.store(address, Release);
    }
}

/// Whether the objects of `sheaf`, which RCU has given back, may be used again. Reports a sheaf that comes too early, if what
/// it waited for is remembered.
///
/// Context: any.
#[inline(always)]
pub(crate) fn sheaf_returns(sheaf: SheafRef) -> bool {
    !cfg!(debug_assertions) || returns(sheaf)
}

fn returns(sheaf: SheafRef) -> bool {
    let address = sheaf.as_ptr().addr();
    let promise = &PROMISES[slot(address, SHEAVES)];
    // Acquire, with the release in `sheaf_leaves`.
    if promise.sheaf.load(Acquire) == address {
        // SAFETY: the sheaf is ours, so what is remembered of it is, too.
        let cookie = unsafe { (*promise.cookie.get()).take() };
        // Release, with the acquire in `sheaf_leaves`.
        promise.sheaf.store(0, Release);
        if cookie.is_some_and(|cookie| !rcu::poll(cookie)) {
            let object = sheaf.objects().next().expect("no empty sheaf goes to RCU");
            report(Some(sheaf.cache()), Fault::of_call(Kind::TooEarly, object), Cure::NotFreed);
            return false;
        }
    }
    sheaf.objects().for_each(|object| {
        set_waiting(object, false);
    });
    true
}

/// One of `slots`, a power of two, for an address that is a multiple of 8.
fn slot(address: usize, slots: usize) -> usize {
    // Fibonacci hashing: the upper bits of the product depend on all bits of the address.
    (address >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - slots.ilog2())
}

#[cfg(test)]
#[path = "waits_tests.rs"]
mod tests;
