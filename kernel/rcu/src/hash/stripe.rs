//! A stripe: a lock, and the tables that its holder changes.

use core::borrow::Borrow;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use sync::{ATOMIC, LockClass, SpinIrqGuard, SpinLock};

use super::table::Table;
use super::{HashNode, STRIPES};
use crate::boxed::Inner;
use crate::link::Link;

/// A share of a map's buckets.
#[repr(align(64))]
pub(super) struct Stripe<K, V> {
    /// Of the class that the map was made with. Nothing is taken inside it but by `Eq` of the keys.
    tables: SpinLock<Tables<K, V>>,
    /// Entries. Written under the lock, read without.
    len: AtomicUsize,
}

impl<K, V> Stripe<K, V> {
    /// The stripe of an empty map.
    pub(super) fn new(now: *const Inner<Table<K, V>>, class: &'static LockClass) -> Self {
        let tables = Tables { now, next: ptr::null(), copied: 0 };
        Stripe { tables: SpinLock::new(tables, class), len: AtomicUsize::new(0) }
    }

    pub(super) fn lock(&self) -> SpinIrqGuard<'_, Tables<K, V>> {
        self.tables.lock_irqsave(ATOMIC)
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The holder of the lock has added an entry.
    pub(super) fn added(&self) {
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    /// The holder of the lock has removed one.
    pub(super) fn removed(&self) {
        self.len.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the lock of a stripe protects: the chains of its keys in these tables (HASH-1).
pub(super) struct Tables<K, V> {
    /// Has all entries.
    now: *const Inner<Table<K, V>>,
    /// The table that is being made, or null.
    next: *const Inner<Table<K, V>>,
    /// Buckets of `now`, of this stripe, whose entries are in `next`, too (HASH-2).
    copied: usize,
}

// SAFETY: the pointers are to tables that are shared between CPUs, and live as HASH-4 says. (Maps have keys and values that
// are `Send` and `Sync`.)
unsafe impl<K, V> Send for Tables<K, V> {}

/// A table, and the bucket in it of the key in question.
type Chain<'t, K, V> = (&'t Table<K, V>, &'t Link<HashNode<K, V>>);

impl<K, V> Tables<K, V> {
    /// The chains that the entries of a hash are on: one or two.
    fn chains(&self, hash: usize) -> impl Iterator<Item = Chain<'_, K, V>> {
        // SAFETY: HASH-4: a stripe points to it. Of the box only the value (BOX-3).
        let now = unsafe { &(*self.now).value };
        let copied = now.number(hash) / STRIPES < self.copied;
        // SAFETY: as above.
        let next = copied.then(|| unsafe { &(*self.next).value });
        [Some(now), next].into_iter().flatten().map(move |table| (table, table.bucket(hash)))
    }

    /// The entry of `key`.
    pub(super) fn find<Q: Eq + ?Sized>(&self, hash: usize, key: &Q) -> Option<NonNull<Inner<HashNode<K, V>>>>
    where
        K: Borrow<Q>,
    {
        let (table, mut at) = self.chains(hash).next()?;
        loop {
            // SAFETY: LINK-1; the lock keeps updaters out.
            let node = unsafe { at.follow() }?;
            if node.key.borrow() == key {
                return NonNull::new(at.get());
            }
            at = table.link_of(node);
        }
    }

    /// The link that points to `node` on a chain that it is on.
    fn link_to<'t>((table, bucket): Chain<'t, K, V>, node: NonNull<Inner<HashNode<K, V>>>) -> &'t Link<HashNode<K, V>> {
        let mut at = bucket;
        while at.get() != node.as_ptr() {
            // SAFETY: LINK-1; the lock keeps updaters out.
            let next = unsafe { at.follow() };
            at = table.link_of(next.expect("HASH-2: an entry is on its chains"));
        }
        at
    }

    /// Puts an entry on its chains.
    pub(super) fn add(&mut self, hash: usize, node: *mut Inner<HashNode<K, V>>) {
        for (table, bucket) in self.chains(hash) {
            push(table, bucket, node);
        }
    }

    /// Takes an entry off its chains.
    pub(super) fn take(&mut self, hash: usize, node: NonNull<Inner<HashNode<K, V>>>) {
        for chain in self.chains(hash) {
            // SAFETY: on the chain, so published and not freed.
            let next = chain.0.link_of(unsafe { &(*node.as_ptr()).value }).get();
            Self::link_to(chain, node).set(next);
        }
    }

    /// Puts `new` in the place of `old`.
    pub(super) fn exchange(
        &mut self,
        hash: usize,
        old: NonNull<Inner<HashNode<K, V>>>,
        new: *mut Inner<HashNode<K, V>>,
    ) {
        for chain in self.chains(hash) {
            // SAFETY: on the chain, so published and not freed.
            let next = chain.0.link_of(unsafe { &(*old.as_ptr()).value }).get();
            // SAFETY: a box that the caller has given away.
            chain.0.link_of(unsafe { &(*new).value }).set(next);
            Self::link_to(chain, old).set(new);
        }
    }

    /// Step 1 of a change of size.
    pub(super) fn begin_copy(&mut self, next: *const Inner<Table<K, V>>) {
        self.next = next;
        self.copied = 0;
    }

    /// Step 2, for one bucket of `now`; they come in order. A key that does not say the same hash again is lost from sight, as
    /// in any map, but not moved to the chains of another lock (HASH-1).
    pub(super) fn copy(&mut self, bucket: usize, hash: impl Fn(&K) -> usize) {
        // SAFETY: HASH-4, for both.
        let (now, next) = unsafe { (&(*self.now).value, &(*self.next).value) };
        let mut at = now.bucket(bucket);
        // SAFETY: LINK-1; the lock keeps updaters out.
        while let Some(node) = unsafe { at.follow() } {
            let in_stripe = hash(&node.key) / STRIPES * STRIPES + bucket % STRIPES;
            push(next, next.bucket(in_stripe), at.get());
            at = now.link_of(node);
        }
        self.copied += 1;
    }

    /// Step 4.
    pub(super) fn end_copy(&mut self) {
        self.now = core::mem::replace(&mut self.next, ptr::null());
        self.copied = 0;
    }
}

/// Puts `node` in front of the others of a chain.
fn push<K, V>(table: &Table<K, V>, bucket: &Link<HashNode<K, V>>, node: *mut Inner<HashNode<K, V>>) {
    // SAFETY: a box that was given away, and is not freed while it is in the map.
    let link = table.link_of(unsafe { &(*node).value });
    link.set(bucket.get());
    bucket.set(node);
}
