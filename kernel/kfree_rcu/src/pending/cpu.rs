//! One CPU's part of a tracker, and how what is there gets finished.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{self, NonNull};

use arch::{CpuId, clock};
use rcu::hist::Histogram;
use sched::{Mutex, MutexGuard, WorkItem, work};
use sync::{ATOMIC, CallbackHead, LockClass, MaySleep, PreemptGuard, SpinLock, bug, hook};

use super::Refused;
use super::bucket::{Ask, Entry, State, Way};
use super::domain::GracePeriods;
use super::links::Link;
use super::object::Deferred;
use super::store::{Stash, Store};

static CLASS: LockClass = LockClass::new("kfree_rcu.pending");
static TURN_CLASS: LockClass = LockClass::new("kfree_rcu.pending_turn");

/// Nodes that a CPU keeps for the next object.
const KEEP: usize = 2;

/// Each time that so many more objects wait on a CPU, its grace period is hurried (S3-29): as RCU does for callbacks.
pub const FLOOD: usize = 10_000;

/// What all CPUs of a tracker share.
pub(super) struct Shared<D> {
    pub(super) name: &'static str,
    pub(super) domain: D,
    /// How long the oldest object of each lot waited until it was finished, in nanoseconds.
    pub(super) residence: Histogram,
}

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
    /// Stays as long as this.
    shared: NonNull<Shared<D>>,
    of: core::marker::PhantomData<fn() -> T>,
}

// SAFETY: shared by its locks; the head belongs to who has set `armed`.
unsafe impl<T: Deferred, D: GracePeriods, S: Store> Sync for Cpu<T, D, S> {}
// SAFETY: bound to no thread; `shared` is used from any.
unsafe impl<T: Deferred, D: GracePeriods, S: Store> Send for Cpu<T, D, S> {}

impl<T: Deferred, D: GracePeriods, S: Store> Cpu<T, D, S> {
    pub(super) fn new(home: CpuId, shared: NonNull<Shared<D>>) -> Self {
        Self {
            state: SpinLock::new(State::new(), &CLASS),
            turn: Mutex::new((), &TURN_CLASS),
            rcu: UnsafeCell::new(CallbackHead::new()),
            work: WorkItem::new(finish_here::<T, D, S>),
            home,
            shared,
            of: core::marker::PhantomData,
        }
    }

    fn shared(&self) -> &Shared<D> {
        // SAFETY: it stays as long as this does.
        unsafe { self.shared.as_ref() }
    }

    fn domain(&self) -> D {
        self.shared().domain
    }

    /// Puts an object in; the caller is pinned.
    pub(super) fn enqueue(&self, object: NonNull<u8>, own: Option<NonNull<crate::RcuPtr>>) -> Result<(), Refused<()>> {
        // SAFETY: the object was given up to us.
        let bytes = unsafe { T::bytes(object) };
        let apart = T::is_apart(object);
        let domain = self.domain();
        let mut fetched = Stash::<S>::new();
        let mut link = None;
        if apart && own.is_none() {
            link = Some(Link::allocated(object).ok_or(Refused::NoMemory(()))?);
        }
        let mut looked = false;
        let mut taken_at = None;
        let (ask, floods) = loop {
            let mut state = self.state.lock_irqsave(ATOMIC);
            hook!("kfree_rcu.pending");
            // PEND-1: under the lock at first.
            let cookie = *taken_at.get_or_insert_with(|| domain.get_state());
            if looked && rcu::poll(cookie) {
                drop(state);
                if let Some(link) = link {
                    link.discard();
                }
                return Err(Refused::Over(()));
            }
            fetched.spill(0, &mut state.stash);
            let missing = if apart { 0 } else { state.missing(cookie) };
            let way = match (apart || missing != 0, own.map(Link::own).or(link)) {
                (false, _) => {
                    if let Some(link) = link.take() {
                        link.discard();
                    }
                    Way::Store
                }
                (true, Some(link)) if apart || looked => Way::Link(link),
                (true, None) if looked => return Err(Refused::NoMemory(())),
                (true, _) => {
                    let enough = missing;
                    drop(state);
                    looked = true;
                    // PEND-3.
                    if !fetched.fill(enough) && own.is_none() {
                        link = Link::allocated(object);
                    }
                    hook!("kfree_rcu.pending.unlocked");
                    continue;
                }
            };
            let ask = state.push(cookie, Entry { object, bytes, way }, clock::now_ns);
            state.stash.spill(KEEP, &mut fetched);
            break (ask, state.objects.is_multiple_of(FLOOD));
        };
        match ask {
            Ask::Nothing => {}
            // SAFETY: `armed` was not set, so the last call of it has ended its use; we have set it, so nobody else submits it.
            Ask::Callback => unsafe { domain.call(self.rcu.get(), grace_period_over::<T, D, S>) },
            Ask::GracePeriod => {
                let forget = bug!(
                    "kfree_rcu.pending_not_asked",
                    "nobody asks for the grace period of a second cookie",
                    "rcu_pending.*"
                );
                if !forget {
                    domain.start_poll(false);
                }
            }
        }
        if floods {
            domain.start_poll(true);
        }
        Ok(())
    }

