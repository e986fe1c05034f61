//! Calling callbacks: how many at a time, and where.
//!
//! | where | who | limits |
//! |---|---|---|
//! | softirq | the CPU that queued them | by number and time, see [`crate::call`] |
//! | thread `rcuc/N`, with `rcutree.use_softirq=0` | the same | the same |
//! | `call_rcu` itself, when many wait to be run | the same | [`config::HELP`] callbacks |
//! | thread `rcuop/N` | another CPU, for one whose callbacks are offloaded ([`crate::nocb`]) | none |
//!
//! Invariants
//! - INV-1: a callback is called with softirqs off and interrupts on, on no list, and exactly once ([`call`]).
//! - INV-2: who takes callbacks off a CPU's own list is on that CPU with softirqs off until it has put back what is left. So
//!   the stopper, a thread, never finds some taken.
//!
//! `rcuc/N` belongs to its CPU. Should it run elsewhere because that one is offline, it does the work of the CPU it is on.
//!
//! Linux: `rcu_do_batch`, `rcu_cpu_kthread` in kernel/rcu/tree.c; rows.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{CpuId, clock, cpu};
use sched::softirq::{self, Softirq};
use sched::{WaitQueue, watchdog};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep, SoftirqGuard};

use crate::cpu::{Own, own, shared, shared_here};
use crate::hist::{Histogram, Snapshot};
use crate::{call, config, misuse, overload, qs};

/// Callbacks in each run that called any.
pub(crate) static BATCHES: Histogram = Histogram::new();
/// Callbacks that `call_rcu` ran itself.
pub(crate) static HELPED: AtomicU64 = AtomicU64::new(0);

/// Callbacks in each run so far, of a softirq, a thread or a helping `call_rcu`. Context: any.
pub fn callback_batches() -> Snapshot {
    BATCHES.snapshot()
}

/// Callbacks that `cpu` has run so far, counted at the end of each run. Context: any.
pub fn callbacks_run_on(cpu: CpuId) -> u64 {
    shared(cpu).cb_ran.load(Ordering::Relaxed)
}

/// Calls one callback (INV-1).
pub(crate) fn call(head: *mut CallbackHead) {
    // SAFETY: it was queued, so it is valid; it is off every list and goes to its function now.
    let func = unsafe { (*head).func };
    let Some(func) = func else {
        return misuse::report_no_function(head);
    };
    let before = misuse::Before::now();
    sync::trace!("rcu.invoke", head = head.addr(), func = func as usize);
    if cfg!(debug_assertions) {
        // SAFETY: as above. What is left there must not pass for a callback that is queued.
        unsafe { (*head).func = None };
    }
    // SAFETY: `call_rcu`'s caller promised that the function may be called with its head on any CPU.
    unsafe { func(head) };
    if cfg!(debug_assertions) {
        before.check(func);
    }
}

/// Calls what is done, within the limits. Context: softirq, or a thread with softirqs off.
pub(crate) fn invoke() {
    let left = run(|me, waiting| {
        if me.load.hurries() {
            return config::BLIMIT_HURRY;
        }
        (config::BLIMIT.get() as usize).max(waiting >> config::BATCH_DIVISOR)
    });
    if left.more {
        raise();
    }
}

/// Calls a few of many that are done. Context: a thread with preemption, softirqs and interrupts on.
pub(crate) fn help() {
    let _softirqs = SoftirqGuard::new(ATOMIC);
    let done = run(|_, _| config::HELP);
    HELPED.fetch_add(done.ran as u64, Ordering::Relaxed);
}

/// What a run did and left.
struct Run {
    ran: usize,
    more: bool,
}

/// Calls as many as `limit`, which is told how many wait, allows. Softirqs are off.
fn run(limit: impl FnOnce(&Own, usize) -> usize) -> Run {
    let (mut taken, limit) = {
        let irqs = IrqGuard::new(ATOMIC);
        let me = own(&irqs);
        let mut cbs = me.cbs.borrow_mut();
        (cbs.take_done(), limit(me, cbs.len()))
    };
    let mut ran = 0;
    if taken.is_empty() {
        return Run { ran, more: false };
    }
    sync::trace!("rcu.batch_start", waiting = taken.len(), limit = limit);
    let until = clock::now_ns() + config::BATCH_MAX_NS;
    while let Some(head) = taken.pop() {
        call(head);
        ran += 1;
        if ran >= limit || (ran % config::CLOCK_EVERY == 0 && clock::now_ns() > until) {
            break;
        }
    }
    BATCHES.record(ran as u64);
    let irqs = IrqGuard::new(ATOMIC);
    let me = own(&irqs);
    let (len, more) = {
        let mut cbs = me.cbs.borrow_mut();
        cbs.put_back(taken);
        cbs.ran(ran);
        (cbs.len(), cbs.has_done())
    };
    sync::trace!("rcu.batch_end", ran = ran, waiting = len);
    call::publish_len(len);
    shared_here().cb_ran.fetch_add(ran as u64, Ordering::Relaxed);
    overload::relax(me, len);
    Run { ran, more }
}

/// A CPU's thread `rcuc/N`.
struct Rcuc {
    wanted: AtomicBool,
    wait: WaitQueue,
}

arch::per_cpu! {
    /// This CPU's thread, with `rcutree.use_softirq=0`.
    static RCUC: Rcuc = Rcuc { wanted: AtomicBool::new(false), wait: WaitQueue::new() };
}

fn rcuc_of(cpu: CpuId) -> &'static Rcuc {
    // SAFETY: areas of present CPUs live for ever, and all fields are shared by their own means.
    unsafe { &*RCUC.ptr_on(cpu) }
}

/// Has [`qs::core`] run on this CPU soon. Context: tick, softirq, or `rcuc/N` itself.
pub(crate) fn raise() {
    if config::USE_SOFTIRQ.get() {
        return softirq::raise(Softirq::Rcu);
    }
    let _irqs = IrqGuard::new(ATOMIC);
    let here = rcuc_of(cpu::current());
    here.wanted.store(true, Ordering::Relaxed);
    here.wait.wake_all();
}

/// Starts the threads, if there are to be any. Context: boot.
///
/// # Panics
/// If there is no memory for them.
pub(crate) fn init(cx: &mut MaySleep) {
    if config::USE_SOFTIRQ.get() {
        return;
    }
    for cpu in cpu::present().iter() {
        let name = alloc::format!("rcuc/{cpu}");
        let spawned = sched::spawn::per_cpu(cx, &name, config::kthread_prio(), cpu, move |cx| rcuc(cpu, cx));
        spawned.expect("RCU: no memory for the threads that run callbacks");
    }
}

/// The life of `rcuc/N`.
fn rcuc(cpu: CpuId, cx: &mut MaySleep) {
    let mine = rcuc_of(cpu);
    loop {
        let idling = watchdog::idling();
        mine.wait.wait_until(cx, || mine.wanted.swap(false, Ordering::Relaxed));
        drop(idling);
        {
            let _softirqs = SoftirqGuard::new(&*cx);
            qs::core();
        }
        sched::cond_resched(cx);
    }
}
