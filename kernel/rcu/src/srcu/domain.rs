//! Domains: a set of readers and the updaters that wait for these readers and no others.
//!
//! ```no_run
//! use grange_rcu::srcu::{Normal, srcu_read_lock, synchronize_srcu};
//!
//! grange_rcu::srcu_domain! {
//!     /// Protects the configuration.
//!     static CONFIG: Normal;
//! }
//!
//! fn reader(cx: &mut sync::MaySleep) {
//!     let guard = srcu_read_lock(&CONFIG);
//!     sched::sleep_ns(cx, 1_000_000);          // a reader of SRCU may sleep
//!     drop(guard);
//! }
//!
//! fn updater(cx: &mut sync::MaySleep) {
//!     synchronize_srcu(&CONFIG, cx);           // waits for that reader
//! }
//! ```
//!
//! A domain is static ([`srcu_domain!`](crate::srcu_domain)) or made at run time ([`SrcuOwner`]). Both are a [`Core`] with
//! the flavour as a type around it, and a [`CpuData`] on each CPU.
//!
//! Invariants
//! - DOM-1: a domain that is dropped has no readers, no callbacks, and no grace period that runs or is asked for. Guards and
//!   cookies borrow it, so only callbacks, wishes, and guards that were forgotten are left to be found at run time: then
//!   the drop says which, and the domain stays for ever.
//! - DOM-2: the memory of a domain stays until the last [`Hold`] goes. The owner has one; whatever works on the domain by
//!   itself has one each: a queued or running work item, an armed timer, a kick on its way.
//!
//! Row R-21. Answers to Linux `init_srcu_struct`, `cleanup_srcu_struct` (which sleeps where this holds).

use alloc::boxed::Box;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use arch::percpu::DynPlace;
use arch::{CpuId, cpu};
use sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};
use sync::percpu_dyn::{DynPerCpu, PerCpuFull};

use super::barrier::Barrier;
use super::cpu::{CpuData, PAIR};
use super::flavour::Flavour;
use super::funnel::Funnel;
use super::gp::Gp;
use super::registry;

/// A domain whatever its flavour.
#[repr(C)]
pub struct Core {
    /// The place of the pair of counters that readers use now. Written by flips. First: it is all that readers load.
    current: AtomicPtr<u8>,
    /// Where each CPU has its [`CpuData`].
    place: DynPlace,
    pub(crate) name: &'static str,
    pub(crate) flavour: &'static str,
    pub(crate) waits_for_rcu: bool,
    pub(crate) gp: Gp,
    pub(crate) funnel: Funnel,
    pub(crate) barrier: Barrier,
    /// DOM-2. A static domain's owner never lets go.
    holds: AtomicUsize,
    /// Frees the memory of a domain that was made at run time.
    free: Option<unsafe fn(NonNull<Core>)>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SrcuDomain({})", self.name)
    }
}

impl Core {
    const fn new<F: Flavour>(name: &'static str, place: DynPlace, free: Option<unsafe fn(NonNull<Core>)>) -> Core {
        Core {
            current: AtomicPtr::new(place.as_ptr()),
            place,
            name,
            flavour: F::NAME,
            waits_for_rcu: F::WAITS_FOR_RCU,
            gp: Gp::new(),
            funnel: Funnel::new(),
            barrier: Barrier::new(),
            holds: AtomicUsize::new(1),
            free,
        }
    }

    /// The pair that a reader which begins now uses.
    #[inline(always)]
    pub(crate) fn current(&self) -> DynPlace {
        // Relaxed: either index is right at any time (`order`).
        DynPlace::from_ptr(self.current.load(Ordering::Relaxed))
    }

    /// Which index that is.
    pub(crate) fn current_index(&self) -> usize {
        usize::from(self.current() != self.place)
    }

    /// Has readers use the other index from here on. For the grace period, inside a [`flip`](super::order::flip).
    pub(crate) fn use_other_index(&self) {
        let other = self.place.behind(PAIR * (1 - self.current_index()));
        self.current.store(other.as_ptr(), Ordering::Relaxed);
    }

    /// The part of `cpu`, which is present.
    pub(crate) fn on(&self, cpu: CpuId) -> &CpuData {
        // SAFETY: a `CpuData` lies at the place in every area, as long as the domain lives; it is shared by its own locks
        // and atomics.
        unsafe { &*self.place.ptr_on(cpu).cast() }
    }

