//! [`Ranges`]: which pages of an address window are taken. Pure: it knows page numbers, not memory.
//!
//! Every range, free or taken, is an [`Area`]. Areas are linked to their neighbours in the window, so that a range that
//! becomes free merges with what is free beside it in O(1). Free areas also hang on one list for each power of two of
//! pages; taken ones in a hash table by their first page. Unused `Area`s wait on a list of spares, which the caller fills:
//! nothing here allocates.
//!
//! Invariants:
//! - **RANGE-1** The areas that are not spare cover the window without gap or overlap, and `below`/`above` lead along them.
//! - **RANGE-2** No two neighbours are both free.
//! - **RANGE-3** An area is in the hash table iff it is [`State::Taken`], on a class list iff [`State::Free`].
//!
//! Linux: `mm/vmalloc.c` (6.18), which keeps its ranges in red-black trees.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering::Relaxed};

use crate::page::Page;

/// What an area is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum State {
    /// Nothing: waits to be used.
    Spare = 0,
    /// A free range.
    Free = 1,
    /// A range that somebody has.
    Taken = 2,
    /// A range that is on its way back: not to be found any more, not yet free.
    Leaving = 3,
}

/// A pointer to an area that is never freed, or none. Changed under the lock around [`Ranges`], hence relaxed.
pub(crate) struct Link(AtomicPtr<Area>);

impl Link {
    const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> Option<&'static Area> {
        // SAFETY: null or the address of an area, which lives for ever.
        unsafe { self.0.load(Relaxed).as_ref() }
    }

    pub(crate) fn set(&self, area: Option<&'static Area>) {
        self.0.store(area.map_or(ptr::null_mut(), |area| ptr::from_ref(area).cast_mut()), Relaxed);
    }
}

/// A range of pages of the window. Fields change under the lock around [`Ranges`].
pub(crate) struct Area {
    first: AtomicUsize,
    pages: AtomicUsize,
    state: AtomicU8,
    /// Neighbours in the window.
    below: Link,
    above: Link,
    /// Class list, hash chain, list of spares; of a leaving area its owner's to use.
    pub(crate) next: Link,
    prev: Link,
    /// The frames mapped there, linked. Its owner's to use.
    pub(crate) frames: AtomicPtr<Page>,
}

const _: () = assert!(size_of::<Area>() == 64);

impl Area {
    pub(crate) const fn new() -> Self {
        Self {
            first: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
            state: AtomicU8::new(State::Spare as u8),
            below: Link::new(),
            above: Link::new(),
            next: Link::new(),
            prev: Link::new(),
            frames: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Its first page in the window.
    pub(crate) fn first(&self) -> usize {
        self.first.load(Relaxed)
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.pages.load(Relaxed)
    }

    fn is(&self, state: State) -> bool {
        self.state.load(Relaxed) == state as u8
    }

    fn set(&self, first: usize, pages: usize, state: State) {
        self.first.store(first, Relaxed);
        self.pages.store(pages, Relaxed);
        self.state.store(state as u8, Relaxed);
    }
}

/// Classes of free areas: `2^n` to `2^(n+1) - 1` pages.
const CLASSES: usize = 40;
/// Chains of the hash table.
const BUCKETS: usize = 1024;
/// Areas of the exact class that are looked at before a larger one is split.
const LOOKS: usize = 8;

/// The ranges of a window.
pub(crate) struct Ranges {
    classes: [Option<&'static Area>; CLASSES],
    buckets: [Option<&'static Area>; BUCKETS],
    spares: Option<&'static Area>,
    /// Areas and pages taken, leaving ones included.
    taken: usize,
    taken_pages: usize,
}

impl Ranges {
    /// An empty window.
    pub(crate) const fn new() -> Self {
        Self { classes: [None; CLASSES], buckets: [None; BUCKETS], spares: None, taken: 0, taken_pages: 0 }
    }

    /// Whether there is a spare, which is what [`take`](Self::take) and [`open`](Self::open) need.
    pub(crate) fn has_spare(&self) -> bool {
        self.spares.is_some()
    }

    /// Adds an unused area to the spares.
    pub(crate) fn add_spare(&mut self, area: &'static Area) {
        area.set(0, 0, State::Spare);
        area.below.set(None);
        area.above.set(None);
        area.prev.set(None);
        area.next.set(self.spares);
        self.spares = Some(area);
    }

    fn spare(&mut self) -> Option<&'static Area> {
        let area = self.spares?;
        self.spares = area.next.get();
        area.next.set(None);
        Some(area)
    }

    /// Makes the window: pages 0 up to `pages`, all free. Once.
    ///
    /// # Panics
    /// Without a spare.
    pub(crate) fn open(&mut self, pages: usize) {
        let area = self.spare().expect("a spare area to open the window with");
        area.set(0, pages, State::Free);
        self.link_free(area);
    }

    /// Areas and pages that are not free.
    pub(crate) fn taken(&self) -> (usize, usize) {
        (self.taken, self.taken_pages)
    }

    /// Takes `pages` pages, or none if no free range is long enough or there is no spare.
    pub(crate) fn take(&mut self, pages: usize) -> Option<&'static Area> {
        assert!(pages != 0, "a range of no pages");
        let area = self.find_free(pages)?;
        if area.pages() > pages {
            let rest = self.spare()?;
            self.unlink_free(area);
            rest.set(area.first() + pages, area.pages() - pages, State::Free);
            rest.above.set(area.above.get());
            rest.below.set(Some(area));
            if let Some(above) = area.above.get() {
                above.below.set(Some(rest));
            }
            area.above.set(Some(rest));
            self.link_free(rest);
        } else {
            self.unlink_free(area);
        }
        area.set(area.first(), pages, State::Taken);
        let bucket = &mut self.buckets[bucket(area.first())];
        area.next.set(*bucket);
        *bucket = Some(area);
        self.taken += 1;
        self.taken_pages += pages;
        Some(area)
    }

    /// The taken area that begins with page `first`.
    pub(crate) fn find(&self, first: usize) -> Option<&'static Area> {
        core::iter::successors(self.buckets[bucket(first)], |area| area.next.get()).find(|area| area.first() == first)
    }

    /// Marks the taken area that begins with page `first` as leaving: nobody finds it any more.
    pub(crate) fn leave(&mut self, first: usize) -> Option<&'static Area> {
        let area = self.find(first)?;
        let bucket = &mut self.buckets[bucket(first)];
        if bucket.is_some_and(|head| ptr::eq(head, area)) {
            *bucket = area.next.get();
        } else {
            let before = core::iter::successors(*bucket, |at| at.next.get())
                .find(|at| at.next.get().is_some_and(|next| ptr::eq(next, area)))?;
            before.next.set(area.next.get());
        }
        area.next.set(None);
        area.set(first, area.pages(), State::Leaving);
        Some(area)
    }

