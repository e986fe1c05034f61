//! The sheaves of one CPU, and the three fast paths.
//!
//! | state of a CPU | main | spare | rcu_free | remote |
//! |---|---|---|---|---|
//! | never used, or capacity 0 | bootstrap sheaf | none | none | none |
//! | in use | 0..=capacity objects | none, empty or full (partly full after a prefilled sheaf came back) | none, or 1..capacity objects | none, or 0..capacity objects of one other node |
//!
//! # Invariants
//! - **CPU-1** The four sheaves are touched only by their own CPU with [`LocalTryLock`] held, or by whoever cleans up
//!   after a dead CPU.
//! - **CPU-2** `main` is always a sheaf (S0-1); where there is none it is the bootstrap sheaf, which is full and empty
//!   at once, so that the fast paths need no test of their own (M-3).
//! - **CPU-3** The lock is only ever *tried*. Failure means that this context interrupted the holder on this CPU; it
//!   then goes to the slabs (S0-4).
//! - **CPU-4** Whoever drops the lock and takes it again looks at everything anew: it may be on another CPU, and
//!   interrupts may have changed the sheaves meanwhile (M-7).
//! - **CPU-5** No CPU has a sheaf of a cache that is taken to pieces: checked by [`destroy`](crate::flush::destroy).
//! - **CPU-6** A spare is only where main is not the bootstrap sheaf: so the latter is never offered to a barn.
//!
//! The fast path is a preempt-off section with no atomic read-modify-write: take the flag, pop or push, count, drop
//! the flag.

use core::mem::offset_of;
use core::ptr::NonNull;

use mm::AllocFlags;
use sync::{ATOMIC, FirstGuard, LocalGuard, LocalTryLock, PreemptGuard, bug, hook};

use crate::Spin;
use crate::cache::RawCache;
use crate::remote::Strangers;
use crate::sheaf::SheafRef;
use crate::stats::{COUNT, Stat};
use crate::waiting::{COUNTED, Collecting};

/// The sheaves of one CPU (CPU-1).
pub(crate) struct Sheaves {
    /// Where objects are taken and put.
    pub(crate) main: SheafRef,
    /// What main is exchanged with when it runs dry or over.
    pub(crate) spare: Option<SheafRef>,
    /// Objects that wait for a grace period, until it is full and goes to RCU as one piece.
    pub(crate) rcu_free: Option<SheafRef>,
    /// Objects of one other node, on their way home ([`remote`](crate::remote)).
    pub(crate) remote: Option<SheafRef>,
    /// Whether it is time for a remote sheaf of another node.
    pub(crate) strangers: Strangers,
}

/// What a cache has on one CPU.
#[repr(C)]
pub(crate) struct CacheCpu {
    pub(crate) sheaves: LocalTryLock<Sheaves>,
    stats: [u64; COUNT],
    /// Sheaves that callers have, and objects in them: what went out here less what came back here, so only the sums over
    /// all CPUs say anything (S4-12).
    lent: [u64; 2],
    /// Objects that wait on RCU, by stage from [`Bulk`](crate::waiting::Stage::Bulk) on: like `lent`, what entered here less
    /// what left here.
    waiting: [u64; COUNTED],
    /// The rcu_free sheaf, for others to look at.
    pub(crate) collecting: Collecting,
}

impl CacheCpu {
    /// A CPU that has not used the cache yet.
    pub(crate) fn new() -> Self {
        let sheaves = Sheaves {
            main: SheafRef::bootstrap(),
            spare: None,
            rcu_free: None,
            remote: None,
            strangers: Strangers::NONE,
        };
        Self {
            sheaves: LocalTryLock::new(sheaves),
            stats: [0; COUNT],
            lent: [0; 2],
            waiting: [0; COUNTED],
            collecting: Collecting::new(),
        }
    }

    /// Where the pointer to main lies.
    const MAIN: usize = LocalTryLock::<Sheaves>::VALUE + offset_of!(Sheaves, main);
    const ALLOC_FASTPATH: usize = Self::stat_offset(Stat::AllocFastpath);
    const FREE_FASTPATH: usize = Self::stat_offset(Stat::FreeFastpath);
    /// Where the pointer to rcu_free lies, or null.
    const RCU_FREE: usize = LocalTryLock::<Sheaves>::VALUE + offset_of!(Sheaves, rcu_free);
    const FREE_RCU_SHEAF: usize = Self::stat_offset(Stat::FreeRcuSheaf);

