//! A table: an array of chains, which go by one of the two links of their entries.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr;

use super::{HashNode, NoMemory, STRIPES};
use crate::boxed::RcuBox;
use crate::link::Link;

/// Chains of entries by the low bits of their keys' hashes.
pub(super) struct Table<K, V> {
    /// A power of two of them, at least [`STRIPES`].
    buckets: Box<[Link<HashNode<K, V>>]>,
    /// Which link of an entry its chains use, 0 or 1.
    link: usize,
}

impl<K, V> Table<K, V> {
    /// An empty table of at least so many buckets.
    pub(super) fn boxed(buckets: usize, link: usize) -> Result<RcuBox<Self>, NoMemory> {
        const { assert!(STRIPES.is_power_of_two(), "a stripe is chosen by a hash's low bits") };
        let buckets = buckets.max(STRIPES).checked_next_power_of_two().ok_or(NoMemory)?;
        let mut chains = Vec::new();
        chains.try_reserve_exact(buckets).map_err(|_| NoMemory)?;
        chains.resize_with(buckets, Link::null);
        RcuBox::try_new(Table { buckets: chains.into_boxed_slice(), link }).map_err(|_| NoMemory)
    }

    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// The link for the table that comes after this one.
    pub(super) fn other_link(&self) -> usize {
        1 - self.link
    }

    /// The number of the bucket of a hash.
    #[inline]
    pub(super) fn number(&self, hash: usize) -> usize {
        hash & (self.buckets.len() - 1)
    }

    /// The bucket of a hash.
    #[inline]
    pub(super) fn bucket(&self, hash: usize) -> &Link<HashNode<K, V>> {
        // SAFETY: the length is a power of two, so the number is below it.
        unsafe { self.buckets.get_unchecked(self.number(hash)) }
    }

    /// The link of `node` that this table uses.
    #[inline]
    pub(super) fn link_of<'n>(&self, node: &'n HashNode<K, V>) -> &'n Link<HashNode<K, V>> {
        &node.links[self.link & 1]
    }

    /// All entries.
    pub(super) fn iter(&self) -> TableIter<'_, K, V> {
        TableIter { table: self, bucket: 0, at: &self.buckets[0] }
    }

    /// Frees all entries. For a map that nobody uses any more.
    pub(super) fn free_entries(&self) {
        for bucket in &self.buckets {
            let mut next = bucket.get();
            bucket.set(ptr::null_mut());
            while !next.is_null() {
                // SAFETY: the map owned it, nobody else uses it, and the link to it is not used again.
                let node = unsafe { RcuBox::from_raw(next) };
                next = self.link_of(&node).get();
            }
        }
    }
}

/// A way through all entries.
pub(super) struct TableIter<'t, K, V> {
    table: &'t Table<K, V>,
    /// The bucket that `at` is in.
    bucket: usize,
    /// The link that is followed next.
    at: &'t Link<HashNode<K, V>>,
}

impl<'t, K, V> TableIter<'t, K, V> {
    /// The next entry.
    ///
    /// # Safety
    /// For `'t` the caller is in one reader, or keeps updaters out.
    pub(super) unsafe fn next(&mut self) -> Option<&'t HashNode<K, V>> {
        loop {
            // SAFETY: LINK-1, by the caller.
            if let Some(node) = unsafe { self.at.follow() } {
                self.at = self.table.link_of(node);
                return Some(node);
            }
            let next = self.table.buckets.get(self.bucket + 1)?;
            self.bucket += 1;
            self.at = next;
        }
    }
}
