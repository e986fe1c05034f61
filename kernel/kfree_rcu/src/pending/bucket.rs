//! What waits on one CPU: a bucket for each cookie, and one of what is over.

use core::ptr::NonNull;

use rcu::pending::{self, Batch, LiveCookie};
use slab::waiting::{self, Stage};
use sync::bug;

use super::links::{Link, Links};
use super::object::Deferred;
use super::store::{Stash, Store};

/// Objects that wait for the same.
#[derive(Debug, Default)]
pub(super) struct Bucket<S> {
    store: S,
    links: Links,
    bytes: usize,
    /// When the first came, in nanoseconds.
    since: Option<u64>,
}

impl<S: Store> Bucket<S> {
    pub(super) fn objects(&self) -> usize {
        self.store.len() + self.links.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn nodes(&self) -> usize {
        self.store.nodes()
    }

    pub(super) fn since(&self) -> Option<u64> {
        self.since.filter(|_| !self.is_empty())
    }

    fn push(&mut self, entry: Entry, stash: &mut Stash<S>) {
        match entry.way {
            Way::Store => self.store.push(entry.object, stash),
            // SAFETY: the object was given up to the bucket with its link.
            Way::Link(link) => unsafe { self.links.push(link) },
        }
        self.bytes += entry.bytes;
    }

    /// Takes one out, young ones first.
    ///
    /// # Safety
    /// All that was put in came from owners of type `T`.
    unsafe fn pop<T: Deferred>(&mut self, stash: &mut Stash<S>) -> Option<NonNull<u8>> {
        // SAFETY: by the caller.
        let object = self.store.pop(stash).or_else(|| unsafe { self.links.pop::<T>() })?;
        // SAFETY: by the caller; it was in here.
        self.bytes -= unsafe { T::bytes(object) };
        Some(object)
    }

    /// Ends all objects, and calls `between` after each few.
    ///
    /// # Safety
    /// As for [`Bucket::pop`], and no reader is left.
    pub(super) unsafe fn finish<T: Deferred>(&mut self, mut between: impl FnMut()) {
        let mut end = |objects: &mut [NonNull<u8>]| {
            objects.iter().for_each(|&object| waiting::leave(Stage::Pending, object));
            // SAFETY: by the caller.
            unsafe { T::finish(objects) };
            between();
        };
        self.store.drain(&mut end);
        // SAFETY: by the caller.
        while let Some(object) = unsafe { self.links.pop::<T>() } {
            end(&mut [object]);
        }
    }
}

impl<S: Store> Batch for Bucket<S> {
    fn is_empty(&self) -> bool {
        self.objects() == 0
    }

    fn append(&mut self, younger: &mut Self) {
        let since = self.since().into_iter().chain(younger.since()).min();
        self.store.append(&mut younger.store);
        self.links.append(&mut younger.links);
        self.bytes += core::mem::take(&mut younger.bytes);
        self.since = since;
    }
}

/// How an object is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Its address in the store.
    Store,
    /// On a list.
    Link(Link),
}

/// An object on its way in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) object: NonNull<u8>,
    pub(super) bytes: usize,
    pub(super) way: Way,
}

/// What is to be done after an object was put in, without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Nothing: it waits for what others wait for.
    Nothing,
    /// Have the callback called; it was not on its way.
    Callback,
    /// Ask for the grace period: the callback that is on its way may be there for an older one (S3-6).
    GracePeriod,
}

/// Counts since the tracker was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects put in.
    pub enqueued: u64,
    /// Of these, those on a list instead of in the store.
    pub linked: u64,
    /// Objects had back before their grace period was over.
    pub dequeued: u64,
    /// Grace periods asked for by polling.
    pub asked: u64,
    /// Callbacks submitted.
    pub callbacks: u64,
}

impl Counts {
    pub(super) fn add(self, other: Self) -> Self {
        Self {
            enqueued: self.enqueued + other.enqueued,
            linked: self.linked + other.linked,
            dequeued: self.dequeued + other.dequeued,
            asked: self.asked + other.asked,
            callbacks: self.callbacks + other.callbacks,
        }
    }
}