    pub(crate) const fn stat_offset(stat: Stat) -> usize {
        offset_of!(CacheCpu, stats) + stat as usize * size_of::<u64>()
    }

    /// Where the two words of `lent` are.
    pub(crate) const fn lent_offset(index: usize) -> usize {
        offset_of!(CacheCpu, lent) + index * size_of::<u64>()
    }

    pub(crate) const fn waiting_offset(index: usize) -> usize {
        offset_of!(CacheCpu, waiting) + index * size_of::<u64>()
    }

    pub(crate) fn waiting_ptr(this: *mut Self, index: usize) -> *mut u64 {
        this.wrapping_byte_add(Self::waiting_offset(index)).cast()
    }

    pub(crate) fn stat_ptr(this: *mut Self, stat: Stat) -> *mut u64 {
        this.wrapping_byte_add(Self::stat_offset(stat)).cast()
    }
}

const _: () = assert!(offset_of!(CacheCpu, sheaves) == 0);
// An optional sheaf is a pointer that may be null.
const _: () = assert!(size_of::<Option<SheafRef>>() == size_of::<*mut u8>());

/// The sheaves of this CPU, locked, for the fast paths: only main and rcu_free can be had.
pub(crate) struct Here(FirstGuard<'static>);

impl Here {
    #[inline(always)]
    fn lock(cache: &RawCache) -> Option<Self> {
        Self::lock_or_pin(cache).ok()
    }

    /// The lock; who does not get it is pinned yet.
    #[inline(always)]
    pub(crate) fn lock_or_pin(cache: &RawCache) -> Result<Self, PreemptGuard<'static>> {
        // SAFETY: a CacheCpu begins with the lock (asserted above), and stays as long as the cache, which the caller of
        // the fast path holds on to.
        let here = unsafe { FirstGuard::try_lock_or_pin(cache.cpu().place(), ATOMIC) }?;
        hook!("slab.sheaves");
        Ok(Self(here))
    }

    #[inline(always)]
    fn main(&self) -> SheafRef {
        // SAFETY: the pointer to main lies there, and the lock is ours (CPU-1, CPU-2).
        unsafe { SheafRef::from_ptr_unchecked(self.0.place().load::<{ CacheCpu::MAIN }>().cast()) }
    }

    /// Puts `object` into the rcu_free sheaf if there is one, and it does not get full by it.
    #[inline(always)]
    pub(crate) fn push_rcu(&self, object: NonNull<u8>) -> bool {
        // SAFETY: the pointer to rcu_free, or null, lies there, and the lock is ours (CPU-1).
        let sheaf = SheafRef::from_ptr(unsafe { self.0.place().load::<{ CacheCpu::RCU_FREE }>() }.cast());
        if !sheaf.is_some_and(|sheaf| sheaf.push_below_full(object)) {
            return false;
        }
        self.count::<{ CacheCpu::FREE_RCU_SHEAF }>();
        true
    }

    #[inline(always)]
    fn count<const AT: usize>(&self) {
        // SAFETY: a counter lies there.
        unsafe { self.0.place().inc::<AT>() };
    }
}

