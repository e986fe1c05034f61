//! [`Pending`]: objects that wait for a grace period, by cookie, each with its owner's type.
//!
//! Who frees many objects does not want a callback for each. This keeps them in arrays, one lot for each grace period that they
//! can wait for, and asks instead of queueing: a cookie is taken when an object comes, and one callback a CPU, under way
//! while anything waits, looks what is over and has a worker finish that.
//!
//! ```text
//!             ┌ bucket of cookie A: store + list ┐
//!  enqueue ─► ├ bucket of cookie B               ┤── over ──► bucket of what is over ──worker──► Deferred::finish
//!             └ ... as many as cookies can live  ┘
//!  dequeue ◄── newest first, grace period over or not (only where readers bear it)
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `domain` | [`GracePeriods`]: RCU or an SRCU domain |
//! | `object` | [`Deferred`]: what may wait; [`Reusable`]: what may be had back early |
//! | `store`, `radix`, `pages` | where addresses are kept: [`Radix`] or [`Pages`], a type parameter |
//! | `links` | what finds no place there: lists through the objects |
//! | `bucket`, `cpu` | what waits for one cookie, and on one CPU |
//! | `reuse` | [`ReuseCache`]: a cache that allocates from what waits |
//! | `back_end` | the back end `pending` of `kfree_rcu` |
//! | `registry` | all trackers, for reports and for the page allocator |
//!
//! ```no_run
//! use grange_kfree_rcu::pending::{Pending, TreeRcu};
//! use grange_kfree_rcu::{RcuPtr, has_rcu_ptr};
//! use slab::KBox;
//!
//! struct Node { key: u64, rcu: RcuPtr }
//! has_rcu_ptr!(Node, rcu);
//!
//! fn tracker(cx: &mut sync::MaySleep) -> Result<(), grange_kfree_rcu::pending::NotMade> {
//!     let pending = Pending::<KBox<Node>>::new("nodes", TreeRcu)?;
//!     if let Ok(node) = KBox::try_new(Node { key: 1, rcu: RcuPtr::new() }, mm::AllocFlags::NOWAIT) {
//!         assert!(pending.enqueue(node).is_ok(), "a node has a link");
//!     }
//!     pending.exit(cx);
//!     Ok(())
//! }
//! ```
//!
//! # Invariants
//! - **PEND-1** A cookie is taken under the lock, or was taken under it a moment before and is not over. So no more buckets
//!   are needed than cookies can live ([`rcu::pending`]), which is asserted there.
//! - **PEND-2** While anything waits on a CPU its callback is on its way, and when it has been called with something over, its
//!   work is queued: nothing is stranded. `armed` changes under the lock.
//! - **PEND-3** Memory is looked for without the lock, once, by means that wait for nobody; then the cookie is looked at
//!   again. Who has no memory puts the object on a list through its own link. Only objects without one can be refused.
//! - **PEND-4** Objects are finished with no spin lock held; what is being finished still counts.
//!
//! Locks: each CPU's `kfree_rcu.pending`, interrupts off, nothing inside. Outside of it the mutex `kfree_rcu.pending_turn`, held
//! while objects of a CPU are finished. Those of the list of trackers are outside of both.
//!
//! Answers to the series "rcu_pending" of 2024 and `fs/bcachefs/rcu_pending.c` in Linux 6.12; rows S3-1 to S3-16, S3-21.

mod back_end;
mod bucket;
mod cpu;
mod domain;
mod links;
mod object;
mod pages;
mod radix;
mod registry;
mod reuse;
#[cfg(test)]
mod state_tests;
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use arch::{clock, cpu as cpus};
use mm::AllocFlags;
use slab::KBox;
use sync::percpu_dyn::{DynPerCpu, PerCpuFull};
use sync::{ATOMIC, MaySleep, PreemptGuard};

pub(crate) use self::back_end::{ByCookie, init};
pub use self::back_end::{Keep, set_store, store};
pub use self::bucket::Counts;
pub use self::cpu::FLOOD;
pub use self::domain::{GracePeriods, TreeRcu};
pub use self::object::{Deferred, GivenUp, Reusable};
pub use self::pages::Pages;
pub use self::radix::Radix;
pub(crate) use self::registry::SHRINKER;
pub use self::registry::for_each;
pub use self::reuse::{Origin, ReuseCache, TwoKinds};
pub use self::store::{Stash, Store};

use self::cpu::Cpu;
use self::registry::Tracked;

/// What waits in a tracker: a sum of moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: usize,
    /// How long the oldest has waited, in nanoseconds.
    pub oldest_ns: u64,
    /// Nodes that keep their addresses.
    pub nodes: usize,
}

/// Why there is no tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotMade {
    /// The dynamic part of the per-CPU areas is full.
    PerCpuFull,
    /// There is no memory for it.
    NoMemory,
}