/// One CPU's part. Under its lock.
pub(super) struct State<C, S: Store> {
    /// PEND-1.
    buckets: pending::Pending<C, Bucket<S>>,
    pub(super) stash: Stash<S>,
    /// PEND-2: the callback is on its way.
    pub(super) armed: bool,
    /// Objects and bytes that were put in and are neither finished nor taken back.
    pub(super) objects: usize,
    pub(super) bytes: usize,
    pub(super) counts: Counts,
}

impl<C: LiveCookie, S: Store> State<C, S> {
    pub(super) fn new() -> Self {
        Self {
            buckets: pending::Pending::new(),
            stash: Stash::new(),
            armed: false,
            objects: 0,
            bytes: 0,
            counts: Counts::default(),
        }
    }

    /// Nodes that are missing in the stash for an object of `cookie` to be put into the store.
    pub(super) fn missing(&mut self, cookie: C) -> usize {
        let needs = match self.buckets.batch_mut(cookie) {
            Some(bucket) => bucket.store.needs(),
            None => S::default().needs(),
        };
        needs.saturating_sub(self.stash.len())
    }

    /// Puts an object in that waits for `cookie`. If it goes into the store, no node is missing.
    pub(super) fn push(&mut self, cookie: C, entry: Entry, now: impl FnOnce() -> u64) -> Ask {
        let is_new = match self.buckets.batch_mut(cookie) {
            Some(bucket) => {
                bucket.push(entry, &mut self.stash);
                false
            }
            None => {
                let mut bucket = Bucket { since: Some(now()), ..Bucket::default() };
                bucket.push(entry, &mut self.stash);
                self.buckets.add(cookie, bucket)
            }
        };
        self.objects += 1;
        self.bytes += entry.bytes;
        self.counts.enqueued += 1;
        self.counts.linked += u64::from(matches!(entry.way, Way::Link(_)));
        if !core::mem::replace(&mut self.armed, true) {
            self.counts.callbacks += 1;
            Ask::Callback
        } else if is_new {
            self.counts.asked += 1;
            Ask::GracePeriod
        } else {
            Ask::Nothing
        }
    }

    /// Takes an object out, whether its grace period is over or not.
    ///
    /// # Safety
    /// As for [`Bucket::pop`].
    pub(super) unsafe fn pop<T: Deferred>(&mut self) -> Option<NonNull<u8>> {
        // SAFETY: passed on from the caller.
        let object = self.buckets.take_with(|bucket| unsafe { bucket.pop::<T>(&mut self.stash) })?;
        self.objects -= 1;
        // SAFETY: by the caller; it was in here until now.
        self.bytes -= unsafe { T::bytes(object) };
        self.counts.dequeued += 1;
        Some(object)
    }

    /// Takes what is over. It counts as here until [`State::finished`].
    pub(super) fn take_done(&mut self) -> Bucket<S> {
        self.buckets.take_done()
    }

    /// Takes what is not over: a deliberate bug.
    pub(super) fn take_newest(&mut self) -> Bucket<S> {
        self.buckets.take_with(|bucket| Some(core::mem::take(bucket))).unwrap_or_default()
    }

    /// So many objects and bytes are no more.
    pub(super) fn finished(&mut self, objects: usize, bytes: usize) {
        self.objects -= objects;
        self.bytes -= bytes;
    }

    /// The callback has been called: whether it is wanted again, and whether there is something to finish.
    pub(super) fn grace_period_over(&mut self) -> (bool, bool) {
        self.buckets.advance();
        self.armed = self.buckets.is_waiting()
            && !bug!(
                "kfree_rcu.pending_stranded",
                "a tracker's callback does not come again",
                "rcu_pending.*stranded*"
            );
        self.counts.callbacks += u64::from(self.armed);
        (self.armed, !self.buckets.done().is_empty())
    }

    /// When the oldest object that is not being finished came.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.all().filter_map(Bucket::since).min()
    }

    /// Nodes in the buckets and in the stash.
    pub(super) fn nodes(&self) -> usize {
        self.all().map(Bucket::nodes).sum::<usize>() + self.stash.len()
    }

    fn all(&self) -> impl Iterator<Item = &Bucket<S>> {
        self.buckets.segments().map(|(_, bucket)| bucket).chain(core::iter::once(self.buckets.done()))
    }

    /// Whether there is nothing here, nothing on its way, and nothing being finished.
    pub(super) fn is_idle(&self) -> bool {
        !self.armed && self.objects == 0
    }
}
