//! One CPU's part of a tracker, and how what is there gets finished.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{self, NonNull};

use arch::{CpuId, clock};
use sched::{Mutex, MutexGuard, WorkItem, work};
use slab::waiting::{self, Stage};
use sync::{ATOMIC, CallbackHead, LockClass, MaySleep, PreemptGuard, SpinLock, bug, context, hook};

use super::Refused;
use super::bucket::{Ask, Entry, State, Way};
use super::domain::GracePeriods;
use super::links::Link;
use super::object::Deferred;
use super::store::{Stash, Store};
use crate::backend::{self, Event};
use crate::head::RcuPtr;

static CLASS: LockClass = LockClass::new("kfree_rcu.pending");
static TURN_CLASS: LockClass = LockClass::new("kfree_rcu.pending_turn");

/// Nodes that a CPU keeps for the next object.
const KEEP: usize = 2;

/// Each time that so many more objects wait on a CPU, its grace period is hurried (S3-29): as RCU does for callbacks.
pub const FLOOD: usize = 10_000;

/// See the module documentation.
pub(super) struct Cpu<T, D: GracePeriods, S: Store> {
    /// Protects what waits here. Interrupts off. Nothing is taken inside it.
    state: SpinLock<State<D::Cookie, S>>,
    /// Whoever finishes objects of this CPU has it: so who has got it knows that nobody else is at it. Outside of `state`.
    turn: Mutex<()>,
    /// On its way while `State::armed` (PEND-2).
    rcu: UnsafeCell<CallbackHead>,
    work: WorkItem,
    home: CpuId,
    domain: D,
    of: core::marker::PhantomData<fn() -> T>,
}

// SAFETY: shared by its locks; the head belongs to who has set `armed`.
unsafe impl<T: Deferred, D: GracePeriods, S: Store> Sync for Cpu<T, D, S> {}
// SAFETY: bound to no thread.
unsafe impl<T: Deferred, D: GracePeriods, S: Store> Send for Cpu<T, D, S> {}

impl<T: Deferred, D: GracePeriods, S: Store> Cpu<T, D, S> {
    pub(super) fn new(home: CpuId, domain: D) -> Self {
        Self {
            state: SpinLock::new(State::new(), &CLASS),
            turn: Mutex::new((), &TURN_CLASS),
            rcu: UnsafeCell::new(CallbackHead::new()),
            work: WorkItem::new(finish_here::<T, D, S>),
            home,
            domain,
            of: core::marker::PhantomData,
        }
    }

    /// Puts an object in; the caller is pinned.
    pub(super) fn enqueue(&self, object: NonNull<u8>, own: Option<NonNull<RcuPtr>>) -> Result<(), Refused> {
        // Before others can find it, and without the lock: of an area of vmalloc it takes another.
        waiting::enter(Stage::Pending, object);
        self.put(object, own).inspect_err(|_| waiting::leave(Stage::Pending, object))
    }

    fn put(&self, object: NonNull<u8>, own: Option<NonNull<RcuPtr>>) -> Result<(), Refused> {
        debug_assert!(!context::in_nmi(), "a tracker takes nothing from an NMI");
        // SAFETY: the object was given up to us.
        let bytes = unsafe { T::bytes(object) };
        let apart = T::is_apart(object);
        let mut link = own.map(Link::own);
        if apart && link.is_none() {
            link = Some(Link::allocated(object).ok_or(Refused::NoMemory)?);
        }
        let mut nodes = Stash::<S>::new();
        let (mut taken, mut looked) = (None, false);
        let (ask, by_head, floods) = loop {
            let mut state = self.state.lock_irqsave(ATOMIC);
            hook!("kfree_rcu.pending");
            // PEND-1.
            let cookie = *taken.get_or_insert_with(|| self.domain.get_state());
            if looked && rcu::poll(cookie) {
                drop(state);
                link.into_iter().for_each(Link::discard);
                return Err(Refused::Over);
            }
            nodes.spill(0, &mut state.stash);
            let missing = if apart { 0 } else { state.missing(cookie) };
            let way = if !apart && missing == 0 {
                Way::Store
            } else if let Some(link) = link.take_if(|_| apart || looked) {
                Way::Link(link)
            } else if looked {
                return Err(Refused::NoMemory);
            } else {
                drop(state);
                // PEND-3.
                looked = true;
                let filled = nodes.fill(missing);
                Self::note(Event::Pages, nodes.len());
                if !filled && link.is_none() {
                    link = Link::allocated(object);
                }
                hook!("kfree_rcu.pending.unlocked");
                continue;
            };
            let ask = state.push(cookie, Entry { object, bytes, way }, clock::now_ns);
            state.stash.spill(KEEP, &mut nodes);
            break (ask, matches!(way, Way::Link(_)), state.objects.is_multiple_of(FLOOD));
        };
        Self::note(Event::ByHead, usize::from(by_head));
        // One that turned out not to be needed.
        link.into_iter().for_each(Link::discard);
        match ask {
            Ask::Nothing => {}
            Ask::Callback => {
                Self::note(Event::Callbacks, 1);
                // SAFETY: `armed` was not set, so whoever had the head has let go of it; we have set it, so nobody else submits it.
                unsafe { self.domain.call(self.rcu.get(), grace_period_over::<T, D, S>) };
            }
            Ask::GracePeriod => {
                Self::note(Event::GracePeriods, 1);
                self.domain.start_poll(false);
            }
        }
        if floods {
            Self::note(Event::GracePeriods, 1);
            self.domain.start_poll(true);
        }
        Ok(())
    }