    /// Takes an object out that waits here.
    pub(super) fn dequeue(&self) -> Option<NonNull<u8>> {
        let mut surplus = Stash::new();
        let mut state = self.state.lock_irqsave(ATOMIC);
        hook!("kfree_rcu.pending");
        // SAFETY: only `enqueue` of this `T` puts something in.
        let object = unsafe { state.pop::<T>() };
        state.stash.spill(KEEP, &mut surplus);
        drop(state);
        object
    }

    /// Finishes what is over, until nothing is. Returns bytes.
    pub(super) fn finish(&self, cx: &mut MaySleep) -> usize {
        let turn = self.turn.lock(cx);
        self.finish_in(turn, cx)
    }

    /// The same, if nobody else is at it.
    pub(super) fn try_finish(&self, cx: &mut MaySleep) -> usize {
        self.turn.try_lock().map_or(0, |turn| self.finish_in(turn, cx))
    }

    fn finish_in(&self, _turn: MutexGuard<'_, ()>, cx: &mut MaySleep) -> usize {
        let (mut objects, mut bytes, mut all) = (0, 0, 0);
        loop {
            let mut bucket = {
                let mut state = self.state.lock_irqsave(ATOMIC);
                hook!("kfree_rcu.pending");
                state.finished(objects, bytes);
                state.take_done()
            };
            let Some(since) = bucket.since() else { return all };
            (objects, bytes) = (bucket.objects(), bucket.bytes());
            all += bytes;
            // SAFETY: only `enqueue` of this `T` puts something in, and it is over.
            unsafe { bucket.finish::<T>(|| sched::cond_resched(cx)) };
            self.shared().residence.record(clock::now_ns().saturating_sub(since));
        }
    }

    /// Waits until the work item does not run and is not queued.
    pub(super) fn flush_work(&self, cx: &mut MaySleep) {
        self.work.flush(cx);
    }

    /// Looks at the state, or changes it.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut State<D::Cookie, S>) -> R) -> R {
        f(&mut self.state.lock_irqsave(ATOMIC))
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
        unsafe { work::system().queue_raw(cpu.home, &cpu.work) };
    }
    if again {
        // SAFETY: `armed` has stayed set, so nobody else submits it, and this call of it is over with it.
        unsafe { cpu.domain().call(head, grace_period_over::<T, D, S>) };
    }
}

/// The work item's function.
fn finish_here<T: Deferred, D: GracePeriods, S: Store>(item: &WorkItem, cx: &mut MaySleep) {
    // SAFETY: only `Cpu::work` has this function, and a `Cpu` stays until its work is flushed.
    let cpu = unsafe { &*ptr::from_ref(item).byte_sub(offset_of!(Cpu<T, D, S>, work)).cast::<Cpu<T, D, S>>() };
    cpu.finish(cx);
}
