//! Barns: where the CPUs of a node leave and find whole sheaves.
//!
//! One [`Barn`] per cache and online node, memory-less nodes included (S5-5). A CPU that runs dry swaps its
//! empty sheaf for a full one, a CPU that runs over swaps its full one for an empty one: one lock per
//! `capacity` objects instead of one per object.
//!
//! # Invariants
//! - **BARN-1** Every sheaf on `full` holds at least one object, every sheaf on `empty` holds none; none is
//!   oversize or the bootstrap sheaf.
//! - **BARN-2** `nr_full` and `nr_empty` are written under the lock and equal the lists' lengths; they are
//!   also read without it, as hints. So the limits are soft: they may be overshot by as many sheaves as
//!   CPUs race past the check (S0-10, S4-7).
//!
//! | | get | put | replace | drain |
//! |---|---|---|---|---|
//! | each against each | barn lock | barn lock | barn lock | barn lock |
//!
//! Lock order: the CPU's sheaf lock, then the barn lock, then nothing: no list or zone lock is taken inside
//! (M-10). Context: any; with [`Spin::Never`] only a try-lock is made, and "busy" is reported as "nothing".
//!
//! Answers to `struct node_barn` in Linux `mm/slub.c` (7.x). There the limits are compile-time constants
//! (10 and 10); here they are per barn and can be set at run time (S5-15).

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use sync::{ATOMIC, LockClass, SpinIrqGuard, SpinLock, hook};

use crate::Spin;
use crate::sheaf::{Chain, Sheaf, SheafRef};

/// Inside the sheaf lock; nothing nests inside it.
static BARN_LOCK: LockClass = LockClass::new("slab.barn");

/// The most full, and the most empty, sheaves a barn keeps by default (M-4).
pub(crate) const DEFAULT_LIMIT: u32 = 10;

struct Stack(*mut Sheaf);

impl Stack {
    fn push(&mut self, sheaf: SheafRef) {
        sheaf.set_next(self.0);
        self.0 = sheaf.as_ptr();
    }

    fn pop(&mut self) -> Option<SheafRef> {
        let sheaf = SheafRef::from_ptr(self.0)?;
        self.0 = sheaf.next();
        Some(sheaf)
    }

    fn take(&mut self) -> Chain {
        Chain(core::mem::replace(&mut self.0, ptr::null_mut()))
    }
}

struct Lists {
    full: Stack,
    empty: Stack,
}

// SAFETY: the lists own the sheaves on them (SHEAF-1) and are reached only through the barn's lock.
unsafe impl Send for Lists {}

/// Full and empty sheaves of one cache on one node.
pub(crate) struct Barn {
    lists: SpinLock<Lists>,
    nr_full: AtomicU32,
    nr_empty: AtomicU32,
    max_full: AtomicU32,
    max_empty: AtomicU32,
}

/// Why a full sheaf was not exchanged for an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoSwap {
    /// The barn has as many full sheaves as it keeps.
    TooManyFull,
    /// The barn has no empty sheaf, or its lock was busy and may not be waited for.
    NoEmpty,
}

impl Barn {
    pub(crate) fn new(limit: u32) -> Self {
        let lists = Lists { full: Stack(ptr::null_mut()), empty: Stack(ptr::null_mut()) };
        Self {
            lists: SpinLock::new(lists, &BARN_LOCK),
            nr_full: AtomicU32::new(0),
            nr_empty: AtomicU32::new(0),
            max_full: AtomicU32::new(limit),
            max_empty: AtomicU32::new(limit),
        }
    }

