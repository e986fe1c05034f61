//! Prefilled sheaves: so many allocations that cannot fail, paid for in advance.
//!
//! A caller that must not fail later, in the midst of a tree's change say, takes a sheaf with as many objects as it may
//! need, uses what it needs, and gives back the rest. A [`Prefilled`] *is* that right: it cannot be copied, and comes back
//! when it is dropped.
//!
//! | `prefill` of n objects (S4-4) | where the sheaf comes from |
//! |---|---|
//! | none | nothing: there is no such sheaf |
//! | up to the cache's capacity | this CPU's spare, whatever is in it; a full or else an empty sheaf of the barn; a new one. Filled up if it holds less than n |
//! | more, or the cache has no sheaves | a new one of exactly n, filled from slabs: "oversize" |
//!
//! | drop (S4-6) | where the sheaf goes |
//! |---|---|
//! | oversize, of an old capacity, or with anything of the reserve | flushed and freed |
//! | this CPU has no spare | it is the spare, whatever is in it |
//! | the barn has room for a full one | filled up and put there, over the limit if others were faster (S4-7) |
//! | else, or it cannot be filled up | flushed and freed |
//!
//! It may come back on another CPU or node than it was made on. A cache's capacity may change while sheaves are out: each
//! knows its own (SHEAF-3, S4-5).
//!
//! # Invariants
//! - **PREFILL-1** A `Prefilled` owns its sheaf (SHEAF-1), so [`Prefilled::alloc`] needs no lock and can be interrupted by
//!   anything.
//! - **PREFILL-2** What n allocations need is in the sheaf before the caller gets it: taking an object out calls nobody
//!   who could fail.
//! - **PREFILL-3** Sheaves that are out, and the objects in them, are counted. A cache is not destroyed while there are any
//!   ([`destroy`](crate::flush::destroy), S4-12), one that was leaked included: so a `Prefilled` never outlives its cache.
//! - **PREFILL-4** The objects have passed the hooks of freeing and not those of allocating, which run in
//!   [`Prefilled::alloc`].
//!
//! Linux: `kmem_cache_prefill_sheaf`, `kmem_cache_return_sheaf`, `kmem_cache_refill_sheaf`, `kmem_cache_alloc_from_sheaf`
//! (`mm/slub.c`, 7.x). There a call without a sheaf is an error that these types cannot express, and a larger sheaf is
//! written through a pointer to the caller's, where here it is returned. Rows: S4-1 to S4-12.

#[cfg(test)]
mod tests;

use core::fmt;
use core::ptr::NonNull;

use mm::AllocFlags;
use sync::{MaySleep, bug};

use crate::Spin;
use crate::barn::Barn;
use crate::cache::RawCache;
use crate::cpu::CacheCpu;
use crate::exchange::put_full;
use crate::sheaf::{MAX_CAPACITY, SheafRef};
use crate::stats::Stat;

/// Words of [`CacheCpu`]'s `lent`.
const SHEAVES: usize = 0;
const OBJECTS: usize = 1;

/// A sheaf of objects that belongs to a caller.
///
/// ```no_run
/// # use mm::AllocFlags;
/// # fn example(cache: &'static grange_slab::RawCache) -> Option<()> {
/// let mut nodes = cache.prefill(3, AllocFlags::NOWAIT)?;
/// for _ in 0..3 {
///     let node = nodes.alloc(AllocFlags::ZERO).expect("three were promised");
///     // SAFETY: allocated just now, and nobody else uses it.
///     unsafe { cache.free(node) };
/// }
/// // A fourth may be there or not: nobody promised it.
/// # Some(())
/// # }
/// ```
///
/// The right to the objects cannot be doubled,
///
/// ```compile_fail,E0599
/// fn double(sheaf: &grange_slab::Prefilled) -> (grange_slab::Prefilled, grange_slab::Prefilled) {
///     (sheaf.clone(), sheaf.clone())
/// }
/// ```
///
/// nor be used after the sheaf went back,
///
/// ```compile_fail,E0382
/// fn late(mut sheaf: grange_slab::Prefilled) {
///     drop(sheaf);
///     sheaf.alloc(mm::AllocFlags::NOWAIT);
/// }
/// ```
///
/// nor by two at a time:
///
/// ```compile_fail,E0596
/// fn shared(sheaf: &grange_slab::Prefilled) {
///     sheaf.alloc(mm::AllocFlags::NOWAIT);
/// }
/// ```
#[must_use = "what it holds goes back when it is dropped"]
pub struct Prefilled {
    sheaf: SheafRef,
}

impl Prefilled {
    /// Takes an object out. `None` once the sheaf is empty: the cache is not asked (S4-2).
    ///
    /// Of `flags` only ZERO means anything. Context: any. Wait-free.
    #[inline]
    pub fn alloc(&mut self, flags: AllocFlags) -> Option<NonNull<u8>> {
        let cache = self.sheaf.cache();
        let object = self.sheaf.pop()?;
        cache.count(Stat::AllocFastpath);
        cache.count_lent(OBJECTS, -1);
        cache.after_alloc(Some(object), flags)
    }

