//! The threads that do for offloaded CPUs what a CPU does for itself: `rcuog/M` and `rcuop/N`.
//!
//! - `rcuog/M`, one for a group of about as many CPUs as there are groups (`rcutree.rcu_nocb_gp_stride`), M the first of them:
//!   flushes bypasses, tags callbacks, asks for grace periods and waits for them. One thread for each CPU would be woken as
//!   often for fewer callbacks; one for all would be slow to get round.
//! - `rcuop/N`, one for each CPU that was ever offloaded: calls callbacks, one after the other with softirqs off, as many as
//!   there are. It is a thread like any other and gives way to others in between.
//!
//! Invariants
//! - NOCB-4: `rcuog/M` sleeps only if no list of its group has callbacks without a tag, and either none has any with a tag,
//!   or it looks again at the end of every grace period of either kind. Ends wake it only while `waits` says so; it sets
//!   that before its last look at the counters, which are stepped before it is read, with full barriers on both sides.
//! - NOCB-5: no callback of an offloaded CPU is called on an offloaded CPU while another one is online: a thread looks before
//!   each where it is, with preemption off over the call.
//!
//! Linux: `nocb_gp_wait`, `nocb_cb_wait` in kernel/rcu/tree_nocb.h; rows.

use arch::{CpuId, CpuMask, clock, cpu};
use sched::{Prio, SpawnError, watchdog};
use sync::atomic::{Ordering, fence};
use sync::{ATOMIC, MaySleep, SoftirqGuard};

use crate::cblist::Tag;
use crate::cpu::shared;
use crate::nocb::{Nocb, of, offloaded};
use crate::seq::Seq;
use crate::{call, config, gp, invoke};

/// Callbacks called between two looks at whether somebody else wants the CPU.
const BETWEEN_RESCHEDS: usize = 32;

/// Which threads there are. They never end.
pub(crate) struct Spawned {
    groups: CpuMask,
    callers: CpuMask,
}

impl Spawned {
    pub(crate) const NONE: Spawned = Spawned { groups: CpuMask::EMPTY, callers: CpuMask::EMPTY };
}

/// Makes the threads that `cpu` needs to be offloaded, if they are not there.
pub(crate) fn spawn_for(cpu: CpuId, spawned: &mut Spawned, cx: &mut MaySleep) -> Result<(), SpawnError> {
    let leader = leader_of(cpu);
    of(cpu).leader.store(leader.index(), Ordering::Relaxed);
    if !spawned.groups.contains(leader) {
        let name = alloc::format!("rcuog/{leader}");
        sched::spawn(cx, &name, Prio::RCU, None, move |cx| wait_for_grace_periods(leader, cx))?.detach();
        spawned.groups.insert(leader);
    }
    if !spawned.callers.contains(cpu) {
        let name = alloc::format!("rcuop/{cpu}");
        sched::spawn(cx, &name, Prio::NORMAL, None, move |cx| call_callbacks(cpu, cx))?.detach();
        spawned.callers.insert(cpu);
    }
    Ok(())
}

/// The first CPU of the group of `cpu`.
fn leader_of(cpu: CpuId) -> CpuId {
    members(cpu).next().expect("a CPU is in its own group")
}

/// The present CPUs of the group that `cpu` is in.
fn members(cpu: CpuId) -> impl Iterator<Item = CpuId> {
    let stride = match config::NOCB_GP_STRIDE.get() {
        0 => cpu::present().count().isqrt(),
        set => set as usize,
    };
    cpu::present().iter().filter(move |other| other.index() / stride == cpu.index() / stride)
}