    /// The parts of all CPUs, online or not.
    pub(crate) fn cpus(&self) -> impl Iterator<Item = (CpuId, &CpuData)> {
        cpu::present().iter().map(|cpu| (cpu, self.on(cpu)))
    }

    /// Unlocks that can be seen at an index, over all CPUs.
    pub(crate) fn unlocks(&self, index: usize) -> u64 {
        // Relaxed, here and below: `order` says what is around the sums.
        self.sum(|data| data.pairs[index].unlocks.load(Ordering::Relaxed))
    }

    /// Locks that can be seen at an index.
    pub(crate) fn locks(&self, index: usize) -> u64 {
        self.sum(|data| data.pairs[index].locks.load(Ordering::Relaxed))
    }

    fn sum(&self, count: impl Fn(&CpuData) -> u64) -> u64 {
        self.cpus().fold(0, |sum, (_, data)| sum.wrapping_add(count(data)))
    }

    /// Readers in their sections at an index: a hint, and exact if none begins or ends.
    pub(crate) fn readers(&self, index: usize) -> u64 {
        let unlocks = self.unlocks(index);
        self.locks(index).wrapping_sub(unlocks)
    }

    /// Callbacks that have not run; a hint.
    pub(crate) fn callbacks(&self) -> usize {
        self.cpus().map(|(_, data)| data.len()).sum()
    }

    /// What keeps the domain from being dropped.
    fn in_use(&self) -> Option<InUse> {
        let use_ = InUse {
            readers: self.readers(0).wrapping_add(self.readers(1)),
            callbacks: self.cpus().map(|(_, data)| data.lock().cbs.len()).sum(),
            grace_period: self.funnel.wants_more(self.gp.seq.current()),
        };
        (use_ != InUse { readers: 0, callbacks: 0, grace_period: false }).then_some(use_)
    }

    /// Keeps the memory.
    pub(crate) fn hold(&self) -> Hold {
        // Relaxed: the caller has a hold, or borrows from one.
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(NonNull::from(self))
    }
}

/// The right to use a domain; what lets the last one go frees it (DOM-2). Context: any but NMI.
pub(crate) struct Hold(NonNull<Core>);

impl Hold {
    /// Gives the hold to whoever finds the domain by its address.
    pub(crate) fn into_raw(self) -> *const Core {
        ManuallyDrop::new(self).0.as_ptr()
    }

    /// Takes it.
    ///
    /// # Safety
    /// `core` has been given a hold by [`Hold::into_raw`] that nobody has taken.
    pub(crate) unsafe fn from_raw(core: *const Core) -> Hold {
        // SAFETY: by the caller; a hold's domain is not null.
        Hold(unsafe { NonNull::new_unchecked(core.cast_mut()) })
    }
}

impl Deref for Hold {
    type Target = Core;
    fn deref(&self) -> &Core {
        // SAFETY: it stays while this does (DOM-2).
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Release: pairs with the fence below; what was done by this hold is over.
        if self.holds.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Acquire: pairs with the Release above of all the others.
        fence(Ordering::Acquire);
        let free = self.free.expect("DOM-2: a static domain's own hold stays");
        // SAFETY: this was the last hold, and `free` is that of this domain's type.
        unsafe { free(self.0) };
    }
}

/// A domain of SRCU with readers of flavour `F`.
///
/// Readers: [`srcu_read_lock`](super::srcu_read_lock), [`srcu_down_read`](super::srcu_down_read). Updaters:
/// [`synchronize_srcu`](super::synchronize_srcu), [`call_srcu`](super::call_srcu) and so on.
#[repr(transparent)]
pub struct SrcuDomain<F: Flavour> {
    core: Core,
    _flavour: PhantomData<fn() -> F>,
}

impl<F: Flavour> SrcuDomain<F> {
    /// For [`srcu_domain!`](crate::srcu_domain) only.
    ///
    /// # Safety
    /// `place` is that of a per-CPU `CpuData` which no other domain has.
    #[doc(hidden)]
    pub const unsafe fn new_static(name: &'static str, place: DynPlace) -> SrcuDomain<F> {
        SrcuDomain { core: Core::new::<F>(name, place, None), _flavour: PhantomData }
    }

    /// The domain without its flavour.
    #[doc(hidden)]
    #[inline(always)]
    pub const fn core(&self) -> &Core {
        &self.core
    }