    /// Makes a leaving area free, and one with what is free beside it.
    pub(crate) fn release(&mut self, area: &'static Area) {
        assert!(area.is(State::Leaving), "RANGE-3: release of an area that is not leaving");
        self.taken -= 1;
        self.taken_pages -= area.pages();
        let mut area = area;
        if let Some(below) = area.below.get().filter(|below| below.is(State::Free)) {
            self.unlink_free(below);
            self.swallow(below, area);
            area = below;
        }
        if let Some(above) = area.above.get().filter(|above| above.is(State::Free)) {
            self.unlink_free(above);
            self.swallow(area, above);
        }
        area.set(area.first(), area.pages(), State::Free);
        self.link_free(area);
    }

    /// `low` takes over `high`, which lies above it and becomes a spare.
    fn swallow(&mut self, low: &'static Area, high: &'static Area) {
        low.set(low.first(), low.pages() + high.pages(), State::Free);
        let above = high.above.get();
        low.above.set(above);
        if let Some(above) = above {
            above.below.set(Some(low));
        }
        self.add_spare(high);
    }

    fn find_free(&self, pages: usize) -> Option<&'static Area> {
        let class = class(pages);
        let list = |class: usize| core::iter::successors(self.classes[class], |area| area.next.get());
        // A few of the same class; then any of a larger one, which is always long enough; then the rest of the class.
        list(class)
            .take(LOOKS)
            .find(|area| area.pages() >= pages)
            .or_else(|| self.classes[(class + 1).min(CLASSES)..].iter().find_map(|&first| first))
            .or_else(|| list(class).find(|area| area.pages() >= pages))
    }

    fn link_free(&mut self, area: &'static Area) {
        let list = &mut self.classes[class(area.pages())];
        area.prev.set(None);
        area.next.set(*list);
        if let Some(first) = *list {
            first.prev.set(Some(area));
        }
        *list = Some(area);
    }

    fn unlink_free(&mut self, area: &'static Area) {
        let (next, prev) = (area.next.get(), area.prev.get());
        match prev {
            Some(prev) => prev.next.set(next),
            None => self.classes[class(area.pages())] = next,
        }
        if let Some(next) = next {
            next.prev.set(prev);
        }
        area.next.set(None);
        area.prev.set(None);
    }
}

fn class(pages: usize) -> usize {
    (pages.ilog2() as usize).min(CLASSES - 1)
}

fn bucket(first: usize) -> usize {
    first.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - BUCKETS.ilog2())
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;
