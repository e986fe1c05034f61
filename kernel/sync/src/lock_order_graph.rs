//! The graph of "taken while holding" between lock classes; see the parent module.

use core::{
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, Ordering},
};

use super::{
    LockClass, MAX_CLASSES,
    checked::{Place, fail},
};

/// "Taken while holding", between classes.
pub(super) struct Graph {
    /// Bit `i` of row `o`: class `i` was taken while holding class `o`.
    edges: [[AtomicU64; WORDS]; MAX_CLASSES],
    /// Where that was first seen.
    places: [[AtomicPtr<Location<'static>>; MAX_CLASSES]; MAX_CLASSES],
    /// Names, for reports; null beyond `count`.
    classes: [AtomicPtr<LockClass>; MAX_CLASSES],
    /// Classes known so far.
    count: AtomicU16,
}

const WORDS: usize = MAX_CLASSES / 64;

pub(super) static GRAPH: Graph = Graph {
    edges: [const { [const { AtomicU64::new(0) }; WORDS] }; MAX_CLASSES],
    places: [const { [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES] }; MAX_CLASSES],
    classes: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES],
    count: AtomicU16::new(0),
};

/// The first edge of the way that leads back, and where it was drawn.
pub(super) struct Circle {
    pub(super) inner: &'static str,
    pub(super) place: *mut Location<'static>,
}

impl Graph {
    /// The index of `class`, given out at its first use.
    fn index(&self, class: &'static LockClass) -> usize {
        let id = class.id.load(Ordering::Relaxed);
        if id != 0 {
            return usize::from(id - 1);
        }
        let fresh = self.count.fetch_add(1, Ordering::Relaxed);
        if usize::from(fresh) >= MAX_CLASSES {
            fail(format_args!("more than {MAX_CLASSES} lock classes: raise MAX_CLASSES"));
        }
        self.classes[usize::from(fresh)].store(ptr::from_ref(class).cast_mut(), Ordering::Relaxed);
        match class.id.compare_exchange(0, fresh + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => usize::from(fresh),
            // Another context was faster; the index taken here stays unused.
            Err(id) => usize::from(id - 1),
        }
    }

    fn has(&self, outer: usize, inner: usize) -> bool {
        // SeqCst: see `draw`.
        self.edges[outer][inner / 64].load(Ordering::SeqCst) >> (inner % 64) & 1 != 0
    }

    /// Adds the edge; an error if there is a way from `inner` back to `outer`.
    pub(super) fn draw(
        &self,
        outer: &'static LockClass,
        inner: &'static LockClass,
        place: Place,
    ) -> Result<(), Circle> {
        let (outer, inner) = (self.index(outer), self.index(inner));
        if self.has(outer, inner) {
            return Ok(());
        }
        self.places[outer][inner].store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        // SeqCst: this edge before the search, against the same on another CPU (`LO-3`).
        self.edges[outer][inner / 64].fetch_or(1 << (inner % 64), Ordering::SeqCst);
        let mut seen = [0_u64; WORDS];
        let Some(first) = (0..MAX_CLASSES)
            .find(|&next| self.has(inner, next) && (next == outer || self.reaches(next, outer, &mut seen)))
        else {
            return Ok(());
        };
        let class = self.classes[first].load(Ordering::Relaxed);
        // SAFETY: a class with an edge has been given its index, and classes are statics.
        let name = unsafe { class.as_ref() }.map_or("?", |class| class.name);
        Err(Circle { inner: name, place: self.places[inner][first].load(Ordering::Relaxed) })
    }

    /// Calls `f` with the names of each edge's two ends.
    pub(super) fn for_each(&self, mut f: impl FnMut(&'static str, &'static str)) {
        // SAFETY: null, or a class, which is a static.
        let name =
            |index: usize| unsafe { self.classes[index].load(Ordering::Relaxed).as_ref() }.map(|class| class.name);
        for (outer, inner) in (0..MAX_CLASSES).flat_map(|outer| (0..MAX_CLASSES).map(move |inner| (outer, inner))) {
            if self.has(outer, inner)
                && let (Some(outer), Some(inner)) = (name(outer), name(inner))
            {
                f(outer, inner);
            }
        }
    }

    fn reaches(&self, from: usize, to: usize, seen: &mut [u64; WORDS]) -> bool {
        if seen[from / 64] >> (from % 64) & 1 != 0 {
            return false;
        }
        seen[from / 64] |= 1 << (from % 64);
        (0..MAX_CLASSES).any(|next| self.has(from, next) && (next == to || self.reaches(next, to, seen)))
    }
}