    /// The cache that the objects are of, and go back to.
    #[must_use]
    pub fn cache(&self) -> &'static RawCache {
        self.sheaf.cache()
    }

    /// Objects in the sheaf by now. It may have more than were promised (S4-3).
    #[must_use]
    pub fn size(&self) -> usize {
        self.sheaf.size()
    }

    /// Sees to it that `n` more allocations cannot fail (S4-8).
    ///
    /// A sheaf that has them stays as it is; one that has the capacity is filled up to it; else a larger one takes its place.
    /// The latter is slow: a cache that is often used so should be made with the [capacity](crate::Layout::capacity)
    /// (S4-10).
    ///
    /// Context: any but NMI. Never sleeps.
    ///
    /// # Errors
    /// The sheaf as it was, or with more in it, but with less than `n`: there is no memory.
    pub fn refill(self, n: usize, flags: AllocFlags) -> Result<Self, Self> {
        if self.size() >= n {
            return Ok(self);
        }
        let cache = self.sheaf.cache();
        if self.sheaf.capacity() < n {
            return cache.prefill(n, flags).ok_or(self);
        }
        let before = self.size();
        let enough = cache.fill(self.sheaf, n, flags);
        cache.count_lent(OBJECTS, (self.size() - before) as i64);
        if enough {
            return Ok(self);
        }
        mm::oom::warn_object(cache.name(), n * cache.size(), None, flags);
        Err(self)
    }
}

impl Drop for Prefilled {
    /// Gives the sheaf, and what is in it, back to the cache. Context: any but NMI.
    fn drop(&mut self) {
        let cache = self.sheaf.cache();
        cache.count_lent(SHEAVES, -1);
        cache.count_lent(OBJECTS, -(self.size() as i64));
        cache.take_back(self.sheaf);
    }
}

impl fmt::Debug for Prefilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefilled({}, {} of {})", self.sheaf.cache().name(), self.size(), self.sheaf.capacity())
    }
}

/// What callers have of a cache in prefilled sheaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lent {
    /// Sheaves.
    pub sheaves: u64,
    /// Objects in them.
    pub objects: u64,
}

/// Continues a sentence that counts objects in use.
impl fmt::Display for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sheaves {
            0 => Ok(()),
            sheaves => write!(f, ", {} of them in {sheaves} prefilled sheaves that did not come back", self.objects),
        }
    }
}

impl RawCache {
    /// A sheaf from which `n` objects can be allocated without fail, or nothing: if `n` is 0, more than 65,532, or there is no
    /// memory (S4-1).
    ///
    /// With RESERVE it may hold objects of the reserve, no more of them than are missing to `n`, or lie in it itself; it
    /// then is not kept when it comes back.
    ///
    /// Context: any but NMI. Never sleeps; see [`RawCache::prefill_sleep`].
    pub fn prefill(&'static self, n: usize, flags: AllocFlags) -> Option<Prefilled> {
        if n == 0 || n > MAX_CAPACITY {
            return None;
        }
        let capacity = self.sheaf_capacity();
        let ready = if n <= capacity {
            self.take_ready(n)
        } else {
            self.count(Stat::SheafPrefillOversize);
            None
        };
        let flags = flags - AllocFlags::ZERO;
        let sheaf = ready.or_else(|| self.make_sheaf(n.max(capacity), flags));
        let sheaf = sheaf.and_then(|sheaf| {
            let enough = bug!("prefill.lies", "a prefilled sheaf has fewer objects than it promises", "slab_prefill");
            if sheaf.size() < n && !enough && !self.fill(sheaf, n, flags) {
                self.flush_and_free(sheaf);
                return None;
            }
            Some(sheaf)
        });
        let Some(sheaf) = sheaf else {
            mm::oom::warn_object(self.name(), n * self.size(), None, flags);
            return None;
        };
        self.count_lent(SHEAVES, 1);
        self.count_lent(OBJECTS, sheaf.size() as i64);
        Some(Prefilled { sheaf })
    }

    /// [`RawCache::prefill`], that with MAY_SLEEP reclaims memory and waits for it before it gives up.
    ///
    /// Context: thread that may sleep.
    pub fn prefill_sleep(&'static self, n: usize, flags: AllocFlags, cx: &mut MaySleep) -> Option<Prefilled> {
        cx.assert_may_sleep();
        if !flags.contains(AllocFlags::MAY_SLEEP) || !(1..=MAX_CAPACITY).contains(&n) {
            return self.prefill(n, flags);
        }
        let attempt = || self.prefill(n, flags | AllocFlags::NOWARN);
        let bytes = n * self.size();
        let sheaf = attempt().or_else(|| mm::shrinker::reclaim_until(bytes.div_ceil(arch::PAGE_SIZE), cx, attempt));
        if sheaf.is_none() {
            mm::oom::warn_object(self.name(), bytes, None, flags);
        }
        sheaf
    }