    /// Takes an object out that waits here.
    pub(super) fn dequeue(&self) -> Option<NonNull<u8>> {
        let mut surplus = Stash::new();
        let object = self.with(|state| {
            // SAFETY: only `enqueue` of this `T` puts something in.
            let object = unsafe { state.pop::<T>() };
            state.stash.spill(KEEP, &mut surplus);
            object
        });
        if let Some(object) = object {
            waiting::leave(Stage::Pending, object);
        }
        object
    }

    /// Finishes what is over now, and what somebody else is finishing. What comes meanwhile holds nobody up. Returns bytes.
    pub(super) fn finish(&self, cx: &mut MaySleep) -> usize {
        let turn = self.turn.lock(cx);
        self.finish_in(turn, cx)
    }

    /// The same, or nothing if somebody else is at it.
    pub(super) fn try_finish(&self, cx: &mut MaySleep) -> usize {
        self.turn.try_lock().map_or(0, |turn| self.finish_in(turn, cx))
    }

    fn finish_in(&self, _turn: MutexGuard<'_, ()>, cx: &mut MaySleep) -> usize {
        let mut bucket = self.with(|state| {
            if bug!(
                "kfree_rcu.pending_early",
                "a tracker's newest bucket is finished at once",
                "rcu_pending.*reader* kfree_rcu_torture.*tracker"
            ) {
                state.take_newest()
            } else {
                state.take_done()
            }
        });
        let Some(since) = bucket.since() else { return 0 };
        let (objects, bytes) = (bucket.objects(), bucket.bytes());
        // SAFETY: only `enqueue` of this `T` puts something in, and it is over.
        unsafe { bucket.finish::<T>(|| sched::cond_resched(cx)) };
        waiting::record(Stage::Pending, clock::now_ns().saturating_sub(since));
        self.with(|state| state.finished(objects, bytes));
        bytes
    }

    /// Waits until the work item does not run and is not queued.
    pub(super) fn flush_work(&self, cx: &mut MaySleep) {
        self.work.flush(cx);
    }

    /// Gives the nodes back that are kept for the next objects.
    pub(super) fn trim(&self) {
        let _nodes = self.with(|state| core::mem::take(&mut state.stash));
    }

    /// Counts an event for who wants it counted.
    fn note(event: Event, n: usize) {
        if let Some(back_end) = T::COUNTED_AS
            && n != 0
        {
            backend::count(back_end, event, n);
        }
    }

    /// Looks at the state, or changes it.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut State<D::Cookie, S>) -> R) -> R {
        let mut state = self.state.lock_irqsave(ATOMIC);
        hook!("kfree_rcu.pending");
        f(&mut state)
    }
}

/// A grace period is over that began after the callback was armed.
unsafe fn grace_period_over<T: Deferred, D: GracePeriods, S: Store>(head: *mut CallbackHead) {
    // SAFETY: only `Cpu::rcu` is called back by this function, and a `Cpu` stays until its callback is idle.
    let cpu = unsafe { &*head.byte_sub(offset_of!(Cpu<T, D, S>, rcu)).cast::<Cpu<T, D, S>>() };
    let (again, has_done) = cpu.with(State::grace_period_over);
    let _pin = PreemptGuard::new(ATOMIC);
    if has_done {
        // SAFETY: a `Cpu` stays until its work is flushed with nobody queueing it again.
        unsafe { backend::reclaim_queue().unwrap_or_else(work::system).queue_raw(cpu.home, &cpu.work) };
    }
    if again {
        Cpu::<T, D, S>::note(Event::Callbacks, 1);
        // SAFETY: `armed` has stayed set, so nobody else submits it, and this call of it is over with it.
        unsafe { cpu.domain.call(head, grace_period_over::<T, D, S>) };
    }
}

/// The work item's function. One pass: of what was not over at its beginning the callback is on its way (PEND-2), and queues
/// the item again.
fn finish_here<T: Deferred, D: GracePeriods, S: Store>(item: &WorkItem, cx: &mut MaySleep) {
    // SAFETY: only `Cpu::work` has this function, and a `Cpu` stays until its work is flushed.
    let cpu = unsafe { &*ptr::from_ref(item).byte_sub(offset_of!(Cpu<T, D, S>, work)).cast::<Cpu<T, D, S>>() };
    cpu.finish(cx);
}
