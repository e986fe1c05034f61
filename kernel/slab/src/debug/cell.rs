//! One object of a debug cache with what surrounds it.

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use super::DebugFlags;
use super::layout::Parts;
use super::poison::{self, Damage, RED_FREE, RED_USED, UNUSED};
use super::report::{Fault, Kind};
use super::track::Track;
use crate::cache::RawCache;
use crate::slab_ref::SlabRef;

/// The deferral word of an object that is on no deferred list (DEBUG-2): the address of nothing.
const IDLE: usize = usize::MAX;

/// What an object is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Free,
    Used,
}

impl State {
    fn red(self) -> u8 {
        match self {
            Self::Free => RED_FREE,
            Self::Used => RED_USED,
        }
    }
}

/// An object of a slab, of whatever cache; most of this is for those of debug caches.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    pub(super) slab: SlabRef,
    pub(super) object: NonNull<u8>,
}

impl Cell {
    /// The object that begins at this address.
    pub(super) fn of(object: NonNull<u8>) -> Option<Self> {
        let slab = SlabRef::of(object).filter(|slab| slab.is_object(object))?;
        Some(Self { slab, object })
    }

    fn cache(self) -> &'static RawCache {
        self.slab.cache()
    }

    fn parts(self) -> Parts {
        self.cache().parts().expect("a debug cache has parts")
    }

    /// Whether free objects are filled: not where their content must survive.
    fn is_poisoned(self) -> bool {
        let cache = self.cache();
        cache.debug().contains(DebugFlags::POISON) && (!cache.keeps_content() || cache.delays_frees())
    }

    /// The bytes `from..to`, counted from the object.
    #[allow(clippy::mut_from_ref, reason = "each call is over before the next")]
    fn bytes(&self, from: isize, to: usize) -> &mut [u8] {
        let len = to.wrapping_add_signed(-from);
        // SAFETY: callers stay within the object's place in its slab, which is theirs: the object is free, or on its way
        // in or out, under the list lock (DEBUG-1). A user that writes to it nevertheless is what is looked for.
        unsafe { core::slice::from_raw_parts_mut(self.object.as_ptr().offset(from), len) }
    }

    fn left(&self) -> (isize, usize) {
        (-(self.parts().left as isize), 0)
    }

    /// Bytes that the user may write.
    pub(super) fn asked(self) -> usize {
        let all = self.cache().object_size();
        match self.parts().asked {
            // SAFETY: a word of the object's place, written when its slab was made.
            Some(at) => unsafe { self.object.add(at).cast::<usize>().read() }.min(all),
            None => all,
        }
    }

    pub(super) fn set_asked(self, size: usize) {
        if let Some(at) = self.parts().asked {
            // SAFETY: a word of the object's place.
            unsafe { self.object.add(at).cast::<usize>().write(size) };
        }
    }

    /// Lays everything out for an object that is `state` from now on, but for its tracks.
    pub(super) fn lay_out(self, state: State) {
        let size = self.cache().object_size();
        if state == State::Free {
            self.set_asked(size);
        }
        if self.is_poisoned() {
            match state {
                State::Free => poison::fill_free(self.bytes(0, size)),
                State::Used => self.bytes(0, size).fill(UNUSED),
            }
        }
        self.red_zones(self.asked(), state);
        self.pad();
    }

    /// Fills the room that belongs to nobody.
    pub(super) fn pad(self) {
        let (parts, flags) = (self.parts(), self.cache().debug());
        if flags.contains(DebugFlags::POISON) {
            if !flags.contains(DebugFlags::RED_ZONE) {
                self.bytes(self.cache().object_size() as isize, parts.red_end).fill(UNUSED);
            }
            self.bytes(parts.end as isize, parts.size - parts.left).fill(UNUSED);
        }
    }

    /// Draws the red zones of an object of which `asked` bytes are the user's.
    pub(super) fn red_zones(self, asked: usize, state: State) {
        if self.cache().debug().contains(DebugFlags::RED_ZONE) {
            let (from, to) = self.left();
            self.bytes(from, to).fill(state.red());
            self.bytes(asked as isize, self.parts().red_end).fill(state.red());
        }
    }

    /// What is wrong with the bytes of an object that is `state`.
    pub(super) fn inspect(self, state: State) -> Option<Fault> {
        let (parts, flags, size) = (self.parts(), self.cache().debug(), self.cache().object_size());
        let fault = |kind, from: isize, damage: Damage| Fault {
            kind,
            object: self.object.as_ptr(),
            offset: from + damage.at as isize,
            len: damage.len,
            found: damage.found.into(),
            expected: damage.expected.into(),
        };
        let filled = |kind, from: isize, to, byte| {
            poison::check(self.bytes(from, to), byte).map(|damage| fault(kind, from, damage))
        };
        let red = flags.contains(DebugFlags::RED_ZONE);
        let left = || filled(Kind::LeftRedZone, self.left().0, 0, state.red()).filter(|_| red);
        let right = || filled(Kind::RightRedZone, self.asked() as isize, parts.red_end, state.red()).filter(|_| red);
        let content = || {
            let free = state == State::Free && self.is_poisoned();
            free.then(|| poison::check_free(self.bytes(0, size))).flatten().map(|damage| fault(Kind::Poison, 0, damage))
        };
        let padding = || {
            flags.contains(DebugFlags::POISON).then(|| {
                let small = || filled(Kind::Padding, size as isize, parts.red_end, UNUSED).filter(|_| !red);
                small().or_else(|| filled(Kind::Padding, parts.end as isize, parts.size - parts.left, UNUSED))
            })?
        };
        left().or_else(right).or_else(content).or_else(padding)
    }

    fn track(self, which: usize) -> Option<NonNull<Track>> {
        let at = self.cache().parts()?.tracks?;
        // SAFETY: inside the object's place (`layout`).
        Some(unsafe { self.object.add(at).cast::<Track>().add(which) })
    }

    /// Who allocated the object last, and who freed it last.
    pub(super) fn tracks(self) -> (Track, Track) {
        // SAFETY: tracks are plain words, written when the slab was made.
        let read = |which| self.track(which).map_or(Track::NONE, |track| unsafe { track.read() });
        (read(0), read(1))
    }

    /// Remembers who made the object what it is now.
    #[inline]
    pub(super) fn set_track(self, state: State, track: impl FnOnce() -> Track) {
        let which = match state {
            State::Used => 0,
            State::Free => 1,
        };
        if let Some(place) = self.track(which) {
            // SAFETY: as in `tracks`, under the list lock (DEBUG-1).
            unsafe { place.write(track()) };
        }
    }

    fn deferral(&self) -> &AtomicUsize {
        let at = self.parts().deferral;
        // SAFETY: a word of the object's place, which is only used as an atomic or by the list it is on (DEBUG-2).
        unsafe { self.object.add(at).cast::<AtomicUsize>().as_ref() }
    }

    /// Lays out the deferral word of an object of a new slab. Not when it is freed: it may be on a list by mistake.
    pub(super) fn lay_out_deferral(self) {
        self.deferral().store(IDLE, Relaxed);
    }

    /// Whether the object is on a deferred list: freed, but not back yet.
    pub(super) fn is_deferred(self) -> bool {
        self.deferral().load(Relaxed) != IDLE
    }

    /// Takes the object's deferral word; false if it is on a deferred list already.
    fn claim_deferral(self) -> bool {
        // Acquire: pairs with the release in `release_deferral`: the list's use of the word before is over.
        self.deferral().compare_exchange(IDLE, 0, Acquire, Relaxed).is_ok()
    }

    /// The object has been taken off its deferred list.
    fn release_deferral(self) {
        // Release: pairs with the acquire in `claim_deferral`.
        self.deferral().store(IDLE, Release);
    }

    /// Shows the bytes around `offset`, rows of 16.
    pub(super) fn dump(self, offset: isize, out: &mut impl Write) -> fmt::Result {
        const ROW: isize = 16;
        let (left, end) = match self.cache().parts() {
            Some(parts) => (-(parts.left as isize), (parts.size - parts.left) as isize),
            None => (0, self.cache().size() as isize),
        };
        let first = (offset.div_euclid(ROW) * ROW - 2 * ROW).max(left);
        let last = (first + 6 * ROW).min(end);
        for row in (first..last).step_by(ROW as usize) {
            write!(out, "\n  {row:>5}:")?;
            for byte in self.bytes(row, (row + ROW).min(last) as usize) {
                write!(out, " {byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Which object of which slab it is.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, state) = (self.slab.base(), self.slab.state());
        let index = (self.object.as_ptr().addr() - base.addr()) / self.cache().size();
        let name = self.cache().name();
        write!(f, "object {index} of the {} in slab {base:p} of {name}, {} in use", state.objects, state.inuse)
    }
}

impl RawCache {
    /// Takes the deferral word of `object`, of a debug cache; false if it is on a deferred list already (DEBUG-2).
    pub(super) fn claim_deferral(&self, object: NonNull<u8>) -> bool {
        Cell::of(object).is_some_and(Cell::claim_deferral)
    }

    /// `object`, of a debug cache, has been taken off its deferred list.
    pub(crate) fn release_deferral(&self, object: NonNull<u8>) {
        if let Some(cell) = Cell::of(object) {
            cell.release_deferral();
        }
    }
}