impl From<PerCpuFull> for NotMade {
    fn from(PerCpuFull: PerCpuFull) -> Self {
        Self::PerCpuFull
    }
}

impl fmt::Display for NotMade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerCpuFull => PerCpuFull.fmt(f),
            Self::NoMemory => f.write_str("no memory for a tracker"),
        }
    }
}

/// Why an object was not taken.
enum Refused {
    /// It needs no more waiting (S3-9).
    Over,
    /// There is no memory to note its address, and it has no link.
    NoMemory,
}

/// Objects that wait for grace periods of `D`, with their addresses in an `S`; see the [module](self).
///
/// Ends with [`exit`](Self::exit). Dropped without, it says so and stays for ever, and so does what waits in it until then.
pub struct Pending<T: Deferred, D: GracePeriods = TreeRcu, S: Store = Radix>(NonNull<Inner<T, D, S>>);

/// A tracker, at a place of its own.
struct Inner<T: Deferred, D: GracePeriods, S: Store> {
    name: &'static str,
    domain: D,
    cpus: DynPerCpu<Cpu<T, D, S>>,
    next: registry::Next,
}

// SAFETY: what it points to is shared by locks, and the objects in it are `Send`.
unsafe impl<T: Deferred, D: GracePeriods, S: Store> Sync for Pending<T, D, S> {}
// SAFETY: as above; it is bound to no thread.
unsafe impl<T: Deferred, D: GracePeriods, S: Store> Send for Pending<T, D, S> {}

impl<T: Deferred, D: GracePeriods, S: Store> Pending<T, D, S> {
    /// An empty tracker, whose objects the page allocator's reclaim knows to ask for. The name is for reports.
    ///
    /// Context: task; allocates. After `rcu::init`.
    ///
    /// # Errors
    /// [`NotMade`], for want of memory.
    pub fn new(name: &'static str, domain: D) -> Result<Self, NotMade> {
        let cpus = DynPerCpu::new(|cpu| Cpu::new(cpu, domain))?;
        let inner = Inner { name, domain, cpus, next: registry::Next::new() };
        let inner = KBox::try_new(inner, AllocFlags::NOWAIT).map_err(|_| NotMade::NoMemory)?;
        let this = Self(KBox::into_raw(inner));
        // SAFETY: it stays until `exit` has taken it off the list, or for ever.
        registry::add(unsafe { this.0.as_ref() });
        Ok(this)
    }

    /// Takes `object`, to [finish](Deferred::finish) it when a grace period has passed.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off, under any lock that `call_rcu` may be called under. It never waits,
    /// for memory or anything else. If a grace period passes while it looks for memory, it finishes the object itself.
    ///
    /// # Errors
    /// The object, if it has no link of its own and there is no memory to note its address.
    pub fn enqueue(&self, object: T) -> Result<(), T> {
        let (address, link) = object.into_parts();
        let _pin = PreemptGuard::new(ATOMIC);
        match self.inner().here().enqueue(address, link) {
            Ok(()) => Ok(()),
            Err(Refused::Over) => {
                // SAFETY: from `into_parts`, and a grace period has passed since.
                unsafe { T::finish(&mut [address]) };
                Ok(())
            }
            // SAFETY: from `into_parts`, and nobody else has it.
            Err(Refused::NoMemory) => Err(unsafe { T::from_object(address) }),
        }
    }

    /// The same for threads that may wait: it finishes what is over on this CPU first (S3-10), and if there is no memory for an
    /// object without a link, waits for a grace period and finishes the object itself.
    ///
    /// Context: task; sleeps, not in a section of the domain.
    pub fn enqueue_mightsleep(&self, object: T, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        let Err(object) = self.enqueue(object) else { return };
        self.inner().here().try_finish(cx);
        let Err(object) = self.enqueue(object) else { return };
        self.inner().domain.synchronize(false, cx);
        let (address, _) = object.into_parts();
        // SAFETY: from `into_parts`, and a grace period has passed since it was given up.
        unsafe { T::finish(&mut [address]) };
    }

    /// An object that waits on this CPU, whether its grace period is over or not, or nothing.
    ///
    /// Context: any but NMI.
    pub fn dequeue(&self) -> Option<T>
    where
        T: Reusable,
    {
        // SAFETY: it waited, so it is from `into_parts`, and taken out once.
        self.inner().here().dequeue().map(|object| unsafe { T::from_object(object) })
    }

    /// The same from any CPU, this one first.
    ///
    /// Context: any but NMI.
    pub fn dequeue_from_all(&self) -> Option<T>
    where
        T: Reusable,
    {
        self.dequeue().or_else(|| {
            // SAFETY: as in `dequeue`.
            self.inner().cpus().find_map(Cpu::dequeue).map(|object| unsafe { T::from_object(object) })
        })
    }