    fn lock(&self, spin: Spin) -> Option<SpinIrqGuard<'_, Lists>> {
        let lists = match spin {
            Spin::May => self.lists.lock_irqsave(ATOMIC),
            Spin::Never => self.lists.try_lock_irqsave(ATOMIC)?,
        };
        hook!("slab.barn");
        Some(lists)
    }

    fn wait_lock(&self) -> SpinIrqGuard<'_, Lists> {
        self.lock(Spin::May).expect("waited for")
    }

    pub(crate) fn nr_full(&self) -> u32 {
        self.nr_full.load(Relaxed)
    }

    pub(crate) fn nr_empty(&self) -> u32 {
        self.nr_empty.load(Relaxed)
    }

    /// Whether another full sheaf is welcome: a hint (BARN-2).
    pub(crate) fn has_room_for_full(&self) -> bool {
        self.nr_full() < self.max_full.load(Relaxed)
    }

    /// Whether another empty sheaf is welcome: a hint (BARN-2).
    pub(crate) fn has_room_for_empty(&self) -> bool {
        self.nr_empty() < self.max_empty.load(Relaxed)
    }

    /// Takes an empty sheaf.
    pub(crate) fn get_empty(&self, spin: Spin) -> Option<SheafRef> {
        if self.nr_empty() == 0 {
            return None;
        }
        let mut lists = self.lock(spin)?;
        let sheaf = lists.empty.pop()?;
        self.nr_empty.store(self.nr_empty() - 1, Relaxed);
        Some(sheaf)
    }

    /// Puts an empty sheaf in, over the limit if need be. May spin.
    pub(crate) fn put_empty(&self, sheaf: SheafRef) {
        debug_assert!(sheaf.is_empty() && !sheaf.is_bootstrap() && !sheaf.is_oversize());
        let mut lists = self.wait_lock();
        lists.empty.push(sheaf);
        self.nr_empty.store(self.nr_empty() + 1, Relaxed);
    }

    /// Puts a full (or partly full) sheaf in, over the limit if need be. May spin.
    pub(crate) fn put_full(&self, sheaf: SheafRef) {
        debug_assert!(!sheaf.is_empty() && !sheaf.is_oversize());
        let mut lists = self.wait_lock();
        lists.full.push(sheaf);
        self.nr_full.store(self.nr_full() + 1, Relaxed);
    }

    /// Exchanges an empty sheaf for a full one. On `None` the caller keeps `empty`.
    ///
    /// The bootstrap sheaf may be offered and is not kept.
    pub(crate) fn replace_empty(&self, empty: SheafRef, spin: Spin) -> Option<SheafRef> {
        if self.nr_full() == 0 {
            return None;
        }
        let mut lists = self.lock(spin)?;
        let full = lists.full.pop()?;
        self.nr_full.store(self.nr_full() - 1, Relaxed);
        if !empty.is_bootstrap() {
            lists.empty.push(empty);
            self.nr_empty.store(self.nr_empty() + 1, Relaxed);
        }
        Some(full)
    }

    /// Exchanges a full sheaf for an empty one. On `Err` the caller keeps `full`.
    pub(crate) fn replace_full(&self, full: SheafRef, spin: Spin) -> Result<SheafRef, NoSwap> {
        debug_assert!(!full.is_empty() && !full.is_oversize());
        if !self.has_room_for_full() {
            return Err(NoSwap::TooManyFull);
        }
        if self.nr_empty() == 0 {
            return Err(NoSwap::NoEmpty);
        }
        let mut lists = self.lock(spin).ok_or(NoSwap::NoEmpty)?;
        let empty = lists.empty.pop().ok_or(NoSwap::NoEmpty)?;
        lists.full.push(full);
        self.nr_empty.store(self.nr_empty() - 1, Relaxed);
        self.nr_full.store(self.nr_full() + 1, Relaxed);
        Ok(empty)
    }

    /// Takes everything out: (full, empty). The caller flushes and frees.
    pub(crate) fn drain(&self) -> (Chain, Chain) {
        let mut lists = self.wait_lock();
        self.nr_full.store(0, Relaxed);
        self.nr_empty.store(0, Relaxed);
        (lists.full.take(), lists.empty.take())
    }
}
