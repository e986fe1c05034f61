//! Threads, and waiting.

use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool as Flag, AtomicPtr, AtomicU32 as Word};

use super::arch::CpuId;
use super::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use super::sync::{MaySleep, static_or_lazy};

/// What RCU keeps in a thread. A model's threads are leaked, like the machine's.
#[derive(Debug, Default)]
pub(crate) struct Thread {
    pub(crate) rcu: ThreadRcu,
}

impl Thread {
    /// For trace points, which are no code here.
    pub(crate) fn tid(&self) -> u64 {
        0
    }
}

#[derive(Debug, Default)]
pub(crate) struct ThreadRcu {
    pub(crate) nesting: Word,
    pub(crate) deferred: Flag,
    pub(crate) blocked_node: AtomicPtr<()>,
    pub(crate) blocked_next: AtomicPtr<Thread>,
    pub(crate) blocked_prev: AtomicPtr<Thread>,
}

loom::thread_local! {
    static CURRENT: Cell<*const Thread> = Cell::new(ptr::null());
}

/// From here on this CPU runs `thread`.
pub(crate) fn set_current(thread: &'static Thread) {
    CURRENT.with(|current| current.set(thread));
}

pub(crate) fn current() -> &'static Thread {
    // SAFETY: null, or from `set_current`.
    unsafe { CURRENT.with(Cell::get).as_ref() }.expect("the model says which thread runs here")
}

pub(crate) fn cond_resched(_: &mut MaySleep) {}

static_or_lazy! {
    /// Waiting is over for those who would wait for ever.
    static OVER: AtomicBool = AtomicBool::new(false);
    /// How often a wait with a time-out may still time out.
    static TIME_OUTS: AtomicU32 = AtomicU32::new(0);
}

/// Ends all waiting at [`WaitQueue`]s that are woken from now on.
pub(crate) fn end_waiting() {
    OVER.store(true, Ordering::SeqCst);
}

/// Lets so many waits time out, the first ones that do not find what they wait for.
pub(crate) fn allow_time_outs(count: u32) {
    TIME_OUTS.store(count, Ordering::Relaxed);
}

/// Sleeping and waking. That no wake-up is lost is a model of `sched`; here a lock sees to it. As there, the condition is
/// looked at without a lock, so what it reads has to order for itself.
pub(crate) struct WaitQueue {
    wakes: loom::sync::Mutex<u32>,
    woken: loom::sync::Condvar,
}

impl WaitQueue {
    pub(crate) fn new() -> WaitQueue {
        WaitQueue { wakes: loom::sync::Mutex::new(0), woken: loom::sync::Condvar::new() }
    }

    pub(crate) fn wait_until(&self, _: &mut MaySleep, mut cond: impl FnMut() -> bool) {
        loop {
            let before = *self.wakes.lock().unwrap();
            if cond() || OVER.load(Ordering::Relaxed) {
                return;
            }
            let mut wakes = self.wakes.lock().unwrap();
            while *wakes == before {
                wakes = self.woken.wait(wakes).unwrap();
            }
        }
    }

    pub(crate) fn wait_timeout(&self, cx: &mut MaySleep, _: u64, mut cond: impl FnMut() -> bool) -> bool {
        if cond() {
            return true;
        }
        let left = TIME_OUTS.load(Ordering::Relaxed);
        if left != 0 {
            TIME_OUTS.store(left - 1, Ordering::Relaxed);
            return false;
        }
        self.wait_until(cx, cond);
        true
    }

    pub(crate) fn wake_all(&self) {
        *self.wakes.lock().unwrap() += 1;
        self.woken.notify_all();
    }
}

/// Something that happens once. Shared, because who waits may be gone before who completes it has returned.
pub(crate) struct Completion(std::sync::Arc<(loom::sync::Mutex<bool>, loom::sync::Condvar)>);

impl Completion {
    pub(crate) fn new() -> Completion {
        Completion(std::sync::Arc::new((loom::sync::Mutex::new(false), loom::sync::Condvar::new())))
    }

    pub(crate) fn wait(&self, _: &mut MaySleep) {
        let mut done = self.0.0.lock().unwrap();
        while !*done {
            done = self.0.1.wait(done).unwrap();
        }
    }

    pub(crate) fn complete(&self) {
        let shared = self.0.clone();
        *shared.0.lock().unwrap() = true;
        shared.1.notify_all();
    }
}

/// There are no priorities.
pub(crate) fn follow_boost(_: &'static Thread) {}

/// No model has workers.
pub(crate) mod work {
    use super::MaySleep;

    pub(crate) struct WorkItem;

    impl WorkItem {
        pub(crate) const fn new(_: fn(&WorkItem, &mut MaySleep)) -> WorkItem {
            WorkItem
        }
    }

    pub(crate) fn queue_work_unbound(_: &'static WorkItem) -> bool {
        false
    }
}

/// There is no time, so nobody has to be asked for help.
pub(crate) fn resched_cpu(_: CpuId) {}

/// There are no ticks but those that the model calls.
pub(crate) mod tick {
    use super::CpuId;

    pub(crate) fn runs_on(_: CpuId) -> bool {
        true
    }

    pub(crate) fn keep_on(_: CpuId) {}

    pub(crate) fn let_stop(_: CpuId) {}
}

pub(crate) mod config {
    use crate::model::sync::Param;

    pub(crate) static HZ: Param<u32> = Param::new(250);

    pub(crate) fn tick_ns() -> u64 {
        4_000_000
    }
}

pub(crate) mod hooks {
    #[derive(Copy, Clone, Debug, Eq, PartialEq)]
    pub(crate) enum TickFrom {
        Busy,
        Idle,
    }
}

pub(crate) mod softirq {
    /// Whoever makes a model runs the softirq where it may run.
    pub(crate) fn raise(_: Softirq) {}

    pub(crate) enum Softirq {
        Rcu,
    }
}

pub(crate) mod watchdog {
    /// Says that a thread idles.
    pub(crate) struct Idling;

    pub(crate) fn idling() -> Idling {
        Idling
    }
}