impl RawCache {
    /// Takes this CPU's sheaves, or nothing if this context interrupted somebody who has them.
    #[inline(always)]
    pub(crate) fn sheaves(&self) -> Option<LocalGuard<'static, Sheaves>> {
        let pin = PreemptGuard::new(ATOMIC);
        // SAFETY: pinned before the copy is chosen; the copy was made with the cache and lives as long (CPU-1).
        let cpu = unsafe { &*self.cpu().this_ptr() };
        let held = cpu.sheaves.try_lock_pinned(pin)?;
        hook!("slab.sheaves");
        Some(held)
    }

    /// Allocates an object, or nothing when there is no memory.
    ///
    /// Context: any but NMI. Never sleeps; see [`RawCache::alloc_sleep`]. Usually wait-free: two sheaves' worth of
    /// objects are local, then a barn lock, then slabs.
    #[inline]
    pub fn alloc(&self, flags: AllocFlags) -> Option<NonNull<u8>> {
        let object = match self.alloc_fast() {
            Some(object) => Some(object),
            None => self.alloc_slow(flags, Spin::May),
        };
        self.after_alloc(object, flags)
    }

    /// [`alloc`](Self::alloc) for a user who asks for `size` bytes, which a debug cache remembers (M-16).
    #[inline]
    pub(crate) fn alloc_asked(&self, size: usize, flags: AllocFlags) -> Option<NonNull<u8>> {
        match self.alloc_fast() {
            Some(object) => self.after_alloc(Some(object), flags),
            None => self.alloc_asked_slow(size, flags, Spin::May),
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_asked_slow(&self, size: usize, flags: AllocFlags, spin: Spin) -> Option<NonNull<u8>> {
        let object = self.after_alloc(self.alloc_slow(flags, spin), flags)?;
        self.note_asked(object, size, spin);
        Some(object)
    }

    /// Allocates without waiting for anything or anybody: fails where [`RawCache::alloc`] would have to wait for a lock.
    /// Nothing is reclaimed and no reserve is touched; of the flags only ZERO, NOWARN and NO_RESERVE are allowed, and the
    /// latter two go without saying (M-11).
    ///
    /// Context: any, NMI included, also an NMI that interrupted this allocator on this CPU.
    ///
    /// # Panics
    /// In checking builds, for other flags.
    pub fn alloc_nolock(&self, flags: AllocFlags) -> Option<NonNull<u8>> {
        let flags = nolock_flags(flags);
        let object = match self.alloc_fast() {
            Some(object) => Some(object),
            None => self.alloc_slow(flags, Spin::Never),
        };
        self.after_alloc(object, flags)
    }

    /// Frees `object` to its slab's home or this CPU's sheaf.
    ///
    /// Context: any but NMI.
    ///
    /// # Safety
    /// `object` was allocated from this cache, and nobody uses it any more.
    #[inline]
    pub unsafe fn free(&self, object: NonNull<u8>) {
        if !RawCache::may_free_at(Some(self), object) {
            return;
        }
        // SAFETY: the caller says that it is an object, so it lies in memory.
        let home = unsafe { mm::home_of_unchecked(object) };
        if mm::is_home(home) && self.free_fast(object) {
            return;
        }
        self.free_slow(object);
    }

    #[inline(always)]
    fn alloc_fast(&self) -> Option<NonNull<u8>> {
        let here = Here::lock(self)?;
        let object = here.main().pop()?;
        here.count::<{ CacheCpu::ALLOC_FASTPATH }>();
        Some(object)
    }

    /// Puts `object` into this CPU's main sheaf if that has room and is free to use.
    #[inline(always)]
    pub(crate) fn free_fast(&self, object: NonNull<u8>) -> bool {
        let Some(here) = Here::lock(self) else { return false };
        if !here.main().push(object) {
            return false;
        }
        here.count::<{ CacheCpu::FREE_FASTPATH }>();
        true
    }

    /// What is done to each object between the allocator and its user.
    #[inline(always)]
    pub(crate) fn after_alloc(&self, object: Option<NonNull<u8>>, flags: AllocFlags) -> Option<NonNull<u8>> {
        let object = object.filter(|&object| self.may_hand_out(object))?;
        if flags.contains(AllocFlags::ZERO) && !bug!("slab.not_zeroed", "ZERO is forgotten", "slab_nolock.*zeroes*") {
            // CTOR-1, SAFE-1: a reader may be looking at it this moment.
            assert!(
                !self.keeps_content(),
                "{}: ZERO would wipe what its objects keep while they are free",
                self.name()
            );
            // SAFETY: a fresh object of `object_size` bytes that nobody else knows.
            unsafe { object.as_ptr().write_bytes(0, self.object_size()) };
        }
        Some(object)
    }
}

/// What remains of the flags of an allocation that may not wait (M-11).
fn nolock_flags(flags: AllocFlags) -> AllocFlags {
    let implied = AllocFlags::NO_RESERVE | AllocFlags::NOWARN;
    debug_assert!(
        (AllocFlags::ZERO | implied).contains(flags),
        "{flags:?}: an allocation that may not wait knows only ZERO"
    );
    if bug!("nolock.dips", "an allocation that may not wait takes from the reserve", "slab_nolock.*reserve*") {
        return (flags & AllocFlags::ZERO) | AllocFlags::RESERVE | AllocFlags::NOWARN;
    }
    (flags & AllocFlags::ZERO) | implied
}