    /// What callers have in prefilled sheaves, summed up CPU by CPU: exact while nobody takes or returns any.
    ///
    /// Context: any.
    pub fn lent(&self) -> Lent {
        let sum = |index| {
            arch::cpu::present().iter().fold(0_u64, |sum, cpu| {
                let word = self.cpu().ptr_on(cpu).wrapping_byte_add(CacheCpu::lent_offset(index)).cast::<u64>();
                // SAFETY: every present CPU's copy was made with the cache; a u64 load is one instruction.
                sum.wrapping_add(unsafe { word.read_volatile() })
            })
        };
        Lent { sheaves: sum(SHEAVES), objects: sum(OBJECTS) }
    }

    #[inline(always)]
    fn count_lent(&self, what: usize, n: i64) {
        // SAFETY: the word is inside this cache's CacheCpu, which every CPU's area holds at this offset.
        unsafe { self.cpu().place().behind(CacheCpu::lent_offset(what)).add::<0>(n as u64) };
    }

    /// A sheaf for at least `n` objects that is made already, with any number of objects in it.
    fn take_ready(&self, n: usize) -> Option<SheafRef> {
        let spare = self.sheaves().and_then(|mut held| held.spare.take_if(|spare| spare.capacity() >= n));
        if spare.is_some() {
            self.count(Stat::SheafPrefillFast);
            return spare;
        }
        self.count(Stat::SheafPrefillSlow);
        let sheaf = self.barn().and_then(|barn| barn.get_full_or_empty());
        self.count(if sheaf.is_some_and(|sheaf| !sheaf.is_empty()) { Stat::BarnGet } else { Stat::BarnGetFail });
        let sheaf = sheaf?;
        if sheaf.capacity() < n {
            // From before the cache's capacity was changed.
            self.flush_and_free(sheaf);
            return None;
        }
        Some(sheaf)
    }

    /// An empty sheaf of `capacity`. If it lies in the reserve, it is marked: as a spare it would stay there (S5-4).
    fn make_sheaf(&self, capacity: usize, flags: AllocFlags) -> Option<SheafRef> {
        // A failure is reported once, by `prefill`.
        let flags = flags | AllocFlags::NOWARN;
        let alloc = |flags| SheafRef::alloc(self, capacity, flags, Spin::May);
        alloc(flags | AllocFlags::NO_RESERVE)
            .or_else(|| flags.may_dip().then(|| alloc(flags).inspect(|sheaf| sheaf.set_reserve())).flatten())
    }

    /// Fills `sheaf` up. Whether it then has `n` objects.
    ///
    /// The reserve is left alone at first; where that is not enough and `flags` allow, what is missing to `n` is taken of it,
    /// and the sheaf marked (S4-11).
    fn fill(&self, sheaf: SheafRef, n: usize, flags: AllocFlags) -> bool {
        let ordinary = flags | AllocFlags::NO_RESERVE;
        self.refill(sheaf, ordinary);
        if sheaf.size() < n {
            let missing = n - sheaf.size();
            let got = self.take_leftovers(missing, mm::home_node(), ordinary, |object| _ = sheaf.push(object));
            self.count_many(Stat::SheafRefill, got as u64);
        }
        if sheaf.size() < n && flags.may_dip() {
            sheaf.set_reserve();
            let missing = n - sheaf.size();
            let got = self.take_many(missing, mm::home_node(), flags, |object| _ = sheaf.push(object));
            self.count_many(Stat::SheafRefill, got as u64);
        }
        sheaf.size() >= n
    }

    /// Finds a place for a sheaf that a caller had (S4-6).
    fn take_back(&self, sheaf: SheafRef) {
        if self.keep_as_spare(sheaf) {
            self.count(Stat::SheafReturnFast);
            return;
        }
        self.count(Stat::SheafReturnSlow);
        let wanted = |barn: &&Barn| !sheaf.is_reserve() && self.is_current(sheaf) && barn.has_room_for_full();
        match self.barn().filter(wanted) {
            Some(barn) if self.fill(sheaf, sheaf.capacity(), AllocFlags::NO_RESERVE | AllocFlags::NOWARN) => {
                put_full(barn, sheaf);
            }
            _ => {
                self.flush_and_free(sheaf);
            }
        }
    }

    /// Makes `sheaf` the spare of this CPU, or its main sheaf where it has none. False if both places are taken, or it is none
    /// that may be kept.
    fn keep_as_spare(&self, sheaf: SheafRef) -> bool {
        let Some(mut held) = self.sheaves() else { return false };
        if sheaf.is_reserve() || !self.is_current(sheaf) {
            return false;
        }
        if held.main.is_bootstrap() {
            held.main = sheaf;
        } else if held.spare.is_none() {
            held.spare = Some(sheaf);
        } else {
            return false;
        }
        true
    }
}