    /// Gives memory back: finishes what is over, and with `hurry` an expedited grace period later the rest. Returns bytes. Readers
    /// of an SRCU domain may be the very threads that want memory, so there the grace period is asked for and not waited for.
    ///
    /// Context: task; sleeps. It waits for no lock that is held while objects are finished, so a shrinker may call it.
    pub fn reclaim(&self, hurry: bool, cx: &mut MaySleep) -> usize {
        self.inner().reclaim(hurry, cx)
    }

    /// Waits until every object that was taken before is finished.
    ///
    /// Context: task; sleeps, not in a section of the domain, and with nothing held that finishing takes.
    pub fn flush(&self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        if self.waiting().objects == 0 {
            return;
        }
        self.inner().domain.synchronize(false, cx);
        self.finish(cx);
    }

    /// Finishes what is over, and waits for who is at it.
    fn finish(&self, cx: &mut MaySleep) {
        self.inner().cpus().for_each(|cpu| _ = cpu.finish(cx));
    }

    /// Waits until everything is finished, and ends the tracker (S3-15).
    ///
    /// Context: task; sleeps, not in a section of the domain, and with nothing held that finishing takes.
    ///
    /// # Panics
    /// If something waits although nothing is on its way, which cannot be (PEND-2).
    pub fn exit(self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        let inner = self.inner();
        loop {
            let is_idle = inner.cpus().all(|cpu| cpu.with(|state| state.is_idle()));
            // Also if all is idle: the last callback may have said so and be about to return, the last worker too.
            inner.domain.barrier(cx);
            inner.cpus().for_each(|cpu| cpu.flush_work(cx));
            if is_idle {
                break;
            }
        }
        assert_eq!(inner.waiting().objects, 0, "PEND-2: objects are left in {}", inner.name);
        registry::remove(inner, cx);
        let this = ManuallyDrop::new(self);
        // SAFETY: from `new`; nobody uses it any more: no callback, no work, no shrinker, and the tracker is ours.
        drop(unsafe { KBox::from_raw(this.0) });
    }

    /// What waits.
    ///
    /// Context: any but NMI.
    pub fn waiting(&self) -> Waiting {
        self.inner().waiting()
    }

    /// Objects that wait on this CPU (S3-16). Context: any but NMI.
    pub fn waiting_here(&self) -> usize {
        self.inner().here().with(|state| state.objects)
    }

    /// What has happened, over all CPUs. Context: any but NMI.
    pub fn counts(&self) -> Counts {
        self.inner().cpus().map(|cpu| cpu.with(|state| state.counts)).fold(Counts::default(), Counts::add)
    }

    /// Itself, whatever it is of.
    fn tracked(&'static self) -> &'static dyn Tracked {
        self.inner()
    }

    fn inner(&self) -> &Inner<T, D, S> {
        // SAFETY: it stays until `exit` frees it, or for ever.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Deferred, D: GracePeriods, S: Store> Inner<T, D, S> {
    /// This CPU's part, or that of one that was this CPU a moment ago: any will do, because it is locked.
    fn here(&self) -> &Cpu<T, D, S> {
        // SAFETY: initialised for every present CPU, and shared by its locks.
        unsafe { &*self.cpus.this_ptr() }
    }

    fn cpus(&self) -> impl Iterator<Item = &Cpu<T, D, S>> {
        // SAFETY: as in `here`.
        cpus::present().iter().map(|cpu| unsafe { &*self.cpus.ptr_on(cpu) })
    }
}

impl<T: Deferred, D: GracePeriods, S: Store> Tracked for Inner<T, D, S> {
    fn next(&self) -> &registry::Next {
        &self.next
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn node_bytes(&self) -> usize {
        S::NODE
    }

    fn waiting(&self) -> Waiting {
        let now = clock::now_ns();
        self.cpus().fold(Waiting::default(), |sum, cpu| {
            cpu.with(|state| Waiting {
                objects: sum.objects + state.objects,
                bytes: sum.bytes + state.bytes,
                oldest_ns: sum.oldest_ns.max(state.oldest().map_or(0, |since| now.saturating_sub(since))),
                nodes: sum.nodes + state.nodes(),
            })
        })
    }

    fn reclaim(&self, hurry: bool, cx: &mut MaySleep) -> usize {
        let finish_all = |cx: &mut MaySleep| self.cpus().map(|cpu| cpu.try_finish(cx)).sum::<usize>();
        let mut bytes = finish_all(cx);
        if hurry && self.waiting().objects != 0 {
            if D::READERS_MAY_ALLOCATE {
                self.domain.start_poll(true);
            } else {
                self.domain.synchronize(true, cx);
                bytes += finish_all(cx);
            }
        }
        self.cpus().for_each(Cpu::trim);
        bytes
    }
}

impl<T: Deferred, D: GracePeriods, S: Store> Drop for Pending<T, D, S> {
    fn drop(&mut self) {
        log::error!("kfree_rcu: tracker {} was dropped instead of ended, and stays for ever", self.inner().name);
    }
}