    /// Has the domain get its tree of nodes for requests with its next grace period, without waiting for contention.
    ///
    /// For domains whose updaters are known to be many. Context: any.
    pub fn make_big(&self) {
        self.core.funnel.ask_to_grow();
    }
}

/// Declares static domains: `srcu_domain! { /// Doc. pub static NAME: Flavour; }`.
#[macro_export]
macro_rules! srcu_domain {
    ($($(#[$meta:meta])* $vis:vis static $name:ident: $flavour:ty;)+) => {$(
        $(#[$meta])*
        $vis static $name: $crate::srcu::SrcuDomain<$flavour> = {
            $crate::private::arch::per_cpu! {
                static CPU_DATA: $crate::srcu::CpuData = $crate::srcu::CpuData::new();
            }
            const PLACE: $crate::private::arch::percpu::DynPlace =
                $crate::private::arch::percpu::DynPlace::of(&CPU_DATA);
            // SAFETY: the variable is a `CpuData`, and seen nowhere but here.
            unsafe { $crate::srcu::SrcuDomain::new_static(concat!(module_path!(), "::", stringify!($name)), PLACE) }
        };

        const _: () = {
            use $crate::private::linkme;
            #[linkme::distributed_slice($crate::srcu::STATIC_DOMAINS)]
            #[linkme(crate = linkme)]
            static CORE: &'static $crate::srcu::Core = $name.core();
        };
    )+};
}

/// A domain that was made at run time; it goes when this is dropped.
///
/// See DOM-1 in the module's documentation for what must be over by then.
pub struct SrcuOwner<F: Flavour>(NonNull<Dynamic<F>>);

// SAFETY: a domain is bound to no thread, and shared by its own locks and atomics.
unsafe impl<F: Flavour> Send for SrcuOwner<F> {}
// SAFETY: as above.
unsafe impl<F: Flavour> Sync for SrcuOwner<F> {}

#[repr(C)]
struct Dynamic<F: Flavour> {
    /// First, so that a core is the whole.
    domain: SrcuDomain<F>,
    /// What `domain` has the place of.
    _cpus: DynPerCpu<CpuData>,
}

impl<F: Flavour> SrcuOwner<F> {
    /// A domain without readers. The name is for the shell and reports.
    ///
    /// Context: task; allocates.
    ///
    /// # Errors
    /// The dynamic part of the per-CPU areas is full.
    pub fn new(name: &'static str) -> Result<SrcuOwner<F>, PerCpuFull> {
        /// # Safety
        /// `core` is the first field of a leaked `Dynamic<F>` that nobody uses any more.
        unsafe fn free<F: Flavour>(core: NonNull<Core>) {
            // SAFETY: by the caller.
            drop(unsafe { Box::from_raw(core.as_ptr().cast::<Dynamic<F>>()) });
        }
        let cpus = DynPerCpu::new(|_| CpuData::new())?;
        let core = Core::new::<F>(name, cpus.place(), Some(free::<F>));
        let whole = Dynamic { domain: SrcuDomain { core, _flavour: PhantomData }, _cpus: cpus };
        let owner = SrcuOwner(NonNull::from(Box::leak(Box::new(whole))));
        registry::add(owner.core());
        Ok(owner)
    }
}

impl<F: Flavour> Deref for SrcuOwner<F> {
    type Target = SrcuDomain<F>;
    fn deref(&self) -> &SrcuDomain<F> {
        // SAFETY: it stays at least as long as its owner (DOM-2).
        unsafe { &self.0.as_ref().domain }
    }
}

impl<F: Flavour> Drop for SrcuOwner<F> {
    /// Context: any but NMI.
    fn drop(&mut self) {
        let core = self.core();
        if let Some(use_) = core.in_use() {
            log::error!("SRCU: domain {} is dropped and stays for ever, because it {use_}", core.name);
            registry::count_leak();
            return;
        }
        registry::remove(core);
        // SAFETY: the owner's hold, from `Core::new`.
        drop(unsafe { Hold::from_raw(core) });
    }
}

/// What a domain was dropped with.
#[derive(Copy, Clone, Eq, PartialEq)]
struct InUse {
    readers: u64,
    callbacks: usize,
    grace_period: bool,
}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "has {} readers and {} callbacks", self.readers, self.callbacks)?;
        f.write_str(if self.grace_period { ", and a grace period that nobody waits for" } else { "" })
    }
}