/// The life of `rcuog/M`.
fn wait_for_grace_periods(leader: CpuId, cx: &mut MaySleep) {
    let group = of(leader);
    loop {
        keep_off_offloaded(cx);
        let mut view = View::default();
        for cpu in members(leader) {
            view.look_at(of(cpu), cx);
        }
        if let Some(target) = view.wish {
            gp::request(target);
        }
        if view.flood {
            gp::hurry();
        }
        group.waits.store(view.first.is_some(), Ordering::Relaxed);
        let idling = view.first.is_none().then(watchdog::idling);
        // The wait has a full barrier between the store above and its last look (NOCB-4).
        let called = || group.asked.swap(false, Ordering::Relaxed) || view.first.is_some_and(call::is_over);
        group.group.wait_until(cx, called);
        drop(idling);
        group.waits.store(false, Ordering::Relaxed);
    }
}

/// What a group's thread has found on its round.
#[derive(Default)]
struct View {
    /// The furthest grace period that is to be asked for.
    wish: Option<Seq>,
    /// Grace periods one of which is the first to release anything.
    first: Option<Tag>,
    /// So many wait on a CPU that the grace period is to hurry.
    flood: bool,
}

impl View {
    /// Moves a CPU's callbacks on.
    fn look_at(&mut self, nocb: &Nocb, cx: &mut MaySleep) {
        let len = nocb.len.load(Ordering::Relaxed);
        if len == 0 {
            return;
        }
        self.flood |= len >= config::QHIMARK.get() as usize;
        let (wish, first, ready) = {
            let mut list = nocb.list.lock_irqsave(cx);
            nocb.flush_if_due(&mut list, clock::now_ns());
            let wish = call::move_on(&mut list.cbs);
            (wish, list.cbs.first_tag(), list.cbs.has_done())
        };
        if ready {
            nocb.ready.wake_all();
        }
        self.wish = either(self.wish, wish, Seq::later);
        self.first = either(self.first, first, Tag::earlier);
    }
}

/// `f` of both if there are two.
fn either<T>(a: Option<T>, b: Option<T>, f: fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(f(a, b)),
        (a, b) => a.or(b),
    }
}

/// A grace period of either kind has ended. Context: task.
pub(crate) fn gp_ended() {
    // Full: pairs with the barrier of the wait in `wait_for_grace_periods` (NOCB-4).
    fence(Ordering::SeqCst);
    for cpu in cpu::present().iter() {
        let nocb = of(cpu);
        if nocb.waits.load(Ordering::Relaxed) {
            nocb.group.wake_all();
        }
    }
}

/// The life of `rcuop/N`.
fn call_callbacks(cpu: CpuId, cx: &mut MaySleep) {
    let nocb = of(cpu);
    loop {
        let idling = watchdog::idling();
        nocb.ready.wait_until(cx, || nocb.list.lock_irqsave(ATOMIC).cbs.has_done());
        drop(idling);
        let mut taken = nocb.list.lock_irqsave(cx).cbs.take_done();
        let mut ran = 0;
        invoke::BATCHES.record(taken.len() as u64);
        while !taken.is_empty() {
            keep_off_offloaded(cx);
            {
                let _softirqs = SoftirqGuard::new(&*cx);
                if is_misplaced() {
                    continue;
                }
                if let Some(head) = taken.pop() {
                    invoke::call(head);
                }
            }
            nocb.lower(1);
            ran += 1;
            if ran % BETWEEN_RESCHEDS == 0 {
                sched::cond_resched(cx);
            }
        }
        nocb.list.lock_irqsave(cx).cbs.ran(ran);
        shared(cpu).cb_ran.fetch_add(ran as u64, Ordering::Relaxed);
    }
}

/// Whether the running thread is on an offloaded CPU although another one is online. The answer holds while it is pinned.
fn is_misplaced() -> bool {
    let offloaded = offloaded();
    offloaded.contains(cpu::current()) && !(cpu::online() - offloaded).is_empty()
}

/// Moves the running thread to a CPU that is not offloaded, if it is misplaced (NOCB-5).
fn keep_off_offloaded(cx: &mut MaySleep) {
    if is_misplaced() {
        // An error: the last of these CPUs has just gone, or been offloaded. Then it is not misplaced any more.
        let _ = sched::set_affinity(sched::current(), &(cpu::present() - offloaded()), cx);
    }
}
